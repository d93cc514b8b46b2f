// Package route chooses, in the pod and for each request, who answers: a laptop whose filter matches, or the
// original. It reads HTTP/1.1 (internal/http1) and HTTP/2 without TLS by its preface (h2.go), gRPC with it, and hands a
// connection that it cannot read to the original as it is. Nothing of HTTP/1 is rewritten: it reads only as far as it
// must to know where messages end. (The one exception: a laptop is not offered "Upgrade: h2c".) Where that could be
// seen in two ways the rest of the connection is the original's, or the connection ends: no request can be hidden in
// another one's body. It alone imports x/net/http2.
package route

import (
	"context"
	"log/slog"
	"net"
	"time"
)

// headTimeout is how long a request's head may take from its first byte: after that whoever sends it may be waiting for
// something, and the original shall decide. Clients send a head in one piece.
const headTimeout = 5 * time.Second

// Route is one laptop's share of the requests.
type Route struct {
	// Name is whose it is. A connection that was made for one request is used again for the next of the same name.
	Name   string
	Filter Filter
	// Dial connects to the laptop's process and waits until that is done. After an error, of which the caller should
	// be spared the wait, the request goes to the original.
	Dial func(ctx context.Context) (net.Conn, error)
	// Takes says whether the laptop takes requests now: while it does not, a connection of an earlier request has no further
	// one. Nil: it does, until Dial or the connection fails.
	Takes func() bool
}

func (r Route) takes() bool { return r.Takes == nil || r.Takes() }

// Reason is why a connection is not read, in words.
type Reason string

// The reasons for which a connection goes to the original as it is.
const (
	TLS     Reason = "TLS"                // a ClientHello: only the two ends can read on
	NotHTTP Reason = "no HTTP, or odd"    // another protocol, or a head that could be read in two ways
	Slow    Reason = "a slow head"        // one that took longer than 5 seconds
	Upgrade Reason = "HTTP/2 by upgrade"  // the original has accepted "Upgrade: h2c"
	First   Reason = "a server's message" // the original spoke without being asked
	Full    Reason = "no memory left"     // too much is held of the connections before
)

// Router chooses for connections. Set the fields before Serve, which may run many times at once.
type Router struct {
	// Routes are asked for before each request; the first whose filter matches has it.
	Routes func() []Route
	// Original dials the original, which has all other requests, and gives up by itself. It is dialled for each
	// connection at its start, as the caller did: a server may be the first to speak.
	Original func(ctx context.Context) (net.Conn, error)
	// Unreadable, if set, is told each time why a connection is read no further. It does not block.
	Unreadable func(Reason)
	// HTTP2, if set, is told for each connection of HTTP/2 to a laptop whether the laptop speaks that. While it does not,
	// the original has the requests. It does not block.
	HTTP2 func(route string, speaks bool)
	// HeadTimeout is how long a request's head may take from its first byte. Zero means 5 seconds.
	HeadTimeout time.Duration
	// Budget is the memory that all Routers of a process share. Nil: each connection has one of its own.
	Budget *Budget
	Log    *slog.Logger // nil: no log
}

// Serve carries one caller's connection, and closes it. It returns when all that belongs to it has ended; done ctx
// resets it. The error says why it was not carried to its end.
func (r *Router) Serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &session{r: r, ctx: ctx, client: conn, kept: map[string]*backend{}, read: make(chan struct{})}
	s.cond.L = &s.mu
	if s.memory.budget = r.Budget; s.memory.budget == nil {
		s.memory.budget = new(Budget)
	}
	defer s.memory.close()
	defer s.wg.Wait()
	defer s.close()
	defer cancel()
	defer context.AfterFunc(ctx, s.abort)()
	return s.run()
}

func (r *Router) unreadable(reason Reason) {
	if r.Unreadable != nil {
		r.Unreadable(reason)
	}
}

func (r *Router) http2(route string, speaks bool) {
	if r.HTTP2 != nil {
		r.HTTP2(route, speaks)
	}
}

func (r *Router) log(msg string, args ...any) {
	if r.Log != nil {
		r.Log.Debug(msg, args...)
	}
}

// closeWrite sends our end where c can do that, and else closes it.
func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // fails when c is gone, which reading finds
		return
	}
	_ = c.Close()
}
