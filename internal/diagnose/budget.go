package diagnose

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// budgeted are the pods that a disruption budget is about.
func (s *Snapshot) budgeted(b *policyv1.PodDisruptionBudget) []*pod {
	if b.Spec.Selector == nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return nil
	}
	return s.matching(b.Namespace, selector)
}

// checkBudgets is about disruption budgets that let no pod go, or are about none by mistake: what drains a node waits for them. A workload's own rollout does not ask them.
func checkBudgets(s *Snapshot) (out []Finding) {
	for i := range s.Budgets {
		b := &s.Budgets[i]
		f := Finding{ID: "budget-allows-none", Severity: Warning, Direction: Node, Object: refOf("poddisruptionbudget", b), Owner: s.owner(b)}
		f.Events = told(s.eventsOf("poddisruptionbudget", b))
		if metav1.GetControllerOfNoCopy(b) == nil { // an operator's may be there before its pods
			if s.missesPods(&f, "spec.selector", b.Namespace, b.Spec.Selector); f.Summary != "" {
				f.ID, f.Why = "budget-selector-mismatch", "it holds for nobody: a drain takes all pods that it is to keep at once"
				out = append(out, f)
				continue
			}
		}
		failed := slices.IndexFunc(b.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == policyv1.DisruptionAllowedCondition && c.Reason == policyv1.SyncFailedReason
		})
		switch {
		case failed >= 0: // whatever generation is observed, which a failure leaves: it may be none yet
			c := b.Status.Conditions[failed]
			f.ID, f.Summary = "budget-failed", "what it allows cannot be told: "+firstLine(c.Message)
			f.Why = "no pod that it is about can be evicted"
			f.Next = []string{"its selector should match pods of workloads that can be scaled: " + f.edit()}
			f.condition(f.Object, c.Type, string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
		case b.Status.ObservedGeneration < b.Generation || b.Status.ExpectedPods == 0 || b.Status.DisruptionsAllowed > 0:
			continue
		case b.Status.DesiredHealthy < b.Status.ExpectedPods: // it lets some go when all are well, as in the middle of a drain
			continue
		case s.blocks(b, &f):
		default:
			f.budget(b)
			f.Summary = fmt.Sprintf("it lets none of its %s go, even when all are well", counted(int(b.Status.ExpectedPods), "pod"))
			f.Why = "whoever drains their nodes waits for ever"
			f.Next = []string{"let one go, with maxUnavailable: 1, or have more pods: " + f.edit()}
		}
		out = append(out, f)
	}
	return out
}

// blocks makes f about a node that is cordoned, where pods of b's are still. Whether somebody drains it, nothing tells.
func (s *Snapshot) blocks(b *policyv1.PodDisruptionBudget, f *Finding) bool {
	var there []string
	var node Ref
	for _, p := range s.budgeted(b) {
		i := slices.IndexFunc(s.Nodes, func(n corev1.Node) bool { return n.Name == p.Spec.NodeName && n.Spec.Unschedulable })
		if i >= 0 && p.DeletionTimestamp == nil && !over(p) {
			there, node = append(there, refOf("pod", p).String()), nodeOf(p)
		}
	}
	if len(there) == 0 {
		return false
	}
	f.budget(b)
	f.ID = "drain-blocked"
	f.State = append(f.State, Evidence{From: node.String() + " spec.unschedulable", Says: "true"})
	f.Summary = fmt.Sprintf("it lets none of its pods go, even when all are well, and %s is cordoned, as for a drain: %s stay there", node, few(there))
	f.Why = "a drain of that node waits for ever, and with it an upgrade of the cluster"
	f.Next = []string{
		fmt.Sprintf("have more pods, elsewhere, or let one go with maxUnavailable: 1: %s", f.edit()),
		"the node takes pods again with: kubectl uncordon " + node.Name,
	}
	return true
}

func (f *Finding) budget(b *policyv1.PodDisruptionBudget) {
	f.State = append(f.State, Evidence{
		From: f.Object.String() + " status",
		Says: fmt.Sprintf("disruptionsAllowed %d, currentHealthy %d, desiredHealthy %d, expectedPods %d", b.Status.DisruptionsAllowed, b.Status.CurrentHealthy, b.Status.DesiredHealthy, b.Status.ExpectedPods),
	})
}
