package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
)

// Workload is what bridge asks of an object that makes pods from a template, or is the only one, whatever its kind.
type Workload struct {
	Kind Kind // one of WorkloadKinds
	metav1.ObjectMeta
	// Selector is that of its pods.
	Selector *metav1.LabelSelector
	// Template is what its pods are made from. A StatefulSet's is as its first pod has it: with that pod's name, host name, labels and
	// volume claims, and a bare Pod's is what it was made from. The pods of the others have no name that is known before, and the
	// template has none.
	Template corev1.PodTemplateSpec
	// Replicas are wanted, Ready are there; of a Rollout's pods those that are available (minReadySeconds). What is there is true when Observed is the Generation.
	Replicas, Ready int32
	Observed        int64
	// Governing is the Service under which each of a StatefulSet's pods has a name; "" for the others.
	Governing string
	// Dropped are the volume claim templates whose claims, and the data in them, the cluster deletes when the workload is scaled down.
	Dropped []string

	// What a Rollout has besides: Hash is RolloutHashLabel's value on the pods that serve, Updating is whether others are on their way to
	// take their place, Current is its value on those that are to serve at last, Owned are the Services whose selectors its controller writes,
	// Subsets is Istio's DestinationRule by whose subsets a mesh finds its pods, and Beside is the Deployment that runs pods of the same template (Complete).
	Hash     string
	Current  string
	Updating bool
	// Unseen is whether it is Updating for all that is known, since its controller has not seen the Rollout as it is.
	Unseen  bool
	Owned   []string
	Subsets string
	Beside  string

	ref *templateRef
}

// Target names it.
func (w *Workload) Target() Target { return Target{w.Kind, w.Name} }

// Workload reads one; it is never nil. The error is the API server's own. Before its template is used Complete is due.
func (c *Client) Workload(ctx context.Context, namespace string, t Target) (*Workload, error) {
	client := c.Clientset.AppsV1().RESTClient()
	switch t.Kind {
	case Pod:
		client = c.Clientset.CoreV1().RESTClient()
	case Rollout:
		return c.rollout(ctx, namespace, t.Name)
	}
	o, err := client.Get().Namespace(namespace).Resource(t.Kind.Resource()).Name(t.Name).Do(ctx).Get()
	if err != nil {
		return &Workload{}, err
	}
	return WorkloadOf(o)
}

// pageSize is how many objects are read at once, as kubectl does.
const pageSize = 500

// Annotated reads the metadata of the objects of a kind that have the annotation, and of the others, of which pods may be many, keeps nothing;
// namespace "" is all of them. The error is the API server's own.
func (c *Client) Annotated(ctx context.Context, namespace string, kind Kind, annotation string) (found []metav1.PartialObjectMetadata, err error) {
	path := []string{"/apis", kind.APIVersion()}
	if kind.Group() == "" {
		path[0] = "/api"
	}
	if namespace != "" {
		path = append(path, "namespaces", namespace)
	}
	path = append(path, kind.Resource())
	for next := ""; ; {
		b, err := c.anyClient().Get().AbsPath(path...).SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").
			Param("limit", strconv.Itoa(pageSize)).Param("continue", next).DoRaw(ctx)
		if apierrors.IsForbidden(err) {
			if err := c.Serves(ctx, kind); err != nil {
				return nil, err // of what is not there nobody has the rights
			}
		}
		if err != nil {
			return nil, err
		}
		var list metav1.PartialObjectMetadataList
		if err := json.Unmarshal(b, &list); err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			if _, has := o.Annotations[annotation]; has {
				found = append(found, o)
			}
		}
		if next = list.Continue; next == "" {
			return found, nil
		}
	}
}

// anyClient is for requests by path: any group's transport will do.
func (c *Client) anyClient() rest.Interface { return c.Clientset.CoreV1().RESTClient() }

// WorkloadOf takes from an object of one of WorkloadKinds what a Workload has, which shares nothing with it that it changes.
func WorkloadOf(o runtime.Object) (*Workload, error) {
	w := &Workload{}
	var replicas *int32
	switch o := o.(type) {
	case *appsv1.Deployment:
		*w = Workload{Kind: Deployment, ObjectMeta: o.ObjectMeta, Selector: o.Spec.Selector, Template: o.Spec.Template, Ready: o.Status.ReadyReplicas, Observed: o.Status.ObservedGeneration}
		replicas = o.Spec.Replicas
	case *appsv1.ReplicaSet:
		*w = Workload{Kind: ReplicaSet, ObjectMeta: o.ObjectMeta, Selector: o.Spec.Selector, Template: o.Spec.Template, Ready: o.Status.ReadyReplicas, Observed: o.Status.ObservedGeneration}
		replicas = o.Spec.Replicas
	case *appsv1.StatefulSet:
		*w = Workload{Kind: StatefulSet, ObjectMeta: o.ObjectMeta, Selector: o.Spec.Selector, Template: firstPod(o), Ready: o.Status.ReadyReplicas, Observed: o.Status.ObservedGeneration}
		replicas = o.Spec.Replicas
		w.Governing, w.Dropped = o.Spec.ServiceName, dropped(o)
	case *corev1.Pod:
		*w = Workload{Kind: Pod, ObjectMeta: o.ObjectMeta, Selector: &metav1.LabelSelector{MatchLabels: o.Labels}, Template: templateOf(o), Observed: o.Generation}
		if isReady(o) {
			w.Ready = 1
		}
	default:
		return w, fmt.Errorf("%T is no workload", o)
	}
	if w.Kind == Deployment || w.Kind == ReplicaSet {
		w.Template.Name = "" // the API server keeps one, and no pod gets it
	}
	if w.Replicas = 1; replicas != nil {
		w.Replicas = *replicas
	}
	return w, nil
}

// PodName is that of a StatefulSet's pod, counted from the first, which need not have the ordinal 0; "" for other kinds.
func (w *Workload) PodName(i int) string {
	if w.Kind != StatefulSet {
		return ""
	}
	var start int
	_, _ = fmt.Sscan(w.Template.Labels[appsv1.PodIndexLabel], &start)
	return fmt.Sprintf("%s-%d", w.Name, start+i)
}

// firstPod is the template as the controller completes it for a StatefulSet's first pod.
func firstPod(o *appsv1.StatefulSet) corev1.PodTemplateSpec {
	t := *o.Spec.Template.DeepCopy()
	start := int32(0)
	if o.Spec.Ordinals != nil {
		start = o.Spec.Ordinals.Start
	}
	t.Name = fmt.Sprintf("%s-%d", o.Name, start)
	t.Spec.Hostname, t.Spec.Subdomain = t.Name, o.Spec.ServiceName
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	t.Labels[appsv1.StatefulSetPodNameLabel] = t.Name
	t.Labels[appsv1.PodIndexLabel] = fmt.Sprint(start)
	for _, claim := range o.Spec.VolumeClaimTemplates {
		t.Spec.Volumes = append(slices.DeleteFunc(t.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == claim.Name }), corev1.Volume{
			Name: claim.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{
				ClaimName: claim.Name + "-" + t.Name,
			}},
		})
	}
	return t
}

// dropped are the claim templates whose claims go with the pods when o is scaled down.
func dropped(o *appsv1.StatefulSet) (names []string) {
	if p := o.Spec.PersistentVolumeClaimRetentionPolicy; p == nil || p.WhenScaled != appsv1.DeletePersistentVolumeClaimRetentionPolicyType {
		return nil
	}
	for _, claim := range o.Spec.VolumeClaimTemplates {
		names = append(names, claim.Name)
	}
	return names
}

// Owner is the workload that t, a pod or a ReplicaSet, belongs to, by way of others where there are some; t itself when nobody owns it,
// and for all other kinds. The error has the code Usage when the owner is no kind that bridge knows.
func (c *Client) Owner(ctx context.Context, namespace string, t Target) (Target, error) {
	for {
		var o metav1.Object
		var err error
		switch t.Kind {
		case Pod:
			o, err = c.Clientset.CoreV1().Pods(namespace).Get(ctx, t.Name, metav1.GetOptions{})
		case ReplicaSet:
			o, err = c.Clientset.AppsV1().ReplicaSets(namespace).Get(ctx, t.Name, metav1.GetOptions{})
		default:
			return t, nil
		}
		if apierrors.IsNotFound(err) {
			return t, nil // what a swap of it has left may still be there
		}
		if err != nil {
			return t, Explain(err, fmt.Sprintf("look for the owner of %s in %s", t, namespace))
		}
		owner := metav1.GetControllerOf(o)
		if owner == nil {
			return t, nil
		}
		next, err := ParseTarget(owner.Kind, owner.Name)
		if err != nil || groupOf(owner.APIVersion) != next.Kind.Group() { // others have kinds of the same names
			return t, hint.Newf(hint.Usage, fmt.Sprintf("bridge forward %s PORT -n %s%s reaches this one pod; bridge connect what it calls", t, namespace, c.Flags), "%s belongs to %s/%s (%s), and bridge does not know that kind", t,
				hint.Printable(strings.ToLower(owner.Kind)), hint.Printable(owner.Name), hint.Printable(owner.APIVersion))
		}
		t = next
	}
}
