package lookout

import (
	"context"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/kube"
)

func policy(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	list, err := k.Clientset.NetworkingV1().NetworkPolicies(s.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return policyNotes(list.Items, s), nil
}

func policyNotes(list []networkingv1.NetworkPolicy, s *Subject) []string {
	var in []string
	for _, p := range list {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err == nil && selector.Matches(labels.Set(s.Pod.Labels)) && slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
			in = append(in, p.Name)
		}
	}
	if len(in) == 0 {
		return nil
	}
	slices.Sort(in)
	return []string{names("networkpolicy", "networkpolicies", in) + " holds for the proxy's pod as for the original's: callers kept out there do not reach your process either"}
}
