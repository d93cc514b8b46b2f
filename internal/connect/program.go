package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/child"
	"bridge/internal/dns"
	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/netns"
	"bridge/internal/packet"
	"bridge/internal/ping"
	"bridge/pkg/tunnel"
)

const (
	// HostName is by which a program in a namespace reaches this machine's own loopback.
	HostName = "host.bridge.internal"

	// maxProgramConns is how many connections of a program's are carried at once; more wait in the kernel's queue. As many as
	// internal/socks5 takes.
	maxProgramConns = 12288

	// maxKnown is how many of the cluster's answers are remembered: some MB. Of more the oldest are forgotten.
	maxKnown = 65536

	// acceptPause is for a process that has no descriptors left.
	acceptPause = 50 * time.Millisecond

	// deviceGone is how soon after its device the end of a namespace is known: both follow from the program's.
	deviceGone = 3 * time.Second

	// publishPoll is how often is looked whether the program listens.
	publishPoll = 200 * time.Millisecond
)

// Program is a program that is run with the cluster's names and addresses as its own: in a network namespace where this machine allows
// that, else with the variables that name a proxy. Call Check before Run.
type Program struct {
	Args           []string
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Grace is how long it has to end after SIGTERM, as child.Command's.
	Grace time.Duration

	// Ranges are the cluster's, as far as they are known. What its resolver answers with is the cluster's as well.
	Ranges []netip.Prefix
	// LocalPorts of 127.0.0.1 are this machine's in the namespace too, and PodPorts of it are the pod's.
	LocalPorts, PodPorts []uint16
	// Publish are TCP ports of the namespace that are this machine's as well, at its localhost: each once the program listens there, so that
	// what it starts outside of it finds the port free.
	Publish []uint16
	// Free are ports of the namespace, TCP's or UDP's, on which the program may listen, as on those of Publish: they are not bridge's.
	Free []uint16
	// Files are put at their paths in the namespace.
	Files netns.Files
	// Outside runs it as any program of this machine: without a namespace, and without a proxy.
	Outside bool
	// Started is told, when the program runs, how its own ports are reached, whether it is in a namespace, and whether there are Files and all
	// at their paths. It may be nil.
	Started func(reach Dial, inside, placed bool)
	// Published is told of each port of Publish when this machine's localhost has it, or is about to, because of bridge, and with false
	// when it cannot be had. It may be nil.
	Published func(port uint16, has bool)
	// Direct are the hosts beside this machine that need no proxy, where there is one.
	Direct []string

	// OnSignal is told where signals go while the program runs, and nil when it has ended.
	OnSignal func(pass func(os.Signal))
	Say      func(string)
	Entrance Options // of the proxy

	proxied bool          // there is no namespace, which has been said
	lacks   netns.Feature // in tests
	told    bool          // what Files are not at their paths, and what takes the place of nftables
}

// Check says what keeps the program from being run: that there is none, or no namespace for what takes one. It makes a namespace and ends
// it, and says when there is none.
func (p *Program) Check(ctx context.Context) error {
	if err := (&child.Command{Args: p.Args}).Find(); err != nil {
		return hint.New(hint.Usage, err, "")
	}
	if p.Outside {
		return nil
	}
	err := netns.Try(ctx, netns.Options{IPv6: p.ipv6(), LocalPorts: slices.Concat(p.LocalPorts, p.PodPorts), Dialled: true, Without: p.lacks, MTU: packet.MTU})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return p.without(err)
}

// without goes on without a namespace when err says that there is none, if that is possible, and else returns err.
func (p *Program) without(err error) error {
	var no *netns.Unavailable
	switch {
	case !errors.As(err, &no):
		return err
	case len(p.PodPorts) > 0:
		next := "leave out --to-pod"
		if no.Setting != "" {
			next = "allow it, " + no.Setting + ", or " + next
		}
		return hint.Newf(hint.Other, next, "--to-pod %d takes a network of CMD's own: %w", p.PodPorts[0], no.Err)
	}
	p.proxied = true
	line := "not in a network of its own, but with proxy variables, which not every program heeds: " + no.Err.Error()
	if no.Setting != "" {
		line += "; what would allow it: " + no.Setting
	}
	p.Say(hint.Printable(line))
	return nil
}

// Inside tells, after Check, whether the program is to run in a namespace.
func (p *Program) Inside() bool { return !p.Outside && !p.proxied }

// Run runs the program through t, which has had a session, until it has ended, to which ctx brings it. It returns a *child.ExitError,
// or why the program was not run.
func (p *Program) Run(ctx context.Context, t Tunnel) error {
	if p.Outside {
		return p.start(ctx, p.command())
	}
	if !p.proxied {
		err := p.inNamespace(ctx, t)
		if no := new(netns.FilesError); errors.As(err, &no) && ctx.Err() == nil {
			p.Say(hint.Printable("none of the files is at its path: " + no.Err.Error()))
			p.Files = netns.Files{}
			err = p.inNamespace(ctx, t)
		}
		if ctx.Err() != nil {
			return err
		}
		if err := p.without(err); err != nil || !p.proxied {
			return err
		}
	}
	return p.withProxy(ctx, t)
}

// command is the program as internal/child takes it.
func (p *Program) command() *child.Command {
	return &child.Command{Args: p.Args, Env: p.Env, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, Grace: p.Grace}
}

// withProxy runs it beside an Entrance.
func (p *Program) withProxy(ctx context.Context, t Tunnel) error {
	e, err := Open(p.Entrance)
	if err != nil {
		return err
	}
	c := p.command()
	c.Env = append(slices.Clone(c.Env), ProxyVariables(e.Proxy(), p.Direct)...)
	return p.beside(ctx, func(ctx context.Context) error { return e.Run(ctx, t) }, func(ctx context.Context) error { return p.start(ctx, c) })
}

// start runs it in this machine's network.
func (p *Program) start(ctx context.Context, c *child.Command) error {
	process, err := c.Start()
	if err != nil {
		return hint.New(hint.Usage, err, "")
	}
	p.OnSignal(process.Signal)
	defer p.OnSignal(nil)
	p.started(new(net.Dialer).DialContext, false, false)
	return process.Wait(ctx)
}

func (p *Program) started(reach Dial, inside, placed bool) {
	if p.Started != nil {
		p.Started(reach, inside, placed)
	}
}

func (p *Program) published(port uint16, has bool) {
	if p.Published != nil {
		p.Published(port, has)
	}
}

// beside runs the program while serve does; the end of the one is that of the other.
func (p *Program) beside(outer context.Context, serve, run func(context.Context) error) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	served := make(chan error, 1)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		err := serve(serving)
		if err != nil {
			cancel()
		}
		served <- err
	}()
	err := run(ctx)
	stop()
	if failed := <-served; failed != nil {
		return failed
	}
	return err
}

// ProxyVariables are the environment that has programs use the proxy. They differ in which names they read, and curl reads http_proxy
// in lower case only.
func ProxyVariables(proxy netip.AddrPort, direct []string) []string {
	no := NoProxy(direct)
	var env []string
	for _, v := range [][3]string{
		{"ALL_PROXY", "all_proxy", "socks5h://" + proxy.String()},
		{"HTTP_PROXY", "http_proxy", "http://" + proxy.String()},
		{"HTTPS_PROXY", "https_proxy", "http://" + proxy.String()},
		{"NO_PROXY", "no_proxy", no},
	} {
		env = append(env, v[0]+"="+v[2], v[1]+"="+v[2])
	}
	return env
}

// inNamespace runs it in one. The error wraps a *netns.Unavailable, and nothing has been run, where that is not to be had.
func (p *Program) inNamespace(ctx context.Context, t Tunnel) error {
	n, err := netns.New(netns.Options{
		IPv6: p.ipv6(), LocalPorts: slices.Concat(p.LocalPorts, p.PodPorts), Free: slices.Concat(p.Free, p.Publish), Dialled: p.dialled(), Files: p.Files,
		Without: p.lacks, MTU: packet.MTU,
	})
	if err != nil {
		return err
	}
	defer n.Close()
	c := p.command()
	c.Prepare = n.Enter
	process, err := c.Start()
	if err != nil {
		return n.Explain(err)
	}
	p.OnSignal(process.Signal)
	defer p.OnSignal(nil)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	sockets, err := n.Open(ctx)
	if err != nil {
		exit := process.Wait(ended)
		switch syscall.Signal(exit.Code - 128) {
		case syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP: // somebody at the terminal does not want it any more
			return exit
		}
		if ctx.Err() != nil { // it may run by now, and ends as it would a moment later
			return exit
		}
		return err
	}
	defer sockets.Close()
	pod, ok := t().Info()
	if !ok {
		_ = process.Wait(ended)
		return errors.New("the pod told nothing of its resolver")
	}
	if !p.told {
		p.told = true
		if sockets.Device != nil {
			missing, of, device := "no nftables", "", "a TUN device"
			if sockets.Redirected {
				missing, of = "no nftables tproxy", " for all but TCP"
			}
			if sockets.Link != nil {
				device = "a veth pair"
			}
			line := fmt.Sprintf("note: this machine has %s for CMD's network, and %s takes its place%s", missing, device, of)
			if sockets.NamesPass {
				line += ": what CMD asks another resolver than /etc/resolv.conf's goes to that one"
			}
			p.Say(line)
		}
		for _, line := range n.Left() {
			p.Say(hint.Printable("not at its path: " + line))
		}
		for _, path := range n.Hidden() {
			p.Say(hint.Printable("the container's, and not this machine's: " + path))
		}
	}
	g := &gate{
		dial: t.dial, ranges: p.Ranges, localPorts: p.LocalPorts, podPorts: p.PodPorts,
		dialTime: cmp.Or(p.Entrance.DialTimeout, defaultDialTimeout), log: p.Entrance.Log, slots: make(chan struct{}, maxProgramConns),
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	names := &dns.Server{
		Dial: t.dialSoon(dnsPatience), Nameservers: pod.Nameservers, Search: pod.Search, Ndots: pod.Ndots,
		System: p.Entrance.System, Hosts: map[string]netip.Addr{HostName + ".": netns.Host}, Known: g.known.add,
		Unchanged: t.unchanged(p.Entrance.Unchanged), Log: p.Entrance.Log,
	}
	for _, s := range pod.Nameservers {
		if addr, err := netip.ParseAddr(s); err == nil {
			g.known.add(addr)
		}
	}
	serve := func(ctx context.Context) error {
		s, ctx := errgroup.WithContext(ctx)
		s.Go(func() error { return names.Serve(ctx, sockets.DNSUDP, sockets.DNS) })
		for _, l := range sockets.TCP {
			s.Go(func() error { return g.serve(ctx, l) })
		}
		if sockets.Datagrams != nil {
			f := &flows{g: g, d: sockets.Datagrams}
			s.Go(func() error { return f.serve(ctx) })
		}
		if sockets.Device != nil {
			s.Go(func() error { return g.packets(ctx, sockets.Device, sockets.Link) })
		}
		if p.dialled() {
			s.Go(func() error { return n.Await(ctx) })
		}
		return s.Wait()
	}
	reach := (&net.Dialer{ControlContext: n.Control}).DialContext
	return p.beside(ctx, serve, func(ctx context.Context) error {
		if err := n.Run(ctx); err != nil {
			_ = process.Wait(ended)
			return hint.New(hint.Usage, err, "")
		}
		var published sync.WaitGroup
		defer published.Wait()
		publishing, cancel := context.WithCancel(ctx)
		defer cancel()
		for _, port := range p.Publish {
			published.Go(func() { p.publish(publishing, n, port, reach) })
		}
		p.started(reach, true, len(p.Files.Paths) > 0 && len(n.Left()) == 0)
		exit := process.Wait(ctx)
		n.Close() // while what it has left can still say goodbye
		return exit
	})
}

// dialled tells whether somebody comes to the program.
func (p *Program) dialled() bool { return p.Started != nil || len(p.Publish) > 0 }

// publish has a port of the program's be this machine's too, if it is free, until ctx ends: for a browser, a debugger, or who else is here.
func (p *Program) publish(ctx context.Context, n *netns.Namespace, port uint16, reach Dial) {
	for !n.Listens(port) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(publishPoll):
		}
	}
	p.published(port, true) // before anybody can find it there
	listeners, err := forward.Listen([]string{"localhost"}, int(port))
	if err != nil {
		p.published(port, false)
		p.Say(fmt.Sprintf("note: from this machine CMD's port %d is not reached: %v", port, err))
		return
	}
	f := &forward.Forwarder{Listeners: listeners, Address: net.JoinHostPort("localhost", strconv.Itoa(int(port))), Dial: reach, Log: p.Entrance.Log}
	if err := f.Run(ctx); err != nil {
		p.Say(fmt.Sprintf("note: from this machine CMD's port %d is not reached any more: %v", port, err))
	}
}

// ipv6 are the ranges of IPv6 that can be reached: all where this machine has a way to it.
func (p *Program) ipv6() (list []netip.Prefix) {
	if c, err := net.Dial("udp6", "[2001:db8::1]:9"); err == nil { // sends nothing
		_ = c.Close()
		return []netip.Prefix{netip.MustParsePrefix("::/0")}
	}
	for _, r := range p.Ranges {
		if r.Addr().Is6() {
			list = append(list, r)
		}
	}
	return list
}

// gate decides where a program's connections go.
type gate struct {
	dial       Dial // in the cluster
	ranges     []netip.Prefix
	known      known
	localPorts []uint16
	podPorts   []uint16
	dialTime   time.Duration
	log        *slog.Logger
	slots      chan struct{}
}

// serve carries what arrives at l, until ctx is done, and returns when all has ended.
func (g *gate) serve(ctx context.Context, l *net.TCPListener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	carrying, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	for {
		select {
		case g.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.AcceptTCP()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			<-g.slots
			return nil
		}
		if err != nil {
			<-g.slots
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept what the program sends: %w", err)
			}
			g.log.Warn("accept", "error", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-g.slots }()
			if err := g.carry(carrying, c); err != nil {
				g.log.Debug("connection of the program", "error", err)
			}
		})
	}
}

// packets carries what leaves by the device, until ctx is done. The error is that the device is gone, and not with the namespace.
func (g *gate) packets(ctx context.Context, device *os.File, link net.HardwareAddr) error {
	raw, err := device.SyscallConn()
	if err != nil {
		return err
	}
	s := &packet.Stack{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(address)
			if err != nil {
				return nil, err
			}
			return g.reach(ctx, network, to)
		},
		Takes: func(netip.Addr) bool { return true }, DialTimeout: g.dialTime, Link: link, Log: g.log,
	}
	var number int
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		return err
	}
	if err = s.Run(ctx, number); err == nil {
		return nil
	}
	select {
	case <-ctx.Done(): // the device went with the namespace
		return nil
	case <-time.After(deviceGone):
		return fmt.Errorf("carry the program's packets: %w", err)
	}
}

// carry carries one connection to where it was sent.
func (g *gate) carry(ctx context.Context, c *net.TCPConn) error {
	to, err := netns.Original(c)
	var target net.Conn
	if err == nil {
		target, err = g.reach(ctx, "tcp", to)
	}
	if err != nil {
		_ = c.SetLinger(0) // it has been accepted already: a reset is as near to a refusal as one comes
		_ = c.Close()
		return fmt.Errorf("%v: %w", to, err)
	}
	return new(tunnel.Flow).SpliceContext(ctx, c, target)
}

// reach dials: an address of the cluster's there, Host and the local ports on this machine's loopback, the pod's ports on its own, all
// others from this machine.
func (g *gate) reach(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, g.dialTime)
	defer cancel()
	here := new(net.Dialer).DialContext
	loopback := "localhost"
	if network == "icmp" {
		loopback = "127.0.0.1" // it takes an address
		here = func(ctx context.Context, _, address string) (net.Conn, error) { return ping.Dial(ctx, address) }
	}
	addr := to.Addr().Unmap()
	switch {
	case addr == netns.Host:
		return here(ctx, network, net.JoinHostPort(loopback, strconv.Itoa(int(to.Port()))))
	case addr.IsLoopback() && slices.Contains(g.podPorts, to.Port()):
		return g.dial(ctx, network, to.String())
	case addr.IsLoopback():
		if !slices.Contains(g.localPorts, to.Port()) {
			return nil, errors.New("the namespace's own, which was not redirected")
		}
	case g.known.has(addr), slices.ContainsFunc(g.ranges, func(r netip.Prefix) bool { return r.Contains(addr) }):
		return g.dial(ctx, network, to.String())
	}
	return here(ctx, network, to.String())
}

// known is the addresses that the cluster's resolver has answered with. The zero value is empty.
type known struct {
	mu   sync.Mutex
	all  map[netip.Addr]bool
	ring []netip.Addr // in the order in which they came; the oldest is at next when it is full
	next int
}

func (k *known) add(addr netip.Addr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all[addr] {
		return
	}
	if k.all == nil {
		k.all = map[netip.Addr]bool{}
	}
	if len(k.ring) < maxKnown {
		k.ring = append(k.ring, addr)
	} else {
		delete(k.all, k.ring[k.next])
		k.ring[k.next] = addr
		k.next = (k.next + 1) % maxKnown
	}
	k.all[addr] = true
}

func (k *known) has(addr netip.Addr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.all[addr]
}

// NoProxy is the value of NO_PROXY: this machine, and direct.
func NoProxy(direct []string) string {
	no := "localhost,127.0.0.1,::1"
	for _, host := range direct {
		if host != "" && !slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, host) {
			no += "," + host
		}
	}
	return no
}
