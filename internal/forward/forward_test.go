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
	"bridge/internal/servertest"

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

		"53/udp":               {Local: 53, Remote: "53", Same: true, Network: "udp"},
		"5353:dns/UDP":         {Local: 5353, Remote: "dns", Network: "udp"},
		"80/tcp":               {Local: 80, Remote: "80", Same: true, Network: "tcp"},
		"unix:/tmp/a:80":       {Path: "/tmp/a", Remote: "80"},
		"unix:/tmp/a:b:http":   {Path: "/tmp/a:b", Remote: "http"},
		"unix:rel/udp.s:1/tcp": {Path: "rel/udp.s", Remote: "1", Network: "tcp"},
	} {
		if got, err := ParsePort(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "80:", "x:80", "80:80:80", "-1:80", "65536:80", "0", "80:0", "80:65536", "unix::80", "unix:/a:80/udp", "unix:/a", "80/sctp", "[::1]:80"} {
		if got, err := ParsePort(in); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%q: %+v, %v; want a usage error", in, got, err)
		}
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"8080:http/udp", "ȺȺȺȺȺ/udp", "/TCP", "unix:/tmp/x:80", "[::1]:80", "33333333333333333333"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (Port, error){ParsePort, ParseHostPort} {
			p, err := parse(s)
			switch {
			case err != nil && hint.CodeOf(err) != hint.Usage:
				t.Errorf("%q: %v", s, err)
			case err == nil && (p.Remote == "" || p.Network != "" && p.Network != "tcp" && p.Network != "udp" || p.Local < 0 || p.Local > 65535):
				t.Errorf("%q: %+v", s, p)
			}
		}
	})
}

func TestParseHostPortReadsSSHsGrammar(t *testing.T) {
	for in, want := range map[string]Port{
		"db.example.com:5432":          {Local: 5432, Remote: "5432", Same: true, Host: "db.example.com"},
		"15432:db.example.com:5432":    {Local: 15432, Remote: "5432", Host: "db.example.com"},
		":orders-0.orders:80":          {Remote: "80", Host: "orders-0.orders"},
		"[2001:db8::1]:5432":           {Local: 5432, Remote: "5432", Same: true, Host: "2001:db8::1"},
		"15432:[2001:db8::1]:5432":     {Local: 15432, Remote: "5432", Host: "2001:db8::1"},
		":[::1]:80":                    {Remote: "80", Host: "::1"},
		"unix:/tmp/pg:db:5432":         {Path: "/tmp/pg", Remote: "5432", Host: "db"},
		"unix:/tmp/pg:[2001:db8::1]:1": {Path: "/tmp/pg", Remote: "1", Host: "2001:db8::1"},
		"10.0.0.1:53/udp":              {Local: 53, Remote: "53", Same: true, Host: "10.0.0.1", Network: "udp"},
	} {
		if got, err := ParseHostPort(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "db:", "db:http", "db:0", "db:65536", ":5432", "5432:80", "2001:db8::1:5432", "1:2:db:3", "[db]:80", "x[::1]:80",
		"[::1:80", "x:db:80", "unix:80", "unix:/tmp/x:80", "a/b:80", "unix:/a:db:53/udp"} {
		if got, err := ParseHostPort(in); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
			t.Errorf("%q: %+v, %v; want a usage error with a hint", in, got, err)
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

func TestOneRefusedConnectionEndsOnlyItself(t *testing.T) {
	target := servertest.TCP(t, servertest.Echo)
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

// The end of Run cuts what is half sent, and the far side is not to take it for all.
func TestTheEndOfRunIsNoEndOfAConnection(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		c, err := ln.Accept()
		if err != nil {
			got <- err
			return
		}
		defer c.Close()
		_, err = io.ReadFull(c, make([]byte, 4))
		close(begun)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		got <- err
	}()
	lns, err := Listen([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &Forwarder{Listeners: lns, Address: ln.Addr().String(), Dial: new(net.Dialer).DialContext}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	c, err := net.Dial("tcp", lns[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "half"); err != nil {
		t.Fatal(err)
	}
	<-begun
	cancel()
	if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the far side sees %v, want a reset", err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
