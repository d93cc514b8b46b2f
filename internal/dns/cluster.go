package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxPoolConns is how many questions one cluster resolver is asked at once, each on a connection
	// of its own: CoreDNS answers the questions of one connection in turn.
	maxPoolConns = 16

	// poolIdleTime is how long a connection waits for the next question; CoreDNS closes after 8 s.
	poolIdleTime = 6 * time.Second
)

var errNoNameserver = errors.New("the pod has no nameserver")

// pools are the cluster's resolvers, asked in order until one answers.
type pools []*pool

func (p pools) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	err := errNoNameserver
	for i, one := range p {
		var m *dns.Msg
		if m, err = one.askWithin(ctx, q, len(p)-i); err == nil || ctx.Err() != nil {
			return m, err
		}
	}
	return nil, err
}

// pool is one cluster resolver, asked over TCP through the dial function.
type pool struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	addr  string
	slots chan struct{} // one token per question on its way

	mu     sync.Mutex
	idle   []idleConn  // the longest idle first
	sweep  *time.Timer // closes what is idle for too long
	closed bool
}

type idleConn struct {
	net.Conn
	since time.Time
}

func newPool(dial func(context.Context, string, string) (net.Conn, error), addr string) *pool {
	return &pool{dial: dial, addr: addr, slots: make(chan struct{}, maxPoolConns)}
}

// askWithin spends at most an equal share of ctx's time, left resolvers being yet to ask.
func (p *pool) askWithin(ctx context.Context, q *dns.Msg, left int) (*dns.Msg, error) {
	if d, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(d)/time.Duration(left))
		defer cancel()
	}
	m, err := p.ask(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("ask the cluster's resolver %s: %w", p.addr, err)
	}
	return m, nil
}

func (p *pool) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c := p.take(); c != nil {
		m, err := roundTrip(ctx, c, q)
		if err == nil {
			p.put(c)
			return m, nil
		}
		_ = c.Close()
		if ctx.Err() != nil {
			return nil, err
		}
		p.closeIdle(time.Now()) // what ended this one ended the others too
	}
	for again := true; ; again = false {
		c, err := p.dial(ctx, "tcp", p.addr)
		if err != nil {
			return nil, err
		}
		m, err := roundTrip(ctx, c, q)
		if err == nil {
			p.put(c)
			return m, nil
		}
		_ = c.Close()
		// A dial that does not wait may have been lost with its tunnel; the next is on another.
		if !again || ctx.Err() != nil || !errors.Is(err, syscall.ECONNRESET) {
			return nil, err
		}
	}
}

// take returns the connection used last, or nil.
func (p *pool) take() net.Conn {
	p.closeIdle(time.Now().Add(-poolIdleTime))
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.idle)
	if n == 0 {
		return nil
	}
	c := p.idle[n-1].Conn
	p.idle = p.idle[:n-1]
	return c
}

func (p *pool) put(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close()
		return
	}
	p.idle = append(p.idle, idleConn{c, time.Now()})
	if p.sweep == nil {
		p.sweep = time.AfterFunc(poolIdleTime, p.sweepIdle)
	}
}

// sweepIdle runs while there is something idle.
func (p *pool) sweepIdle() {
	p.closeIdle(time.Now().Add(-poolIdleTime))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweep = nil
	if len(p.idle) > 0 {
		p.sweep = time.AfterFunc(poolIdleTime, p.sweepIdle)
	}
}

// closeIdle closes what has been idle since before t.
func (p *pool) closeIdle(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.idle) && !p.idle[n].since.After(t) {
		_ = p.idle[n].Close()
		n++
	}
	p.idle = append(p.idle[:0], p.idle[n:]...)
}

// close closes what is idle now and what comes back later.
func (p *pool) close() {
	p.closeIdle(time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
}

// roundTrip asks q on a stream connection that carries no other question, until ctx is done.
func roundTrip(ctx context.Context, c net.Conn, q *dns.Msg) (*dns.Msg, error) {
	d, _ := ctx.Deadline() // none is the zero time: no deadline
	if err := c.SetDeadline(d); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	dc := &dns.Conn{Conn: c}
	if err := dc.WriteMsg(q); err != nil {
		return nil, err
	}
	m, err := dc.ReadMsg()
	if err != nil {
		return nil, err
	}
	if !answers(m, q) {
		return nil, errors.New("the answer is to another question")
	}
	return m, nil
}

// answers says whether m is a reply to q; resolvers may leave the question out of an error.
func answers(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id {
		return false
	}
	if len(m.Question) == 0 {
		return m.Rcode != dns.RcodeSuccess
	}
	a, b := m.Question[0], q.Question[0]
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
