// Package intercept is what the pod does with connections: those that callers in the cluster make to
// the pod's ports go through the tunnel to the laptop, or to an original where one runs beside (Interceptor), those that the
// laptop asks for are dialled from here, if they may be (Dialer). cmd/proxy runs both.
package intercept

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// maxConns is Limit, if that is zero: 10,000 idle ones fit, as they fit the tunnel (16,384 streams) and the pod's memory.
	maxConns = 12288
	// queueGrace is how long a listener that is to close without loss goes on accepting what the kernel
	// has queued. The queue is in memory: a few milliseconds do.
	queueGrace = 50 * time.Millisecond
	// acceptPause is the wait after an accept that failed for want of descriptors or memory.
	acceptPause = 20 * time.Millisecond
)

// Interceptor listens on the pod's ports while the laptop's process is ready, and passes each
// connection on. Set the fields, call Start, then Wait; SetReady and Drain in between.
type Interceptor struct {
	Host  string // the address to listen on; empty means all
	Ports []int  // TCP
	UDP   []int  // ports, likewise
	// Open opens a stream to the laptop; (*tunnel.Server).Open is one.
	Open func(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
	// Laptop connects a TCP caller in Open's place, and waits for the laptop's answer. Nil: Open does, and a caller whom the
	// laptop refuses is reset.
	Laptop Dial
	// Original connects a TCP caller to an original. Nil: there is none.
	Original Dial
	// Choose carries each TCP caller; nil: PerConnection.
	Choose Choose
	// Limit is how many connections are carried at once, over all ports; further callers wait in the kernel's queue.
	// Zero means 12,288.
	Limit int
	Log   *slog.Logger // nil: no log

	wg        sync.WaitGroup // accept loops, connections and flows
	draining  atomic.Bool
	datagrams datagrams

	mu        sync.Mutex
	state     state
	open      bool // the ports are
	listeners []*listener
	udp       []*udpPort
	conns     map[*conn]struct{}
	slots     chan struct{} // one for each connection, and for each accept under way
	changed   chan struct{} // has an item after a connection has ended
	ctx       context.Context
}

// state only goes forward.
type state int

const (
	idle    state = iota // before Start
	running              // SetReady opens and closes
	closing              // Drain was called: no listener is opened any more
	stopped              // no connection is taken any more
)

// errNotRunning says that SetReady came before Start, or after Drain.
var errNotRunning = errors.New("not running")

type listener struct {
	*net.TCPListener
	port int
	stop chan struct{} // closed when no further connection is to be waited for
}

// conn is one caller's connection.
type conn struct {
	*net.TCPConn
	port     int
	peers    [ways]atomic.Pointer[net.Conn] // the last that each way led to; nil: none yet
	rhythm   rhythm
	draining *atomic.Bool        // of the Interceptor
	leaving  atomic.Bool         // it is to end between two of its requests
	left     [ways]atomic.Uint32 // how often Leave was called for each way
	endedAt  atomic.Int64        // nanoseconds since 1970; not 0: the caller was sent our end
}

// Read reads what the caller says.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.Seen(p[:n], err)
	return n, err
}

// Seen notes what the caller said, and its half-close: Splice reads without Read, and without a buffer while there is nothing.
func (c *conn) Seen(p []byte, err error) {
	if len(p) > 0 {
		c.rhythm.fromCaller(time.Now(), p)
	}
	if errors.Is(err, io.EOF) {
		c.rhythm.halfClosed()
	}
}

// Write notes what the caller is told. While draining or leaving, our end follows an HTTP/1 answer's last byte at once.
func (c *conn) Write(p []byte) (int, error) {
	c.rhythm.toCaller(time.Now())
	n, err := c.TCPConn.Write(p)
	if answered := c.rhythm.told(time.Now(), p[:n]); answered && c.draining.Load() {
		c.sendEnd(time.Now())
	} else if answered && c.leaving.Load() {
		c.leave()
	}
	return n, err
}

// CloseWrite is the laptop's half-close, on its way to the caller.
func (c *conn) CloseWrite() error {
	c.rhythm.halfClosed()
	return c.TCPConn.CloseWrite()
}

// reset ends c so that both ends see it at once, as they would with a crashed program.
func (c *conn) reset() {
	_ = c.SetLinger(0)
	_ = c.TCPConn.Close()
	for i := range c.peers {
		switch peer := c.peer(Way(i)).(type) {
		case *tunnel.Stream:
			peer.Reset()
		case *net.TCPConn:
			_ = peer.SetLinger(0)
			_ = peer.Close()
		}
	}
}

// end closes c and where it goes; what was written still arrives.
func (c *conn) end() {
	_ = c.TCPConn.Close()
	for i := range c.peers {
		if peer := c.peer(Way(i)); peer != nil {
			_ = peer.Close()
		}
	}
}

func (c *conn) peer(w Way) net.Conn {
	if peer := c.peers[w].Load(); peer != nil {
		return *peer
	}
	return nil
}

func (i *Interceptor) log() *slog.Logger {
	if i.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return i.Log
}

// Check opens each port and closes it again, so that one that cannot be opened is known at the start
// and not when the first caller is expected.
func (i *Interceptor) Check() error {
	for _, port := range i.Ports {
		l, err := i.listen(port)
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
	}
	for _, port := range i.UDP {
		p, err := i.listenUDP(port)
		if err != nil {
			return err
		}
		if err := p.conn.Close(); err != nil {
			return fmt.Errorf("port %d/udp: %w", port, err)
		}
	}
	return nil
}

func (i *Interceptor) listen(port int) (*listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(i.Host, strconv.Itoa(port)))
	if err != nil {
		return nil, explainListen(err)
	}
	return &listener{l.(*net.TCPListener), port, make(chan struct{})}, nil
}

func explainListen(err error) error {
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: the pod needs the sysctl net.ipv4.ip_unprivileged_port_start=0", err)
	}
	return err
}

// Start makes SetReady work. When ctx is done the listeners are closed and the connections reset;
// Wait then returns.
func (i *Interceptor) Start(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.state = running
	i.conns = map[*conn]struct{}{}
	i.slots = make(chan struct{}, cmp.Or(i.Limit, maxConns))
	i.changed = make(chan struct{}, 1)
	i.ctx = ctx
}

// Wait returns when Start's ctx is done and everything that was started has ended.
func (i *Interceptor) Wait() {
	<-i.ctx.Done()
	i.mu.Lock()
	i.state = stopped
	i.closePorts()
	i.mu.Unlock()
	i.resetAll()
	i.wg.Wait()
}

// SetReady opens the ports or closes them; open connections stay, flows of datagrams end. Callers meet a refusal while the
// ports are closed. When it fails, all are closed.
func (i *Interceptor) SetReady(ready bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state != running {
		if !ready && i.state == closing {
			i.closePorts()
		}
		return errNotRunning
	}
	if !ready {
		i.closePorts()
		return nil
	}
	if i.open {
		return nil
	}
	if err := i.openPorts(); err != nil {
		i.closePorts()
		return err
	}
	i.open = true
	return nil
}

// openPorts opens all, or some and fails. mu is held.
func (i *Interceptor) openPorts() error {
	for _, port := range i.Ports {
		l, err := i.listen(port)
		if err != nil {
			return err
		}
		i.listeners = append(i.listeners, l)
		i.wg.Go(func() { i.accept(l) })
	}
	for _, port := range i.UDP {
		p, err := i.listenUDP(port)
		if err != nil {
			return err
		}
		p.ctx, p.cancel = context.WithCancel(i.ctx)
		i.udp = append(i.udp, p)
		i.wg.Go(p.read)
	}
	return nil
}

// closePorts closes all at once, and ends the flows. mu is held.
func (i *Interceptor) closePorts() {
	i.closeListeners()
	for _, p := range i.udp {
		p.close()
	}
	i.udp, i.open = nil, false
}

// closeListeners closes the TCP ports at once. mu is held.
func (i *Interceptor) closeListeners() {
	for _, l := range i.listeners {
		_ = l.Close()
		close(l.stop)
	}
	i.listeners = nil
}

// accept takes l's connections until l is closed or its deadline has passed.
func (i *Interceptor) accept(l *listener) {
	defer func() { _ = l.Close() }()
	for {
		select {
		case i.slots <- struct{}{}:
		default:
			i.log().Warn("too many connections: callers wait", "port", l.port, "limit", cap(i.slots))
			select {
			case i.slots <- struct{}{}:
			case <-l.stop:
				return
			}
		}
		c, err := l.AcceptTCP()
		if err == nil {
			i.wg.Go(func() { i.serve(c, l.port) })
			continue
		}
		<-i.slots
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		i.log().Warn("accept", "port", l.port, "error", err)
		select {
		case <-time.After(acceptPause):
		case <-l.stop:
		}
	}
}

// serve carries one connection, and has a slot.
func (i *Interceptor) serve(tcp *net.TCPConn, port int) {
	defer func() { <-i.slots }()
	c := &conn{TCPConn: tcp, port: port, draining: &i.draining, rhythm: rhythm{at: time.Now()}}
	if !i.add(c) {
		c.reset()
		return
	}
	defer i.remove(c)

	h := tunnel.Header{Kind: tunnel.Inbound, Network: "tcp", Address: ":" + strconv.Itoa(port)}
	if a, ok := tcp.RemoteAddr().(*net.TCPAddr); ok {
		h.Peer = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	if err := i.choose()(i.ctx, c, i.ways(c, h)); err != nil {
		c.reset() // unless that is done
		i.log().Debug("connection ended", "port", port, "from", h.Peer, "error", err)
	}
}

func (i *Interceptor) add(c *conn) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.state == stopped {
		return false
	}
	i.conns[c] = struct{}{}
	return true
}

func (i *Interceptor) remove(c *conn) {
	i.mu.Lock()
	delete(i.conns, c)
	i.mu.Unlock()
	select {
	case i.changed <- struct{}{}:
	default:
	}
}

func (i *Interceptor) all() []*conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := make([]*conn, 0, len(i.conns))
	for c := range i.conns {
		all = append(all, c)
	}
	return all
}

func (i *Interceptor) resetAll() {
	for _, c := range i.all() {
		c.reset()
	}
}
