package intercept

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// maxPortFlows is how many callers of one UDP port have a flow at once; the one that was silent longest makes room for
	// the next. A DNS client asks from a new port each time, so most of them are over long before they are silent for long.
	maxPortFlows = 1024
	// maxFlows is that of all ports together. A flow at rest takes some 20 KB, so that all of them fit the pod's memory.
	maxFlows = 2048
	// maxQueued is how many datagrams of one flow wait for the tunnel. Those beyond it are dropped.
	maxQueued = 64
	// maxQueuedBytes is what all flows together hold of them.
	maxQueuedBytes = 16 << 20
	// datagramBuffer is the longest datagram there is.
	datagramBuffer = 64 << 10
	// flowQuiet is the silence after which a flow counts as answered, when the pod is to go.
	flowQuiet = 500 * time.Millisecond
)

// datagrams is what all UDP ports share.
type datagrams struct {
	queued  atomic.Int64  // bytes that wait for the tunnel
	flows   atomic.Int64  // that are open
	dropped atomic.Uint64 // datagrams, since the start
}

// udpPort is one UDP port while it is open.
type udpPort struct {
	i      *Interceptor
	number int
	conn   *net.UDPConn
	ctx    context.Context // done when the port is closed
	cancel context.CancelFunc

	mu    sync.Mutex
	flows map[netip.AddrPort]*flow // by caller
}

func (i *Interceptor) listenUDP(number int) (*udpPort, error) {
	var address netip.Addr
	if i.Host != "" {
		var err error
		if address, err = netip.ParseAddr(i.Host); err != nil {
			return nil, err
		}
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, uint16(number))))
	if err != nil {
		return nil, explainListen(err)
	}
	return &udpPort{i: i, number: number, conn: c, flows: map[netip.AddrPort]*flow{}}, nil
}

// close ends p and its flows: they answer from its socket.
func (p *udpPort) close() {
	p.cancel()
	_ = p.conn.Close()
}

// read hands out what comes to the port, until it is closed. It waits for nobody: who is slow loses datagrams, not the others.
func (p *udpPort) read() {
	buf := make([]byte, datagramBuffer)
	for {
		n, caller, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.i.log().Warn("datagram", "port", p.number, "error", err)
			select {
			case <-time.After(acceptPause):
			case <-p.ctx.Done():
			}
			continue
		}
		p.put(caller, buf[:n])
	}
}

// put hands b to the flow of caller, a new one if there is none.
func (p *udpPort) put(caller netip.AddrPort, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.flows[caller]; f != nil {
		f.put(b)
		return
	}
	if len(p.flows) == maxPortFlows || p.i.datagrams.flows.Load() >= maxFlows {
		if !p.evict() {
			p.i.datagrams.dropped.Add(1)
			return
		}
	}
	f := &flow{p: p, caller: caller, queue: make(chan []byte, maxQueued), done: make(chan struct{})}
	f.put(b)
	p.flows[caller] = f
	p.i.datagrams.flows.Add(1)
	p.i.wg.Go(f.serve)
}

// evict ends the flow that was silent longest, if there is one. mu is held.
func (p *udpPort) evict() bool {
	var oldest *flow
	for _, f := range p.flows {
		if oldest == nil || f.at.Load() < oldest.at.Load() {
			oldest = f
		}
	}
	if oldest == nil {
		return false
	}
	delete(p.flows, oldest.caller)
	_ = oldest.Close()
	return true
}

// remove takes f off the port, so that its caller's next datagram begins another.
func (p *udpPort) remove(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flows[f.caller] == f {
		delete(p.flows, f.caller)
	}
}

// quiet says whether no flow is in the middle of something.
func (p *udpPort) quiet(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows {
		if !f.answered.Load() && now.Sub(time.Unix(0, f.at.Load())) < flowQuiet {
			return false
		}
	}
	return true
}

// flow is the datagrams of one caller. To tunnel.SpliceDatagrams it is the socket.
type flow struct {
	p      *udpPort
	caller netip.AddrPort
	queue  chan []byte
	done   chan struct{} // closed by Close
	once   sync.Once

	at       atomic.Int64 // nanoseconds since 1970, when a datagram moved
	answered atomic.Bool  // the last one went to the caller

	deadline time.Time // of Next, set and read by who calls that
}

func (f *flow) moved(answer bool) {
	f.at.Store(time.Now().UnixNano())
	f.answered.Store(answer)
}

// put queues a copy of b, or drops it. The port's mu is held, so that nothing comes after remove.
func (f *flow) put(b []byte) {
	f.moved(false)
	d := &f.p.i.datagrams
	if d.queued.Add(int64(len(b))) <= maxQueuedBytes {
		select {
		case f.queue <- append([]byte(nil), b...):
			return
		default:
		}
	}
	d.queued.Add(-int64(len(b)))
	if n := d.dropped.Add(1); n&(n-1) == 0 { // each time it has doubled
		f.p.i.log().Warn("datagrams dropped: the tunnel or the laptop is too slow for them", "count", n, "port", f.p.number)
	}
}

// serve carries the flow to the laptop, until one of them ends it or it was silent for too long.
func (f *flow) serve() {
	i := f.p.i
	defer i.datagrams.flows.Add(-1)
	defer f.drop()
	defer f.p.remove(f)
	h := tunnel.Header{
		Kind: tunnel.Inbound, Network: "udp", Address: ":" + strconv.Itoa(f.p.number),
		Peer: netip.AddrPortFrom(f.caller.Addr().Unmap().WithZone(""), f.caller.Port()),
	}
	stream, err := i.Open(f.p.ctx, h)
	if err != nil {
		i.log().Debug("datagrams dropped", "port", f.p.number, "from", f.caller, "error", err)
		return
	}
	stop := context.AfterFunc(f.p.ctx, func() { _ = f.Close() })
	defer stop()
	dropped, err := tunnel.SpliceDatagrams(stream, f, tunnel.FlowIdle(h.Network, h.Address))
	i.datagrams.dropped.Add(dropped)
	if err != nil {
		i.log().Debug("flow ended", "port", f.p.number, "from", f.caller, "error", err)
	}
}

// drop gives back what waits in the queue of a flow that has ended.
func (f *flow) drop() {
	for {
		select {
		case b := <-f.queue:
			f.p.i.datagrams.queued.Add(-int64(len(b)))
			f.p.i.datagrams.dropped.Add(1)
		default:
			return
		}
	}
}

// Next is the caller's next datagram.
func (f *flow) Next() ([]byte, error) {
	timer := time.NewTimer(time.Until(f.deadline))
	defer timer.Stop()
	select {
	case b := <-f.queue:
		f.p.i.datagrams.queued.Add(-int64(len(b)))
		return b, nil
	case <-f.done:
		return nil, net.ErrClosed
	case <-timer.C:
		return nil, os.ErrDeadlineExceeded
	}
}

// Read is Next for net.Conn.
func (f *flow) Read(p []byte) (int, error) {
	b, err := f.Next()
	return copy(p, b), err
}

// Write sends the caller an answer.
func (f *flow) Write(b []byte) (int, error) {
	f.moved(true)
	return f.p.conn.WriteToUDPAddrPort(b, f.caller)
}

// Close ends the flow.
func (f *flow) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// LocalAddr is the port's.
func (f *flow) LocalAddr() net.Addr { return f.p.conn.LocalAddr() }

// RemoteAddr is the caller's.
func (f *flow) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(f.caller) }

// SetDeadline is SetReadDeadline: nothing else waits.
func (f *flow) SetDeadline(t time.Time) error { return f.SetReadDeadline(t) }

// SetReadDeadline bounds the next Next, not one under way.
func (f *flow) SetReadDeadline(t time.Time) error {
	f.deadline = t
	return nil
}

// SetWriteDeadline does nothing.
func (f *flow) SetWriteDeadline(time.Time) error { return nil }
