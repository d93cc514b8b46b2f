package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/hint"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The library of the test's server lingers for a second; DialPod does not use it.
		goleak.IgnoreAnyFunction("github.com/moby/spdystream.(*Connection).shutdown"),
		// client-go's rate limiters and HTTP/2 transports end with the process.
		goleak.IgnoreAnyFunction("net/http.(*http2ClientConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// forwardServer answers port-forward requests as the kubelet does, with Kubernetes' own SPDY server.
type forwardServer struct {
	*httptest.Server
	webSockets bool
	requests   atomic.Int32
	ended      sync.WaitGroup // one for each connection
	// before, if set, may answer a request in the place of the kubelet: a load balancer.
	before func(w http.ResponseWriter, r *http.Request) (answered bool)
	// handle is the pod's port. What it returns goes on the error stream.
	handle func(data io.ReadWriteCloser, port string) error
}

func newForwardServer(t *testing.T, webSockets bool, handle func(io.ReadWriteCloser, string) error) (*forwardServer, *Client) {
	t.Helper()
	s := &forwardServer{webSockets: webSockets, handle: handle}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
		s.ended.Wait()
	})
	cfg := &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	c, err := NewForConfig(cfg, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func (s *forwardServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.ended.Add(1)
	defer s.ended.Done()
	s.requests.Add(1)
	if s.before != nil && s.before(w, r) {
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/api/v1/namespaces/shop/pods/orders-0/portforward") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods \"gone\" not found","reason":"NotFound","details":{"name":"gone","kind":"pods"},"code":404}`)
		return
	}
	streams := make(chan httpstream.Stream, 2)
	accept := func(st httpstream.Stream, replied <-chan struct{}) error {
		go func() { <-replied; streams <- st }()
		return nil
	}
	var conn httpstream.Connection
	if websocket.IsWebSocketUpgrade(r) {
		if !s.webSockets {
			http.Error(w, "no such thing here", http.StatusBadRequest)
			return
		}
		up := websocket.Upgrader{Subprotocols: websocket.Subprotocols(r), ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		if conn, err = spdy.NewServerConnection(portforward.NewTunnelingConnection("server", ws), accept); err != nil {
			return
		}
	} else {
		w.Header().Set(httpstream.HeaderProtocolVersion, portforward.PortForwardProtocolV1Name)
		if conn = spdy.NewResponseUpgrader().UpgradeResponse(w, r, accept); conn == nil {
			return
		}
	}
	var pairs sync.WaitGroup
	defer pairs.Wait()
	waits := map[string]httpstream.Stream{} // for the other one of its pair
	for {
		var one httpstream.Stream
		select {
		case one = <-streams:
		case <-conn.CloseChan():
			_ = conn.Close()
			return
		}
		id := one.Headers().Get(corev1.PortForwardRequestIDHeader)
		other, ok := waits[id]
		if !ok {
			waits[id] = one
			continue
		}
		delete(waits, id)
		if one.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
			one, other = other, one
		}
		pairs.Go(func() { s.pair(one, other) })
	}
}

// pair serves one pair of streams.
func (s *forwardServer) pair(data, errs httpstream.Stream) {
	for _, st := range []httpstream.Stream{data, errs} {
		// Does nothing to a stream that was replied to. One whose client was gone by then would wait for its reply when it is closed, for ever.
		_ = st.(interface{ Refuse() error }).Refuse()
	}
	if err := s.handle(data, data.Headers().Get(corev1.PortHeader)); err != nil {
		_ = data.Close() // the kubelet's order: the data ends first
		_, _ = io.WriteString(errs, err.Error())
	}
	_ = data.Close()
	_ = errs.Close()
}

func echoPort(data io.ReadWriteCloser, _ string) error {
	_, err := io.Copy(data, data)
	return err
}

func dial(t *testing.T, c *Client, port int) net.Conn {
	t.Helper()
	conn, err := c.DialPod(t.Context(), "shop", "orders-0", port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// both runs test over a WebSocket and over SPDY.
func both(t *testing.T, test func(t *testing.T, webSockets bool)) {
	t.Run("websocket", func(t *testing.T) { test(t, true) })
	t.Run("spdy", func(t *testing.T) { test(t, false) })
}

func TestDialPodCarriesBytesExactlyBothWays(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		_, c := newForwardServer(t, ws, echoPort)
		conn := dial(t, c, 8080)
		if got := conn.RemoteAddr().String(); got != "pod/shop/orders-0:8080" {
			t.Errorf("RemoteAddr %q", got)
		}
		const size = 8 << 20
		sent, done := sha256.New(), make(chan error, 1)
		go func() {
			rnd := rand.New(rand.NewPCG(1, 2))
			b := make([]byte, 100_000)
			var err error
			for left := size; left > 0 && err == nil; {
				n := min(left, 1+rnd.IntN(len(b)))
				for i := range n {
					b[i] = byte(rnd.Uint32())
				}
				sent.Write(b[:n])
				_, err = conn.Write(b[:n])
				left -= n
			}
			done <- errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite())
		}()
		got := sha256.New()
		n, err := io.Copy(got, conn)
		if werr := <-done; werr != nil {
			t.Error(werr)
		}
		if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Errorf("%d bytes back, %v; want the same %d", n, err, size)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write after CloseWrite: %v", err)
		}
	})
}

// Each connection is one of its own, and all but the first have what the handshake of one before has made.
func TestLaterConnectionsResumeTheTLSSession(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		s, c := newForwardServer(t, ws, echoPort)
		var resumed []bool
		s.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if ws == websocket.IsWebSocketUpgrade(r) { // not the try that fails
				resumed = append(resumed, r.TLS.DidResume)
			}
			return false
		}
		for range 3 {
			exchange(t, dial(t, c.In("shop"), 80))
		}
		if !slices.Equal(resumed[1:], []bool{true, true}) {
			t.Errorf("resumed: %v", resumed)
		}
	})
}

// A connection that has ended well leaves its port-forward to the next one to the same pod, and to that alone; one that has not leaves nothing.
func TestAPortForwardCarriesOneConnectionAfterTheOther(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		s, c := newForwardServer(t, ws, func(data io.ReadWriteCloser, port string) error {
			switch port {
			case "9":
				return errors.New("connection refused")
			case "1":
				return nil
			}
			return echoPort(data, port)
		})
		open := func(uid string, port int) net.Conn {
			t.Helper()
			conn, err := c.DialEndpoint(t.Context(), Endpoint{Namespace: "shop", Pod: "orders-0", UID: types.UID(uid), Port: port})
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		ends := func(conn net.Conn, said string) {
			t.Helper()
			_, err := io.WriteString(conn, said)
			err = errors.Join(err, conn.(*podConn).CloseWrite())
			got, rerr := io.ReadAll(conn)
			if err := errors.Join(err, rerr, conn.Close()); err != nil || string(got) != said {
				t.Errorf("%q, %v", got, err)
			}
		}
		ends(open("a", 80), "first") // in SPDY after a WebSocket that is refused
		made := s.requests.Load()
		fresh := func(what string, want int32) {
			t.Helper()
			if now := s.requests.Load(); now-made != want {
				t.Errorf("%s: %d port-forwards more, want %d", what, now-made, want)
			}
			made = s.requests.Load()
		}
		for _, port := range []int{80, 81} {
			for _, said := range []string{"", "short", strings.Repeat("long", 100_000)} {
				ends(open("a", port), said)
			}
		}
		fresh("one after the other", 0)
		ends(open("b", 80), "other")
		fresh("another pod", 1)
		one, two := open("a", 80), open("a", 80)
		ends(one, "one")
		ends(two, "two")
		fresh("two at once", 1)

		// What its last owner does to a connection that is closed is nothing to the next.
		conn := open("a", 80)
		_ = one.SetDeadline(time.Unix(1, 0))
		_ = two.SetDeadline(time.Unix(1, 0))
		_, _ = one.Write([]byte("x"))
		_ = errors.Join(one.Close(), two.Close())
		ends(conn, "on")
		fresh("a closed one", 0)

		for range 2 { // both that wait
			_ = open("a", 80).(*podConn).Reset()
		}
		ends(open("a", 80), "after a reset")
		fresh("reset", 1)
		_ = open("a", 80).Close()
		ends(open("a", 80), "after a close")
		fresh("closed before its end", 1)
		conn = open("a", 9)
		if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Error(err)
		}
		_ = conn.Close()
		ends(open("a", 80), "after a refusal")
		fresh("refused", 1)

		conn = open("a", 1)
		_, err := io.ReadAll(conn) // the other side ends first
		if err := errors.Join(err, conn.(*podConn).CloseWrite(), conn.Close()); err != nil {
			t.Error(err)
		}
		ends(open("a", 80), "after an end")
		fresh("ended by the other side", 1)

		// One whose connection to the API server has gone meanwhile is nobody's error.
		for _, waits := range c.idle.of["a"] {
			_ = waits.NetConn().Close()
		}
		ends(open("a", 80), "again")
		fresh("gone meanwhile", 1)
		c.idle.drop("a")
		c.idle.drop("b")
		if c.idle.size != 0 || len(c.idle.of) != 0 {
			t.Errorf("%d wait, %v", c.idle.size, c.idle.of)
		}
	})
}

// A connection that is left when it has said all, and before the other side's end of it, leaves its port-forward to the next one: the container runtime
// takes a second to end it. What comes of it meanwhile is in nobody's way.
func TestAPortForwardIsLeftBeforeTheEnd(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		heard, late, sent := make(chan string, 1), make(chan int, 1), make(chan struct{}, 1)
		s, c := newForwardServer(t, ws, func(data io.ReadWriteCloser, port string) error {
			switch port {
			case "9":
				return errors.New("connection refused")
			case "80":
				return echoPort(data, port)
			}
			_, _ = io.WriteString(data, "!")
			said, _ := io.ReadAll(data)
			heard <- string(said)
			select {
			case more := <-late:
				_, _ = data.Write(make([]byte, more))
				sent <- struct{}{}
			case <-t.Context().Done(): // the test has failed
			}
			return nil
		})
		open := func(port int) net.Conn {
			t.Helper()
			conn, err := c.DialEndpoint(t.Context(), Endpoint{Namespace: "shop", Pod: "orders-0", UID: "a", Port: port})
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		exchange(t, open(80)) // in SPDY after a WebSocket that is refused; it stays
		leave := func(said string, reads bool, more int) {
			t.Helper()
			conn := open(5)
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			conn.(*podConn).timer.Stop() // nobody may be there to read the answer to a ping
			end := make(chan error, 1)
			if reads {
				go func() {
					_, err := conn.Read(make([]byte, 1))
					end <- err
				}()
			}
			if _, err := io.WriteString(conn, said); err != nil {
				t.Fatal(err)
			}
			_ = conn.(*podConn).CloseWrite()
			if got := <-heard; got != said {
				t.Errorf("it has heard %d bytes of %d", len(got), len(said))
			}
			if reads {
				for conn.(*podConn).c.rmu.TryLock() {
					conn.(*podConn).c.rmu.Unlock()
					time.Sleep(time.Millisecond)
				}
			}
			made := s.requests.Load()
			if left := conn.(*podConn).Leave(); left != (len(said) <= maxLittle) {
				t.Errorf("%d bytes: left: %v", len(said), left)
			}
			_ = conn.Close()
			next := open(80)
			echoes(t, next)
			if reads {
				if err := <-end; !errors.Is(err, net.ErrClosed) {
					t.Errorf("read: %v", err)
				}
			}
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
			want := int32(0)
			if len(said) > maxLittle {
				want = 1
			}
			if now := s.requests.Load(); now-made != want {
				t.Errorf("%d bytes: %d port-forwards more, want %d", len(said), now-made, want)
			}
			late <- more
			for told := false; !told; { // reads past what the other one says
				echoes(t, next)
				select {
				case <-sent:
					told = true
				default:
				}
			}
			echoes(t, next)
			_ = next.(*podConn).CloseWrite()
			if rest, err := io.ReadAll(next); len(rest) > 0 || err != nil {
				t.Errorf("%d bytes, %v", len(rest), err)
			}
			_ = next.Close()
		}
		for _, reads := range []bool{false, true} {
			leave("", reads, 1000)
			leave("hello", reads, 1000)
			leave(strings.Repeat("x", maxLittle), reads, 1000)
		}
		leave(strings.Repeat("x", maxLittle+1), false, 0)
		leave("hello", true, maxSkipped+1)
		if waits := len(c.idle.of["a"]); waits != 0 {
			t.Errorf("%d wait with much that was said to earlier connections", waits)
		}

		// The path dies while it waits, with somebody in Read: the next connection takes a new one.
		conn := open(5)
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		end := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			end <- err
		}()
		_ = conn.(*podConn).CloseWrite()
		<-heard
		if !conn.(*podConn).Leave() {
			t.Error("not left")
		}
		for _, waits := range c.idle.of["a"] {
			_ = waits.NetConn().Close()
		}
		if err := <-end; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		next := open(80)
		exchange(t, next)
		late <- 0
		<-sent

		// Before an answer it may be that nothing took the connection.
		for _, port := range []int{80, 9} {
			conn := open(port)
			_ = conn.(*podConn).CloseWrite()
			if conn.(*podConn).Leave() {
				t.Errorf("port %d was left unheard", port)
			}
			_, err := io.ReadAll(conn)
			if got, want := errors.Is(err, syscall.ECONNREFUSED), port == 9; got != want {
				t.Errorf("port %d: %v", port, err)
			}
			if conn.(*podConn).Leave() {
				t.Errorf("port %d was left at its end", port)
			}
			_ = conn.Close()
		}
		// Who wants the carrier closed now waits for what was said on it.
		conn = open(5)
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "x")
		_ = conn.(*podConn).CloseWrite()
		if !conn.(*podConn).Leave() {
			t.Error("not left")
		}
		if ws { // either way
			next := open(80)
			go func() {
				_, err := next.Read(make([]byte, 1))
				end <- err
			}()
			_ = next.(*podConn).Reset()
			if err := <-end; !errors.Is(err, net.ErrClosed) {
				t.Errorf("read: %v", err)
			}
		} else {
			c.idle.drop("a")
		}
		if got := <-heard; got != "x" {
			t.Errorf("%q", got)
		}
		late <- 0
		<-sent
	})
}

// echoes has a byte there and back.
func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// exchange is a connection's whole life.
func exchange(t *testing.T, c net.Conn) {
	t.Helper()
	echoes(t, c)
	_ = c.Close()
}

// BenchmarkDialPod is a connection, a byte there and back, and its end.
func BenchmarkDialPod(b *testing.B) {
	t := &testing.T{}
	s := &forwardServer{webSockets: true, handle: echoPort}
	s.Server = httptest.NewTLSServer(s)
	defer s.Close()
	c, err := NewForConfig(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "shop")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		conn, err := c.DialPod(b.Context(), "shop", "orders-0", 80)
		if err != nil {
			b.Fatal(err)
		}
		exchange(t, conn)
	}
}

func TestSPDYIsTriedOnceAndRemembered(t *testing.T) {
	s, c := newForwardServer(t, false, echoPort)
	for range 3 {
		dial(t, c, 80)
	}
	if got := s.requests.Load(); got != 4 {
		t.Errorf("%d requests for 3 connections, want 4: one WebSocket was tried", got)
	}
}

func TestTheErrorStreamDecidesWhatTheEndMeans(t *testing.T) {
	for text, errno := range map[string]syscall.Errno{
		`error forwarding port 9 to pod 3b8c, uid : failed to execute portforward in network namespace "/var/run/netns/cni-1": failed to connect to localhost:9 inside namespace "3b8c", IPv4: dial tcp4 127.0.0.1:9: connect: connection refused`: syscall.ECONNREFUSED,
		`read tcp4 127.0.0.1:52220->127.0.0.1:7000: read: connection reset by peer`: syscall.ECONNRESET,
	} {
		both(t, func(t *testing.T, ws bool) {
			_, c := newForwardServer(t, ws, func(d io.ReadWriteCloser, _ string) error {
				_, _ = io.WriteString(d, "before")
				return errors.New(text)
			})
			got, err := io.ReadAll(dial(t, c, 9))
			if string(got) != "before" || !errors.Is(err, errno) || strings.Contains(err.Error(), "netns") {
				t.Errorf("read %q, %v; want %q and %v", got, err, "before", errno)
			}
		})
	}
}

func TestCloseIsIdempotentAndEndsAReadThatWaits(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		_, c := newForwardServer(t, ws, echoPort)
		conn := dial(t, c, 80)
		done := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 1))
			done <- err
		}()
		if err := errors.Join(conn.Close(), conn.Close()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestWhatWasWrittenBeforeCloseWriteArrives(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		arrived := make(chan int, 1)
		_, c := newForwardServer(t, ws, func(d io.ReadWriteCloser, _ string) error {
			b, _ := io.ReadAll(d)
			arrived <- len(b)
			return nil
		})
		conn := dial(t, c, 80)
		if _, err := conn.Write(make([]byte, 300_000)); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*podConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if n := <-arrived; n != 300_000 {
			t.Errorf("%d bytes arrived", n)
		}
	})
}

func TestALostConnectionIsAnErrorAndNotTheEnd(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		_, c := newForwardServer(t, ws, echoPort)
		conn := dial(t, c, 80)
		// The kernel's end of the connection: no goodbye of any layer.
		tcp := conn.(*podConn).c.NetConn().(*tls.Conn).NetConn()
		if below, ok := conn.(*podConn).c.carrier.(*wsCarrier); ok {
			tcp = below.below.Conn
		}
		if err := tcp.(*net.TCPConn).CloseRead(); err != nil {
			t.Fatal(err)
		}
		_, err := conn.Read(make([]byte, 1))
		if err == nil || errors.Is(err, io.EOF) || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v; want a reset that is not EOF", err)
		}
	})
}

func TestDeadlinesEndAReadAndAWrite(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		stop := make(chan struct{})
		_, c := newForwardServer(t, ws, func(io.ReadWriteCloser, string) error { <-stop; return nil })
		t.Cleanup(func() { close(stop) })
		past := time.Now().Add(-time.Second)
		conn := dial(t, c, 80)
		_ = conn.SetReadDeadline(past)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		_ = conn.SetWriteDeadline(past)
		if _, err := conn.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestAWriteDeadlineEndsTheWriteUnderWay(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		stop := make(chan struct{})
		_, c := newForwardServer(t, ws, func(d io.ReadWriteCloser, _ string) error {
			<-stop
			_, _ = io.Copy(io.Discard, d)
			return nil
		})
		t.Cleanup(func() { close(stop) })
		conn := dial(t, c, 80)
		ended := make(chan error)
		writes := make(chan struct{}, 1)
		go func() {
			for {
				if _, err := conn.Write(make([]byte, maxGather)); err != nil {
					ended <- err
					return
				}
				select {
				case writes <- struct{}{}:
				default:
				}
			}
		}()
		<-writes // and the pod does not read: sooner or later the next one waits
		_ = conn.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestAPodThatIsGoneIsNotFoundAtOnce(t *testing.T) {
	s, c := newForwardServer(t, true, echoPort)
	_, err := c.DialPod(t.Context(), "shop", "gone", 80)
	if hint.CodeOf(err) != hint.NotFound || s.requests.Load() != 1 {
		t.Errorf("%v (code %d) after %d requests", err, hint.CodeOf(err), s.requests.Load())
	}
}

func TestTheContextBoundsTheDial(t *testing.T) {
	// A server that accepts and says nothing, before TLS.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 4)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	c, err := NewForConfig(&rest.Config{Host: "https://" + ln.Addr().String()}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, avoided := range []way{bySPDY, byWebSocket} {
		c.ways.shun(avoided)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := c.DialPod(ctx, "shop", "orders-0", 80)
			done <- err
		}()
		conn := <-accepted
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("without way %d: %v", avoided, err)
		}
		_ = conn.Close()
		c.ways = ways{}
	}
}
