package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"bridge/internal/fault"
	"bridge/internal/undo"
)

const (
	// readyTimeout is how long the original may take to be Ready before the rest goes on without.
	readyTimeout = 2 * time.Minute
	// settle is how long callers may still be sent to an endpoint that they were sent to before.
	settle = 3 * time.Second
	// cleanAfter is how long the deployment controller may still copy an annotation that is gone, and the ReplicaSets have to stay clean;
	// cleanLooks is how often they may be found not to be.
	cleanAfter = time.Second
	cleanLooks = 10
	// fenceTimeout bounds what giving back begins with: the original still stands at 0 then.
	fenceTimeout = 5 * time.Second
	// goneTimeout is how long the proxy's pods may take to end: their grace period and a slow node.
	goneTimeout = time.Minute
)

// giveBack undoes everything, in the order of SPEC.md; with a client for dry runs it only tries each request, and waits for
// nothing. What was done already is found done, so it can be called again.
func (k *Keeper) giveBack(ctx context.Context, api *client, c claim) error {
	g := giving{Keeper: k, api: api, claim: c}
	if !api.dry {
		renewing, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { k.renew(renewing) })
	}
	type step struct {
		do   func(context.Context) error
		done fault.Point
	}
	steps := []step{
		{g.fence, fault.KeeperFenced},
		{g.undoAll(undo.Replicas), fault.KeeperScaled},
		{g.awaitReady, fault.KeeperReady},
		{g.undoAll(undo.Selector), fault.KeeperMoved},
		{g.awaitCallers, fault.KeeperSettled},
		{g.unmarkFirst, fault.KeeperUnrecorded},
		{g.endProxy, fault.KeeperEnded},
		// A bridge that was still swapping when the Lease was taken may have made one more change, but not to what has been written to since.
		{g.undoAll(undo.Replicas, undo.Selector), fault.KeeperAgain},
		{g.giveBackFields, fault.KeeperOwners},
	}
	if c.over { // who fenced a Service now, and lost the Lease then, would leave that there; but a bridge that could not be fenced may have moved callers since
		steps = []step{{g.undoAll(undo.Selector), fault.KeeperAgain}, {g.giveBackFields, fault.KeeperOwners}}
	}
	for _, step := range append(steps,
		step{g.unmarkRest, fault.KeeperCopies},
		step{g.tell, fault.KeeperTold},
		step{g.release, fault.KeeperReleased},
	) {
		err := step.do(ctx)
		if !api.dry {
			err = fault.After(step.done, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// renew has others see that this keeper is at work, until ctx ends: a laptop that finds its swap taken by one that has lapsed
// gives back itself.
func (k *Keeper) renew(ctx context.Context) {
	for period := undo.Period(1); sleep(ctx, undo.Pause(period)) == nil; {
		lease, err := k.ask(ctx)
		if err != nil || lease.Spec.HolderIdentity != k.holder() {
			continue // each step asks whose it is
		}
		period = undo.Period(lease.Spec.Seconds)
		now := claim{version: lease.Metadata.ResourceVersion}
		_ = k.client.patch(ctx, k.client.path(leases, k.Lease), now.hold(k.holder())) // the next one may come through
	}
}

// giving is one time of giving back.
type giving struct {
	*Keeper
	api *client
	claim
}

// patiently takes one step if the Lease is still ours, and again while the API server is away or fails for a moment. What is
// gone needs nothing. A dry run is tried once.
func (g giving) patiently(ctx context.Context, what string, step func() error) error {
	for said := ""; ; {
		err := g.once(ctx, step)
		if err == nil {
			return nil
		}
		switch g.outcome(ctx, err) {
		case undo.Ended:
			return err
		case undo.Failed:
			return fmt.Errorf("%s: %w", what, err)
		}
		if err.Error() != said {
			said = err.Error()
			g.Log.Info(what+"; trying again", "because", said)
		}
		if err := sleep(ctx, retryPause); err != nil {
			return err
		}
	}
}

// outcome tells what an error means for who tries patiently.
func (g giving) outcome(ctx context.Context, err error) undo.Outcome {
	switch {
	case errors.Is(err, errTaken) || ctx.Err() != nil:
		return undo.Ended
	case g.api.dry || !transient(err):
		return undo.Failed
	}
	return undo.Later
}

// once is patiently with one try.
func (g giving) once(ctx context.Context, step func() error) error {
	if !g.api.dry {
		if err := g.check(ctx); err != nil {
			return err
		}
	}
	if err := step(); !isNotFound(err) && !errors.Is(err, errGone) {
		return err
	}
	return nil
}

// errGone says that another object has the name by now.
var errGone = errors.New("deleted meanwhile")

// same reads a record's object, as path has it.
func (g giving) same(ctx context.Context, o undo.Object, path string) (object, error) {
	is, err := g.api.get(ctx, path)
	if err == nil && is.Metadata.UID != o.UID {
		err = errGone
	}
	return is, err
}

// fence writes to every Service, and to a target to which taking its record's copy away does not write before its field is looked at the last time, so
// that a bridge that wakes up with what it has read before cannot. What keeps one from
// being written to is no reason not to give back the rest; but the dry run finds it.
func (g giving) fence(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	fenced := g.record.Of(undo.Selector)
	if !g.record.Target.Copied() {
		fenced = g.record.Changes
	}
	for _, c := range fenced {
		err := g.patiently(bounded, "annotate "+c.Object.String(), func() error {
			path := g.api.pathOf(c.Object)
			if _, err := g.same(bounded, c.Object, path); err != nil {
				return err
			}
			return g.api.patch(bounded, path, undo.FencePatch(c.Object, g.version))
		})
		switch {
		case err == nil:
		case g.api.dry || errors.Is(err, errTaken) || ctx.Err() != nil:
			return err
		default:
			g.Log.Warn("a bridge that wakes up may still write to "+c.Object.String(), "because", err)
		}
	}
	return nil
}

// undoAll takes back all changes of these fields.
func (g giving) undoAll(fields ...undo.Field) func(context.Context) error {
	return func(ctx context.Context) error {
		var changes []undo.Change
		for _, f := range fields {
			changes = append(changes, g.record.Of(f)...)
		}
		outcome := func(err error) undo.Outcome { return g.outcome(ctx, err) }
		said := map[undo.Object]bool{}
		return undo.TakeBack(changes, func(c undo.Change) error {
			err := g.once(ctx, func() error { return g.undo(ctx, c) })
			if err != nil && !said[c.Object] && outcome(err) == undo.Later {
				said[c.Object] = true
				g.Log.Info("change "+c.Path+" of "+c.Object.String()+"; trying again", "because", err)
			}
			return err
		}, outcome, func() error { return sleep(ctx, retryPause) })
	}
}

func (g giving) undo(ctx context.Context, c undo.Change) error {
	if g.wrote[c.Object] {
		return nil
	}
	path := g.api.pathOf(c.Object)
	if c.Field() == undo.Replicas {
		path += "/scale"
	}
	is, err := g.same(ctx, c.Object, path)
	if err != nil {
		return err
	}
	now := is.value(c.Field())
	to, err := c.Undo(now)
	switch {
	case errors.Is(err, undo.ErrMoved):
		if !g.api.dry {
			g.Log.Info(c.Left(now))
		}
		return nil
	case err != nil:
		return err
	case to == nil && !g.api.dry:
		return nil
	case to == nil:
		to = c.Before
	}
	patch, err := c.Patch(now, to, is.Metadata.ResourceVersion)
	if err != nil {
		return err
	}
	err = g.api.patch(ctx, path, patch)
	if err == nil && !g.api.dry {
		if g.wrote == nil {
			g.wrote = map[undo.Object]bool{}
		}
		g.wrote[c.Object] = true
	}
	return err
}

// value is what the object has in the field, of which the API leaves out what is zero.
func (o object) value(f undo.Field) json.RawMessage {
	now, none := o.Spec.Selector, "null"
	if f == undo.Replicas {
		now, none = o.Spec.Replicas, "0"
	}
	if len(now) == 0 {
		now = json.RawMessage(none)
	}
	return now
}

// awaitReady waits until the target has as many Ready pods as it wants, or no longer than it may take: its callers have
// nobody else.
func (g giving) awaitReady(ctx context.Context) error {
	if g.api.dry || !g.record.Replaces() {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		target, err := g.same(ctx, g.record.Target, g.api.pathOf(g.record.Target))
		if isNotFound(err) || errors.Is(err, errGone) {
			return nil
		}
		if err == nil {
			want := int64(1)
			_ = json.Unmarshal(target.Spec.Replicas, &want)
			have := target.Status.ReadyReplicas
			if g.record.Target.Kind == "Rollout" {
				have = target.Status.AvailableReplicas // before that its controller sends its own Services' callers nowhere
			}
			if target.observed() >= target.Metadata.Generation && have >= want {
				return nil
			}
		}
		if sleep(bounded, retryPause/4) != nil {
			g.Log.Warn("the original is not Ready; going on", "target", g.record.Target.String())
			return ctx.Err()
		}
	}
}

// awaitCallers waits until those who still reach the proxy, if its tunnel should live, reach the original.
func (g giving) awaitCallers(ctx context.Context) error {
	if g.api.dry || len(g.record.Of(undo.Selector)) == 0 {
		return nil
	}
	return sleep(ctx, settle)
}

// unmarkFirst removes the record's copy from a target from which a controller would copy it, so that it does so no more; it has been copied.
func (g giving) unmarkFirst(ctx context.Context) error {
	if g.record.Target.Copied() {
		return g.unmarkTarget(ctx)
	}
	return nil
}

// unmarkTarget removes the record's copy from the target, if it is not another swap's.
func (g giving) unmarkTarget(ctx context.Context) error {
	return g.patiently(ctx, "annotate "+g.record.Target.String(), func() error {
		path := g.api.pathOf(g.record.Target)
		target, err := g.same(ctx, g.record.Target, path)
		if err != nil {
			return err
		}
		is := target.Metadata.Annotations
		if !g.api.dry && (!undo.Marked(is) || is[undo.Annotation] != "" && !g.record.Removes(is[undo.Annotation], target.Metadata.ManagedFields)) {
			return nil
		}
		return g.api.patch(ctx, path, undo.UnmarkPatch(target.Metadata.ResourceVersion))
	})
}

// endProxy deletes the proxy's Deployment, if it is this Lease's, and waits until its pods have drained and ended: so long
// the Deployment stays itself. Pods that do not end, since their node is lost, are left to the cluster, and the Deployment goes.
func (g giving) endProxy(ctx context.Context) error {
	path := g.api.path(deployments, g.Lease)
	var deleted time.Time
	return g.patiently(ctx, "delete deployment/"+g.Lease, func() error {
		proxy, err := g.api.get(ctx, path)
		if err != nil || !proxy.ownedBy(g.uid) {
			return err
		}
		if !deleted.IsZero() && time.Since(deleted) > goneTimeout {
			g.Log.Warn("the proxy's pods do not end; going on", "deployment", g.Lease)
			return g.api.remove(ctx, path, proxy.Metadata.UID, background)
		}
		if err := g.api.remove(ctx, path, proxy.Metadata.UID, foreground); err != nil || g.api.dry {
			return err
		}
		if deleted.IsZero() {
			deleted = time.Now()
		}
		return errNotYet
	})
}

var errNotYet = errors.New("its pods have not ended yet")

func (o object) ownedBy(uid string) bool {
	for _, r := range o.Metadata.OwnerReferences {
		if r.UID == uid {
			return true
		}
	}
	return false
}

// unmarkRest removes what is left of the record: the only copy, or those on the target's ReplicaSets, those of a rollout that somebody has made
// meanwhile too, until the deployment controller has seen that the target has none.
func (g giving) unmarkRest(ctx context.Context) error {
	if !g.record.Target.Copied() {
		return g.unmarkTarget(ctx)
	}
	for clean, found := (time.Time{}), 0; ; { // clean is when a look ended that found one, or was the first
		begun := time.Now()
		sets, err := g.marked(ctx)
		if g.unlisted = refusedWith(err, http.StatusForbidden); g.unlisted {
			g.Log.Warn(unlisted, "because", err)
			return g.unmarkNamed(ctx)
		}
		if err == nil {
			err = g.unmark(ctx, sets)
		}
		if err != nil || g.api.dry {
			return err
		}
		switch {
		case len(sets) > 0:
			clean = time.Now()
			if found++; found == cleanLooks {
				g.Log.Warn("the record comes back; going on", "replicasets", sets)
				return nil
			}
		case clean.IsZero():
			clean = time.Now()
		case begun.Sub(clean) >= cleanAfter:
			return nil
		}
		if err := sleep(ctx, cleanAfter); err != nil {
			return err
		}
	}
}

// unlisted is what a Role means that was prepared before keepers listed ReplicaSets.
const unlisted = "not allowed to list replicasets: one of a rollout since the swap began may keep a copy of the record, which bridge restore removes"

// marked are the target's ReplicaSets that have a copy of the record, by name; for a dry run all of them.
func (g giving) marked(ctx context.Context) (names []string, err error) {
	err = g.patiently(ctx, "list replicasets", func() error {
		names = nil
		target, err := g.same(ctx, g.record.Target, g.api.pathOf(g.record.Target))
		if isNotFound(err) || errors.Is(err, errGone) {
			target, err = object{}, nil // so may they be: all are looked at
		}
		if err != nil {
			return err
		}
		selector, err := chosen(target.Spec.Selector) // they match it, and it never changes
		if err != nil {
			return err
		}
		return g.api.list(ctx, replicaSets, selector, func(rs object) {
			if (undo.Marked(rs.Metadata.Annotations) || g.api.dry) && rs.ownedBy(g.record.Target.UID) {
				names = append(names, rs.Metadata.Name)
			}
		})
	})
	return names, err
}

// unmarkNamed is unmarkRest where the ReplicaSets are known as of the swap's begin.
func (g giving) unmarkNamed(ctx context.Context) error {
	if !g.api.dry {
		if err := sleep(ctx, cleanAfter); err != nil {
			return err
		}
	}
	return g.unmark(ctx, g.ReplicaSets)
}

func (g giving) unmark(ctx context.Context, replicaSetNames []string) error {
	for _, name := range replicaSetNames {
		err := g.patiently(ctx, "annotate replicaset/"+name, func() error {
			return g.api.patch(ctx, g.api.path(replicaSets, name), undo.UnmarkPatch(""))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// giveBackFields returns the fields to their owners, and notes on the Lease that what is left then are the record's copies.
func (g giving) giveBackFields(ctx context.Context) error {
	for _, changes := range g.record.ByObject() {
		o := changes[0].Object
		err := g.patiently(ctx, "give back the field ownership of "+o.String(), func() error {
			is, err := g.same(ctx, o, g.api.pathOf(o))
			if err != nil {
				return err
			}
			of := changes
			if g.over { // others may have it since
				of = undo.Unfinished(changes, is.Metadata.ManagedFields)
			}
			patch, err := undo.OwnershipPatch(is.Metadata.ManagedFields, is.value(changes[0].Field()), of, is.Metadata.ResourceVersion)
			if patch == nil || err != nil {
				return err
			}
			return g.api.patch(ctx, g.api.pathOf(o), patch)
		})
		if err != nil {
			return err
		}
	}
	return g.patiently(ctx, "annotate lease/"+g.Lease, func() error {
		lease, err := g.ask(ctx)
		if err == nil && !g.api.dry && lease.Spec.HolderIdentity != g.holder() {
			err = errTaken
		}
		if err != nil {
			return err
		}
		over := map[string]any{"metadata": map[string]any{"annotations": map[string]any{undo.OverAnnotation: "true"}}}
		err = g.api.patch(ctx, g.api.path(leases, g.Lease), undo.Versioned(over, lease.Metadata.ResourceVersion))
		if g.api.dry && isConflict(err) { // a heartbeat came between
			return nil
		}
		return err
	})
}

// tell writes an event about the target, as the laptop would. That is a courtesy: a failure is nothing.
func (g giving) tell(ctx context.Context) error {
	if g.api.dry || g.told {
		return nil
	}
	now, t := time.Now().UTC().Format(time.RFC3339), g.record.Target
	message := "the keeper has given it back: no heartbeat of " + g.from + " any more"
	if g.unlisted {
		message += "; it is " + unlisted
	}
	err := g.api.create(ctx, g.api.path(events), map[string]any{
		"metadata": map[string]any{"generateName": t.Name + ".", "namespace": t.Namespace},
		"involvedObject": map[string]any{
			"apiVersion": t.APIVersion, "kind": t.Kind, "namespace": t.Namespace, "name": t.Name, "uid": t.UID,
		},
		"type": "Normal", "reason": undo.GivenBack, "message": message,
		"firstTimestamp": now, "lastTimestamp": now, "count": 1,
		"source": map[string]any{"component": "bridge"}, "reportingComponent": "bridge",
	})
	g.told = err == nil
	return nil
}

// release deletes the Lease, and with it, by garbage collection, the proxy's ConfigMaps, this pod and its rights. The dry run
// tries taking it as well.
func (g giving) release(ctx context.Context) error {
	path := g.api.path(leases, g.Lease)
	return g.patiently(ctx, "delete lease/"+g.Lease, func() error {
		if g.api.dry {
			if err := g.api.patch(ctx, path, g.hold(g.holder())); err != nil && !isConflict(err) { // a heartbeat came between
				return err
			}
		}
		return g.api.remove(ctx, path, g.uid, background)
	})
}
