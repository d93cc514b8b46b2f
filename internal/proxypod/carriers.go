package proxypod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

const (
	// podProxyTimeout bounds pods/proxy when another way is still to be tried: the API server itself waits 30 s for a
	// pod, and a carrier has 10 s. firstTimeout does the same for a port-forward on a detour.
	podProxyTimeout = 3 * time.Second
	firstTimeout    = 6 * time.Second
	// maxRefused is how often in a row a refusal by the pod counts as one that does not listen yet, which
	// a port-forward would meet as well: tries in little more than a second.
	maxRefused = 4

	// On a detour pods/proxy is tried after probeFirst, then after twice as long each time. Once it has carried something,
	// the next detour begins with probeFirst.
	probeFirst   = time.Second
	probeMax     = 5 * time.Minute
	probeTimeout = 10 * time.Second
)

// Carriers dials the carriers of the tunnel to a proxy: by port-forward, or, when the proxy has a port for it, through
// the API server's proxy to the pod. While the latter does not work the tunnel makes a detour by port-forward.
type Carriers struct {
	proxy *Proxy
	ports Ports
	say   func(string)
	left  chan error // why the detour that begins is made

	// OnState says what becomes of the tunnel. It is tunnel.Client's.
	OnState func(tunnel.State)

	mu       sync.Mutex
	detour   bool
	forwards map[*detourConn]struct{} // that carry the tunnel: it can have two carriers
	useful   bool                     // something came by pods/proxy since the last detour began
	refused  int                      // by the pod, in a row
	last     corev1.Pod               // that a carrier went to
}

// NewCarriers are those to p. say gets what the user should know, a line each, from several goroutines.
func NewCarriers(p *Proxy, ports Ports, say func(string)) *Carriers {
	c := &Carriers{proxy: p, ports: ports, say: say, left: make(chan error, 1), forwards: make(map[*detourConn]struct{})}
	c.OnState = sayTunnel(say, c.by)
	return c
}

// PodProxyNote tells the user that the port is there.
func (p Ports) PodProxyNote() string {
	return fmt.Sprintf("port %d is open on the proxy pod's address, for the API server; it lets in this command's key alone", p.PodProxy)
}

// Dial makes a carrier, for tunnel.Client. It waits for a pod to run as long as ctx allows.
func (c *Carriers) Dial(ctx context.Context) (conn net.Conn, name string, err error) {
	pod, err := c.proxy.running(ctx)
	if err != nil {
		return nil, "", err
	}
	switch {
	case c.ports.PodProxy == 0:
		conn, err = c.dialForward(ctx, pod, nil)
	case c.onDetour():
		first, cancel := context.WithTimeout(ctx, firstTimeout)
		conn, err = c.dialForward(first, pod, nil)
		cancel()
		if err != nil && ctx.Err() == nil {
			if proxied, perr := c.dialPodProxy(ctx, pod); perr == nil {
				conn, err = proxied, nil
			}
		}
	default:
		first, cancel := context.WithTimeout(ctx, podProxyTimeout)
		conn, err = c.dialPodProxy(first, pod)
		cancel()
		if err != nil && ctx.Err() == nil && !c.listensSoon(err) {
			conn, err = c.dialForward(ctx, pod, err)
		}
	}
	if err == nil {
		c.sayOther(pod)
	}
	return conn, peer(pod), err
}

// sayOther says when the tunnel goes to another process than before.
func (c *Carriers) sayOther(pod corev1.Pod) {
	c.mu.Lock()
	before := c.last
	c.last = pod
	c.mu.Unlock()
	if before.Name != "" && peer(before) != peer(pod) {
		c.say(fmt.Sprintf("the proxy was lost in pod %s, and runs again in pod %s on node %s: connections through it were reset", before.Name, pod.Name, pod.Spec.NodeName))
	}
}

func (c *Carriers) onDetour() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.detour
}

// listensSoon tells whether err only means that the proxy in the pod is not up yet.
func (c *Carriers) listensSoon(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !errors.Is(err, syscall.ECONNREFUSED) {
		c.refused = 0
		return false
	}
	c.refused++
	return c.refused <= maxRefused
}

// dialForward dials by port-forward. why is what keeps pods/proxy from being used, nil if that is known already.
func (c *Carriers) dialForward(ctx context.Context, pod corev1.Pod, why error) (net.Conn, error) {
	conn, err := c.proxy.Kube.DialPod(ctx, pod.Namespace, pod.Name, int(c.ports.Tunnel))
	if err != nil {
		return nil, err
	}
	if c.ports.PodProxy == 0 {
		return conn, nil
	}
	if why != nil {
		c.leave(why)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.detour {
		_ = conn.Close()
		return nil, errWorksAgain
	}
	d := &detourConn{Conn: conn, c: c}
	c.forwards[d] = struct{}{}
	return d, nil
}

var errWorksAgain = errors.New("podproxy works again")

// detourConn is a port-forward where pods/proxy was wanted.
type detourConn struct {
	net.Conn
	c     *Carriers
	ended atomic.Bool // the detour
}

func (d *detourConn) Close() error {
	d.c.mu.Lock()
	delete(d.c.forwards, d)
	d.c.mu.Unlock()
	return d.Conn.Close()
}

// Degraded is for tunnel.Client.
func (*detourConn) Degraded() string { return "it goes by port-forward, for podproxy does not work" }

// Dead is for tunnel.Client.
func (d *detourConn) Dead() error { return dead(d.Conn) }

func dead(carrier net.Conn) error {
	if c, ok := carrier.(interface{ Dead() error }); ok {
		return c.Dead()
	}
	return nil
}

func (d *detourConn) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	if err != nil && d.ended.Load() {
		err = errWorksAgain
	}
	return n, err
}

// leave begins a detour.
func (c *Carriers) leave(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detour {
		return
	}
	c.detour = true
	select {
	case c.left <- why:
	default: // Run has not come to the last one yet
	}
}

// dialPodProxy dials through the API server's proxy, and ends a detour.
func (c *Carriers) dialPodProxy(ctx context.Context, pod corev1.Pod) (net.Conn, error) {
	conn, err := c.proxy.Kube.DialPodProxy(ctx, pod.Namespace, pod.Name, int(c.ports.PodProxy), tunnel.UpgradeProtocol)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.refused = 0
	c.mu.Unlock()
	c.goBack()
	return &proxiedConn{Conn: conn, c: c}, nil
}

var errMute = errors.New("the API server's proxy to the pod says that it is open, and nothing comes through it")

// proxiedConn is a carrier by pods/proxy. One that ends before anything came does not work.
type proxiedConn struct {
	net.Conn
	c     *Carriers
	heard atomic.Bool
}

func (p *proxiedConn) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if n > 0 && !p.heard.Load() {
		p.heard.Store(true)
		p.c.mu.Lock()
		p.c.useful = true
		p.c.mu.Unlock()
	}
	return n, err
}

func (p *proxiedConn) Close() error {
	if !p.heard.Swap(true) {
		p.c.leave(hint.New(0, errMute, "something before the API server, or a service mesh, does not pass what follows an HTTP Upgrade"))
	}
	return p.Conn.Close()
}

// Degraded is for tunnel.Client.
func (p *proxiedConn) Degraded() string {
	if c, ok := p.Conn.(interface{ Degraded() string }); ok {
		return c.Degraded()
	}
	return ""
}

// Dead is for tunnel.Client.
func (p *proxiedConn) Dead() error { return dead(p.Conn) }

// Run ends detours as soon as that is possible, and says when one begins and ends, until ctx is done.
func (c *Carriers) Run(ctx context.Context) {
	for wait := probeFirst; ; {
		select {
		case <-ctx.Done():
			return
		case why := <-c.left:
			if ctx.Err() != nil {
				return // the end closes a carrier too
			}
			c.say("carrier podproxy does not work, port-forward does: " + withHint(why))
		}
		c.mu.Lock()
		if c.useful {
			c.useful, wait = false, probeFirst
		}
		c.mu.Unlock()
		for c.onDetour() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			wait = min(2*wait, probeMax)
			if c.probe(ctx) {
				c.goBack()
			}
		}
		c.say("carrier podproxy works again")
	}
}

func withHint(err error) string {
	if next := hint.Of(err); next != "" {
		return fmt.Sprintf("%v (%s)", err, next)
	}
	return err.Error()
}

// probe tells whether the pod agrees to an upgrade.
func (c *Carriers) probe(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	pod, err := c.proxy.running(ctx)
	if err != nil {
		return false
	}
	conn, err := c.proxy.Kube.DialPodProxy(ctx, pod.Namespace, pod.Name, int(c.ports.PodProxy), tunnel.UpgradeProtocol)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// goBack ends the detour: the tunnel goes on over another carrier when its own is closed.
func (c *Carriers) goBack() {
	c.mu.Lock()
	c.detour = false
	forwards := slices.Collect(maps.Keys(c.forwards))
	c.mu.Unlock()
	for _, d := range forwards {
		d.ended.Store(true)
		_ = d.Close()
	}
}

// by says how the tunnel goes, if that is by what was asked for.
func (c *Carriers) by() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ports.PodProxy == 0 || len(c.forwards) > 0 {
		return ""
	}
	return ", by podproxy"
}
