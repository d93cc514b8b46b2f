package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/member"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// createTimeout bounds the creation of a claim, which is not cut short by Ctrl-C: whether it was
// created has to be known.
const createTimeout = 30 * time.Second

// claim is the Lease of one swap, held by one bridge: the one that swaps, or one that gives back.
type claim struct {
	kube  *kube.Client
	lease *coordinationv1.Lease // as it was when it became ours
	// share is ours of a swap that others may share; nil: all of it is.
	share *member.Member
	// closed is whether it is noted that it is over.
	closed bool
}

// newClaim creates the Lease with the undo record: the compare-and-swap by which of two racing users
// one wins. The other gets a conflict that names the winner.
func newClaim(ctx context.Context, k *kube.Client, l *coordinationv1.Lease, u *Undo) (*claim, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	leases := k.Clientset.CoordinationV1().Leases(l.Namespace)
	for {
		created, err := leases.Create(ctx, l, metav1.CreateOptions{FieldManager: proxypod.FieldManager})
		if err == nil {
			return &claim{kube: k, lease: created}, nil
		}
		err = kube.Explain(err, "create the swap's Lease in "+l.Namespace)
		if !apierrors.IsAlreadyExists(err) && !kube.Transient(err) {
			return nil, err
		}
		held, getErr := leases.Get(ctx, l.Name, metav1.GetOptions{})
		switch {
		case getErr == nil && held.Annotations[proxypod.ClientAnnotation] == l.Annotations[proxypod.ClientAnnotation]:
			return &claim{kube: k, lease: held}, nil // created, and only the answer was lost
		case getErr == nil:
			var mine route.Choice
			if l, err := membersOf(l); err == nil {
				mine = l.Members[0].Choice
			}
			return nil, errTaken(k, held, u.Target, mine)
		case !apierrors.IsNotFound(getErr) && !kube.Transient(getErr):
			return nil, kube.Explain(getErr, "get the swap's Lease in "+l.Namespace)
		}
		if sleep(ctx, proxypod.Poll) != nil {
			return nil, err
		}
	}
}

// FirstWasFaster tells whether err, of Gather or Swap.Run, is that somebody else has begun to swap the workload since there was nobody whose swap could be joined, in a way
// that can be shared. Nothing was changed.
func FirstWasFaster(err error) bool { return errors.Is(err, errFaster) }

var errFaster = errors.New("somebody was faster")

// errTaken is errHeld to who found nobody a moment ago; it is errFaster too where the swap that is there now can be shared by who wants these requests.
func errTaken(k *kube.Client, held *coordinationv1.Lease, target Object, mine route.Choice) error {
	err := errHeld(k, held, target)
	theirs, listErr := membersOf(held)
	if listErr != nil || !shareable(mine) || len(theirs.Claiming(mine)) > 0 || strings.HasPrefix(holder(held), proxypod.RestoreBy) {
		return err
	}
	return fmt.Errorf("%w: %w", errFaster, err)
}

func errHeld(k *kube.Client, held *coordinationv1.Lease, target Object) error {
	if by, ok := strings.CutPrefix(holder(held), proxypod.RestoreBy); ok {
		return hint.Newf(hint.Conflict, "run the same command again in a moment; if that takes long: "+Command(k, target),
			"%s in %s is being given back by %s", target, held.Namespace, by)
	}
	next := "talk to them, or give it back: " + Command(k, target)
	if l, err := membersOf(held); err == nil && !slices.ContainsFunc(l.Members, func(m member.Member) bool { return m.Mirror }) {
		next = "share it, with a --header of your own such as x-user; or " + next
	}
	return hint.Newf(hint.Conflict, next,
		"%s in %s is already swapped by %s since %s (last heartbeat %s)", target, held.Namespace, holder(held),
		held.CreationTimestamp.Local().Format("15:04:05 on 2 Jan"), ago(held.Spec.RenewTime))
}

func holder(l *coordinationv1.Lease) string {
	if l.Spec.HolderIdentity == nil {
		return "somebody"
	}
	return *l.Spec.HolderIdentity
}

// check says whether the claim is still ours: nil, or a *proxypod.TakenError. Every step that
// changes something asks before.
func (c *claim) check(ctx context.Context) error {
	now, err := c.kube.Clientset.CoordinationV1().Leases(c.lease.Namespace).Get(ctx, c.lease.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return &proxypod.TakenError{}
	case err != nil:
		return kube.Explain(err, "get the swap's Lease in "+c.lease.Namespace)
	case now.UID != c.lease.UID:
		return &proxypod.TakenError{By: holder(now)}
	}
	return c.ours(now)
}

// ours is check with the Lease as it is now.
func (c *claim) ours(now *coordinationv1.Lease) error {
	if c.share == nil || strings.HasPrefix(holder(now), proxypod.RestoreBy) {
		if holder(now) != holder(c.lease) {
			return &proxypod.TakenError{By: holder(now)}
		}
		return nil
	}
	l, err := membersOf(now)
	if err != nil {
		return lost(err)
	}
	if _, ok := l.Of(c.share.Client); ok {
		return nil
	}
	return &proxypod.TakenError{By: member.Owners(l.Claiming(c.share.Choice)), Share: true}
}

// errLapsed says that whoever has a Lease is gone.
var errLapsed = errors.New("no heartbeat")

// awaitEnd waits until the Lease is gone, and so is one that was made anew for the same record: somebody else has given everything back, if nobody
// has deleted it. The error is errLapsed when that one dies at it.
func (c *claim) awaitEnd(ctx context.Context, u *Undo) error {
	var seen undo.Lapse
	return wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		asked := time.Now()
		now, err := c.kube.Clientset.CoordinationV1().Leases(c.lease.Namespace).Get(ctx, c.lease.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return true, nil
		case err == nil && now.UID != c.lease.UID:
			// Somebody gives back from the copy, or it is another swap's.
			if found, err := recordOf(now); err != nil || !u.Equal(found) {
				return true, nil
			}
		case err != nil:
			seen.Silence()
			return false, nil
		}
		if period := proxypod.Duration(now); seen.Answer(asked, time.Now(), fmt.Sprint(holder(now), now.Spec.RenewTime), period) {
			return false, fmt.Errorf("%w of %s for %v", errLapsed, holder(now), period)
		}
		return false, nil
	})
}

// renew has others see that who gives back is at work, until ctx ends or the Lease is another's.
func (c *claim) renew(ctx context.Context, say func(string)) {
	ours := func(now *coordinationv1.Lease, _ proxypod.State) error {
		if holder(now) != holder(c.lease) {
			return &proxypod.TakenError{By: holder(now)}
		}
		return nil
	}
	noTunnel := func() (tunnel.State, <-chan struct{}) { return tunnel.State{}, nil }
	_ = proxypod.Heartbeat(ctx, c.kube, c.lease, noTunnel, proxypod.More{Write: ours}, say) // each step asks whose it is
}

// over tells whether the Lease, when it became ours, was of a record that is over, of which the copies alone are to go.
func (c *claim) over() bool { return undo.Over(c.lease.Annotations) }

// close notes that it is over, for whoever goes on from here: who fenced the Services once more, and lost the Lease then, would leave that there.
func (c *claim) close(ctx context.Context) error {
	leases := c.kube.Clientset.CoordinationV1().Leases(c.lease.Namespace)
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		now, err := leases.Get(ctx, c.lease.Name, metav1.GetOptions{})
		if err != nil || now.UID != c.lease.UID || holder(now) != holder(c.lease) {
			return err // the next step finds whose it is
		}
		metav1.SetMetaDataAnnotation(&now.ObjectMeta, undo.OverAnnotation, "true")
		_, err = leases.Update(ctx, now, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
		c.closed = err == nil
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return kube.Explain(err, "update the swap's Lease in "+c.lease.Namespace)
}

// release deletes the Lease, and with it, by garbage collection, anything of ours that is left.
func (c *claim) release(ctx context.Context) error {
	err := c.kube.Clientset.CoordinationV1().Leases(c.lease.Namespace).Delete(ctx, c.lease.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &c.lease.UID},
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // it is gone already
		return nil
	}
	return kube.Explain(err, "delete the swap's Lease in "+c.lease.Namespace)
}

// ago is a time stamp as its age.
func ago(t *metav1.MicroTime) string {
	if t == nil {
		return "never"
	}
	return fmt.Sprintf("%s ago", time.Since(t.Time).Round(time.Second))
}
