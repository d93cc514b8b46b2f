package forward

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// lingering is the near end of a connection that takes long to end.
type lingering struct {
	*net.TCPConn
	refuses atomic.Int32 // so many times yet
	left    chan struct{}
}

func (l *lingering) Leave() bool {
	if l.refuses.Add(-1) >= 0 {
		return false
	}
	close(l.left)
	return true
}

// A port-forward is left when its caller is gone, and not when that has ended its half alone.
func TestWhoIsGoneIsNotWaitedFor(t *testing.T) {
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan *lingering, 1)
	f := &Forwarder{
		Listeners: []net.Listener{ln}, Address: far.Addr().String(), Stats: new(Stats),
		OnError: func(_ net.Conn, err error) { t.Error(err) },
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			l := &lingering{TCPConn: c.(*net.TCPConn), left: make(chan struct{})}
			l.refuses.Store(1)
			made <- l
			return l, nil
		},
	}
	run := make(chan error, 1)
	go func() { run <- f.Run(ctx) }()
	open := func() (caller *net.TCPConn, l *lingering, pod net.Conn) {
		t.Helper()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if pod, err = far.Accept(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn), <-made, pod
	}
	hears := func(c net.Conn, want string) {
		t.Helper()
		if got, err := io.ReadAll(c); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}

	caller, l, pod := open()
	_ = caller.CloseWrite()
	hears(pod, "x")
	time.Sleep(500 * time.Millisecond) // it is asked meanwhile
	_, _ = pod.Write([]byte("late"))
	_ = pod.Close()
	hears(caller, "late")
	_ = caller.Close()
	select {
	case <-l.left:
		t.Error("a connection that its caller still read from was left")
	default:
	}

	caller, l, pod = open()
	_ = caller.Close()
	hears(pod, "x")
	select {
	case <-l.left:
	case <-time.After(time.Minute):
		t.Fatal("it is not left")
	}
	// It has ended here, and the other end of it has not.
	for f.Stats.Now().Open > 0 {
		time.Sleep(time.Millisecond)
	}
	_ = pod.Close()

	cancel()
	if err := <-run; err != nil {
		t.Error(err)
	}
}
