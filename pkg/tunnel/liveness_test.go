package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// bubble runs f under a fake clock. yamux keeps timers in a package-wide pool, and a timer must not
// move between a bubble and the world: two collections empty every sync.Pool.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty() // also when f fails, which ends this
	synctest.Test(t, f)
}

// badConn is a carrier that can go bad.
type badConn struct {
	net.Conn
	swallow atomic.Bool // what is written goes nowhere
	deaf    atomic.Bool // what arrives is lost
	stuck   chan struct{}
	closed  chan struct{}
	once    sync.Once
}

func newBadConn(c net.Conn) *badConn {
	return &badConn{Conn: c, stuck: make(chan struct{}), closed: make(chan struct{})}
}

func (c *badConn) Write(p []byte) (int, error) {
	select {
	case <-c.stuck:
		<-c.closed
		return 0, net.ErrClosed
	default:
	}
	if c.swallow.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *badConn) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if !c.deaf.Load() {
			return n, err
		}
		if err != nil {
			<-c.closed
			return 0, net.ErrClosed
		}
	}
}

func (c *badConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if c.swallow.Load() {
		return nil // nor does the other end hear of this
	}
	return c.Conn.Close()
}

// TestDeadPathIsNoticed breaks a carrier in several ways; both ends must notice within 15 s of the last
// answer, reset their streams, and find each other again.
func TestDeadPathIsNoticed(t *testing.T) {
	breaks := map[string]func(*badConn){
		"both ways":        func(c *badConn) { c.swallow.Store(true); c.deaf.Store(true) },
		"to the pod":       func(c *badConn) { c.swallow.Store(true) },
		"from the pod":     func(c *badConn) { c.deaf.Store(true) },
		"writes that hang": func(c *badConn) { close(c.stuck) },
	}
	for name, breakIt := range breaks {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := newEnds(t, pipeNetwork(t))
				e.client.ResumeWindow = -1
				var current atomic.Pointer[badConn]
				dial := e.client.Carrier
				e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
					c, peer, err := dial(ctx)
					if err != nil {
						return nil, "", err
					}
					bad := newBadConn(c)
					current.Store(bad)
					return bad, peer, nil
				}
				lost := make(chan State, 1)
				e.client.OnState = func(s State) {
					if s.Phase == Reconnecting {
						lost <- s
					}
				}
				e.start().waitReady()
				defer e.close()
				pod, laptop := e.streams()
				time.Sleep(pingEvery + pingEvery/2) // bubble time: several pings have been answered
				start := time.Now()
				bad := current.Load()
				breakIt(bad)
				var wg sync.WaitGroup
				for _, st := range []*Stream{pod, laptop} {
					wg.Go(func() {
						_, err := st.Read(make([]byte, 1))
						wantErr(t, "read", err, syscall.ECONNRESET)
						if took := time.Since(start); took > 15*time.Second {
							t.Errorf("laptop %v: reset after %v", st.s.laptop, took)
						}
						_, err = st.Write(make([]byte, 1))
						wantErr(t, "write", err, syscall.ECONNRESET)
						_ = st.Close()
					})
				}
				s := <-lost
				if took := time.Since(start); took > 15*time.Second {
					t.Errorf("noticed after %v", took)
				}
				wg.Wait()
				_ = bad.Conn.Close()
				e.waitReady()
				pod, laptop = e.streams()
				send(t, pod, "again")
				wantRead(t, laptop, "again")
				_, _ = pod.Close(), laptop.Close()
				if s.Err == nil {
					t.Error("no reason")
				}
			})
		})
	}
}

// TestFreshSessionHasLonger: before the first answer the other end has 30 s.
func TestFreshSessionHasLonger(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := pipeNetwork(t)
		laptop, pod := newKey(t), newKey(t)
		var ready, lost time.Time
		ctx, cancel := context.WithCancel(context.Background())
		var reason error
		c := &Client{
			Key: laptop, ResumeWindow: -1,
			Carrier: func(ctx context.Context) (net.Conn, string, error) {
				conn, err := n.dial(ctx)
				return conn, "pod", err
			},
			OnState: func(s State) {
				switch {
				case s.Phase == Ready && ready.IsZero():
					ready = time.Now()
				case s.Phase == Reconnecting && lost.IsZero():
					lost, reason = time.Now(), s.Err
					cancel()
				}
			},
		}
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(ctx) })
		wg.Go(func() {
			// A pod that lets the laptop in, and says nothing any more.
			conn, err := n.ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			l, err := acceptTLS(ctx, conn, pod, only(laptop.Fingerprint()))
			if err == nil {
				err = acceptHello(ctx, l, hello{protocol: Protocol})
			}
			if err == nil {
				_, err = readAttach(l)
			}
			if err == nil {
				err = answer(ctx, l, attached{})
			}
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, l)
			_ = l.Close()
		})
		<-ctx.Done()
		_ = n.ln.Close()
		wg.Wait()
		wantErr(t, "reason", reason, ErrDead)
		if took := lost.Sub(ready); took != freshAfter {
			t.Errorf("dead after %v, want %v", took, freshAfter)
		}
	})
}

// TestIdleSessionLives: an hour without traffic changes nothing.
func TestIdleSessionLives(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t)).start().waitReady()
		defer e.close()
		before, _ := e.client.wait(context.Background(), true)
		pod, laptop := e.streams()
		_ = pod.CloseWrite() // half-open for an hour is fine too
		time.Sleep(time.Hour)
		if after, _ := e.client.wait(context.Background(), true); after != before {
			t.Error("another session")
		}
		send(t, laptop, "still here")
		wantRead(t, pod, "still here")
		_, _ = pod.Close(), laptop.Close()
	})
}

// TestWokenLate: a process that did not run for ten minutes asks before it decides.
func TestWokenLate(t *testing.T) {
	start := time.Now()
	l := &liveness{start: start}
	l.answer(start.Add(time.Second))
	planned := l.due()
	if want := start.Add(time.Second + deadAfter); !planned.Equal(want) {
		t.Fatalf("due %v, want %v", planned, want)
	}
	now := planned.Add(10 * time.Minute)
	if dead, woke := l.check(planned, now); dead || !woke {
		t.Errorf("on waking: dead %v, woke %v", dead, woke)
	}
	if due := l.due(); !due.Equal(now.Add(wakeGrace)) {
		t.Errorf("due %v after waking, want %v", due.Sub(now), wakeGrace)
	}
	if dead, _ := l.check(l.due(), l.due()); !dead {
		t.Error("alive without an answer")
	}
	l.answer(now.Add(time.Second))
	if dead, _ := l.check(l.due(), now.Add(wakeGrace)); dead {
		t.Error("dead in spite of an answer")
	}
}

// TestHandshakeTimes: nobody waits for ever for a peer that says nothing.
func TestHandshakeTimes(t *testing.T) {
	t.Run("stranger to the pod", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			e := newEnds(t, pipeNetwork(t))
			e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) { <-ctx.Done(); return nil, "", ctx.Err() }
			e.start()
			defer e.close()
			c, err := e.network.dial(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			_, _ = io.Copy(io.Discard, c)
			if took := time.Since(start); took != handshakeTimeout {
				t.Errorf("closed after %v, want %v", took, handshakeTimeout)
			}
			_ = c.Close()
		})
	})
	t.Run("silent pod", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			n := pipeNetwork(t)
			var dials []time.Time
			done := make(chan struct{})
			c := &Client{Key: newKey(t), Carrier: func(ctx context.Context) (net.Conn, string, error) {
				if dials = append(dials, time.Now()); len(dials) == 2 {
					close(done)
				}
				conn, err := n.dial(ctx)
				return conn, "pod", err
			}}
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					conn, err := n.ln.Accept()
					if err != nil {
						return
					}
					wg.Go(func() { _, _ = io.Copy(io.Discard, conn) })
				}
			})
			wg.Go(func() { _ = c.Run(ctx) })
			<-done
			if gap := dials[1].Sub(dials[0]); gap != helloTimeout {
				t.Errorf("second try after %v, want %v", gap, helloTimeout)
			}
			cancel()
			_ = n.ln.Close()
			wg.Wait()
		})
	})
	t.Run("hanging dial", func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var dials []time.Time
			c := &Client{Key: newKey(t), Carrier: func(ctx context.Context) (net.Conn, string, error) {
				if dials = append(dials, time.Now()); len(dials) == 2 {
					cancel()
				}
				<-ctx.Done()
				return nil, "", ctx.Err()
			}}
			if err := c.Run(ctx); err != nil {
				t.Error(err)
			}
			if gap := dials[1].Sub(dials[0]); gap != carrierTimeout {
				t.Errorf("second try after %v, want %v", gap, carrierTimeout)
			}
		})
	})
}

// TestBackOff: at once, then slower and slower, up to 5 s.
func TestBackOff(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		broken := errors.New("no such pod")
		var dials []time.Time
		var errs int
		c := &Client{
			Key: newKey(t),
			Carrier: func(context.Context) (net.Conn, string, error) {
				dials = append(dials, time.Now())
				return nil, "", broken
			},
			OnState: func(s State) {
				if s.Phase == Connecting && errors.Is(s.Err, broken) {
					errs++
				}
			},
		}
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		full := backoffFirst
		for i := 1; i < len(dials); i++ {
			gap := dials[i].Sub(dials[i-1])
			switch {
			case i == 1 && gap != 0:
				t.Errorf("second try after %v, want at once", gap)
			case i > 1:
				if gap > full || gap < full/2 {
					t.Errorf("try %d after %v, want %v to %v", i+1, gap, full/2, full)
				}
				full = min(2*full, backoffMax)
			}
		}
		if len(dials) < 20 || errs != len(dials) {
			t.Errorf("%d tries in 2 minutes, %d told", len(dials), errs)
		}
		err := c.WaitReady(context.Background())
		wantErr(t, "after Run", err, ErrClosed)
		if s := c.State(); s.Phase != Lost {
			t.Errorf("state %v", s)
		}
	})
}
