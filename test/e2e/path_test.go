//go:build linux

package e2e

import (
	"io"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// path is a bridge's own way to the API server, by a relay on loopback: what happens on it happens to
// no other test. The relay knows nothing of TLS, so it is a router or a load balancer, no more.
type path struct {
	t          *testing.T
	kubeconfig string
	target     string // the API server's host:port
	ln         *net.TCPListener
	wg         sync.WaitGroup

	mu      sync.Mutex
	conns   map[*net.TCPConn]bool
	dropped bool
}

func newPath(t *testing.T) *path {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	api, err := url.Parse(s.config.Host)
	must(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	p := &path{t: t, target: api.Host, ln: ln.(*net.TCPListener), conns: map[*net.TCPConn]bool{}, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig")}
	config, err := clientcmd.LoadFromFile(s.kubeconfig)
	must(err)
	for _, c := range config.Clusters {
		c.Server, c.TLSServerName = "https://"+ln.Addr().String(), api.Hostname()
	}
	must(clientcmd.WriteToFile(*config, p.kubeconfig))
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *path) accept() {
	for {
		from, err := p.ln.AcceptTCP()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.relay(from) })
	}
}

// relay ends both connections as soon as one of them ends.
func (p *path) relay(from *net.TCPConn) {
	defer from.Close()
	c, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	to := c.(*net.TCPConn)
	defer to.Close()
	p.mu.Lock()
	p.conns[from], p.conns[to] = true, true
	p.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]*net.TCPConn{{from, to}, {to, from}} {
		p.wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		})
	}
	<-done
	p.mu.Lock()
	delete(p.conns, from)
	delete(p.conns, to)
	p.mu.Unlock()
}

// cut resets every connection on the path; what is under way is lost.
func (p *path) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// swallow drops every packet of the bridge's on the path, in both directions, until pass.
func (p *path) swallow() {
	p.t.Helper()
	p.rules("-I")
	p.mu.Lock()
	p.dropped = true
	p.mu.Unlock()
	p.t.Cleanup(p.pass)
}

func (p *path) pass() {
	p.mu.Lock()
	dropped := p.dropped
	p.dropped = false
	p.mu.Unlock()
	if dropped {
		p.rules("-D")
	}
}

func (p *path) rules(op string) {
	p.t.Helper()
	_, port, err := net.SplitHostPort(p.ln.Addr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	for _, direction := range []string{"--dport", "--sport"} {
		if out, err := exec.Command("iptables", "-w", "5", op, "INPUT", "-i", "lo", "-p", "tcp", direction, port, "-j", "DROP").CombinedOutput(); err != nil {
			p.t.Fatalf("%v: %s", err, out)
		}
	}
}
