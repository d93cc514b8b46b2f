package diagnose

import (
	"fmt"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// checkRollouts is about workloads whose new pods do not come.
func checkRollouts(s *Snapshot) (out []Finding) {
	for i := range s.Deployments {
		d := &s.Deployments[i]
		r := refOf("deployment", d)
		f := Finding{ID: "rollout-stuck", Severity: Problem, Direction: Rollout, Object: r, Owner: s.owner(d)}
		stuck, failed := false, ""
		for _, c := range d.Status.Conditions {
			switch {
			case c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded":
				stuck = true
				f.condition(r, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastUpdateTime)
			case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
				failed = c.Message
			}
		}
		wants := replicas(d.Spec.Replicas)
		switch {
		case stuck:
			deadline := int32(600)
			if d.Spec.ProgressDeadlineSeconds != nil {
				deadline = *d.Spec.ProgressDeadlineSeconds
			}
			available := "how many of its new pods are available is not known"
			f.Why = "the new version does not serve as it is wanted to"
			if d.Status.AvailableReplicas == 0 {
				f.Why = "none of the wanted pods serve"
			}
			if set := s.newest(d); set != nil {
				available = fmt.Sprintf("%d of %d new pods are available", set.Status.AvailableReplicas, wants)
				if old := d.Status.AvailableReplicas - set.Status.AvailableReplicas; old > 0 {
					f.Why = counted(int(old), "old pod") + " go on serving the version before"
					if old == 1 {
						f.Why = "an old pod goes on serving the version before"
					}
				}
			}
			f.Summary = fmt.Sprintf("its rollout has made no progress for %s: %s", seconds(deadline), available)
			f.Next = []string{fmt.Sprintf("back to the version before: kubectl rollout undo deployment %s%s", d.Name, r.in())}
		case d.Spec.Paused && d.Status.UpdatedReplicas < wants:
			f.ID, f.Severity = "rollout-paused", Warning
			f.Summary = fmt.Sprintf("its rollout is paused with %d of %d new pods", d.Status.UpdatedReplicas, wants)
			f.Why = "what was changed since does not reach its pods"
			f.State = []Evidence{{From: r.String() + " spec.paused", Says: "true"}}
			f.Next = []string{fmt.Sprintf("kubectl rollout resume deployment %s%s", d.Name, r.in())}
		default:
			continue
		}
		if failed != "" {
			f.State = append(f.State, Evidence{From: r.String() + " condition ReplicaFailure", Says: failed})
		}
		f.because = append([]Ref{r}, s.made[r]...)
		f.Events = told(s.eventsOf("deployment", d))
		out = append(out, f)
	}
	for i := range s.StatefulSets {
		if f, ok := s.statefulSetStuck(&s.StatefulSets[i]); ok {
			out = append(out, f)
		}
	}
	return out
}

// newest is the ReplicaSet of a Deployment's last revision, which may be made anew of an older one; nil where none was read.
func (s *Snapshot) newest(d *appsv1.Deployment) (newest *appsv1.ReplicaSet) {
	const annotation = "deployment.kubernetes.io/revision"
	last := -1
	for i := range s.ReplicaSets {
		o := &s.ReplicaSets[i]
		if by, made := maker(o); !made || by != refOf("deployment", d) {
			continue
		}
		if n, _ := strconv.Atoi(o.Annotations[annotation]); n > last {
			newest, last = o, n
		}
	}
	return newest
}

// statefulSetStuck is about a rollout that waits for a pod of the version before: the controller does not replace one that never was ready.
func (s *Snapshot) statefulSetStuck(o *appsv1.StatefulSet) (Finding, bool) {
	if o.Status.UpdateRevision == o.Status.CurrentRevision || o.Status.UpdateRevision == "" || o.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return Finding{}, false
	}
	kept := int32(0) // pods below this number are meant to stay of the version before
	if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil {
		kept = *r.Partition
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if !metav1.IsControlledBy(p, o) || ready(p) || p.Labels[appsv1.StatefulSetRevisionLabel] == o.Status.UpdateRevision || s.Now.Sub(p.CreationTimestamp.Time) < startPatience {
			continue
		}
		if n, err := strconv.Atoi(p.Name[strings.LastIndex(p.Name, "-")+1:]); p.DeletionTimestamp != nil || err == nil && int32(n) < kept {
			continue
		}
		f := Finding{ID: "rollout-blocked", Severity: Problem, Direction: Rollout, Object: refOf("statefulset", o), Owner: s.owner(o)}
		f.Summary = fmt.Sprintf("its rollout waits for %s of the version before, which is not ready and which nobody replaces", refOf("pod", p))
		f.Why = "even a mended template does not reach that pod before somebody deletes it"
		f.State = []Evidence{{From: refOf("pod", p).String() + " label " + appsv1.StatefulSetRevisionLabel, Says: p.Labels[appsv1.StatefulSetRevisionLabel] + ", wanted " + o.Status.UpdateRevision}}
		f.Next = []string{fmt.Sprintf("kubectl delete pod %s%s, once the template is right", p.Name, inOf(p))}
		return f, true
	}
	return Finding{}, false
}
