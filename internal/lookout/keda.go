package lookout

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// scaledObject is the kind of object by which KEDA is told what to scale.
const scaledObject = "ScaledObject"

// scaled is what matters here of a ScaledObject.
type scaled struct {
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		ScaleTargetRef struct {
			Kind string `json:"kind"` // empty is Deployment
			Name string `json:"name"`
		} `json:"scaleTargetRef"`
		MinReplicaCount  int32  `json:"minReplicaCount"`  // 0 where it has none
		IdleReplicaCount *int32 `json:"idleReplicaCount"` // in its place, while no trigger fires
	} `json:"spec"`
}

func keda(ctx context.Context, k *kube.Client, s *Subject) ([]string, error) {
	// Any client's transport will do: KEDA's types are in none.
	const api = "/apis/keda.sh/v1alpha1"
	client := k.Clientset.CoreV1().RESTClient()
	b, err := client.Get().AbsPath(api + "/namespaces/" + s.Target.Namespace + "/scaledobjects").DoRaw(ctx)
	if apierrors.IsForbidden(err) {
		// So says a cluster without KEDA too; what there is at all, everybody may ask.
		if _, e := client.Get().AbsPath(api).DoRaw(ctx); apierrors.IsNotFound(e) {
			err = e
		}
	}
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []scaled `json:"items"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	return kedaNotes(list.Items, s, k.Flags), nil
}

func kedaNotes(list []scaled, s *Subject, flags string) (notes []string) {
	for _, o := range list {
		ref := o.Spec.ScaleTargetRef
		if ref.Name != s.Target.Name || cmp.Or(ref.Kind, kube.Deployment.Object()) != s.Target.Kind.Object() {
			continue
		}
		const pausedAt, paused = "autoscaling.keda.sh/paused-replicas", "autoscaling.keda.sh/paused"
		switch at, has := o.Annotations[pausedAt]; {
		case s.Standby && (has && at != "0" || o.Annotations[paused] == "true"): // it leaves the original alone
		case s.Standby:
			least := o.Spec.MinReplicaCount
			if o.Spec.IdleReplicaCount != nil {
				least = *o.Spec.IdleReplicaCount
			}
			note := goesOn("scaledobject/"+o.Name+" (KEDA)", least)
			notes = append(notes, fmt.Sprintf("%s; to keep it as it is: kubectl annotate scaledobject %s -n %s%s %s=true", note, o.Name, s.Target.Namespace, flags, paused))
		case has && at == "0":
			notes = append(notes, fmt.Sprintf("scaledobject/%s (KEDA) is paused at 0 replicas: it leaves the original there", o.Name))
		case has:
			notes = append(notes, fmt.Sprintf("scaledobject/%s (KEDA) is paused at %s replicas: it scales the original up to that, which then runs beside your process", o.Name, at))
		case o.Annotations[paused] == "true":
			notes = append(notes, fmt.Sprintf("scaledobject/%s (KEDA) is paused: it leaves the original at 0 replicas", o.Name))
		default:
			notes = append(notes, fmt.Sprintf("scaledobject/%s (KEDA) scales the original up from 0 when a trigger fires, and it runs beside your process; to keep it at 0: kubectl annotate scaledobject %s -n %s%s %s=0",
				o.Name, o.Name, s.Target.Namespace, flags, pausedAt))
		}
	}
	return notes
}
