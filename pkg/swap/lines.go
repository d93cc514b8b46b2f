package swap

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// lines are a swap's tunnels: one, or in standby one to each proxy.
type lines struct {
	clients  []*tunnel.Client
	carriers []*proxypod.Carriers

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change of a state
	notes   [][]string    // what each proxy says, a line each
	said    [][]string    // what of it was said last
}

// newLines makes n tunnels to the pods of p, with like's fields that are not about one of them.
func newLines(n int, p *proxypod.Proxy, own proxypod.Ports, s *Session, like func() *tunnel.Client, log *slog.Logger, say func(string)) *lines {
	l := &lines{changed: make(chan struct{})}
	for i, seat := range p.Seats(n) {
		said := say
		if n > 1 {
			said = func(line string) { say(fmt.Sprintf("proxy %d: %s", i+1, line)) }
		}
		c := proxypod.NewCarriers(seat, own, said)
		t := like()
		t.Carrier, t.Key, t.Pins, t.Epoch, t.Log = c.Dial, s.key, s.saved.Pins, s.saved.Epoch, log
		t.OnState = func(state tunnel.State) {
			c.OnState(state)
			l.tell()
		}
		t.OnNote = func(text string, lost bool) { l.noted(i, text, lost, said) }
		l.clients, l.carriers, l.notes, l.said = append(l.clients, t), append(l.carriers, c), append(l.notes, nil), append(l.said, nil)
	}
	return l
}

// tell has whoever watches look again.
func (l *lines) tell() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// run keeps all of them until ctx ends. lost is told why, of each that is lost for good; the others go on.
func (l *lines) run(ctx context.Context, lost func(error)) {
	var running sync.WaitGroup
	for _, c := range l.clients {
		running.Go(func() {
			if err := c.Run(ctx); err != nil {
				lost(err)
			}
		})
	}
	for _, c := range l.carriers {
		running.Go(func() { c.Run(ctx) })
	}
	running.Wait()
}

// main is the tunnel for what only one is needed: the first that carries now, or that has carried, or the first.
func (l *lines) main() *tunnel.Client {
	for _, c := range l.clients {
		if c.State().Phase.Carries() {
			return c
		}
	}
	for _, c := range l.clients {
		if _, had := c.Info(); had {
			return c
		}
	}
	return l.clients[0]
}

func (l *lines) setReady(ready bool) {
	for _, c := range l.clients {
		c.SetReady(ready)
	}
}

// waitAny waits until one of them carries.
func (l *lines) waitAny(ctx context.Context) error {
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if l.main().State().Phase.Carries() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return l.main().WaitReady(ctx) // says why not
		}
	}
}

// waitReady waits until each has a session.
func (l *lines) waitReady(ctx context.Context) error {
	for _, c := range l.clients {
		if err := c.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// watch is the state of all in one, and a channel that is closed at the next change: ready when all are, and degraded when one is not
// and another carries on.
func (l *lines) watch() (tunnel.State, <-chan struct{}) {
	l.mu.Lock()
	changed := l.changed
	l.mu.Unlock()
	var states []tunnel.State
	for _, c := range l.clients {
		states = append(states, c.State())
	}
	return together(states), changed
}

func together(states []tunnel.State) tunnel.State {
	worst, up := states[0], 0
	for _, s := range states {
		if s.Phase.Carries() {
			up++
		}
		if rank(s.Phase) > rank(worst.Phase) {
			worst = s
		}
	}
	if up == 0 || up == len(states) {
		return worst
	}
	err := fmt.Errorf("%d of %d proxies without a tunnel: %v", len(states)-up, len(states), worst.Phase)
	if worst.Err != nil {
		err = fmt.Errorf("%w (%w)", err, worst.Err)
	}
	return tunnel.State{Phase: tunnel.Degraded, Since: worst.Since, Err: err}
}

// rank orders phases from good to bad.
func rank(p tunnel.Phase) int {
	switch p {
	case tunnel.Ready:
		return 0
	case tunnel.Degraded:
		return 1
	case tunnel.Connecting:
		return 2
	case tunnel.Reconnecting:
		return 3
	}
	return 4
}
