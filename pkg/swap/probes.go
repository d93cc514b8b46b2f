package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
)

// probeLikeThePod has the container's probes run against the process on the laptop, of which the notes say what is done otherwise.
func (p *Plan) probeLikeThePod(c corev1.Container, pod corev1.PodSpec, o Options) {
	var notes []string
	p.Probes, notes = localProbes(c, p.Ports, others(pod, c.Name), o, p.reach)
	p.Notes = append(p.Notes, notes...)
	p.grace = maxGrace
	if seconds := pod.TerminationGracePeriodSeconds; seconds != nil {
		p.grace = min(max(time.Duration(*seconds)*time.Second, minGrace), maxGrace)
	}
}

const (
	// minGrace is what the kubelet gives at least.
	minGrace = 2 * time.Second
	// maxGrace is a pod's usual one. Who has given it more is not kept waiting for it here.
	maxGrace = 30 * time.Second
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

// followProbes tells the tunnel whether the local process is ready, and Live what its probes give, until ctx is done. Without a readiness probe
// it is ready.
func (s *Swap) followProbes(ctx context.Context) {
	for told := false; ; {
		states, ready, changed := s.probes.Watch()
		if s.Live != nil {
			s.Live(liveLine(states))
		}
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

// liveLine is what each probe gave last, and when: "readiness success at 12:03:41: status 200".
func liveLine(states []probe.State) string {
	var probes []string
	for _, p := range states {
		if p.LastAt.IsZero() {
			continue
		}
		text := fmt.Sprintf("%s %s at %s: %s", p.Kind, p.LastResult, p.LastAt.Format(time.TimeOnly), p.Last)
		if p.LastResult == probe.Failure && p.Row > 1 {
			text += ", " + times(p.Row)
		}
		if !p.Restart.IsZero() {
			text += "; the kubelet would have restarted it at " + p.Restart.Format(time.TimeOnly)
		}
		probes = append(probes, text)
	}
	return strings.Join(probes, " | ")
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
		again := ""
		if s.wasReady.Swap(true) {
			again = " again"
		}
		s.Say("ready" + again + ": " + why)
	case c.Result == probe.Failure && s.askRestart():
		s.Say(fmt.Sprintf("%s: %s, %s: CMD is restarted, as the kubelet would have done", c.Kind, why, times(c.Row)))
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
		for _, at := range []*time.Time{&states[i].Since, &states[i].LastAt, &states[i].Restart} {
			*at = at.UTC().Truncate(time.Second)
		}
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
