package diagnose

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// checkJobs is about jobs that were given up.
func checkJobs(s *Snapshot) (out []Finding) {
	for i := range s.Jobs {
		j := &s.Jobs[i]
		if !is(j, batchv1.JobFailed) || s.succeededSince(j) {
			continue
		}
		for _, c := range j.Status.Conditions {
			if c.Type != batchv1.JobFailed || c.Status != corev1.ConditionTrue {
				continue
			}
			f := Finding{ID: "job-failed", Severity: Problem, Direction: Program, Object: refOf("job", j), Owner: s.owner(j)}
			f.Summary = "it was given up: " + worded(c.Reason, c.Message)
			f.Why = "its work is not done, and nobody tries again"
			f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
			f.Events = told(s.eventsOf("job", j))
			if c.Reason == batchv1.JobReasonDeadlineExceeded { // its pods are removed, and their logs
				f.Next = []string{"raise activeDeadlineSeconds, or leave it out"}
			} else {
				f.Next = []string{fmt.Sprintf("kubectl logs job/%s%s", j.Name, f.Object.in())}
			}
			f.Next = append(f.Next, "a job's template cannot be changed: delete it, and make it anew when its cause is mended")
			for _, p := range s.podsIn[j.Namespace] {
				if metav1.IsControlledBy(p, j) {
					f.because = append(f.because, refOf("pod", p))
				}
			}
			out = append(out, f)
		}
	}
	return out
}

// overtaken is a failed pod of a Job that needs it no more: another pod of it, or another Job of its CronJob since, has done the work.
func (s *Snapshot) overtaken(p *pod) bool {
	j := s.jobOf(p)
	return j != nil && (is(j, batchv1.JobComplete) || s.succeededSince(j))
}

// jobGoesOn tells whether p is of a Job that is neither done nor given up.
func (s *Snapshot) jobGoesOn(p *pod) bool {
	j := s.jobOf(p)
	return j != nil && !is(j, batchv1.JobComplete) && !is(j, batchv1.JobFailed)
}

func (s *Snapshot) jobOf(p *pod) *batchv1.Job {
	by, _ := maker(p)
	j, _ := s.makers[by].(*batchv1.Job)
	return j
}

func is(j *batchv1.Job, t batchv1.JobConditionType) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t && c.Status == corev1.ConditionTrue })
}

// succeededSince tells whether a later Job of the same CronJob has succeeded.
func (s *Snapshot) succeededSince(j *batchv1.Job) bool {
	by := metav1.GetControllerOf(j)
	return by != nil && s.lastSuccess[by.UID].After(j.CreationTimestamp.Time)
}
