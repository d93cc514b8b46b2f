package socks5

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/flow"
)

const (
	// maxConns is how many local connections are served at once; more wait in the kernel's queue. 10,000
	// idle ones fit, as they fit the tunnel (16,384 streams); each costs a descriptor and some KiB.
	maxConns = 12288

	// handshakeTime is how long a client may take until its request is complete, from the accept for
	// SOCKS5 and from the first byte for HTTP. Nothing useful on loopback is slower.
	handshakeTime = 10 * time.Second

	// defaultDialTimeout is for a target that answers nothing at all; what a person waits for.
	defaultDialTimeout = 30 * time.Second

	// Accepting pauses, doubling, while the process has no descriptors left.
	minAcceptPause = 5 * time.Millisecond
	maxAcceptPause = time.Second
)

// Server is one entrance. Its fields are not changed after Serve has begun; the zero value of all
// but Dial works.
type Server struct {
	// Dial makes the connection to address, "host:port" with a name or a literal address; network is
	// "tcp", or "udp", where each Write and each Read of it is a datagram. It must return when ctx is
	// done. Errors wrapping ECONNREFUSED, EHOSTUNREACH, a net.DNSError and so on reach the client as
	// what they are.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// DialTimeout bounds one Dial. Zero means 30 seconds.
	DialTimeout time.Duration

	// PAC makes the proxy auto-config file, which is then at PACPath. Nil means that there is none.
	PAC func(ctx context.Context) []byte

	// Log gets one line per connection that failed, at level debug. Nil means none.
	Log *slog.Logger

	// For tests; zero means maxConns, maxAssociations and handshakeTime.
	conns, associations int
	handshake           time.Duration
}

// Serve accepts on ln until ctx is done or ln fails, then closes ln and every connection and returns
// when all has ended. The end of ctx is not an error.
func (s *Server) Serve(ctx context.Context, ln *net.TCPListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := newSession(ctx, s)
	web := &http.Server{
		Handler:           n,
		ReadHeaderTimeout: n.handshake,
		IdleTimeout:       webIdleTime,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
	var g errgroup.Group
	g.Go(func() error { return web.Serve(n.web) })
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()

	err := n.accept(ctx, ln)
	if ctx.Err() != nil {
		err = nil
	}
	_ = ln.Close()
	cancel()
	n.closeAll()
	n.socks.Wait()
	n.flows.Wait()
	// With every connection closed and ctx done this returns as soon as the last handler has;
	// those that took their connection over are waited for below.
	_ = web.Shutdown(context.WithoutCancel(ctx))
	_ = g.Wait() // http.ErrServerClosed
	n.handlers.Wait()
	n.transport.CloseIdleConnections()
	return err
}

// session is what one Serve needs.
type session struct {
	ctx         context.Context // of Serve, for dials that net/http starts on its own
	dialFunc    func(ctx context.Context, network, address string) (net.Conn, error)
	dialTimeout time.Duration
	handshake   time.Duration
	pac         func(ctx context.Context) []byte
	log         *slog.Logger
	slots       chan struct{} // one token per open connection
	web         *handOver
	transport   *http.Transport
	proxy       *httputil.ReverseProxy
	relays      chan struct{} // one token per association
	flows       *flow.Table[datagramFlow]
	socks       sync.WaitGroup // serve
	handlers    sync.WaitGroup // ServeHTTP, also beyond the hijack

	mu   sync.Mutex
	open map[*localConn]struct{} // nil once closeAll has run
}

func newSession(ctx context.Context, s *Server) *session {
	n := &session{
		ctx:         ctx,
		dialFunc:    s.Dial,
		dialTimeout: cmp.Or(s.DialTimeout, defaultDialTimeout),
		handshake:   cmp.Or(s.handshake, handshakeTime),
		pac:         s.PAC,
		log:         s.Log,
		slots:       make(chan struct{}, cmp.Or(s.conns, maxConns)),
		web:         &handOver{conns: make(chan net.Conn), done: make(chan struct{})},
		relays:      make(chan struct{}, cmp.Or(s.associations, maxAssociations)),
		open:        make(map[*localConn]struct{}),
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.transport = n.newTransport()
	n.proxy = n.newProxy()
	n.flows = n.newFlows()
	return n
}

// accept serves each connection on a goroutine of its own until ln is closed.
func (s *session) accept(ctx context.Context, ln *net.TCPListener) error {
	var pause time.Duration
	for {
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		tc, err := ln.AcceptTCP()
		if err != nil {
			<-s.slots
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept on %v: %w", ln.Addr(), err)
			}
			pause = min(max(2*pause, minAcceptPause), maxAcceptPause)
			s.log.Warn("accept", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			continue
		}
		pause = 0
		c := &localConn{TCPConn: tc, s: s}
		if !s.track(c) {
			_ = c.Close()
			return nil
		}
		s.socks.Go(func() { s.serve(ctx, c) })
	}
}

// serve reads the first byte, which tells the protocols apart: SOCKS5 begins with its version, HTTP
// with a letter.
func (s *session) serve(ctx context.Context, c *localConn) {
	err := c.SetDeadline(time.Now().Add(s.handshake))
	var first [1]byte
	if err == nil {
		_, err = io.ReadFull(c.TCPConn, first[:])
	}
	if err != nil {
		_ = c.Close() // a port scan, a browser's connection kept in reserve
		return
	}
	if first[0] != version5 {
		c.first = first[:]
		if err := c.SetDeadline(time.Time{}); err != nil || !s.web.offer(c) {
			_ = c.Close()
		}
		return
	}
	defer func() { _ = c.Close() }()
	if err := s.serveSOCKS(ctx, c.TCPConn); err != nil {
		s.log.Debug("socks5", "client", c.RemoteAddr(), "error", err)
	}
}

// dial is Dial within its time and within Serve.
func (s *session) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.dialTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	return s.dialFunc(ctx, network, address)
}

func (s *session) track(c *localConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		return false
	}
	s.open[c] = struct{}{}
	return true
}

// closeAll cuts every connection that is still open.
func (s *session) closeAll() {
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// localConn is an accepted connection; whoever closes it first gives its slot back.
type localConn struct {
	*net.TCPConn
	s     *session
	first []byte // read already, to be read again; only net/http's reader touches it
	once  sync.Once
}

// Read gives the first byte again, then what follows.
func (c *localConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.TCPConn.Read(p)
}

// WriteTo keeps io.Copy from going past Read.
func (c *localConn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c})
}

// Close closes the connection; again is harmless. At the end of Serve that is a reset: an answer may end where its connection does.
func (c *localConn) Close() error {
	c.once.Do(func() {
		if c.s.ctx.Err() != nil {
			_ = c.SetLinger(0)
		}
		c.s.mu.Lock()
		delete(c.s.open, c)
		c.s.mu.Unlock()
		<-c.s.slots
	})
	return c.TCPConn.Close()
}

// handOver is a net.Listener of connections that were accepted elsewhere.
type handOver struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// offer waits until the server takes c; false means that it never will.
func (h *handOver) offer(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.done:
		return false
	}
}

func (h *handOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handOver) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr is for net.Listener; nobody asks.
func (h *handOver) Addr() net.Addr { return &net.TCPAddr{} }
