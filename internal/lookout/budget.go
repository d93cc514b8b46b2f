package lookout

import (
	"context"
	"fmt"

	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/kube"
)

func budget(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	list, err := k.Clientset.PolicyV1().PodDisruptionBudgets(s.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return budgetNotes(list.Items, s), nil
}

func budgetNotes(list []policyv1.PodDisruptionBudget, s *Subject) (notes []string) {
	for _, b := range list {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(s.Pod.Labels)) {
			continue
		}
		if evictable(b.Spec) {
			notes = append(notes, fmt.Sprintf("poddisruptionbudget/%s counts the proxy's one pod, and lets it be evicted: when its node is drained callers wait, are refused or are reset until another is Ready and has its tunnel, for some seconds, and the swap goes on (--mode standby has two proxies)", b.Name))
			continue
		}
		notes = append(notes, fmt.Sprintf("poddisruptionbudget/%s counts the proxy's one pod, and does not let it be evicted: whoever drains its node waits until the swap ends", b.Name))
	}
	return notes
}

// evictable tells whether the budget allows the eviction of one pod that is all there is.
func evictable(b policyv1.PodDisruptionBudgetSpec) bool {
	const pods = 1
	switch {
	case b.MinAvailable != nil:
		n, err := intstr.GetScaledValueFromIntOrPercent(b.MinAvailable, pods, true)
		return err == nil && n < pods
	case b.MaxUnavailable != nil:
		n, err := intstr.GetScaledValueFromIntOrPercent(b.MaxUnavailable, pods, true)
		return err == nil && n > 0
	}
	return false
}
