package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"bridge/internal/hint"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestParsePortReadsKubectlsGrammar(t *testing.T) {
	for in, want := range map[string]Port{
		"80":        {Local: 80, Remote: "80", Same: true},
		"8080:80":   {Local: 8080, Remote: "80"},
		":80":       {Remote: "80"},
		"0:80":      {Remote: "80"},
		"http":      {Remote: "http", Same: true},
		"8080:http": {Local: 8080, Remote: "http"},
	} {
		if got, err := ParsePort(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "80:", "x:80", "80:80:80", "-1:80", "65536:80", "0", "80:0", "80:65536"} {
		if got, err := ParsePort(in); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%q: %+v, %v; want a usage error", in, got, err)
		}
	}
}

func TestListenOpensAllAddressesOrNone(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	if lns, err := Listen([]string{"127.0.0.2", "localhost"}, port); err == nil {
		closeAll(lns)
		t.Fatal("a taken port was opened")
	} else if hint.CodeOf(err) != hint.Other || hint.Of(err) == "" || !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("%v (hint %q)", err, hint.Of(err))
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(port)))
	if err != nil {
		t.Fatalf("the other address was left open: %v", err)
	}
	_ = ln.Close()
}

func TestListenTakesOneFreePortForBothLoopbacks(t *testing.T) {
	lns, err := Listen([]string{"localhost"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(lns)
	port := lns[0].Addr().(*net.TCPAddr).Port
	for _, ln := range lns {
		if got := ln.Addr().(*net.TCPAddr).Port; got != port || port == 0 {
			t.Errorf("%v beside %v", ln.Addr(), lns[0].Addr())
		}
	}
}

// echo serves what it is sent until it is closed.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

func TestOneRefusedConnectionEndsOnlyItself(t *testing.T) {
	target := echo(t)
	lns, err := Listen([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int32
	failed := make(chan error, 1)
	f := &Forwarder{
		Listeners: lns, Address: target,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dials.Add(1) == 1 {
				return nil, syscall.ECONNREFUSED
			}
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
		OnError: func(_ net.Conn, err error) { failed <- err },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()

	first, err := net.Dial("tcp", lns[0].Addr().String())
	if err == nil { // the reset may be there before connect has returned
		_, err = first.Read(make([]byte, 1))
		_ = first.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller of a refused connection sees %v, want a reset", err)
	}
	if err := <-failed; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("reported %v", err)
	}

	second, err := net.Dial("tcp", lns[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := second.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(second, buf); err != nil || string(buf) != "hello" {
		t.Errorf("the next connection got %q, %v", buf, err)
	}

	// The end of Run ends open connections and the listener.
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := second.Read(buf); err == nil {
		t.Error("a connection outlives Run")
	}
	_ = second.Close()
	if _, err := lns[0].Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener outlives Run: %v", err)
	}
}
