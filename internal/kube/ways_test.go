package kube

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/hint"

	"github.com/gorilla/websocket"
	"k8s.io/client-go/rest"
)

// hanging swallows the requests of one way, as a broken load balancer does, and says when they are given up.
func hanging(webSocket bool, gone chan<- struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if websocket.IsWebSocketUpgrade(r) != webSocket {
			return false
		}
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return true
		}
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
		gone <- struct{}{}
		return true
	}
}

func assertEchoes(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestAWebSocketThatHangsIsGivenUp(t *testing.T) {
	s, c := newForwardServer(t, true, echoPort)
	gone := make(chan struct{}, 1)
	s.before = hanging(true, gone)
	assertEchoes(t, dial(t, c, 80))
	<-gone // its connection is closed, long before the dial's own end
	assertEchoes(t, dial(t, c, 80))
	if got := s.requests.Load(); got != 3 {
		t.Errorf("%d requests for 2 connections, want 3: the WebSocket is not tried again at once", got)
	}
}

// When both open one is used and the other closed: the test's server waits for the end of every connection.
func TestTheLaterOfTwoIsClosed(t *testing.T) {
	s, c := newForwardServer(t, true, echoPort)
	spdy := make(chan struct{})
	s.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if websocket.IsWebSocketUpgrade(r) {
			<-spdy
		} else {
			close(spdy)
		}
		return false
	}
	assertEchoes(t, dial(t, c, 80))
	if got := s.requests.Load(); got != 2 {
		t.Errorf("%d requests, want both ways", got)
	}
}

func TestTheWayIsChosenAnewWhenTheOtherStopsWorking(t *testing.T) {
	s, c := newForwardServer(t, false, echoPort)
	assertEchoes(t, dial(t, c, 80)) // by SPDY
	// The API server is replaced by one that knows WebSockets, behind something that refuses SPDY.
	s.webSockets = true
	s.before = func(w http.ResponseWriter, r *http.Request) bool {
		if websocket.IsWebSocketUpgrade(r) {
			return false
		}
		http.Error(w, "no such thing here", http.StatusMethodNotAllowed)
		return true
	}
	assertEchoes(t, dial(t, c, 80))
	n := s.requests.Load()
	assertEchoes(t, dial(t, c, 80))
	if got := s.requests.Load() - n; got != 1 {
		t.Errorf("%d requests for the third connection, want 1", got)
	}
}

// A way whose connections are cut soon comes second, even though it opens.
func TestAWayThatLosesItsConnectionsComesSecond(t *testing.T) {
	s, c := newForwardServer(t, true, echoPort)
	webSockets := new(atomic.Int32)
	s.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if websocket.IsWebSocketUpgrade(r) {
			webSockets.Add(1)
		}
		return false
	}
	conn := dial(t, c, 80)
	assertEchoes(t, conn)
	s.CloseClientConnections()
	// It was hijacked, so the test's server does not know it any more.
	_ = conn.(*podConn).c.carrier.(*wsCarrier).below.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("read: %v", err)
	}
	assertEchoes(t, dial(t, c, 80))
	if n := webSockets.Load(); n != 1 {
		t.Errorf("%d WebSockets, want one: the next is SPDY", n)
	}
}

// podServer answers pods/proxy.
func podServer(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewTLSServer(answer)
	t.Cleanup(s.Close)
	c, err := NewForConfig(&rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDialPodProxyCarriesWhatFollowsTheUpgrade(t *testing.T) {
	c := podServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/api/v1/namespaces/shop/pods/orders-0:27102/proxy" || r.Header.Get("Upgrade") != "thing" {
			t.Errorf("%s %s, %q", r.Method, r.URL, r.Header)
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		// The first bytes come with the answer.
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: thing\r\n\r\nhi ")
		_, _ = io.Copy(conn, rw)
	})
	conn, err := c.DialPodProxy(t.Context(), "shop", "orders-0", 27102, "thing")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "there\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); line != "hi there\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestDialPodProxySaysWhatIsInTheWay(t *testing.T) {
	status := func(code int, reason, message string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":%q,"reason":%q,"code":%d}`, message, reason, code)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		errno  error
		code   hint.Code
		words  string // in the error or its hint
	}{
		"no right": {status(403, "Forbidden", `pods "orders-0:27102" is forbidden: User "ada" cannot get resource "pods/proxy" in API group "" in the namespace "shop"`),
			nil, hint.Forbidden, "ada may not get pods/proxy in namespace shop"},
		"no way to pods": {status(500, "InternalError", "Internal error occurred: error dialing backend: dial tcp 10.244.0.9:27102: connect: no route to host"),
			syscall.EHOSTUNREACH, hint.Unreachable, "NetworkPolicy"},
		"nobody listens": {status(500, "InternalError", "Internal error occurred: error dialing backend: dial tcp 10.244.0.9:27102: connect: connection refused"),
			syscall.ECONNREFUSED, hint.Unreachable, "connection refused"},
		"a sidecar": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "RBAC: access denied", http.StatusForbidden)
		},
			nil, hint.Other, "mesh"},
		"not switched": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") },
			nil, hint.Other, "mesh"},
		"no such pod": {status(404, "NotFound", `pods "orders-0" not found`),
			nil, hint.NotFound, "not found"},
	} {
		t.Run(name, func(t *testing.T) {
			k := podServer(t, c.answer)
			_, err := k.DialPodProxy(t.Context(), "shop", "orders-0", 27102, "thing")
			if err == nil || c.errno != nil && !errors.Is(err, c.errno) || hint.CodeOf(err) != c.code || !strings.Contains(err.Error()+hint.Of(err), c.words) {
				t.Errorf("%v (code %d, hint %q)", err, hint.CodeOf(err), hint.Of(err))
			}
		})
	}
	k := podServer(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := k.DialPodProxy(ctx, "shop", "orders-0", 27102, "thing"); !strings.Contains(hint.Of(err), "NetworkPolicy") {
		t.Errorf("no answer: %v, hint %q", err, hint.Of(err))
	}
}
