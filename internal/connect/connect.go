// Package connect is the laptop's end of bridge connect: one proxy port (internal/socks5), with a file
// that tells browsers when to use it, and one DNS server (internal/dns), both on loopback, both on the tunnel's dial. cmd/bridge opens it before it
// starts a proxy pod, so that a port that is taken costs nothing, and runs it with the pod's tunnel.
package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/dns"
	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/socks5"
	"bridge/pkg/tunnel"
)

// Where connect listens when nothing else is asked for: the usual port of SOCKS, and one for DNS that
// needs no privilege and is not multicast DNS's. When it is taken, any free port.
const (
	DefaultListen    = "127.0.0.1:1080"
	DefaultDNSListen = "127.0.0.1:5300"
)

// dnsPatience is how long after the tunnel was lost a query for a cluster name still waits for the
// next session. A reconnect that works takes less; after that such names fail at once.
const dnsPatience = 2 * time.Second

// Dial makes a connection, as a net.Dialer does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Tunnel is the one that is to be used now: of several, one that carries.
type Tunnel func() *tunnel.Client

// Options say where to listen. The zero value works.
type Options struct {
	// Listen and DNSListen are "HOST:PORT" on loopback; port 0 is any free one. Empty means
	// DefaultListen and DefaultDNSListen, or any free port when those are taken.
	Listen, DNSListen string

	// System gives the system's resolvers, "host:port". Nil reads /etc/resolv.conf.
	System func() ([]string, error)

	// PAC makes the file at Entrance.PAC. Nil means that there is none.
	PAC *PAC

	// Unchanged has names answered again without a question. Nil means none.
	Unchanged dns.Unchanged

	// DialTimeout bounds one dial of a program's, the wait for the tunnel too. Zero means 30 seconds.
	DialTimeout time.Duration

	// Log gets what failed, at level debug. Nil means none.
	Log *slog.Logger
}

// defaultDialTimeout is what the pod's own dials take at most.
const defaultDialTimeout = 30 * time.Second

// Entrance is open: programs may connect already, and wait until Run.
type Entrance struct {
	o     Options
	proxy *net.TCPListener
	udp   *net.UDPConn
	tcp   *net.TCPListener
}

// Open opens all ports. The error has a hint.
func Open(o Options) (*Entrance, error) {
	e := &Entrance{o: o}
	err := listen(o.Listen, DefaultListen, "--listen", func(addr string) error {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			e.proxy = ln.(*net.TCPListener)
		}
		return err
	})
	if err == nil {
		err = listen(o.DNSListen, DefaultDNSListen, "--dns-listen", func(addr string) (err error) {
			e.udp, e.tcp, err = dns.Listen(addr)
			return err
		})
	}
	if err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// listen calls open with the address that was asked for, or with the usual one and then any port.
func listen(asked, usual, flag string, open func(addr string) error) error {
	if asked == "" {
		if open(usual) == nil {
			return nil
		}
		return open("127.0.0.1:0")
	}
	addr, err := net.ResolveTCPAddr("tcp", asked)
	if err != nil {
		return hint.Newf(hint.Usage, "write it as 127.0.0.1:PORT", "%s %s: %w", flag, asked, err)
	}
	if !addr.IP.IsLoopback() {
		return hint.Newf(hint.Usage, "use 127.0.0.1:PORT: anybody who reaches another address would be let into the cluster",
			"%s %s: not a loopback address", flag, asked)
	}
	if err := open(addr.String()); err != nil {
		next := fmt.Sprintf("choose another port, or leave out %s for a free one", flag)
		err = forward.NotOpened(err, next, next)
		return hint.New(hint.Other, fmt.Errorf("%s: %w", flag, err), hint.Of(err))
	}
	return nil
}

// Proxy is where SOCKS5 and HTTP are spoken.
func (e *Entrance) Proxy() netip.AddrPort { return e.proxy.Addr().(*net.TCPAddr).AddrPort() }

// PAC is the URL of the proxy auto-config file, if there is one.
func (e *Entrance) PAC() string { return "http://" + e.Proxy().String() + socks5.PACPath }

// DNS is where queries are answered, over UDP and TCP.
func (e *Entrance) DNS() netip.AddrPort { return e.tcp.Addr().(*net.TCPAddr).AddrPort() }

// Close closes what is open. Run does it too.
func (e *Entrance) Close() {
	if e.proxy != nil {
		_ = e.proxy.Close()
	}
	if e.udp != nil {
		_ = e.udp.Close()
		_ = e.tcp.Close()
	}
}

// Run serves through t, once it has a session, until ctx is done, which is no error, or a port fails.
// It returns when every connection has ended. Call it once.
func (e *Entrance) Run(ctx context.Context, t Tunnel) error {
	defer e.Close()
	if err := t().WaitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	pod, ok := t().Info()
	if !ok {
		return errors.New("the pod told nothing of its resolver")
	}
	g, ctx := errgroup.WithContext(ctx)
	proxy := &socks5.Server{Dial: t.dial, DialTimeout: e.o.DialTimeout, PAC: e.pac(ctx, pod), Log: e.o.Log}
	names := &dns.Server{
		Dial:        t.dialSoon(dnsPatience),
		Nameservers: pod.Nameservers,
		Search:      pod.Search,
		Ndots:       pod.Ndots,
		System:      e.o.System,
		Unchanged:   t.unchanged(e.o.Unchanged),
		Log:         e.o.Log,
	}
	if e.o.PAC != nil {
		defer e.o.PAC.wait()
	}
	g.Go(func() error { return proxy.Serve(ctx, e.proxy) })
	g.Go(func() error { return names.Serve(ctx, e.udp, e.tcp) })
	return g.Wait()
}

// pac makes the proxy auto-config file anew for each who asks: Services come and go, and are asked for within ctx. It is nil without
// Options.PAC.
func (e *Entrance) pac(ctx context.Context, pod tunnel.Info) func(client context.Context) []byte {
	p := e.o.PAC
	if p == nil {
		return nil
	}
	return func(client context.Context) []byte {
		p.await(ctx, client)
		return p.file(e.Proxy(), Domain(pod))
	}
}

// Domain is the cluster's domain ("cluster.local") as pod tells.
func Domain(pod tunnel.Info) string { return strings.TrimSuffix(dns.Zone(pod.Search), ".") }

func (t Tunnel) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return t().DialContext(ctx, network, address)
}

// dialSoon is a dial that fails at once when there has been no session for longer than patience, and does not wait for the pod.
func (t Tunnel) dialSoon(patience time.Duration) Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		s := t().State()
		if !s.Phase.Carries() && time.Since(s.Since) >= patience {
			if s.Err != nil {
				return nil, fmt.Errorf("%w: %v", tunnel.ErrNoSession, s.Err) //nolint:errorlint // what the carrier has met is not the resolver's
			}
			return nil, tunnel.ErrNoSession
		}
		return t().DialEarly(ctx, network, address)
	}
}

// unchanged is f while the tunnel carries: without it the cluster's names fail at once.
func (t Tunnel) unchanged(f dns.Unchanged) dns.Unchanged {
	if f == nil {
		return nil
	}
	return func(namespace, service string, exists bool) (time.Time, bool) {
		since, ok := f(namespace, service, exists)
		return since, ok && t().State().Phase.Carries()
	}
}
