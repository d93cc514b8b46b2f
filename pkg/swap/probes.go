package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
)

// localProbes are the container's probes, as they are run against the process on the laptop; others are the ports of the
// pod's other containers.
func localProbes(c corev1.Container, ports []Port, others map[at]string, o Options, dial connect.Dial) (probes []*probe.Probe, notes []string) {
	if o.NoProbes {
		return nil, nil
	}
	to := probe.Options{Exec: o.ExecProbes, Dial: dial, Local: func(remote int32) (int32, error) {
		if i := slices.IndexFunc(ports, func(p Port) bool { return p.at() == at{remote, false} }); i >= 0 {
			return ports[i].Local, nil
		}
		if other := others[at{remote, false}]; other != "" {
			return 0, fmt.Errorf("port %d is container %q's, which goes on in the proxy's pod", remote, other)
		}
		return 0, fmt.Errorf("nothing maps port %d to this machine; --port LOCAL:%d does", remote, remote)
	}}
	if i := slices.IndexFunc(ports, func(p Port) bool { return !p.UDP }); i >= 0 {
		to.Port = ports[i].Local
	}
	return probe.Of(c, to)
}

// awaitProbes waits until the local process is ready by the target's own probes, as long as bounded allows.
func (s *Swap) awaitProbes(ctx, bounded context.Context) error {
	last := errors.New("its probes have not answered")
	err := s.probes.Await(bounded, func(p probe.State) {
		last = fmt.Errorf("%s: %s", p.What, p.Last)
		s.Say("waiting for the local process: " + last.Error())
	})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return hint.Newf(hint.Other, "--local-timeout waits longer; --probes off does without the pod's probes", "the local process is not ready: %w", last)
}

// followProbes tells the tunnel whether the local process is ready, until ctx is done. Without a readiness probe it is.
func (s *Swap) followProbes(ctx context.Context) {
	for told := false; ; {
		_, ready, changed := s.probes.Watch()
		if ready = (ready || !s.probes.Has(probe.Readiness)) && !s.left.Load(); ready != told {
			told = ready
			s.lines.setReady(ready)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// sayProbe says what a change means, and has it written into the Lease.
func (s *Swap) sayProbe(c probe.Change) {
	select {
	case s.probed <- struct{}{}:
	default:
	}
	if s.ending.Load() {
		return
	}
	readiness := s.probes.Has(probe.Readiness)
	why := fmt.Sprintf("%s: %s", c.What, c.Last)
	elsewhere := "callers go to the original until it succeeds (--probes off has them come all the same)"
	if s.Plan.Choice.Mirror {
		elsewhere = "nothing is copied until it succeeds (--probes off copies all the same)"
	}
	switch {
	case s.Plan.standby() && readiness && (c.Absent || c.Kind == probe.Readiness && c.Result == probe.Failure):
		s.Say(fmt.Sprintf("not ready: %s: %s", why, elsewhere))
	case c.Absent && readiness:
		s.Say(fmt.Sprintf("not ready: %s: your process is gone; callers are refused until it is back, as by a pod whose container has ended", why))
	case c.Absent:
		// The first caller that is reset says so.
	case c.Kind == probe.Readiness && c.Result == probe.Failure:
		s.Say(fmt.Sprintf("not ready: %s, %s: callers are refused until it succeeds, as by the pod (--probes off has them come all the same, at a breakpoint for instance)",
			why, times(c.Row)))
	case c.Kind == probe.Readiness:
		s.Say("ready again: " + why)
	case c.Result == probe.Failure:
		s.Say(fmt.Sprintf("%s: the kubelet would have restarted it at %s: %s, %s (nothing is restarted here)", c.Kind, c.Time.Format(time.TimeOnly), why, times(c.Row)))
	default:
		s.Say(fmt.Sprintf("%s: good: %s", c.Kind, why))
	}
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times in a row", n)
}

// probeStates are for the Lease.
func (s *Swap) probeStates() []probe.State {
	states, _, _ := s.probes.Watch()
	for i := range states {
		states[i] = states[i].ForOthers()
		states[i].Since = states[i].Since.UTC().Truncate(time.Second)
	}
	return states
}

// probesAnnotation is for the Lease. Without probes it removes that of an earlier bridge.
func (s *Swap) probesAnnotation() map[string]string {
	states, text := s.probeStates(), ""
	if b, err := json.Marshal(states); err == nil && len(states) > 0 {
		text = string(b)
	}
	return map[string]string{proxypod.ProbesAnnotation: text}
}
