// Package keeper gives a swap back by itself when the laptop is gone: it reads the swap's Lease from inside the cluster,
// and when that lapses it takes it and does what internal/undo's SPEC.md says. cmd/proxy runs it, in a pod of its own; it
// alone talks to the API server without a Kubernetes client, to stay small.
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"bridge/internal/fault"
	"bridge/internal/undo"
)

const (
	// proveTimeout is how long a refusal is not believed: a Role that was just made takes a moment to be known.
	proveTimeout = 5 * time.Second
	// retryPause is between two tries of one step, againPause between two of the whole.
	retryPause = time.Second
	againPause = 10 * time.Second
)

// Keeper looks after one swap.
type Keeper struct {
	API *API
	// Lease is the swap's, by name; Name is who this is, other than any other keeper.
	Lease, Name string
	// ReplicaSets are the target's at the time of the swap, by name, to which the deployment controller copies the record: where they may not be
	// listed, these are known.
	ReplicaSets []string
	// OnReady is called once it is proven that the Lease can be read and everything be given back.
	OnReady func()
	Log     *slog.Logger

	client   *client
	uid      string // the Lease's, once it was read: another one is another swap's
	unlisted bool   // the ReplicaSets, at the last time that they were wanted
	told     bool   // in an event, that all is given back
	// wrote is what was taken back by writing: 0 replicas after that are somebody else's, however often giving back begins anew.
	wrote map[undo.Object]bool
}

// Run proves what it may do, waits until the Lease lapses, and gives back; then it waits for ctx to end, since its own
// pod is among what goes with the Lease. It returns nil when ctx ends, and an error when the proof fails.
func (k *Keeper) Run(ctx context.Context) error {
	if k.client == nil {
		k.client = newClient(k.API)
	}
	defer k.client.http.CloseIdleConnections()
	if err := k.prove(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	k.OnReady()
	k.Log.Info("ready: gives back when the lease lapses", "lease", k.Lease)
	for ctx.Err() == nil {
		c, err := k.awaitLapse(ctx)
		if err != nil {
			break
		}
		k.Log.Info("giving back", "target", c.record.Target.String(), "from", c.from)
		switch err := k.giveBack(ctx, k.client, c); {
		case err == nil:
			k.Log.Info("given back", "target", c.record.Target.String())
			<-ctx.Done()
		case errors.Is(err, errTaken):
			k.Log.Info("somebody else gives back", "lease", k.Lease)
		case ctx.Err() == nil:
			k.Log.Error("not given back entirely; trying again", "error", err)
			_ = sleep(ctx, againPause)
		}
	}
	<-ctx.Done()
	return nil
}

// holder is who holds the Lease while this keeper gives back.
func (k *Keeper) holder() string { return undo.RestoreBy + "keeper " + k.Name }

// prove gives back as a dry run: each request that it would make, made without effect.
func (k *Keeper) prove(ctx context.Context) error {
	patience, cancel := context.WithTimeout(ctx, proveTimeout)
	defer cancel()
	for said := ""; ; {
		lease, err := k.ask(ctx)
		var c claim
		if err == nil {
			c, err = k.read(lease)
		}
		if err == nil {
			err = k.giveBack(ctx, k.client.dryRun(), c)
		}
		switch {
		case err == nil || ctx.Err() != nil:
			return ctx.Err()
		case !transient(err) && patience.Err() != nil, !transient(err) && !isForbidden(err) && !isNotFound(err):
			return err
		case err.Error() != said:
			said = err.Error()
			k.Log.Warn("not ready", "because", said)
		}
		if err := sleep(ctx, retryPause); err != nil {
			return err
		}
	}
}

// ask reads the Lease. Another one of the name is as good as none.
func (k *Keeper) ask(ctx context.Context) (object, error) {
	lease, err := k.client.get(ctx, k.client.path(leases, k.Lease))
	if err != nil {
		return object{}, fmt.Errorf("read lease/%s: %w", k.Lease, err)
	}
	if k.uid == "" {
		k.uid = lease.Metadata.UID
	}
	if lease.Metadata.UID != k.uid {
		return object{}, &refusal{http.StatusNotFound, "another lease/" + k.Lease}
	}
	return lease, nil
}

// claim is a Lease that is ours to give back, by its record.
type claim struct {
	version string // the Lease's resourceVersion when it was read
	from    string // who held it
	record  *undo.Record
	over    bool // all is given back, but for the record's copies and the Lease
}

func (k *Keeper) read(lease object) (claim, error) {
	r, err := undo.Parse(lease.Metadata.Annotations[undo.Annotation])
	if err == nil && r.Target.Namespace != k.API.Namespace {
		err = fmt.Errorf("undo record: is about namespace %q", r.Target.Namespace)
	}
	return claim{lease.Metadata.ResourceVersion, lease.Spec.HolderIdentity, r, undo.Over(lease.Metadata.Annotations)}, err
}

// awaitLapse waits until the Lease has lapsed and is ours. The error is ctx's, or that the Lease is gone: then this pod goes
// too.
func (k *Keeper) awaitLapse(ctx context.Context) (claim, error) {
	for {
		lease, err := lapsed(ctx, k.holder(), k.Log, k.ask)
		if err != nil {
			return claim{}, err
		}
		c, err := k.read(lease)
		if err == nil {
			err = fault.After(fault.KeeperTaken, k.client.patch(ctx, k.client.path(leases, k.Lease), c.hold(k.holder())))
		}
		switch {
		case err == nil:
			return c, nil
		case isConflict(err): // it was renewed at the last moment
			k.Log.Info("the lease has changed as it was taken; its period begins anew", "lease", k.Lease, "because", err)
		default:
			k.Log.Error("take the lease", "lease", k.Lease, "error", err)
		}
		if err := sleep(ctx, retryPause); err != nil {
			return claim{}, err
		}
	}
}

// lapsed asks for the Lease until it has lapsed, or is held by self: from before this container was restarted. The
// error is ctx's, or that the Lease is gone.
func lapsed(ctx context.Context, self string, log *slog.Logger, ask func(context.Context) (object, error)) (object, error) {
	var l undo.Lapse
	said := ""
	for period := undo.Period(1); ; { // the shortest, until the Lease says its own
		asked := time.Now()
		lease, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return object{}, ctx.Err()
		case isNotFound(err):
			log.Info("the lease is gone: nothing to keep")
			return object{}, err
		case err != nil:
			l.Silence()
			if err.Error() != said {
				said = err.Error()
				log.Warn("no answer about the lease; its period begins anew", "error", err)
			}
		default:
			said = ""
			period = undo.Period(lease.Spec.Seconds)
			if l.Answer(asked, time.Now(), lease.Spec.HolderIdentity+" "+lease.Spec.RenewTime, period) || lease.Spec.HolderIdentity == self {
				return lease, nil
			}
		}
		if err := sleep(ctx, undo.Pause(period)); err != nil {
			return object{}, err
		}
	}
}

// hold is the patch that makes the Lease holder's.
func (c claim) hold(holder string) map[string]any {
	return undo.Versioned(map[string]any{"spec": map[string]any{
		"holderIdentity": holder, "renewTime": time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"),
	}}, c.version)
}

// errTaken says that the Lease is no longer ours.
var errTaken = errors.New("the lease is somebody else's by now")

// check asks whether the Lease is still ours.
func (k *Keeper) check(ctx context.Context) error {
	lease, err := k.ask(ctx)
	if isNotFound(err) || err == nil && lease.Spec.HolderIdentity != k.holder() {
		return errTaken
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
