package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// watched is a cache before a cluster whose Services somebody watches.
type watched struct {
	t *testing.T
	c *cache

	mu      sync.Mutex // held by the test while it neither asks nor sleeps
	cluster *resolver
	down    bool // the cluster's resolver cannot be asked
	since   time.Time
	changed map[string]time.Time // by "SERVICE.NAMESPACE"
	exist   map[string]bool      // namespaces that are said to be ones
	lost    bool                 // nothing is watched
	life    time.Duration
}

// withWatch runs f with a cache of whose answers those that may are confirmed, or not.
func withWatch(t *testing.T, confirms bool, f func(w *watched), lines ...string) {
	synctest.Test(t, func(t *testing.T) {
		w := &watched{
			t: t, cluster: &resolver{records: records(t, lines...)}, since: time.Now(), changed: map[string]time.Time{}, exist: map[string]bool{},
		}
		w.c = newCache(func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.down {
				return nil, errors.New("no answer")
			}
			return w.cluster.reply(q), nil
		})
		w.c.zone = "cluster.local."
		w.c.unchanged = func(namespace, service string, exists bool) (time.Time, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.exist[namespace] = w.exist[namespace] || exists
			since := w.since
			if at := w.changed[service+"."+namespace]; at.After(since) {
				since = at
			}
			return since, !w.lost && namespace == "shop"
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if confirms {
				w.c.confirm(ctx)
			}
		}()
		time.Sleep(time.Millisecond) // so that no tick is at the moment of a question
		w.mu.Lock()
		f(w)
		w.mu.Unlock()
		cancel()
		<-ended
	})
}

func (w *watched) sleep(d time.Duration) {
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
}

// settle lets so much time pass that an answer from now on can be given again.
func (w *watched) settle() { w.sleep(usualLife + hearTime) }

// ask is a client's question, answered without its lifetime, which is in w.life, and how many the cluster was asked for it.
func (w *watched) ask(name string, qtype uint16) (answer string, questions int) {
	w.t.Helper()
	w.cluster.asked()
	w.mu.Unlock()
	m, _, err := w.c.ask(w.t.Context(), new(dns.Msg).SetQuestion(name, qtype))
	w.mu.Lock()
	if err != nil {
		return err.Error(), len(w.cluster.asked())
	}
	w.life = lifetime(m)
	for _, rr := range m.Answer {
		rr.Header().Ttl = 0
	}
	slices.SortFunc(m.Answer, func(a, b dns.RR) int { return strings.Compare(a.String(), b.String()) })
	return text(m), len(w.cluster.asked())
}

// expect asks and compares.
func (w *watched) expect(name string, qtype uint16, answer string, questions int) {
	w.t.Helper()
	if got, n := w.ask(name, qtype); got != answer || n != questions {
		w.t.Errorf("%s %s: %q after %d questions, want %q after %d", name, dns.TypeToString[qtype], got, n, answer, questions)
	}
}

const (
	orders   = "orders.shop.svc.cluster.local."
	ordersIs = orders + " 0 A 10.96.0.20"
)

// What is an answer about a Service's name is given past its lifetime while nothing of the Service changes; all else is asked for.
func TestWhatIsUnchangedIsGivenAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		qtype uint16
		again bool
	}{
		{orders, dns.TypeA, true},
		{"ORDERS.shop.svc.cluster.local.", dns.TypeA, true},
		{orders, dns.TypeAAAA, true},
		{orders, dns.TypeHTTPS, true},
		{orders, dns.TypeTXT, false}, // no resolver of Kubernetes says that
		{"_http._tcp.orders.shop.svc.cluster.local.", dns.TypeSRV, true},
		{"_no._tcp.orders.shop.svc.cluster.local.", dns.TypeSRV, true},
		{"pods.shop.svc.cluster.local.", dns.TypeA, true},
		{"busy.pods.shop.svc.cluster.local.", dns.TypeA, true},
		{"nobody.shop.svc.cluster.local.", dns.TypeA, true},
		{"alias.shop.svc.cluster.local.", dns.TypeA, false},
		{"alias.shop.svc.cluster.local.", dns.TypeCNAME, false},
		{"outside.shop.svc.cluster.local.", dns.TypeSRV, false},
		{"*.shop.svc.cluster.local.", dns.TypeA, false},
		{"any.shop.svc.cluster.local.", dns.TypeA, false},
		{"db.data.svc.cluster.local.", dns.TypeA, false}, // not watched
		{"shop.svc.cluster.local.", dns.TypeA, false},
		{"a.b.c.orders.shop.svc.cluster.local.", dns.TypeA, false},
		{"10-0-0-1.shop.pod.cluster.local.", dns.TypeA, false},
		{"20.0.96.10.in-addr.arpa.", dns.TypePTR, false},
		{"orders.shop.svc.stub.example.", dns.TypeA, false},
	} {
		withWatch(t, false, func(w *watched) {
			w.settle()
			first, _ := w.ask(tt.name, tt.qtype)
			life := w.life
			w.sleep(usualLife + time.Second)
			again, n := w.ask(tt.name, tt.qtype)
			if again != first || (n == 0) != tt.again || w.life != life {
				t.Errorf("%s %s: %q, and %q after %d questions", tt.name, dns.TypeToString[tt.qtype], first, again, n)
			}
			if ns := "shop"; tt.again && first != "NXDOMAIN" && !w.exist[ns] || w.exist["com"] {
				t.Errorf("namespaces that exist: %v", w.exist)
			}
		},
			orders+" 30 IN A 10.96.0.20", orders+" 30 IN TXT here",
			"_http._tcp."+orders+" 30 IN SRV 0 100 80 "+orders,
			"pods.shop.svc.cluster.local. 30 IN A 10.0.0.1", "pods.shop.svc.cluster.local. 30 IN A 10.0.0.2",
			"busy.pods.shop.svc.cluster.local. 30 IN A 10.0.0.2",
			"alias.shop.svc.cluster.local. 30 IN CNAME www.example.com.", "alias.shop.svc.cluster.local. 30 IN A 192.0.2.1",
			"outside.shop.svc.cluster.local. 30 IN SRV 0 100 80 www.example.com.",
			"db.data.svc.cluster.local. 30 IN A 10.96.0.21",
			"shop.svc.cluster.local. 30 IN A 10.96.0.1", "10-0-0-1.shop.pod.cluster.local. 30 IN A 10.0.0.1",
			"20.0.96.10.in-addr.arpa. 30 IN PTR "+orders, "orders.shop.svc.stub.example. 30 IN A 10.96.0.20",
		)
	}
}

// A short name is answered so too, whatever the cluster's domain, in no time.
func TestShortNamesAreGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cluster := &resolver{records: records(t, "orders.shop.svc.k8s.example. 30 IN A 10.96.0.20")}
		var ends sync.WaitGroup
		defer ends.Wait()
		began := time.Now()
		h := (&Server{
			Dial: cluster.away(&ends, 80*time.Millisecond), Nameservers: []string{"10.96.0.10"},
			Search:    []string{"shop.svc.k8s.example", "svc.k8s.example", "k8s.example"},
			System:    func() ([]string, error) { return nil, nil },
			Unchanged: func(namespace, _ string, _ bool) (time.Time, bool) { return began, namespace == "shop" },
		}).newHandler(t.Context(), netip.AddrPort{})
		defer h.close()
		time.Sleep(usualLife + hearTime)
		for _, want := range []int{1, 0, 0} {
			start := time.Now()
			m, _ := h.answer(new(dns.Msg).SetQuestion("orders.", dns.TypeA))
			if got := text(m); got != "orders. 30 CNAME orders.shop.svc.k8s.example.; orders.shop.svc.k8s.example. 30 A 10.96.0.20" {
				t.Error(got)
			}
			if took, n := time.Since(start), len(cluster.asked()); n != want || took != time.Duration(want)*80*time.Millisecond {
				t.Errorf("%d questions, %v, want %d", n, took, want)
			}
			time.Sleep(usualLife)
		}
	})
}

// The cluster is asked after a change until no resolver can remember what was before.
func TestAChangeIsAskedFor(t *testing.T) {
	withWatch(t, false, func(w *watched) {
		w.expect(orders, dns.TypeA, ordersIs, 1) // the watch has just begun
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, ordersIs, 0)
		w.sleep(usualLife / 2)
		w.changed["orders.shop"] = time.Now()
		w.sleep(usualLife / 2)
		w.expect(orders, dns.TypeA, ordersIs, 1) // some resolver has not heard of it
		w.cluster.records = nil
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, "NXDOMAIN", 1)
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, "NXDOMAIN", 0)
		w.changed["orders.shop"] = time.Now() // it is back
		w.cluster.records = records(t, orders+" 30 IN A 10.96.0.99")
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, orders+" 0 A 10.96.0.99", 1)
		w.lost = true
		w.settle()
		w.expect(orders, dns.TypeA, orders+" 0 A 10.96.0.99", 1)
	}, orders+" 30 IN A 10.96.0.20")
}

// No client of a name in use waits, and what could not be confirmed, or is no answer any more, is not given.
func TestWhatIsGivenIsConfirmed(t *testing.T) {
	withWatch(t, true, func(w *watched) {
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.settle()
		w.sleep(2 * confirmPause)
		w.cluster.asked()
		asked := 0
		for range 600 {
			w.sleep(time.Second)
			asked += len(w.cluster.asked())
			w.expect(orders, dns.TypeA, ordersIs, 0)
		}
		if most := int(600 * time.Second / confirmEvery); asked > most {
			t.Errorf("asked %d times in ten minutes, want %d", asked, most)
		}
		w.cluster.codes = map[string]int{orders: dns.RcodeServerFailure}
		w.sleep(confirmEvery + usualLife)
		w.expect(orders, dns.TypeA, "SERVFAIL", 1)
		w.cluster.codes = nil
		w.expect(orders, dns.TypeA, ordersIs, 1)

		w.down = true
		for start := time.Now(); time.Since(start) < confirmEvery+usualLife; w.sleep(time.Second) {
			w.expect(orders, dns.TypeA, ordersIs, 0)
		}
		w.sleep(maxUnconfirmed)
		w.expect(orders, dns.TypeA, "no answer", 0)
		w.down = false
		w.expect(orders, dns.TypeA, ordersIs, 1)

		w.sleep(confirmFor + time.Minute)
		w.cluster.asked()
		w.sleep(time.Hour)
		if asked := w.cluster.asked(); len(asked) > 0 {
			t.Errorf("for nobody the cluster was asked %q", asked)
		}
	}, orders+" 5 IN A 10.96.0.20")
}

// Nobody has a reason to believe an answer for longer than maxUnconfirmed, or than the lifetime it came with.
func TestNoAnswerIsOlderThanSaid(t *testing.T) {
	for _, life := range []time.Duration{5 * time.Second, 30 * time.Second, 80 * time.Second, 300 * time.Second} {
		withWatch(t, true, func(w *watched) {
			w.c.longest["shop"] = life
			w.sleep(life + hearTime + usualLife)
			w.expect(orders, dns.TypeA, ordersIs, 1)
			w.down = true
			most := max(life, maxUnconfirmed)
			last := time.Duration(0)
			for start := time.Now(); time.Since(start) <= most+time.Second; w.sleep(time.Second) {
				if got, _ := w.ask(orders, dns.TypeA); got == "no answer" {
					continue
				}
				if last = time.Since(start); last+w.life > most {
					w.t.Errorf("lifetime %v: after %v it is given for %v", life, last, w.life)
					return
				}
			}
			if last < most-2*time.Second {
				w.t.Errorf("lifetime %v: not given after %v", life, last)
			}
		}, orders+fmt.Sprintf(" %d IN A 10.96.0.20", life/time.Second))
	}
}

// An answer that is not confirmed has the rest of its lifetime all the same, as one that nobody asks for anew.
func TestWhatIsNotConfirmedKeepsItsLifetime(t *testing.T) {
	withWatch(t, true, func(w *watched) {
		w.settle()
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.cluster.codes = map[string]int{orders: dns.RcodeServerFailure}
		w.sleep(2*confirmEvery - time.Second)
		w.expect(orders, dns.TypeA, ordersIs, 0)
		w.sleep(2 * time.Second)
		w.expect(orders, dns.TypeA, "SERVFAIL", 1)
	}, orders+" 60 IN A 10.96.0.20")
}

// Who waits for a question in the background, which has less time, asks itself when that has failed.
func TestAClientHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trip := time.Minute
		c := newCache(func(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(trip):
				return new(dns.Msg).SetReply(q), nil
			}
		})
		q := new(dns.Msg).SetQuestion(orders, dns.TypeA)
		short, cancel := context.WithTimeout(t.Context(), expansionTime)
		defer cancel()
		background := make(chan error)
		go func() {
			_, err := c.fetch(short, key(q), q)
			background <- err
		}()
		synctest.Wait()
		trip = time.Second
		long, cancel := context.WithTimeout(t.Context(), queryTime)
		defer cancel()
		start := time.Now()
		go func() {
			_, _, err := c.ask(long, q)
			if took := time.Since(start); err != nil || took != expansionTime+trip {
				t.Errorf("the client: %v after %v", err, took)
			}
			background <- nil
		}()
		if err := <-background; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("in the background: %v", err)
		}
		<-background
	})
}

// A rule of the resolver's own (a rewrite, a template) may change what no Service says: that is seen by the next confirmation, and from then
// on such a name is asked for, until its Service explains it.
func TestAnAnswerThatChangesByItselfIsNotGivenAgain(t *testing.T) {
	withWatch(t, true, func(w *watched) {
		w.settle()
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.cluster.records = records(t, orders+" 30 IN A 10.96.0.66")
		other := orders + " 0 A 10.96.0.66"
		w.sleep(confirmEvery + usualLife + confirmPause)
		w.expect(orders, dns.TypeA, other, 1)
		for range 3 {
			w.sleep(confirmEvery + usualLife)
			w.expect(orders, dns.TypeA, other, 1)
		}
		w.sleep(confirmEvery + usualLife)
		w.cluster.codes = map[string]int{orders: dns.RcodeServerFailure}
		w.expect(orders, dns.TypeA, "SERVFAIL", 1) // that explains nothing
		w.cluster.codes = nil
		w.expect(orders, dns.TypeA, other, 1)
		w.sleep(confirmEvery + usualLife)
		w.expect(orders, dns.TypeA, other, 1)
		w.changed["orders.shop"] = time.Now()
		w.settle()
		w.sleep(confirmEvery + usualLife + confirmPause)
		w.expect(orders, dns.TypeA, other, 0)
	}, orders+" 30 IN A 10.96.0.20")
}

// Where a resolver remembers for longer, a change takes longer to be believed, in that namespace.
func TestLongLifetimesSettleLater(t *testing.T) {
	withWatch(t, false, func(w *watched) {
		w.settle()
		w.expect("db.data.svc.cluster.local.", dns.TypeA, "db.data.svc.cluster.local. 0 A 10.96.0.21", 1)
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.sleep(usualLife)
		w.expect(orders, dns.TypeA, ordersIs, 0) // the other namespace's lifetime is not this one's
		w.cluster.records = records(t, orders+" 300 IN A 10.96.0.20")
		w.sleep(maxUnconfirmed)
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.sleep(300 * time.Second)
		w.expect(orders, dns.TypeA, ordersIs, 1)
		w.changed["nobody.shop"] = time.Now()
		w.settle()
		w.expect("nobody.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN", 1)
		w.sleep(10 * time.Second)
		w.expect("nobody.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN", 1)
		w.sleep(300 * time.Second)
		w.expect("nobody.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN", 1)
		w.sleep(10 * time.Second)
		w.expect("nobody.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN", 0)

		w.mu.Unlock()
		for i := range maxCached {
			name := fmt.Sprintf("x.n%d.svc.cluster.local.", i)
			q := new(dns.Msg).SetQuestion(name, dns.TypeA)
			w.c.put(key(q), q, &dns.Msg{Answer: records(t, name+" 300 IN A 10.96.0.20")}, time.Now())
		}
		w.mu.Lock()
		if n := len(w.c.longest); n == 0 || n >= maxCached {
			t.Errorf("the lifetimes of %d namespaces", n)
		}
	}, orders+" 30 IN A 10.96.0.20", "db.data.svc.cluster.local. 300 IN A 10.96.0.21")
}

// However many names there are, few questions are asked that nobody waits for, and first those that have clients.
func TestConfirmationsAreFew(t *testing.T) {
	withWatch(t, true, func(w *watched) {
		for i := range maxCached + 100 {
			w.ask(fmt.Sprintf("s%d.shop.svc.cluster.local.", i), dns.TypeA)
		}
		w.settle()
		w.cluster.asked()
		w.sleep(time.Minute)
		if n := len(w.cluster.asked()); n < 60 || n > 60*maxConfirmed {
			t.Errorf("%d questions in a minute", n)
		}
		const busy = 50
		late := 0
		for round := range 12 {
			for i := range busy {
				if _, n := w.ask(fmt.Sprintf("s%d.shop.svc.cluster.local.", maxCached+i), dns.TypeA); n > 0 && round > 2 {
					late++
				}
			}
			w.sleep(10 * time.Second)
		}
		if late > 0 {
			t.Errorf("clients waited %d times", late)
		}
		w.c.mu.Lock()
		defer w.c.mu.Unlock()
		if n := len(w.c.entries); n != maxCached {
			t.Errorf("%d entries", n)
		}
	})
}

func TestSameAnswers(t *testing.T) {
	m := func(code int, lines ...string) *dns.Msg {
		return &dns.Msg{MsgHdr: dns.MsgHdr{Rcode: code}, Answer: records(t, lines...)}
	}
	one := m(0, "a. 30 IN A 10.0.0.1", "a. 30 IN A 10.0.0.2")
	withOPT := m(0, "A. 5 IN A 10.0.0.2", "a. 5 IN A 10.0.0.1").SetEdns0(1232, false)
	for _, tt := range []struct {
		a, b *dns.Msg
		want bool
	}{
		{one, withOPT, true},
		{withOPT, withOPT, true},
		{one, m(0, "a. 30 IN A 10.0.0.1"), false},
		{m(0, "a. 30 IN A 10.0.0.1"), one, false},
		{m(0, "a. 30 IN A 10.0.0.1", "a. 30 IN A 10.0.0.1"), one, false},
		{m(0), m(dns.RcodeNameError), false},
	} {
		if got := same(tt.a, tt.b); got != tt.want {
			t.Errorf("%v\nand %v: %v", tt.a, tt.b, got)
		}
	}
}

// What an answer says of others than the Service in question nobody watches.
func TestAnswersAboutOthersAreNotGivenAgain(t *testing.T) {
	c := &cache{zone: "cluster.local."}
	for _, tt := range []struct {
		answer, extra string
		want          bool
	}{
		{"ORDERS.shop.svc.cluster.local. 30 IN A 10.96.0.20", "", true},
		{"orders.prod.svc.cluster.local. 30 IN A 10.96.0.20", "", false},
		{orders + " 30 IN SRV 0 100 80 h." + orders, "h." + orders + " 30 IN A 10.0.0.1", true},
		{orders + " 30 IN SRV 0 100 80 h." + orders, "www.example.com. 30 IN A 192.0.2.1", false},
		{orders + " 30 IN SRV 0 100 80 www.example.com.", "", false},
		{orders + " 30 IN SRV 0 100 80 db.shop.svc.cluster.local.", "", false},
	} {
		m := new(dns.Msg).SetQuestion(orders, dns.TypeSRV).SetEdns0(1232, false)
		m.Answer = records(t, tt.answer)
		if tt.extra != "" {
			m.Extra = append(m.Extra, records(t, tt.extra)...)
		}
		if got := c.decided(m, object{"shop", "orders"}); got != tt.want {
			t.Errorf("%s, %s: %v", tt.answer, tt.extra, got)
		}
	}
}
