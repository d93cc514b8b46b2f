package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/undo"
)

const (
	// readyTimeout is how long giving back waits for the original to be Ready before it goes on
	// without: an image that has to be pulled again takes a minute, one that is gone takes for ever.
	readyTimeout = 2 * time.Minute
	// restoreTimeout bounds giving back as a whole: the original's start, its endpoints, the proxy's
	// end, and an API server that is away for a while in between.
	restoreTimeout = readyTimeout + endpointsTimeout + 5*time.Minute

	// waitingPeriod is how often a long wait says what it waits for.
	waitingPeriod = 10 * time.Second
)

// Restorer gives a swap back: from the process that made it, or from anywhere else.
type Restorer struct {
	Kube *kube.Client
	// Say gets each step as it begins, a line in plain words.
	Say func(string)

	own bool // what it takes is this machine's: nobody has to know from whom
}

// Restore gives back what the Lease of the workload records, or the copy of the record on the
// workload when the Lease is gone. by ("user@host") takes the Lease, so that the bridge that holds
// it stands back. The error has the code NotFound when there is nothing to give back and
// RestoreIncomplete when something is left. What this machine keeps of the swap it removes.
func (r *Restorer) Restore(ctx context.Context, t kube.Target, by string) error {
	return r.restore(ctx, t, by, nil, anySwap)
}

func (r *Restorer) restore(ctx context.Context, t kube.Target, by string, mine *Undo, wanted which) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	u, c, err := r.take(ctx, t, proxypod.RestoreBy+by, mine, wanted)
	if err == nil {
		err = r.giveBack(ctx, u, c)
	}
	if err == nil || hint.CodeOf(err) == hint.NotFound {
		if err := forgetSession(r.Kube, t); err != nil {
			r.Say(fmt.Sprintf("note: what this machine keeps of the swap is not removed: %v", err))
		}
	}
	return err
}

// fenceTimeout bounds what giving back begins with: the original still stands at 0 then.
const fenceTimeout = 5 * time.Second

// which looks at the swap that is found, before it is taken: an error leaves it alone. The Lease is nil when only the copy of
// the record is left.
type which func(*coordinationv1.Lease, *Undo) error

func anySwap(*coordinationv1.Lease, *Undo) error { return nil }

// swapOf is the swap of that record, and no later one.
func swapOf(record *Undo) which {
	return func(_ *coordinationv1.Lease, found *Undo) error {
		if record.Equal(found) {
			return nil
		}
		return swappedAnew(found)
	}
}

func swappedAnew(found *Undo) error {
	return hint.Newf(hint.NotFound, "", "%s is swapped anew", found.Target)
}

// take finds the record and makes the claim ours: it takes the Lease, by resourceVersion, or creates
// it anew where that is gone; mine is the record if the caller has it, or nil. What the holder before was about to write fails from then on.
func (r *Restorer) take(ctx context.Context, t kube.Target, by string, mine *Undo, wanted which) (*Undo, *claim, error) {
	u, c, err := r.takeLease(ctx, t, by, mine, wanted)
	if err != nil {
		return nil, nil, err
	}
	if !c.over() { // else nothing of it was being written
		r.fence(ctx, u, c)
	}
	return u, c, nil
}

// fence has what was on its way to the objects of u, when c became ours or its answer was lost, come too late.
func (r *Restorer) fence(ctx context.Context, u *Undo, c *claim) {
	x := changer{kube: r.Kube, claim: c}
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	for _, change := range u.Changes {
		// What keeps a Service from being written to is no reason not to give back the rest.
		_ = r.patiently(ctx, c, func() error { return x.fence(ctx, change.Object) })
	}
}

func (r *Restorer) takeLease(ctx context.Context, t kube.Target, by string, mine *Undo, wanted which) (*Undo, *claim, error) {
	ns := r.Kube.Namespace
	leases := r.Kube.Clientset.CoordinationV1().Leases(ns)
	for {
		lease, err := leases.Get(ctx, leaseName(t), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			u, over, err := r.withoutLease(ctx, t, mine)
			if err == nil {
				err = wanted(nil, u)
			}
			if err == nil && !over {
				err = r.able(ctx, u)
			}
			if err != nil {
				return nil, nil, err
			}
			// Who may annotate the target may have written it.
			owner := hint.Printable(u.Owner)
			said := fmt.Sprintf("its Lease is gone; by a copy of the record, of %s, this is to be as before: %s", owner, before(u))
			switch {
			case mine != nil:
				said = fmt.Sprintf("its Lease is gone; by this machine's own record this is to be as before: %s", before(u))
			case over:
				said = fmt.Sprintf("a copy is left of the record of %s's swap, of which nothing is there any more: that goes", owner)
			}
			r.Say(said)
			record, err := u.Marshal()
			if err != nil {
				return nil, nil, err
			}
			lease := newLease(u, record, by, "", time.Now())
			if over {
				lease.Annotations[undo.OverAnnotation] = "true"
			}
			lease, err = leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: proxypod.FieldManager})
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil, nil, hint.Newf(hint.NotFound, "", "%s is being deleted, and all that is left of the swap with it", ns)
			}
			return u, &claim{kube: r.Kube, lease: lease}, kube.Explain(fault.After(fault.RestoreCreated, err), "create a Lease in "+ns)
		}
		if err != nil {
			return nil, nil, kube.Explain(err, "get the swap's Lease in "+ns)
		}
		u, err := r.read(ctx, lease, t)
		if err == nil {
			err = wanted(lease, u)
		}
		if err == nil && !undo.Over(lease.Annotations) {
			err = r.able(ctx, u)
		}
		if err != nil {
			return nil, nil, err
		}
		if !strings.HasPrefix(holder(lease), proxypod.RestoreBy) && !r.own {
			from := holder(lease)
			if l, err := membersOf(lease); err == nil && len(l.Members) > 0 {
				from = whose(l.Members)
			}
			r.Say(fmt.Sprintf("taking it from %s (last heartbeat %s)", from, ago(lease.Spec.RenewTime)))
		}
		now := metav1.NowMicro()
		lease.Spec.HolderIdentity, lease.Spec.RenewTime = &by, &now
		lease, err = leases.Update(ctx, lease, metav1.UpdateOptions{FieldManager: proxypod.FieldManager})
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			continue // a heartbeat came between, or somebody has just given it back
		}
		return u, &claim{kube: r.Kube, lease: lease}, kube.Explain(fault.After(fault.RestoreTaken, err), "take the swap's Lease in "+ns)
	}
}

// able refuses, with the code Forbidden, what could be begun and not ended: whoever holds the swap would have lost it, and its callers be left with the proxy.
func (r *Restorer) able(ctx context.Context, u *Undo) error {
	if len(u.Of(undo.Selector)) == 0 {
		return nil
	}
	return rights.CheckMoving(ctx, r.Kube, targetOf(u.Target))
}

// before is what giving back writes where nobody else has written meanwhile.
func before(u *Undo) string {
	var out []string
	for _, c := range u.Changes {
		out = append(out, fmt.Sprintf("%s of %s (%s)", c.Path, c.Object, c.Before))
	}
	return hint.Printable(strings.Join(out, ", "))
}

// read is the Lease's record, or bridge's own copy of it on the target when the Lease's cannot be read.
func (r *Restorer) read(ctx context.Context, lease *coordinationv1.Lease, t kube.Target) (*Undo, error) {
	u, err := recordOf(lease)
	if err == nil && targetOf(u.Target) != t {
		err = fmt.Errorf("undo record: is about %s", u.Target)
	}
	if err == nil {
		return u, nil
	}
	if d, copyErr := r.target(ctx, t); copyErr == nil {
		if u, copyErr := r.ownCopy(d); u != nil && copyErr == nil {
			return u, nil
		}
	}
	return nil, hint.Newf(hint.RestoreIncomplete,
		fmt.Sprintf("its annotation %s says what to give back by hand: kubectl get lease %s -n %s%s -o yaml", proxypod.UndoAnnotation, lease.Name, lease.Namespace, r.Kube.Flags),
		"lease/%s in %s: %w", lease.Name, lease.Namespace, err)
}

func (r *Restorer) target(ctx context.Context, t kube.Target) (*kube.Workload, error) {
	d, err := r.Kube.Workload(ctx, r.Kube.Namespace, t)
	if apierrors.IsNotFound(err) && (t.Kind == kube.Pod || t.Kind == kube.ReplicaSet) {
		err = hint.New(hint.NotFound, err, besideGone)
	}
	return d, kube.Explain(err, fmt.Sprintf("get %s in %s", t, r.Kube.Namespace))
}

// ownCopy is the record's copy that bridge has written on d and not removed; nil if there is none.
func (r *Restorer) ownCopy(d *kube.Workload) (*Undo, error) {
	text := d.Annotations[proxypod.UndoAnnotation]
	back, err := broughtBack(d.ManagedFields)
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", d.Target(), d.Namespace, err)
	}
	if text == "" || back {
		return nil, nil
	}
	return r.recordAbout(d, d.Target().String(), text)
}

// recordAbout reads a copy of d's record, which is on the object of that name.
func (r *Restorer) recordAbout(d *kube.Workload, on, text string) (*Undo, error) {
	u, err := undo.Parse(text)
	if err != nil {
		return nil, hint.Newf(hint.RestoreIncomplete, strings.Join([]string{
			fmt.Sprintf("if a later version has made that swap, use that one; else look at what its annotation %s says was before: kubectl get %s -n %s%s -o yaml", proxypod.UndoAnnotation, on, d.Namespace, r.Kube.Flags),
			"set that back by hand, where nobody else has set it since: the replicas, and the selectors of Services",
			fmt.Sprintf("then remove it, after which nobody can give that swap back any more: %s", remove(r.Kube, d.Namespace, on)),
			"then once more: " + Command(r.Kube, objectOf(d)),
		}, "\n"), "the record of a swap on %s in %s: %w", on, d.Namespace, err)
	}
	if u.Target.UID != string(d.UID) || u.Target.Namespace != d.Namespace || targetOf(u.Target) != d.Target() {
		return nil, hint.Newf(hint.NotFound, fmt.Sprintf("its annotation %s came with a copy of another %s; to remove it: %s", proxypod.UndoAnnotation, d.Kind, remove(r.Kube, d.Namespace, on)),
			"%s in %s is not swapped", d.Target(), d.Namespace)
	}
	return u, nil
}

// copied is a record, and the objects that have a copy of it.
type copied struct {
	*Undo
	on []string
}

// withoutLease is the record to give back by where there is no Lease: mine, if the caller has made that swap, or that of a copy. over is whether
// nothing of that swap is there any more. Where SPEC.md leaves open which it is, or whether, the error has the code RestoreIncomplete.
func (r *Restorer) withoutLease(ctx context.Context, t kube.Target, mine *Undo) (u *Undo, over bool, err error) {
	d, err := r.target(ctx, t)
	if mine != nil && hint.CodeOf(err) == hint.NotFound { // it is deleted, and its Services may still lead to the proxy
		held, unseen, err := (changer{kube: r.Kube}).held(ctx, mine.Of(undo.Selector))
		if err != nil || len(held) > 0 || unseen != nil {
			return mine, false, err
		}
	}
	if err != nil {
		return nil, false, err
	}
	if u, err := r.ownCopy(d); u != nil || err != nil {
		if err == nil && mine != nil && !mine.Equal(u) {
			err = swappedAnew(u)
		}
		return u, false, err
	}
	copies, err := r.copies(ctx, d)
	if mine != nil {
		switch {
		case slices.ContainsFunc(copies, func(c copied) bool { return mine.Equal(c.Undo) }):
			return mine, false, nil // who gives back removes them
		case err != nil:
			return nil, false, err
		case len(copies) > 0:
			return nil, false, swappedAnew(copies[0].Undo)
		}
		copies = []copied{{Undo: mine}}
	}
	if err != nil {
		return nil, false, err
	}
	var inForce []copied
	var hidden error
	certain, err := noted(d)
	if err != nil {
		return nil, false, err
	}
	for _, c := range copies {
		held, unseen, err := (changer{kube: r.Kube}).held(ctx, c.Changes)
		if err != nil {
			return nil, false, err
		}
		if len(held) > 0 {
			inForce = append(inForce, c)
		} else if unseen != nil {
			return nil, false, r.unseen(c, unseen)
		}
		hidden = errors.Join(hidden, unseen)
		certain = certain || slices.ContainsFunc(held, func(h Change) bool { return h.Field() == undo.Selector })
	}
	switch {
	case len(inForce) == 1 && !certain && hidden != nil:
		return nil, false, r.unseen(inForce[0], hidden)
	case len(copies) == 0 || mine != nil && (len(inForce) == 0 || !certain):
		return nil, false, hint.Newf(hint.NotFound, fmt.Sprintf("bridge status -A%s lists the swaps there are", r.Kube.Flags), "%s in %s is not swapped", t, d.Namespace)
	case len(inForce) == 0:
		return copies[0].Undo, true, nil
	case len(inForce) > 1:
		return nil, false, r.whichOf(inForce)
	case !certain:
		return nil, false, r.whether(inForce[0])
	}
	return inForce[0].Undo, false, nil
}

// copies are the records of d that somebody else than bridge has put there, and those that its controller has made copies of on ReplicaSets. What cannot be read is an
// error: it may be a newer bridge's. Those of other objects are not d's.
func (r *Restorer) copies(ctx context.Context, d *kube.Workload) (list []copied, err error) {
	add := func(on string, annotations map[string]string) {
		text := annotations[proxypod.UndoAnnotation]
		if text == "" {
			return
		}
		u, readErr := r.recordAbout(d, on, text)
		if readErr != nil {
			if hint.CodeOf(readErr) != hint.NotFound {
				err = readErr
			}
			return
		}
		if i := slices.IndexFunc(list, func(c copied) bool { return c.Equal(u) }); i >= 0 {
			list[i].on = append(list[i].on, on)
			return
		}
		list = append(list, copied{u, []string{on}})
	}
	add(d.Target().String(), d.Annotations)
	sets, listErr := replicaSetCopies(ctx, r.Kube, d)
	if listErr != nil {
		return nil, listErr
	}
	for _, rs := range sets {
		add("replicaset/"+rs.Name, rs.Annotations)
	}
	return list, err
}

// noted tells whether d's replicas are noted as set by bridge, as they are until they are given back or others set them.
func noted(d *kube.Workload) (bool, error) {
	owners, err := ownersOf(d.ManagedFields, "spec.replicas")
	return slices.ContainsFunc(owners, undo.Owner.Bridge), err
}

// unseen is that it is not known whether a swap was given back, for what it has changed may not be read.
func (r *Restorer) unseen(c copied, why error) error {
	return hint.Newf(hint.RestoreIncomplete, hint.Of(why)+"; then once more: "+Command(r.Kube, c.Target),
		"%s in %s: whether %s was given back cannot be told, so nothing is changed: %w", c.Target, c.Target.Namespace, c.swap(), why)
}

// whether is that nobody knows whether a swap was given back of which only the replicas are as it has set them.
func (r *Restorer) whether(c copied) error {
	was := c.Of(undo.Replicas)[0]
	ns := c.Target.Namespace
	return hint.Newf(hint.RestoreIncomplete,
		fmt.Sprintf("if it is to run: kubectl scale %s -n %s%s --replicas=%s; if it is not: %s; then once more: %s", c.Target, ns, r.Kube.Flags, was.Before, c.remove(r.Kube), Command(r.Kube, c.Target)),
		"%s in %s has %s replicas, and %s before %s; by the copies of its record that are left nobody can tell whether that was given back, so nothing is changed",
		c.Target, ns, was.Set, was.Before, c.swap())
}

// whichOf is that nobody knows which of several swaps is not given back.
func (r *Restorer) whichOf(list []copied) error {
	slices.SortFunc(list, func(a, b copied) int { return b.Since.Compare(a.Since) })
	var swaps, remove []string
	for i, c := range list {
		swaps = append(swaps, c.swap()+" on "+strings.Join(c.on, ", "))
		if i > 0 {
			remove = append(remove, c.remove(r.Kube))
		}
	}
	last := list[0].Target
	return hint.Newf(hint.RestoreIncomplete, fmt.Sprintf("if the first is the last one: %s; then once more: %s", strings.Join(remove, "; "), Command(r.Kube, last)),
		"%s in %s has copies of the records of %s: nobody can tell which is not given back, so nothing is changed", last, last.Namespace, strings.Join(swaps, ", and of "))
}

// swap names it.
func (c copied) swap() string {
	return hint.Printable(fmt.Sprintf("the swap of %s at %s", c.Owner, c.Since.Format(time.RFC3339)))
}

// remove is the command that removes its copies.
func (c copied) remove(k *kube.Client) string { return remove(k, c.Target.Namespace, c.on...) }

// remove is the command that removes the copies on these objects.
func remove(k *kube.Client, ns string, on ...string) string {
	return fmt.Sprintf("kubectl annotate %s -n %s%s %s- %s-", strings.Join(on, " "), ns, k.Flags, proxypod.UndoAnnotation, undo.SwappedAnnotation)
}

// giveBack undoes u, in the order that keeps the service answering: the original runs and is Ready,
// callers are sent to it, the proxy drains and goes, the record goes last. Before each step it makes
// sure that the claim is still its own; whoever took it goes on in its place. While a change cannot be
// undone the proxy and the record stay.
func (r *Restorer) giveBack(ctx context.Context, u *Undo, c *claim) error {
	done := undone{said: map[string]bool{}, wrote: map[Object]bool{}}
	err := r.giveBackHeld(ctx, u, c, done)
	var taken *proxypod.TakenError
	left := errors.As(err, &taken) // somebody has deleted the Lease: the record is in hand
	if left && taken.By != "" {
		r.Say(taken.Error())
		err = c.awaitEnd(ctx, u)
		if left = err == nil || errors.Is(err, errLapsed); err != nil {
			r.Say(err.Error())
		}
	}
	if left {
		by := proxypod.RestoreBy + strings.TrimPrefix(holder(c.lease), proxypod.RestoreBy)
		mine := u
		if c.over() || c.closed {
			mine = nil // what was not, or no more, this giving back's to undo is not by the record in hand
		}
		var found *Undo
		var again *claim
		takeErr := r.again(ctx, func() (err error) {
			found, again, err = r.take(ctx, targetOf(u.Target), by, mine, swapOf(u))
			return err
		})
		if hint.CodeOf(takeErr) == hint.NotFound {
			return nil // given back entirely
		}
		if err = takeErr; err == nil {
			err = r.giveBackHeld(ctx, found, again, done)
		}
	}
	if err == nil || hint.CodeOf(err) == hint.RestoreIncomplete {
		return err
	}
	next := "the record is kept; finish with: " + Command(r.Kube, u.Target)
	return hint.Newf(hint.RestoreIncomplete, hint.Then(err, next), "%s in %s is not given back entirely: %w", u.Target, u.Target.Namespace, err)
}

func (r *Restorer) giveBackHeld(ctx context.Context, u *Undo, c *claim, done undone) error {
	x := changer{kube: r.Kube, claim: c}
	proxy := &proxypod.Proxy{Kube: r.Kube, Namespace: u.Target.Namespace, Lease: c.lease.Name}
	if strings.HasPrefix(holder(c.lease), proxypod.RestoreBy) { // else it is the swap's own, and has its heartbeat
		renewing, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { c.renew(renewing, r.Say) })
	}
	if c.over() {
		return r.removeCopies(ctx, x, u, c, done)
	}

	changed := x.changed(ctx, u)
	first := "the original first"
	if !u.Replaces() {
		first = "its callers first"
	}
	r.Say(fmt.Sprintf("giving %s back: %s", u.Target, first))
	if _, err := r.undo(ctx, x, c, u.Of(undo.Replicas), fault.ScaledBack, done); err != nil {
		return err
	}
	ready, notReady := true, error(nil)
	gone := x.gone(ctx, u.Target)
	switch {
	case gone:
		ready = false
	case u.Replaces() && changed: // else it is as it was, Ready or not
		ready, notReady = r.awaitOriginal(ctx, u)
	}
	if err := fault.After(fault.OriginalReady, nil); err != nil {
		return err
	}
	if notReady != nil {
		r.Say(notReady.Error())
	}
	back, err := r.undo(ctx, x, c, u.Of(undo.Selector), fault.MovedBack, done)
	if err != nil {
		return err
	}
	if ready && changed {
		if err := fault.After(fault.Settled, r.moveBack(ctx, x, proxy, u, back)); err != nil {
			return err
		}
	}
	if !changed && u.Replaces() { // in standby the proxies have no labels of the original's
		if err := r.leaveHeadless(ctx, x, proxy, u); err != nil {
			return err
		}
	}

	if u.Target.Copied() {
		// Before the proxy's end, which takes seconds: by then the deployment controller knows that the record
		// is gone, and does not copy it to a ReplicaSet again.
		if err := r.unrecord(ctx, x, u, c); err != nil {
			return err
		}
	}
	r.Say("ending the proxy")
	if err := r.patiently(ctx, c, func() error { return proxy.Delete(ctx, c.lease.UID, r.Say) }); err != nil {
		return err
	}
	// A bridge that was still swapping when the claim was taken may have made one more change.
	if _, err := r.undo(ctx, x, c, slices.Concat(u.Of(undo.Replicas), u.Of(undo.Selector)), fault.UndoneAgain, done); err != nil {
		return err
	}
	for _, changes := range u.ByObject() {
		err := r.patiently(ctx, c, func() error { return x.giveBackFields(ctx, changes[0].Object, changes) })
		if err := fault.After(fault.OwnersBack, err); err != nil {
			return err
		}
	}
	if changed {
		by, _ := strings.CutPrefix(holder(c.lease), proxypod.RestoreBy)
		_ = tell(ctx, r.Kube, u.Target, corev1.EventTypeNormal, reasonGiven, by+" has given it back", time.Now())
	}
	if err := fault.After(fault.Closed, r.patiently(ctx, c, func() error { return c.close(ctx) })); err != nil {
		return err
	}
	// Last, since without the Lease these copies, or this one, are all that is left of the record.
	if !u.Target.Copied() {
		if err := r.unrecord(ctx, x, u, c); err != nil {
			return err
		}
	}
	if err := r.cleanAndRelease(ctx, x, u, c); err != nil {
		return err
	}
	awaitKeeperGone(ctx, r.Kube, c.lease)
	awaitCollected(ctx, r.Kube, u)
	end := "%s in %s is given back"
	if gone {
		end = "%s in %s is gone, and nothing is left of the swap"
	}
	r.Say(fmt.Sprintf(end, u.Target, u.Target.Namespace))
	if notReady != nil {
		return hint.New(hint.RestoreIncomplete, &notReadyError{notReady},
			"the objects are given back; see why its pods are not Ready: kubectl describe pods -n "+u.Target.Namespace+r.Kube.Flags)
	}
	return nil
}

// notReadyError says of what is given back that it is not Ready, or why that is not known.
type notReadyError struct{ error }

func (e *notReadyError) Unwrap() error { return e.error }

// removeCopies is giveBackHeld for a record that is over: its copies go, and what else is noted as bridge's. The fields are as others have
// them, and so is whose they are, but where giving that back was not ended, or a bridge that could not be fenced has moved callers since.
func (r *Restorer) removeCopies(ctx context.Context, x changer, u *Undo, c *claim, done undone) error {
	var moved []Change
	err := r.patiently(ctx, c, func() (err error) {
		moved, _, err = x.held(ctx, u.Of(undo.Selector))
		return err
	})
	if err == nil {
		_, err = r.undo(ctx, x, c, moved, fault.UndoneAgain, done)
	}
	if err != nil {
		return err
	}
	if err := r.unrecord(ctx, x, u, c); err != nil {
		return err
	}
	for _, changes := range u.ByObject() {
		err := r.patiently(ctx, c, func() error { return x.giveBackFields(ctx, changes[0].Object, changes) })
		if hint.CodeOf(err) == hint.Forbidden { // the copies would keep others from swapping, and nothing else depends on it
			r.Say(hint.Printable(fmt.Sprintf("note: that bridge has written to it stays noted at %s: %v", changes[0].Object, err)))
			err = nil
		}
		if err := fault.After(fault.OwnersBack, err); err != nil {
			return err
		}
	}
	if err := r.cleanAndRelease(ctx, x, u, c); err != nil {
		return err
	}
	awaitKeeperGone(ctx, r.Kube, c.lease)
	awaitCollected(ctx, r.Kube, u)
	r.Say(fmt.Sprintf("%s in %s has no record of a swap any more", u.Target, u.Target.Namespace))
	return nil
}

// unrecord removes the record's copy from the target, unless it is another swap's.
func (r *Restorer) unrecord(ctx context.Context, x changer, u *Undo, c *claim) error {
	return r.patiently(ctx, c, func() error {
		switch err := x.unrecord(ctx, u); {
		case errors.Is(err, undo.ErrMoved):
			r.Say("the record on " + u.Target.String() + " is not this swap's: left as it is")
		case !errors.Is(err, errGone):
			return fault.After(fault.RecordRemoved, err)
		}
		return nil
	})
}

// cleanAndRelease removes what is left of the record, the Lease last.
func (r *Restorer) cleanAndRelease(ctx context.Context, x changer, u *Undo, c *claim) error {
	err := r.patiently(ctx, c, func() error { return x.cleanReplicaSets(ctx, u.Target) })
	if errors.Is(err, errComesBack) {
		r.Say(fmt.Sprintf("note: the record comes back on the replicasets of %s: if somebody applies its annotation %s with a manifest, take it out there", u.Target, proxypod.UndoAnnotation))
		err = nil
	}
	if err := fault.After(fault.CopiesGone, err); err != nil {
		return err
	}
	return fault.After(fault.Released, r.patiently(ctx, c, func() error { return c.release(ctx) }))
}

// undone is what one giving back remembers of the changes that it has taken back.
type undone struct {
	said  map[string]bool // what it has left alone, in words
	wrote map[Object]bool // what it has written to: who was still swapping can do so no more, and 0 replicas are somebody else's
}

// undo takes back these changes, and returns the objects that are as they were. It comes to point after each, and says once what it left
// alone.
func (r *Restorer) undo(ctx context.Context, x changer, c *claim, changes []Change, point fault.Point, done undone) (back []Object, err error) {
	outcome := func(err error) undo.Outcome {
		switch taken := new(proxypod.TakenError); {
		case errors.As(err, &taken) || ctx.Err() != nil:
			return undo.Ended
		case passes(err):
			return undo.Later
		}
		return undo.Failed
	}
	again := map[Object]*retries{}
	err = undo.TakeBack(changes, func(change Change) error {
		wrote, left, err := false, "", c.check(ctx)
		if err == nil && !done.wrote[change.Object] {
			wrote, left, err = x.undo(ctx, change)
		}
		done.wrote[change.Object] = done.wrote[change.Object] || wrote
		switch err = fault.After(point, err); {
		case err != nil && outcome(err) == undo.Later:
			if again[change.Object] == nil {
				again[change.Object] = &retries{say: r.Say}
			}
			again[change.Object].because(err)
		case err != nil:
		case left == "":
			back = append(back, change.Object)
		case !done.said[left]:
			done.said[left] = true
			r.Say(hint.Printable(left))
		}
		return err
	}, outcome, func() error { return sleep(ctx, proxypod.Poll) })
	return back, err
}

// retries says why something is tried again, each kind of reason once: the text of one may differ each time.
type retries struct {
	say  func(string)
	said []metav1.StatusReason
}

func (t *retries) because(err error) {
	if reason := apierrors.ReasonForError(err); !slices.Contains(t.said, reason) {
		t.said = append(t.said, reason)
		t.say(fmt.Sprintf("%v; trying again", err))
	}
}

// passes tells whether the same may work in a moment.
func passes(err error) bool { return kube.Transient(err) || apierrors.IsConflict(err) }

// patiently takes one step if the claim is still ours, and again while the API server is away or
// fails for a moment, or others write to the object as often as it is read; which it says.
func (r *Restorer) patiently(ctx context.Context, c *claim, step func() error) error {
	return r.again(ctx, func() error {
		if err := c.check(ctx); err != nil {
			return err
		}
		return step()
	})
}

// again is patiently without a claim.
func (r *Restorer) again(ctx context.Context, step func() error) error {
	said := retries{say: r.Say}
	return wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(context.Context) (bool, error) {
		err := step()
		if !passes(err) {
			return true, err
		}
		said.because(err)
		return false, nil
	})
}

// Command is the command line that gives the target back on this cluster.
func Command(k *kube.Client, target Object) string {
	return fmt.Sprintf("bridge restore %s %s -n %s%s", strings.ToLower(target.Kind), target.Name, target.Namespace, k.Flags)
}

// awaitOriginal waits until the target has as many Ready pods as it wants. ready is false when it
// wants none, or is gone.
func (r *Restorer) awaitOriginal(ctx context.Context, u *Undo) (ready bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	start, said := time.Now(), time.Now()
	var have, want int32
	err = wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
		d, err := r.Kube.Workload(ctx, u.Target.Namespace, targetOf(u.Target))
		if err := same(err, u.Target, d.UID); err != nil {
			return false, kube.IgnoreTransient(err)
		}
		have, want = d.Ready, d.Replicas
		if time.Since(said) > waitingPeriod {
			said = time.Now()
			r.Say(fmt.Sprintf("waiting for %s: %d of %d pods are Ready", u.Target, have, want))
		}
		return d.Observed >= d.Generation && have >= want, nil
	})
	switch {
	case errors.Is(err, errGone):
		return false, nil
	case err != nil && ctx.Err() != nil:
		return false, fmt.Errorf("%s in %s: %d of %d pods are Ready after %s", u.Target, u.Target.Namespace, have, want, time.Since(start).Round(time.Second))
	case err != nil:
		return false, err
	}
	return want > 0, nil
}

// moveBack waits until every Service whose selector is back has a ready endpoint that is not the
// proxy's. Callers who do not know it yet are still served: the proxy takes new ones for as long as settle after its end has begun, with which it leaves the
// endpoints at the latest. Those of a headless Service know it only when DNS has told them.
func (r *Restorer) moveBack(ctx context.Context, x changer, proxy *proxypod.Proxy, u *Undo, back []Object) error {
	var pods []corev1.Pod
	err := r.patiently(ctx, x.claim, func() (err error) {
		pods, err = proxy.Pods(ctx)
		return err
	})
	if err != nil || len(pods) == 0 || len(back) == 0 {
		return err // no proxy: nothing to move from
	}
	var services []string
	for _, o := range back {
		services = append(services, o.Name)
	}
	r.Say("moving callers back to it")
	bounded, cancel := context.WithTimeout(ctx, endpointsTimeout)
	defer cancel()
	headless := false
	err = x.awaitEndpoints(bounded, proxy, services, func(e endpoints) bool {
		headless = headless || e.headless
		return e.reachOriginal()
	})
	if err != nil && ctx.Err() == nil {
		r.Say(err.Error()) // its callers have nobody else; waiting longer helps nobody
		return nil
	}
	if err != nil || !headless {
		return err
	}
	return r.leaveDNS(ctx, x, proxy, u)
}

// leaveHeadless is leaveDNS for a swap that has changed nothing yet: its proxy has the original's labels, and may have been one of the endpoints beside it.
func (r *Restorer) leaveHeadless(ctx context.Context, x changer, proxy *proxypod.Proxy, u *Undo) error {
	for _, c := range u.Of(undo.Selector) {
		e, err := x.endpoints(ctx, proxy.Namespace, c.Object.Name)
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil:
			r.Say(fmt.Sprintf("note: callers of service/%s may be refused for %v, if it is headless and they have come to the proxy: %v", c.Object.Name, dnsTTL, err))
		case e.headless:
			return r.leaveDNS(ctx, x, proxy, u)
		}
	}
	return nil
}

// mayStrip says why the labels of a proxy's pods in ns are to stay: network policies, by which some may reach pods with these labels alone.
func (r *Restorer) mayStrip(ctx context.Context, ns string) error {
	list, err := r.Kube.Clientset.NetworkingV1().NetworkPolicies(ns).List(ctx, metav1.ListOptions{Limit: 1})
	switch {
	case err != nil:
		return kube.Explain(err, "list networkpolicies, for which the proxy's labels may count")
	case len(list.Items) > 0:
		return fmt.Errorf("%s has network policies, for which the proxy's labels may count", ns)
	}
	return nil
}

// leaveDNS has a proxy that is Ready leave the endpoints, by taking the labels of the original from its pods, and waits as long as callers may still come to it, by
// what DNS has told them. It goes on as it is meanwhile, for it is not told to end.
func (r *Restorer) leaveDNS(ctx context.Context, x changer, proxy *proxypod.Proxy, u *Undo) error {
	labels := map[string]any{}
	for _, c := range u.Of(undo.Selector) {
		var before map[string]string
		if err := json.Unmarshal(c.Before, &before); err != nil {
			return err
		}
		for name := range before {
			labels[name] = nil
		}
	}
	bounded, cancel := context.WithTimeout(ctx, endpointsTimeout)
	defer cancel()
	reached, why := false, error(nil)
	err := r.patiently(bounded, x.claim, func() error {
		reached, why = r.strip(bounded, x, proxy, labels)
		return why
	})
	switch taken := new(proxypod.TakenError); {
	case err == nil && !reached:
		return nil
	case err == nil:
		r.Say(fmt.Sprintf("waiting for %v: so long callers of a headless service may come to the proxy, by what DNS has told them", settle+dnsTTL))
		return sleep(ctx, settle+dnsTTL)
	case errors.As(err, &taken) || ctx.Err() != nil:
		return err
	case why == nil:
		why = err
	}
	r.Say(fmt.Sprintf("note: callers of a headless service may be refused for %v, by what DNS has told them: %v", dnsTTL, why))
	return nil
}

// strip takes these labels from the proxy's pods that are Ready. reached is whether there is one, whom callers may have been told of.
func (r *Restorer) strip(ctx context.Context, x changer, proxy *proxypod.Proxy, labels map[string]any) (reached bool, err error) {
	pods, err := proxy.Pods(ctx)
	if err != nil {
		return false, err
	}
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return !proxypod.Ready(p) })
	reached = len(pods) > 0
	pods = slices.DeleteFunc(pods, func(p corev1.Pod) bool {
		for name := range labels {
			if _, has := p.Labels[name]; has {
				return false
			}
		}
		return true // in standby, whose proxies leave with the selector
	})
	if len(pods) > 0 {
		if err := r.mayStrip(ctx, proxy.Namespace); err != nil {
			return false, err
		}
	}
	for _, p := range pods {
		o := Object{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: string(p.UID)}
		err := x.patch(ctx, o, map[string]any{"metadata": map[string]any{"uid": o.UID, "labels": labels}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return false, kube.Explain(err, "patch "+o.String())
		}
	}
	return reached, nil
}
