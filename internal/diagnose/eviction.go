package diagnose

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// checkEvictions is about pods that their node or the scheduler has ended.
func checkEvictions(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason == "" {
			continue
		}
		f := s.ofPod(p, "pod-failed", Warning, Node)
		f.Why = "it does not come back; its workload makes another"
		if f.Owner == (Ref{}) {
			f.Why = "it does not come back, and nobody makes another"
		}
		f.State = []Evidence{{From: f.Object.String() + " status.reason", Says: worded(p.Status.Reason, p.Status.Message)}}
		switch p.Status.Reason {
		case "Evicted":
			f.ID, f.Summary = "pod-evicted", "it was evicted: "+firstLine(p.Status.Message)
			if f.Owner != (Ref{}) {
				f.Why += ", which may meet the same"
			}
			f.Next = []string{"set requests to what it uses, and limits for ephemeral-storage: " + f.edit(), fmt.Sprintf("remove what is left of it: kubectl delete pod %s%s", p.Name, inOf(p))}
		case "DeadlineExceeded":
			if f.Owner != (Ref{}) {
				continue // its job's
			}
			f.Summary = "it has run for longer than its activeDeadlineSeconds, and was ended"
			f.Next = []string{"raise activeDeadlineSeconds, or leave it out: " + f.edit()}
		default:
			f.Summary = "it has failed: " + worded(p.Status.Reason, firstLine(p.Status.Message))
			f.Next = []string{fmt.Sprintf("remove what is left of it: kubectl delete pod %s%s", p.Name, inOf(p))}
		}
		f.Events = told(s.eventsOf("pod", p, "Evicted", "Preempted", "Killing"))
		out = append(out, f)
	}
	return out
}
