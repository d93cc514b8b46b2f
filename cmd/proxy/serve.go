package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/intercept"
	"bridge/internal/standby"
	"bridge/pkg/tunnel"
)

const (
	// resolvConf is where a container finds its resolver.
	resolvConf = "/etc/resolv.conf"
	// retryPause is between two tries to open the ports when something is in the way, as a lack of descriptors.
	retryPause = time.Second
)

// proxy is what runs: the tunnel's server, the readiness answer and the ports.
type proxy struct {
	config
	log    *slog.Logger
	server *tunnel.Server // the one laptop's; nil with members
	door   *tunnel.Door   // that of members; else nil
	ports  *intercept.Interceptor
	health *health
	// In standby; else nil.
	laptop    *standby.Laptop // nil also with members
	originals *standby.Originals
	chooser   *chooser // nil also when all requests are the laptop's
	members   *members // nil also when there is one laptop alone

	info func() tunnel.Info
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	memory tunnel.Memory // of all laptops' sessions

	laptopReady atomic.Bool // its process, as the laptop says

	mu      sync.Mutex
	ending  bool          // SIGTERM came: readiness does not come back
	ready   bool          // somebody can take callers, and the ports are open
	useless chan struct{} // closed when ending and not ready: no new connection can be served
}

// serve runs the proxy until ctx is done (SIGTERM), drains, and returns nil.
func (c config) serve(ctx context.Context, log *slog.Logger) error {
	key, err := tunnel.NewKey()
	if err != nil {
		return err
	}
	resolver, err := readResolvConf(resolvConf)
	if err != nil {
		log.Warn("names will not resolve", "error", err)
	}
	p := &proxy{config: c, log: log, health: newHealth(log), useless: make(chan struct{})}
	p.info = func() tunnel.Info {
		return tunnel.Info{Version: version, Nameservers: resolver.nameservers, Search: resolver.search, Ndots: resolver.ndots}
	}
	if c.serveDials {
		p.dial = (&intercept.Dialer{Resolvers: resolver.addrs(), Loopback: c.toPod, Allow: c.allow}).DialContext
	}
	p.ports = &intercept.Interceptor{Ports: c.listen, UDP: c.listenUDP, Log: log}
	p.build(key)
	if err := p.ports.Check(); err != nil {
		return err
	}

	doors, err := c.open()
	if err != nil {
		return err
	}
	log.Info("proxy", "version", version, "tunnel", doors.tunnel.Addr(), "podproxy", c.podProxy, "health", doors.health.Addr(), "ports", c.listen, "udp", c.listenUDP,
		"originals", c.originalsAt, "passed on", c.pass, "mirror", c.mirror, "members", c.membersAt)
	return p.run(ctx, doors)
}

// build makes what depends on who is let in, and who answers.
func (p *proxy) build(key tunnel.Key) {
	if p.membersAt != "" {
		p.standBy()
		p.share(key)
		return
	}
	p.server = p.newServer(key, p.client)
	p.server.OnReady = p.onReady
	p.ports.Open = p.server.Open
	if p.originalsAt != "" {
		p.standBy()
		p.alone()
	}
}

// newServer is the tunnel's end for a laptop.
func (p *proxy) newServer(key tunnel.Key, client tunnel.Fingerprint) *tunnel.Server {
	return &tunnel.Server{Key: key, Client: client, Log: p.log, View: p.view.tell, Info: p.info, Dial: p.dial, Memory: &p.memory}
}

// doors are the proxy's own listeners.
type doors struct {
	tunnel, health net.Listener
	podProxy       net.Listener // nil: none
}

func (c config) open() (d doors, err error) {
	for _, l := range []struct {
		name, address string
		to            *net.Listener
	}{{"tunnel", c.tunnel, &d.tunnel}, {"health", c.health, &d.health}, {"podproxy", c.podProxy, &d.podProxy}} {
		if l.address == "" {
			continue
		}
		if *l.to, err = net.Listen("tcp", l.address); err != nil {
			d.close()
			return d, fmt.Errorf("%s: %w", l.name, err)
		}
	}
	if a, err := netip.ParseAddrPort(d.tunnel.Addr().String()); err != nil || !a.Addr().IsLoopback() {
		d.close()
		return d, fmt.Errorf("tunnel: %s is not on loopback", c.tunnel)
	}
	return d, nil
}

func (d doors) close() {
	for _, l := range []net.Listener{d.tunnel, d.health, d.podProxy} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// run ends each part when ctx is done and draining over, or when another part has failed.
func (p *proxy) run(ctx context.Context, d doors) error {
	parts, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, parts := errgroup.WithContext(parts)
	p.ports.Start(parts)
	p.health.set(!p.standsIn())
	group.Go(func() error { p.ports.Wait(); return nil })
	if p.standsIn() {
		group.Go(func() error { p.keepReady(parts); return nil })
	}
	if p.originals != nil {
		group.Go(func() error { p.originals.Run(parts); return nil })
	}
	if p.laptop != nil {
		group.Go(func() error { p.laptop.Run(parts); return nil })
	}
	if p.chooser != nil {
		group.Go(func() error { p.chooser.run(parts); return nil })
	}
	group.Go(func() error { return p.health.serve(parts, d.health) })
	serve := func(l net.Listener) { group.Go(func() error { return p.server.Serve(parts, l) }) }
	if p.members != nil {
		known := make(chan struct{})
		group.Go(func() error { p.members.run(parts, func() { close(known) }); return nil })
		<-known // else who comes at once would be refused
		serve = func(l net.Listener) { group.Go(func() error { return p.door.Serve(parts, l) }) }
	}
	serve(d.tunnel)
	if d.podProxy != nil {
		serve(tunnel.UpgradeListener(d.podProxy))
	}
	group.Go(func() error {
		defer stop()
		select {
		case <-ctx.Done():
			p.end(parts)
		case <-parts.Done():
		}
		return nil
	})
	return group.Wait()
}

// standBy has callers go to the originals whom no laptop takes.
func (p *proxy) standBy() {
	p.ports.Ports = slices.Concat(p.listen, p.pass)
	p.originals = &standby.Originals{
		Host: p.originalsAt, Ports: p.ports.Ports, Log: p.log,
		Needed:   func() bool { return p.chooses() || !p.laptop.Takes() },
		OnChange: func(bool) { p.follow() },
	}
	p.ports.Original = p.originals.Dial
}

// alone has callers go to the one laptop, or it gets a copy.
func (p *proxy) alone() {
	p.laptop = &standby.Laptop{Open: p.server.Open, Answering: p.server.Answering, Ports: p.listen, OnChange: p.onLaptop, Log: p.log}
	p.ports.Laptop = p.laptop.Dial
	if p.mirror {
		p.chooser = &chooser{ports: p.listen, tell: p.server.Note, log: p.log}
		p.ports.Choose = p.chooser.choose
	}
}

// taken says whether somebody takes callers: the laptop, or in standby an original. With a choice it takes an original, whose the other
// requests are.
func (p *proxy) taken() bool {
	if p.originals == nil {
		return p.laptopReady.Load()
	}
	return !p.chooses() && p.laptop.Takes() || p.originals.Reached()
}

// onLaptop has kept connections follow new ones, to the laptop or back. Where each request is chosen for, they need not.
func (p *proxy) onLaptop(port int, open bool) {
	switch {
	case p.chooser != nil:
	case open:
		p.ports.Leave(port, intercept.ToOriginal)
	default:
		p.ports.Leave(port, intercept.ToLaptop)
	}
	if !open {
		p.originals.Look()
	}
	p.follow()
}

// onReady follows the laptop.
func (p *proxy) onReady(ready bool) {
	p.laptopReady.Store(ready)
	p.follow()
}

// keepReady tries again what follow could not do, until ctx is done.
func (p *proxy) keepReady(ctx context.Context) { every(ctx, retryPause, p.follow) }

// every calls f each period, until ctx is done.
func every(ctx context.Context, period time.Duration, f func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// follow has the pod be what taken says: ports first, then the answer that brings callers here; and the other way round.
func (p *proxy) follow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	ready := p.taken()
	if ready == p.ready {
		return
	}
	p.ready = ready
	if !p.standsIn() {
		return
	}
	if p.ending {
		if !ready {
			p.giveUp()
		}
		return
	}
	if !ready {
		p.health.set(false)
	}
	if err := p.ports.SetReady(ready); err != nil {
		p.log.Error("ports stay closed", "error", err)
		p.ready = false
		return
	}
	p.health.set(ready)
	p.log.Info("readiness", "ready", ready)
}

// giveUp says that there is nothing to wait for any more. mu is held.
func (p *proxy) giveUp() {
	select {
	case <-p.useless:
	default:
		close(p.useless)
	}
}

// end is what SIGTERM sets off. Callers are sent elsewhere first, and served until they are; then
// the connections end, each when it is quiet. Without a laptop there is nothing to serve, unless originals do.
func (p *proxy) end(parts context.Context) {
	p.mu.Lock()
	p.ending = true
	p.health.set(false)
	if !p.ready {
		p.giveUp()
	}
	p.mu.Unlock()
	if !p.standsIn() || p.originals == nil && !p.server.Connected() {
		p.log.Info("ends at once")
		return
	}
	p.log.Info("draining", "delay", p.drainDelay, "limit", p.drain)
	delay := time.NewTimer(p.drainDelay)
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-p.useless:
	case <-parts.Done():
	}
	p.ports.Drain(parts, p.drain)
	p.log.Info("drained")
}
