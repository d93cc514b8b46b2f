package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

// changer makes and unmakes the changes of an undo record, each with a precondition: the object's
// UID, and the value that is expected there.
type changer struct {
	kube *kube.Client
}

// errMoved says that somebody else changed what was about to be changed.
var errMoved = errors.New("changed by somebody else meanwhile")

// apply makes c's change. A field that no longer has the value the plan saw is a conflict.
func (x changer) apply(ctx context.Context, c Change) error {
	f, err := changedField(c)
	if err != nil {
		return err
	}
	switch f {
	case replicas:
		_, err = x.scale(ctx, c.Object, c.Before, c.Set)
	case selector:
		_, err = x.reselect(ctx, c.Object, c.Before, c.Set)
	}
	if errors.Is(err, errMoved) {
		return hint.New(hint.Conflict, fmt.Errorf("%s %s: %w", c.Object, c.Path, err), "run the swap again: it starts from what is there now")
	}
	return err
}

// undo takes c's change back. It reports what it left alone, in words; "" when it did it.
func (x changer) undo(ctx context.Context, c Change) (left string, err error) {
	f, err := changedField(c)
	if err != nil {
		return "", err
	}
	var now string
	switch f {
	case replicas:
		now, err = x.scale(ctx, c.Object, c.Set, c.Before)
	case selector:
		now, err = x.reselect(ctx, c.Object, c.Set, c.Before)
	}
	switch {
	case errors.Is(err, errGone):
		return fmt.Sprintf("%s is gone", c.Object), nil
	case errors.Is(err, errMoved) && now == string(c.Before):
		return "", nil // it was never changed, or is back already
	case errors.Is(err, errMoved):
		return fmt.Sprintf("%s %s is %s, set by somebody else", c.Object, c.Path, now), nil
	}
	return "", err
}

// errGone says that the object is not there any more, or that another one has its name.
var errGone = errors.New("gone")

// get fetches an object into out, and checks that it is still the same one.
func gone(err error, o Object, uid types.UID) error {
	if apierrors.IsNotFound(err) || err == nil && uid != o.UID {
		return errGone
	}
	return kube.Explain(err, fmt.Sprintf("get %s in %s", o, o.Namespace))
}

// scale sets spec.replicas from one value to another through the scale subresource, and returns
// the value it found. Any other value is errMoved.
func (x changer) scale(ctx context.Context, o Object, from, to json.RawMessage) (now string, err error) {
	var want, set int32
	if err := errors.Join(json.Unmarshal(from, &want), json.Unmarshal(to, &set)); err != nil {
		return "", err
	}
	deployments := x.kube.Clientset.AppsV1().Deployments(o.Namespace)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		scale, err := deployments.GetScale(ctx, o.Name, metav1.GetOptions{})
		if err := gone(err, o, uidOf(scale)); err != nil {
			return err
		}
		now = fmt.Sprint(scale.Spec.Replicas)
		switch {
		case scale.Spec.Replicas != want:
			return errMoved
		case set == want:
			return nil
		}
		scale.Spec.Replicas = set
		_, err = deployments.UpdateScale(ctx, o.Name, scale, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
		return err
	})
	return now, explainUnlessOurs(err, fmt.Sprintf("scale %s in %s", o, o.Namespace))
}

// reselect sets a Service's spec.selector from one value to another and returns what it found. A
// selector that somebody changed but left our label in loses our label and keeps the rest.
func (x changer) reselect(ctx context.Context, o Object, from, to json.RawMessage) (now string, err error) {
	var want, set map[string]string
	if err := errors.Join(json.Unmarshal(from, &want), json.Unmarshal(to, &set)); err != nil {
		return "", err
	}
	services := x.kube.Clientset.CoreV1().Services(o.Namespace)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		s, err := services.Get(ctx, o.Name, metav1.GetOptions{})
		if err := gone(err, o, uidOf(s)); err != nil {
			return err
		}
		b, err := json.Marshal(s.Spec.Selector)
		if err != nil {
			return err
		}
		now = string(b)
		target := set
		if !maps.Equal(s.Spec.Selector, want) {
			ours, has := want[proxypod.ProxyLabel]
			if !has || s.Spec.Selector[proxypod.ProxyLabel] != ours {
				return errMoved
			}
			target = maps.Clone(s.Spec.Selector)
			delete(target, proxypod.ProxyLabel)
		}
		return x.patch(ctx, o, map[string]any{
			"metadata": map[string]any{"resourceVersion": s.ResourceVersion},
			"spec":     map[string]any{"selector": mergePatch(s.Spec.Selector, target)},
		})
	})
	return now, explainUnlessOurs(err, fmt.Sprintf("patch %s in %s", o, o.Namespace))
}

// mergePatch is the JSON merge patch (RFC 7396) that turns one flat map into another.
func mergePatch(from, to map[string]string) map[string]any {
	patch := map[string]any{}
	for k := range from {
		if _, ok := to[k]; !ok {
			patch[k] = nil
		}
	}
	for k, v := range to {
		patch[k] = v
	}
	return patch
}

// annotate writes the undo record's copy on the target; "" removes it. A target that is gone is errGone.
func (x changer) annotate(ctx context.Context, o Object, record string) error {
	d, err := x.kube.Clientset.AppsV1().Deployments(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	if err := gone(err, o, uidOf(d)); err != nil {
		return err
	}
	if d.Annotations[proxypod.UndoAnnotation] == record {
		return nil
	}
	return explainUnlessOurs(x.patch(ctx, o, annotationPatch(record, o.UID)), fmt.Sprintf("annotate %s in %s", o, o.Namespace))
}

// annotationPatch has the UID as a precondition: another object of the name is a conflict.
func annotationPatch(record string, uid types.UID) map[string]any {
	var v any
	if record != "" {
		v = record
	}
	return map[string]any{"metadata": map[string]any{"uid": uid, "annotations": map[string]any{proxypod.UndoAnnotation: v}}}
}

// cleanReplicaSets removes the record's copies that the deployment controller made: it copies a
// Deployment's annotations to its ReplicaSets and never removes them.
func (x changer) cleanReplicaSets(ctx context.Context, target Object) error {
	sets := x.kube.Clientset.AppsV1().ReplicaSets(target.Namespace)
	list, err := sets.List(ctx, metav1.ListOptions{})
	if err != nil {
		return kube.Explain(err, "list replicasets in "+target.Namespace)
	}
	for _, rs := range list.Items {
		owner := metav1.GetControllerOf(&rs)
		if _, has := rs.Annotations[proxypod.UndoAnnotation]; !has || owner == nil || owner.UID != target.UID {
			continue
		}
		o := Object{APIVersion: "apps/v1", Kind: "ReplicaSet", Namespace: rs.Namespace, Name: rs.Name, UID: rs.UID}
		if err := x.patch(ctx, o, annotationPatch("", rs.UID)); err != nil && !apierrors.IsNotFound(err) {
			return kube.Explain(err, "annotate replicaset "+rs.Name)
		}
	}
	return nil
}

// giveBackFields returns the ownership of the fields in changes, all of one object, to those who
// had it. It changes metadata.managedFields alone, so that no field counts as written by bridge.
func (x changer) giveBackFields(ctx context.Context, o Object, changes []Change) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		meta, err := x.meta(ctx, o)
		if err := gone(err, o, uidOf(meta)); err != nil {
			return err
		}
		owners := map[string][]FieldOwner{}
		for _, c := range changes {
			owners[c.Path] = c.Owners
		}
		entries, err := giveBackOwnership(meta.GetManagedFields(), owners)
		if err != nil {
			return err
		}
		var list any = entries
		if len(entries) == 0 {
			list = []any{map[string]any{}} // an empty list would mean "leave it" to the API server
		}
		return x.patch(ctx, o, map[string]any{"metadata": map[string]any{
			"resourceVersion": meta.GetResourceVersion(), "managedFields": list,
		}})
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return explainUnlessOurs(err, fmt.Sprintf("give back the field ownership of %s in %s", o, o.Namespace))
}

// meta is the metadata of a Deployment or a Service.
func (x changer) meta(ctx context.Context, o Object) (metav1.Object, error) {
	switch o.Kind {
	case "Deployment":
		return x.kube.Clientset.AppsV1().Deployments(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	case "Service":
		return x.kube.Clientset.CoreV1().Services(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	}
	return nil, fmt.Errorf("%s: not a kind that bridge changes", o)
}

// patch sends a JSON merge patch in bridge's name.
func (x changer) patch(ctx context.Context, o Object, body map[string]any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: proxypod.FieldManager}
	set := x.kube.Clientset
	switch o.Kind {
	case "Deployment":
		_, err = set.AppsV1().Deployments(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, b, options)
	case "ReplicaSet":
		_, err = set.AppsV1().ReplicaSets(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, b, options)
	case "Service":
		_, err = set.CoreV1().Services(o.Namespace).Patch(ctx, o.Name, types.MergePatchType, b, options)
	default:
		return fmt.Errorf("%s: not a kind that bridge changes", o)
	}
	return err
}

// uidOf is o's UID, "" for nil (what a failed Get returns).
func uidOf(o metav1.Object) types.UID {
	switch v := o.(type) {
	case *appsv1.Deployment:
		if v == nil {
			return ""
		}
	case *corev1.Service:
		if v == nil {
			return ""
		}
	case nil:
		return ""
	}
	return o.GetUID()
}

func explainUnlessOurs(err error, doing string) error {
	if errors.Is(err, errGone) || errors.Is(err, errMoved) {
		return err
	}
	return kube.Explain(err, doing)
}
