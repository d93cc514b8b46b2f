package diagnose

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// rolloutKind is Argo's, as maker names it.
const rolloutKind = "rollout." + argoGroup

const argoGroup = "argoproj.io"

// argoRollout is what is looked at of a Rollout of Argo's, a custom resource of which bridge links no types.
type argoRollout struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Replicas *int32 `json:"replicas"`
		Paused   bool   `json:"paused"`
	} `json:"spec"`
	Status struct {
		// Phase and Message are the controller's own summary.
		Phase             string                 `json:"phase"`
		Message           string                 `json:"message"`
		Abort             bool                   `json:"abort"`
		UpdatedReplicas   int32                  `json:"updatedReplicas"`
		AvailableReplicas int32                  `json:"availableReplicas"`
		Conditions        []argoRolloutCondition `json:"conditions"`
	} `json:"status"`
}

type argoRolloutCondition struct {
	Type           string                 `json:"type"`
	Status         corev1.ConditionStatus `json:"status"`
	Reason         string                 `json:"reason"`
	Message        string                 `json:"message"`
	LastUpdateTime metav1.Time            `json:"lastUpdateTime"`
}

func readRollouts(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
	s.Rollouts, err = custom[argoRollout](ctx, k, kube.Rollout.APIVersion(), s.Namespace, kube.Rollout.Resource())
	return err
}

// checkArgoRollouts is about Argo's Rollouts whose new pods do not come.
func checkArgoRollouts(s *Snapshot) (out []Finding) {
	for i := range s.Rollouts {
		o := &s.Rollouts[i]
		r := refOf(rolloutKind, o)
		f := Finding{ID: "rollout-degraded", Severity: Problem, Direction: Rollout, Object: r, Owner: s.owner(o)}
		wants := replicas(o.Spec.Replicas)
		f.State = []Evidence{{From: r.String() + " status.phase", Says: worded(o.Status.Phase, o.Status.Message)}}
		f.Why = "none of the wanted pods serve"
		if n := o.Status.AvailableReplicas; n > 0 {
			f.Why = fmt.Sprintf("%s go on serving, of the version before where the update has not come through", counted(int(n), "pod"))
		}
		switch {
		case o.Status.Phase == "Degraded" && o.Status.Abort:
			f.ID, f.Summary = "rollout-aborted", "its update was given up: "+firstLine(o.Status.Message)
			f.Next = []string{fmt.Sprintf("try again: kubectl argo rollouts retry rollout %s%s; or back: kubectl argo rollouts undo %s%s", o.Name, r.in(), o.Name, r.in())}
		case o.Status.Phase == "Degraded":
			f.Summary = fmt.Sprintf("it is degraded, with %d of %d pods available: %s", o.Status.AvailableReplicas, wants, firstLine(o.Status.Message))
			f.Next = []string{fmt.Sprintf("back to the version before: kubectl argo rollouts undo %s%s", o.Name, r.in())}
		case o.Spec.Paused && o.Status.UpdatedReplicas < wants:
			f.ID, f.Severity = "rollout-paused", Warning
			f.Summary = fmt.Sprintf("it is paused with %d of %d new pods", o.Status.UpdatedReplicas, wants)
			f.State = []Evidence{{From: r.String() + " spec.paused", Says: "true"}}
			f.Why = "what was changed since does not reach its pods"
			f.Next = []string{"set spec.paused to false: " + f.edit()}
		default:
			continue
		}
		for _, c := range o.Status.Conditions {
			if c.Type == "InvalidSpec" && c.Status == corev1.ConditionTrue || c.Type == "Progressing" && c.Status == corev1.ConditionFalse {
				f.condition(r, c.Type, string(c.Status), c.Reason, c.Message, c.LastUpdateTime)
			}
		}
		f.because = append([]Ref{r}, s.made[r]...)
		f.Events = told(s.eventsOf("rollout", o))
		out = append(out, f)
	}
	return out
}
