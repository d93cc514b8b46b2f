//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/proxy"

	"bridge/internal/proxypod"
)

// dialTimeout bounds one dial. A variant that needs longer has failed.
const dialTimeout = 10 * time.Second

// variant is one way to a server.
type variant struct {
	name string
	what string // for the document
	// far is whether it crosses the link to the cluster; others are measured without a delay only.
	far bool
	// bridges is whether programs stand between, whose memory and start can be measured.
	bridges bool
	// idle is how many connections it is asked to hold; 0 is as many as the flag says.
	idle int
	open func(ctx context.Context, w *world, r *route) error
}

// route is a variant that runs: what open fills in.
type route struct {
	variant   *variant
	dial      func() (net.Conn, error)
	server    *process   // one of its own, which is not counted
	processes []*process // that stand between
	pod       string     // UID of the pod that stands between, if any
	clean     func()     // what else is to be done at the end; may be nil
}

const (
	kubectlWebSocket = "kubectl, WebSocket"
	kubectlSPDY      = "kubectl, SPDY"
	// fewIdle is what is asked of those who open a port-forward, or two streams in the API server and the
	// kubelet, for each connection: thousands are a load for the cluster and not for them. And of the
	// relays: a connection that is spliced takes six descriptors.
	fewIdle = 500
	// proxyIdle is of the 5120 that a local end of forward's takes.
	proxyIdle = 5000
)

// The variants that are in more than one table.
var (
	onLoopback   = &variant{name: "loopback", what: "TCP on the loopback, client to server", open: openLoopback}
	throughProxy = &variant{
		name: "bridge forward, proxy", what: "bridge forward --via proxy pod/NAME: the tunnel, one port-forward to a proxy pod that connects to the server's pod",
		far: true, bridges: true, idle: proxyIdle, open: openForwardProxy,
	}
	bySOCKS = &variant{name: "bridge connect", what: "bridge connect: the same, dialled by SOCKS5", far: true, bridges: true, open: openConnect("portforward")}
)

// variants in the order of the table.
var variants = []*variant{
	onLoopback,
	{name: "two relays", what: "loopback, through two programs in a row that copy (io.Copy, which splices): what a chain costs by being one", bridges: true, idle: fewIdle, open: openRelays},
	{name: "link", what: "TCP over the laptop's link to the node, nothing between: what the network gives", far: true, open: openLink},
	{name: kubectlWebSocket, what: "kubectl port-forward, KUBECTL_PORT_FORWARD_WEBSOCKETS=true", far: true, bridges: true, idle: fewIdle, open: openKubectl("true")},
	{name: kubectlSPDY, what: "kubectl port-forward, KUBECTL_PORT_FORWARD_WEBSOCKETS=false", far: true, bridges: true, idle: fewIdle, open: openKubectl("false")},
	{name: "yamux", what: "hashicorp/yamux with its default configuration on one port-forward of bridge's, and a pod at its end", far: true, bridges: true, open: openYamux},
	{name: "bridge forward", what: "bridge forward pod/NAME: a port-forward for each open connection", far: true, bridges: true, idle: fewIdle, open: openForward},
	throughProxy,
	bySOCKS,
	{name: "bridge connect, podproxy", what: "bridge connect --carrier podproxy: the tunnel through the API server's proxy to the proxy pod", far: true, bridges: true, open: openConnect("podproxy")},
}

var farVariants = slices.DeleteFunc(slices.Clone(variants), func(v *variant) bool { return !v.far })

func (r *route) close() {
	for _, p := range r.processes {
		p.stop()
	}
	if r.server != nil {
		r.server.stop()
	}
	if r.clean != nil {
		r.clean()
	}
}

func (r *route) alive() bool {
	for _, p := range r.processes {
		if !p.alive() {
			return false
		}
	}
	return true
}

// pids are the programs that stand between, on the laptop.
func (r *route) pids() (pids []int) {
	for _, p := range r.processes {
		pids = append(pids, p.cmd.Process.Pid)
	}
	return pids
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func tcp(address string) func() (net.Conn, error) {
	return func() (net.Conn, error) { return net.DialTimeout("tcp", address, dialTimeout) }
}

const listening = "listening on"

func openLoopback(_ context.Context, w *world, r *route) (err error) {
	at := local(freePort())
	r.dial = tcp(at)
	r.server, err = start(listening, nil, w.program("bench"), "serve", "-listen", at)
	return err
}

func openRelays(ctx context.Context, w *world, r *route) error {
	at := local(freePort())
	var err error
	if r.server, err = start(listening, nil, w.program("bench"), "serve", "-listen", at); err != nil {
		return err
	}
	for range 2 {
		next := local(freePort())
		if err := r.between(listening, nil, w.program("bench"), "relay", "-listen", next, "-to", at); err != nil {
			return err
		}
		at = next
	}
	r.dial = tcp(at)
	return nil
}

func openLink(_ context.Context, w *world, r *route) (err error) {
	at := net.JoinHostPort(w.node, strconv.Itoa(serverPort))
	r.dial = tcp(at)
	r.server, err = start(listening, nil, append([]string{"nsenter"}, onNode(w.program("bench"), "serve", "-listen", at)...)...)
	return err
}

func openKubectl(webSockets string) func(context.Context, *world, *route) error {
	return func(_ context.Context, w *world, r *route) error {
		port := freePort()
		r.dial = tcp(local(port))
		return r.between("Forwarding from", []string{"KUBECTL_PORT_FORWARD_WEBSOCKETS=" + webSockets}, w.program("kubectl"),
			"port-forward", "--address=127.0.0.1", "pod/"+w.server.name, fmt.Sprintf("%d:%d", port, serverPort))
	}
}

func openYamux(_ context.Context, w *world, r *route) error {
	at := local(freePort())
	r.dial, r.pod = tcp(at), w.yamux.uid
	return r.between(listening, nil, w.program("bench"), "yamux-laptop", "-listen", at, "-pod", w.yamux.name,
		"-to", net.JoinHostPort(w.server.ip, strconv.Itoa(serverPort)))
}

func openForward(_ context.Context, w *world, r *route) error {
	port := freePort()
	r.dial = tcp(local(port))
	return r.between("Forwarding from", nil, w.program("bridge"),
		"forward", "--address=127.0.0.1", "pod/"+w.server.name, fmt.Sprintf("%d:%d", port, serverPort))
}

func openConnect(carrier string) func(context.Context, *world, *route) error {
	return func(ctx context.Context, w *world, r *route) error {
		at := local(freePort())
		if err := r.between("ALL_PROXY=", nil, w.program("bridge"), "connect", "--carrier="+carrier, "--listen="+at, "--dns-listen=127.0.0.1:0"); err != nil {
			return err
		}
		socks, err := proxy.SOCKS5("tcp", at, nil, &net.Dialer{})
		if err != nil {
			return err
		}
		to := net.JoinHostPort(w.server.ip, strconv.Itoa(serverPort))
		r.dial = func() (net.Conn, error) {
			ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
			defer cancel()
			return socks.(proxy.ContextDialer).DialContext(ctx, "tcp", to)
		}
		return r.proxied(ctx, w)
	}
}

// proxied has the route know the proxy pod that was started last.
func (r *route) proxied(ctx context.Context, w *world) error {
	own, err := w.pod(ctx, "-l", proxypod.ProxyLabel, "--field-selector=status.phase=Running")
	r.pod = own.uid
	return err
}

// between starts a program that stands between.
func (r *route) between(ready string, env []string, argv ...string) error {
	p, err := start(ready, env, argv...)
	if err == nil {
		r.processes = append(r.processes, p)
	}
	return err
}
