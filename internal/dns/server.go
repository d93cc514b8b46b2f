// Package dns answers the laptop's DNS queries: names in cluster zones, and short names that the
// cluster knows, come through the tunnel from the cluster's resolver, all others from the system's.
// internal/connect starts it; it alone imports miekg/dns.
//
// A query is answered by the first of these rules that applies, but for the few names that are told it (Hosts):
//
//  1. A name in the cluster's zone (Zone): the cluster's resolver, as asked, or its last answer while nothing has changed
//     (again.go). Without either the answer is SERVFAIL.
//  2. PTR of a private address (RFC 1918, RFC 6598, RFC 4193): the cluster's resolver, if it answers
//     with a name in the cluster's zone.
//  3. A name with fewer dots than the pod's ndots, and another that rule 4 says does not exist, or has nobody to
//     say it, as in the pod: each of the pod's search domains that lies in the cluster's zone is appended, and the
//     first of these names that exists answers, behind a CNAME from the name that was asked. Names of a shape that the Kubernetes DNS
//     specification does not have (www.example.com.shop.svc.cluster.local) are not asked for. A name
//     without records of the wanted type exists: AAAA of an IPv4 Service is empty, at once. Of names with a dot
//     those of a namespace alone are asked for where a whole machine asks (Namespaced).
//  4. The system's resolvers. When rule 2 or 3 got no answer and the system says NXDOMAIN, the answer is
//     SERVFAIL: whether the name exists is not known.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

const (
	// queryTime bounds the whole of one query: just under the 5 s after which glibc asks again.
	queryTime = 4500 * time.Millisecond

	// expansionTime bounds rule 3 within it, so that a lost tunnel leaves time for the system.
	expansionTime = 2 * time.Second

	// maxQueries is how many queries are worked on at once; more get SERVFAIL. A browser's page asks
	// for some tens.
	maxQueries = 512

	// maxTCPClients is how many TCP connections are open at once; more wait in the kernel's queue.
	maxTCPClients = 128

	// tcpClientIdle is how long a TCP client may be silent (RFC 7766 section 6.2.3 asks for seconds).
	tcpClientIdle = 10 * time.Second

	// maxUDPQuery is the longest query read over UDP, and what we say in EDNS that we take.
	maxUDPQuery = 4096

	// listenTries is how often Listen looks for a port that is free for UDP and TCP alike.
	listenTries = 16
)

// Unchanged tells since when nothing of a Service and its EndpointSlices has changed, or there have been none; ok is false where that is
// not known. exists says that the cluster has answered for a name of it, so that the namespace is one.
type Unchanged func(namespace, service string, exists bool) (since time.Time, ok bool)

// Server answers DNS queries. Its fields are not changed after Serve has begun.
type Server struct {
	// Dial connects to the cluster's resolvers; network is "tcp", or "udp" where that is not answered, for a net.PacketConn with one peer. It must
	// return when ctx is done, and need not wait for the connection, of whose failure the first read may tell: a question then takes one round trip.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Nameservers, Search and Ndots are the pod's resolver file. A nameserver without a port means
	// port 53; Ndots 0 means 5, the kubelet's.
	Nameservers []string
	Search      []string
	Ndots       int

	// Namespaced has rule 3 take names with a dot for those of a namespace alone: NAME.NAMESPACE and HOST.SERVICE.NAMESPACE, and not HOST.SERVICE
	// of the pod's own, by which whoever may make a Service called com there would have the name github.com.
	Namespaced bool

	// From tells whether a client at an address is answered. Others hear nothing. Nil means everybody.
	From func(netip.Addr) bool

	// System gives the addresses ("host:port") of the system's resolvers, for each query anew.
	// Nil reads /etc/resolv.conf.
	System func() ([]string, error)

	// Hosts are names (lower case, with the final dot) with an IPv4 address of their own, that nobody is asked for.
	Hosts map[string]netip.Addr

	// Known is told each address that the cluster's resolver has answered with, before the client. Nil means nobody.
	Known func(netip.Addr)

	// Unchanged has answers given again past their lifetime (again.go). Nil means none.
	Unchanged Unchanged

	// Log gets a line per failed query, at level debug. Nil means none.
	Log *slog.Logger
}

// Listen opens address ("127.0.0.1:5300") for UDP and TCP; port 0 finds one that is free for both.
func Listen(address string) (*net.UDPConn, *net.TCPListener, error) {
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	for try := 1; ; try++ {
		ln, err := net.ListenTCP("tcp", want)
		if err != nil {
			return nil, nil, err
		}
		got := ln.Addr().(*net.TCPAddr)
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: got.IP, Port: got.Port, Zone: got.Zone})
		if err == nil {
			return pc, ln, nil
		}
		_ = ln.Close()
		if want.Port != 0 || try == listenTries {
			return nil, nil, err
		}
	}
}

// Serve answers on pc and ln until ctx is done or one of them fails, closes both, and returns when
// every query has ended. The end of ctx is not an error.
func (s *Server) Serve(ctx context.Context, pc *net.UDPConn, ln *net.TCPListener) error {
	g, gctx := errgroup.WithContext(ctx)
	at := pc.LocalAddr().(*net.UDPAddr).AddrPort()
	h := s.newHandler(gctx, at)
	defer h.close()
	var datagrams net.PacketConn = pc
	if !at.Addr().IsUnspecified() {
		datagrams = socket{pc}
	}
	for _, srv := range []*dns.Server{
		{PacketConn: datagrams, Handler: h, UDPSize: maxUDPQuery, DecorateReader: h.packets.decorate},
		{
			Listener:      netutil.LimitListener(&chosen{ln, s.From}, maxTCPClients),
			Handler:       h,
			ReadTimeout:   tcpClientIdle,
			IdleTimeout:   func() time.Duration { return tcpClientIdle },
			MaxTCPQueries: -1,
		},
	} {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		g.Go(func() error {
			defer close(ended)
			err := srv.ActivateAndServe()
			if err == nil && gctx.Err() == nil {
				err = net.ErrClosed
			}
			return err
		})
		g.Go(func() error {
			<-gctx.Done()
			select {
			case <-started: // Shutdown knows only a server that has started
				return srv.Shutdown()
			case <-ended:
				return nil
			}
		})
	}
	if s.Unchanged != nil {
		g.Go(func() error { h.cluster.confirm(gctx); return nil })
	}
	err := g.Wait()
	_ = pc.Close()
	_ = ln.Close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve DNS on %v: %w", pc.LocalAddr(), err)
}

// handler answers queries for one Serve.
type handler struct {
	ctx     context.Context // of Serve; miekg/dns hands out none
	log     *slog.Logger
	slots   chan struct{} // one token per query worked on
	rules   rules
	packets *packets // before all this, for UDP
	cluster *cache
	hosts   map[string]netip.Addr
	known   func(netip.Addr)
	pools   []*pool  // under cluster
	patient *patient // between these
	system  *system
	stop    context.CancelFunc // of what is waited for behind
}

// ServeDNS answers q, within the size that the client can take.
func (h *handler) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m, until := h.answer(q)
	size := dns.MaxMsgSize
	udp := w.RemoteAddr().Network() == "udp"
	if udp {
		size = dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
	}
	m.Truncate(size)
	if udp {
		h.packets.put(q, m, until)
	}
	if err := w.WriteMsg(m); err != nil {
		h.log.Debug("dns: write answer", "client", w.RemoteAddr(), "error", err)
	}
}

// answer is the whole reply to q, and until when it may be given again; it never fails.
func (h *handler) answer(q *dns.Msg) (m *dns.Msg, until time.Time) {
	m = new(dns.Msg).SetReply(q) // ID, question in the client's case, RD and CD
	m.RecursionAvailable = true
	opt := q.IsEdns0()
	if opt != nil {
		m.SetEdns0(maxUDPQuery, opt.Do())
	}
	if code := refuse(q); code != dns.RcodeSuccess {
		m.Rcode = code
		return m, time.Time{}
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		return h.fail(m, errors.New("too many queries at once")), time.Time{}
	}
	ctx, cancel := context.WithTimeout(h.ctx, queryTime)
	defer cancel()
	got, until, err := h.resolve(ctx, q)
	if err == nil && got.Rcode > 0xf && opt == nil {
		err = &rcodeError{q.Question[0].Name, got.Rcode} // takes EDNS to say
	}
	if err != nil {
		return h.fail(m, err), time.Time{}
	}
	m.Rcode = got.Rcode
	m.Authoritative, m.AuthenticatedData = got.Authoritative, got.AuthenticatedData
	m.Answer, m.Ns = got.Answer, got.Ns
	for _, rr := range got.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // speaks of the hop behind us
			m.Extra = append(m.Extra, rr)
		}
	}
	return m, until
}

// refuse is the answer to a query that no resolver need see, or success.
func refuse(q *dns.Msg) int {
	if q.Opcode != dns.OpcodeQuery {
		return dns.RcodeNotImplemented
	}
	if len(q.Question) != 1 {
		return dns.RcodeFormatError
	}
	if opt := q.IsEdns0(); opt != nil && opt.Version() != 0 {
		return dns.RcodeBadVers
	}
	switch q.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR: // answered by many messages
		return dns.RcodeRefused
	}
	if q.Question[0].Qclass != dns.ClassINET {
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

// fail makes m a SERVFAIL that says why to a client that can read it (RFC 8914).
func (h *handler) fail(m *dns.Msg, err error) *dns.Msg {
	h.log.Debug("dns: no answer", "question", m.Question[0].String(), "error", err)
	m.Rcode = dns.RcodeServerFailure
	if opt := m.IsEdns0(); opt != nil {
		const maxText = 200 // with the question it fits into 512 bytes
		text := err.Error()
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{
			InfoCode:  dns.ExtendedErrorCodeNetworkError,
			ExtraText: text[:min(len(text), maxText)],
		})
	}
	return m
}
