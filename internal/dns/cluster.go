package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
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

	// otherTime is how long a resolver is silent over TCP, or UDP, before it is asked over the other, too: longer than most ways take, and
	// short enough that a name of which only one is let through is there in time.
	otherTime = 500 * time.Millisecond

	// After a question that had no answer for silentTime the next wait for shortTime each, until one is answered: the way to the cluster may be
	// dead and nobody have noticed, and who looks at a page asks for many names.
	silentTime = time.Second
	shortTime  = 300 * time.Millisecond

	// udpFor is for how long UDP is asked first after it alone was answered.
	udpFor = 5 * time.Minute
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

// patient asks next, but waits no longer for each question than may help: see silentTime. One question at a time is waited for behind, after
// its client has gone, so that a slow way is not taken for a dead one.
type patient struct {
	next   func(context.Context, *dns.Msg) (*dns.Msg, error)
	ctx    context.Context // bounds what is waited for behind
	behind sync.WaitGroup

	silent, waiting atomic.Bool
	answered        atomic.Pointer[time.Time] // when any question was, last
}

func (p *patient) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	if !p.silent.Load() {
		return p.askFor(ctx, q)
	}
	short, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	if !p.waiting.CompareAndSwap(false, true) {
		return p.askFor(short, q)
	}
	type result struct {
		m   *dns.Msg
		err error
	}
	answered := make(chan result, 1)
	p.behind.Go(func() {
		defer p.waiting.Store(false)
		ctx, cancel := context.WithTimeout(p.ctx, expansionTime)
		defer cancel()
		m, err := p.askFor(ctx, q)
		answered <- result{m, err}
	})
	select {
	case r := <-answered:
		return r.m, r.err
	case <-short.Done():
		return nil, fmt.Errorf("ask the cluster's resolver: %w", short.Err())
	}
}

// askFor asks for as long as ctx allows, and notes whether there was silence.
func (p *patient) askFor(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	began := time.Now()
	m, err := p.next(ctx, q)
	switch took := time.Since(began); {
	case err == nil, took < shortTime && ctx.Err() == nil: // a failure at once, as of a tunnel that is known to be down, is no silence
		now := time.Now()
		p.answered.Store(&now)
		p.silent.Store(false)
	case took >= silentTime:
		if last := p.answered.Load(); last == nil || !last.After(began) { // else it is this name's resolver that is silent, not all
			p.silent.Store(true)
		}
	}
	return m, err
}

// pool is one cluster resolver, asked through the dial function over TCP, as what is between may lose datagrams; over UDP where nothing
// else is let through.
type pool struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	addr  string
	slots chan struct{} // one token per question on its way

	mu     sync.Mutex
	idle   []idleConn  // the longest idle first
	sweep  *time.Timer // closes what is idle for too long
	udp    time.Time   // until when UDP is asked first
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
	type result struct {
		network string
		m       *dns.Msg
		err     error
	}
	results := make(chan result, 2)
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := func(network string) {
		asking.Go(func() {
			m, err := p.over(ctx, network, q)
			results <- result{network, m, err}
		})
	}
	first, second := "tcp", "udp"
	if p.prefersUDP() {
		first, second = second, first
	}
	over(first)
	other := time.NewTimer(otherTime)
	defer other.Stop()
	var err error
	for open, both := 1, false; open > 0; {
		select {
		case r := <-results:
			if r.err == nil {
				p.answered(r.network, first)
				return r.m, nil
			}
			open--
			if r.network == first {
				err = r.err
			}
		case <-other.C:
		}
		if !both && ctx.Err() == nil {
			both = true
			open++
			over(second)
		}
	}
	return nil, err
}

// prefersUDP says whether UDP is to be asked first. Of those who come when that is over, one finds out whether TCP is answered again.
func (p *pool) prefersUDP() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.udp) {
		return true
	}
	if !p.udp.IsZero() {
		p.udp = now.Add(otherTime)
	}
	return false
}

// answered notes over which network there was an answer.
func (p *pool) answered(network, first string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case network == "tcp":
		p.udp = time.Time{}
	case first == "tcp":
		p.udp = time.Now().Add(udpFor)
	}
}

// over asks over one network. What is too long for a datagram takes another round trip.
func (p *pool) over(ctx context.Context, network string, q *dns.Msg) (*dns.Msg, error) {
	if network == "tcp" {
		return p.stream(ctx, q)
	}
	c, err := p.dial(ctx, network, p.addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	long := q
	if q.IsEdns0() == nil {
		long = q.Copy().SetEdns0(upstreamUDPSize, false)
	}
	m, err := datagrams(ctx, c, long)
	if err != nil || !m.Truncated {
		return m, err
	}
	return p.stream(ctx, q)
}

// stream asks over TCP, on a connection that is there already if there is one.
func (p *pool) stream(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
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
