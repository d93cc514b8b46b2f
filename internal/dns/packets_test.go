package dns

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// zone are records of a cluster as a source for a handler, without a network.
func zone(t testing.TB, asked *int) func(context.Context, *dns.Msg) (*dns.Msg, error) {
	rrs := records(t, "orders.shop.svc.cluster.local. 30 IN A 10.96.0.20",
		"alias.shop.svc.cluster.local. 30 IN CNAME orders.shop.svc.cluster.local.",
		"_http._tcp.orders.shop.svc.cluster.local. 30 IN SRV 0 100 80 orders.shop.svc.cluster.local.",
		"pods.shop.svc.cluster.local. 30 IN A 10.0.0.1", "pods.shop.svc.cluster.local. 30 IN A 10.0.0.2",
		"db.data.svc.cluster.local. 30 IN A 10.96.0.21",
		"20.0.96.10.in-addr.arpa. 30 IN PTR orders.shop.svc.cluster.local.")
	none := records(t, soa)
	return func(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
		*asked++
		m := new(dns.Msg).SetReply(q)
		m.Rcode, m.Authoritative = dns.RcodeNameError, true
		for _, rr := range rrs {
			if !strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				continue
			}
			m.Rcode = dns.RcodeSuccess
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, dns.Copy(rr))
			}
		}
		if len(m.Answer) == 0 {
			m.Ns = []dns.RR{dns.Copy(none[0])}
		}
		return m, nil
	}
}

func zoneHandler(t testing.TB, asked *int) *handler {
	s := &Server{Search: podSearch, System: func() ([]string, error) { return nil, fmt.Errorf("no system") }}
	h := s.newHandler(t.Context(), netip.AddrPort{})
	h.cluster = newCache(zone(t, asked))
	return h
}

// slowly is the answer to q's bytes that a client without EDNS's sizes gets, and what packets remembers of it.
func (h *handler) slowly(q *dns.Msg) *dns.Msg {
	m, until := h.answer(q)
	m.Truncate(dns.MinMsgSize)
	h.packets.put(q, m, until)
	return m
}

// quickly is what packets answers; nil is that it does not.
func (h *handler) quickly(t testing.TB, q *dns.Msg) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	if err != nil || !h.packets.answer(b) {
		return nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(h.packets.out); err != nil {
		t.Fatalf("%v: %v", q, err)
	}
	return m
}

func TestPacketsAreTheAnswersThatTheyStandFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked int
		h := zoneHandler(t, &asked)
		edns := func(q *dns.Msg) *dns.Msg { return q.SetEdns0(1232, false) }
		cookie := edns(new(dns.Msg).SetQuestion("orders.", dns.TypeA))
		cookie.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1223344556"}}
		for _, tt := range []struct {
			q    *dns.Msg
			kept time.Duration // 0 is not at all
		}{
			{new(dns.Msg).SetQuestion("orders.shop.svc.cluster.local.", dns.TypeA), 30 * time.Second},
			{new(dns.Msg).SetQuestion("OrDeRs.shop.svc.CLUSTER.local.", dns.TypeA), 30 * time.Second},
			{edns(new(dns.Msg).SetQuestion("orders.", dns.TypeA)), 30 * time.Second},
			{edns(new(dns.Msg).SetQuestion("orders.", dns.TypeAAAA)), 5 * time.Second},
			{new(dns.Msg).SetQuestion("nobody.shop.svc.cluster.local.", dns.TypeA), 5 * time.Second},
			{new(dns.Msg).SetQuestion("_http._tcp.orders.shop.", dns.TypeSRV), 30 * time.Second},
			{new(dns.Msg).SetQuestion("db.data.", dns.TypeA), 5 * time.Second}, // as long as db.data.shop is known not to be
			{new(dns.Msg).SetQuestion("20.0.96.10.in-addr.arpa.", dns.TypePTR), 30 * time.Second},
			{new(dns.Msg).SetQuestion("pods.", dns.TypeA), 0}, // in another order each time
			{cookie, 0},
			{new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), 0},
			{new(dns.Msg).SetQuestion("orders.", dns.TypeAXFR), 0},
		} {
			time.Sleep(time.Hour) // what the last one left is over
			what := tt.q.Question[0].String()
			if h.quickly(t, tt.q) != nil {
				t.Errorf("%s: answered before it was asked", what)
			}
			h.slowly(tt.q)
			before := asked
			tt.q.Id++
			if tt.kept == 0 {
				if got := h.quickly(t, tt.q); got != nil {
					t.Errorf("%s: %v", what, got)
				}
				continue
			}
			for _, wait := range []time.Duration{0, 1500 * time.Millisecond, tt.kept - 1501*time.Millisecond} {
				time.Sleep(wait)
				got := h.quickly(t, tt.q)
				want, _ := h.answer(tt.q)
				if got == nil || got.String() != want.String() {
					t.Errorf("%s: %v\nwant %v", what, got, want)
				}
			}
			if asked != before {
				t.Errorf("%s: the cluster was asked again", what)
			}
			time.Sleep(time.Millisecond)
			if got := h.quickly(t, tt.q); got != nil {
				t.Errorf("%s: still there: %v", what, got)
			}
		}
		for i := range 2 * maxPackets {
			q := new(dns.Msg).SetQuestion(fmt.Sprintf("a%d.", i), dns.TypeA)
			h.packets.put(q, new(dns.Msg).SetReply(q), time.Now().Add(time.Minute))
		}
		if n := len(h.packets.entries); n != maxPackets {
			t.Errorf("%d entries", n)
		}
	})
}

// A client that takes the first address does not always get the same one, as in a pod.
func TestAddressesComeInAnyOrder(t *testing.T) {
	var asked int
	h := zoneHandler(t, &asked)
	first := map[string]bool{}
	for range 200 {
		m, _ := h.answer(new(dns.Msg).SetQuestion("pods.", dns.TypeA))
		got := strings.Split(text(m), "; ")
		if len(got) != 3 || !strings.Contains(got[0], "CNAME") {
			t.Fatal(got)
		}
		first[got[1]] = true
		slices.Sort(got[1:])
		if !strings.HasSuffix(got[1], "10.0.0.1") || !strings.HasSuffix(got[2], "10.0.0.2") {
			t.Fatal(got)
		}
	}
	if len(first) != 2 || asked != 1 {
		t.Errorf("first is %v, asked %d times", first, asked)
	}
}

// FuzzPackets checks that no bytes break the reader, and that what it answers is what the server would.
func FuzzPackets(f *testing.F) {
	for _, m := range []*dns.Msg{
		new(dns.Msg).SetQuestion("orders.", dns.TypeA),
		new(dns.Msg).SetQuestion("20.0.96.10.in-addr.arpa.", dns.TypePTR),
		new(dns.Msg).SetQuestion("alias.shop.svc.cluster.local.", dns.TypeCNAME).SetEdns0(4096, true),
		new(dns.Msg).SetQuestion("_http._tcp.orders.", dns.TypeSRV).SetEdns0(512, false),
	} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var asked int
		h := zoneHandler(t, &asked)
		if h.packets.answer(b) {
			t.Fatal("an answer to what nobody has asked")
		}
		q := new(dns.Msg)
		if q.Unpack(b) != nil || len(q.Question) != 1 {
			return
		}
		want := h.slowly(q)
		if !h.packets.answer(b) {
			return
		}
		got := new(dns.Msg)
		if err := got.Unpack(h.packets.out); err != nil {
			t.Fatal(err)
		}
		if got.Id != binary.BigEndian.Uint16(b) || got.Question[0] != q.Question[0] || text(got) != text(want) || got.RecursionDesired != q.RecursionDesired {
			t.Errorf("%v\nfor %v\nwant %v", got, q, want)
		}
	})
}
