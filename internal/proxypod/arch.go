package proxypod

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// Arch is the architecture for a carried proxy: the one the template asks for, else that of a node
// on which one of pods runs (the user may not be allowed to read nodes), else amd64.
func Arch(ctx context.Context, k *kube.Client, template corev1.PodSpec, pods []corev1.Pod) string {
	if arch := template.NodeSelector[corev1.LabelArchStable]; arch != "" {
		return arch
	}
	for _, p := range pods {
		if p.Spec.NodeName == "" {
			continue
		}
		node, err := k.Clientset.CoreV1().Nodes().Get(ctx, p.Spec.NodeName, metav1.GetOptions{})
		if err != nil {
			break // not allowed to, most likely
		}
		if arch := node.Labels[corev1.LabelArchStable]; arch != "" {
			return arch
		}
	}
	return "amd64"
}
