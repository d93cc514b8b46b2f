package swap

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/kube"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// What happens to a workload is told in its events too, so that kubectl describe shows it to people who do not know bridge.
// Events are a courtesy: without the right to create them, or while the API server is away, nothing waits and nothing fails.

// The reasons of events.
const (
	reasonSwapped  = "Swapped"
	reasonLost     = "TunnelLost"
	reasonRestored = "TunnelRestored"
	reasonLeft     = "Left" // one of several
	reasonGiven    = undo.GivenBack
)

const (
	// eventTimeout bounds one event.
	eventTimeout = 2 * time.Second
	// lostAfter is how long a tunnel is cut before it is told: most cuts are healed by then.
	lostAfter = time.Second
	// maxCuts bounds what one swap tells of its tunnel: a line that comes and goes all day is told enough by then.
	maxCuts = 50
)

// tell writes one event about the target.
func tell(ctx context.Context, k *kube.Client, target Object, kind, reason, message string, at time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	stamp := metav1.NewTime(at)
	_, err := k.Clientset.CoreV1().Events(target.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: target.Namespace, GenerateName: target.Name + "."},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: target.APIVersion, Kind: target.Kind, Namespace: target.Namespace, Name: target.Name, UID: types.UID(target.UID),
		},
		Type: kind, Reason: reason, Message: message,
		FirstTimestamp: stamp, LastTimestamp: stamp, Count: 1,
		Source: corev1.EventSource{Component: "bridge"}, ReportingController: "bridge",
	}, metav1.CreateOptions{})
	return err
}

// narrate tells that the swap is made, and of every cut of its tunnel and its end, until ctx ends. One that the API server could
// not take is told with the next.
func (s *Swap) narrate(ctx context.Context) {
	u := &s.Plan.Undo
	type event struct {
		kind, reason, message string
		at                    time.Time
	}
	_, services := u.Summary()
	what := s.Plan.owner + " answers for it from another machine"
	switch choice := s.Plan.Choice; {
	case choice.Mirror:
		what = s.Plan.owner + " has a copy of its traffic on another machine"
	case !choice.All():
		what += " (" + choice.String() + ")"
	}
	if len(services) > 0 {
		what += ", callers of " + serviceList(services) + " too"
	}
	pending := []event{{corev1.EventTypeNormal, reasonSwapped, what + "; to give it back: " + strings.TrimSuffix(Command(s.Kube, u.Target), s.Kube.Flags), time.Now()}}
	cut := false
	for cuts := 0; ; {
		for len(pending) > 0 {
			e := pending[0]
			if err := tell(ctx, s.Kube, u.Target, e.kind, e.reason, e.message, e.at); err != nil && kube.Transient(kube.Explain(err, "tell")) {
				break
			}
			pending = pending[1:]
		}
		state, changed := s.lines.watch()
		switch up := state.Phase.Carries(); {
		case cut && up:
			cut = false
			pending = append(pending, event{corev1.EventTypeNormal, reasonRestored, "the tunnel to " + s.Plan.owner + " is back", time.Now()})
			continue
		case !cut && state.Phase == tunnel.Reconnecting && cuts < maxCuts && !s.ending.Load(): // else it goes with its proxy
			if sleep(ctx, lostAfter) != nil {
				return
			}
			if state, _ := s.lines.watch(); state.Phase == tunnel.Reconnecting && !s.ending.Load() {
				cut = true
				cuts++
				pending = append(pending, event{corev1.EventTypeWarning, reasonLost, fmt.Sprintf("the tunnel to %s is cut (%v); its callers wait for it", s.Plan.owner, state.Err), state.Since})
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}
