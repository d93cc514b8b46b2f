package lookout

import (
	"context"
	"fmt"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

func autoscaler(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	list, err := k.Clientset.AutoscalingV2().HorizontalPodAutoscalers(s.Target.Namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return autoscalerNotes(list.Items, s), nil
}

func autoscalerNotes(list []autoscalingv2.HorizontalPodAutoscaler, s *Subject) (notes []string) {
	for _, h := range list {
		ref := h.Spec.ScaleTargetRef
		if ref.Kind != s.Target.Kind.Object() || ref.Name != s.Target.Name {
			continue
		}
		if owner := metav1.GetControllerOf(&h); owner != nil && owner.Kind == scaledObject {
			continue // KEDA's own, and said there
		}
		least := int32(1)
		if h.Spec.MinReplicas != nil {
			least = *h.Spec.MinReplicas
		}
		if s.Standby {
			notes = append(notes, goesOn("horizontalpodautoscaler/"+h.Name, least))
			continue
		}
		if least == 0 {
			notes = append(notes, fmt.Sprintf("horizontalpodautoscaler/%s may scale the original up from 0 (minReplicas: 0), and it runs beside your process", h.Name))
			continue
		}
		notes = append(notes, fmt.Sprintf("horizontalpodautoscaler/%s stands still while the original is at 0 replicas, and goes on when it is given back", h.Name))
	}
	return notes
}

// goesOn says what an autoscaler does to an original that goes on.
func goesOn(who string, least int32) string {
	then := "so few answer at first when this machine is gone"
	if least == 0 {
		then = "then nobody answers what this machine cannot take"
	}
	return fmt.Sprintf("%s goes on, and may take the original, which gets little traffic now, down to its minimum of %d: %s", who, least, then)
}
