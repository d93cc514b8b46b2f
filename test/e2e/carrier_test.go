//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/proxy"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	byPodProxy    = "tunnel: ready, by podproxy"
	byPortForward = "tunnel: degraded (it goes by port-forward"
)

// podProxyRole is what --carrier podproxy needs beside a command's own Role.
func podProxyRole() rbacv1.Role {
	return rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "pods-proxy"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods/proxy"}, Verbs: []string{"get"}}},
	}
}

// start starts bridge in the world's namespace with another kubeconfig.
func (w *world) bridgeAs(kubeconfig string, env []string, args ...string) *process {
	w.t.Helper()
	return w.bridgeWith(nil, kubeconfig, env, args...)
}

// bridgeWith is bridgeAs with a command that prepare changes.
func (w *world) bridgeWith(prepare func(*exec.Cmd), kubeconfig string, env []string, args ...string) *process {
	w.t.Helper()
	end := len(args)
	if i := slices.Index(args, "--"); i >= 0 {
		end = i
	}
	args = slices.Insert(slices.Clone(args), end, "-n", w.ns)
	return startWith(w.t, prepare, s.bridge, append([]string{"KUBECONFIG=" + kubeconfig, "GORACE=halt_on_error=1", "XDG_STATE_HOME=" + w.state}, env...), args...)
}

// connect starts bridge connect.
func (w *world) connect(kubeconfig string, env []string, args ...string) *process {
	w.t.Helper()
	return w.bridgeAs(kubeconfig, env, append([]string{"connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0"}, args...)...)
}

// socks waits for connect's proxy and returns its address.
func (p *process) socks() string {
	p.t.Helper()
	return regexp.MustCompile(`ALL_PROXY=socks5h://(\S+)`).FindStringSubmatch(p.prints("export ALL_PROXY="))[1]
}

// line is an open connection to something that sends back each line.
type line struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
	n int
}

// dialThrough opens one to the service orders.
func (w *world) dialThrough(c *process) *line {
	w.t.Helper()
	d, err := proxy.SOCKS5("tcp", c.socks(), nil, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	conn, err := d.Dial("tcp", "orders."+w.ns+":7000")
	if err != nil {
		w.t.Fatal(err)
	}
	return newLine(w.t, conn)
}

// newLine makes one of a connection to orders' port 7000.
func newLine(t *testing.T, conn net.Conn) *line {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	l := &line{t: t, Conn: conn, r: bufio.NewReader(conn)}
	if _, err := io.WriteString(conn, "echo\n"); err != nil {
		t.Fatal(err)
	}
	l.lives()
	return l
}

// lives sends something there and back, over the same connection as ever.
func (l *line) lives() {
	l.t.Helper()
	l.n++
	said := fmt.Sprintf("line %d %s\n", l.n, strings.Repeat("x", 10_000))
	_ = l.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(l, said); err != nil {
		l.t.Fatalf("line %d: %v", l.n, err)
	}
	if got, err := l.r.ReadString('\n'); err != nil || got != said {
		l.t.Fatalf("line %d: %d bytes came back, %v", l.n, len(got), err)
	}
}

// saysTimes waits until stderr has n lines that contain text.
func (p *process) saysTimes(text string, n int) {
	p.t.Helper()
	for timeout := time.After(patience); ; {
		p.stderr.mu.Lock()
		changed := p.stderr.changed
		p.stderr.mu.Unlock()
		if p.said(text) >= n {
			return
		}
		select {
		case <-changed:
		case <-p.ended:
			p.t.Fatalf("it ended before %d times %q", n, text)
		case <-timeout:
			p.t.Fatalf("%q came %d times, want %d", text, p.said(text), n)
		}
	}
}

// said is how many lines of stderr contain text.
func (p *process) said(text string) (n int) {
	for _, l := range p.stderr.all() {
		if strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// balancer is a load balancer before the API server: haproxy, as it comes with Debian, on the laptop.
type balancer struct {
	kubeconfig string // of somebody who goes through it and may do everything that is tested here
	address    string
	process    *process
	t          *testing.T
}

// balance starts one. It takes HTTP/1.1 alone, with a TLS of its own, and the rules of haproxy's frontend; "tcp" as rules
// has it pass on bytes as they are. What is silent for longer than idle is cut.
func (w *world) balance(host, idle string, rules ...string) *balancer {
	w.t.Helper()
	api, err := url.Parse(s.config.Host)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	path := func(name string, content []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, content, 0o600); err != nil {
			w.t.Fatal(err)
		}
		return p
	}
	ca := s.config.CAData
	if len(ca) == 0 {
		if ca, err = os.ReadFile(s.config.CAFile); err != nil {
			w.t.Fatal(err)
		}
	}
	b := &balancer{t: w.t, address: net.JoinHostPort(host, freePort(w.t))}
	conf := fmt.Sprintf("global\n  maxconn 1000\ndefaults\n  timeout connect 5s\n  timeout client %[1]s\n  timeout server %[1]s\n  timeout tunnel %[1]s\n", idle)
	trust := ca
	if len(rules) == 1 && rules[0] == "tcp" {
		conf += fmt.Sprintf("listen api\n  mode tcp\n  bind %s\n  server api %s\n", b.address, api.Host)
	} else {
		cert, key := selfSigned(w.t, host)
		trust = cert
		conf += fmt.Sprintf("listen api\n  mode http\n  bind %s ssl crt %s alpn http/1.1\n", b.address, path("balancer.pem", append(cert, key...)))
		for _, r := range rules {
			conf += "  " + r + "\n"
		}
		conf += fmt.Sprintf("  server api %s ssl verify required ca-file %s alpn http/1.1\n", api.Host, path("ca.pem", ca))
	}
	b.process = start(w.t, "haproxy", nil, "-db", "-q", "-f", path("haproxy.cfg", []byte(conf)))
	w.await("the load balancer", func() bool {
		conn, err := net.Dial("tcp", b.address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	// Its own credentials are a token: a client's certificate ends where TLS does.
	swap, connect := deployed(w.t, "swap"), deployed(w.t, "connect")
	direct := w.as("ada"+strings.ReplaceAll(b.address[strings.LastIndex(b.address, ":"):], ":", "-"), named(swap, b), named(connect, b), named(podProxyRole(), b), named(deployed(w.t, "exec"), b), named(deployed(w.t, "logs"), b))
	config, err := clientcmd.LoadFromFile(direct)
	if err != nil {
		w.t.Fatal(err)
	}
	c := config.Clusters["c"]
	c.Server, c.CertificateAuthorityData = "https://"+b.address, trust
	if len(rules) == 1 && rules[0] == "tcp" {
		c.TLSServerName = api.Hostname()
	}
	b.kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, b.kubeconfig); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// named gives a Role a name of its own: there may be several load balancers to one namespace.
func named(r rbacv1.Role, b *balancer) rbacv1.Role {
	r.Name += "-" + b.address[strings.LastIndex(b.address, ":")+1:]
	return r
}

// end kills it, and cuts all that goes through it.
func (b *balancer) end() {
	_ = b.process.cmd.Process.Kill()
	<-b.process.ended
}

// selfSigned is a certificate for a host, which is its own authority, and its key, in PEM.
func selfSigned(t *testing.T, host string) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a load balancer"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.ParseIP(host)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// Rules by which a load balancer lets one way pass.
const (
	noWebSocket = "http-request deny deny_status 400 if { req.hdr(upgrade) -i websocket }"
	noSPDY      = "http-request deny deny_status 400 if { req.hdr(upgrade) -m beg -i spdy }"
	noForward   = "http-request deny deny_status 400 if { path_end /portforward }"
	// The client of a connection that is dropped silently waits for ever.
	hangWebSocket = "http-request silent-drop if { req.hdr(upgrade) -i websocket }"
)

// Each carrier swaps and connects, through a load balancer that speaks HTTP/1.1 only and lets no other carrier pass.
func TestEachCarrierCarries(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		rules []string
		args  []string
	}{
		{"WebSocket", []string{noSPDY}, nil},
		{"SPDY", []string{noWebSocket}, []string{"--carrier", "portforward"}},
		{"SPDY where a WebSocket hangs", []string{hangWebSocket}, []string{"--carrier", "auto"}},
		{"podproxy", []string{noForward}, []string{"--carrier", "podproxy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			lb := w.balance("127.0.0.1", "1m", c.rules...)
			before := w.snapshot()
			b := w.bridgeAs(lb.kubeconfig, nil, append(append([]string{"swap", "deployment", "orders"}, localOrders(t)...), c.args...)...)
			b.says(swapped)
			for _, what := range []string{"half-close", "send-reset", "reset"} {
				w.check("--what", what, "--address", "orders:7000")
			}
			for _, what := range []string{"upload", "download"} {
				w.check("--what", what, "--address", "orders:7000", "--bytes", "20000000")
			}
			b.terminate()
			w.assertSnapshot(before)

			k := w.connect(lb.kubeconfig, nil, c.args...)
			l := w.dialThrough(k)
			if c.name == "podproxy" {
				k.says(byPodProxy)
				b.says(byPodProxy)
			}
			l.lives()
			k.terminate()
			w.assertSnapshot(before)
		})
	}
}

// The way that works is found while running, when the API server or what is before it is replaced.
func TestCarrierIsChosenAnewWhenLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	lb := w.balance("127.0.0.1", "1m", noWebSocket)
	k := w.connect(lb.kubeconfig, nil)
	l := w.dialThrough(k)
	conf := lb.process.cmd.Args[len(lb.process.cmd.Args)-1]
	for i, rule := range []string{noSPDY, hangWebSocket, noSPDY} {
		text, err := os.ReadFile(conf)
		if err != nil {
			t.Fatal(err)
		}
		for _, old := range []string{noWebSocket, noSPDY, hangWebSocket} {
			text = bytes.ReplaceAll(text, []byte(old), []byte(rule))
		}
		lb.end()
		if err := os.WriteFile(conf, text, 0o600); err != nil {
			t.Fatal(err)
		}
		lb.process = start(t, lb.process.cmd.Path, nil, lb.process.cmd.Args[1:]...)
		k.saysTimes("tunnel: ready", i+2)
		l.lives()
	}
	k.terminate()
}

// A load balancer that cuts what is silent for two seconds cuts every carrier, again and again, and no connection in them.
func TestConnectionsOutliveALoadBalancersCuts(t *testing.T) {
	t.Parallel()
	for _, carrier := range []string{"portforward", "podproxy"} {
		t.Run(carrier, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			lb := w.balance("127.0.0.1", "2s", "tcp")
			k := w.connect(lb.kubeconfig, nil, "--carrier", carrier)
			l := w.dialThrough(k)
			for n := 2; n <= 4; n++ {
				k.saysTimes("tunnel: ready", n)
				l.lives()
			}
			k.terminate()
		})
	}
}

// One that cuts after longer than bridge's own pings never finds a silent carrier. Usual is a minute; the tests' is
// shorter, but for a soak.
func TestSilentCarriersAreKeptAlive(t *testing.T) {
	t.Parallel()
	idle := soak(time.Minute, 10*time.Second)
	for _, carrier := range []string{"portforward", "podproxy"} {
		t.Run(carrier, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			lb := w.balance("127.0.0.1", fmt.Sprintf("%ds", int(idle.Seconds())), "tcp")
			k := w.connect(lb.kubeconfig, nil, "--carrier", carrier)
			l := w.dialThrough(k)
			// What the load balancer does to others says that its time is over.
			for range 2 {
				began := time.Now()
				silent, err := tls.Dial("tcp", lb.address, &tls.Config{InsecureSkipVerify: true})
				if err != nil {
					t.Fatal(err)
				}
				_ = silent.SetDeadline(time.Now().Add(idle + patience))
				_, err = io.WriteString(silent, "GET /livez HTTP/1.1\r\nHost: api\r\n\r\n")
				if err == nil {
					_, err = io.Copy(io.Discard, silent)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) < idle {
					t.Fatalf("the load balancer does not cut: %v after %v", err, time.Since(began))
				}
				_ = silent.Close()
			}
			l.lives()
			if n := k.said("tunnel: reconnecting"); n > 0 {
				t.Errorf("the carrier was lost %d times", n)
			}
			k.terminate()
		})
	}
}

// HTTPS_PROXY holds for every carrier.
func TestCarriersGoThroughHTTPSProxy(t *testing.T) {
	if !s.embedded {
		t.Skip("the laptop's own address is known in the embedded cluster")
	}
	t.Parallel()
	// Programs take no proxy to loopback, so the load balancer is at the laptop's other address.
	conn, err := net.Dial("udp", strings.TrimPrefix(s.config.Host, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	_ = conn.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, rule string
		args       []string
	}{
		{"WebSocket", noSPDY, nil},
		{"SPDY", noWebSocket, nil},
		{"podproxy", noForward, []string{"--carrier", "podproxy"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			lb := w.balance(host, "1m", c.rule)
			p := startConnectProxy(t)
			k := w.connect(lb.kubeconfig, []string{"HTTPS_PROXY=http://" + p.address, "NO_PROXY="}, c.args...)
			l := w.dialThrough(k)
			// The proxy is all that leads there: with it all connections are lost.
			p.cut()
			k.says("tunnel: reconnecting")
			k.saysTimes("tunnel: ready", 2)
			l.lives()
			k.terminate()
			if p.refused.Load() > 0 || p.tunnels.Load() < 2 {
				t.Errorf("%d tunnels, %d requests for something else", p.tunnels.Load(), p.refused.Load())
			}
		})
	}
}

// connectProxy is an HTTP proxy that knows CONNECT alone.
type connectProxy struct {
	address          string
	tunnels, refused atomic.Int32
	mu               sync.Mutex
	open             map[net.Conn]bool
}

func startConnectProxy(t *testing.T) *connectProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &connectProxy{address: ln.Addr().String(), open: map[net.Conn]bool{}}
	server := &http.Server{Handler: p}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() {
		_ = server.Close()
		p.cut()
		serving.Wait()
	})
	return p
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		p.refused.Add(1)
		http.Error(w, "CONNECT alone", http.StatusMethodNotAllowed)
		return
	}
	far, err := net.Dial("tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer far.Close()
	near, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer near.Close()
	p.tunnels.Add(1)
	p.keep(near, true)
	defer p.keep(near, false)
	_, _ = io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n")
	var both sync.WaitGroup
	both.Go(func() { _, _ = io.Copy(far, rw); _ = far.Close() })
	_, _ = io.Copy(near, far)
	_ = near.Close()
	both.Wait()
}

func (p *connectProxy) keep(c net.Conn, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.open[c] = true
	} else {
		delete(p.open, c)
	}
}

// cut ends all tunnels.
func (p *connectProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		_ = c.Close()
	}
}

// Without the right to pods/proxy a connect says so and goes by port-forward; and by pods/proxy when the right is there.
func TestPodProxyWithoutTheRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	who := w.as("ada", deployed(t, "connect"), deployed(t, "swap"))
	before := w.snapshot()
	k := w.connect(who, nil, "--carrier", "podproxy")
	why := k.says("carrier podproxy does not work, port-forward does")
	if !strings.Contains(why, "ada may not get pods/proxy in namespace "+w.ns) || !strings.Contains(why, "Role") {
		t.Errorf("it says %q", why)
	}
	k.says(byPortForward)
	l := w.dialThrough(k)
	role := podProxyRole()
	if _, err := s.client.RbacV1().Roles(w.ns).Create(t.Context(), &role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role.Name},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Name: "ada", Namespace: w.ns}},
	}
	if _, err := s.client.RbacV1().RoleBindings(w.ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.says("carrier podproxy works again")
	k.says(byPodProxy)
	l.lives()
	// The right goes again: what is open stays, and the next carrier is a port-forward.
	if err := s.client.RbacV1().RoleBindings(w.ns).Delete(t.Context(), role.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.client.RbacV1().Roles(w.ns).Delete(t.Context(), role.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.lives()
	if n := k.said("carrier podproxy does not work"); n != 1 {
		t.Errorf("it said %d times that podproxy does not work", n)
	}
	k.terminate()
	w.assertSnapshot(before)

	// A swap asks beforehand, and then opens no port.
	b := w.bridgeAs(who, nil, append([]string{"swap", "deployment", "orders", "--mode", "replace", "--carrier", "podproxy"}, localOrders(t)...)...)
	b.says("your account may not get pods/proxy in " + w.ns)
	b.says(swapped)
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "bridge-deployment-orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if args := d.Spec.Template.Spec.Containers[0].Args; strings.Contains(strings.Join(args, " "), "podproxy") {
		t.Errorf("the port is open: %q", args)
	}
	b.terminate()
	w.assertGivenBack(before)
}

// The port that podproxy needs is said, is among the container's, and lets nobody else in.
func TestPodProxyPort(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders", "--carrier", "podproxy"}, localOrders(t)...)
	dry := w.bridge(append(args, "--dry-run", "-o", "json")...)
	dry.exits(0)
	var plan struct {
		ProxyPorts struct{ PodProxy int32 }
	}
	if err := json.Unmarshal([]byte(strings.Join(dry.stdout.all(), "\n")), &plan); err != nil {
		t.Fatal(err)
	}
	port := plan.ProxyPorts.PodProxy
	w.assertSnapshot(before)

	b := w.bridge(args...)
	b.says(fmt.Sprintf("port %d is open on the proxy pod's address", port))
	b.says(byPodProxy)
	b.says(swapped)
	pod := w.pods("bridge.internal/proxy")[0]
	var declared []int32
	for _, p := range pod.Spec.Containers[0].Ports {
		declared = append(declared, p.ContainerPort)
	}
	if port == 0 || declared[len(declared)-1] != port {
		t.Errorf("the dry run names port %d, the pod declares %d", port, declared)
	}
	// A neighbour reaches the port, and is shown the door.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := w.exec(ctx, nil, io.Discard, "get", "--url", fmt.Sprintf("http://%s:%d", pod.Status.PodIP, port))
	if err == nil || !strings.Contains(err.Error(), "400") {
		t.Errorf("a neighbour's request: %v", err)
	}
	// Without the flag there is none.
	b.terminate()
	w.assertGivenBack(before)
	b = w.swap()
	if args := w.pods("bridge.internal/proxy")[0].Spec.Containers[0].Args; strings.Contains(strings.Join(args, " "), "--podproxy") {
		t.Errorf("a port is open: %q", args)
	}
	b.terminate()
}

// A network that keeps the API server from the pod is noticed, named, and gone around; open connections go on, and
// back when it lets them.
func TestPodProxyCutByANetworkPolicy(t *testing.T) {
	if !s.embedded {
		t.Skip("the rules are those of the embedded cluster's node")
	}
	t.Parallel()
	// The embedded cluster's network knows no NetworkPolicy: these are the rules one becomes on a node.
	for _, target := range []string{"DROP", "REJECT"} {
		t.Run(target, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			k := w.connect(s.kubeconfig, nil, "--carrier", "podproxy")
			k.says(byPodProxy)
			l := w.dialThrough(k)
			pod := w.pods("bridge.internal/proxy")[0]
			ports := pod.Spec.Containers[0].Ports
			rule := []string{"OUTPUT", "-p", "tcp", "-d", pod.Status.PodIP, "--dport", fmt.Sprint(ports[len(ports)-1].ContainerPort), "-j", target}
			if target == "REJECT" {
				rule = append(rule, "--reject-with", "tcp-reset")
			}
			onNode := func(op string) error {
				args := append([]string{"--net=/run/netns/" + clusterName + "-node1", "iptables", "-w", op}, rule...)
				out, err := exec.Command("nsenter", args...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			}
			if err := onNode("-I"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = onNode("-D") })
			k.says("tunnel: reconnecting")
			why := k.says("carrier podproxy does not work, port-forward does")
			if !strings.Contains(why, "NetworkPolicy") {
				t.Errorf("it says %q", why)
			}
			k.says(byPortForward)
			l.lives()
			if err := onNode("-D"); err != nil {
				t.Fatal(err)
			}
			k.says("carrier podproxy works again")
			k.saysTimes(byPodProxy, 2)
			l.lives()
			k.terminate()
		})
	}
}
