package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"
)

const testUpgrade = "GET / HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade\r\nUpgrade: bridge-tunnel\r\n\r\n"

// upgradeNetwork has an HTTP proxy before the pod's listener, as an API server is one.
func upgradeNetwork(t testing.TB) network {
	n := tcpNetwork(t)
	pod := &url.URL{Scheme: "http", Host: n.ln.Addr().String()}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(pod); r.SetXForwarded() },
		Transport: &http.Transport{DisableKeepAlives: true},
	}
	front := httptest.NewServer(proxy)
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	return network{UpgradeListener(n.ln), func(ctx context.Context) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", front.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		return upgrade(c)
	}}
}

// upgrade is the laptop's half.
func upgrade(c net.Conn) (net.Conn, error) {
	if _, err := io.WriteString(c, testUpgrade); err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		_ = c.Close()
		return nil, errors.New(resp.Status)
	}
	return buffered{c, r}, nil
}

type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func TestUpgradeBytes(t *testing.T) {
	golden(t, "upgrade-accepted", []byte(upgradeAccepted))
	golden(t, "upgrade-refused", []byte(upgradeRefused))
}

// What the laptop sends without waiting for the answer is not lost.
func TestBytesBehindTheUpgradeAreTheCarriers(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.network.ln = UpgradeListener(e.network.ln)
	dial := e.client.Carrier
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, peer, err := dial(ctx)
		return &eager{Conn: c}, peer, err
	}
	e.server.Dial = echoTCP(t)
	e.start().waitReady()
	c, err := e.client.DialContext(t.Context(), "tcp", "a:1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}

// eager sends the request and what is written first in one packet, and reads over the answer.
type eager struct {
	net.Conn
	sent, answered bool
}

func (e *eager) Write(p []byte) (int, error) {
	if e.sent {
		return e.Conn.Write(p)
	}
	e.sent = true
	n, err := e.Conn.Write(append([]byte(testUpgrade), p...))
	return max(0, n-len(testUpgrade)), err
}

func (e *eager) Read(p []byte) (int, error) {
	if !e.answered {
		e.answered = true
		got := make([]byte, len(upgradeAccepted))
		if _, err := io.ReadFull(e.Conn, got); err != nil || string(got) != upgradeAccepted {
			return 0, fmt.Errorf("answered %q, %w", got, err)
		}
	}
	return e.Conn.Read(p)
}

// Whatever is no upgrade is answered with a refusal and closed; the laptop still gets in.
func TestUpgradeTakesNothingElse(t *testing.T) {
	n := upgradeNetwork(t)
	e := newEnds(t, n).start()
	address := n.ln.Addr().String()
	const get = "GET / HTTP/1.1\r\nConnection: Upgrade\r\n"
	refused := uint64(0)
	for name, request := range map[string]string{
		"no upgrade":           "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"another protocol":     get + "Upgrade: websocket\r\n\r\n",
		"no connection option": "GET / HTTP/1.1\r\nUpgrade: bridge-tunnel\r\n\r\n",
		"another method":       strings.Replace(testUpgrade, "GET", "POST", 1),
		"another version":      strings.Replace(testUpgrade, "1.1", "1.0", 1),
		"a name in a value":    get + "X: Upgrade: bridge-tunnel\r\n\r\n",
		"too long":             get + "X: " + strings.Repeat("x", 2*maxUpgrade),
		"a tunnel's handshake": "\x16\x03\x01\x02\x00" + strings.Repeat("x", 512) + "\r\n\r\n",
	} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		_ = c.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != upgradeRefused {
			t.Errorf("%s: answered %q, %v", name, got, err)
		}
		_ = c.Close()
		refused++
	}
	e.waitReady()
	e.waitRefused(refused)
}

// Another key is refused behind the upgrade as everywhere: TestAnotherLaptopIsRefused. A request that does not
// come to its end has the handshake's time.
func TestUpgradeIsBoundedInTime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		n := pipeNetwork(t)
		n.ln = UpgradeListener(n.ln)
		e := newEnds(t, n)
		e.client = nil
		e.start()
		defer e.close()
		began := time.Now()
		c, err := n.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(began) != handshakeTimeout {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		e.waitRefused(1)
	})
}

// FuzzUpgrade: what is accepted, net/http reads as the same request.
func FuzzUpgrade(f *testing.F) {
	f.Add([]byte(testUpgrade))
	f.Add([]byte("GET / HTTP/1.1\r\nconnection: keep-alive, upgrade\r\nUPGRADE: BRIDGE-TUNNEL\r\n\r\nbehind"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\n\nConnection: Upgrade\r\nUpgrade: bridge-tunnel\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, err := acceptUpgrade(said{r: bytes.NewReader(b)})
		if err != nil {
			return
		}
		if !bytes.Contains(b, append([]byte("\r\n\r\n"), rest...)) || len(rest) >= maxUpgrade {
			t.Errorf("%q: rest %q", b, rest)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		asked := strings.Join(req.Header.Values("Upgrade"), ",")
		if req.Method != http.MethodGet || !req.ProtoAtLeast(1, 1) || !strings.Contains(strings.ToLower(asked), UpgradeProtocol) {
			t.Errorf("%q was accepted", b)
		}
	})
}

// said is a connection whose other end has said r.
type said struct {
	net.Conn
	r io.Reader
}

func (s said) Read(p []byte) (int, error)  { return s.r.Read(p) }
func (s said) Write(p []byte) (int, error) { return len(p), nil }
