package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// house is a pod with a door, and laptops at it.
type house struct {
	t       *testing.T
	pod     Key
	address string
	ctx     context.Context
	door    *Door

	mu      sync.Mutex
	servers map[Fingerprint]*Server
}

func newHouse(t *testing.T) *house {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, pod: newKey(t), address: ln.Addr().String(), servers: map[Fingerprint]*Server{}}
	ctx, stop := context.WithCancel(context.Background())
	h.ctx = ctx
	h.door = &Door{Key: h.pod, Log: testLog(t, "door"), Server: func(f Fingerprint) *Server {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.servers[f]
	}}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.door.Serve(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return h
}

func (h *house) knows(k Key) *Server {
	s := &Server{Key: h.pod, Client: k.Fingerprint(), Log: testLog(h.t, "pod")}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.servers[k.Fingerprint()] = s
	return s
}

// laptop runs a client until the test ends; ended has what Run returned.
func (h *house) laptop(k Key, patience time.Duration) (c *Client, ended chan error) {
	c = &Client{
		Key: k, KeyPatience: patience, Log: testLog(h.t, "laptop"),
		Carrier: func(ctx context.Context) (net.Conn, string, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", h.address)
			return conn, "pod", err
		},
		Handle: func(_ context.Context, st *Stream) { _ = st.Accept() },
	}
	ctx, stop := context.WithCancel(context.Background())
	ended = make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- c.Run(ctx) })
	h.t.Cleanup(func() {
		stop()
		wg.Wait()
	})
	return c, ended
}

// Several laptops are at one listener, each with its own server, and one that is let go is not let in again.
func TestDoorLetsInEachToItsServer(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ada, bob := newKey(t), newKey(t)
	servers := []*Server{h.knows(ada), h.knows(bob)}
	a, adas := h.laptop(ada, 0)
	b, _ := h.laptop(bob, 0)
	for _, c := range []*Client{a, b} {
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range servers {
		for !s.Connected() && ctx.Err() == nil { // the laptop knows it a moment before
			time.Sleep(time.Millisecond)
		}
		st, err := s.Open(ctx, Header{Kind: Inbound, Network: "tcp", Address: ":80"})
		if err != nil {
			t.Fatal(err)
		}
		if err := st.WaitStatus(ctx); err != nil {
			t.Error(err)
		}
		_ = st.Close()
	}

	h.mu.Lock()
	delete(h.servers, ada.Fingerprint())
	h.mu.Unlock()
	servers[0].End()
	select {
	case err := <-adas:
		if !errors.Is(err, ErrKeyRefused) {
			t.Errorf("who is let go ends with %v", err)
		}
	case <-ctx.Done():
		t.Error("who is let go goes on")
	}
	if !servers[1].Connected() {
		t.Error("the other has lost its session")
	}
	if _, err := servers[0].Open(ctx, Header{Kind: Inbound, Network: "tcp", Address: ":80"}); !errors.Is(err, ErrNoSession) {
		t.Errorf("a stream to who is let go: %v", err)
	}
}

// A session that was about to begin when its server ended does not.
func TestAnEndedServerHasNoSession(t *testing.T) {
	h := newHouse(t)
	ada := newKey(t)
	s := h.knows(ada)
	s.End()
	c, _ := h.laptop(ada, 0)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_ = c.WaitReady(ctx)
	if s.Connected() {
		t.Error("connected")
	}
}

// A pod that learns of the key later is waited for, and not for ever.
func TestKeyPatience(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	late, never := newKey(t), newKey(t)
	c, ended := h.laptop(late, time.Minute)
	_, refused := h.laptop(never, 300*time.Millisecond)
	select {
	case err := <-refused:
		if !errors.Is(err, ErrKeyRefused) {
			t.Errorf("ends with %v", err)
		}
	case <-ctx.Done():
		t.Fatal("a key that nobody knows is tried for ever")
	}
	select {
	case err := <-ended:
		t.Fatalf("did not wait: %v", err)
	default:
	}
	h.knows(late)
	if err := c.WaitReady(ctx); err != nil {
		t.Error(err)
	}
}

// A member who knows another's session gets nothing of it: not its carrier, not its bulk lane, and with a session of that name one of their own.
// The other does not notice, and the attempts are counted.
func TestAnothersSessionIsNotAMembers(t *testing.T) {
	h := newHouse(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ada, bob := newKey(t), newKey(t)
	h.knows(ada)
	bobs := h.knows(bob)
	b, _ := h.laptop(bob, 0)
	if err := b.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for !bobs.Connected() && ctx.Err() == nil { // the laptop knows it a moment before
		time.Sleep(time.Millisecond)
	}
	before := b.State()
	session, err := bobs.current()
	if err != nil {
		t.Fatal(err)
	}
	stolen := testAttach()
	stolen.id, stolen.epoch = session.id, b.Epoch+1
	as := func(kind attachKind) (*link, verdict) {
		t.Helper()
		conn, err := net.Dial("tcp", h.address)
		if err != nil {
			t.Fatal(err)
		}
		stolen.kind = kind
		l, met, err := dialHandshake(ctx, conn, ada, h.pod.Fingerprint(), hello{protocol: Protocol}, stolen)
		if err != nil {
			t.Fatal(err)
		}
		return l, met.answer.verdict
	}
	for i, kind := range []attachKind{attachResume, attachLane} {
		l, got := as(kind)
		if got != attachUnknown {
			t.Errorf("attach of kind %d: verdict %d", kind, got)
		}
		if answer, err := l.offer(ctx, stolen); err != nil || answer.verdict != attachUnknown {
			t.Errorf("again: %+v, %v", answer, err)
		}
		if rest, err := io.ReadAll(l); len(rest) > 0 {
			t.Errorf("then %d bytes, %v", len(rest), err)
		}
		_ = l.Close()
		for h.door.refused.Load() < uint64(i+1) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}
	if n := h.door.refused.Load(); n != 2 {
		t.Errorf("%d were counted", n)
	}
	l, got := as(attachNew)
	if got != attachOK {
		t.Errorf("a session of her own: verdict %d", got)
	}
	st, err := bobs.Open(ctx, Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err == nil {
		err = st.WaitStatus(ctx)
		_ = st.Close()
	}
	if now, e := bobs.current(); err != nil || e != nil || now != session || b.State() != before {
		t.Errorf("bob's session: %v, %v; %+v, then %+v", err, e, before, b.State())
	}
	_ = l.Close()
}
