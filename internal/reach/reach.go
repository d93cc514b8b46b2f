// Package reach runs the targets of bridge forward: for each port it finds whether connections go straight to pods, by port-forwards,
// or through a proxy pod's tunnel; it opens the local ends (internal/forward) and says what becomes of them. cmd/bridge calls it.
package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/kube"
)

// Way is how connections get into the cluster.
type Way string

// The ways there are.
const (
	Auto  Way = "auto"  // Pods, and Proxy for what does not go so
	Pods  Way = "pods"  // a port-forward for each open connection
	Proxy Way = "proxy" // the tunnel to a proxy pod
)

// sayWaiting is how long the start waits for a pod before it says so.
const sayWaiting = 2 * time.Second

// atOnce bounds the targets that are looked up at the same time.
const atOnce = 16

// Dial has the proxy pod dial.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Set is some targets to be forwarded to. Set the fields before Run.
type Set struct {
	Kube    *kube.Client
	Targets []Target
	// Many says that there may be several: one that cannot be had is said, and the others go on.
	Many bool
	// Address are the addresses to listen on, IPs or "localhost".
	Address []string
	// UDP has all ports that do not say otherwise be UDP.
	UDP bool
	Via Way
	// Once has everything end when the pod that was found at first does.
	Once bool
	// Wait is how long a connection, and the start, waits for a ready pod.
	Wait time.Duration
	// DialTimeout is how long a connection through the proxy waits for the tunnel and its target.
	DialTimeout time.Duration

	// Follow, if set, tells changed which Targets there are now, until ctx is done: others end, and new ones begin. With it
	// Run goes on when none is left; it takes Many.
	Follow func(ctx context.Context, changed func([]Target))

	// Check looks whether the user may forward to an object, and CheckProxy whether to run a proxy pod.
	Check      func(ctx context.Context, t kube.Target) error
	CheckProxy func(ctx context.Context) error
	// Proxy runs a proxy pod, calls use when the tunnel is ready, and removes the pod when use returns.
	Proxy func(ctx context.Context, use func(ctx context.Context, dial Dial) error) error

	// Why, if set, adds to the hint of an error why something is not well.
	Why func(ctx context.Context, err error) error

	Print func(line string) // for stdout
	Say   func(line string) // for the person
	Log   *slog.Logger

	mu    sync.Mutex
	ends  []*end
	width int // of the longest name, where Targets have addresses of their own
}

// unit is a target at work.
type unit struct {
	Target
	eps  *kube.Endpoints // nil: a host
	ctx  context.Context // done when nobody uses it any more
	stop context.CancelFunc
	used int // by how many; Set's mu
	// waits is that it is waited for was said.
	waits sync.Once
	// at has an end for each port that is not to be begun again when the targets are told anew; nil: it was refused.
	at map[forward.Port]*end
}

// refuse has all ports of u count as refused.
func (u *unit) refuse() {
	for _, p := range u.Ports {
		u.at[p] = nil
	}
}

// end is one port of a target and its local end.
type end struct {
	*unit
	ctx     context.Context // done when it is to end; also with unit's
	stop    context.CancelFunc
	port    forward.Port
	network string
	beyond  string // why not by a port-forward; empty: by one, unless proxy
	proxy   bool
	pod     *proxyPod     // with proxy, once it is started
	fixed   kube.Endpoint // with Once
	first   bool          // opened by openFirst
	tcp     []net.Listener
	udp     []*net.UDPConn
	lines   []string
	stats   forward.Stats

	mu     sync.Mutex
	said   string // the failure that was said last
	saidAt time.Time
	noted  bool // that it goes through a proxy pod
}

func (e *end) proxied() bool { return e.proxy }

func (e *end) String() string {
	name := e.name(e.port, e.network)
	if e.Where != "" {
		return e.Where + ": " + name
	}
	return name
}

// Run forwards until ctx is done, which is no error. It returns why it could not begin, or when nothing is left that goes on.
func (s *Set) Run(ctx context.Context) error {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()

	known, ends, err := s.prepare(ctx, &following)
	defer func() {
		for _, e := range ends {
			e.close()
		}
	}()
	if err == nil && len(ends) > 0 {
		ends, err = s.allowed(ctx, ends)
	}
	if err == nil {
		ends, err = s.openFirst(ctx, ends)
	}
	if err == nil {
		err = s.serveAll(ctx, known, ends, &following)
	}
	if outer.Err() != nil && hint.CodeOf(err) != hint.RestoreIncomplete {
		return nil
	}
	return err
}

// openFirst opens, in their order, all that are not to wait for a pod of their own; of several it leaves out what cannot be opened.
func (s *Set) openFirst(ctx context.Context, ends []*end) (left []*end, err error) {
	for i, e := range ends {
		if !s.Many || e.Address.IsValid() {
			if err := s.open(ctx, e); err != nil {
				if !s.Many || len(left) == 0 && i == len(ends)-1 && s.Follow == nil {
					return ends, s.named(e, err)
				}
				_ = s.broken(e, err)
				e.at[e.port] = nil
				s.drop(e)
				continue
			}
			e.first = true
		}
		left = append(left, e)
	}
	return left, nil
}

// Stats is what was counted, of each local end that is open.
func (s *Set) Stats() (out []forward.Stat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.ends {
		st := e.stats.Now()
		st.Target, st.Local = e.name(e.port, e.network), e.local()
		out = append(out, st)
	}
	return out
}

// broken says what has become of one of several, or returns it when there are no others.
func (s *Set) broken(what fmt.Stringer, err error) error {
	if !s.Many || err == nil {
		return err
	}
	s.Say(fmt.Sprintf("%s: %v", what, err) + indentedHint(err))
	return nil
}

// prepare looks up all targets; known are they by their names. With Many the error is that of the first when none is left.
func (s *Set) prepare(ctx context.Context, following *sync.WaitGroup) (known map[string]*unit, ends []*end, err error) {
	for _, t := range s.Targets {
		s.width = max(s.width, len(t.Object.Name))
	}
	units := make([]*unit, len(s.Targets))
	all := make([][]*end, len(s.Targets))
	failed := make([][]error, len(s.Targets))
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, t := range s.Targets {
		group.Go(func() error {
			units[i], all[i], failed[i] = s.lookUp(ctx, gctx, t, following)
			if s.Many || len(failed[i]) == 0 {
				return nil
			}
			return failed[i][0]
		})
	}
	err = group.Wait()
	ends = slices.Concat(all...)
	if err != nil || !s.Many {
		return nil, ends, err
	}
	if len(ends) == 0 && s.Follow == nil {
		first := failed[0][0]
		failed[0] = failed[0][1:]
		s.brokenAll(failed)
		return nil, nil, s.named(s.Targets[0], first)
	}
	s.brokenAll(failed)
	known = make(map[string]*unit)
	for i, t := range s.Targets {
		known[t.String()] = units[i]
	}
	return known, ends, nil
}

// brokenAll says what could not be looked up, of each target.
func (s *Set) brokenAll(failed [][]error) {
	for i, t := range s.Targets {
		for _, err := range failed[i] {
			_ = s.broken(t, err)
		}
	}
}

// named says of which of several targets err is.
func (s *Set) named(what fmt.Stringer, err error) error {
	if !s.Many {
		return err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// lookUp finds a target's ports and their ways, and why some have none; without Many it stops at the first of these. What it begins to
// follow it follows while the ends are there, or until ctx is done; looking up ends with gctx.
func (s *Set) lookUp(ctx, gctx context.Context, t Target, following *sync.WaitGroup) (u *unit, ends []*end, failed []error) {
	u, err := s.find(ctx, gctx, t, nil, following)
	defer s.release(u)
	if err != nil {
		return u, nil, []error{err}
	}
	ends, failed = s.endsOf(u, t.Ports, func() error { return nil })
	return u, ends, failed
}

// endsOf makes the ends of some ports of u, which somebody uses, and says why others have none: mayProxy, for one, is why there may be no proxy pod. Those that
// waiting does not mend are refused. Without Many it stops at the first.
func (s *Set) endsOf(u *unit, ports []forward.Port, mayProxy func() error) (ends []*end, failed []error) {
	for _, p := range ports {
		e, err := s.end(u, p)
		if err == nil && e.proxy {
			if err = mayProxy(); err != nil {
				err = e.needsProxy(err)
				delete(u.at, p)
				s.drop(e)
			}
		}
		if err == nil {
			ends = append(ends, e)
			continue
		}
		failed = append(failed, err)
		if !passes(err) {
			u.at[p] = nil
		}
		if !s.Many {
			break
		}
	}
	return ends, failed
}

// passes is whether another try may go well after err.
func passes(err error) bool {
	code := hint.CodeOf(err)
	return code != hint.Usage && code != hint.Forbidden
}

// find begins a unit, in the place of before if that is not nil, and follows its endpoints, until the caller and all ends have released it. It has one with an
// error, too.
func (s *Set) find(ctx, gctx context.Context, t Target, before *unit, following *sync.WaitGroup) (*unit, error) {
	u := &unit{Target: t, used: 1, at: make(map[forward.Port]*end)}
	if before != nil {
		u.at = before.at
	}
	u.ctx, u.stop = context.WithCancel(ctx)
	if t.Object == (kube.Target{}) {
		return u, nil
	}
	err := s.Check(gctx, t.Object)
	if err == nil {
		u.eps = &kube.Endpoints{Client: s.Kube, Namespace: s.Kube.Namespace, Target: t.Object, Wait: s.Wait, Log: s.Log}
		following.Go(func() { _ = u.eps.Run(u.ctx) })
		err = u.eps.WaitSynced(gctx)
	}
	if err != nil && !passes(err) {
		u.refuse()
	}
	return u, err
}

// use has u go on until release; false when it has ended.
func (s *Set) use(u *unit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.used == 0 {
		return false
	}
	u.used++
	return true
}

// release ends u with its last user.
func (s *Set) release(u *unit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.used--; u.used == 0 {
		u.stop()
	}
}

// end makes the end of a port of u, which somebody uses; drop ends it.
func (s *Set) end(u *unit, p forward.Port) (*end, error) {
	e := &end{unit: u, port: p}
	var err error
	if e.network, e.beyond, err = s.route(u, p); err != nil {
		if s.Follow != nil { // the Service was listed with it: what is followed is behind
			err = hint.New(hint.NotFound, err, "")
		}
		return nil, err
	}
	e.proxy = s.Via == Proxy || e.beyond != ""
	switch {
	case e.proxy && s.Via == Pods:
		return nil, hint.Newf(hint.Usage, "leave out --via pods: a proxy pod reaches it", "%s: %s", e, e.beyond)
	case e.beyond != "" && s.Once:
		return nil, hint.Newf(hint.Usage, "leave it out: there is no pod whose end would be told", "--reconnect=never: %s: %s", e, e.beyond)
	case e.network == "udp" && p.Path != "":
		return nil, hint.Newf(hint.Usage, "give a local port", "%s: a unix socket here is for TCP", e)
	}
	e.ctx, e.stop = context.WithCancel(u.ctx)
	s.use(u)
	u.at[p] = e
	return e, nil
}

// drop closes e, and has Stats tell nothing of it. Each end is dropped once.
func (s *Set) drop(e *end) {
	e.stop()
	e.close()
	s.mu.Lock()
	s.ends = slices.DeleteFunc(s.ends, func(x *end) bool { return x == e })
	s.mu.Unlock()
	s.release(e.unit)
}

// route is a port's network, and why no port-forward reaches it; empty when one does.
func (s *Set) route(u *unit, p forward.Port) (network, beyond string, err error) {
	asked := p.Network
	if asked == "" && s.UDP {
		asked = "udp"
	}
	if u.eps == nil {
		return cmp.Or(asked, "tcp"), "it is no pod", nil
	}
	if network, err = u.eps.Network(asked, p.Remote); err != nil {
		return "", "", err
	}
	return network, u.eps.Beyond(network), nil
}

// allowed leaves out what needs a proxy pod that the user may not have.
func (s *Set) allowed(ctx context.Context, ends []*end) ([]*end, error) {
	if !slices.ContainsFunc(ends, (*end).proxied) {
		return ends, nil
	}
	err := s.CheckProxy(ctx)
	if err == nil {
		return ends, nil
	}
	var first error
	var names []string
	for _, e := range ends {
		if e.proxy {
			names = append(names, e.String())
			first = cmp.Or(first, e.needsProxy(err))
		}
	}
	left := slices.DeleteFunc(slices.Clone(ends), (*end).proxied)
	if !s.Many || len(left) == 0 && s.Follow == nil {
		return ends, first
	}
	s.Say("these need a proxy pod, and are left out: " + strings.Join(names, ", "))
	s.Say(fmt.Sprintf("  %v", err))
	for _, e := range ends {
		if !e.proxy {
			continue
		}
		if e.at[e.port] = nil; passes(err) {
			delete(e.at, e.port)
		}
		s.drop(e)
	}
	return left, nil
}

// needsProxy says that e cannot be, as err is why no proxy pod may be.
func (e *end) needsProxy(err error) error {
	return fmt.Errorf("%s needs a proxy pod, because %s: %w", e, cmp.Or(e.beyond, "--via proxy"), err)
}

// open opens an end's local end. With an address of its own it waits for no pod.
func (s *Set) open(ctx context.Context, e *end) error {
	to := e.name(e.port, e.network)
	if e.eps != nil && !e.Address.IsValid() {
		waiting := time.AfterFunc(sayWaiting, func() {
			e.waits.Do(func() {
				s.Say(fmt.Sprintf("waiting until %s is ready, for %v at most (--pod-running-timeout)", e.Object, s.Wait))
			})
		})
		ep, err := e.pick(ctx)
		waiting.Stop()
		if err != nil {
			return err
		}
		switch {
		case s.Once && ep.Pod == "":
			return hint.Newf(hint.Usage, "leave it out: there is no pod whose end would be told", "--reconnect=never: %s: %s is no pod", e, ep.Address())
		case s.Once:
			e.fixed = ep
			e.eps.Only(ep)
		}
		if !s.Many { // as kubectl; of several it says which
			if to = strconv.Itoa(ep.Port); e.network == "udp" {
				to += "/udp"
			}
		}
	}
	local := e.port.Local
	if e.port.Same && local == 0 { // a name
		var err error
		if local, err = e.eps.PortNumber(e.network, e.port.Remote); err != nil {
			return err
		}
	}
	if err := e.listen(s.addresses(e), local); err != nil {
		another := errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EADDRINUSE)
		if !e.Address.IsValid() || !another {
			return err
		}
		s.Say(fmt.Sprintf("note: %s has another port here: %v", to, err))
		if err := e.listen(s.addresses(e), 0); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.ends = append(s.ends, e)
	s.mu.Unlock()
	for _, at := range e.local() {
		if e.Address.IsValid() {
			e.lines = append(e.lines, fmt.Sprintf("%-*s  %-21s -> %s", s.width, e.Object.Name, at, to))
			continue
		}
		e.lines = append(e.lines, fmt.Sprintf("Forwarding from %s -> %s", at, to))
		if a, err := netip.ParseAddrPort(at); err == nil && !a.Addr().IsLoopback() {
			s.Say(fmt.Sprintf("warning: everybody who reaches %s reaches %s through it, with your rights", at, e))
		}
	}
	return nil
}

// pick is the next ready endpoint, by e's way.
func (e *end) pick(ctx context.Context) (kube.Endpoint, error) {
	if e.proxy {
		return e.eps.Reach(ctx, e.network, e.port.Remote)
	}
	return e.eps.Pick(ctx, e.network, e.port.Remote)
}

func (s *Set) addresses(e *end) []string {
	if e.Address.IsValid() {
		return []string{e.Address.String()}
	}
	return s.Address
}

func (e *end) listen(addresses []string, port int) (err error) {
	switch {
	case e.port.Path != "":
		var ln net.Listener
		if ln, err = forward.ListenUnix(e.port.Path); err == nil {
			e.tcp = []net.Listener{ln}
		}
	case e.network == "udp":
		e.udp, err = forward.ListenUDP(addresses, port)
	default:
		e.tcp, err = forward.Listen(addresses, port)
	}
	return err
}

// local is where e listens.
func (e *end) local() (out []string) {
	if e.port.Path != "" {
		return []string{"unix:" + e.port.Path}
	}
	for _, ln := range e.tcp {
		out = append(out, unmapped(ln.Addr()))
	}
	for _, c := range e.udp {
		out = append(out, unmapped(c.LocalAddr()))
	}
	return out
}

func unmapped(a net.Addr) string {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()).String()
}

func (e *end) close() {
	for _, ln := range e.tcp {
		_ = ln.Close()
	}
	for _, c := range e.udp {
		_ = c.Close()
	}
}
