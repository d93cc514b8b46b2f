package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

// changer makes and unmakes the changes of an undo record, each with preconditions: the object's
// UID, and the value that is expected there; and that the claim is ours after the object was read and before it is
// written. What others write after that is a conflict: a bridge that is frozen in between, and wakes up when all is
// given back and swapped anew, changes nothing.
type changer struct {
	kube   *kube.Client
	claim  *claim   // nil for a dry run, which changes nothing
	dryRun []string // as in metav1.UpdateOptions
}

// ours is nil if the claim is still ours, or a *proxypod.TakenError.
func (x changer) ours(ctx context.Context) error {
	if x.claim == nil {
		return nil
	}
	return fault.After(fault.Checked, x.claim.check(ctx))
}

var (
	// errMoved says that somebody else changed what was about to be changed.
	errMoved = errors.New("changed by somebody else meanwhile")
	// errGone says that the object is not there any more, or that another one has its name.
	errGone = errors.New("deleted meanwhile")
)

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
	return explainMoved(err, c.Object)
}

// explainMoved gives errMoved and errGone their subject, code and next step.
func explainMoved(err error, o Object) error {
	switch {
	case errors.Is(err, errMoved):
		return hint.New(hint.Conflict, fmt.Errorf("%s in %s: %w", o, o.Namespace, err), "run the swap again: it starts from what is there now")
	case errors.Is(err, errGone):
		return hint.New(hint.NotFound, fmt.Errorf("%s in %s: %w", o, o.Namespace, err), "")
	}
	return err
}

// undo takes c's change back, or finds that there is nothing to take back. left says in words what
// it left alone, since it is gone or somebody else's by now; "" when the field is as it was before.
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
		return fmt.Sprintf("%s of %s is %s, set by somebody else: left as it is", c.Path, c.Object, now), nil
	}
	return "", err
}

// same checks what a Get of o returned: errGone when it is not there or has another UID.
func same(err error, o Object, uid types.UID) error {
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
		if err := same(err, o, scale.GetUID()); err != nil {
			return err
		}
		now = fmt.Sprint(scale.Spec.Replicas)
		switch {
		case scale.Spec.Replicas != want:
			return errMoved
		case set == want:
			return nil
		}
		if err := x.ours(ctx); err != nil {
			return err
		}
		scale.Spec.Replicas = set
		_, err = deployments.UpdateScale(ctx, o.Name, scale, metav1.UpdateOptions{FieldManager: proxypod.FieldManager, DryRun: x.dryRun})
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
		if err := same(err, o, s.UID); err != nil {
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
		if err := x.ours(ctx); err != nil {
			return err
		}
		return x.patch(ctx, o, s.ResourceVersion, map[string]any{"spec": map[string]any{"selector": mergePatch(s.Spec.Selector, target)}})
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

// changed tells whether the swap may have changed anything: the record's copy comes before the first change.
func (x changer) changed(ctx context.Context, target Object) bool {
	d, err := x.kube.Clientset.AppsV1().Deployments(target.Namespace).Get(ctx, target.Name, metav1.GetOptions{})
	return err != nil || d.Annotations[proxypod.UndoAnnotation] != ""
}

// annotate changes the copy of the undo record on the target from one value to another; "" is none.
// A copy that is neither is another swap's, and errMoved.
func (x changer) annotate(ctx context.Context, o Object, from, to string) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		d, err := x.kube.Clientset.AppsV1().Deployments(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
		if err := same(err, o, d.UID); err != nil {
			return err
		}
		switch d.Annotations[proxypod.UndoAnnotation] {
		case to:
			return nil
		case from:
			if err := x.ours(ctx); err != nil {
				return err
			}
			return x.patch(ctx, o, d.ResourceVersion, annotation(to))
		}
		return errMoved
	})
	return explainUnlessOurs(err, fmt.Sprintf("annotate %s in %s", o, o.Namespace))
}

// annotation is the patch that sets the record's copy, or removes it with "".
func annotation(record string) map[string]any {
	var v any
	if record != "" {
		v = record
	}
	return map[string]any{"metadata": map[string]any{"annotations": map[string]any{proxypod.UndoAnnotation: v}}}
}

// cleanReplicaSets removes the record's copies that the deployment controller made: it copies a
// Deployment's annotations to its ReplicaSets and never removes them. A controller that has not yet seen
// the record go may copy it once more, so they have to stay clean for a while.
func (x changer) cleanReplicaSets(ctx context.Context, target Object) error {
	for clean := time.Now(); time.Since(clean) < cleanFor; {
		n, err := x.cleanOnce(ctx, target)
		if err != nil {
			return err
		}
		if n > 0 {
			clean = time.Now()
		}
		if err := sleep(ctx, proxypod.Poll); err != nil {
			return err
		}
	}
	return nil
}

// cleanFor is how long the ReplicaSets have to stay clean.
const cleanFor = time.Second

func (x changer) cleanOnce(ctx context.Context, target Object) (n int, err error) {
	copies, err := replicaSetCopies(ctx, x.kube, target.Namespace, target.UID)
	if err != nil {
		return 0, err
	}
	for _, rs := range copies {
		o := Object{APIVersion: "apps/v1", Kind: "ReplicaSet", Namespace: rs.Namespace, Name: rs.Name, UID: rs.UID}
		// Without a resourceVersion: the controller writes to it all the time, and nothing depends on it.
		if err := x.patch(ctx, o, "", annotation("")); err != nil && !apierrors.IsNotFound(err) {
			return n, kube.Explain(err, "annotate replicaset "+rs.Name)
		}
		n++
	}
	return n, nil
}

// fence writes to a Service, so that whoever has read it before cannot write to it any more. giveBackFields removes what it
// writes. The target needs none: what is written to it is the record's copy, which is found, or comes after that, which giving
// back removes.
func (x changer) fence(ctx context.Context, o Object) error {
	if o.Kind != "Service" {
		return nil
	}
	err := x.patch(ctx, o, "", map[string]any{"metadata": map[string]any{
		"uid": o.UID, "annotations": map[string]any{proxypod.FenceAnnotation: x.claim.lease.ResourceVersion},
	}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another one has its name
	}
	return kube.Explain(err, fmt.Sprintf("patch %s in %s", o, o.Namespace))
}

// replicaSetCopies are the ReplicaSets of the Deployment with this UID that have a copy of its record.
func replicaSetCopies(ctx context.Context, k *kube.Client, namespace string, target types.UID) ([]appsv1.ReplicaSet, error) {
	list, err := k.Clientset.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, kube.Explain(err, "list replicasets in "+namespace)
	}
	return slices.DeleteFunc(list.Items, func(rs appsv1.ReplicaSet) bool {
		_, has := rs.Annotations[proxypod.UndoAnnotation]
		owner := metav1.GetControllerOf(&rs)
		return !has || owner == nil || owner.UID != target
	}), nil
}

// giveBackFields returns the ownership of the fields in changes, all of one object, to those who
// had it, and removes the fence. No field counts as written by bridge then.
func (x changer) giveBackFields(ctx context.Context, o Object, changes []Change) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		meta, err := x.meta(ctx, o)
		if err := same(err, o, meta.GetUID()); err != nil {
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
		if err := x.ours(ctx); err != nil {
			return err
		}
		return x.patch(ctx, o, meta.GetResourceVersion(), map[string]any{"metadata": map[string]any{
			"managedFields": list, "annotations": map[string]any{proxypod.FenceAnnotation: nil},
		}})
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return explainUnlessOurs(err, fmt.Sprintf("give back the field ownership of %s in %s", o, o.Namespace))
}

// meta is the metadata of a Deployment or a Service; never nil, as the clients have it.
func (x changer) meta(ctx context.Context, o Object) (metav1.Object, error) {
	if o.Kind == "Service" {
		return x.kube.Clientset.CoreV1().Services(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
	}
	return x.kube.Clientset.AppsV1().Deployments(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
}

// patch sends a JSON merge patch in bridge's name. With a resourceVersion an object that has changed
// since is a conflict.
func (x changer) patch(ctx context.Context, o Object, resourceVersion string, body map[string]any) error {
	if resourceVersion != "" {
		meta, _ := body["metadata"].(map[string]any)
		if meta == nil {
			meta = map[string]any{}
			body["metadata"] = meta
		}
		meta["resourceVersion"] = resourceVersion
	}
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: proxypod.FieldManager, DryRun: x.dryRun}
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

// explainUnlessOurs leaves the errors of this package as they are.
func explainUnlessOurs(err error, doing string) error {
	if taken := new(proxypod.TakenError); errors.Is(err, errGone) || errors.Is(err, errMoved) || errors.As(err, &taken) {
		return err
	}
	return kube.Explain(err, doing)
}
