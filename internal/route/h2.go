package route

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"bridge/internal/http1"
)

// HTTP/2 is passed on frame by frame, each stream to a backend of its own, and not by a server and a client with
// requests in between: so trailers, interim answers, the codes of resets (which gRPC gives a meaning), and fields with
// their order and spelling stay what they are. Only what belongs to one connection is this program's: numbers of
// streams, compression of fields, windows, settings and pings.

const (
	// streamWindow is what is held of one stream in one direction while its other end takes nothing: within a cluster, with round
	// trips of a millisecond, it lets 60 MB/s through. Of a laptop's answers it is laptopStreamWindow: on a tunnel with a round
	// trip of 50 ms that lets 5 MB/s through.
	streamWindow       = 64 << 10
	laptopStreamWindow = 256 << 10
	// connWindow is what a peer may send at any moment on a connection, in all streams together: what HTTP/2 begins with. What is
	// held of it does not count, as long as there is memory for that and it is not more than maxWindow: so 128 streams that
	// nobody takes do not stop the others. laptopWindow is a laptop's, if much memory is left.
	connWindow   = 65535
	laptopWindow = 1 << 20
	maxWindow    = 8 << 20
	// refillPause is between two tries to open a window that is closed for want of memory.
	refillPause = 100 * time.Millisecond
	// peerMemory is what a connection to one peer takes beside its window, and beside what an idle one does: a frame that is read,
	// one that is written, and one about to be (of frameSize each), freeControl small ones, and the buffer of its encoder, which
	// fields of up to keptField leave behind.
	peerMemory  = 64 << 10
	freeControl = 32
	keptField   = 8 << 10
	// spareMemory is for a connection's heads, streams and small frames, whatever others hold. A stream takes streamMemory, a field
	// fieldMemory beside its text, a small frame controlMemory.
	spareMemory   = 32 << 10
	streamMemory  = 1 << 10
	fieldMemory   = 64
	controlMemory = 128
	// maxStreams bounds a caller's open streams: more than servers allow (100 to 250), for those that have no limit.
	maxStreams = 4096
	// maxFields bounds a head, as it comes and decoded, and maxHeld those of a connection that are not passed on yet.
	maxFields = http1.MaxHead
	maxHeld   = 4 << 20
	// maxPieces bounds what waits in one direction of a stream, interim heads and parts of a body, and maxControl the small frames
	// of a connection.
	maxPieces  = 128
	maxControl = 4096
	// settingsPatience is how long a backend may take to say that it speaks HTTP/2: servers say so at once.
	settingsPatience = 5 * time.Second

	frameHeader = 9
	frameSize   = 16 << 10 // the least that everybody takes
	tableSize   = 4096     // of HPACK, the default

	settingsFrame = byte(http2.FrameSettings)
)

var preface = []byte(http2.ClientPreface)

// beginsHTTP2 says whether p may be how a server begins: with a SETTINGS frame.
func beginsHTTP2(p []byte) bool {
	return p[0] == 0 && (len(p) < 4 || p[3] == settingsFrame)
}

// isSettings says whether h is the header of a SETTINGS frame that is no acknowledgement.
func isSettings(h []byte) bool {
	return len(h) >= frameHeader && h[0] == 0 && h[3] == settingsFrame && h[4] == 0 && binary.BigEndian.Uint32(h[5:]) == 0 &&
		binary.BigEndian.Uint16(h[1:])%6 == 0
}

// serveHTTP2 has the connection after its preface. The original gets that and the caller's settings as they are: when
// it does not speak HTTP/2, it has the rest of the connection too.
func (s *session) serveHTTP2() error {
	client := &ahead{Conn: s.client, p: s.detachClient(), passed: s.memory.give}
	putBack := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.in = client.p
	}
	_ = client.SetReadDeadline(time.Now().Add(s.r.patience()))
	first, err := readFirst(client, len(preface))
	_ = client.SetReadDeadline(time.Time{})
	if err != nil {
		s.r.unreadable(NotHTTP)
		putBack()
		return s.hand(first)
	}
	if !s.memory.reserve(2*(peerMemory+connWindow)+len(first)) || !s.memory.ensure(spareMemory) {
		s.r.unreadable(Full)
		s.memory.clear()
		putBack()
		return s.hand(first)
	}
	p := &proxy{s: s, streams: map[uint32]*stream{}, backs: map[string]*peer{}, hello: first}
	p.front = p.newPeer("", client)
	var offered []http2.Setting
	b, err := s.connected()
	if err != nil {
		s.memory.release(peerMemory + connWindow)
	} else {
		b.detach()
		s.mu.Lock()
		follow, held := s.follow, b.held
		s.mu.Unlock()
		if follow != nil {
			putBack()
			s.memory.clear()
			return s.handTo(b, first)
		}
		conn := &ahead{Conn: b.conn, p: held}
		_ = conn.SetDeadline(time.Now().Add(settingsPatience))
		_, _ = conn.Write(first) // what went wrong is met by reading
		answer, err := readFirst(conn, 0)
		_ = conn.SetDeadline(time.Time{})
		if err != nil {
			putBack()
			s.mu.Lock()
			b.held = append(answer, conn.p...)
			s.mu.Unlock()
			s.r.unreadable(NotHTTP)
			s.memory.clear()
			return s.handTo(b, nil)
		}
		conn.p = append(answer, conn.p...)
		p.original = p.newPeer("", conn)
		if offered, err = p.original.greet(); err != nil {
			return err
		}
	}
	return p.run(offered)
}

// readFirst reads a SETTINGS frame with what is before it. After an error that is what was read.
func readFirst(c io.Reader, before int) ([]byte, error) {
	p := make([]byte, before+frameHeader)
	if n, err := io.ReadFull(c, p); err != nil {
		return p[:n], err
	}
	if !isSettings(p[before:]) {
		return p, errors.New("no SETTINGS")
	}
	size := int(binary.BigEndian.Uint16(p[before+1:]))
	if size > frameSize {
		return p, errors.New("SETTINGS too long")
	}
	p = append(p, make([]byte, size)...)
	n, err := io.ReadFull(c, p[before+frameHeader:])
	return p[:before+frameHeader+n], err
}

// ahead is a connection of which something was read already.
type ahead struct {
	net.Conn
	p      []byte
	passed func(n int) // if set: is told what was read of p
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.p) > 0 {
		n := copy(p, a.p)
		if a.p = a.p[n:]; len(a.p) == 0 {
			a.p = nil
		}
		if a.passed != nil {
			a.passed(n)
		}
		return n, nil
	}
	return a.Conn.Read(p)
}

// proxy is one caller's connection that speaks HTTP/2. Each of its connections has a goroutine that reads and one that
// writes; all that they share is under mu.
type proxy struct {
	s     *session
	hello []byte // the caller's preface and first settings
	front *peer
	wg    sync.WaitGroup

	mu       sync.Mutex
	original *peer            // for new streams; nil: to be dialled
	backs    map[string]*peer // likewise, by route
	peers    []*peer          // all backends whose connection is open or being made
	streams  map[uint32]*stream
	lastID   uint32
	held     int // bytes of heads
	over     error
}

// newPeer is for a connection for which there is memory: peerMemory and connWindow.
func (p *proxy) newPeer(route string, conn net.Conn) *peer {
	c := &peer{p: p, route: route, byID: map[uint32]*stream{}, nextID: 1, limit: 1 << 31, window: 65535, initial: 65535}
	c.base, c.size, c.given, c.streamWindow = connWindow, connWindow, connWindow, streamWindow
	c.changed.L = &p.mu
	c.decode = hpack.NewDecoder(tableSize, c.field)
	c.decode.SetMaxStringLength(maxFields)
	c.encode, c.table = hpack.NewEncoder(&c.block), tableSize
	if conn != nil {
		c.use(conn)
	}
	return c
}

// run serves until the caller's connection ends. offered are the original's settings.
func (p *proxy) run(offered []http2.Setting) error {
	ours := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: streamWindow}, headLimit(offered)}
	streams := uint32(maxStreams)
	for _, s := range offered {
		switch s.ID {
		case http2.SettingMaxConcurrentStreams:
			streams = min(streams, s.Val)
		case http2.SettingEnableConnectProtocol:
			ours = append(ours, s)
		}
	}
	ours = append(ours, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: streams})
	defer p.wg.Wait()
	defer context.AfterFunc(p.s.ctx, func() { p.end(context.Cause(p.s.ctx)) })()
	p.mu.Lock()
	p.front.up = true
	p.front.send(func() error { return p.front.frame.WriteSettings(ours...) })
	err := p.front.settings(p.asked())
	if p.original != nil {
		p.peers = append(p.peers, p.original)
		p.wg.Go(p.original.write)
		p.wg.Go(p.original.read)
	}
	p.mu.Unlock()
	if err != nil {
		p.end(err)
		return err
	}
	p.wg.Go(p.front.write)
	p.front.read()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.over, io.EOF) {
		return nil
	}
	return p.over
}

// asked are the caller's first settings.
func (p *proxy) asked() (all []http2.Setting) {
	for b := p.hello[len(preface)+frameHeader:]; len(b) >= 6; b = b[6:] {
		all = append(all, http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(b)), Val: binary.BigEndian.Uint32(b[2:])})
	}
	return all
}

// headLimit tells one side of the longest head that is passed on to the other one, which said these settings.
func headLimit(settings []http2.Setting) http2.Setting {
	limit := http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxFields}
	for _, s := range settings {
		if s.ID == limit.ID {
			limit.Val = min(s.Val, maxFields)
		}
	}
	return limit
}

// farewell ends all after a word to the caller that says what it did.
func (p *proxy) farewell(code http2.ErrCode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.lastID
	_ = p.front.conn.SetWriteDeadline(time.Now().Add(linger))
	p.front.send(func() error { return p.front.frame.WriteGoAway(last, code, nil) })
	p.front.flushAndClose()
}

// end closes all connections.
func (p *proxy) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLocked(err)
}

func (p *proxy) endLocked(err error) {
	if p.over != nil {
		return
	}
	if err == nil {
		err = io.EOF
	}
	p.over = err
	for _, c := range p.peers {
		c.close()
	}
	p.front.close()
}

// gone lets go of a backend whose connection has ended. mu is held.
func (p *proxy) gone(c *peer) {
	n := len(p.peers)
	if p.peers = slices.DeleteFunc(p.peers, func(other *peer) bool { return other == c }); len(p.peers) < n {
		p.s.memory.release(peerMemory)
	}
}

// begin takes a new request. False when there is no memory for it: then its head is not taken, and the caller not told. mu is held.
func (p *proxy) begin(id uint32, head piece) (taken bool) {
	if p.over != nil { // nobody would close what it is sent to
		return false
	}
	if !p.s.memory.take(streamMemory) {
		return false
	}
	st := &stream{id: id}
	st.up.stream, st.down.stream = st, st
	st.up.from, st.up.given, st.down.window = p.front, streamWindow, p.front.initial
	p.streams[id] = st
	target, fields := "", make([]http1.Field, 0, len(head.fields))
	for _, f := range head.fields {
		switch f.Name {
		case ":path":
			target = f.Value
		case ":authority":
			fields = append(fields, http1.Field{Name: "Host", Value: f.Value})
		default:
			fields = append(fields, http1.Field{Name: f.Name, Value: f.Value})
		}
	}
	for _, route := range p.s.r.Routes() {
		if !route.Filter.Matches(target, fields) {
			continue
		}
		c := p.backs[route.Name]
		if !route.takes() {
			if c != nil {
				c.stepAside()
			}
			break
		}
		if c == nil {
			if c = p.toLaptop(route); c == nil {
				break
			}
		}
		st.back = c
		st.up.push(p, head)
		return true
	}
	if st.back = p.toOriginal(); st.back == nil {
		st.cancel(p)
		return false
	}
	st.up.push(p, head)
	return true
}

// toLaptop begins a connection to route's laptop; nil when there is no memory left for one, or all has ended. mu is held.
func (p *proxy) toLaptop(route Route) *peer {
	if p.over != nil { // nobody would close it
		return nil
	}
	if !p.s.memory.reserve(peerMemory + connWindow) {
		p.s.r.unreadable(Full)
		return nil
	}
	c := p.newPeer(route.Name, nil)
	c.laptop, c.takes, c.streamWindow = true, route.takes, laptopStreamWindow
	if budget := p.s.memory.budget; budget.Used() < budget.size()/2 && p.s.memory.reserve(laptopWindow-connWindow) {
		c.base, c.size = laptopWindow, laptopWindow
	}
	p.backs[route.Name] = c
	p.peers = append(p.peers, c)
	p.wg.Go(func() { c.serve(route.Dial) })
	return c
}

// toOriginal is the original's connection, made anew where it is not there; nil when there is no memory left for that, or all has
// ended. mu is held.
func (p *proxy) toOriginal() *peer {
	if p.over != nil {
		return nil
	}
	if p.original == nil {
		if !p.s.memory.reserve(peerMemory + connWindow) {
			return nil
		}
		c := p.newPeer("", nil)
		p.original = c
		p.peers = append(p.peers, c)
		p.wg.Go(func() { c.serve(p.s.r.Original) })
	}
	return p.original
}

// toOriginalInstead takes a stream that has not begun from a laptop. mu is held.
func (p *proxy) toOriginalInstead(st *stream) {
	st.back.active = slices.DeleteFunc(st.back.active, func(h *half) bool { return h == &st.up })
	original := p.toOriginal()
	if original == nil {
		st.back.refuse(st)
		return
	}
	st.back = original
	st.back.active = append(st.back.active, &st.up)
	st.back.changed.Broadcast()
}
