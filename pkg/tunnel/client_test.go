package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestRefusals: the error at the laptop is the one that the pod met.
func TestRefusals(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	_ = ln.Close()
	errs := map[string]error{
		"unreachable:1": &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
		"no-net:1":      &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)},
		"slow:1":        &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded},
		"forbidden:1":   fmt.Errorf("metadata service: %w", syscall.EACCES),
		"nowhere:1":     &net.DNSError{Err: "no such host", Name: "nowhere", IsNotFound: true},
		"mute:1":        &net.DNSError{Err: "server misbehaving", Name: "mute", IsTemporary: true},
		"late:1":        &net.DNSError{Err: "i/o timeout", Name: "late", IsTimeout: true},
		"strange:1":     errors.New("the moon is full"),
	}
	onAll(t, func(t *testing.T, e *ends) {
		e.server.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if err := errs[address]; err != nil {
				return nil, err
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		e.start()
		dial := func(address string) error {
			c, err := e.client.DialContext(context.Background(), "tcp", address)
			if err == nil {
				_ = c.Close()
				t.Errorf("%s: connected", address)
			}
			return err
		}
		wantErr(t, "nobody", dial(nobody), syscall.ECONNREFUSED)
		wantErr(t, "unreachable", dial("unreachable:1"), syscall.EHOSTUNREACH)
		wantErr(t, "no net", dial("no-net:1"), syscall.ENETUNREACH)
		wantErr(t, "slow", dial("slow:1"), syscall.ETIMEDOUT)
		wantErr(t, "forbidden", dial("forbidden:1"), syscall.EACCES)
		var dns *net.DNSError
		if err := dial("nowhere:1"); !errors.As(err, &dns) || !dns.IsNotFound {
			t.Errorf("nowhere: %v", err)
		}
		if err := dial("mute:1"); !errors.As(err, &dns) || dns.IsNotFound || dns.Name != "mute" {
			t.Errorf("mute: %v", err)
		}
		wantErr(t, "late", dial("late:1"), syscall.ETIMEDOUT)
		if err := dial("strange:1"); err == nil || err.Error() != "dial strange:1 through the tunnel: the moon is full" {
			t.Errorf("strange: %v", err)
		}
		_, err := e.client.DialContext(context.Background(), "unix", "a:53")
		var unknown net.UnknownNetworkError
		if !errors.As(err, &unknown) {
			t.Errorf("unix: %v", err)
		}
		e.wantNoStreams()
	})
}

// TestInboundRefused: the pod learns that the local process refused, also when it only writes.
func TestInboundRefused(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.client.Handle = func(_ context.Context, st *Stream) { _ = st.Refuse(syscall.ECONNREFUSED) }
		e.start().waitReady()
		st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = st.Write(make([]byte, maxWindow))
		wantErr(t, "write", err, syscall.EPIPE)
		_, err = st.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNREFUSED)
		wantErr(t, "status", st.WaitStatus(context.Background()), syscall.ECONNREFUSED)
		_ = st.Close()
		e.wantNoStreams()
	})
}

func TestWithoutHandlers(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.client.Handle = nil
	e.start().waitReady()
	st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.WaitStatus(context.Background()); err == nil {
		t.Error("inbound: connected")
	}
	_ = st.Close()
	if _, err := e.client.DialContext(context.Background(), "tcp", "a:1"); err == nil {
		t.Error("dial: connected")
	}
	e.wantNoStreams()
}

// TestDialGivesUp: when the laptop's context ends, so does the pod's dial.
func TestDialGivesUp(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		dialling, gaveUp := make(chan struct{}), make(chan struct{})
		e.server.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			close(dialling)
			<-ctx.Done()
			close(gaveUp)
			return nil, ctx.Err()
		}
		e.start()
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			<-dialling
			cancel()
		}()
		_, err := e.client.DialContext(ctx, "tcp", "slow:1")
		wantErr(t, "dial", err, context.Canceled)
		<-gaveUp
		e.wantNoStreams()
	})
}

func TestNoSession(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	if _, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"}); !errors.Is(err, ErrNoSession) {
		t.Errorf("Open: %v", err)
	}
	broken := errors.New("pod is gone")
	e.client.Carrier = func(context.Context) (net.Conn, string, error) { return nil, "", broken }
	e.start()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := e.client.DialContext(ctx, "tcp", "a:1")
	wantErr(t, "dial", err, ErrNoSession)
	wantErr(t, "dial", err, context.DeadlineExceeded)
	if _, known := e.client.Info(); known {
		t.Error("Info without a session")
	}
	e.close()
	_, err = e.client.DialContext(context.Background(), "tcp", "a:1")
	wantErr(t, "after Run", err, ErrClosed)
	if new(Client).Run(context.Background()) == nil {
		t.Error("a client without a key ran")
	}
}

// What the carrier met is told, and is not what the target has.
func TestADialWithoutATunnelHasNoErrorOfTheCarriers(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	met := make(chan struct{})
	var once sync.Once
	e.client.Carrier = func(context.Context) (net.Conn, string, error) {
		once.Do(func() { close(met) })
		return nil, "", &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EHOSTUNREACH}
	}
	e.start()
	<-met
	for e.client.State().Err == nil {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := e.client.DialContext(ctx, "tcp", "a:1")
	wantErr(t, "dial", err, ErrNoSession)
	if !strings.Contains(err.Error(), syscall.EHOSTUNREACH.Error()) || errors.Is(err, syscall.EHOSTUNREACH) {
		t.Error(err)
	}
}

// A session outlives its carrier: a dial that has no answer then is not refused by its target's silence.
func TestADialOverASessionWithoutACarrier(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	first := make(chan net.Conn, 1)
	dial := e.client.Carrier
	var dialled atomic.Bool
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		if dialled.Swap(true) {
			return nil, "", errors.New("cut")
		}
		c, peer, err := dial(ctx)
		first <- c
		return c, peer, err
	}
	e.start().waitReady()
	_ = (<-first).Close()
	for e.client.State().Phase.Carries() {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := e.client.DialContext(ctx, "tcp", "a:1")
	wantErr(t, "dial", err, ErrNoSession)
	wantErr(t, "dial", err, context.DeadlineExceeded)
}

// TestReconnect cuts the carrier of a session that does not outlive it, under load: each time all streams are reset on both ends, a
// dial that waits gets through, and the pod is told again that the laptop is ready.
func TestReconnect(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.server.Dial = echoTCP(t)
		e.client.ResumeWindow = -1
		carriers := make(chan net.Conn, 100)
		dial := e.client.Carrier
		e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
			c, peer, err := dial(ctx)
			if err == nil {
				carriers <- c
			}
			return c, peer, err
		}
		var mu sync.Mutex
		var phases []Phase
		e.client.OnState = func(s State) { mu.Lock(); defer mu.Unlock(); phases = append(phases, s.Phase) }
		e.client.SetReady(true)
		e.start()
		const cuts = 3
		for range cuts {
			c, err := e.client.DialContext(context.Background(), "tcp", "echo:7")
			if err != nil {
				t.Fatal(err)
			}
			for !<-e.ready { //nolint:revive // false is what a lost session says
			}
			pod, laptop := e.streams()
			var wg sync.WaitGroup
			for _, st := range []net.Conn{pod, laptop, c} {
				wg.Go(func() {
					_, err := io.Copy(st, onlyReader{st})
					wantErr(t, "copy", err, syscall.ECONNRESET)
				})
			}
			_, _ = pod.Write([]byte("round and round"))
			_, _ = c.Write([]byte("round and round"))
			_ = (<-carriers).Close()
			wg.Wait()
			_, _, _ = pod.Close(), laptop.Close(), c.Close()
		}
		e.waitReady()
		mu.Lock()
		defer mu.Unlock()
		if phases[0] != Connecting || phases[1] != Ready || phases[2] != Reconnecting || phases[3] != Ready {
			t.Errorf("phases %v", phases)
		}
		e.wantNoStreams()
	})
}

// TestReadyFollowsTheLaptop: OnReady is called at each change, and only then.
func TestReadyFollowsTheLaptop(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	for _, ready := range []bool{true, false, true} {
		e.client.SetReady(ready)
		e.client.SetReady(ready)
		if got := <-e.ready; got != ready {
			t.Errorf("told %v, want %v", got, ready)
		}
	}
	e.close()
	if <-e.ready {
		t.Error("ready without a session")
	}
	if len(e.ready) > 0 {
		t.Errorf("told %d times too often", len(e.ready))
	}
	if e.server.Connected() {
		t.Error("connected after the end")
	}
}

// TestServerStopsWithOpenStreams: when Serve ends, the laptop's streams are reset.
func TestServerStopsWithOpenStreams(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	open := make(chan struct{})
	wantReset := func(st *Stream) {
		_, err := st.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNRESET)
	}
	e.client.Handle = func(_ context.Context, st *Stream) {
		close(open)
		wantReset(st)
	}
	e.start().waitReady()
	pod, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err != nil {
		t.Fatal(err)
	}
	<-open
	e.close()
	wantReset(pod)
	_ = pod.Close()
}

// What is degraded carries: nobody may take it for lost.
func TestWhatCarries(t *testing.T) {
	for phase, want := range map[Phase]bool{Connecting: false, Ready: true, Degraded: true, Reconnecting: false, Lost: false} {
		if got := phase.Carries(); got != want {
			t.Errorf("%s: %v, want %v", phase, got, want)
		}
	}
}
