package dns

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"bridge/internal/servertest"
)

// BenchmarkCached asks one question after the other whose answer is remembered, and in turn with each a bare UDP echo, the least that
// is possible: of-echo is the echo's time by the answer's, medians both.
//
//	go test -run '^$' -bench Cached -benchtime 20000x ./internal/dns
func BenchmarkCached(b *testing.B) {
	for _, name := range []string{"orders.shop.svc.cluster.local.", "orders."} {
		b.Run(name, func(b *testing.B) {
			cluster := (&resolver{records: records(b, "orders.shop.svc.cluster.local. 3600 IN A 10.96.0.20")}).start(b)
			answers := newClient(b, startServer(b, &Server{Dial: dial, Nameservers: []string{cluster.addr}, Search: podSearch, System: cluster.servers}), name)
			echoes := newClient(b, servertest.UDP(b, "127.0.0.1", servertest.Same), name)
			answers.ask(b)
			for b.Loop() {
				answers.ask(b)
				echoes.ask(b)
			}
			m := new(dns.Msg)
			if err := m.Unpack(answers.got); err != nil || len(m.Answer) == 0 {
				b.Fatal(m, err)
			}
			b.ReportMetric(float64(echoes.median())/float64(answers.median()), "of-echo")
			b.ReportMetric(float64(answers.median()), "ns/answer")
		})
	}
}

// client sends the same bytes again and again.
type client struct {
	net.Conn
	q, buf, got []byte
	took        []time.Duration
}

func newClient(b *testing.B, addr, name string) *client {
	b.Helper()
	q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(upstreamUDPSize, false).Pack()
	if err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return &client{Conn: c, q: q, buf: make([]byte, maxUDPQuery)}
}

func (c *client) ask(b *testing.B) {
	begin := time.Now()
	if _, err := c.Write(c.q); err != nil {
		b.Fatal(err)
	}
	n, err := c.Read(c.buf)
	if err != nil {
		b.Fatal(err)
	}
	c.took, c.got = append(c.took, time.Since(begin)), c.buf[:n]
}

func (c *client) median() time.Duration {
	slices.Sort(c.took)
	return c.took[len(c.took)/2]
}
