package dns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// ways are those to a resolver, over each of which an answer takes a round trip, unless it is closed.
type ways struct {
	*resolver
	ends sync.WaitGroup

	mu      sync.Mutex
	trip    time.Duration
	swallow map[string]bool  // by network: what is sent is lost
	refuse  map[string]error // by network: what a dial meets
	dials   map[string]int
}

// datagramPipe is an end of a net.Pipe, which keeps the boundaries of what is written, as what it looks like.
type datagramPipe struct{ net.Conn }

func (p datagramPipe) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := p.Read(b)
	return n, p.RemoteAddr(), err
}

func (p datagramPipe) WriteTo([]byte, net.Addr) (int, error) { return 0, net.ErrWriteToConnected }

func (w *ways) dial(_ context.Context, network, _ string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dials[network]++
	if err := w.refuse[network]; err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	if network == "udp" {
		near, far = datagramPipe{near}, datagramPipe{far}
	}
	w.ends.Go(func() {
		defer far.Close()
		c := &dns.Conn{Conn: far, UDPSize: maxUDPQuery}
		for {
			q, err := c.ReadMsg()
			if err != nil {
				return
			}
			w.mu.Lock()
			trip := w.trip
			w.mu.Unlock()
			time.Sleep(trip)
			m := w.reply(q)
			if network == "udp" {
				size := uint16(dns.MinMsgSize)
				if opt := q.IsEdns0(); opt != nil {
					size = opt.UDPSize()
				}
				m.Truncate(int(size))
			}
			w.mu.Lock()
			lost := w.swallow[network]
			w.mu.Unlock()
			if !lost && c.WriteMsg(m) != nil {
				return
			}
		}
	})
	return near, nil
}

// dialled is how often over each network since the last call.
func (w *ways) dialled() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := fmt.Sprintf("tcp %d, udp %d", w.dials["tcp"], w.dials["udp"])
	clear(w.dials)
	return s
}

func (w *ways) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// withPool runs f with a pool before a resolver that knows one, a name with 60 addresses, long, and one with 300, longer.
func withPool(t *testing.T, f func(w *ways, ask func(name string) (answers int, took time.Duration, err error))) {
	synctest.Test(t, func(t *testing.T) {
		lines := []string{"one. 5 IN A 10.0.0.1"}
		for i := range 300 {
			if lines = append(lines, fmt.Sprintf("longer. 5 IN A 10.1.%d.%d", i/256, i%256)); i < 60 {
				lines = append(lines, fmt.Sprintf("long. 5 IN A 10.0.1.%d", i))
			}
		}
		w := &ways{
			resolver: &resolver{records: records(t, lines...)}, trip: 80 * time.Millisecond,
			swallow: map[string]bool{}, refuse: map[string]error{}, dials: map[string]int{},
		}
		defer w.ends.Wait()
		p := newPool(w.dial, "10.96.0.10:53")
		defer p.close()
		f(w, func(name string) (int, time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), expansionTime)
			defer cancel()
			start := time.Now()
			m, err := p.ask(ctx, new(dns.Msg).SetQuestion(name, dns.TypeA))
			if err != nil {
				return 0, time.Since(start), err
			}
			return len(m.Answer), time.Since(start), nil
		})
	})
}

// Where TCP is not let through to the resolver, or does not answer, UDP is asked; what works is remembered, so that each question takes one
// round trip.
func TestTheResolverIsAskedOverUDPWhereTCPIsNotLetThrough(t *testing.T) {
	for name, shut := range map[string]func(*ways){
		"swallowed": func(w *ways) { w.swallow["tcp"] = true },
		"refused":   func(w *ways) { w.refuse["tcp"] = syscall.ECONNREFUSED },
	} {
		withPool(t, func(w *ways, ask func(string) (int, time.Duration, error)) {
			expect := func(question string, answers int, took time.Duration, dials string) {
				t.Helper()
				n, d, err := ask(question)
				if got := w.dialled(); n != answers || d != took || got != dials || err != nil {
					t.Errorf("%s, %s: %d answers after %v by %s, %v, want %d after %v by %s", name, question, n, d, got, err, answers, took, dials)
				}
			}
			first := w.trip
			if name == "swallowed" {
				first += otherTime
			}
			w.set(func() { shut(w) })
			expect("one.", 1, first, "tcp 1, udp 1")
			expect("one.", 1, w.trip, "tcp 0, udp 1")
			expect("long.", 60, w.trip, "tcp 0, udp 1") // it fits into what our own EDNS allows
			if _, _, err := ask("longer."); err == nil {
				t.Errorf("%s: an answer that is not whole", name)
			}
			time.Sleep(udpFor)
			w.dialled()
			var asking sync.WaitGroup
			for range 3 { // of whom one finds out whether TCP is answered
				asking.Go(func() {
					if n, _, err := ask("one."); n != 1 || err != nil {
						t.Errorf("%s: %d answers, %v", name, n, err)
					}
				})
			}
			asking.Wait()
			if got, want := w.dialled(), "tcp 1, udp 3"; got != want {
				t.Errorf("%s, later: %s, want %s", name, got, want)
			}
			expect("one.", 1, w.trip, "tcp 0, udp 1")
			w.set(func() { clear(w.swallow); clear(w.refuse) })
			expect("longer.", 300, 2*w.trip, "tcp 1, udp 1")
			time.Sleep(udpFor)
			expect("one.", 1, w.trip, "tcp 1, udp 0")
			expect("one.", 1, w.trip, "tcp 0, udp 0")
		})
	}
}

// While UDP is asked, a datagram that is lost is asked for over TCP.
func TestALostDatagramIsAskedForOverTCP(t *testing.T) {
	withPool(t, func(w *ways, ask func(string) (int, time.Duration, error)) {
		w.set(func() { w.refuse["tcp"] = syscall.ECONNREFUSED })
		if _, _, err := ask("one."); err != nil {
			t.Fatal(err)
		}
		w.set(func() { clear(w.refuse); w.swallow["udp"] = true })
		for _, want := range []time.Duration{otherTime + w.trip, w.trip} {
			if n, took, err := ask("one."); n != 1 || took != want || err != nil {
				t.Errorf("%d answers after %v, %v, want %v", n, took, err, want)
			}
		}
	})
}

// The error is that of the network asked first, and the end of the time that there is.
func TestAResolverThatAnswersOverNeither(t *testing.T) {
	withPool(t, func(w *ways, ask func(string) (int, time.Duration, error)) {
		w.set(func() { w.refuse["tcp"], w.refuse["udp"] = syscall.ECONNREFUSED, syscall.EHOSTUNREACH })
		if _, took, err := ask("one."); took != 0 || !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v after %v", err, took)
		}
		w.set(func() { clear(w.refuse); w.swallow["tcp"], w.swallow["udp"] = true, true })
		if _, took, err := ask("one."); took != expansionTime || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// While the way to the cluster is dead and nobody has noticed, the first question alone waits for long; a slow way is not dead.
func TestASilentClusterIsNotWaitedForLongByEachName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ways{
			resolver: &resolver{records: records(t, "kubernetes.default.svc.cluster.local. 0 IN A 10.96.0.1", "orders.shop.svc.cluster.local. 0 IN A 10.96.0.20")},
			trip:     80 * time.Millisecond, swallow: map[string]bool{}, refuse: map[string]error{}, dials: map[string]int{},
		}
		defer w.ends.Wait()
		tunnelDown := errors.New("no tunnel")
		h := (&Server{
			Dial: w.dial, Nameservers: []string{"10.96.0.10"}, Search: podSearch,
			System: func() ([]string, error) { return nil, errors.New("none") },
		}).newHandler(t.Context(), netip.AddrPort{})
		defer h.close()
		expect := func(name string, code int, took time.Duration) {
			t.Helper()
			q := new(dns.Msg).SetQuestion(name, dns.TypeA)
			if strings.HasSuffix(name, ".arpa.") {
				q.Question[0].Qtype = dns.TypePTR
			}
			start := time.Now()
			m, _ := h.answer(q)
			if d := time.Since(start); m.Rcode != code || d != took {
				t.Errorf("%s: %s after %v, want %s after %v", name, dns.RcodeToString[m.Rcode], d, dns.RcodeToString[code], took)
			}
		}
		const ok, failed = dns.RcodeSuccess, dns.RcodeServerFailure
		expect("orders.", ok, w.trip)
		w.set(func() { w.swallow["tcp"], w.swallow["udp"] = true, true })
		expect("github.com.", failed, expansionTime)
		for range 5 {
			for _, name := range []string{"github.com.", "www.github.com.", "orders.", "kubernetes.default.svc.cluster.local.", "10.0.96.10.in-addr.arpa."} {
				expect(name, failed, shortTime)
			}
		}
		w.set(func() { clear(w.swallow) })
		expect("orders.", ok, w.trip)
		expect("kubernetes.default.svc.cluster.local.", ok, w.trip)

		w.set(func() { w.swallow["tcp"], w.swallow["udp"] = true, true })
		expect("orders.", failed, expansionTime)
		w.set(func() { clear(w.swallow); w.trip = 2 * shortTime })
		expect("orders.", failed, shortTime)
		time.Sleep(w.trip)
		expect("orders.", ok, w.trip)

		w.set(func() { w.swallow["tcp"], w.swallow["udp"] = true, true })
		expect("orders.", failed, expansionTime)
		w.set(func() { w.refuse["tcp"], w.refuse["udp"] = tunnelDown, tunnelDown })
		expect("orders.", failed, 0)
		w.set(func() { clear(w.swallow); clear(w.refuse) })
		expect("orders.", ok, w.trip)
	})
}

// A flow of datagrams that has ended, as a tunnel's does with it, is no datagram to wait behind.
func TestAnEndedFlowOfDatagramsIsAnError(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		_, _ = far.Read(make([]byte, maxUDPQuery))
		far.Close()
	}()
	_, err := datagrams(t.Context(), datagramPipe{near}, new(dns.Msg).SetQuestion("one.", dns.TypeA))
	if !errors.Is(err, io.EOF) || strings.Contains(err.Error(), "timeout") {
		t.Error(err)
	}
}
