package swap

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"bridge/pkg/tunnel"
)

func newKey(t *testing.T) tunnel.Key {
	t.Helper()
	key, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tunnelTo is a tunnel of ours to a proxy that knows this key, and serves until ctx is done, from when begin is closed.
func tunnelTo(ctx context.Context, t *testing.T, running *sync.WaitGroup, ours tunnel.Key, known tunnel.Fingerprint, begin <-chan struct{}) *tunnel.Client {
	t.Helper()
	l := listen(t)
	server := &tunnel.Server{
		Key: newKey(t), Client: known, Dial: new(net.Dialer).DialContext,
		Info: func() tunnel.Info { return tunnel.Info{Nameservers: []string{"10.96.0.10"}} },
	}
	running.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	return &tunnel.Client{Key: ours, Carrier: func(ctx context.Context) (net.Conn, string, error) {
		select {
		case <-begin:
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		return c, "pod", err
	}}
}

// What a proxy has told is known also while no proxy carries, and another has never had a session: CMD is started all the same.
func TestAProxyThatWasThereIsAskedBeforeOneThatNeverWas(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	ours, now := newKey(t), make(chan struct{})
	close(now)
	serving, lose := context.WithCancel(ctx)
	l := &lines{changed: make(chan struct{}), clients: []*tunnel.Client{
		tunnelTo(ctx, t, &running, ours, ours.Fingerprint(), nil), tunnelTo(serving, t, &running, ours, ours.Fingerprint(), now),
	}}
	for _, c := range l.clients {
		c.OnState = func(tunnel.State) { l.tell() }
	}
	running.Go(func() { l.run(ctx, func(err error) { t.Errorf("lost: %v", err) }) })
	if err := l.waitAny(t.Context()); err != nil {
		t.Fatal(err)
	}
	lose()
	for state, changed := l.watch(); state.Phase.Carries(); state, changed = l.watch() {
		<-changed
	}
	if told, ok := l.main().Info(); !ok || len(told.Nameservers) != 1 {
		t.Errorf("%+v, %v", told, ok)
	}
}

// A tunnel that is lost for good ends the swap; what goes through the other one goes on until the callers are moved.
func TestLostTunnelLeavesTheOtherAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	ours := newKey(t)
	now, connected := make(chan struct{}), make(chan struct{})
	close(now)
	l := &lines{clients: []*tunnel.Client{tunnelTo(ctx, t, &running, ours, ours.Fingerprint(), now), tunnelTo(ctx, t, &running, ours, newKey(t).Fingerprint(), connected)}}
	lost := make(chan error, len(l.clients))
	running.Go(func() { l.run(ctx, func(err error) { lost <- err }) })

	echo := listen(t)
	defer func() { _ = echo.Close() }()
	running.Go(func() {
		if c, err := echo.Accept(); err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	})
	conn, err := l.clients[0].DialContext(t.Context(), "tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	close(connected)
	if err := <-lost; !errors.Is(err, tunnel.ErrKeyRefused) {
		t.Errorf("lost for %v", err)
	}
	said := []byte("still there")
	heard := make([]byte, len(said))
	if _, err = conn.Write(said); err == nil {
		_, err = io.ReadFull(conn, heard)
	}
	if err != nil || string(heard) != string(said) {
		t.Errorf("the other one: %q, %v", heard, err)
	}
}
