package proxypod

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The library of the test's server lingers for a second, client-go's connections until the process ends.
		goleak.IgnoreAnyFunction("github.com/moby/spdystream.(*Connection).shutdown"),
		goleak.IgnoreAnyFunction("net/http.(*http2ClientConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// apiServer has one running pod of a proxy, and what a test makes of the two ways to it.
type apiServer struct {
	noForward atomic.Bool
	podProxy  func(conn net.Conn) // after the upgrade; nil: refused
	ended     sync.WaitGroup
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.ended.Add(1)
	defer a.ended.Done()
	switch {
	case strings.HasSuffix(r.URL.Path, "/pods"):
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "proxy", Namespace: "shop", UID: "1"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{pod}})
	case strings.HasSuffix(r.URL.Path, "/portforward") && !a.noForward.Load():
		w.Header().Set(httpstream.HeaderProtocolVersion, portforward.PortForwardProtocolV1Name)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(httpstream.Stream, <-chan struct{}) error { return nil })
		if conn != nil {
			<-conn.CloseChan()
			_ = conn.Close()
		}
	case strings.HasSuffix(r.URL.Path, "/proxy") && a.podProxy != nil:
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+tunnel.UpgradeProtocol+"\r\n\r\n")
		a.podProxy(conn)
	default:
		http.Error(w, "not here", http.StatusBadGateway)
	}
}

// mute is a pod that agrees to the upgrade and says nothing more.
func mute(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func greet(conn net.Conn) {
	_, _ = io.WriteString(conn, "hi")
	mute(conn)
}

// carriers are those to a's pod, running; said gets what they say.
func (a *apiServer) carriers(t *testing.T) (c *Carriers, said chan string) {
	t.Helper()
	s := httptest.NewTLSServer(a)
	k, err := kube.NewForConfig(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	said = make(chan string, 100)
	c = NewCarriers(&Proxy{Kube: k, Namespace: "shop", Lease: "x"}, Ports{Tunnel: 27100, PodProxy: 27102}, func(line string) { said <- line })
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
		s.CloseClientConnections()
		s.Close()
		a.ended.Wait()
	})
	return c, said
}

func dialCarrier(t *testing.T, c *Carriers) net.Conn {
	t.Helper()
	conn, _, err := c.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func assertBy(t *testing.T, c *Carriers, want string) {
	t.Helper()
	if got := c.by(); got != want {
		t.Errorf("the tunnel goes%q, want%q", got, want)
	}
}

func assertSays(t *testing.T, said chan string, want string) {
	t.Helper()
	if line := <-said; !strings.Contains(line, want) {
		t.Errorf("it says %q, want %q", line, want)
	}
}

// An upgrade behind which nothing comes is no carrier, however well it opens.
func TestAMuteProxyIsLeft(t *testing.T) {
	a := &apiServer{podProxy: mute}
	c, said := a.carriers(t)
	conn := dialCarrier(t, c)
	assertBy(t, c, ", by podproxy")
	_ = conn.Close() // as the tunnel does when no handshake comes
	assertSays(t, said, errMute.Error())
	forward := dialCarrier(t, c)
	assertBy(t, c, "")
	if why := forward.(interface{ Degraded() string }).Degraded(); why == "" {
		t.Error("the tunnel is not degraded on a detour")
	}
	// It opens, so it is tried again: the tunnel's carrier is closed under it.
	assertSays(t, said, "works again")
	if _, err := forward.Read(make([]byte, 1)); !errors.Is(err, errWorksAgain) {
		t.Errorf("the port-forward is still open: %v", err)
	}
	// And left again, for longer.
	_ = dialCarrier(t, c).Close()
	assertSays(t, said, "does not work")
}

func TestOneThatWorkedIsNotLeftWhenItEnds(t *testing.T) {
	a := &apiServer{podProxy: greet}
	c, said := a.carriers(t)
	for range 2 {
		conn := dialCarrier(t, c)
		if _, err := io.ReadFull(conn, make([]byte, 2)); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	assertBy(t, c, ", by podproxy")
	if len(said) > 0 {
		t.Errorf("it says %q", <-said)
	}
}

// On a detour whose port-forward does not work either, pods/proxy is tried before its time.
func TestADetourThatIsClosedEnds(t *testing.T) {
	a := &apiServer{podProxy: mute}
	c, said := a.carriers(t)
	_ = dialCarrier(t, c).Close()
	assertSays(t, said, "does not work")
	a.noForward.Store(true)
	dialCarrier(t, c)
	assertBy(t, c, ", by podproxy")
}

// When neither way works the error is the port-forward's, and no detour begins: the API server is away.
func TestNothingIsLeftWhenNothingWorks(t *testing.T) {
	a := &apiServer{}
	a.noForward.Store(true)
	c, said := a.carriers(t)
	if conn, _, err := c.Dial(t.Context()); err == nil || !strings.Contains(err.Error(), "port 27100") {
		t.Errorf("%v, %v", conn, err)
	}
	if c.onDetour() || len(said) > 0 {
		t.Error("a detour has begun")
	}
}
