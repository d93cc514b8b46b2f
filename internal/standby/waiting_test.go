package standby

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bridge/pkg/tunnel"
)

// pipes is a listener in memory, whose connections can go silent.
type pipes struct {
	conns  chan net.Conn
	done   chan struct{}
	once   sync.Once
	silent atomic.Bool
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial(ctx context.Context) (net.Conn, string, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- &silentConn{far, p}:
		return &silentConn{near, p}, "pod", nil
	case <-p.done:
		return nil, "", net.ErrClosed
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

// silentConn loses what is written to it while its listener is silent.
type silentConn struct {
	net.Conn
	p *pipes
}

func (c *silentConn) Write(b []byte) (int, error) {
	if c.p.silent.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// bench is a Laptop on a real tunnel, under a fake clock that stands still but for waiting.
type bench struct {
	t       *testing.T
	laptop  *Laptop
	network *pipes
	opened  atomic.Int32 // streams, of callers or of the laptop's own tries
	gone    atomic.Bool  // the process on the laptop is
	opens   chan bool    // what OnChange was told
}

const benchPort = 80

// newBench is to be called in a bubble, and stop in it too.
func newBench(t *testing.T) (b *bench, stop func()) {
	b = &bench{t: t, network: &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, opens: make(chan bool, 100)}
	podKey, laptopKey := newKey(t), newKey(t)
	s := &tunnel.Server{Key: podKey, Client: laptopKey.Fingerprint()}
	b.laptop = &Laptop{
		Open: func(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error) {
			b.opened.Add(1)
			return s.Open(ctx, h)
		},
		Answering: s.Answering, Ports: []int{benchPort}, Log: slog.New(slog.DiscardHandler),
		OnChange: func(_ int, open bool) { b.opens <- open },
	}
	client := &tunnel.Client{Key: laptopKey, Carrier: b.network.dial, Handle: func(_ context.Context, st *tunnel.Stream) {
		if b.gone.Load() {
			_ = st.Refuse(syscall.ECONNREFUSED)
			return
		}
		if st.Accept() == nil {
			_ = st.Close()
		}
	}}
	client.SetReady(true)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(ctx, b.network) })
	wg.Go(func() { _ = client.Run(ctx) })
	wg.Go(func() { b.laptop.Run(ctx) })
	if !<-b.opens {
		t.Fatal("the laptop is not there")
	}
	return b, func() {
		cancel()
		wg.Wait()
	}
}

// dial is a caller's, with how long that has waited and how many streams were opened for it.
func (b *bench) dial() (waited time.Duration, opened int32, err error) {
	before, begin := b.opened.Load(), time.Now()
	conn, err := b.laptop.Dial(b.t.Context(), tunnel.Header{Kind: tunnel.Inbound, Network: "tcp", Address: ":80"})
	waited, opened = time.Since(begin), b.opened.Load()-before
	if err == nil {
		_ = conn.Close()
	}
	return waited, opened, err
}

// bubble runs f under a fake clock. yamux keeps timers in a pool, and none may move between a bubble and the world: two collections
// empty every pool.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	empty := func() { runtime.GC(); runtime.GC() }
	empty()
	defer empty()
	synctest.Test(t, f)
}

// TestARefusalIsPassedOnWithoutWaiting: the caller who meets it waits for no time at all, and those after it do not even ask.
func TestARefusalIsPassedOnWithoutWaiting(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, stop := newBench(t)
		defer stop()
		if waited, opened, err := b.dial(); err != nil || waited > 0 || opened != 1 {
			t.Fatalf("a process that is there: %v after %v, %d streams", err, waited, opened)
		}
		b.gone.Store(true)
		if waited, opened, err := b.dial(); !errors.Is(err, ErrAway) || !errors.Is(err, syscall.ECONNREFUSED) || waited > 0 || opened < 1 { // Laptop's own try may come in between
			t.Errorf("the first: %v after %v, %d streams", err, waited, opened)
		}
		synctest.Wait() // it has tried, and pauses
		if waited, opened, err := b.dial(); !errors.Is(err, ErrAway) || waited > 0 || opened != 0 {
			t.Errorf("the second: %v after %v, %d streams", err, waited, opened)
		}
		if <-b.opens {
			t.Error("told that the laptop is there")
		}
	})
}

// TestADeadTunnelCostsNobodyAnything once it is noticed: not one stream is opened on it, for callers or to try.
func TestADeadTunnelCostsNobodyAnything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, stop := newBench(t)
		defer stop()
		b.network.silent.Store(true)
		if <-b.opens {
			t.Fatal("told that the laptop is there")
		}
		before := b.opened.Load()
		for range 600 {
			if waited, _, err := b.dial(); !errors.Is(err, ErrAway) || waited > 0 {
				t.Fatalf("%v after %v", err, waited)
			}
			time.Sleep(100 * time.Millisecond) // of the bubble's
		}
		if n := b.opened.Load() - before; n > 0 {
			t.Errorf("%d streams were opened", n)
		}
		b.network.silent.Store(false)
		if !<-b.opens {
			t.Error("told that the laptop is still away")
		}
		if _, opened, err := b.dial(); err != nil || opened != 1 {
			t.Errorf("it is back: %v, %d streams", err, opened)
		}
	})
}

// TestADeadTunnelHoldsACallerUpOnce: of those who meet it before that is noticed each waits for a second at most, and nobody after them.
func TestADeadTunnelHoldsACallerUpOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, stop := newBench(t)
		defer stop()
		b.network.silent.Store(true)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if waited, _, err := b.dial(); !errors.Is(err, ErrAway) || waited > answerTimeout {
					t.Errorf("%v after %v", err, waited)
				}
			})
		}
		wg.Wait()
		if waited, _, err := b.dial(); !errors.Is(err, ErrAway) || waited > 0 {
			t.Errorf("the next: %v after %v", err, waited)
		}
	})
}
