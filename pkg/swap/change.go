package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
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

// errGone says that the object is not there any more, or that another one has its name.
var errGone = errors.New("deleted meanwhile")

// apply makes c's change. A field that no longer has the value the plan saw is a conflict.
func (x changer) apply(ctx context.Context, c Change) error {
	_, err := x.write(ctx, c, c.Do)
	return explainMoved(err, c.Object)
}

// explainMoved gives undo.ErrMoved and errGone their subject, code and next step.
func explainMoved(err error, o Object) error {
	switch {
	case errors.Is(err, undo.ErrMoved):
		return hint.New(hint.Conflict, fmt.Errorf("%s in %s: %w", o, o.Namespace, err), "run the swap again: it starts from what is there now")
	case errors.Is(err, errGone):
		return hint.New(hint.NotFound, fmt.Errorf("%s in %s: %w", o, o.Namespace, err), "")
	}
	return err
}

// undo takes c's change back, or finds that there is nothing to take back. wrote is whether it has written to the object: whoever has read it before
// that cannot any more. left says in words what it left alone, since it is gone or somebody else's by now; "" when the field is as it was before.
func (x changer) undo(ctx context.Context, c Change) (wrote bool, left string, err error) {
	now, err := x.write(ctx, c, func(now json.RawMessage) (to json.RawMessage, err error) {
		to, err = c.Undo(now)
		wrote = to != nil
		return to, err
	})
	switch {
	case errors.Is(err, errGone):
		return false, fmt.Sprintf("%s is gone", c.Object), nil
	case errors.Is(err, undo.ErrMoved):
		return false, c.Left(now), nil
	}
	return wrote && err == nil, "", err
}

// same checks what a Get of o returned: errGone when it is not there or has another UID.
func same(err error, o Object, uid types.UID) error {
	if apierrors.IsNotFound(err) || err == nil && string(uid) != o.UID {
		return errGone
	}
	return kube.Explain(err, fmt.Sprintf("get %s in %s", o, o.Namespace))
}

// write sets c's field to what decide makes of the value that it has, and returns that value.
func (x changer) write(ctx context.Context, c Change, decide func(now json.RawMessage) (json.RawMessage, error)) (now json.RawMessage, err error) {
	set := x.reselect
	if c.Field() == undo.Replicas {
		set = x.scale
	}
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error { return set(ctx, c, &now, decide) })
	return now, explainUnlessOurs(err, fmt.Sprintf("change %s of %s in %s", c.Path, c.Object, c.Object.Namespace))
}

// scale writes spec.replicas, through the scale subresource.
func (x changer) scale(ctx context.Context, c Change, now *json.RawMessage, decide func(json.RawMessage) (json.RawMessage, error)) error {
	client, scale, path := x.client(), &autoscalingv1.Scale{}, c.Object.Path()+"/scale"
	err := client.Get().AbsPath(path).Do(ctx).Into(scale)
	if err := same(err, c.Object, scale.GetUID()); err != nil {
		return err
	}
	*now = fmt.Append(nil, scale.Spec.Replicas)
	to, err := decide(*now)
	if to == nil || err != nil {
		return err
	}
	if err := json.Unmarshal(to, &scale.Spec.Replicas); err != nil {
		return err
	}
	if scale.Spec.Replicas == 0 {
		if err := x.stoppable(ctx, c.Object, scale.ResourceVersion); err != nil {
			return err
		}
	}
	if err := x.ours(ctx); err != nil {
		return err
	}
	options := metav1.UpdateOptions{FieldManager: proxypod.FieldManager, DryRun: x.dryRun}
	return client.Put().AbsPath(path).VersionedParams(&options, scheme.ParameterCodec).Body(scale).Do(ctx).Error()
}

// reselect writes a Service's spec.selector.
func (x changer) reselect(ctx context.Context, c Change, now *json.RawMessage, decide func(json.RawMessage) (json.RawMessage, error)) error {
	s, err := x.kube.Clientset.CoreV1().Services(c.Object.Namespace).Get(ctx, c.Object.Name, metav1.GetOptions{})
	if err := same(err, c.Object, s.UID); err != nil {
		return err
	}
	if *now, err = json.Marshal(s.Spec.Selector); err != nil {
		return err
	}
	to, err := decide(*now)
	if to == nil || err != nil {
		return err
	}
	patch, err := c.Patch(*now, to, s.ResourceVersion)
	if err != nil {
		return err
	}
	if err := x.ours(ctx); err != nil {
		return err
	}
	return x.patch(ctx, c.Object, patch)
}

// changed tells whether the swap may have changed anything: the record's copy comes before the first change, and others may remove it after that, which
// leaves it on a ReplicaSet, or bridge's mark on a field.
func (x changer) changed(ctx context.Context, u *Undo) bool {
	d, err := x.workload(ctx, u.Target)
	if err != nil || d.Annotations[proxypod.UndoAnnotation] != "" {
		return true
	}
	held, unseen, err := x.held(ctx, u.Changes)
	if errors.Join(err, unseen) != nil || len(held) > 0 {
		return true
	}
	marked, err := noted(d)
	copies, listErr := replicaSetCopies(ctx, x.kube, d)
	return marked || errors.Join(err, listErr) != nil || slices.ContainsFunc(copies, func(rs appsv1.ReplicaSet) bool {
		c, err := undo.Parse(rs.Annotations[undo.Annotation])
		return err != nil || c.Equal(u)
	})
}

// held are those of changes of which there is something to take back. unseen says of which others that is not known, since they may not be read.
func (x changer) held(ctx context.Context, changes []Change) (list []Change, unseen, err error) {
	for _, c := range changes {
		now, err := x.write(ctx, c, func(json.RawMessage) (json.RawMessage, error) { return nil, nil })
		switch {
		case errors.Is(err, errGone):
		case apierrors.IsForbidden(err):
			unseen = errors.Join(unseen, err)
		case err != nil:
			return nil, nil, err
		case c.Held(now):
			list = append(list, c)
		}
	}
	return list, unseen, nil
}

// record writes the copy of the undo record on the target, in the place of what the plan has seen there, and of older ones on its ReplicaSets; anything else
// there is undo.ErrMoved.
func (x changer) record(ctx context.Context, p *Plan) error {
	if err := x.removeOlder(ctx, p); err != nil {
		return err
	}
	return x.annotate(ctx, p.Undo.Target, &p.Undo, func(d *kube.Workload) bool { return d.Annotations[proxypod.UndoAnnotation] == p.stale })
}

// removeOlder removes the copies on the target's ReplicaSets that the plan has found to be over: kubectl rollout undo would bring one back, and with the field
// as this swap has set it that one would seem to be in force.
func (x changer) removeOlder(ctx context.Context, p *Plan) error {
	older := p.older() // their texts: the controller may have copied the target's meanwhile
	if len(older) == 0 {
		return nil
	}
	o := p.Undo.Target
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		d, err := x.workload(ctx, o)
		if err := same(err, o, d.UID); err != nil {
			return err
		}
		copies, err := replicaSetCopies(ctx, x.kube, d)
		if err != nil {
			return err
		}
		if err := x.ours(ctx); err != nil {
			return err
		}
		for _, rs := range copies {
			if !slices.Contains(older, rs.Annotations[proxypod.UndoAnnotation]) {
				continue // it came meanwhile
			}
			if err := x.unmark(ctx, rs, rs.ResourceVersion); err != nil {
				return err
			}
		}
		return nil
	})
	return explainUnlessOurs(err, fmt.Sprintf("annotate the replicasets of %s in %s", o, o.Namespace))
}

// unmark removes what a ReplicaSet has of a record, if it is there.
func (x changer) unmark(ctx context.Context, rs appsv1.ReplicaSet, resourceVersion string) error {
	o := Object{APIVersion: "apps/v1", Kind: "ReplicaSet", Namespace: rs.Namespace, Name: rs.Name, UID: string(rs.UID)}
	if err := x.patch(ctx, o, undo.UnmarkPatch(resourceVersion)); !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// unrecord removes it. Another swap's is undo.ErrMoved.
func (x changer) unrecord(ctx context.Context, u *Undo) error {
	return x.annotate(ctx, u.Target, nil, func(d *kube.Workload) bool {
		managed, err := json.Marshal(d.ManagedFields)
		return err == nil && u.Removes(d.Annotations[proxypod.UndoAnnotation], managed)
	})
}

// annotate has the target have u's record, or with nil none, where that may take the place of what is there.
func (x changer) annotate(ctx context.Context, o Object, u *Undo, may func(*kube.Workload) bool) error {
	to := ""
	if u != nil {
		var err error
		if to, err = u.Marshal(); err != nil {
			return err
		}
	}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		d, err := x.workload(ctx, o)
		if err := same(err, o, d.UID); err != nil {
			return err
		}
		is := d.Annotations[proxypod.UndoAnnotation]
		if is == to && (u != nil || !undo.Marked(d.Annotations)) {
			return nil
		}
		if is != to && !may(d) {
			return undo.ErrMoved
		}
		if err := x.ours(ctx); err != nil {
			return err
		}
		patch := undo.UnmarkPatch(d.ResourceVersion)
		if u != nil {
			if patch, err = u.MarkPatch(d.ResourceVersion); err != nil {
				return err
			}
		}
		return x.patch(ctx, o, patch)
	})
	return explainUnlessOurs(err, fmt.Sprintf("annotate %s in %s", o, o.Namespace))
}

// cleanReplicaSets removes the record's copies that the deployment controller made: it copies a
// Deployment's annotations to its ReplicaSets and never removes them. A controller that has not yet seen
// the record go may copy it once more, so they have to stay clean for a while.
func (x changer) cleanReplicaSets(ctx context.Context, target Object) error {
	if !target.Copied() {
		return nil
	}
	first := time.Now()
	for clean := (time.Time{}); ; { // when a look ended that found one, or was the first
		begun := time.Now()
		if err := x.ours(ctx); err != nil {
			return err
		}
		n, err := x.cleanOnce(ctx, target)
		switch {
		case err != nil:
			return err
		case n > 0 && begun.Sub(first) >= cleanMost:
			return errComesBack
		case n > 0 || clean.IsZero():
			clean = time.Now()
		case begun.Sub(clean) >= cleanFor:
			return nil
		}
		if err := sleep(ctx, proxypod.Poll); err != nil {
			return err
		}
	}
}

const (
	// cleanFor is how long the ReplicaSets have to stay clean.
	cleanFor = time.Second
	// cleanMost is how long they may be found not to be.
	cleanMost = 10 * time.Second
)

// errComesBack says that the record is put on the ReplicaSets again and again: somebody applies it with the target's manifest.
var errComesBack = errors.New("the record comes back")

func (x changer) cleanOnce(ctx context.Context, target Object) (n int, err error) {
	d, err := x.workload(ctx, target)
	if err := same(err, target, d.UID); errors.Is(err, errGone) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	copies, err := replicaSetCopies(ctx, x.kube, d)
	if err != nil {
		return 0, err
	}
	for _, rs := range copies {
		// Without a resourceVersion: the controller writes to it all the time, and nothing depends on it.
		if err := x.unmark(ctx, rs, ""); err != nil {
			return n, kube.Explain(err, "annotate replicaset "+rs.Name)
		}
		n++
	}
	return n, nil
}

// fence writes to a Service, or to a target of which no controller copies the record, so that whoever has read it before cannot write to it any more.
// giveBackFields removes what it writes. Another target needs none: its record's copy is removed before its field is looked at the last time.
func (x changer) fence(ctx context.Context, o Object) error {
	if o.Copied() {
		return nil
	}
	err := x.patch(ctx, o, undo.FencePatch(o, x.claim.lease.ResourceVersion))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another one has its name
	}
	return kube.Explain(err, fmt.Sprintf("patch %s in %s", o, o.Namespace))
}

// replicaSetCopies are the ReplicaSets of d that have a copy of its record; none where no controller copies it.
func replicaSetCopies(ctx context.Context, k *kube.Client, d *kube.Workload) ([]appsv1.ReplicaSet, error) {
	if !objectOf(d).Copied() {
		return nil, nil
	}
	chosen, err := metav1.LabelSelectorAsSelector(d.Selector) // its ReplicaSets match it, and it never changes
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", d.Target(), d.Namespace, err)
	}
	list, err := k.Clientset.AppsV1().ReplicaSets(d.Namespace).List(ctx, metav1.ListOptions{LabelSelector: chosen.String()})
	if err != nil {
		return nil, kube.Explain(err, "list replicasets in "+d.Namespace)
	}
	return slices.DeleteFunc(list.Items, func(rs appsv1.ReplicaSet) bool {
		owner := metav1.GetControllerOf(&rs)
		return !undo.Marked(rs.Annotations) || owner == nil || owner.UID != d.UID
	}), nil
}

// giveBackFields returns the ownership of the fields in changes, all of one object, to those who
// had it, and removes the fence. No field counts as written by bridge then.
func (x changer) giveBackFields(ctx context.Context, o Object, changes []Change) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		meta, now, err := x.field(ctx, o)
		if err := same(err, o, meta.GetUID()); err != nil {
			return err
		}
		managed, err := json.Marshal(meta.GetManagedFields())
		if err != nil {
			return err
		}
		of := changes
		if x.claim.over() {
			of = undo.Unfinished(changes, managed)
		}
		patch, err := undo.OwnershipPatch(managed, now, of, meta.GetResourceVersion())
		if patch == nil || err != nil {
			return err
		}
		if err := x.ours(ctx); err != nil {
			return err
		}
		return x.patch(ctx, o, patch)
	})
	if errors.Is(err, errGone) {
		return nil
	}
	return explainUnlessOurs(err, fmt.Sprintf("give back the field ownership of %s in %s", o, o.Namespace))
}

// field is the metadata of a workload or a Service, never nil, as the clients have it, and the value of the field of it that a swap changes.
func (x changer) field(ctx context.Context, o Object) (metav1.Object, json.RawMessage, error) {
	if o.Kind == "Service" {
		s, err := x.kube.Clientset.CoreV1().Services(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
		now, marshalErr := json.Marshal(s.Spec.Selector)
		return s, now, errors.Join(err, marshalErr)
	}
	d, err := x.workload(ctx, o)
	return d, fmt.Append(nil, d.Replicas), err
}

// gone tells whether o, a workload, is deleted, as far as that is known.
func (x changer) gone(ctx context.Context, o Object) bool {
	d, err := x.workload(ctx, o)
	return errors.Is(same(err, o, d.UID), errGone)
}

// workload reads a record's; never nil.
func (x changer) workload(ctx context.Context, o Object) (*kube.Workload, error) {
	return x.kube.Workload(ctx, o.Namespace, targetOf(o))
}

// patch sends a JSON merge patch in bridge's name.
func (x changer) patch(ctx context.Context, o Object, body map[string]any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: proxypod.FieldManager, DryRun: x.dryRun}
	return x.client().Patch(types.MergePatchType).AbsPath(o.Path()).
		VersionedParams(&options, scheme.ParameterCodec).Body(b).Do(ctx).Error()
}

// client sends requests to whatever path: any group's would do.
func (x changer) client() rest.Interface { return x.kube.Clientset.AppsV1().RESTClient() }

// explainUnlessOurs leaves the errors of this package as they are.
func explainUnlessOurs(err error, doing string) error {
	if taken := new(proxypod.TakenError); errors.Is(err, errGone) || errors.Is(err, undo.ErrMoved) || errors.As(err, &taken) {
		return err
	}
	return kube.Explain(err, doing)
}
