package swap

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

const (
	// readyTimeout is how long giving back waits for the original to be Ready before it goes on
	// without: an image that has to be pulled again takes a minute, one that is gone takes for ever.
	readyTimeout = 2 * time.Minute
	// goneTimeout is how long it waits for the proxy's pods to end: their grace period and a slow node.
	goneTimeout = time.Minute
)

// Restorer gives a swap back: from the process that made it, or from anywhere else.
type Restorer struct {
	Kube *kube.Client
	// Say gets each step as it begins, a line in plain words.
	Say func(string)
}

// Restore gives back what the Lease of kind ("deployment") and name records, or the copy of the
// record on the target when the Lease is gone. by ("user@host") takes the Lease, so that the bridge
// that holds it stands back. The error has the code NotFound when there is nothing to give back and
// RestoreIncomplete when something is left.
func (r *Restorer) Restore(ctx context.Context, kind, name, by string) error {
	u, lease, err := r.find(ctx, kind, name)
	if err != nil {
		return err
	}
	if lease != nil {
		if lease, err = r.take(ctx, lease, by); err != nil {
			return err
		}
	}
	return r.giveBack(ctx, u, lease)
}

// find reads the undo record. lease is nil when only the target's copy is left.
func (r *Restorer) find(ctx context.Context, kind, name string) (*Undo, *coordinationv1.Lease, error) {
	ns := r.Kube.Namespace
	if kind != "deployment" {
		return nil, nil, hint.Newf(hint.Usage, "", "%s/%s: only deployments can be swapped", kind, name)
	}
	lease, err := r.Kube.Clientset.CoordinationV1().Leases(ns).Get(ctx, proxypod.LeaseName(kind, name), metav1.GetOptions{})
	switch {
	case err == nil:
		u, err := ParseUndo(lease.Annotations[proxypod.UndoAnnotation])
		if err == nil {
			return u, lease, nil
		}
		if u, copyErr := r.copyOnTarget(ctx, ns, name); copyErr == nil {
			return u, lease, nil
		}
		return nil, nil, hint.Newf(hint.RestoreIncomplete, "its annotation "+proxypod.UndoAnnotation+" says by hand what to give back: kubectl get lease "+lease.Name+" -n "+ns+" -o yaml",
			"lease/%s in %s: %w", lease.Name, ns, err)
	case !apierrors.IsNotFound(err):
		return nil, nil, kube.Explain(err, "get the swap's Lease in "+ns)
	}
	u, err := r.copyOnTarget(ctx, ns, name)
	return u, nil, err
}

func (r *Restorer) copyOnTarget(ctx context.Context, ns, name string) (*Undo, error) {
	d, err := r.Kube.Clientset.AppsV1().Deployments(ns).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, kube.Explain(err, fmt.Sprintf("get deployment/%s in %s", name, ns))
	}
	record, ok := d.Annotations[proxypod.UndoAnnotation]
	if !ok {
		return nil, hint.Newf(hint.NotFound, "bridge status -A lists the swaps there are", "deployment/%s in %s is not swapped", name, ns)
	}
	u, err := ParseUndo(record)
	if err != nil {
		return nil, hint.Newf(hint.RestoreIncomplete, "", "deployment/%s in %s: %w", name, ns, err)
	}
	if u.Target.UID != d.UID {
		return nil, hint.Newf(hint.NotFound, "the annotation "+proxypod.UndoAnnotation+" came with a copy of another deployment; remove it",
			"deployment/%s in %s is not swapped", name, ns)
	}
	return u, nil
}

// take makes the Lease the restorer's, by resourceVersion: of two restorers that begin at once both
// may go on, since every step asks what is there first.
func (r *Restorer) take(ctx context.Context, lease *coordinationv1.Lease, by string) (*coordinationv1.Lease, error) {
	holder := "restore by " + by
	now := metav1.NowMicro()
	lease = lease.DeepCopy()
	if lease.Spec.HolderIdentity != nil && !strings.HasPrefix(*lease.Spec.HolderIdentity, "restore by ") {
		r.Say(fmt.Sprintf("taking it from %s (last heartbeat %s)", *lease.Spec.HolderIdentity, ago(lease.Spec.RenewTime)))
	}
	lease.Spec.HolderIdentity, lease.Spec.RenewTime = &holder, &now
	updated, err := r.Kube.Clientset.CoordinationV1().Leases(lease.Namespace).Update(ctx, lease, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
	if apierrors.IsConflict(err) { // a heartbeat came between
		fresh, err := r.Kube.Clientset.CoordinationV1().Leases(lease.Namespace).Get(ctx, lease.Name, metav1.GetOptions{})
		if err != nil {
			return nil, kube.Explain(err, "get the swap's Lease in "+lease.Namespace)
		}
		return r.take(ctx, fresh, by)
	}
	return updated, kube.Explain(err, "take the swap's Lease in "+lease.Namespace)
}

// giveBack undoes u, in the order that keeps the service answering: the original runs and is Ready,
// callers are sent to it, the proxy drains and goes, the record goes last. Each step is done as far
// as it can be, whatever became of the one before; what could not be done is the error.
func (r *Restorer) giveBack(ctx context.Context, u *Undo, lease *coordinationv1.Lease) error {
	x := changer{kube: r.Kube}
	var left []string // what is left, a reason each
	failed := func(step string, err error) {
		if err != nil {
			left = append(left, fmt.Sprintf("%s: %v", step, err))
		}
	}
	undo := func(f field) {
		for _, c := range u.Changes {
			if g, err := changedField(c); err != nil || g != f {
				continue
			}
			note, err := x.undo(ctx, c)
			if note != "" {
				r.Say(note + ": left as it is")
			}
			failed(c.Object.String(), err)
		}
	}
	proxy := &proxypod.Proxy{Kube: r.Kube, Namespace: u.Target.Namespace, Lease: proxypod.LeaseName(lower(u.Target.Kind), u.Target.Name)}

	r.Say(fmt.Sprintf("giving %s back: the original first", u.Target))
	undo(replicas)
	ready, notReady := r.awaitOriginal(ctx, u)
	if notReady != nil {
		r.Say(notReady.Error())
	}
	undo(selector)
	if ready {
		failed("endpoints", r.moveBack(ctx, x, u, proxy))
	}
	r.Say("ending the proxy")
	gone, cancel := context.WithTimeout(ctx, goneTimeout)
	failed("proxy", proxy.Delete(gone))
	cancel()

	err := x.annotate(ctx, u.Target, "")
	if errors.Is(err, errGone) {
		r.Say(u.Target.String() + " is gone: nothing to give back to it")
	} else {
		failed(u.Target.String(), err)
		failed("replicasets", x.cleanReplicaSets(ctx, u.Target))
	}
	for _, changes := range byObject(u) {
		failed(changes[0].Object.String(), x.giveBackFields(ctx, changes[0].Object, changes))
	}

	if len(left) > 0 {
		return hint.Newf(hint.RestoreIncomplete, fmt.Sprintf("the record is kept; finish with: %s", Command(u)),
			"%s in %s is not given back entirely: %s", u.Target, u.Target.Namespace, strings.Join(left, "; "))
	}
	if err := r.release(ctx, lease); err != nil {
		return hint.Newf(hint.RestoreIncomplete, "finish with: "+Command(u), "the swap's Lease is left: %w", err)
	}
	if notReady != nil {
		return hint.New(hint.RestoreIncomplete, notReady,
			fmt.Sprintf("every object is back as it was; see why its pods are not Ready: kubectl describe pods -n %s", u.Target.Namespace))
	}
	return nil
}

// Command is the command line that gives u back.
func Command(u *Undo) string {
	return fmt.Sprintf("bridge restore %s %s -n %s", lower(u.Target.Kind), u.Target.Name, u.Target.Namespace)
}

// awaitOriginal waits until the target has as many Ready pods as it wants. ready is false when it
// wants none, or is gone.
func (r *Restorer) awaitOriginal(ctx context.Context, u *Undo) (ready bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	var have, want int32
	err = wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		d, err := r.Kube.Clientset.AppsV1().Deployments(u.Target.Namespace).Get(ctx, u.Target.Name, metav1.GetOptions{})
		if err := gone(err, u.Target, uidOf(d)); err != nil {
			if hint.CodeOf(err) == hint.Unreachable {
				return false, nil
			}
			return false, err
		}
		have, want = d.Status.ReadyReplicas, 1
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		return d.Status.ObservedGeneration >= d.Generation && have >= want, nil
	})
	switch {
	case errors.Is(err, errGone):
		return false, nil
	case err != nil && ctx.Err() != nil:
		return false, fmt.Errorf("%s in %s: %d of %d pods are Ready after %s", u.Target, u.Target.Namespace, have, want, readyTimeout)
	case err != nil:
		return false, err
	}
	return want > 0, nil
}

// moveBack waits until every Service of the swap has an endpoint that is not the proxy's, and
// callers know it.
func (r *Restorer) moveBack(ctx context.Context, x changer, u *Undo, proxy *proxypod.Proxy) error {
	pods, err := proxy.Pods(ctx)
	if err != nil || len(pods) == 0 {
		return err // no proxy: nothing to move from
	}
	var services []string
	for _, c := range u.Changes {
		if c.Object.Kind == "Service" {
			services = append(services, c.Object.Name)
		}
	}
	if len(services) == 0 {
		return nil
	}
	r.Say("moving callers back to it")
	bounded, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := x.awaitEndpoints(bounded, u.Target.Namespace, services, func(e endpoints) bool { return e.beside(names(pods)) }); err != nil {
		return err
	}
	return sleep(ctx, settle)
}

// release deletes the Lease, and with it, by garbage collection, anything of ours that is left.
func (r *Restorer) release(ctx context.Context, lease *coordinationv1.Lease) error {
	if lease == nil {
		return nil
	}
	err := r.Kube.Clientset.CoordinationV1().Leases(lease.Namespace).Delete(ctx, lease.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &lease.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // another restorer was faster
		return nil
	}
	return kube.Explain(err, "delete the swap's Lease in "+lease.Namespace)
}

// byObject groups the changes by the object they are about, in the record's order.
func byObject(u *Undo) [][]Change {
	var out [][]Change
	index := map[Object]int{}
	for _, c := range u.Changes {
		i, ok := index[c.Object]
		if !ok {
			i = len(out)
			index[c.Object] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], c)
	}
	return out
}

// ago is a time stamp as its age.
func ago(t *metav1.MicroTime) string {
	if t == nil {
		return "never"
	}
	return time.Since(t.Time).Round(time.Second).String() + " ago"
}
