package diagnose

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// podPatience is how long after its grace period a deleted pod may still be there.
	podPatience = 10 * time.Second
	// deletionPatience is that of others, which may wait for their pods.
	deletionPatience = time.Minute
	// cleaningPatience is how long what Kubernetes itself cleans up may take: a load balancer, the pods of a Job.
	cleaningPatience = 5 * time.Minute
)

// ownFinalizers are those of Kubernetes' own controllers, which do not go away: taking one away by hand leaves behind what it is for.
var ownFinalizers = []string{
	metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents,
	"kubernetes.io/pvc-protection", "batch.kubernetes.io/job-tracking", "service.kubernetes.io/load-balancer-cleanup",
}

// othersFinalizer tells whether o waits for a controller that is not Kubernetes' own.
func othersFinalizer(o metav1.Object) bool {
	return slices.ContainsFunc(o.GetFinalizers(), func(name string) bool { return !slices.Contains(ownFinalizers, name) })
}

// checkDeletion is about objects that are deleted and do not go.
func checkDeletion(s *Snapshot) (out []Finding) {
	if n := s.Space; n != nil && n.DeletionTimestamp != nil {
		f := Finding{ID: "namespace-terminating", Severity: Problem, Direction: Deletion, Object: Ref{Kind: "namespace", Name: n.Name}}
		f.Summary = "it is being deleted"
		f.Why = "nothing new can be made in it, and what it has is deleted"
		f.State = []Evidence{{From: f.Object.String() + " metadata.deletionTimestamp", Says: fmt.Sprintf("%v ago", s.Now.Sub(n.DeletionTimestamp.Time).Round(time.Second)), At: n.DeletionTimestamp.Time}}
		for _, c := range n.Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
			}
		}
		f.Next = []string{"wait; if it stays, its conditions say what it waits for: kubectl get namespace " + n.Name + " -o yaml"}
		out = append(out, f)
	}
	s.each(func(kind string, o metav1.Object) {
		at := o.GetDeletionTimestamp()
		patience := deletionPatience
		if kind == "pod" { // whose time is the end of its grace period
			patience = podPatience
		}
		if len(o.GetFinalizers()) > 0 && !othersFinalizer(o) {
			patience = cleaningPatience
		}
		if at == nil || s.Now.Sub(at.Time) < patience {
			return
		}
		f := Finding{ID: "deletion-stuck", Severity: Problem, Direction: Deletion, Object: refOf(kind, o), Owner: s.owner(o)}
		f.State = []Evidence{{From: f.Object.String() + " metadata.deletionTimestamp", Says: fmt.Sprintf("%v ago", s.Now.Sub(at.Time).Round(time.Second)), At: at.Time}}
		f.Why = "it is there, and takes its name and what it holds, until it goes"
		if finalizers := o.GetFinalizers(); len(finalizers) > 0 {
			f.Summary = "it is deleted and cannot go before its finalizers are taken away: " + list(finalizers)
			f.State = append(f.State, Evidence{From: f.Object.String() + " metadata.finalizers", Says: strings.Join(finalizers, ", ")})
			f.Next = []string{
				"look for the controller that each is named for: it takes its own away when it has cleaned up",
				fmt.Sprintf("if that is gone for good, and what it would clean up too: kubectl patch %s%s --type merge -p '{\"metadata\":{\"finalizers\":null}}'", strings.Replace(f.Object.String(), "/", " ", 1), f.Object.in()),
			}
			if !othersFinalizer(o) {
				f.Next = []string{fmt.Sprintf("Kubernetes takes them away itself when it has cleaned up; what keeps it is in the events: kubectl describe %s%s", strings.Replace(f.Object.String(), "/", " ", 1), f.Object.in())}
			}
			if kind == "persistentvolumeclaim" && strings.Join(finalizers, "") == "kubernetes.io/pvc-protection" {
				f.Severity, f.Why = Warning, "pods still mount it; it goes when the last of them does"
				f.Next = []string{"kubectl describe pvc " + f.Object.Name + f.Object.in() + " names the pods under Used By"}
			}
		} else if kind == "pod" {
			p := o.(*pod)
			f.ID = "pod-terminating"
			f.Summary = "it is deleted, and its node has not told that its containers have ended"
			f.because = []Ref{{Kind: "node", Name: p.Spec.NodeName}}
			f.Next = []string{"kubectl describe node " + p.Spec.NodeName,
				fmt.Sprintf("if the node is gone for good: kubectl delete pod %s%s --force --grace-period 0", p.Name, inOf(p))}
			f.Events = told(s.eventsOf("pod", p))
		} else {
			return
		}
		out = append(out, f)
	})
	return out
}
