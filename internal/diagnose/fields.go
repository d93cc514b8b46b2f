package diagnose

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
)

// typed are empty objects by the kind and version of a manifest.
func typed(version, kind string) any {
	switch version + " " + kind {
	case "v1 Pod":
		return &corev1.Pod{}
	case "v1 Service":
		return &corev1.Service{}
	case "v1 PersistentVolumeClaim":
		return &corev1.PersistentVolumeClaim{}
	case "apps/v1 Deployment":
		return &appsv1.Deployment{}
	case "apps/v1 ReplicaSet":
		return &appsv1.ReplicaSet{}
	case "apps/v1 StatefulSet":
		return &appsv1.StatefulSet{}
	case "apps/v1 DaemonSet":
		return &appsv1.DaemonSet{}
	case "batch/v1 Job":
		return &batchv1.Job{}
	case "networking.k8s.io/v1 Ingress":
		return &networkingv1.Ingress{}
	case "networking.k8s.io/v1 NetworkPolicy":
		return &networkingv1.NetworkPolicy{}
	case "autoscaling/v2 HorizontalPodAutoscaler":
		return &autoscalingv2.HorizontalPodAutoscaler{}
	case "policy/v1 PodDisruptionBudget":
		return &policyv1.PodDisruptionBudget{}
	}
	return nil
}

// checkFields is about fields in manifests that there are none of, which the API server has dropped in silence. kubectl apply keeps
// the manifest on the object.
func checkFields(s *Snapshot) (out []Finding) {
	s.each(func(kind string, o metav1.Object) {
		manifest := o.GetAnnotations()[corev1.LastAppliedConfigAnnotation]
		var meta metav1.TypeMeta
		if manifest == "" || json.UnmarshalCaseSensitivePreserveInts([]byte(manifest), &meta) != nil {
			return
		}
		into := typed(meta.APIVersion, meta.Kind)
		if into == nil {
			return
		}
		strict, err := json.UnmarshalStrict([]byte(manifest), into)
		if err != nil || len(strict) == 0 {
			return
		}
		var unknown []string
		f := Finding{ID: "unknown-field", Severity: Warning, Direction: Configuration, Object: refOf(kind, o), Owner: s.owner(o)}
		for _, e := range strict {
			unknown = append(unknown, strings.TrimPrefix(e.Error(), "unknown field "))
			f.State = append(f.State, Evidence{From: f.Object.String() + " annotation " + corev1.LastAppliedConfigAnnotation, Says: e.Error()})
		}
		f.Summary = "its manifest has fields that are not known: " + few(unknown)
		f.Why = "the API server drops what it does not know, and goes on without; where it is newer than bridge it may know them"
		f.Next = []string{fmt.Sprintf("kubectl explain %s --recursive shows how they are spelt; kubectl apply --validate=strict refuses them", kind)}
		out = append(out, f)
	})
	return out
}
