package route

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	// streamWindow is what is held of one stream in one direction while its other end takes nothing: on a tunnel with a
	// round trip of 50 ms it lets 5 MB/s through.
	streamWindow = 256 << 10
	// connWindow is the same for all of a connection: 16 streams that nobody reads do not stop the others.
	connWindow = 4 << 20
	// maxStreams bounds a caller's open streams: more than servers allow (100 to 250), for those that have no limit.
	maxStreams = 4096
	// maxFields bounds a decoded head, maxHeld those of a connection that are not passed on yet.
	maxFields = 1 << 20
	maxHeld   = 4 << 20
	// maxInterim bounds the heads that wait in one direction of a stream, and maxControl the small frames of a connection.
	maxInterim = 64
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
	client := &ahead{Conn: s.client, p: s.detachClient()}
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
	p := &proxy{s: s, streams: map[uint32]*stream{}, backs: map[string]*peer{}, hello: first}
	p.front = p.newPeer("", client)
	var offered []http2.Setting
	b, err := s.connected()
	if err == nil {
		b.detach()
		s.mu.Lock()
		follow, held := s.follow, b.held
		s.mu.Unlock()
		if follow != nil {
			putBack()
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
	p []byte
}

func (a *ahead) Read(p []byte) (int, error) {
	if len(a.p) > 0 {
		n := copy(p, a.p)
		a.p = a.p[n:]
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

// peer is one of the connections.
type peer struct {
	p      *proxy
	route  string
	laptop bool // it is route's
	conn   net.Conn
	frame  *http2.Framer
	out    *bufio.Writer
	// The reader's:
	decode *hpack.Decoder
	fields []hpack.HeaderField
	size   int
	// The writer's:
	encode *hpack.Encoder
	block  bytes.Buffer

	// Under p.mu:
	changed sync.Cond
	control []func() error // frames to be written before all else
	active  []*half        // what has something to send here
	byID    map[uint32]*stream
	nextID  uint32
	limit   uint32 // of streams
	window  int64  // what it takes now
	initial int64  // what it takes of a new stream
	given   int64  // what it may send now
	credit  uint32 // what it may send again and was not told yet
	up      bool   // it has said that it speaks HTTP/2
	leaving bool   // it takes no new streams
	closed  bool
	hangUp  bool // close when control is written
}

// stream is one request and its answer.
type stream struct {
	id       uint32 // the caller's
	back     *peer  // nil when it is done with
	backID   uint32 // 0: not begun there
	up, down half
}

// half is one direction of a stream.
type half struct {
	stream *stream
	from   *peer // the sender, also when it is done with the stream; nil: there is none yet
	queue  []piece
	waits  bool   // is in active
	window int64  // what the receiver takes
	given  int64  // what the sender may send
	credit uint32 // what it may send again and was not told yet
	ended  bool   // the sender has said its last
	done   bool   // the receiver was told
}

// piece is something to be passed on: fields, bytes, or an end by reset.
type piece struct {
	fields []hpack.HeaderField
	size   int // of fields
	data   []byte
	end    bool
	reset  bool
	code   http2.ErrCode
	hangUp bool // with reset: the caller's connection ends, as the backend's has
}

func (p *proxy) newPeer(route string, conn net.Conn) *peer {
	c := &peer{p: p, route: route, byID: map[uint32]*stream{}, nextID: 1, limit: 1 << 31, window: 65535, initial: 65535, given: connWindow}
	c.changed.L = &p.mu
	c.decode = hpack.NewDecoder(tableSize, c.field)
	c.decode.SetMaxStringLength(maxFields)
	c.encode = hpack.NewEncoder(&c.block)
	if conn != nil {
		c.use(conn)
	}
	return c
}

func (c *peer) use(conn net.Conn) {
	c.conn = conn
	c.out = bufio.NewWriterSize(conn, smallBuffer)
	c.frame = http2.NewFramer(c.out, bufio.NewReaderSize(conn, smallBuffer))
	c.frame.SetMaxReadFrameSize(frameSize)
	c.frame.SetReuseFrames()
}

func (c *peer) field(f hpack.HeaderField) {
	if c.size += int(f.Size()); c.size <= maxFields {
		c.fields = append(c.fields, f)
	}
}

// greet reads a backend's first settings and answers with ours. The caller's were sent before.
func (c *peer) greet() ([]http2.Setting, error) {
	f, err := c.frame.ReadFrame()
	if err != nil {
		return nil, err
	}
	first, ok := f.(*http2.SettingsFrame)
	if !ok {
		return nil, errors.New("no SETTINGS")
	}
	var all []http2.Setting
	_ = first.ForeachSetting(func(s http2.Setting) error {
		all = append(all, s)
		return nil
	})
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.up = true
	c.send(func() error {
		return c.frame.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: tableSize},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: frameSize}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow})
	})
	c.send(func() error { return c.frame.WriteWindowUpdate(0, connWindow-65535) })
	return all, c.settings(all)
}

// run serves until the caller's connection ends. offered are the original's settings.
func (p *proxy) run(offered []http2.Setting) error {
	var asked []http2.Setting
	for b := p.hello[len(preface)+frameHeader:]; len(b) >= 6; b = b[6:] {
		asked = append(asked, http2.Setting{ID: http2.SettingID(binary.BigEndian.Uint16(b)), Val: binary.BigEndian.Uint32(b[2:])})
	}
	ours := []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: streamWindow}}
	streams := uint32(maxStreams)
	for _, s := range offered {
		switch s.ID {
		case http2.SettingMaxConcurrentStreams:
			streams = min(streams, s.Val)
		case http2.SettingMaxHeaderListSize, http2.SettingEnableConnectProtocol:
			ours = append(ours, s)
		}
	}
	ours = append(ours, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: streams})
	defer p.wg.Wait()
	defer context.AfterFunc(p.s.ctx, func() { p.end(context.Cause(p.s.ctx)) })()
	p.mu.Lock()
	p.front.up = true
	p.front.send(func() error { return p.front.frame.WriteSettings(ours...) })
	p.front.send(func() error { return p.front.frame.WriteWindowUpdate(0, connWindow-65535) })
	err := p.front.settings(asked)
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

// close closes c's connection. mu is held.
func (c *peer) close() {
	c.closed = true
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.changed.Broadcast()
}

// send queues a frame. mu is held.
func (c *peer) send(frame func() error) {
	c.control = append(c.control, frame)
	c.changed.Broadcast()
	if len(c.control) > maxControl { // it asks and does not read
		c.p.endLocked(http2.ConnectionError(http2.ErrCodeEnhanceYourCalm))
	}
}

func (c *peer) sendReset(id uint32, code http2.ErrCode) {
	c.send(func() error { return c.frame.WriteRSTStream(id, code) })
}

// write writes what is there to be written, until c is closed.
func (c *peer) write() {
	for {
		c.p.mu.Lock()
		job := c.next()
		if job == nil && c.out.Buffered() > 0 {
			job = c.out.Flush
		}
		for job == nil && !c.closed {
			c.changed.Wait()
			job = c.next()
		}
		closed := c.closed
		c.p.mu.Unlock()
		if closed {
			return
		}
		if err := job(); err != nil {
			c.lost(err)
			return
		}
	}
}

// next is what is to be written now; nil: nothing. mu is held.
func (c *peer) next() func() error {
	if len(c.control) > 0 {
		job := c.control[0]
		if c.control = c.control[1:]; len(c.control) == 0 {
			c.control = nil
		}
		return job
	}
	if c.hangUp {
		c.hangUp = false
		return func() error {
			_ = c.out.Flush()
			return errHungUp
		}
	}
	for i, h := range c.active {
		job := c.piece(h)
		if job == nil {
			continue
		}
		// Those behind it come first next time.
		c.active = append(slices.Delete(c.active, i, i+1), h)
		if len(h.queue) == 0 {
			h.waits = false
			c.active = c.active[:len(c.active)-1]
		}
		h.stream.settle(c.p)
		return job
	}
	return nil
}

var errHungUp = errors.New("hung up")

// piece takes what c can have of h now; nil: nothing. mu is held.
func (c *peer) piece(h *half) func() error {
	if len(h.queue) == 0 {
		return nil
	}
	st := h.stream
	first := &h.queue[0]
	id := st.id
	if h == &st.up {
		if st.backID == 0 {
			if !c.up || c.leaving || len(c.byID) >= int(c.limit) {
				return nil
			}
			st.backID = c.nextID
			c.nextID += 2
			c.byID[st.backID] = st
			h.window, st.down.given, st.down.from = c.initial, streamWindow, c
			if c.nextID >= 1<<31-1 {
				c.retire()
			}
		}
		id = st.backID
	}
	switch {
	case first.hangUp:
		c.hangUp = true
		h.pop(c.p)
		return func() error { return nil }
	case first.reset:
		code := first.code
		h.pop(c.p)
		h.done = true
		return func() error { return c.frame.WriteRSTStream(id, code) }
	case first.fields != nil:
		fields, end := first.fields, first.end
		h.done = end
		h.pop(c.p)
		return func() error { return c.writeFields(id, fields, end) }
	}
	n := int(min(int64(len(first.data)), frameSize, h.window, c.window))
	if n <= 0 && len(first.data) > 0 {
		return nil
	}
	data, end := first.data[:n], first.end && n == len(first.data)
	first.data = first.data[n:]
	h.window -= int64(n)
	c.window -= int64(n)
	h.returned(n)
	if len(first.data) == 0 {
		h.done = end
		h.pop(c.p)
	}
	return func() error { return c.frame.WriteData(id, end, data) }
}

func (c *peer) writeFields(id uint32, fields []hpack.HeaderField, end bool) error {
	c.block.Reset()
	for _, f := range fields {
		if err := c.encode.WriteField(f); err != nil {
			return err
		}
	}
	block := c.block.Bytes()
	part := block[:min(len(block), frameSize)]
	block = block[len(part):]
	err := c.frame.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndStream: end, EndHeaders: len(block) == 0})
	for err == nil && len(block) > 0 {
		part = block[:min(len(block), frameSize)]
		block = block[len(part):]
		err = c.frame.WriteContinuation(id, len(block) == 0, part)
	}
	return err
}

// pop takes the first piece away. mu is held.
func (h *half) pop(p *proxy) {
	p.held -= h.queue[0].size
	h.queue[0] = piece{}
	if h.queue = h.queue[1:]; len(h.queue) == 0 {
		h.queue = nil
	}
}

// receiver is who is told. mu is held.
func (h *half) receiver(p *proxy) *peer {
	if h == &h.stream.up {
		return h.stream.back
	}
	return p.front
}

// returned lets the sender send n bytes more. mu is held.
func (h *half) returned(n int) {
	c, id := h.from, h.stream.id
	if h == &h.stream.down {
		id = h.stream.backID
	}
	c.returned(n)
	h.credit += uint32(n)
	if h.credit >= streamWindow/4 && !h.ended {
		m := h.credit
		h.given += int64(m)
		h.credit = 0
		c.send(func() error { return c.frame.WriteWindowUpdate(id, m) })
	}
}

// returned is the same for the whole connection.
func (c *peer) returned(n int) {
	c.credit += uint32(n)
	if c.credit >= connWindow/4 {
		m := c.credit
		c.given += int64(m)
		c.credit = 0
		c.send(func() error { return c.frame.WriteWindowUpdate(0, m) })
	}
}

// push queues a piece, and is the sender's last when end or reset says so. mu is held.
func (h *half) push(p *proxy, next piece) {
	if next.end || next.reset {
		h.ended = true
	}
	last := len(h.queue) - 1
	switch {
	case next.fields == nil && !next.reset && last >= 0 && h.queue[last].fields == nil && !h.queue[last].end:
		h.queue[last].data = append(h.queue[last].data, next.data...)
		h.queue[last].end = next.end
	case len(h.queue) >= maxInterim:
		p.endLocked(http2.ConnectionError(http2.ErrCodeEnhanceYourCalm))
		return
	default:
		h.queue = append(h.queue, next)
	}
	if p.held += next.size; p.held > maxHeld {
		p.endLocked(http2.ConnectionError(http2.ErrCodeEnhanceYourCalm))
		return
	}
	if c := h.receiver(p); c != nil {
		if !h.waits {
			h.waits = true
			c.active = append(c.active, h)
		}
		c.changed.Broadcast()
	}
}

// drop forgets what waits in h. mu is held.
func (h *half) drop(p *proxy) {
	n := 0
	for _, piece := range h.queue {
		n += len(piece.data)
		p.held -= piece.size
	}
	h.queue = nil
	if n > 0 {
		h.from.returned(n)
	}
	if c := h.receiver(p); c != nil && h.waits {
		c.active = slices.DeleteFunc(c.active, func(other *half) bool { return other == h })
	}
	h.waits = false
}

// settle lets go of what is over. mu is held.
func (st *stream) settle(p *proxy) {
	if st.up.done && st.down.ended {
		st.leave()
	}
	if st.up.done && st.down.done {
		delete(p.streams, st.id)
	}
}

// leave is the end of st for its backend. mu is held.
func (st *stream) leave() {
	c := st.back
	if c == nil {
		return
	}
	delete(c.byID, st.backID)
	st.back = nil
	c.changed.Broadcast() // another one may begin
	if c.leaving && len(c.byID) == 0 {
		c.flushAndClose()
	}
}

// flushAndClose closes c behind what is queued. mu is held.
func (c *peer) flushAndClose() {
	c.hangUp = true
	c.changed.Broadcast()
}

// cancel ends st without a word to either. mu is held.
func (st *stream) cancel(p *proxy) {
	st.up.drop(p)
	st.down.drop(p)
	st.up.done, st.down.done, st.up.ended, st.down.ended = true, true, true, true
	st.settle(p)
}

// read acts on what c says, until it ends.
func (c *peer) read() {
	for {
		f, err := c.frame.ReadFrame()
		if err == nil {
			err = c.take(f)
		}
		var one http2.StreamError
		if errors.As(err, &one) {
			c.p.mu.Lock()
			c.fail(one.StreamID, one.Code)
			c.p.mu.Unlock()
			continue
		}
		if err != nil {
			c.lost(err)
			return
		}
	}
}

// fail ends one stream for something that c did. mu is held.
func (c *peer) fail(id uint32, code http2.ErrCode) {
	c.sendReset(id, code)
	st := c.stream(id)
	if st == nil {
		return
	}
	if c == c.p.front {
		if st.back != nil && st.backID != 0 {
			st.back.sendReset(st.backID, http2.ErrCodeCancel)
		}
	} else {
		c.p.front.sendReset(st.id, code)
	}
	st.cancel(c.p)
}

// stream is the one that c gives this number. mu is held.
func (c *peer) stream(id uint32) *stream {
	if c == c.p.front {
		return c.p.streams[id]
	}
	return c.byID[id]
}

// says is the direction in which c speaks.
func (c *peer) says(st *stream) *half {
	if c == c.p.front {
		return &st.up
	}
	return &st.down
}

// hears is the other one.
func (c *peer) hears(st *stream) *half {
	if c == c.p.front {
		return &st.down
	}
	return &st.up
}

func (c *peer) take(f http2.Frame) error {
	p := c.p
	if f, ok := f.(*http2.HeadersFrame); ok {
		return c.head(f)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := f.Header().StreamID
	st := c.stream(id)
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f, st)
	case *http2.SettingsFrame:
		if f.IsAck() {
			return nil
		}
		var all []http2.Setting
		_ = f.ForeachSetting(func(s http2.Setting) error {
			all = append(all, s)
			return nil
		})
		return c.settings(all)
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			c.send(func() error { return c.frame.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		switch {
		case id == 0:
			if c.window += int64(f.Increment); c.window > 1<<31-1 {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
		case st != nil:
			h := c.hears(st)
			if h.window += int64(f.Increment); h.window > 1<<31-1 {
				return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl}
			}
		}
		c.changed.Broadcast()
	case *http2.RSTStreamFrame:
		if st != nil {
			c.reset(st, f.ErrCode)
		}
	case *http2.GoAwayFrame:
		if c != p.front {
			c.goAway(f.LastStreamID)
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // a priority, or an extension's
}

// settings applies c's. mu is held.
func (c *peer) settings(all []http2.Setting) error {
	table := uint32(tableSize)
	for _, s := range all {
		if err := s.Valid(); err != nil {
			return err
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			more := int64(s.Val) - c.initial
			c.initial = int64(s.Val)
			if c == c.p.front {
				for _, st := range c.p.streams {
					st.down.window += more
				}
			}
			for _, st := range c.byID {
				st.up.window += more
			}
		case http2.SettingMaxConcurrentStreams:
			c.limit = min(s.Val, 1<<31)
		case http2.SettingHeaderTableSize:
			table = min(s.Val, tableSize)
			c.send(func() error {
				c.encode.SetMaxDynamicTableSizeLimit(table)
				return nil
			})
		}
	}
	c.send(c.frame.WriteSettingsAck)
	return nil
}

// reset is c's end of st. A caller's has effect at once; behind a backend's may be an answer that is not passed on yet. mu is held.
func (c *peer) reset(st *stream, code http2.ErrCode) {
	if c == c.p.front {
		if st.back != nil && st.backID != 0 {
			st.back.sendReset(st.backID, code)
		}
		st.cancel(c.p)
		return
	}
	st.up.drop(c.p)
	st.up.done, st.up.ended = true, true
	st.down.push(c.p, piece{reset: true, code: code})
	st.down.done = false
	st.settle(c.p)
}

// data takes what c says in st. mu is held.
func (c *peer) data(f *http2.DataFrame, st *stream) error {
	size := int(f.Header().Length)
	if c.given -= int64(size); c.given < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if st == nil {
		if c == c.p.front && f.StreamID > c.p.lastID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.returned(size)
		return nil
	}
	h := c.says(st)
	if h.ended { // said before it knew
		c.returned(size)
		return nil
	}
	if h.given -= int64(size); h.given < 0 {
		c.returned(size)
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	data := f.Data()
	if padding := size - len(data); padding > 0 {
		h.returned(padding)
	}
	if len(data) == 0 && !f.StreamEnded() {
		return nil
	}
	h.push(c.p, piece{data: bytes.Clone(data), end: f.StreamEnded()})
	st.settle(c.p)
	return nil
}

// head reads on until the head is whole, and takes it.
func (c *peer) head(f *http2.HeadersFrame) error {
	id, end := f.StreamID, f.StreamEnded()
	c.fields, c.size = nil, 0
	block, whole := f.HeaderBlockFragment(), f.HeadersEnded()
	for total := 0; ; {
		if total += len(block); total > maxFields {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if _, err := c.decode.Write(block); err != nil {
			return http2.ConnectionError(http2.ErrCodeCompression)
		}
		if whole {
			break
		}
		next, err := c.frame.ReadFrame()
		if err != nil {
			return err
		}
		more, ok := next.(*http2.ContinuationFrame)
		if !ok {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		block, whole = more.HeaderBlockFragment(), more.HeadersEnded()
	}
	if err := c.decode.Close(); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	said := piece{fields: c.fields, size: c.size, end: end}
	if said.fields == nil {
		said.fields = []hpack.HeaderField{} // odd, and not ours to judge
	}
	c.fields = nil

	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	st := c.stream(id)
	switch {
	case c == p.front && id > p.lastID && id%2 == 1:
		p.lastID = id
		switch {
		case said.size > maxFields:
			c.sendReset(id, http2.ErrCodeEnhanceYourCalm)
		case len(p.streams) >= maxStreams:
			c.sendReset(id, http2.ErrCodeRefusedStream)
		default:
			p.begin(id, said)
		}
		return nil
	case st == nil && c == p.front && id > p.lastID:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case st == nil || c.says(st).ended: // of a stream that is over
		return nil
	case said.size > maxFields:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	c.says(st).push(p, said)
	st.settle(p)
	return nil
}

// begin takes a new request. mu is held.
func (p *proxy) begin(id uint32, head piece) {
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
		if route.Filter.Matches(target, fields) {
			c := p.backs[route.Name]
			if c == nil {
				c = p.newPeer(route.Name, nil)
				c.laptop = true
				p.backs[route.Name] = c
				p.peers = append(p.peers, c)
				p.wg.Go(func() { c.serve(route.Dial) })
			}
			st.back = c
			st.up.push(p, head)
			return
		}
	}
	st.back = p.toOriginal()
	st.up.push(p, head)
}

// toOriginal is the original's connection, made anew where it is not there. mu is held.
func (p *proxy) toOriginal() *peer {
	if p.original == nil {
		c := p.newPeer("", nil)
		p.original = c
		p.peers = append(p.peers, c)
		p.wg.Go(func() { c.serve(p.s.r.Original) })
	}
	return p.original
}

// serve connects, and reads what comes.
func (c *peer) serve(dial func(context.Context) (net.Conn, error)) {
	conn, err := dial(c.p.s.ctx)
	if err != nil {
		c.lost(err)
		return
	}
	c.p.mu.Lock()
	if c.closed {
		c.p.mu.Unlock()
		_ = conn.Close()
		return
	}
	c.use(conn)
	c.p.mu.Unlock()
	_ = conn.SetDeadline(time.Now().Add(settingsPatience))
	_, err = conn.Write(c.p.hello)
	if err == nil {
		_, err = c.greet()
	}
	if err != nil {
		c.lost(fmt.Errorf("no HTTP/2: %w", err))
		return
	}
	_ = conn.SetDeadline(time.Time{})
	c.p.wg.Go(c.write)
	c.read()
}

// retire has new streams go elsewhere. mu is held.
func (c *peer) retire() {
	c.leaving = true
	if c.p.original == c {
		c.p.original = nil
	}
	if c.laptop && c.p.backs[c.route] == c {
		delete(c.p.backs, c.route)
	}
}

// waiting are the streams that have not begun on c. mu is held.
func (c *peer) waiting() (all []*stream) {
	for _, st := range c.p.streams {
		if st.back == c && st.backID == 0 {
			all = append(all, st)
		}
	}
	slices.SortFunc(all, func(a, b *stream) int { return int(a.id) - int(b.id) })
	return all
}

// toOriginalInstead takes a stream that has not begun from a laptop. mu is held.
func (p *proxy) toOriginalInstead(st *stream) {
	st.back = p.toOriginal()
	st.back.active = append(st.back.active, &st.up)
	st.back.changed.Broadcast()
}

// goAway is a backend's: it has not seen the streams above last, and takes no new ones. mu is held.
func (c *peer) goAway(last uint32) {
	c.retire()
	for id, st := range c.byID {
		if id > last {
			c.reset(st, http2.ErrCodeRefusedStream)
		}
	}
	for _, st := range c.waiting() { // the next answer may be the same: the caller knows how often to try
		c.refuse(st)
	}
	if len(c.byID) == 0 {
		c.flushAndClose()
	}
}

// refuse tells the caller that st was not begun, so that it may be tried again. mu is held.
func (c *peer) refuse(st *stream) {
	c.p.front.sendReset(st.id, http2.ErrCodeRefusedStream)
	st.cancel(c.p)
}

// lost is the end of c.
func (c *peer) lost(err error) {
	p := c.p
	if c == p.front {
		var wrong http2.ConnectionError
		switch {
		case errors.Is(err, http2.ErrFrameTooLarge):
			wrong = http2.ConnectionError(http2.ErrCodeFrameSize)
		case errors.Is(err, errHungUp):
			// It may be sending, and would lose what it was told in a reset: read ends the rest.
			_ = c.conn.SetReadDeadline(time.Now().Add(linger))
			closeWrite(p.s.client)
			return
		case !errors.As(err, &wrong):
			p.end(err)
			return
		}
		p.farewell(http2.ErrCode(wrong))
		_ = c.conn.SetReadDeadline(time.Now().Add(linger))
		_, _ = io.Copy(io.Discard, c.conn)
		p.end(err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peers = slices.DeleteFunc(p.peers, func(other *peer) bool { return other == c })
	if c.closed {
		return
	}
	p.s.r.log("backend lost", "route", c.route, "error", err)
	began := c.up
	c.retire()
	c.close()
	waiting := c.waiting()
	if !began && c.laptop {
		for _, st := range waiting {
			p.toOriginalInstead(st)
		}
		return
	}
	alone := true // then the caller sees what it would see without us
	for _, st := range p.streams {
		alone = alone && st.back == c
	}
	for _, st := range waiting {
		if !alone {
			c.refuse(st)
		}
	}
	for _, st := range c.byID {
		st.up.drop(p)
		st.up.done, st.up.ended = true, true
		st.down.push(p, piece{reset: true, hangUp: alone, code: http2.ErrCodeInternal})
		st.down.done = false
		st.settle(p)
	}
	if alone && len(waiting) > 0 {
		p.front.flushAndClose()
	}
}
