package diagnose

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// checkJobs is about jobs that were given up, are held, or were never made.
func checkJobs(s *Snapshot) (out []Finding) {
	out = slices.Concat(s.heldJobs(), s.cronJobs(), s.suspended())
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
				if !slices.ContainsFunc(s.podsIn[j.Namespace], func(p *pod) bool { return metav1.IsControlledBy(p, j) }) {
					f.Next = []string{"its pods are gone, and their logs: with restartPolicy Never they stay"}
				}
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

// heldJobs are about pods of Jobs in which a container has done its work, and another goes on: a sidecar that nobody ends.
func (s *Snapshot) heldJobs() (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if !s.jobGoesOn(p) || p.DeletionTimestamp != nil {
			continue
		}
		var done, on []string
		var last metav1.Time
		serves, longest := true, time.Duration(0)
		for _, c := range containersOf(p) {
			switch t := c.status.State.Terminated; {
			case c.init:
			case t != nil && t.ExitCode == 0:
				if done = append(done, c.Name); last.Before(&t.FinishedAt) {
					last = t.FinishedAt
				}
				longest = max(longest, t.FinishedAt.Sub(t.StartedAt.Time))
			case c.status.State.Running != nil:
				on = append(on, c.Name)
				serves = serves && len(c.Ports)+len(c.probes()) > 0
			}
		}
		patience := slowPatience
		if !serves { // it may have work of its own
			patience = max(recent, longest)
		}
		if len(done) == 0 || len(on) == 0 || s.Now.Sub(last.Time) < patience {
			continue
		}
		f := s.ofPod(p, "job-held", Warning, Program)
		f.Container = on[0]
		f.because = append(f.because, f.Object)
		f.Summary = fmt.Sprintf("%s has done its work, and %s goes on: its Job is not complete before that has ended", list(done), list(on))
		f.Why = "a Job's pod is done when all its containers are, but for sidecars that are init containers"
		f.State = []Evidence{{From: fmt.Sprintf("%s status.containerStatuses[%s].state.terminated", f.Object, done[0]), Says: "exit code 0", At: last.Time}}
		f.Next = []string{fmt.Sprintf("if %s is a sidecar, make it an init container with restartPolicy: Always, which the kubelet ends; or have it end by itself: %s", on[0], f.edit())}
		out = append(out, f)
	}
	return out
}

// cronJobs are about CronJobs of which a run was refused, or left out since the last: their events alone say so.
func (s *Snapshot) cronJobs() (out []Finding) {
	newest := func(r Ref, reason string) *corev1.Event {
		if i := slices.IndexFunc(s.eventsAbout[r], func(e *corev1.Event) bool { return e.Reason == reason }); i >= 0 {
			return s.eventsAbout[r][i]
		}
		return nil
	}
	for r := range s.eventsAbout {
		if r.Kind != "cronjob" {
			continue
		}
		made := newest(r, "SuccessfulCreate")
		var jobs []*batchv1.Job
		for i := range s.Jobs {
			if by, _ := maker(&s.Jobs[i]); by == r {
				jobs = append(jobs, &s.Jobs[i])
			}
		}
		// The kubelet's rule for events is everybody's: some are left out. So the Jobs that there are count, too.
		since := func(e *corev1.Event) bool {
			return e != nil && (made == nil || lastSeen(e).After(lastSeen(made))) &&
				!slices.ContainsFunc(jobs, func(j *batchv1.Job) bool { return j.CreationTimestamp.After(lastSeen(e)) })
		}
		f := Finding{Object: r, Severity: Problem, Direction: Admission}
		switch refused, left := newest(r, "FailedCreate"), newest(r, "JobAlreadyActive"); {
		case since(refused):
			f.ID, f.Summary = "cronjob-refused", "its Job cannot be made: "+firstLine(refused.Message)
			f.Why = "its work is not done; the next time it is tried again"
			f.Events = told([]*corev1.Event{refused})
			f.Next = []string{"mend what the message names: " + f.edit()}
		case since(left) && slices.ContainsFunc(jobs, goesOn):
			f.ID, f.Severity, f.Direction = "cronjob-skipped", Warning, Program
			f.Summary = "a run of it still goes on, so that later ones are left out"
			f.Why = "concurrencyPolicy Forbid has one run at a time"
			f.Events = told([]*corev1.Event{left})
			f.because = s.made[r]
			f.Next = []string{"see what it does: kubectl get jobs" + r.in() + "; activeDeadlineSeconds in its jobTemplate ends one that hangs: " + f.edit()}
		default:
			continue
		}
		out = append(out, f)
	}
	return out
}

// suspended are the CronJobs that are. It is told where one is named: that it does not run may be why it is asked about.
func (s *Snapshot) suspended() (out []Finding) {
	for i := range s.CronJobs {
		c := &s.CronJobs[i]
		if c.Spec.Suspend == nil || !*c.Spec.Suspend {
			continue
		}
		f := Finding{ID: "cronjob-suspended", Severity: Warning, Direction: Program, Object: refOf("cronjob", c), Owner: s.owner(c)}
		f.Summary = "it is suspended"
		f.Why = "no Job is made of it before that is taken back"
		f.State = []Evidence{{From: f.Object.String() + " spec.suspend", Says: "true"}}
		f.Next = []string{"if it is to run: set spec.suspend to false: " + f.edit()}
		out = append(out, f)
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
	return j != nil && goesOn(j)
}

// goesOn tells whether j is neither done nor given up.
func goesOn(j *batchv1.Job) bool { return !is(j, batchv1.JobComplete) && !is(j, batchv1.JobFailed) }

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
