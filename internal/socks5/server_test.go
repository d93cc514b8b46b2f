package socks5

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
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster dials as the pod would: names it knows go to a real listener, or to a real error.
type cluster struct {
	addrs map[string]string // "name:port" -> address
	errs  map[string]error
	dials atomic.Int64
}

func (c *cluster) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c.dials.Add(1)
	if err, ok := c.errs[address]; ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	if a, ok := c.addrs[address]; ok {
		address = a
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// startProxy serves until the test ends and checks that Serve then returns nil.
func startProxy(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) string {
	t.Helper()
	return start(t, &Server{Dial: dial})
}

func start(t *testing.T, s *Server) string {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// listen runs handle for each connection to a fresh port.
func listen(t *testing.T, network, addr string, handle func(*net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Skip(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

// answerAtEOF reads all of the request before it answers: nothing comes back unless the half-close
// arrives.
func answerAtEOF(c *net.TCPConn) {
	b, err := io.ReadAll(c)
	if err != nil {
		return
	}
	fmt.Fprintf(c, "got %d bytes", len(b))
}

func mustHTTPClient(t *testing.T, proxyURL string) *http.Client {
	t.Helper()
	u, err := url.Parse(proxyURL)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(u)}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(t *testing.T, c *http.Client, rawURL string) (int, http.Header, string) {
	t.Helper()
	resp, err := c.Get(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestSOCKS5ConnectsToNamesAndBothFamilies(t *testing.T) {
	v4 := listen(t, "tcp4", "127.0.0.1:0", answerAtEOF)
	targets := map[string]string{"name": "orders.shop:80", "IPv4": v4}
	if ln, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		ln.Close()
		targets["IPv6"] = listen(t, "tcp6", "[::1]:0", answerAtEOF)
	}
	k := &cluster{addrs: map[string]string{"orders.shop:80": v4}}
	d, err := proxy.SOCKS5("tcp", startProxy(t, k.dial), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			c, err := d.Dial("tcp", target)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			checkHalfClose(t, c, c)
		})
	}
}

// checkHalfClose sends a megabyte, half-closes, and expects the answer that follows.
func checkHalfClose(t *testing.T, c net.Conn, r io.Reader) {
	t.Helper()
	payload := bytes.Repeat([]byte("x"), 1<<20)
	if _, err := c.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if want := fmt.Sprintf("got %d bytes", len(payload)); err != nil || string(b) != want {
		t.Fatalf("read %q, %v; want %q", b, err, want)
	}
}

func TestSOCKS5Replies(t *testing.T) {
	errs := map[string]error{
		"refused:1":   syscall.ECONNREFUSED,
		"far:1":       syscall.EHOSTUNREACH,
		"nonet:1":     syscall.ENETUNREACH,
		"slow:1":      context.DeadlineExceeded,
		"etimedout:1": syscall.ETIMEDOUT,
		"denied:1":    syscall.EACCES,
		"family:1":    syscall.EAFNOSUPPORT,
		"unknown:1":   &net.DNSError{Err: "no such host", Name: "unknown", IsNotFound: true},
		"mute:1":      &net.DNSError{Err: "server misbehaving", Name: "mute", IsTemporary: true},
		"other:1":     errors.New("the sky fell"),
	}
	addr := startProxy(t, (&cluster{errs: errs}).dial)
	domain := func(command byte, name string) string {
		return "\x05" + string(command) + "\x00\x03" + string(rune(len(name))) + name + "\x00\x01"
	}
	for _, tt := range []struct {
		name, send string
		want       reply
	}{
		{"refused", domain(1, "refused"), replyConnectionRefused},
		{"host unreachable", domain(1, "far"), replyHostUnreachable},
		{"network unreachable", domain(1, "nonet"), replyNetworkUnreachable},
		{"deadline", domain(1, "slow"), replyTTLExpired},
		{"timed out", domain(1, "etimedout"), replyTTLExpired},
		{"forbidden", domain(1, "denied"), replyNotAllowed},
		{"family", domain(1, "family"), replyAddressNotSupported},
		{"no such host", domain(1, "unknown"), replyHostUnreachable},
		{"no answer of the resolver", domain(1, "mute"), replyHostUnreachable},
		{"other", domain(1, "other"), replyGeneralFailure},
		{"bind", domain(2, "refused"), replyCommandNotSupported},
		{"no command", domain(4, "refused"), replyCommandNotSupported},
		{"empty name", domain(1, ""), replyGeneralFailure},
		{"name with a line break", domain(1, "a\nb"), replyGeneralFailure},
		{"address type", "\x05\x01\x00\x07", replyAddressNotSupported},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "\x05\x02\x02\x00"+tt.send); err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(c)
			want := append([]byte{5, 0, 5, byte(tt.want), 0, 1}, make([]byte, 6)...)
			if err != nil || !bytes.Equal(b, want) {
				t.Errorf("read % x, %v; want % x", b, err, want)
			}
		})
	}
}

func TestSOCKS5RefusesAuthenticationOnly(t *testing.T) {
	c, err := net.Dial("tcp", startProxy(t, (&cluster{}).dial))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "\x05\x01\x02"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "\x05\xff" {
		t.Errorf("read % x, %v", b, err)
	}
}

func TestConnectKeepsHalfCloseAndEarlyBytes(t *testing.T) {
	k := &cluster{addrs: map[string]string{"orders:80": listen(t, "tcp4", "127.0.0.1:0", answerAtEOF)}}
	addr := startProxy(t, k.dial)
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprintf("early=%v", early), func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			head := "CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n"
			payload := strings.Repeat("x", 1000)
			if early {
				_, err = io.WriteString(c, head+payload)
			} else {
				_, err = io.WriteString(c, head)
			}
			if err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(c)
			resp, err := http.ReadResponse(r, &http.Request{Method: "CONNECT"})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Fatal(resp.Status)
			}
			if !early {
				checkHalfClose(t, c, r)
				return
			}
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || string(b) != "got 1000 bytes" {
				t.Fatalf("read %q, %v", b, err)
			}
		})
	}
}

func TestResetsPass(t *testing.T) {
	k := &cluster{addrs: map[string]string{"orders:80": listen(t, "tcp4", "127.0.0.1:0", func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		c.SetLinger(0)
	})}}
	addr := startProxy(t, k.dial)
	for _, tt := range []struct {
		name, hello string
		reply       int // how many bytes
	}{
		{"SOCKS5", "\x05\x01\x00\x05\x01\x00\x03\x06orders\x00\x50", 2 + 10},
		{"CONNECT", "CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n", len("HTTP/1.1 200 Connection established\r\n\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.hello)
			if _, err := io.ReadFull(c, make([]byte, tt.reply)); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "x")
			if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("read %d bytes, %v; want a reset", n, err)
			}
		})
	}
}

func TestConnectCarriesTLS(t *testing.T) {
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello")
	}))
	defer web.Close()
	k := &cluster{addrs: map[string]string{"example.com:443": web.Listener.Addr().String()}}
	c := web.Client() // trusts example.com with the test's certificate
	tr := c.Transport.(*http.Transport)
	tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: startProxy(t, k.dial)})
	tr.DialContext = nil // httptest sends example.com straight to its server
	defer tr.CloseIdleConnections()
	if status, _, body := get(t, c, "https://example.com/"); status != 200 || body != "hello" || k.dials.Load() != 1 {
		t.Errorf("%d %q after %d dials", status, body, k.dials.Load())
	}
}

func TestPlainRequestsKeepTheirMeaning(t *testing.T) {
	got := make(chan *http.Request, 1)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "ends here")
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "hello")
		w.Header().Set("X-Sum", "42")
	}))
	defer web.Close()
	k := &cluster{addrs: map[string]string{"orders.shop:80": web.Listener.Addr().String()}}
	c := mustHTTPClient(t, "http://"+startProxy(t, k.dial))
	for i := range 3 {
		req, err := http.NewRequest("GET", "http://orders.shop/a%2Fb?x=1;y=2&z", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "X-Mine")
		req.Header.Set("X-Mine", "ends here")
		req.Header.Set("Proxy-Authorization", "Basic x")
		req.Header.Set("X-Forwarded-For", "192.0.2.1")
		req.Header.Set("User-Agent", "")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "hello" || resp.Trailer.Get("X-Sum") != "42" {
			t.Errorf("body %q, trailer %v, %v", body, resp.Trailer, err)
		}
		if resp.Header.Get("X-Hop") != "" || resp.Header.Get("Via") != "1.1 bridge" {
			t.Errorf("answer's header: %v", resp.Header)
		}
		r := <-got
		if r.Host != "orders.shop" || r.RequestURI != "/a%2Fb?x=1;y=2&z" {
			t.Errorf("target saw %q %q", r.Host, r.RequestURI)
		}
		for name, want := range map[string]string{
			"X-Mine": "", "Proxy-Authorization": "", "Proxy-Connection": "", "X-Forwarded-For": "192.0.2.1",
			"User-Agent": "", "Via": "1.1 bridge", "Accept-Encoding": "gzip",
		} {
			if v := r.Header.Get(name); v != want {
				t.Errorf("%s: target saw %q, want %q", name, v, want)
			}
		}
		if n := k.dials.Load(); n != 1 {
			t.Errorf("%d dials after %d requests: connection not kept", n, i+1)
		}
	}
}

func TestPlainAnswersStream(t *testing.T) {
	next := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			io.WriteString(w, "event\n")
			w.(http.Flusher).Flush()
			select {
			case <-next: // only after the client has read it
			case <-r.Context().Done():
			}
		}
	}))
	defer web.Close()
	k := &cluster{addrs: map[string]string{"orders:80": web.Listener.Addr().String()}}
	resp, err := mustHTTPClient(t, "http://"+startProxy(t, k.dial)).Get("http://orders/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for range 3 {
		if line, err := r.ReadString('\n'); err != nil || line != "event\n" {
			t.Fatalf("%q, %v", line, err)
		}
		next <- struct{}{}
	}
}

func TestPlainUpgradePasses(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
		line, _ := buf.ReadString('\n')
		io.WriteString(c, strings.ToUpper(line))
	}))
	defer web.Close()
	k := &cluster{addrs: map[string]string{"orders:80": web.Listener.Addr().String()}}
	c, err := net.Dial("tcp", startProxy(t, k.dial))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET http://orders/ HTTP/1.1\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	io.WriteString(c, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "HELLO\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestHTTPRefusalsSayWhy(t *testing.T) {
	errs := map[string]error{
		"refused:80": syscall.ECONNREFUSED,
		"slow:80":    context.DeadlineExceeded,
		"unknown:80": &net.DNSError{Err: "no such host", Name: "unknown", IsNotFound: true},
	}
	addr := startProxy(t, (&cluster{errs: errs}).dial)
	for _, tt := range []struct {
		request string
		status  int
		token   string
		say     string
	}{
		{"GET http://refused/ HTTP/1.1\r\nHost: refused", 502, "connection_refused", "connection refused"},
		{"CONNECT refused:80 HTTP/1.1\r\nHost: refused:80", 502, "connection_refused", "connection refused"},
		{"GET http://slow/ HTTP/1.1\r\nHost: slow", 504, "connection_timeout", "deadline exceeded"},
		{"CONNECT slow:80 HTTP/1.1\r\nHost: slow:80", 504, "connection_timeout", "deadline exceeded"},
		{"CONNECT unknown:80 HTTP/1.1\r\nHost: unknown:80", 502, "dns_error", "no such host"},
		{"CONNECT refused HTTP/1.1\r\nHost: refused", 400, "", "HOST:PORT"},
		{"GET / HTTP/1.1\r\nHost: 127.0.0.1", 400, "", "curl -x"},
		{"GET https://refused/ HTTP/1.1\r\nHost: refused", 400, "", "use CONNECT"},
		{"GET http:/// HTTP/1.1\r\nHost: x", 400, "", "names no host"},
		{"\x16\x03\x01", 400, "", "400"},
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, tt.request+"\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("%q: %v", tt.request, err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		c.Close()
		status := resp.Header.Get("Proxy-Status")
		if resp.StatusCode != tt.status || !strings.Contains(string(body), tt.say) ||
			tt.token != "" && status != "bridge; error="+tt.token {
			t.Errorf("%q: %s, Proxy-Status %q, body %q", tt.request, resp.Status, status, body)
		}
	}
}

func TestServeEndsOpenConnections(t *testing.T) {
	entered := make(chan struct{}, 3)
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}))
	defer web.Close()
	k := &cluster{addrs: map[string]string{"orders:80": web.Listener.Addr().String()}}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- (&Server{Dial: k.dial}).Serve(ctx, ln) }()
	const get = "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"
	var conns []net.Conn
	for _, send := range []string{
		"\x05\x01\x00\x05\x01\x00\x03\x06orders\x00\x50" + get,
		"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\n" + get,
		"GET http://orders/ HTTP/1.1\r\nHost: orders\r\n\r\n",
		"\x05", // in the handshake
	} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, send)
		conns = append(conns, c)
	}
	for range 3 {
		<-entered
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for i, c := range conns {
		// An end would be all that there was of an answer without a length.
		if answer, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d: %q, %v, want a reset", i, answer, err)
		}
	}
}

// exchange sends a request that ends its connection and returns all that comes back.
func exchange(t *testing.T, addr, send string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, send)
	if !strings.HasPrefix(send, "GET") { // to net/http a plain request's half-close is the client's farewell
		if err := c.(*net.TCPConn).CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			t.Fatal(err)
		}
	}
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(b)
}

func TestEveryConnectionGivesItsSlotBack(t *testing.T) {
	k := &cluster{
		addrs: map[string]string{"orders:80": listen(t, "tcp4", "127.0.0.1:0", answerAtEOF)},
		errs:  map[string]error{"refused:80": syscall.ECONNREFUSED},
	}
	addr := start(t, &Server{Dial: k.dial, conns: 1})
	for range 20 { // the second round would hang
		for send, want := range map[string]string{
			"":         "",
			"\x05":     "",
			"\x05\x01": "",
			"\x05\x01\x00\x05\x01\x00\x03\x06orders\x00\x50x":                            "got 1 bytes",
			"\x05\x01\x00\x05\x01\x00\x03\x07refused\x00\x50":                            "\x05\x05",
			"CONNECT orders:80 HTTP/1.1\r\nHost: orders:80\r\n\r\nxx":                    "got 2 bytes",
			"CONNECT refused:80 HTTP/1.0\r\nHost: refused:80\r\n\r\n":                    "502",
			"GET http://refused/ HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n": "502",
			"GET / HTTP/1.0\r\n\r\n":                                                     "400",
			"nonsense\r\n\r\n":                                                           "400",
		} {
			if got := exchange(t, addr, send); !strings.Contains(got, want) {
				t.Fatalf("%q: %q", send, got)
			}
		}
	}
}

func TestSlowHandshakesAreCut(t *testing.T) {
	addr := start(t, &Server{Dial: (&cluster{}).dial, handshake: time.Millisecond})
	for _, send := range []string{"", "\x05", "\x05\x01\x00\x05\x01", "GET http://a/ HTTP/1.1\r\nHost:"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, send)
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) { // or it would hang
			t.Errorf("%q: %v", send, err)
		}
		c.Close()
	}
}

func TestManyConnectionsAtOnce(t *testing.T) {
	k := &cluster{addrs: map[string]string{"orders:80": listen(t, "tcp4", "127.0.0.1:0", answerAtEOF)}}
	addr := startProxy(t, k.dial)
	d, err := proxy.SOCKS5("tcp", addr, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	const many = 500
	var conns []net.Conn
	for range many {
		c, err := d.Dial("tcp", "orders:80")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for _, c := range conns { // all are open
		io.WriteString(c, "hello")
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "got 5 bytes" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

func TestRealCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Host, r.URL)
	}))
	defer web.Close()
	k := &cluster{
		addrs: map[string]string{"orders.shop:80": web.Listener.Addr().String()},
		errs:  map[string]error{"gone.shop:80": syscall.ECONNREFUSED},
	}
	addr := startProxy(t, k.dial)
	for _, tt := range []struct {
		name, env string
		args      []string
	}{
		{"socks5-hostname", "", []string{"--socks5-hostname", addr}},
		{"plain", "", []string{"-x", "http://" + addr}},
		{"CONNECT", "", []string{"-p", "-x", "http://" + addr}},
		{"ALL_PROXY", "ALL_PROXY=socks5h://" + addr, nil},
		{"http_proxy", "http_proxy=http://" + addr, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run := func(u string) (string, error) {
				cmd := exec.CommandContext(t.Context(), curl, append(tt.args, "-sS", "-f", "--max-time", "20", u)...)
				cmd.Env = append(os.Environ(), "NO_PROXY=", "no_proxy=")
				if tt.env != "" {
					cmd.Env = append(cmd.Env, tt.env)
				}
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if out, err := run("http://orders.shop/a?b=c"); err != nil || out != "orders.shop /a?b=c" {
				t.Errorf("%q, %v", out, err)
			}
			if out, err := run("http://gone.shop/"); err == nil {
				t.Errorf("a refused target succeeded: %q", out)
			}
		})
	}
}

// FuzzReadRequest checks that a request is read to its end and no further, that what is accepted can
// be dialled, and that it says what the client sent.
func FuzzReadRequest(f *testing.F) {
	for _, seed := range []string{
		"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50rest",
		"\x05\x01\x00\x03\x0borders.shop\x01\xbb",
		"\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50",
		"\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\x00\x50",
		"\x05\x01\x00\x03\x03::1\x00\x50",
		"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00",
		"\x05\x01\x00\x03\x00\x00\x50",
		"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
		"\x05\x01\x00\x09",
		"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		req, err := readRequest(r)
		if err != nil {
			return
		}
		host, port, err := net.SplitHostPort(req.address())
		if err != nil || host != req.host || port == "" || host == "" {
			t.Fatalf("%q: address %q does not split: %v", b, req.address(), err)
		}
		size := map[byte]int{addressIPv4: 4, addressIPv6: 16, addressDomain: 1 + int(b[min(4, len(b)-1)])}[b[3]]
		if used := len(b) - r.Len(); used != 4+size+2 {
			t.Fatalf("%q: read %d bytes, the request has %d", b, used, 4+size+2)
		}
		if b[3] == addressDomain && req.host != string(b[5:5+int(b[4])]) {
			t.Fatalf("%q: host %q", b, req.host)
		}
	})
}
