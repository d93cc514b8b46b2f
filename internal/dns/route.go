package dns

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// defaultZone is the cluster's domain when the pod's search list does not tell.
const defaultZone = "cluster.local."

// defaultNdots is what the kubelet writes for pods that use the cluster's resolver.
const defaultNdots = 5

// rules decide who is asked for a name; the package comment lists them.
type rules struct {
	zone   string   // lower case, with the final dot
	search []string // the pod's search domains in zone, likewise, in the pod's order
	ndots  int

	namespaced bool // as Server's
}

// Zone is the cluster's domain, with the final dot, as a pod's search list tells: what follows "svc.", the first for which there is a
// namespace's NS.svc, too, as one that is called svc has two; else cluster.local.
func Zone(search []string) string {
	var all []string
	for _, d := range search {
		all = append(all, strings.ToLower(dns.Fqdn(d)))
	}
	first := ""
	for _, d := range all {
		zone, ok := strings.CutPrefix(d, "svc.")
		if !ok || zone == "" {
			continue
		}
		if slices.ContainsFunc(all, func(ns string) bool { return strings.HasSuffix(ns, "."+d) }) {
			return zone
		}
		if first == "" {
			first = zone
		}
	}
	return cmp.Or(first, defaultZone)
}

func newRules(search []string, ndots int) rules {
	r := rules{zone: Zone(search), ndots: ndots}
	if ndots == 0 {
		r.ndots = defaultNdots
	}
	for _, d := range search {
		if d := strings.ToLower(dns.Fqdn(d)); dns.IsSubDomain(r.zone, d) {
			r.search = append(r.search, d)
		}
	}
	return r
}

// inZone says whether rule 1 applies.
func (r *rules) inZone(name string) bool { return dns.IsSubDomain(r.zone, name) }

// dots are those within name.
func dots(name string) int { return dns.CountLabel(name) - 1 }

// expansions are the names of rule 3, in the order of the pod's search list.
func (r *rules) expansions(name string) []string {
	dots := dots(name)
	if dots < 0 {
		return nil
	}
	var names []string
	for _, d := range r.search {
		if r.namespaced && dots > 0 && dns.CountLabel(d) > dns.CountLabel(r.zone)+1 { // shop.svc.cluster.local.
			continue
		}
		full := name + d
		if _, ok := dns.IsDomainName(full); ok && r.possible(full) {
			names = append(names, full)
		}
	}
	return names
}

// possible says whether the Kubernetes DNS specification 1.0.1 has names of full's shape:
// SERVICE.NS.svc, HOST.SERVICE.NS.svc, _PORT._PROTO.SERVICE.NS.svc, IP.NS.pod. It also keeps out what
// exists without records, such as NS.svc: they would hide a name of the system's.
func (r *rules) possible(full string) bool {
	l := dns.SplitDomainName(full)
	l = l[:len(l)-dns.CountLabel(r.zone)]
	if len(l) < 3 {
		return false
	}
	switch kind := l[len(l)-1]; {
	case strings.EqualFold(kind, "pod"):
		return len(l) == 3
	case !strings.EqualFold(kind, "svc"):
		return false
	case len(l) == 5:
		return strings.HasPrefix(l[0], "_") && strings.HasPrefix(l[1], "_")
	default:
		return len(l) < 5 && !strings.HasPrefix(l[0], "_")
	}
}

// reversed is the address that a PTR query is about; ok is false for other names.
func reversed(name string) (addr netip.Addr, ok bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		l := strings.Split(rest, ".")
		slices.Reverse(l)
		addr, err := netip.ParseAddr(strings.Join(l, "."))
		return addr, err == nil && addr.Is4()
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		l := strings.Split(rest, ".")
		if len(l) != 32 {
			return netip.Addr{}, false
		}
		var a [16]byte
		for i, s := range l {
			n, err := strconv.ParseUint(s, 16, 4)
			if err != nil || len(s) != 1 {
				return netip.Addr{}, false
			}
			a[15-i/2] |= byte(n) << (4 * (i % 2))
		}
		return netip.AddrFrom16(a), true
	}
	return netip.Addr{}, false
}

// private says whether a cluster may give out addr: RFC 1918, RFC 4193, and RFC 6598, which some
// clouds use for Services and pods.
func private(addr netip.Addr) bool {
	shared := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	return addr.IsPrivate() || shared.Contains(addr)
}

func (s *Server) newHandler(ctx context.Context, self netip.AddrPort) *handler {
	rules := newRules(s.Search, s.Ndots)
	rules.namespaced = s.Namespaced
	h := &handler{
		ctx:     ctx,
		log:     s.Log,
		packets: newPackets(s.From),
		slots:   make(chan struct{}, maxQueries),
		rules:   rules,
		system:  &system{servers: s.System, self: self},
		hosts:   s.Hosts,
		known:   s.Known,
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.system.servers == nil {
		h.system.servers = func() ([]string, error) { return readResolvConf(resolvConfPath) }
	}
	for _, addr := range s.Nameservers {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			addr = net.JoinHostPort(addr, "53")
		}
		h.pools = append(h.pools, newPool(s.Dial, addr))
	}
	h.patient = &patient{next: pools(h.pools).ask}
	h.patient.ctx, h.stop = context.WithCancel(ctx)
	h.cluster = newCache(h.patient.ask)
	h.cluster.zone, h.cluster.unchanged = h.rules.zone, s.Unchanged
	return h
}

func (h *handler) close() {
	h.stop()
	h.patient.behind.Wait()
	for _, p := range h.pools {
		p.close()
	}
}

// resolve asks those whom the rules name. The answer is the caller's to change. It stays true until then; the zero time is no longer than now.
func (h *handler) resolve(ctx context.Context, q *dns.Msg) (m *dns.Msg, until time.Time, err error) {
	name, qtype := q.Question[0].Name, q.Question[0].Qtype
	if addr, ok := h.hosts[strings.ToLower(name)]; ok {
		return host(q, addr), time.Time{}, nil
	}
	if h.rules.inZone(name) {
		m, until, err := h.cluster.ask(ctx, query(q, name))
		if err == nil {
			h.learn(m)
		}
		return m, until, err
	}
	if addr, ok := reversed(name); ok && qtype == dns.TypePTR {
		var unsure error
		if private(addr) {
			if m, until, unsure = h.reverse(ctx, q, name); m != nil {
				return m, until, nil
			}
		}
		m, err := h.system.ask(ctx, query(q, name))
		return sure(m, err, unsure)
	}
	asIs := dots(name) >= h.rules.ndots
	var known *dns.Msg // as it is
	if asIs {
		known, err = h.system.ask(ctx, query(q, name))
		if err == nil && known.Rcode != dns.RcodeNameError || ctx.Err() != nil {
			return known, time.Time{}, err
		}
	}
	m, until, unsure := h.expand(ctx, q, name)
	if m != nil {
		h.learn(m)
		return m, until, nil
	}
	if m = known; !asIs {
		m, err = h.system.ask(ctx, query(q, name))
	}
	return sure(m, err, unsure)
}

// sure is what the system has answered, unless that is no name and the cluster may have one: unsure is why that is not known.
func sure(m *dns.Msg, err, unsure error) (*dns.Msg, time.Time, error) {
	if unsure != nil && (err != nil || m.Rcode == dns.RcodeNameError) {
		return nil, time.Time{}, unsure
	}
	return m, time.Time{}, err
}

// reverse is rule 2: the cluster's answer with a name of its own, or why it is not known whether it has one, or neither.
func (h *handler) reverse(ctx context.Context, q *dns.Msg, name string) (m *dns.Msg, until time.Time, unsure error) {
	ctx, cancel := context.WithTimeout(ctx, expansionTime)
	defer cancel()
	m, until, err := h.cluster.ask(ctx, query(q, name))
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case h.namesCluster(m):
		return m, until, nil
	}
	return nil, time.Time{}, unknown(m, name)
}

// unknown is an error where m, an answer about name, does not tell whether that exists.
func unknown(m *dns.Msg, name string) error {
	if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
		return nil
	}
	return &rcodeError{name, m.Rcode}
}

// learn tells of the addresses in an answer of the cluster's.
func (h *handler) learn(m *dns.Msg) {
	if h.known == nil {
		return
	}
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if addr, ok := netip.AddrFromSlice(ip); ok {
				h.known(addr.Unmap())
			}
		}
	}
}

// host answers q with one address, and with nothing when that is not of the kind that is asked for.
func host(q *dns.Msg, addr netip.Addr) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	if name := q.Question[0].Name; q.Question[0].Qtype == dns.TypeA {
		m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: addr.AsSlice()}}
	}
	return m
}

// namesCluster says whether m is a PTR answer with a name of the cluster.
func (h *handler) namesCluster(m *dns.Msg) bool {
	for _, rr := range m.Answer {
		if ptr, ok := rr.(*dns.PTR); ok && h.rules.inZone(ptr.Ptr) {
			return true
		}
	}
	return false
}

// expand is rule 3: all names are asked for at once, the first in the search list's order that exists
// wins, for as long as those before it are known not to. Without a winner, unsure is the error that kept one of them from being known.
func (h *handler) expand(ctx context.Context, q *dns.Msg, name string) (m *dns.Msg, until time.Time, unsure error) {
	names := h.rules.expansions(name)
	if len(names) == 0 {
		return nil, time.Time{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, expansionTime)
	defer cancel()
	type result struct {
		m     *dns.Msg
		until time.Time
		err   error
	}
	results := make([]result, len(names))
	ask := func(i int) {
		r := &results[i]
		r.m, r.until, r.err = h.cluster.ask(ctx, query(q, names[i]))
	}
	var wg sync.WaitGroup
	for i := range names[1:] {
		wg.Go(func() { ask(i + 1) })
	}
	ask(0)
	wg.Wait()
	for i, r := range results {
		if i == 0 || r.until.Before(until) {
			until = r.until
		}
		switch {
		case r.err != nil:
			unsure = r.err
		case r.m.Rcode == dns.RcodeSuccess:
			return alias(r.m, name, names[i]), until, nil
		default:
			unsure = cmp.Or(unknown(r.m, names[i]), unsure)
		}
	}
	return nil, time.Time{}, unsure
}

// rcodeError is an answer that says nothing about the name.
type rcodeError struct {
	name string
	code int
}

func (e *rcodeError) Error() string {
	return "the resolver answers " + dns.RcodeToString[e.code] + " for " + e.name
}

// alias makes m, an answer about full, one about name.
func alias(m *dns.Msg, name, full string) *dns.Msg {
	m.Answer = append([]dns.RR{&dns.CNAME{
		Hdr:    dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: uint32(lifetime(m).Seconds())},
		Target: full,
	}}, m.Answer...)
	return m
}

// query is q's question about name, for the next resolver: same flags, an ID of its own, EDNS when
// the client used it (its other options are between it and us).
func query(q *dns.Msg, name string) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, q.Question[0].Qtype)
	m.RecursionDesired = q.RecursionDesired
	m.CheckingDisabled = q.CheckingDisabled
	m.AuthenticatedData = q.AuthenticatedData
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(upstreamUDPSize, opt.Do())
	}
	return m
}
