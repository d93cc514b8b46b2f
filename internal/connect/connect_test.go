package connect

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
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/internal/hint"
	"bridge/internal/netns"
	"bridge/internal/ping"
	"bridge/internal/servertest"
	"bridge/pkg/tunnel"
)

// getEnv makes the test binary a program that gets these URLs and exits with 7.
const getEnv = "BRIDGE_TEST_GET"

func TestMain(m *testing.M) {
	netns.Main()
	if urls := os.Getenv(getEnv); urls != "" {
		for url := range strings.FieldsSeq(urls) {
			if address, ok := strings.CutPrefix(url, "udp://"); ok {
				fmt.Println(sayByUDP(address))
				continue
			}
			if host, ok := strings.CutPrefix(url, "ping://"); ok {
				fmt.Println(pinged(host))
				continue
			}
			if address, ok := strings.CutPrefix(url, "listen://"); ok {
				fmt.Println(first(address))
				continue
			}
			resp, err := http.Get(url)
			if err != nil {
				fmt.Println("error:", err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			fmt.Printf("%s %v\n", body, err)
		}
		os.Exit(7)
	}
	goleak.VerifyTestMain(m)
}

// first is what the first who comes to an address says, as a debugger has one client alone.
func first(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err.Error()
	}
	c, err := l.Accept()
	if err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(c)
	return fmt.Sprintf("%s %v", b, err)
}

// pinged is what an echo to host gets.
func pinged(host string) string {
	addrs, err := net.LookupHost(host)
	if err != nil {
		return err.Error()
	}
	c, err := ping.Dial(context.Background(), net.JoinHostPort(addrs[0], "0"))
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 100)
	n, err := c.Write([]byte("\x00\x01pong"))
	if err == nil {
		n, err = c.Read(b)
	}
	if err != nil {
		return err.Error()
	}
	return string(b[2:n])
}

// sayByUDP is what address answers to "hello", which is said until it does.
func sayByUDP(address string) string {
	c, err := net.Dial("udp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	b := make([]byte, 100)
	for range 100 {
		if _, err := c.Write([]byte("hello")); err != nil {
			return err.Error()
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := c.Read(b); err == nil {
			return string(b[:n])
		}
	}
	return "nothing"
}

// pod is a real tunnel server; dial is what it dials with.
type pod struct {
	client *tunnel.Client
	states chan tunnel.State // of client, the first few
	cut    func()            // ends the pod's end: no session any more
}

func (p *pod) tunnel() *tunnel.Client { return p.client }

func startPod(t *testing.T, info tunnel.Info, dial func(ctx context.Context, network, address string) (net.Conn, error)) *pod {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	laptop, server := newKey(t), newKey(t)
	s := &tunnel.Server{Key: server, Client: laptop.Fingerprint(), Info: func() tunnel.Info { return info }, Dial: dial}
	c := &tunnel.Client{Key: laptop, Carrier: func(ctx context.Context) (net.Conn, string, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		return conn, "pod", err
	}}
	states := make(chan tunnel.State, 16)
	c.OnState = func(st tunnel.State) {
		select {
		case states <- st:
		default:
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	serverCtx, cut := context.WithCancel(ctx)
	var wg sync.WaitGroup
	serverEnd := make(chan struct{})
	wg.Go(func() {
		defer close(serverEnd)
		if err := s.Serve(serverCtx, ln); err != nil {
			t.Errorf("pod: %v", err)
		}
	})
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("laptop: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); cut(); wg.Wait() })
	return &pod{client: c, states: states, cut: func() { cut(); <-serverEnd }}
}

func newKey(t *testing.T) tunnel.Key {
	t.Helper()
	k, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run runs an entrance until the test ends and checks that it then returns nil.
func run(t *testing.T, c *tunnel.Client, change ...func(*Options)) *Entrance {
	t.Helper()
	o := Options{
		Listen: "127.0.0.1:0", DNSListen: "localhost:0",
		System: func() ([]string, error) { return nil, errors.New("no system resolver here") },
	}
	for _, f := range change {
		f(&o)
	}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, func() *tunnel.Client { return c }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return e
}

// answer is a resolver of one name for one TCP connection: it gives every A query the address 10.96.0.7.
// The bytes are DNS's, as internal/dns alone knows its library.
func answer(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return
		}
		q := make([]byte, int(head[0])<<8|int(head[1]))
		if _, err := io.ReadFull(r, q); err != nil {
			return
		}
		m := answerTo(q, nil)
		if _, err := c.Write(append([]byte{byte(len(m) >> 8), byte(len(m))}, m...)); err != nil {
			return
		}
	}
}

func answerTo(q []byte, _ net.Addr) []byte {
	end := 12 + bytes.IndexByte(q[12:], 0) + 5      // the question's end
	m := append([]byte{}, q[:end]...)               // without EDNS
	m[2], m[3] = 0x85, 0x80                         // an authoritative answer
	m[7], m[11] = 1, 0                              // one answer, nothing additional
	m = append(m, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0) // the question's name, A, IN, TTL 0: not cached
	return append(m, 0, 4, 10, 96, 0, 7)
}

// cluster dials as the pod would.
func cluster(t *testing.T) (info tunnel.Info, dial func(context.Context, string, string) (net.Conn, error)) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	t.Cleanup(web.Close)
	info = tunnel.Info{
		Nameservers: []string{"10.96.0.10"},
		Search:      []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local"},
		Ndots:       5,
	}
	return info, func(ctx context.Context, network, address string) (net.Conn, error) {
		switch address {
		case "orders.shop:80":
			var d net.Dialer
			return d.DialContext(ctx, network, web.Listener.Addr().String())
		case "10.96.0.10:53":
			a, b := net.Pipe()
			go answer(b)
			return a, nil
		}
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
}

func TestBothEntrancesReachTheCluster(t *testing.T) {
	info, dial := cluster(t)
	e := run(t, startPod(t, info, dial).client)

	for _, scheme := range []string{"http", "socks5h"} {
		proxy := &url.URL{Scheme: scheme, Host: e.Proxy().String()}
		tr := &http.Transport{Proxy: http.ProxyURL(proxy)}
		c := &http.Client{Transport: tr}
		resp, err := c.Get("http://orders.shop/")
		if err != nil {
			t.Fatalf("%s: %v", scheme, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		tr.CloseIdleConnections()
		if err != nil || string(body) != "orders.shop" {
			t.Errorf("%s: %q, %v", scheme, body, err)
		}
		resp, err = c.Get("http://nobody.shop/")
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if scheme != "http" || resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "connection refused") {
				t.Errorf("%s, a refused target: %s %q", scheme, resp.Status, body)
			}
		} else if !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s, a refused target: %v", scheme, err)
		}
		tr.CloseIdleConnections()
	}

	if got, err := lookup(t, e, "orders"); err != nil || len(got) != 1 || got[0].String() != "10.96.0.7" {
		t.Errorf("orders: %v, %v", got, err)
	}
}

// Where the pod may ask its resolver over UDP alone, names are there all the same.
func TestNamesWhereUDPAloneIsLetThrough(t *testing.T) {
	resolver := servertest.UDP(t, "127.0.0.1", answerTo)
	info, dial := cluster(t)
	e := run(t, startPod(t, info, func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "udp" || address != "10.96.0.10:53" {
			return dial(ctx, network, "nobody:53")
		}
		var d net.Dialer
		return d.DialContext(ctx, network, resolver)
	}).client)
	for range 2 {
		if got, err := lookup(t, e, "orders"); err != nil || len(got) != 1 || got[0].String() != "10.96.0.7" {
			t.Errorf("orders: %v, %v", got, err)
		}
	}
}

// lookup asks the entrance's DNS server with Go's own resolver.
func lookup(t *testing.T, e *Entrance, name string) ([]net.IP, error) {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, e.DNS().String())
	}}
	return r.LookupIP(t.Context(), "ip4", name+".")
}

func TestDNSFailsAtOnceWithoutATunnel(t *testing.T) {
	info, dial := cluster(t)
	p := startPod(t, info, dial)
	if err := p.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask := Tunnel(p.tunnel).dialSoon(0)
	c, err := ask(t.Context(), "tcp", "10.96.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	unchanged := Tunnel(p.tunnel).unchanged(func(string, string, bool) (time.Time, bool) { return time.Time{}, true })
	if _, ok := unchanged("shop", "orders", false); !ok {
		t.Error("nothing is given again while the tunnel carries")
	}
	p.cut()
	for st := range p.states {
		if st.Phase == tunnel.Reconnecting {
			break
		}
	}
	if _, ok := unchanged("shop", "orders", false); ok {
		t.Error("what was known is given again without a tunnel")
	}
	// The context has no deadline: to wait for the next session would be for good.
	if _, err = ask(t.Context(), "tcp", "10.96.0.10:53"); !errors.Is(err, tunnel.ErrNoSession) {
		t.Errorf("%v", err)
	}
}

// A question goes to the pod with the dial, whose answer would cost another round trip.
func TestDNSDoesNotWaitForThePodsDial(t *testing.T) {
	info, _ := cluster(t)
	p := startPod(t, info, func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if err := p.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := Tunnel(p.tunnel).dialSoon(0)(t.Context(), "tcp", "10.96.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestRunEndsBeforeThereIsATunnel(t *testing.T) {
	e, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Run(ctx, func() *tunnel.Client { return &tunnel.Client{} }); err != nil {
		t.Error(err)
	}
}

func TestUsualPortsGiveWay(t *testing.T) {
	first, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := Open(Options{}) // at the latest now both are taken
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if first.Proxy() == second.Proxy() || first.DNS() == second.DNS() {
		t.Errorf("%v, %v", first, second)
	}
	mine := ""
	if runtime.GOOS == "linux" { // it alone says who has a port
		mine = " in use by another port here: it is given twice"
	}
	for _, tt := range []struct {
		o    Options
		code hint.Code
		say  string
	}{
		{Options{Listen: first.Proxy().String()}, hint.Other, mine},
		{Options{Listen: first.Proxy().String()}, hint.Other, "--listen: local address " + first.Proxy().String() + " is in use"},
		{Options{DNSListen: first.DNS().String()}, hint.Other, mine},
		{Options{DNSListen: first.DNS().String()}, hint.Other, "--dns-listen: local address " + first.DNS().String() + " is in use"},
		{Options{Listen: "127.0.0.1:65536"}, hint.Usage, "65536"},
		{Options{Listen: "0.0.0.0:0"}, hint.Usage, "not a loopback address"},
		{Options{DNSListen: ":5300"}, hint.Usage, "not a loopback address"},
		{Options{Listen: "nonsense"}, hint.Usage, "missing port"},
	} {
		e, err := Open(tt.o)
		if err == nil {
			e.Close()
			t.Errorf("%+v is open", tt.o)
		} else if hint.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.say) || hint.Of(err) == "" {
			t.Errorf("%+v: %v (code %d, hint %q)", tt.o, err, hint.CodeOf(err), hint.Of(err))
		}
	}
}
