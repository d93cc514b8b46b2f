package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// resolver is a real DNS server with a few records; it notes what it was asked.
type resolver struct {
	records []dns.RR
	codes   map[string]int // lower-case name -> rcode
	idle    time.Duration  // of its TCP connections; 0 is the library's

	addr string
	mu   sync.Mutex
	seen []string
	gate chan struct{} // when set, each query waits for one value
}

func records(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	var rrs []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return rrs
}

const soa = "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"

// reply is what r says to q, over TCP.
func (r *resolver) reply(q *dns.Msg) *dns.Msg {
	qs := q.Question[0]
	r.mu.Lock()
	r.seen = append(r.seen, strings.ToLower(qs.Name)+" "+dns.TypeToString[qs.Qtype])
	r.mu.Unlock()
	if r.gate != nil {
		<-r.gate
	}
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	exists := false
	for _, rr := range r.records {
		if !strings.EqualFold(rr.Header().Name, qs.Name) {
			continue
		}
		exists = true
		if t := rr.Header().Rrtype; t == qs.Qtype || t == dns.TypeCNAME {
			m.Answer = append(m.Answer, dns.Copy(rr))
		}
	}
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	if len(m.Answer) == 0 {
		rr, _ := dns.NewRR(soa)
		m.Ns = []dns.RR{rr}
	}
	if code, ok := r.codes[strings.ToLower(qs.Name)]; ok {
		m = new(dns.Msg).SetRcode(q, code)
	}
	return m
}

func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	m := r.reply(q)
	if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
			m.SetEdns0(4096, opt.Do())
		}
		m.Truncate(size)
	}
	w.WriteMsg(m)
}

// away is a dial to r that does not wait, as a tunnel's, with answers that take a round trip. The connections' ends are in wg.
func (r *resolver) away(wg *sync.WaitGroup, trip time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		wg.Go(func() {
			c := &dns.Conn{Conn: far}
			defer c.Close()
			for {
				q, err := c.ReadMsg()
				if err != nil {
					return
				}
				time.Sleep(trip)
				if c.WriteMsg(r.reply(q)) != nil {
					return
				}
			}
		})
		return near, nil
	}
}

func (r *resolver) asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	slices.Sort(seen)
	return seen
}

// start serves r on UDP and TCP of one port until the test ends.
func (r *resolver) start(t testing.TB) *resolver {
	t.Helper()
	pc, ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = ln.Addr().String()
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: r}, {Listener: ln, Handler: r}} {
		if r.idle != 0 {
			srv.IdleTimeout = func() time.Duration { return r.idle }
		}
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			srv.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() { srv.Shutdown(); <-ended })
	}
	return r
}

func (r *resolver) servers() ([]string, error) { return []string{r.addr}, nil }

// dial is one over TCP alone: however slow the machine, nothing is asked twice.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" {
		return nil, syscall.ECONNREFUSED
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

var podSearch = []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}

// startServer serves s until the test ends and checks that Serve then returns nil.
func startServer(t testing.TB, s *Server) string {
	t.Helper()
	pc, ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, pc, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return ln.Addr().String()
}

// both starts the two resolvers and a server between them.
func both(t *testing.T, cluster, sys *resolver) string {
	t.Helper()
	cluster.start(t)
	sys.start(t)
	return startServer(t, &Server{
		Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, System: sys.servers,
	})
}

func ask(t *testing.T, network, addr, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, qtype)
	for _, f := range change {
		f(q)
	}
	c := &dns.Client{Net: network, Timeout: 20 * time.Second}
	m, _, err := c.Exchange(q, addr)
	if err != nil {
		t.Fatalf("%s %s: %v", name, dns.TypeToString[qtype], err)
	}
	if m.Id != q.Id || len(m.Question) != 1 || m.Question[0] != q.Question[0] || !m.RecursionAvailable {
		t.Errorf("%s: reply's header and question: %v", name, m)
	}
	return m
}

// text is the answer section in short: "NAME TTL TYPE DATA; ...".
func text(m *dns.Msg) string {
	var s []string
	for _, rr := range m.Answer {
		s = append(s, strings.Replace(strings.Join(strings.Fields(rr.String()), " "), " IN ", " ", 1))
	}
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	return strings.Join(s, "; ")
}

func TestWhoIsAsked(t *testing.T) {
	cluster := &resolver{records: records(t,
		"orders.shop.svc.cluster.local. 30 IN A 10.96.0.20",
		"db.data.svc.cluster.local. 30 IN A 10.96.0.21",
		"_http._tcp.orders.shop.svc.cluster.local. 30 IN SRV 0 100 80 orders.shop.svc.cluster.local.",
		"shop.svc.cluster.local. 30 IN TXT empty-of-addresses",
		"10.0.96.10.in-addr.arpa. 30 IN PTR kube-dns.kube-system.svc.cluster.local.",
		"5.0.96.10.in-addr.arpa. 30 IN PTR node.cloud.example.",
	)}
	sys := &resolver{records: records(t,
		"www.example.com. 300 IN A 192.0.2.1",
		"printer. 300 IN A 192.0.2.2",
		"shop. 300 IN A 192.0.2.3",
		"orders. 300 IN AAAA 2001:db8::1",
		"5.0.96.10.in-addr.arpa. 300 IN PTR laptop.home.",
	)}
	addr := both(t, cluster, sys)
	const (
		A, AAAA, SRV, PTR = dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR
		full              = "orders.shop.svc.cluster.local."
	)
	for _, tt := range []struct {
		name         string
		qtype        uint16
		want         string
		cluster, sys []string // who was asked what
	}{
		{full, A, full + " 30 A 10.96.0.20", []string{full + " A"}, nil},
		{"no." + full, A, "NXDOMAIN", []string{"no." + full + " A"}, nil},
		{"orders.", A, "orders. 30 CNAME " + full + "; " + full + " 30 A 10.96.0.20", nil, nil},
		{"orders.", AAAA, "orders. 5 CNAME " + full, []string{full + " AAAA"}, nil},
		{"db.data.", A, "db.data. 30 CNAME db.data.svc.cluster.local.; db.data.svc.cluster.local. 30 A 10.96.0.21",
			[]string{"db.data.shop.svc.cluster.local. A", "db.data.svc.cluster.local. A"}, nil},
		{"db.data.svc.", A, "db.data.svc. 30 CNAME db.data.svc.cluster.local.; db.data.svc.cluster.local. 30 A 10.96.0.21",
			[]string{"db.data.svc.svc.cluster.local. A"}, nil}, // the other is cached
		{"_http._tcp.orders.", SRV, "_http._tcp.orders. 30 CNAME _http._tcp." + full + "; _http._tcp." + full + " 30 SRV 0 100 80 " + full,
			[]string{"_http._tcp." + full + " SRV"}, nil},
		{"printer.", A, "printer. 300 A 192.0.2.2", []string{"printer.shop.svc.cluster.local. A"}, []string{"printer. A"}},
		{"shop.", A, "shop. 300 A 192.0.2.3", []string{"shop.shop.svc.cluster.local. A"}, []string{"shop. A"}},
		{"nobody.", A, "NXDOMAIN", []string{"nobody.shop.svc.cluster.local. A"}, []string{"nobody. A"}},
		{"www.example.com.", A, "www.example.com. 300 A 192.0.2.1", []string{"www.example.com.svc.cluster.local. A"}, []string{"www.example.com. A"}},
		{"a.b.c.d.e.f.", A, "NXDOMAIN", nil, []string{"a.b.c.d.e.f. A"}},
		{"10.0.96.10.in-addr.arpa.", PTR, "10.0.96.10.in-addr.arpa. 30 PTR kube-dns.kube-system.svc.cluster.local.",
			[]string{"10.0.96.10.in-addr.arpa. PTR"}, nil},
		{"5.0.96.10.in-addr.arpa.", PTR, "5.0.96.10.in-addr.arpa. 300 PTR laptop.home.",
			[]string{"5.0.96.10.in-addr.arpa. PTR"}, []string{"5.0.96.10.in-addr.arpa. PTR"}},
		{"1.2.0.192.in-addr.arpa.", PTR, "NXDOMAIN", nil, []string{"1.2.0.192.in-addr.arpa. PTR"}},
		{".", dns.TypeNS, "NXDOMAIN", nil, []string{". NS"}},
	} {
		m := ask(t, "udp", addr, tt.name, tt.qtype)
		if got := text(m); got != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.name, dns.TypeToString[tt.qtype], got, tt.want)
		}
		slices.Sort(tt.cluster)
		if got := cluster.asked(); !slices.Equal(got, tt.cluster) {
			t.Errorf("%s: the cluster was asked %q, want %q", tt.name, got, tt.cluster)
		}
		if got := sys.asked(); !slices.Equal(got, tt.sys) {
			t.Errorf("%s: the system was asked %q, want %q", tt.name, got, tt.sys)
		}
	}
}

// With as many dots as ndots a name is asked for as it is, and then as the pod's C library and Go do: with the search domains, if it does
// not exist.
func TestWhoIsAskedForANameWithManyDots(t *testing.T) {
	const (
		shop, full, data = "orders.shop.", "orders.shop.svc.cluster.local.", "db.data.svc.cluster.local."
		isOrders, isData = full + "; " + full + " 30 A 10.96.0.20", data + "; " + data + " 30 A 10.96.0.21"
	)
	for _, tt := range []struct {
		ndots        int
		name, want   string
		cluster, sys []string
		namespaced   bool
	}{
		{ndots: 1, name: "orders.", want: "orders. 30 CNAME " + isOrders, cluster: []string{full}},
		{ndots: 1, name: shop, want: shop + " 30 CNAME " + isOrders, cluster: []string{"orders.shop.shop.svc.cluster.local.", full}, sys: []string{shop}},
		{ndots: 2, name: shop, want: shop + " 30 CNAME " + isOrders, cluster: []string{"orders.shop.shop.svc.cluster.local.", full}},
		{ndots: 2, name: "db.data.svc.", want: "db.data.svc. 30 CNAME " + isData, cluster: []string{"db.data.svc.svc.cluster.local.", data}, sys: []string{"db.data.svc."}},
		{ndots: 3, name: "db.data.svc.", want: "db.data.svc. 30 CNAME " + isData, cluster: []string{"db.data.svc.svc.cluster.local.", data}},
		{ndots: 2, name: "www.example.com.", want: "www.example.com. 300 A 192.0.2.1", sys: []string{"www.example.com."}},
		{ndots: 3, name: "www.example.com.", want: "www.example.com. 30 CNAME www.example.com.svc.cluster.local.; www.example.com.svc.cluster.local. 30 A 10.96.0.66",
			cluster: []string{"www.example.com.svc.cluster.local."}},
		{ndots: 1, name: "empty.example.", sys: []string{"empty.example."}}, // it exists
		{ndots: 2, name: "no.example.com.", want: "NXDOMAIN", cluster: []string{"no.example.com.svc.cluster.local."}, sys: []string{"no.example.com."}},
		{ndots: 2, name: "a.b.c.d.e.", want: "NXDOMAIN", sys: []string{"a.b.c.d.e."}},
		{ndots: 2, name: "failed.x.y.", want: "SERVFAIL", sys: []string{"failed.x.y."}}, // a name that may exist is nobody else's
		{ndots: 2, name: "broken.x.y.", want: "SERVFAIL", cluster: []string{"broken.x.y.svc.cluster.local."}, sys: []string{"broken.x.y."}},
		{ndots: 1, name: "busy.db.", want: "NXDOMAIN", cluster: []string{"busy.db.svc.cluster.local."}, sys: []string{"busy.db."}, namespaced: true},
	} {
		cluster := (&resolver{records: records(t,
			full+" 30 IN A 10.96.0.20", data+" 30 IN A 10.96.0.21",
			"www.example.com.svc.cluster.local. 30 IN A 10.96.0.66",
			"busy.db.shop.svc.cluster.local. 30 IN A 10.244.0.9",
		), codes: map[string]int{"broken.x.y.svc.cluster.local.": dns.RcodeServerFailure}}).start(t)
		sys := (&resolver{
			records: records(t, "www.example.com. 300 IN A 192.0.2.1", "empty.example. 300 IN TXT exists"),
			codes:   map[string]int{"failed.x.y.": dns.RcodeServerFailure},
		}).start(t)
		addr := startServer(t, &Server{
			Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, Ndots: tt.ndots, System: sys.servers, Namespaced: tt.namespaced,
		})
		if got := text(ask(t, "udp", addr, tt.name, dns.TypeA)); got != tt.want {
			t.Errorf("ndots %d, %s: %q, want %q", tt.ndots, tt.name, got, tt.want)
		}
		for who, of := range map[string]struct {
			r    *resolver
			want []string
		}{"cluster": {cluster, tt.cluster}, "system": {sys, tt.sys}} {
			got := of.r.asked()
			for i, q := range got {
				got[i] = strings.TrimSuffix(q, " A")
			}
			slices.Sort(of.want)
			if got = slices.Compact(got); !slices.Equal(got, of.want) { // of SERVFAIL the system is asked twice
				t.Errorf("ndots %d, %s: the %s was asked %q, want %q", tt.ndots, tt.name, who, got, of.want)
			}
		}
	}
}

// Without a resolver of the system's a name that the cluster has is answered, as in a pod whose resolver has no way to others'.
func TestNamesWithManyDotsWithoutASystemsResolver(t *testing.T) {
	cluster := (&resolver{records: records(t, "orders.shop.svc.cluster.local. 30 IN A 10.96.0.20")}).start(t)
	addr := startServer(t, &Server{
		Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, Ndots: 1, System: func() ([]string, error) { return nil, errors.New("none") },
	})
	for name, want := range map[string]string{
		"orders.shop.": "orders.shop. 30 CNAME orders.shop.svc.cluster.local.; orders.shop.svc.cluster.local. 30 A 10.96.0.20", "nobody.shop.": "SERVFAIL",
	} {
		if got := text(ask(t, "udp", addr, name, dns.TypeA)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestCaseIsKept(t *testing.T) {
	addr := both(t, &resolver{records: records(t, "orders.shop.svc.cluster.local. 30 IN A 10.96.0.20")}, &resolver{})
	for _, name := range []string{"OrDeRs.shop.svc.cluster.LOCAL.", "orders.SHOP.svc.cluster.local."} {
		if got, want := text(ask(t, "udp", addr, name, dns.TypeA)), name+" 30 A 10.96.0.20"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := text(ask(t, "tcp", addr, "OrderS.", dns.TypeA)); !strings.HasPrefix(got, "OrderS. 30 CNAME ") {
		t.Error(got)
	}
}

func TestLongAnswersAreTruncatedAndWholeOverTCP(t *testing.T) {
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("pods.shop.svc.cluster.local. 30 IN A 10.0.0.%d", i),
			fmt.Sprintf("long.example.com. 30 IN A 192.0.2.%d", i))
	}
	addr := both(t, &resolver{records: records(t, lines...)}, &resolver{records: records(t, lines...)})
	for _, name := range []string{"pods.shop.svc.cluster.local.", "long.example.com."} {
		m := ask(t, "udp", addr, name, dns.TypeA)
		m.Compress = true // as it came
		if !m.Truncated || m.Len() > dns.MinMsgSize || m.IsEdns0() != nil {
			t.Errorf("%s over plain UDP: truncated %v, %d bytes", name, m.Truncated, m.Len())
		}
		for _, size := range []uint16{1232, 4096} {
			m := ask(t, "udp", addr, name, dns.TypeA, func(q *dns.Msg) { q.SetEdns0(size, false) })
			if m.Truncated != (size == 1232) || m.IsEdns0() == nil || m.Truncated == (len(m.Answer) == 100) {
				t.Errorf("%s with EDNS %d: truncated %v, %d records", name, size, m.Truncated, len(m.Answer))
			}
		}
		if m := ask(t, "tcp", addr, name, dns.TypeA); m.Truncated || len(m.Answer) != 100 {
			t.Errorf("%s over TCP: truncated %v, %d records", name, m.Truncated, len(m.Answer))
		}
	}
}

func TestErrorsPass(t *testing.T) {
	cluster := &resolver{codes: map[string]int{"broken.shop.svc.cluster.local.": dns.RcodeServerFailure, "9.0.96.10.in-addr.arpa.": dns.RcodeServerFailure}}
	sys := &resolver{codes: map[string]int{
		"refused.a.b.c.d.e.": dns.RcodeRefused,
		"failed.a.b.c.d.e.":  dns.RcodeServerFailure,
	}, records: records(t, "broken. 1 IN TXT found")}
	addr := both(t, cluster, sys)
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"broken.shop.svc.cluster.local.", dns.TypeA, "SERVFAIL"},
		{"refused.a.b.c.d.e.", dns.TypeA, "REFUSED"},
		{"failed.a.b.c.d.e.", dns.TypeA, "SERVFAIL"},
		{"broken.", dns.TypeTXT, `broken. 1 TXT "found"`}, // the system knows it
		{"broken.shop.", dns.TypeA, "SERVFAIL"},           // nobody does, and the cluster may
		{"9.0.96.10.in-addr.arpa.", dns.TypePTR, "SERVFAIL"},
		{"orders.", dns.TypeAXFR, "REFUSED"},
	} {
		if got := text(ask(t, "tcp", addr, tt.name, tt.qtype)); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	m := ask(t, "udp", addr, "x.", dns.TypeA, func(q *dns.Msg) {
		q.SetEdns0(1232, false)
		q.IsEdns0().SetVersion(1)
	})
	if m.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %s", dns.RcodeToString[m.Rcode])
	}
	m = ask(t, "udp", addr, "x.", dns.TypeA, func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify })
	if m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("NOTIFY: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestWithoutATunnelTheSystemStillAnswers(t *testing.T) {
	sys := (&resolver{records: records(t, "www.example.com. 300 IN A 192.0.2.1", "1.0.0.10.in-addr.arpa. 300 IN PTR router.home.")}).start(t)
	addr := startServer(t, &Server{
		Dial:        func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no tunnel") },
		Nameservers: []string{"10.96.0.10"}, Search: podSearch, System: sys.servers,
	})
	for name, want := range map[string]string{
		"www.example.com.":               "www.example.com. 300 A 192.0.2.1",
		"orders.shop.svc.cluster.local.": "SERVFAIL",
		"orders.":                        "SERVFAIL", // not NXDOMAIN: that would be believed for a while
		"a.b.c.d.e.f.g.":                 "NXDOMAIN",
		"10.0.96.10.in-addr.arpa.":       "SERVFAIL", // a Service's name is not to be forgotten either
		"1.0.0.10.in-addr.arpa.":         "1.0.0.10.in-addr.arpa. 300 PTR router.home.",
		"1.2.0.192.in-addr.arpa.":        "NXDOMAIN", // no cluster's
	} {
		qtype := dns.TypeA
		if strings.HasSuffix(name, ".arpa.") {
			qtype = dns.TypePTR
		}
		m := ask(t, "udp", addr, name, qtype, func(q *dns.Msg) { q.SetEdns0(1232, false) })
		if got := text(m); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		if want != "SERVFAIL" {
			continue
		}
		ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE)
		if !ok || ede.ExtraText != "ask the cluster's resolver 10.96.0.10:53: no tunnel" {
			t.Errorf("%s: the reply does not say why: %v", name, m)
		}
	}
}

func TestSystemResolversAreTriedInTurn(t *testing.T) {
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	failing := (&resolver{codes: map[string]int{"a.b.c.d.e.f.": dns.RcodeServerFailure}}).start(t)
	good := (&resolver{records: records(t, "a.b.c.d.e.f. 9 IN A 192.0.2.9")}).start(t)
	addr := startServer(t, &Server{Dial: dial, System: func() ([]string, error) {
		return []string{closed.LocalAddr().String(), failing.addr, good.addr}, nil
	}})
	if got := text(ask(t, "udp", addr, "a.b.c.d.e.f.", dns.TypeA)); got != "a.b.c.d.e.f. 9 A 192.0.2.9" {
		t.Error(got)
	}
}

func TestItNeverAsksItself(t *testing.T) {
	self := ""
	ready := make(chan struct{})
	self = startServer(t, &Server{Dial: dial, System: func() ([]string, error) {
		<-ready
		return []string{self}, nil
	}})
	close(ready)
	if got := text(ask(t, "udp", self, "a.b.c.d.e.f.", dns.TypeA)); got != "SERVFAIL" {
		t.Error(got)
	}
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	err := os.WriteFile(path, []byte("# home\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch home\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readResolvConf(path)
	if want := []string{"192.0.2.53:53", "[fe80::1%eth0]:53"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := readResolvConf(path + ".missing"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestConnectionsToTheClusterAreReusedAndReplaced(t *testing.T) {
	cluster := &resolver{records: records(t, "a.shop.svc.cluster.local. 0 IN A 10.0.0.1")} // TTL 0: not cached
	cluster.start(t)
	sys := (&resolver{}).start(t)
	var dials atomic.Int64
	var mu sync.Mutex
	var last net.Conn
	addr := startServer(t, &Server{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			dials.Add(1)
			mu.Lock()
			defer mu.Unlock()
			last = c
			return c, nil
		},
		Nameservers: []string{cluster.addr}, Search: podSearch, System: sys.servers,
	})
	check := func(want int64) {
		t.Helper()
		for range 5 {
			if got := text(ask(t, "udp", addr, "a.shop.svc.cluster.local.", dns.TypeA)); got != "a.shop.svc.cluster.local. 0 A 10.0.0.1" {
				t.Fatal(got)
			}
		}
		if n := dials.Load(); n != want {
			t.Fatalf("%d dials, want %d", n, want)
		}
	}
	check(1)
	mu.Lock()
	last.Close() // what a resolver that closes idle connections, or a lost stream, looks like
	mu.Unlock()
	check(2)
}

func TestTheSecondClusterResolverIsAsked(t *testing.T) {
	good := (&resolver{records: records(t, "a.shop.svc.cluster.local. 5 IN A 10.0.0.1")}).start(t)
	addr := startServer(t, &Server{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "10.96.0.10:53" {
				return nil, errors.New("refused")
			}
			return dial(ctx, network, address)
		},
		Nameservers: []string{"10.96.0.10", good.addr}, Search: podSearch,
		System: func() ([]string, error) { return nil, nil },
	})
	if got := text(ask(t, "udp", addr, "a.", dns.TypeA)); !strings.HasSuffix(got, "5 A 10.0.0.1") {
		t.Error(got)
	}
}

func TestConcurrentQuestionsAreAskedOnce(t *testing.T) {
	cluster := &resolver{gate: make(chan struct{}), records: records(t, "a.shop.svc.cluster.local. 30 IN A 10.0.0.1")}
	addr := both(t, cluster, &resolver{})
	const clients = 50
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			c := &dns.Client{Net: "tcp", Timeout: 20 * time.Second}
			m, _, err := c.Exchange(new(dns.Msg).SetQuestion("a.", dns.TypeA), addr)
			if err != nil || len(m.Answer) != 2 {
				t.Errorf("%v, %v", m, err)
			}
		})
	}
	cluster.gate <- struct{}{} // a second question would wait here for good
	wg.Wait()
	if got := cluster.asked(); len(got) != 1 {
		t.Errorf("the cluster was asked %q", got)
	}
}

// Of a flight all have the one result. Where the first has no more time the others ask once more.
func TestOneFlightForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flight[int]
		var asked atomic.Int64
		gate := make(chan struct{})
		var wg sync.WaitGroup
		first, giveUp := context.WithCancel(t.Context())
		do := func(ctx context.Context, want int, wantErr error) {
			wg.Go(func() {
				n, err := f.do(ctx, "a", func() (int, error) {
					n := asked.Add(1)
					select {
					case <-gate:
						return int(n), nil
					case <-ctx.Done():
						return 0, ctx.Err()
					}
				})
				if n != want || !errors.Is(err, wantErr) {
					t.Errorf("%d, %v, want %d, %v", n, err, want, wantErr)
				}
			})
			synctest.Wait()
		}
		do(first, 0, context.Canceled)
		for range 50 {
			do(t.Context(), 2, nil)
		}
		giveUp()
		synctest.Wait()
		close(gate)
		wg.Wait()
		if asked.Load() != 2 {
			t.Errorf("asked %d times", asked.Load())
		}
	})
}

// The system's resolvers are asked once what many ask at the same time, whatever its case.
func TestTheSystemIsAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		gate := make(chan struct{})
		s := &system{servers: func() ([]string, error) {
			asked.Add(1)
			<-gate
			return nil, nil
		}}
		var wg sync.WaitGroup
		for i := range 50 {
			name := "a.b.c.d.e.f."
			if i%2 == 1 {
				name = strings.ToUpper(name)
			}
			wg.Go(func() {
				if m, err := s.ask(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA)); err == nil {
					t.Error(m)
				}
			})
		}
		synctest.Wait()
		if asked.Load() != 1 {
			t.Errorf("asked %d times", asked.Load())
		}
		close(gate)
		wg.Wait()
	})
}

// What is shared is each client's own: in its case, and without what another does to it.
func TestASystemsAnswerIsTheClients(t *testing.T) {
	sys := (&resolver{records: records(t, "a.b.c.d.e.f. 9 IN A 192.0.2.9")}).start(t)
	shared := new(dns.Msg).SetQuestion("A.b.c.d.e.f.", dns.TypeA)
	shared.Response, shared.Answer = true, records(t, "A.b.c.d.e.f. 9 IN A 192.0.2.9")
	synctest.Test(t, func(t *testing.T) {
		s := &system{servers: sys.servers}
		gate := make(chan struct{})
		var wg sync.WaitGroup
		q := new(dns.Msg).SetQuestion("a.B.c.d.e.f.", dns.TypeA)
		wg.Go(func() {
			_, _ = s.flight.do(t.Context(), key(q), func() (*dns.Msg, error) { <-gate; return shared, nil })
		})
		synctest.Wait()
		wg.Go(func() {
			m, err := s.ask(t.Context(), q)
			if err != nil || m == shared || text(m) != "a.B.c.d.e.f. 9 A 192.0.2.9" {
				t.Errorf("%v, %v", m, err)
			}
		})
		synctest.Wait()
		close(gate)
		wg.Wait()
	})
	if got := text(shared); got != "A.b.c.d.e.f. 9 A 192.0.2.9" {
		t.Error(got)
	}
	if got := sys.asked(); len(got) != 0 {
		t.Errorf("the system was asked %q", got)
	}
}

// What the cluster has to be asked for a name takes one round trip: the search list's names are asked for at once, each once, over
// connections that need not be there yet.
func TestANameTakesOneRoundTrip(t *testing.T) {
	const trip = 80 * time.Millisecond
	cluster := &resolver{records: records(t,
		"orders.shop.svc.cluster.local. 30 IN A 10.96.0.20",
		"_http._tcp.orders.shop.svc.cluster.local. 30 IN SRV 0 100 80 orders.shop.svc.cluster.local.",
		"db.data.svc.cluster.local. 30 IN A 10.96.0.21",
	)}
	for _, tt := range []struct {
		name      string
		qtypes    []uint16 // by as many clients at once
		questions []string
	}{
		{"orders.", []uint16{dns.TypeA}, []string{"orders.shop.svc.cluster.local. A"}},
		{"orders.", []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeA, dns.TypeAAAA, dns.TypeA},
			[]string{"orders.shop.svc.cluster.local. A", "orders.shop.svc.cluster.local. AAAA"}},
		{"ORDERS.shop.svc.cluster.local.", []uint16{dns.TypeA}, []string{"orders.shop.svc.cluster.local. A"}},
		{"orders.shop.", []uint16{dns.TypeA, dns.TypeA}, []string{"orders.shop.shop.svc.cluster.local. A", "orders.shop.svc.cluster.local. A"}},
		{"db.data.svc.", []uint16{dns.TypeA}, []string{"db.data.svc.cluster.local. A", "db.data.svc.svc.cluster.local. A"}},
		{"_http._tcp.orders.", []uint16{dns.TypeSRV}, []string{"_http._tcp.orders.shop.svc.cluster.local. SRV"}},
		{"nobody.", []uint16{dns.TypeA}, []string{"nobody.shop.svc.cluster.local. A"}},
		{"www.example.com.", []uint16{dns.TypeA}, []string{"www.example.com.svc.cluster.local. A"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var ends sync.WaitGroup
			defer ends.Wait()
			h := (&Server{
				Dial: cluster.away(&ends, trip), Nameservers: []string{"10.96.0.10"}, Search: podSearch,
				System: func() ([]string, error) { return nil, nil },
			}).newHandler(t.Context(), netip.AddrPort{})
			defer h.close()
			var clients sync.WaitGroup
			start := time.Now()
			for _, qtype := range tt.qtypes {
				clients.Go(func() { h.answer(new(dns.Msg).SetQuestion(tt.name, qtype)) })
			}
			clients.Wait()
			if took, got := time.Since(start), cluster.asked(); took != trip || !slices.Equal(got, tt.questions) {
				t.Errorf("%s: %v, the cluster was asked %q, want %v and %q", tt.name, took, got, trip, tt.questions)
			}
			time.Sleep(poolIdleTime + time.Second) // the connections are gone
			start = time.Now()
			h.answer(new(dns.Msg).SetQuestion("later.", dns.TypeA))
			if took := time.Since(start); took != trip {
				t.Errorf("%s, later: %v, want %v", tt.name, took, trip)
			}
			cluster.asked()
		})
	}
}

func TestManyQuestionsShareAFewConnections(t *testing.T) {
	const many = 300
	var lines []string
	for i := range many {
		lines = append(lines, fmt.Sprintf("s%d.shop.svc.cluster.local. 30 IN A 10.0.%d.%d", i, i/256, i%256))
	}
	cluster := (&resolver{records: records(t, lines...)}).start(t)
	var dials atomic.Int64
	addr := startServer(t, &Server{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if network == "tcp" {
				dials.Add(1)
			}
			return dial(ctx, network, address)
		},
		Nameservers: []string{cluster.addr}, Search: podSearch,
		System: func() ([]string, error) { return nil, nil },
	})
	var wg sync.WaitGroup
	for i := range many {
		wg.Go(func() {
			// The kernel may drop some of so many datagrams at once; resolvers ask again, and so does this.
			c := &dns.Client{Timeout: 5 * time.Second}
			var m *dns.Msg
			err := os.ErrDeadlineExceeded
			for try := 0; try < 5 && errors.Is(err, os.ErrDeadlineExceeded); try++ {
				m, _, err = c.Exchange(new(dns.Msg).SetQuestion(fmt.Sprintf("s%d.", i), dns.TypeA), addr)
			}
			if err != nil || len(m.Answer) != 2 || m.Answer[1].(*dns.A).A.String() != fmt.Sprintf("10.0.%d.%d", i/256, i%256) {
				t.Errorf("s%d: %v, %v", i, m, err)
			}
		})
	}
	wg.Wait()
	if n := dials.Load(); n > maxPoolConns {
		t.Errorf("%d connections", n)
	}
}

func TestCacheFollowsLifetimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := newCache(func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
			asked++
			m := new(dns.Msg).SetReply(q)
			switch q.Question[0].Name {
			case "a.":
				m.Answer = records(t, "a. 30 IN CNAME b.", "b. 20 IN A 10.0.0.1")
			case "none.":
				m.Rcode = dns.RcodeNameError
				m.Ns = records(t, soa)
			case "fail.":
				m.Rcode = dns.RcodeServerFailure
			case "error.":
				return nil, errors.New("no")
			}
			return m, nil
		})
		check := func(name, want string, wantAsked int) {
			t.Helper()
			m, _, err := c.ask(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA))
			var got string
			if err != nil {
				got = err.Error()
			} else {
				got = text(m)
			}
			if got != want || asked != wantAsked {
				t.Errorf("%s: %q after %d questions, want %q after %d", name, got, asked, want, wantAsked)
			}
		}
		check("a.", "a. 30 CNAME b.; b. 20 A 10.0.0.1", 1)
		time.Sleep(19 * time.Second)
		check("A.", "A. 11 CNAME b.; b. 1 A 10.0.0.1", 1)
		time.Sleep(time.Second)
		check("a.", "a. 30 CNAME b.; b. 20 A 10.0.0.1", 2)
		check("none.", "NXDOMAIN", 3)
		time.Sleep(4 * time.Second)
		check("none.", "NXDOMAIN", 3)
		time.Sleep(time.Second)
		check("none.", "NXDOMAIN", 4)
		check("fail.", "SERVFAIL", 5)
		check("fail.", "SERVFAIL", 6)
		check("error.", "no", 7)
		check("error.", "no", 8)
		for i := range 2 * maxCached {
			c.put(fmt.Sprint(i), nil, &dns.Msg{Answer: records(t, "a. 30 IN A 10.0.0.1")}, time.Now())
		}
		if len(c.entries) != maxCached {
			t.Errorf("%d entries", len(c.entries))
		}
	})
}

func TestReversed(t *testing.T) {
	for _, s := range []string{"10.96.0.10", "192.0.2.255", "fd00::1:2", "2001:db8::ff"} {
		name, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := reversed(strings.ToUpper(name)); !ok || got != netip.MustParseAddr(s) {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
	for _, s := range []string{"96.10.in-addr.arpa.", "x.0.96.10.in-addr.arpa.", "1.ip6.arpa.", "in-addr.arpa.", "."} {
		if got, ok := reversed(s); ok {
			t.Errorf("%s: %v", s, got)
		}
	}
}

func TestZoneComesFromThePodsSearchList(t *testing.T) {
	for _, tt := range []struct {
		search []string
		zone   string
		kept   []string
	}{
		{podSearch, "cluster.local.", []string{"shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}},
		{[]string{"x.svc.K8S.example", "svc.K8S.example", "k8s.example"}, "k8s.example.",
			[]string{"x.svc.k8s.example.", "svc.k8s.example.", "k8s.example."}},
		{[]string{"svc.svc.cluster.local", "svc.cluster.local", "cluster.local"}, "cluster.local.", // a namespace called svc
			[]string{"svc.svc.cluster.local.", "svc.cluster.local.", "cluster.local."}},
		{[]string{"shop.svc.svc.example", "svc.svc.example", "svc.example"}, "svc.example.", []string{"shop.svc.svc.example.", "svc.svc.example.", "svc.example."}},
		{[]string{"svc.svc.svc.example", "svc.svc.example", "svc.example"}, "svc.example.", []string{"svc.svc.svc.example.", "svc.svc.example.", "svc.example."}},
		{[]string{"svc.corp.example", "x.svc.cluster.local", "svc.cluster.local"}, "cluster.local.", []string{"x.svc.cluster.local.", "svc.cluster.local."}},
		{[]string{"svc.cluster.example", "cluster.example"}, "cluster.example.", []string{"svc.cluster.example.", "cluster.example."}},
		{[]string{"corp.example"}, "cluster.local.", nil},
		{nil, "cluster.local.", nil},
	} {
		r := newRules(tt.search, 0)
		if r.zone != tt.zone || !slices.Equal(r.search, tt.kept) || r.ndots != 5 {
			t.Errorf("%q: %+v", tt.search, r)
		}
	}
}

func TestRealDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig is not installed")
	}
	addr := both(t, &resolver{records: records(t, "orders.shop.svc.cluster.local. 30 IN A 10.96.0.20")}, &resolver{})
	host, port, _ := net.SplitHostPort(addr)
	for _, args := range [][]string{nil, {"+tcp"}, {"+noedns"}, {"+dnssec"}, {"+cookie"}} {
		args = append([]string{"@" + host, "-p", port, "+short", "orders.shop"}, args...)
		out, err := exec.CommandContext(t.Context(), dig, args...).CombinedOutput()
		if want := "orders.shop.svc.cluster.local.\n10.96.0.20\n"; err != nil || string(out) != want {
			t.Errorf("dig %q: %q, %v", args, out, err)
		}
	}
}

func TestServeEndsWithItsQueries(t *testing.T) {
	entered := make(chan struct{})
	pc, ln, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	enter := sync.OnceFunc(func() { close(entered) })
	s := &Server{
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			enter()
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Nameservers: []string{"10.96.0.10"},
		Unchanged:   func(string, string, bool) (time.Time, bool) { return time.Time{}, false },
	}
	go func() { done <- s.Serve(ctx, pc, ln) }()
	c, err := net.Dial("udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := (&dns.Conn{Conn: c}).WriteMsg(new(dns.Msg).SetQuestion("a.cluster.local.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzAnswer checks that no query, however odd, breaks the server or gets an answer that is not
// its own.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*dns.Msg{
		new(dns.Msg).SetQuestion("orders.", dns.TypeA),
		new(dns.Msg).SetQuestion("10.0.96.10.in-addr.arpa.", dns.TypePTR),
		new(dns.Msg).SetQuestion("a.cluster.local.", dns.TypeAXFR).SetEdns0(4096, true),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil || len(q.Question) != 1 { // miekg/dns answers these itself
			return
		}
		s := &Server{
			Dial:        func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no tunnel") },
			Nameservers: []string{"10.96.0.10"}, Search: podSearch,
			System: func() ([]string, error) { return nil, errors.New("none") },
		}
		h := s.newHandler(t.Context(), netip.AddrPort{})
		defer h.close()
		m, _ := h.answer(q)
		m.Truncate(dns.MinMsgSize)
		out, err := m.Pack()
		if err != nil {
			return // a name that unpacks but does not pack: no answer
		}
		if len(out) > dns.MinMsgSize || m.Id != q.Id || !m.Response || m.Question[0] != q.Question[0] {
			t.Errorf("%v\nanswered by %d bytes\n%v", q, len(out), m)
		}
	})
}

// Where a whole machine asks, whoever may make Services in the namespace has no names of others': github.com is a HOST.SERVICE there.
func TestNamesOfAWholeMachineAreNotTheNamespaces(t *testing.T) {
	cluster := (&resolver{records: records(t,
		"github.com.shop.svc.cluster.local. 30 IN A 10.96.0.66",
		"www.github.com.shop.svc.cluster.local. 30 IN A 10.96.0.66",
		"orders.shop.svc.cluster.local. 30 IN A 10.96.0.20",
		"db-0.db.shop.svc.cluster.local. 30 IN A 10.244.0.9",
	)}).start(t)
	sys := (&resolver{records: records(t, "github.com. 30 IN A 192.0.2.66", "www.github.com. 30 IN A 192.0.2.66")}).start(t)
	addr := startServer(t, &Server{Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, System: sys.servers, Namespaced: true})
	for name, want := range map[string]string{
		"github.com.": "192.0.2.66", "www.github.com.": "192.0.2.66",
		"orders.": "10.96.0.20", "orders.shop.": "10.96.0.20", "orders.shop.svc.": "10.96.0.20", "db-0.db.shop.": "10.244.0.9",
	} {
		if m := ask(t, "udp", addr, name, dns.TypeA); !strings.Contains(text(m), want) {
			t.Errorf("%s: %s, want %s", name, text(m), want)
		}
	}
	for _, q := range cluster.asked() {
		if strings.Contains(q, "com.shop") {
			t.Errorf("the cluster was asked %s", q)
		}
	}
}

// Whoever is not chosen is told nothing, not what is remembered either.
func TestOthersAreNotAnswered(t *testing.T) {
	cluster := (&resolver{records: records(t, "orders.shop.svc.cluster.local. 30 IN A 10.96.0.20")}).start(t)
	var stranger atomic.Bool
	asked := make(chan netip.Addr, 8)
	addr := startServer(t, &Server{
		Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, System: cluster.servers,
		From: func(a netip.Addr) bool {
			answered := !stranger.Load()
			asked <- a
			return answered
		},
	})
	for _, network := range []string{"udp", "tcp"} {
		if m := ask(t, network, addr, "orders.", dns.TypeA); !strings.Contains(text(m), "10.96.0.20") {
			t.Errorf("%s: %s", network, text(m))
		}
	}
	stranger.Store(true)
	q, err := new(dns.Msg).SetQuestion("orders.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for len(asked) > 0 {
		<-asked
	}
	if _, err := c.Write(q); err != nil {
		t.Fatal(err)
	}
	<-asked // and dropped
	stranger.Store(false)
	second := append([]byte{^q[0], ^q[1]}, q[2:]...)
	if _, err := c.Write(second); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, maxUDPQuery)
	if _, err := c.Read(b); err != nil || b[0] != second[0] || b[1] != second[1] {
		t.Errorf("the first answer has the ID %x of the question %x, %v", b[:2], q[:2], err)
	}
	stranger.Store(true)
	if m, _, err := (&dns.Client{Net: "tcp", Timeout: 20 * time.Second}).Exchange(new(dns.Msg).SetQuestion("orders.", dns.TypeA), addr); err == nil {
		t.Errorf("over TCP: %v", m)
	}
}
