package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/hint"
)

// wantFinal waits for Run's error and checks that it is final, with a next step.
func wantFinal(t *testing.T, e *ends, want error) {
	t.Helper()
	err := <-e.ended
	wantErr(t, "Run", err, want)
	if hint.CodeOf(err) != hint.TunnelLost || hint.Of(err) == "" {
		t.Errorf("exit code %d, hint %q", hint.CodeOf(err), hint.Of(err))
	}
	_, err = e.client.DialContext(context.Background(), "tcp", "a:1")
	wantErr(t, "dial afterwards", err, ErrClosed)
	wantErr(t, "dial afterwards", err, want)
	if s := e.client.State(); s.Phase != Lost || !errors.Is(s.Err, want) {
		t.Errorf("state %v", s)
	}
}

// waitRefused waits until so many connections were refused: the count follows the close.
func (e *ends) waitRefused(n uint64) {
	e.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); e.server.Refused() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			e.t.Fatalf("%d refused, want %d", e.server.Refused(), n)
		}
	}
	if got := e.server.Refused(); got > n {
		e.t.Errorf("%d refused, want %d", got, n)
	}
}

func TestAnotherLaptopIsRefused(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.client.Key = newKey(t) // an old key, a neighbour's, a key made up
		e.start()
		wantFinal(t, e, ErrKeyRefused)
		e.waitRefused(1)
		if e.server.Connected() {
			t.Error("connected")
		}
	})
}

func TestAnotherPodIsRefused(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind.name, func(t *testing.T) {
			n := kind.make(t)
			e := newEnds(t, n)
			e.client = nil
			e.start()
			conn, err := n.dial(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			_, _, err = dialHandshake(context.Background(), conn, e.laptop, newKey(t).Fingerprint(), hello{protocol: Protocol}, testAttach())
			wantErr(t, "handshake", err, ErrServerKey)
			e.waitRefused(1)
		})
	}
}

// twoPods is a client whose first carrier goes to one pod, and every later one to another that has another key.
// names are the peers' names, the last one again and again.
func twoPods(t *testing.T, names ...string) (e, other *ends, carriers chan net.Conn) {
	e, other = newEnds(t, pipeNetwork(t)), newEnds(t, pipeNetwork(t))
	other.server.Client = e.client.Key.Fingerprint()
	other.client = nil
	other.start()
	carriers = make(chan net.Conn, 100)
	dial := e.network.dial
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, err := dial(ctx)
		dial = other.network.dial
		name := names[0]
		if len(names) > 1 {
			names = names[1:]
		}
		carriers <- c
		return c, name, err
	}
	e.client.SetReady(true)
	return e, other, carriers
}

// TestPodIsPinnedOnFirstContact: the same peer with another key gets no session, and after a while that is final.
func TestPodIsPinnedOnFirstContact(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e, other, carriers := twoPods(t, "pod-1")
		e.start().waitReady()
		defer e.close()
		defer other.close()
		if got := e.client.Pinned()["pod-1"]; got != e.server.Key.Fingerprint() {
			t.Errorf("pinned %v", got)
		}
		start := time.Now()
		_ = (<-carriers).Close()
		wantFinal(t, e, ErrServerKey)
		if took := time.Since(start); took < serverKeyPatience || took > serverKeyPatience+backoffMax {
			t.Errorf("final after %v", took)
		}
		if other.server.Connected() || len(other.ready) > 0 {
			t.Error("a session with the other key")
		}
	})
}

// TestNewPodIsPinnedAnew: another peer may have another key, also when its name comes later than its key.
func TestNewPodIsPinnedAnew(t *testing.T) {
	for _, names := range [][]string{{"pod-1", "pod-2"}, {"pod-1", "pod-1", "pod-1", "pod-1", "pod-2"}} {
		bubble(t, func(t *testing.T) {
			e, other, carriers := twoPods(t, names...)
			e.start().waitReady()
			defer e.close()
			defer other.close()
			_ = (<-carriers).Close()
			if !<-other.ready {
				t.Error("the second pod was told not ready")
			}
			if len(e.client.Pinned()) != 2 {
				t.Errorf("pinned %v", e.client.Pinned())
			}
		})
	}
}

func TestVersionsMustMatch(t *testing.T) {
	for _, version := range []int{Protocol - 1, Protocol + 1} {
		// A pod of another version, and a laptop of ours.
		e := newEnds(t, tcpNetwork(t))
		var wg sync.WaitGroup
		wg.Go(func() {
			conn, err := e.network.ln.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			c, err := acceptTLS(context.Background(), conn, e.server.Key, only(e.server.Client))
			if err != nil {
				t.Error(err)
				return
			}
			err = acceptHello(context.Background(), c, hello{protocol: version, info: Info{Version: "v9", Search: []string{"secret"}}})
			wantVersion(t, err, Protocol, version)
		})
		err := e.client.Run(context.Background())
		wantVersion(t, err, Protocol, version)
		if got := hint.Of(err); version > Protocol && !strings.Contains(got, "upgrade bridge on the laptop to v9") ||
			version < Protocol && !strings.Contains(got, "the pod is the older side") {
			t.Errorf("pod %d: hint %q", version, got)
		}
		wg.Wait()

		// A laptop of another version, and a pod of ours: its log says which side to upgrade.
		var log syncBuffer
		e.server.Log = slog.New(slog.NewTextHandler(&log, nil))
		e.client = nil
		e.start()
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: version, info: Info{Version: "v9"}}, testAttach())
		wantVersion(t, err, version, Protocol)
		e.close()
		if got := log.String(); version < Protocol && !strings.Contains(got, "the laptop is the older side") ||
			version > Protocol && !strings.Contains(got, "the pod is the older side") {
			t.Errorf("laptop %d: log %s", version, got)
		}
		_ = e.network.ln.Close()
	}
}

func wantVersion(t *testing.T, err error, laptop, pod int) {
	t.Helper()
	var v *VersionError
	if !errors.As(err, &v) || v.Laptop != laptop || v.Pod != pod {
		t.Errorf("%v, want laptop %d and pod %d", err, laptop, pod)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }

// TestGarbageBeforeTheHandshake: strangers get nothing, and the laptop still gets in.
func TestGarbageBeforeTheHandshake(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start()
	for name, garbage := range map[string][]byte{
		"http":        []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
		"random":      randomBytes(10_000),
		"big record":  append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 10_000)...),
		"nothing":     nil,
		"hello alone": []byte("BRDG\x00\x01\x00\x02{}"),
	} {
		c, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(garbage)
		_ = c.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(c)
		if len(got) > 7 { // an alert
			t.Errorf("%s: answered %q", name, got)
		}
		_ = c.Close()
	}
	// A laptop without a certificate, and one that speaks TLS 1.2.
	for _, config := range []*tls.Config{{InsecureSkipVerify: true}, {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}} {
		c, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(tls.Client(c, config)); err == nil || len(got) > 0 {
			t.Errorf("read %q, %v", got, err)
		}
		_ = c.Close()
	}
	e.waitReady()
	e.waitRefused(7)
}

// TestReplay sends the bytes of a whole good session again.
func TestReplay(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	var tape syncBuffer
	dial := e.client.Carrier
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, peer, err := dial(ctx)
		return taped{c, &tape}, peer, err
	}
	e.start().waitReady()
	e.client.SetReady(true)
	<-e.ready
	c, err := e.network.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(tape.String())); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	e.waitRefused(1)
	if !e.server.Connected() {
		t.Error("the good session is gone")
	}
}

type taped struct {
	net.Conn
	tape io.Writer
}

func (c taped) Write(p []byte) (int, error) {
	_, _ = c.tape.Write(p)
	return c.Conn.Write(p)
}

// TestFewUnknownAtOnce: one more than allowed is closed unread, at once; when one leaves, the next gets in.
func TestFewUnknownAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		e.client = nil
		e.start()
		defer e.close()
		start := time.Now()
		var silent []net.Conn
		for range maxUnknown {
			c, err := e.network.dial(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			silent = append(silent, c)
		}
		c, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || time.Since(start) > 0 {
			t.Errorf("one too many: %v after %v", err, time.Since(start))
		}
		if e.server.Refused() != 1 {
			t.Errorf("%d refused", e.server.Refused())
		}
		_ = silent[0].Close()
		e.waitRefused(2)
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: Protocol}, testAttach())
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		for _, c := range silent {
			_ = c.Close()
		}
	})
}

// TestHandshakeIsBounded: the pod reads no more than 4 KiB of somebody it does not know.
func TestHandshakeIsBounded(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	var log syncBuffer
	e.server.Log = slog.New(slog.NewTextHandler(&log, nil))
	e.client = nil
	e.start()
	c, err := e.network.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	// A client hello may have 64 KiB by TLS's own rules; this one announces 60,000 bytes.
	_, _ = c.Write([]byte{22, 3, 1, 0x10, 0, 1, 0, 0xea, 0x60})
	_, _ = c.Write(make([]byte, 0x1000-4))
	_, _ = c.Write([]byte{22, 3, 3, 0x10, 0})
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	_ = c.Close()
	e.waitRefused(1)
	e.close()
	if !strings.Contains(log.String(), errHandshakeTooLong.Error()) {
		t.Errorf("refused for another reason: %s", log.String())
	}
}

// TestNewSessionDisplaces: the same laptop on a new carrier; the old session's streams are reset at once.
func TestNewSessionDisplaces(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		e.client.SetReady(true)
		if !<-e.ready {
			t.Error("not ready")
		}
		pod, laptop := e.streams()
		var wg sync.WaitGroup
		for _, st := range []*Stream{pod, laptop} {
			wg.Go(func() {
				_, err := st.Read(make([]byte, 1))
				wantErr(t, "old session's read", err, syscall.ECONNRESET)
			})
		}
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: Protocol}, testAttach())
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if <-e.ready {
			t.Error("still ready without a session")
		}
		_, _ = pod.Close(), laptop.Close()
		_ = l.Close()
		for range 2 { // the client comes back, and says that it is ready
			if ready := <-e.ready; ready {
				break
			}
		}
		e.waitReady()
		pod, laptop = e.streams()
		send(t, pod, "on the new one")
		wantRead(t, laptop, "on the new one")
		_, _ = pod.Close(), laptop.Close()
		e.wantNoStreams()
	})
}

// TestProtocolViolations: a peer that holds the key but breaks the rules loses its session, no more.
func TestProtocolViolations(t *testing.T) {
	for name, frames := range map[string]string{
		"not yamux":              "\x01\x00\x00\x00",
		"wrong end's id":         "\x00\x01\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00",
		"control message":        "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x04\x01\x00\x01\x00",
		"beyond the window":      "\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x00\x00\x00",
		"control stream's end":   "\x00\x01\x00\x04\x00\x00\x00\x01\x00\x00\x00\x00",
		"control stream's reset": "\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00",
	} {
		e := newEnds(t, tcpNetwork(t))
		e.client = nil
		e.start()
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		l, _, err := dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: Protocol}, testAttach())
		if err != nil {
			t.Fatal(err)
		}
		const openControl = "\x00\x01\x00\x01\x00\x00\x00\x01\x00\x1c\x00\x00"
		data := openControl + frames + strings.Repeat("\x00", 20)
		if _, err := l.Write(append(appendSegment(nil, segment{typ: segmentData, length: len(data)}), data...)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, l) // until the pod has closed
		_ = l.Close()
		for e.server.Connected() {
			time.Sleep(time.Millisecond)
		}
		e.close()
		t.Log(name)
	}
}
