//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/proxy"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// association is a client of UDP by SOCKS5 (RFC 1928 section 7).
type association struct {
	control net.Conn
	relay   *net.UDPConn
}

func associate(t *testing.T, proxy string) *association {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = c.Write([]byte{5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, 0, 0})
	b := make([]byte, 2+10)
	if _, err := io.ReadFull(c, b); err != nil || !bytes.HasPrefix(b, []byte{5, 0, 5, 0, 0, 1}) {
		t.Fatalf("answer % x, %v", b, err)
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[6:10])), binary.BigEndian.Uint16(b[10:]))
	relay, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() })
	return &association{c, relay}
}

// to is an end of the association that sends to one target. It implements net.PacketConn, as net.Resolver asks of UDP.
func (a *association) to(t *testing.T, target string) *associated {
	t.Helper()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	number, err := net.LookupPort("udp", port)
	if err != nil {
		t.Fatal(err)
	}
	head := []byte{0, 0, 0}
	if addr, err := netip.ParseAddr(host); err != nil {
		head = append(append(head, 3, byte(len(host))), host...)
	} else {
		head = append(append(head, 1), addr.AsSlice()...) // the tests' clusters have no others
	}
	return &associated{a.relay, binary.BigEndian.AppendUint16(head, uint16(number))}
}

type associated struct {
	*net.UDPConn
	head []byte
}

func (a *associated) Write(b []byte) (int, error) {
	_, err := a.UDPConn.Write(append(bytes.Clone(a.head), b...))
	return len(b), err
}

var errOther = errors.New("a datagram of another target")

func (a *associated) Read(b []byte) (int, error) {
	buf := make([]byte, 64<<10)
	n, err := a.UDPConn.Read(buf)
	if err != nil {
		return 0, err
	}
	data, ok := bytes.CutPrefix(buf[:n], a.head)
	if !ok {
		return 0, fmt.Errorf("%w: % x", errOther, buf[:min(n, 40)])
	}
	return copy(b, data), nil
}

// ask says data until it is answered, as UDP may lose it.
func (a *associated) ask(t *testing.T, data string) string {
	t.Helper()
	b := make([]byte, 64<<10)
	for deadline := time.Now().Add(patience); ; {
		if _, err := a.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		_ = a.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := a.Read(b)
		if err == nil {
			return string(b[:n])
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errOther) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Datagrams reach the cluster by the proxy port: by name and by address, and its resolver.
func TestConnectDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(echoYAML, s.image))
	w.awaitReady("app=echo", 1)
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	before := w.snapshot()
	c := w.connect(s.kubeconfig, nil)
	port := c.socks()

	a := associate(t, port)
	for _, host := range []string{"echo", "echo." + w.ns, "echo." + w.ns + ".svc.cluster.local", svc.Spec.ClusterIP, w.pods("app=echo")[0].Status.PodIP} {
		if got := a.to(t, host+":7000").ask(t, "hello "+host); got != "originalhello "+host {
			t.Errorf("%s: %q", host, got)
		}
	}

	// Each question has an association of its own, made before: the resolver asks on goroutines of its own.
	const questions = 8
	names := make(chan net.Conn, questions)
	for range questions {
		names <- associate(t, port).to(t, "kube-dns.kube-system:53")
	}
	var asked atomic.Int32
	resolver := &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		if asked.Add(1); network != "udp" {
			return nil, errors.New("not over " + network)
		}
		select {
		case c := <-names:
			return c, nil
		default:
			return nil, errors.New("too many questions")
		}
	}}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if addrs, err := resolver.LookupHost(ctx, "echo."+w.ns+".svc.cluster.local."); err != nil || len(addrs) != 1 || addrs[0] != svc.Spec.ClusterIP || asked.Load() == 0 {
		t.Errorf("%v, %v after %d questions, want %s", addrs, err, asked.Load(), svc.Spec.ClusterIP)
	}

	// With its connection the association ends: nobody has the socket.
	_ = a.control.Close()
	w.await("the association's socket to be closed", func() bool {
		_, err = a.relay.Write([]byte("x"))
		return err != nil
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	c.terminate()
	w.assertSnapshot(before)
}

// What the pod meets is what a program is told, by SOCKS5 and by HTTP, and its connect goes on.
func TestConnectSaysWhatThePodMeets(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	c := w.connect(s.kubeconfig, nil)
	address := c.socks()
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: address})}
	defer tr.CloseIdleConnections()
	pod := w.pods("app=orders")[0].Status.PodIP
	for _, tt := range []struct {
		target string
		reply  byte
		token  string // of Proxy-Status
		says   string
	}{
		{"nobody." + w.ns + ".svc.cluster.local:80", 4, "dns_error", "no such host"},
		{"nobody.example:80", 4, "dns_error", "lookup nobody.example"}, // REFUSED by a resolver that knows the cluster alone
		{pod + ":9", 5, "connection_refused", "connection refused"},
		{"169.254.169.254:80", 2, "destination_ip_prohibited", "permission denied"},
		{"localhost:80", 2, "destination_ip_prohibited", "permission denied"},
	} {
		if got := socksReply(t, address, tt.target); got != tt.reply {
			t.Errorf("%s: SOCKS5 reply %d, want %d", tt.target, got, tt.reply)
		}
		resp, err := (&http.Client{Transport: tr}).Get("http://" + tt.target + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if got := resp.Header.Get("Proxy-Status"); resp.StatusCode != http.StatusBadGateway || got != "bridge; error="+tt.token || !strings.Contains(string(body), tt.says) {
			t.Errorf("%s: %s, Proxy-Status %q, %q, want %s and %q", tt.target, resp.Status, got, body, tt.token, tt.says)
		}
	}
	if got := socksReply(t, address, "orders:80"); got != 0 {
		t.Errorf("orders: %d", got)
	}
	c.terminate()
}

// While the tunnel is down a program waits for --dial-timeout, and is not told that its target refused; what is made meanwhile, and when it is back, is
// answered.
func TestConnectWhileTheTunnelIsDown(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withOrders()
	p := newPath(t)
	c := w.connect(p.kubeconfig, nil, "--dial-timeout", "3s", "--resume-window", "0")
	address := c.socks()
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	program := w.bridgeAs(p.kubeconfig, nil, "connect", "--dial-timeout", "3s", "--resume-window", "0", "--", "sh", "-c",
		`code=0; while [ $code = 0 ]; do curl -sS --max-time 60 http://`+svc.Spec.ClusterIP+`; code=$?; echo; sleep 0.2; done; echo code $code; sleep 1000`)
	program.prints("original")
	if got := socksReply(t, address, "orders:80"); got != 0 {
		t.Fatalf("SOCKS5 reply %d", got)
	}
	p.swallow()
	c.says("tunnel: reconnecting (")
	program.says("tunnel: reconnecting (")
	if got := socksReply(t, address, "orders:80"); got != 6 {
		t.Errorf("SOCKS5 reply %d, want 6, no answer in time", got)
	}
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: address})}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://orders/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if got := resp.Header.Get("Proxy-Status"); resp.StatusCode != http.StatusGatewayTimeout || got != "bridge; error=connection_timeout" || !strings.Contains(string(body), "the tunnel is down") {
		t.Errorf("%s, Proxy-Status %q, %q", resp.Status, got, body)
	}
	program.says("Connection reset by peer")
	program.prints("code 56")
	p.pass()
	c.saysTimes("tunnel: ready", 2)
	if got := socksReply(t, address, "orders:80"); got != 0 {
		t.Errorf("afterwards: SOCKS5 reply %d", got)
	}
	c.terminate()
	program.signal(syscall.SIGTERM)
	program.exits(128 + int(syscall.SIGTERM))
}

// A link-local address is dialled where that was allowed, and nowhere else.
func TestConnectDialsWhatIsAllowed(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t).withOrders()
	// As a node's DNS cache has one.
	const address = "169.254.77.1"
	onLoopback := func(verb string) error {
		out, err := exec.Command("ip", "-n", clusterName+"-node1", "address", verb, address+"/32", "dev", "lo").CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip address %s: %w: %s", verb, err, out)
		}
		return nil
	}
	if err := onLoopback("add"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := onLoopback("del"); err != nil {
			t.Error(err)
		}
	})
	onNode(t, nil, s.sample, "serve", "--name", "node", "--http", address+":8077").says("listens on")
	for _, c := range []struct {
		flags []string
		code  string
	}{{nil, "502"}, {[]string{"--allow-cidr", "169.254.78.0/24"}, "502"}, {[]string{"--allow-cidr", address + "/32"}, "200"}} {
		b := w.connect(s.kubeconfig, nil, c.flags...)
		out, err := exec.Command("curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "-x", "http://"+b.socks(), "http://"+address+":8077/").CombinedOutput()
		if err != nil || string(out) != c.code {
			t.Errorf("%q: %s, %v, want %s", c.flags, out, err, c.code)
		}
		b.terminate()
	}
	// A program that allows it has it, and a target of forward's.
	if got := w.bridge("connect", "--allow-cidr", address+"/32", "--", "curl", "-sS", "--max-time", "20", "http://"+address+":8077/").prints("node"); got != "node" {
		t.Errorf("%q", got)
	}
	f := w.bridge("forward", ":"+address+":8077", "--allow-cidr", address+"/32")
	f.assertAnswers(f.from("Forwarding from 127."), "node")
	f.terminate()
}

// socksReply is what a proxy answers who wants to connect to a named target.
func socksReply(t *testing.T, proxy, target string) byte {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	number, err := net.LookupPort("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	ask := append([]byte{5, 1, 0, 5, 1, 0, 3, byte(len(host))}, host...)
	if _, err := c.Write(binary.BigEndian.AppendUint16(ask, uint16(number))); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 2+10)
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b[3]
}

// Thousands of connections by SOCKS5 are all open before the first is used, and nothing is left of them.
func TestConnectManyConnections(t *testing.T) {
	t.Parallel()
	const many, atOnce = 5000, 200
	w := newWorld(t).withOrders()
	c := w.connect(s.kubeconfig, nil)
	dialer, err := proxy.SOCKS5("tcp", c.socks(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := c.descriptors()
	conns := make([]net.Conn, many)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				_ = conn.Close()
			}
		}
	}()
	each := func(do func(i int) error) {
		t.Helper()
		var g errgroup.Group
		g.SetLimit(atOnce)
		for i := range many {
			g.Go(func() error {
				if err := do(i); err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	each(func(i int) (err error) {
		conns[i], err = dialer.Dial("tcp", "orders:7000")
		return err
	})
	each(func(i int) error {
		_ = conns[i].SetDeadline(time.Now().Add(patience))
		want := fmt.Sprintf("connection %d\n", i)
		if _, err := io.WriteString(conns[i], "echo\n"+want); err != nil {
			return err
		}
		line, err := bufio.NewReader(conns[i]).ReadString('\n')
		if err == nil && line != want {
			err = fmt.Errorf("got %q", line)
		}
		return err
	})
	each(func(i int) error { return conns[i].Close() })
	// Goroutines are counted by internal/socks5's tests. Some descriptors may be bridge's own questions to the API server.
	const own = 10
	w.await("the connections' descriptors to be closed", func() bool { return c.descriptors() <= before+own })
	c.terminate()
}
