package swap

import (
	"context"
	"fmt"
	"time"

	"bridge/internal/proxypod"
)

// secondTimeout is how long the second proxy, and its tunnel, may take longer than the first.
const secondTimeout = 15 * time.Second

// standby tells whether the original goes on.
func (p *Plan) standby() bool { return !p.Undo.Replaces() }

// proxies is how many there are to be.
func (p *Plan) proxies() int {
	if p.standby() {
		return int(proxypod.StandbyReplicas)
	}
	return 1
}

// awaitProxies waits until the proxies can take callers. In standby they are Ready by the originals first: until then nobody has said that
// the laptop's process is ready, so that it is known that they reach them.
// One of two is waited for as long as timeout; if the other does not follow, that is said.
func (s *Swap) awaitProxies(ctx context.Context, timeout time.Duration) error {
	first, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := s.proxy.WaitReady(first); err != nil {
		if s.Why != nil {
			return s.Why(ctx, err)
		}
		return err
	}
	close(s.stands)
	if !s.Plan.standby() {
		return nil
	}
	if err := s.lines.waitAny(first); err != nil {
		return err
	}
	second := secondTimeout
	if s.Session.Joins() {
		second = knownTimeout // its kubelet may be asked by nobody
	}
	more, cancelMore := context.WithTimeout(ctx, second)
	defer cancelMore()
	note := "one proxy alone is there, and callers depend on it"
	err := s.proxy.WaitAllReady(more, s.Plan.proxies())
	if err == nil {
		err = s.lines.waitReady(more)
		if s.Session.Joins() {
			note = "one proxy alone knows of this machine: what comes to the other is the original's until that does too"
		}
	}
	if err != nil && ctx.Err() == nil {
		s.Say(fmt.Sprintf("note: %s: %v", note, err))
		return nil
	}
	return err
}

// awaitStanding waits until awaitProxies has come that far, or ctx is done; a replaced original's proxy is Ready by the laptop alone. Those
// of a swap that is taken up have reached the originals before, which may be down now: then this machine is to answer at once.
func (s *Swap) awaitStanding(ctx context.Context) {
	if !s.Plan.standby() || s.Session.TakenUp() {
		return
	}
	select {
	case <-s.stands:
	case <-ctx.Done():
	}
}

// awaitKnown waits until the endpoint controller has the proxies for ready, by the Service that selects them: whatever Service selects them
// from then on has them as endpoints at once.
func (s *Swap) awaitKnown(ctx context.Context, x changer) error {
	return x.awaitEndpoints(ctx, s.proxy, []string{s.Plan.Standby.Proxies.Name}, endpoints.reachProxy)
}
