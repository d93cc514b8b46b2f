package lookout

import (
	"cmp"
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

func mesh(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	ns, err := k.Clientset.CoreV1().Namespaces().Get(ctx, s.Target.Namespace, metav1.GetOptions{})
	if err != nil {
		ns = &corev1.Namespace{} // what the template asks for is known all the same
	}
	return meshNotes(ns, s), err
}

func meshNotes(ns *corev1.Namespace, s *Subject) (notes []string) {
	note := func(name string) {
		notes = append(notes, fmt.Sprintf("%s puts its sidecar into the proxy's pod, as into the original's: mutual TLS of callers ends there, and your process gets what is inside", name))
	}
	pod := s.Pod
	switch istio := cmp.Or(pod.Labels["sidecar.istio.io/inject"], pod.Annotations["sidecar.istio.io/inject"]); {
	case istio == "true", istio == "" && cmp.Or(pod.Labels["istio.io/rev"], ns.Labels["istio.io/rev"]) != "",
		istio == "" && ns.Labels["istio-injection"] == "enabled":
		note("Istio")
	case cmp.Or(pod.Labels["istio.io/dataplane-mode"], ns.Labels["istio.io/dataplane-mode"]) == "ambient":
		notes = append(notes, "Istio's ambient mode takes the proxy's pod in, as the original's: mutual TLS of callers ends at its node")
	}
	switch cmp.Or(pod.Annotations["linkerd.io/inject"], ns.Annotations["linkerd.io/inject"]) {
	case "enabled", "ingress":
		note("Linkerd")
	}
	return notes
}
