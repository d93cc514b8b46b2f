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

// A tunnel that is lost for good ends the swap; what goes through the other one goes on until the callers are moved.
func TestLostTunnelLeavesTheOtherAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	ours := newKey(t)
	// to is a tunnel to a proxy that knows this key, from when begin is closed.
	to := func(known tunnel.Fingerprint, begin chan struct{}) *tunnel.Client {
		l := listen(t)
		server := &tunnel.Server{Key: newKey(t), Client: known, Dial: new(net.Dialer).DialContext}
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
	now, connected := make(chan struct{}), make(chan struct{})
	close(now)
	l := &lines{clients: []*tunnel.Client{to(ours.Fingerprint(), now), to(newKey(t).Fingerprint(), connected)}}
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
