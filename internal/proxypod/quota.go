package proxypod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// WantsCPULimit tells whether a quota of the namespace refuses containers without a CPU limit. Who may
// not read quotas gets false, and the API server's own words when it matters.
func WantsCPULimit(ctx context.Context, k *kube.Client, namespace string) bool {
	list, err := k.Clientset.CoreV1().ResourceQuotas(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return false
	}
	for _, q := range list.Items {
		if _, ok := q.Spec.Hard[corev1.ResourceLimitsCPU]; ok {
			return true
		}
	}
	return false
}
