package proxypod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// LeaseSeconds is the usual duration of bridge's Leases: after this long without a heartbeat one counts as left behind, and
// a keeper gives back.
const LeaseSeconds = 60

// Duration is a Lease's own.
func Duration(l *coordinationv1.Lease) time.Duration {
	if l.Spec.LeaseDurationSeconds == nil || *l.Spec.LeaseDurationSeconds <= 0 {
		return LeaseSeconds * time.Second
	}
	return time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second
}

// maxHeartbeatPeriod is that of a Lease of the usual duration, and of longer ones.
const maxHeartbeatPeriod = LeaseSeconds * time.Second / 6

// HeartbeatPeriod renews a Lease six times in its duration or more often, so one slow answer means nothing.
func HeartbeatPeriod(l *coordinationv1.Lease) time.Duration {
	return min(Duration(l)/6, maxHeartbeatPeriod)
}

// Stale is how old a heartbeat may be at most for what it says of the tunnel to be believed: one may be late.
func Stale(l *coordinationv1.Lease) time.Duration { return 5 * HeartbeatPeriod(l) / 2 }

const (
	// changeDelay is how long a change of the tunnel's state waits to be written: a cut that is healed by then is none.
	changeDelay = time.Second
	// maxReason bounds the reason of a state, in characters: it is for people.
	maxReason = 256
)

// More is what else a heartbeat writes into the Lease.
type More struct {
	Annotations func() map[string]string // nil: nothing; an empty value removes one
	News        <-chan struct{}          // asks for a heartbeat soon
	// Write, if set, takes the place of Annotations and of the tunnel's state, and says whether the Lease is still ours, whoever holds it.
	// It may be called several times for one heartbeat.
	Write func(l *coordinationv1.Lease, state State) error
}

// Heartbeat renews the Lease every HeartbeatPeriod of its, and soon after each change of the tunnel's state, which it writes into it,
// until ctx ends (nil) or the Lease is no longer ours: deleted, or held by somebody who gives it back (*TakenError). It says
// when it has not come through for Stale, why, and when it does again. watch is the state and a channel that is closed at the next
// change: (*tunnel.Client).Watch is one.
func Heartbeat(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, watch func() (tunnel.State, <-chan struct{}), more More, say func(string)) error {
	last, silent := time.Now(), false
	due := time.NewTimer(0)
	defer due.Stop()
	state, changed := watch()
	written := state.Phase
	for soon := true; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if state, changed = watch(); state.Phase != written && !soon {
				soon = true
				due.Reset(changeDelay)
			}
			continue
		case <-more.News:
			if !soon {
				soon = true
				due.Reset(changeDelay)
			}
			continue
		case <-due.C:
		}
		state, changed = watch()
		err := beat(ctx, k, lease, more.write(lease, StateOf(state)))
		if taken := new(TakenError); errors.As(err, &taken) {
			return taken
		}
		since := time.Since(last).Round(time.Second)
		switch {
		case err == nil && silent:
			say(fmt.Sprintf("the heartbeat comes through again, after %v", since))
			fallthrough
		case err == nil:
			last, silent = time.Now(), false
		case since >= Stale(lease) && !silent && ctx.Err() == nil:
			say(fmt.Sprintf("no heartbeat has come through for %v; after %v this counts as left behind: %v", since, Duration(lease), err))
			silent = true
		}
		soon, written = false, state.Phase
		due.Reset(HeartbeatPeriod(lease))
	}
}

// write puts into the Lease what a heartbeat tells, or says that it is no longer ours.
func (m More) write(ours *coordinationv1.Lease, state State) func(*coordinationv1.Lease) error {
	if m.Write != nil {
		return func(now *coordinationv1.Lease) error { return m.Write(now, state) }
	}
	annotations := map[string]string{TunnelAnnotation: state.String()}
	if m.Annotations != nil {
		maps.Copy(annotations, m.Annotations())
	}
	return func(now *coordinationv1.Lease) error {
		if now.Spec.HolderIdentity == nil || *now.Spec.HolderIdentity != *ours.Spec.HolderIdentity {
			return &TakenError{By: value(now.Spec.HolderIdentity)}
		}
		for key, value := range annotations {
			if value == "" {
				delete(now.Annotations, key)
				continue
			}
			metav1.SetMetaDataAnnotation(&now.ObjectMeta, key, value)
		}
		return nil
	}
}

// beat is one heartbeat. The next one looks again whatever the error, but for a *TakenError.
func beat(ctx context.Context, k *kube.Client, lease *coordinationv1.Lease, write func(*coordinationv1.Lease) error) error {
	ctx, cancel := context.WithTimeout(ctx, HeartbeatPeriod(lease))
	defer cancel()
	leases := k.Clientset.CoordinationV1().Leases(lease.Namespace)
	// Others renew it too, where several share a swap.
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		now, err := leases.Get(ctx, lease.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return &TakenError{}
		case err != nil:
			return kube.Explain(err, "get lease "+lease.Name)
		case now.UID != lease.UID:
			return &TakenError{By: value(now.Spec.HolderIdentity)}
		}
		if err := write(now); err != nil {
			return err
		}
		stamp := metav1.NowMicro()
		now.Spec.RenewTime = &stamp
		_, err = leases.Update(ctx, now, metav1.UpdateOptions{FieldManager: FieldManager})
		return kube.Explain(fault.After(fault.Beat, err), "renew lease "+lease.Name)
	})
}

// State is a tunnel's state as a Lease has it, "degraded since 2026-11-24T06:30:00Z: an answer takes 900ms".
type State struct {
	Phase  string
	Since  time.Time // whole seconds
	Reason string    // may be empty
}

// StateOf is s for a Lease.
func StateOf(s tunnel.State) State {
	out := State{Phase: s.Phase.String(), Since: s.Since.UTC().Truncate(time.Second)}
	if s.Err != nil && s.Phase != tunnel.Ready {
		out.Reason = fmt.Sprintf("%.*s", maxReason, s.Err)
	}
	return out
}

func (s State) String() string {
	text := s.Phase + " since " + s.Since.Format(time.RFC3339)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	return text
}

// ParseState reads what String gives; ok is false for anything else.
func ParseState(text string) (s State, ok bool) {
	phase, rest, ok := strings.Cut(text, " since ")
	if !ok {
		return State{}, false
	}
	at, reason, _ := strings.Cut(rest, ": ")
	since, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return State{}, false
	}
	return State{Phase: phase, Since: since, Reason: reason}, true
}

// RestoreBy begins the holder of a Lease whose swap is being given back.
const RestoreBy = undo.RestoreBy

// TakenError says that the Lease is no longer ours.
type TakenError struct {
	By string // who holds it now; empty when it was deleted
	// Share is whether the swap goes on, and only this machine's share of it is By's, or with an empty By nobody's.
	Share bool
}

func (e *TakenError) Error() string {
	if e.Share && e.By == "" {
		return "this machine's share was dropped while nothing was heard of it"
	}
	if e.Share {
		return "this machine's share was taken over by " + e.By
	}
	if e.By == "" {
		return "its Lease is gone: somebody has given it back, or deleted that"
	}
	if by, ok := strings.CutPrefix(e.By, RestoreBy); ok {
		return by + " gives it back"
	}
	return "the Lease was taken by " + e.By
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// sayTunnel says each change of the tunnel's state, not each try in between, and how long the one before took. by is
// said of a tunnel that is ready: what it goes by.
func sayTunnel(say func(string), by func() string) func(tunnel.State) {
	last := tunnel.State{Phase: tunnel.Connecting}
	return func(s tunnel.State) {
		before := last
		if last = s; s.Phase == before.Phase || s.Phase == tunnel.Connecting {
			return
		}
		switch {
		case s.Phase == tunnel.Ready && before.Phase != tunnel.Connecting:
			say(fmt.Sprintf("tunnel: ready%s, after %v of %v", by(), time.Since(before.Since).Round(100*time.Millisecond), before.Phase))
		case s.Phase == tunnel.Ready:
			say("tunnel: ready" + by())
		case s.Phase != tunnel.Lost || hint.CodeOf(s.Err) == hint.TunnelLost: // else it ends as the user wished
			say(fmt.Sprintf("tunnel: %v (%v)", s.Phase, s.Err))
		}
	}
}
