package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/internal/intercept"
	"bridge/internal/servertest"
	"bridge/pkg/tunnel"
)

// mainEnv makes the test binary the proxy itself, so that signals and exit status are real.
const mainEnv = "BRIDGE_TEST_PROXY_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

func TestProxyStaysSmallInWhatItLinks(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"bridge/", "github.com/hashicorp/yamux", "golang.org/x/net/", "golang.org/x/text/", "golang.org/x/sync/", "golang.org/x/sys/", "crypto/internal/entropy/", "vendor/"}
	for _, dep := range strings.Fields(string(out)) {
		if strings.HasPrefix(dep, "bridge/internal/kube") {
			t.Errorf("the proxy links %s", dep)
		}
		if !strings.Contains(strings.Split(dep, "/")[0], ".") && !strings.HasPrefix(dep, "crypto/internal/entropy/") {
			continue // the standard library, or ours
		}
		if !slices.ContainsFunc(allowed, func(prefix string) bool { return strings.HasPrefix(dep, prefix) }) {
			t.Errorf("the proxy links %s", dep)
		}
	}
}

func TestCommandLine(t *testing.T) {
	key := strings.Repeat("ab", 32)
	for _, c := range []struct {
		args []string
		code int
		out  string // on stdout, or else contained in stderr
	}{
		{[]string{"--version"}, 0, "proxy devel\n"},
		{[]string{"--help"}, 0, "drain-delay"},
		{nil, 2, "--client or --members is needed"},
		{[]string{"--client", key, "--members", "/x", "--tunnel", "127.0.0.1:0", "--health", ":0"}, 2, "one of them"},
		{[]string{"--client", "abc"}, 2, "client"},
		{[]string{"--client", key}, 2, "--tunnel and --health are needed"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--listen", "http"}, 2, "want a port"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--listen", "0"}, 2, "want a port"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--listen", "53/sctp"}, 2, "want a port"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--pass", "80"}, 2, "--pass is for --originals"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--originals", "x", "--listen", "53/udp"}, 2, "TCP alone"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--mirror"}, 2, "are for --originals"},
		{[]string{"--members", "/x", "--tunnel", "127.0.0.1:0", "--health", ":0"}, 2, "are for --originals"},
		{[]string{"--members", "/x", "--tunnel", "127.0.0.1:0", "--health", ":0", "--originals", "x", "--mirror"}, 2, "copies whole connections"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "--allow-cidr", "169.254.1.1"}, 2, "allow-cidr"},
		{[]string{"--client", key, "--tunnel", "127.0.0.1:0", "--health", ":0", "x"}, 2, "unexpected argument"},
		{[]string{"--client", key, "--tunnel", "0.0.0.0:0", "--health", "127.0.0.1:0"}, 1, "not on loopback"},
		{[]string{"--client", key, "--tunnel", ":0", "--health", "127.0.0.1:0"}, 1, "not on loopback"},
	} {
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), c.args, &stdout, &stderr)
		if code != c.code || stdout.String() != c.out && !strings.Contains(stderr.String(), c.out) {
			t.Errorf("%q: exit %d, %q, %q", c.args, code, stdout.String(), stderr.String())
		}
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# a pod's\nsearch old.example\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n" +
		"nameserver 10.96.0.10\nnameserver nonsense\nnameserver 169.254.20.10\noptions timeout:2 ndots:5 edns0\n; end\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readResolvConf(path)
	want := resolver{[]string{"10.96.0.10", "169.254.20.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"}, 5}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) || len(got.addrs()) != 2 {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if got := parseResolvConf("domain example.com\noptions ndots:99\n"); got.ndots != 15 || got.search[0] != "example.com" {
		t.Errorf("%+v", got)
	}
	if got := parseResolvConf("nameserver"); got.ndots != 1 || got.nameservers != nil {
		t.Errorf("%+v", got)
	}
}

// proxyProcess is the proxy as a process of its own, as the kubelet starts it.
type proxyProcess struct {
	t          *testing.T
	cmd        *exec.Cmd
	log        bytes.Buffer
	tunnel     string
	health     string
	listen     string // the first port, on an address of the pod
	podProxy   string // "" when the arguments have none
	laptop     *tunnel.Client
	carrier    atomic.Pointer[carrier] // the last
	byHTTP     atomic.Bool             // the next carrier goes to podProxy
	waited     chan error
	stopLaptop func() // and waits until it has ended
}

// freeAddress returns an address whose port nobody has now.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func port(address string) string { return address[strings.LastIndex(address, ":")+1:] }

// start starts the proxy and a laptop whose program is at app ("" for connect), with more arguments.
func start(t *testing.T, app string, args ...string) *proxyProcess {
	t.Helper()
	key, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	p := &proxyProcess{t: t, tunnel: freeAddress(t), health: freeAddress(t), waited: make(chan error, 1)}
	all := []string{"--client", key.Fingerprint().String(), "--tunnel", p.tunnel, "--health", p.health}
	if app != "" {
		p.listen = freeAddress(t)
		all = append(all, "--listen", port(p.listen))
	}
	if i := slices.Index(args, "--podproxy"); i >= 0 {
		p.podProxy = args[i+1]
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(self, append(all, args...)...)
	p.cmd.Env = append(os.Environ(), mainEnv+"=1")
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.waited <- p.cmd.Wait() }()

	ctx, cancel := context.WithCancel(t.Context())
	p.laptop = &tunnel.Client{Key: key,
		Carrier: func(ctx context.Context) (net.Conn, string, error) {
			c, err := p.dial(ctx)
			return c, "pod", err
		},
		Handle: func(ctx context.Context, s *tunnel.Stream) {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", app)
			if err != nil {
				_ = s.Refuse(err)
				return
			}
			_ = s.Accept()
			_ = tunnel.Splice(s, conn)
		},
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.laptop.Run(ctx) })
	p.stopLaptop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(func() {
		p.stopLaptop()
		_ = p.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("the proxy's log:\n%s", p.log.String())
		}
	})
	if err := p.laptop.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// carrier is one of the laptop's.
type carrier struct {
	net.Conn
	r      io.Reader
	byHTTP bool
}

func (c *carrier) Read(b []byte) (int, error) { return c.r.Read(b) }

func (p *proxyProcess) dial(ctx context.Context) (net.Conn, error) {
	byHTTP := p.byHTTP.Load()
	address := p.tunnel
	if byHTTP {
		address = p.podProxy
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	if byHTTP {
		request := "GET / HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade\r\nUpgrade: " + tunnel.UpgradeProtocol + "\r\n\r\n"
		if _, err := io.WriteString(conn, request); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(r, nil) //nolint:bodyclose // the upgraded connection is the body
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			return nil, fmt.Errorf("%v, %w", resp, err)
		}
	}
	c := &carrier{conn, r, byHTTP}
	p.carrier.Store(c)
	return c, nil
}

// probe is one readiness probe: the status, 0 when nobody answers.
func (p *proxyProcess) probe() int {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := client.Get("http://" + p.health + "/healthz?x=y")
	if err != nil {
		return 0
	}
	_ = r.Body.Close()
	return r.StatusCode
}

// becomes waits until the probe answers status.
func (p *proxyProcess) becomes(status int) {
	p.t.Helper()
	for p.probe() != status {
		select {
		case err := <-p.waited:
			p.t.Fatalf("the proxy has ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// term ends the proxy as the kubelet does, and expects exit status 0.
func (p *proxyProcess) term() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := <-p.waited; err != nil {
		p.t.Errorf("the proxy ends with %v", err)
	}
}

// serveHTTP is a program that answers every request with name and the request's body.
func serveHTTP(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", name, body)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

func TestReadinessOfASwap(t *testing.T) {
	p := start(t, serveHTTP(t, "laptop"))
	p.becomes(503) // a session alone is not enough
	p.laptop.SetReady(true)
	p.becomes(200)
	r, err := http.Get("http://" + p.listen) // ready means: the port is open
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	p.laptop.SetReady(false)
	p.becomes(503)
	p.term()
}

func TestReadinessOfConnect(t *testing.T) {
	p := start(t, "")
	p.becomes(200)
	if info, ok := p.laptop.Info(); !ok || info.Version != "devel" || info.Ndots == 0 {
		t.Errorf("info %+v, %v", info, ok)
	}
	if c, err := p.laptop.DialContext(t.Context(), "tcp", p.health); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the pod's own loopback: %v, %v", c, err)
	}
	p.term()
}

func TestServeDialsCanBeTurnedOff(t *testing.T) {
	p := start(t, "", "--serve-dials=false")
	if c, err := p.laptop.DialContext(t.Context(), "tcp", "192.0.2.1:80"); err == nil || !strings.Contains(err.Error(), "not served") {
		t.Errorf("%v, %v", c, err)
	}
	p.term()
}

// The door on the pod's address leads to the same session as the one on loopback.
func TestAConnectionOutlivesAMoveBetweenTheDoors(t *testing.T) {
	p := start(t, servertest.TCP(t, servertest.Echo), "--podproxy", freeAddress(t))
	p.laptop.SetReady(true)
	p.becomes(200)
	c, err := net.Dial("tcp", p.listen)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, byHTTP := range []bool{false, true, true, false} {
		p.byHTTP.Store(byHTTP)
		_ = p.carrier.Load().Close()
		if _, err := io.WriteString(c, "still here"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len("still here"))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "still here" {
			t.Fatalf("%q, %v", got, err)
		}
		if p.carrier.Load().byHTTP != byHTTP {
			t.Error("it went by the other door")
		}
	}
	p.term()
}

func TestTermWithoutASessionEndsAtOnce(t *testing.T) {
	p := start(t, serveHTTP(t, "laptop"), "--drain-delay", "1h", "--drain", "1h")
	p.laptop.SetReady(true)
	p.becomes(200)
	p.stopLaptop()
	p.becomes(503)
	p.term()
}

func TestTermLosesNoRequest(t *testing.T) {
	original := serveHTTP(t, "original")
	p := start(t, serveHTTP(t, "laptop"), "--drain-delay", "2s", "--drain", "20s")
	p.laptop.SetReady(true)
	p.becomes(200)

	// The Service: new connections go to the pod while it is ready, and to the original when it is not.
	var endpoint atomic.Pointer[string]
	endpoint.Store(&p.listen)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", *endpoint.Load())
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { // the kubelet and kube-proxy
		for ctx.Err() == nil && p.probe() == 200 {
			time.Sleep(20 * time.Millisecond)
		}
		endpoint.Store(&original)
	})

	var laptop, other atomic.Int64
	counted := make(chan struct{}, 1)
	client := func(method string, keepAlive bool, every time.Duration) {
		transport := &http.Transport{DialContext: dial, DisableKeepAlives: !keepAlive}
		defer transport.CloseIdleConnections()
		c := http.Client{Transport: transport}
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(every): // after the answer: a late one must not be followed by a request at once
			}
			body := fmt.Sprintf("request %d %s", n, strings.Repeat("x", n%3*20_000))
			// Without GetBody: net/http repeats no POST that the server may have seen.
			request, err := http.NewRequestWithContext(t.Context(), method, "http://service/", io.NopCloser(strings.NewReader(body)))
			if err != nil {
				t.Error(err)
				return
			}
			if method == http.MethodGet {
				body, request.Body = "", nil
			}
			r, err := c.Do(request)
			if err != nil {
				t.Errorf("request lost: %v", err)
				continue
			}
			answer, err := io.ReadAll(r.Body)
			_ = r.Body.Close()
			who, rest, _ := strings.Cut(string(answer), " ")
			if err != nil || rest != body {
				t.Errorf("answer lost: %d bytes, %v", len(answer), err)
			}
			if who == "laptop" {
				laptop.Add(1)
			} else if other.Add(1) > 200 {
				select {
				case counted <- struct{}{}:
				default:
				}
			}
		}
	}
	for n := range 4 {
		wg.Go(func() { client(http.MethodGet, true, time.Duration(10+5*n)*time.Millisecond) })
		// Longer, so that a busy machine does not make a request and our end cross on their way.
		wg.Go(func() { client(http.MethodPost, true, time.Duration(600+100*n)*time.Millisecond) })
		wg.Go(func() { client(http.MethodPost, false, time.Duration(15+5*n)*time.Millisecond) })
	}
	for laptop.Load() < 200 {
		time.Sleep(time.Millisecond) // until the load is steady; the test's own limit is the only bound
	}
	p.term()
	<-counted // the original has taken over
	stop()
	wg.Wait()
	t.Logf("%d requests answered on the laptop, %d by the original", laptop.Load(), other.Load())
}

func TestHealthAnswersUnderSlowConnections(t *testing.T) {
	p := start(t, "")
	for range 3 * maxProbes { // strangers that send half a request and hold the connection
		c, err := net.Dial("tcp", p.health)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n")
	}
	if status := p.probe(); status != 200 {
		t.Errorf("the kubelet gets %d", status)
	}
	for _, request := range []string{"POST / HTTP/1.1\r\n\r\n", "\r\n\r\n", "GET / " + strings.Repeat("x", 2*maxProbe)} {
		c, err := net.Dial("tcp", p.health)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, request)
		answer, _ := io.ReadAll(c) // the end, or a reset
		_ = c.Close()
		if len(answer) > 0 {
			t.Errorf("%.20q is answered with %q", request, answer)
		}
	}
	p.term()
}

// The first probe waits for readiness a little: the next one would come a second later.
func TestFirstProbeWaits(t *testing.T) {
	h := newHealth(slog.New(slog.DiscardHandler))
	h.hold = time.Hour
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.serve(ctx, ln) }()
	ask := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
		return c
	}
	hears := func(c net.Conn, want string) {
		t.Helper()
		answer, _ := io.ReadAll(c)
		_ = c.Close()
		if !strings.HasPrefix(string(answer), want) || want == "" && len(answer) > 0 {
			t.Errorf("%q, want %q", answer, want)
		}
	}
	var waiting []net.Conn
	for range maxProbes + 2 {
		waiting = append(waiting, ask())
	}
	hears(waiting[0], "") // those that are too many
	hears(waiting[1], "")
	h.set(true)
	for _, c := range waiting[2:] {
		hears(c, "HTTP/1.1 200 OK")
	}
	h.set(false)
	hears(ask(), "HTTP/1.1 503")
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}

	// One that is never ready does not wait for its probes when it ends.
	h = newHealth(slog.New(slog.DiscardHandler))
	h.hold = time.Hour
	if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	go func() { served <- h.serve(ctx, ln) }()
	c := ask()
	for accepted := false; !accepted; {
		h.mu.Lock()
		accepted = len(h.probes) == 1
		h.mu.Unlock()
	}
	cancel()
	hears(c, "")
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestPortsThatCouldNotBeOpenedAreTriedAgain: whatever was in the way for a moment does not keep callers away for ever.
func TestPortsThatCouldNotBeOpenedAreTriedAgain(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := config{tunnel: "127.0.0.1:0", health: "127.0.0.1:0", listen: []int{other.Addr().(*net.TCPAddr).Port}}
	log := slog.New(slog.DiscardHandler)
	p := &proxy{config: c, log: log, health: newHealth(log), server: &tunnel.Server{}, useless: make(chan struct{})}
	if p.server.Key, err = tunnel.NewKey(); err != nil {
		t.Fatal(err)
	}
	p.server.Client = p.server.Key.Fingerprint()
	p.ports = &intercept.Interceptor{Host: "127.0.0.1", Ports: c.listen, Open: p.server.Open, Log: log}
	d, err := c.open()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.run(ctx, d); err != nil {
			t.Error(err)
		}
	})
	p.onReady(true)
	if p.health.ready.Load() {
		t.Error("ready, with a port that another has")
	}
	_ = other.Close()
	select {
	case <-p.health.first:
	case <-time.After(3 * retryPause):
		t.Error("not ready, though the port is free")
	}
	cancel()
	wg.Wait()
}
