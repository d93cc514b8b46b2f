package tunnel

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestQuality: two slow echoes in a row are needed to be degraded, and three fast ones to be good again.
func TestQuality(t *testing.T) {
	now := time.Now()
	q := new(quality)
	q.begin(now)
	echo := func(took time.Duration) string {
		e := q.ping(now)
		q.pong(e, now.Add(took))
		for range pingEvery / clockEvery {
			now = now.Add(clockEvery)
			q.look(now)
		}
		return q.look(now)
	}
	const fast, slow = 20 * time.Millisecond, 900 * time.Millisecond
	for i, step := range []struct {
		took     time.Duration
		degraded bool
	}{
		{fast, false}, {slow, false}, {fast, false}, {slow, false},
		{slow, true}, {slow, true}, {fast, true}, {fast, true}, {slow, true}, {fast, true}, {fast, true},
		{fast, false}, {slow, false},
	} {
		if why := echo(step.took); (why != "") != step.degraded {
			t.Fatalf("step %d, an echo of %v: %q", i, step.took, why)
		}
	}

	q.begin(now) // a long path is not a bad one
	for range 10 {
		if why := echo(600 * time.Millisecond); why != "" {
			t.Fatalf("600 ms from the start: %q", why)
		}
	}
}

// TestQualityOfSilence: an answer that does not come is noticed before the link is dead; that of a ping on the link before
// counts for nothing, and neither does time in which we did not run.
func TestQualityOfSilence(t *testing.T) {
	now := time.Now()
	q := new(quality)
	q.begin(now)
	e := q.ping(now)
	look := func(after time.Duration) string {
		var why string
		for range after / clockEvery {
			now = now.Add(clockEvery)
			why = q.look(now)
		}
		return why
	}
	if why := look(silentFor); why != "" {
		t.Errorf("after %v: %q", silentFor, why)
	}
	if why := look(clockEvery); why != "no answer for 4s" {
		t.Errorf("after 4s: %q", why)
	}
	q.begin(now)
	q.pong(e, now.Add(time.Second))
	if q.best != 0 {
		t.Error("an answer of the link before counts")
	}
	q.ping(now)
	now = now.Add(10 * time.Minute)
	if why := q.look(now); why != "" {
		t.Errorf("on waking: %q", why)
	}
	q.pong(1<<62, now)
	q.pong(1<<63, now)
	if q.best != 0 {
		t.Error("an echo that was never sent counts")
	}
}

// gateConn holds what is written while it is shut.
type gateConn struct {
	net.Conn
	shut      chan struct{} // holds a token while shut
	complains atomic.Pointer[string]
	dies      atomic.Bool
}

func (c *gateConn) Dead() error {
	if c.dies.Load() {
		return errors.New("no address")
	}
	return nil
}

func (c *gateConn) Write(p []byte) (int, error) {
	c.shut <- struct{}{}
	defer func() { <-c.shut }()
	return c.Conn.Write(p)
}

func (c *gateConn) Degraded() string {
	if s := c.complains.Load(); s != nil {
		return *s
	}
	return ""
}

// TestDeadByItsOwnWord: a carrier that says so is replaced at once, on the bulk lane too.
func TestDeadByItsOwnWord(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	var mu sync.Mutex
	var gates []*gateConn
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, err := e.network.dial(ctx)
		gate := &gateConn{Conn: c, shut: make(chan struct{}, 1)}
		mu.Lock()
		defer mu.Unlock()
		gates = append(gates, gate)
		return gate, "pod-1", err
	}
	states := make(chan State, 100)
	e.client.OnState = func(s State) { states <- s }
	e.start().waitReady()
	pod, laptop := e.streams()
	moveBoth(t, pod, laptop)
	for (<-states).Phase != Ready {
	}
	mu.Lock()
	before := slices.Clone(gates)
	mu.Unlock()
	for _, g := range before {
		g.dies.Store(true)
	}
	if s := <-states; s.Phase != Reconnecting || !strings.Contains(s.Err.Error(), "no address") {
		t.Errorf("%v: %v", s.Phase, s.Err)
	}
	if s := <-states; s.Phase != Ready {
		t.Errorf("%v: %v", s.Phase, s.Err)
	}
	send(t, pod, "goes on")
	wantRead(t, laptop, "goes on")
	mu.Lock()
	after := len(gates)
	mu.Unlock()
	if after < 2*len(before) {
		t.Errorf("%d carriers for %d dead ones", after-len(before), len(before))
	}
	_, _ = pod.Close(), laptop.Close()
	e.wantNoStreams()
}

// TestDegraded: a path that stalls for some seconds is said to be degraded for a while, and so is one whose carrier says
// so itself. The session goes on.
func TestDegraded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		gate := &gateConn{shut: make(chan struct{}, 1)}
		e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
			c, err := e.network.dial(ctx)
			gate.Conn = c
			return gate, "pod-1", err
		}
		states := make(chan State, 100)
		e.client.OnState = func(s State) { states <- s }
		e.start()
		defer e.close()
		await := func(phase Phase, why string) State {
			t.Helper()
			for s := range states {
				if s.Phase == phase {
					if s.Err != nil && !strings.Contains(s.Err.Error(), why) || s.Err == nil && why != "" {
						t.Fatalf("%v: %v, want %q", phase, s.Err, why)
					}
					return s
				}
				if s.Phase == Reconnecting {
					t.Fatalf("carrier lost: %v", s.Err)
				}
			}
			return State{}
		}
		since := await(Ready, "").Since

		gate.shut <- struct{}{}
		if at := await(Degraded, "no answer").Since; at.Sub(since) > pingEvery+silentFor+2*clockEvery {
			t.Errorf("noticed after %v", at.Sub(since))
		}
		if err := e.client.WaitReady(t.Context()); err != nil {
			t.Errorf("degraded is not ready: %v", err)
		}
		stalled := time.Now()
		<-gate.shut
		if at := await(Ready, "").Since; at.Sub(stalled) < (fastAfter-1)*pingEvery {
			t.Errorf("good again after %v", at.Sub(stalled))
		}

		relayed := "relayed"
		gate.complains.Store(&relayed)
		await(Degraded, relayed)
		gate.complains.Store(nil)
		await(Ready, "")
	})
}
