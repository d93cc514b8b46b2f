package reach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/servertest"
	"bridge/pkg/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// running is a Set of hosts, whose proxy pod is this process.
type running struct {
	*Set
	t             *testing.T
	printed, said chan string
	lose          context.CancelCauseFunc // ends the proxy pod
	stop          context.CancelFunc
	done          chan error
}

func start(t *testing.T, change func(*Set), args ...string) *running {
	t.Helper()
	r := &running{t: t, printed: make(chan string, 100), said: make(chan string, 100), done: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	lost, lose := context.WithCancelCause(context.Background())
	r.stop, r.lose = stop, lose
	var d net.Dialer
	r.Set = &Set{
		Address: []string{"127.0.0.1"}, Via: Auto, DialTimeout: time.Minute, Log: slog.New(slog.DiscardHandler),
		CheckProxy: func(context.Context) error { return nil },
		Proxy: func(ctx context.Context, use func(context.Context, Dial) error) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			defer context.AfterFunc(lost, cancel)()
			if err := use(ctx, d.DialContext); err != nil {
				return err
			}
			return context.Cause(lost)
		},
		Print: func(line string) { r.printed <- line }, Say: func(line string) { r.said <- line },
	}
	for _, a := range args {
		parsed, err := forward.ParseArgs(strings.Fields(a))
		if err != nil {
			t.Fatal(err)
		}
		where := ""
		if len(args) > 1 {
			where, r.Many = "list", true
		}
		target, err := ParseTarget(parsed, where)
		if err != nil {
			t.Fatal(err)
		}
		r.Targets = append(r.Targets, target)
	}
	if change != nil {
		change(r.Set)
	}
	go func() { r.done <- r.Run(ctx) }()
	return r
}

// next is the next line of printed or said; it fails when Run ends first.
func (r *running) next(lines <-chan string) string {
	r.t.Helper()
	select {
	case line := <-lines:
		return line
	case err := <-r.done:
		r.t.Fatalf("it ended: %v", err)
	case <-time.After(time.Minute):
		r.t.Fatal("no line comes")
	}
	return ""
}

func (r *running) ends() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(time.Minute):
		r.t.Fatal("it does not end")
	}
	return nil
}

// echo is the port of a server that sends back what it gets.
func echo(t *testing.T) (port string) {
	t.Helper()
	_, port, _ = net.SplitHostPort(servertest.TCP(t, servertest.Echo))
	return port
}

// says hello and half-closes, and wants hello back.
func greet(t *testing.T, network, address string) {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = io.WriteString(c, "hello")
	if err == nil {
		err = c.(interface{ CloseWrite() error }).CloseWrite()
	}
	b, readErr := io.ReadAll(c)
	if err = errors.Join(err, readErr); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestHostsAreReachedThroughTheProxy(t *testing.T) {
	port, path := echo(t), filepath.Join(t.TempDir(), "s")
	r := start(t, nil, ":localhost:"+port+" unix:"+path+":localhost:"+port)
	line := r.next(r.printed)
	if !strings.HasSuffix(line, " -> localhost:"+port) {
		t.Errorf("%q", line)
	}
	greet(t, "tcp", strings.Fields(line)[2])
	if line := r.next(r.printed); line != "Forwarding from unix:"+path+" -> localhost:"+port {
		t.Errorf("%q", line)
	}
	greet(t, "unix", path)
	for _, st := range r.Stats() {
		if st.Target != "localhost:"+port || len(st.Local) != 1 || st.Total != 1 || st.Sent != 5 || st.LastError != "" {
			t.Errorf("%+v", st)
		}
	}
	r.stop()
	if err := r.ends(); err != nil {
		t.Error(err)
	}
}

func TestOneBrokenTargetDoesNotEndTheOthers(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := echo(t)
	_, number, _ := net.SplitHostPort(taken.Addr().String())
	r := start(t, nil, number+":localhost:1", ":localhost:"+port)
	greet(t, "tcp", strings.Fields(r.next(r.printed))[2])
	if line := r.next(r.said); !strings.Contains(line, "list: localhost:1: ") || !strings.Contains(line, "is in use") {
		t.Errorf("%q", line)
	}
	r.stop()
	if err := r.ends(); err != nil {
		t.Error(err)
	}
	// Of one target it is the end.
	r = start(t, nil, number+":localhost:1")
	if err := r.ends(); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("%v", err)
	}
	r.stop()
}

// An address that others reach is taken, and that is said.
func TestAnAddressOfOthersIsWarnedOf(t *testing.T) {
	port := echo(t)
	r := start(t, func(s *Set) { s.Address = []string{"0.0.0.0"} }, ":localhost:"+port)
	line := r.next(r.printed)
	at := strings.Fields(line)[2]
	if warned := r.next(r.said); !strings.HasPrefix(line, "Forwarding from 0.0.0.0:") || !strings.HasPrefix(warned, "warning: everybody who reaches "+at+" reaches localhost:"+port+" through it") {
		t.Errorf("%q, %q", line, warned)
	}
	r.stop()
	if err := r.ends(); err != nil {
		t.Error(err)
	}
}

func TestAConnectionThatFailsIsSaidCountedAndReset(t *testing.T) {
	r := start(t, func(s *Set) {
		s.DialTimeout = time.Millisecond
		s.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
			return use(ctx, func(ctx context.Context, _, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			})
		}
	}, ":db:5432")
	c, err := net.Dial("tcp", strings.Fields(r.next(r.printed))[2])
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
	if line := r.next(r.said); !strings.HasPrefix(line, "connection to db:5432: db:5432 gives the proxy pod no answer within --dial-timeout 1ms\n  hint: ") {
		t.Errorf("%q", line)
	}
	if st := r.Stats()[0]; !strings.Contains(st.LastError, "--dial-timeout") || st.LastErrorAt.IsZero() {
		t.Errorf("%+v", st)
	}
	r.stop()
	_ = r.ends()
}

// That nobody listens at the proxy pod is no word of the target.
func TestATunnelThatIsDownIsNotTheTargetsRefusal(t *testing.T) {
	carrier := &net.OpError{Op: "read", Addr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 27100}, Err: syscall.ECONNREFUSED}
	r := start(t, func(s *Set) {
		s.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
			return use(ctx, func(context.Context, string, string) (net.Conn, error) {
				return nil, fmt.Errorf("%w: too late (%w)", tunnel.ErrNoSession, carrier)
			})
		}
	}, ":db:5432")
	if c, err := net.Dial("tcp", strings.Fields(r.next(r.printed))[2]); err == nil {
		defer c.Close()
	}
	if line := r.next(r.said); !strings.HasPrefix(line, "connection to db:5432: the tunnel is down: too late (") {
		t.Errorf("%q", line)
	}
	r.stop()
	_ = r.ends()
}

func TestTheEndOfTheProxyPodIsTheEnd(t *testing.T) {
	lost := hint.Newf(hint.TunnelLost, "", "the tunnel is lost")
	for _, args := range [][]string{{":localhost:1"}, {":localhost:1", ":localhost:2"}} {
		r := start(t, nil, args...)
		r.next(r.printed)
		r.lose(lost)
		if err := r.ends(); !errors.Is(err, lost) || hint.CodeOf(err) != hint.TunnelLost {
			t.Errorf("%q: %v", args, err)
		}
		r.stop()
	}
}

func TestWithoutAProxyPodNothingBegins(t *testing.T) {
	refused := hint.Newf(hint.Forbidden, "ask for a Role", "your account may not")
	r := start(t, func(s *Set) { s.CheckProxy = func(context.Context) error { return refused } }, ":localhost:1")
	if err := r.ends(); hint.CodeOf(err) != hint.Forbidden || !strings.Contains(err.Error(), "localhost:1 needs a proxy pod, because it is no pod") {
		t.Errorf("%v", err)
	}
	r.stop()
	r = start(t, func(s *Set) { s.Via = Pods }, ":localhost:1")
	if err := r.ends(); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
		t.Errorf("--via pods: %v", err)
	}
	r.stop()
	left := hint.Newf(hint.RestoreIncomplete, "", "it is left")
	r = start(t, func(s *Set) {
		s.Proxy = func(ctx context.Context, use func(context.Context, Dial) error) error {
			return errors.Join(use(ctx, nil), left)
		}
	}, ":localhost:1")
	r.next(r.printed)
	r.stop()
	if err := r.ends(); hint.CodeOf(err) != hint.RestoreIncomplete {
		t.Errorf("a pod that is left: %v", err)
	}
}

// Targets that come begin, also the first that needs the proxy pod, and those that go end; without any it goes on.
func TestTargetsComeAndGo(t *testing.T) {
	port := echo(t)
	parsed, err := forward.ParseArgs([]string{":localhost:" + port})
	if err != nil {
		t.Fatal(err)
	}
	target, err := ParseTarget(parsed, "")
	if err != nil {
		t.Fatal(err)
	}
	now := make(chan []Target)
	r := start(t, func(s *Set) {
		s.Many = true
		s.Follow = func(ctx context.Context, changed func([]Target)) {
			for {
				select {
				case list := <-now:
					changed(list)
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for range 2 {
		now <- []Target{target}
		address := strings.Fields(r.next(r.printed))[2]
		greet(t, "tcp", address)
		if st := r.Stats(); len(st) != 1 {
			t.Errorf("%+v", st)
		}
		now <- []Target{target} // as before
		now <- nil
		if line := r.next(r.said); line != "localhost:"+port+" is gone" {
			t.Errorf("%q", line)
		}
		for len(r.Stats()) > 0 {
			time.Sleep(time.Millisecond)
		}
		if c, err := net.Dial("tcp", address); err == nil {
			t.Error("its port is open")
			_ = c.Close()
		}
	}
	r.stop()
	if err := r.ends(); err != nil {
		t.Error(err)
	}
}
