package lookout

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

func limitRange(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	list, err := k.Clientset.CoreV1().LimitRanges(s.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return limitRangeNotes(list.Items, s), nil
}

// limitRangeNotes says of the proxy's own container what a range does to it; the others of the pod have passed before.
func limitRangeNotes(list []corev1.LimitRange, s *Subject) (notes []string) {
	i := slices.IndexFunc(s.Pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == s.Container })
	if i < 0 {
		return nil
	}
	proxy := s.Pod.Spec.Containers[i].Resources
	for _, r := range list {
		for _, item := range r.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				if note := limitNote(item, name, proxy); note != "" {
					notes = append(notes, fmt.Sprintf("limitrange/%s %s", r.Name, note))
				}
			}
		}
	}
	return notes
}

func limitNote(item corev1.LimitRangeItem, name corev1.ResourceName, proxy corev1.ResourceRequirements) string {
	request, asks := proxy.Requests[name]
	limit, limited := proxy.Limits[name]
	least, hasLeast := item.Min[name]
	most, hasMost := item.Max[name]
	ratio, hasRatio := item.MaxLimitRequestRatio[name]
	byDefault, hasDefault := item.Default[name]
	switch {
	case hasLeast && asks && request.Cmp(least) < 0:
		return fmt.Sprintf("wants %s %s at least of every container, the proxy asks for %s: it will be refused (exit code 7)", least.String(), name, request.String())
	case hasMost && limited && limit.Cmp(most) > 0:
		return fmt.Sprintf("allows a container %s %s, the proxy's limit is %s: it will be refused (exit code 7)", most.String(), name, limit.String())
	case hasRatio && asks && limited && limit.AsApproximateFloat64() > ratio.AsApproximateFloat64()*request.AsApproximateFloat64():
		return fmt.Sprintf("allows a %s limit of %s times the request, the proxy has %s and %s: it will be refused (exit code 7)", name, ratio.String(), limit.String(), request.String())
	case hasDefault && !limited && name == corev1.ResourceCPU:
		return fmt.Sprintf("gives the proxy a CPU limit of %s: more traffic than that carries is slowed down", byDefault.String())
	}
	return ""
}
