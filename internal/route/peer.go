package route

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer is one of the connections.
type peer struct {
	p      *proxy
	route  string
	laptop bool        // it is route's
	takes  func() bool // the laptop's
	conn   net.Conn
	frame  *http2.Framer
	out    *bufio.Writer
	// The reader's:
	decode *hpack.Decoder
	fields []hpack.HeaderField
	length int  // of all fields
	cost   int  // what fields take of the memory, until they are somebody else's
	full   bool // there was none for one of them
	// The writer's:
	encode *hpack.Encoder
	table  uint32 // the most of encode's table
	block  bytes.Buffer

	// Under p.mu:
	changed      sync.Cond
	control      []func() error // frames to be written before all else
	active       []*half        // what has something to send here
	byID         map[uint32]*stream
	nextID       uint32
	limit        uint32      // of streams
	window       int64       // what it takes now
	initial      int64       // what it takes of a new stream
	given        int64       // what it may send now
	held         int64       // what it sent that is not passed on yet
	size         int64       // the memory for both: at least base, while it is open
	base         int64       // what given is to be
	tries        *time.Timer // refills again; nil: not now
	streamWindow int64       // what is held of one stream
	up           bool        // it has said that it speaks HTTP/2
	leaving      bool        // it takes no new streams
	closed       bool
	hangUp       bool // close when control is written
}

func (c *peer) use(conn net.Conn) {
	c.conn = conn
	c.out = bufio.NewWriterSize(conn, smallBuffer)
	c.frame = http2.NewFramer(c.out, bufio.NewReaderSize(conn, smallBuffer))
	c.frame.SetMaxReadFrameSize(frameSize)
	c.frame.SetReuseFrames()
}

func (c *peer) field(f hpack.HeaderField) {
	cost := len(f.Name) + len(f.Value) + fieldMemory
	if c.length += int(f.Size()); c.length > maxFields || c.full {
		return
	}
	if c.full = !c.p.s.memory.take(cost); !c.full {
		c.fields = append(c.fields, f)
		c.cost += cost
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
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: frameSize}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.streamWindow)},
			headLimit(c.p.asked()))
	})
	c.refill()
	return all, c.settings(all)
}

// close closes c's connection. mu is held.
func (c *peer) close() {
	c.closed = true
	if c.tries != nil {
		c.tries.Stop()
	}
	c.refill()
	c.p.s.memory.give(max(0, len(c.control)-freeControl) * controlMemory)
	c.control = nil
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.changed.Broadcast()
}

// send queues a frame. mu is held.
func (c *peer) send(frame func() error) {
	if c.closed {
		return
	}
	c.control = append(c.control, frame)
	c.changed.Broadcast()
	n := len(c.control)
	if n > freeControl && !c.p.s.memory.take(controlMemory) || n > maxControl { // it asks and does not read
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
		var job func() error
		for !c.closed {
			if job = c.next(); job == nil && c.out.Buffered() > 0 {
				job = c.out.Flush
			}
			if job != nil {
				break
			}
			c.changed.Wait()
		}
		c.p.mu.Unlock()
		if job == nil {
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
		if len(c.control) > freeControl {
			c.p.s.memory.give(controlMemory)
		}
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
			h.window, st.down.given, st.down.from = c.initial, c.streamWindow, c
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
		fields, size, end := first.fields, first.size, first.end
		h.done = end
		first.size = 0 // it is held until it is written
		h.pop(c.p)
		return func() error {
			err := c.writeFields(id, fields, end)
			c.p.mu.Lock()
			defer c.p.mu.Unlock()
			c.p.letHead(size)
			return err
		}
	}
	n := int(min(int64(len(first.data)), frameSize, h.window, c.window))
	if n <= 0 && len(first.data) > 0 {
		return nil
	}
	data, end := first.data[:n], first.end && n == len(first.data)
	first.data = first.data[n:]
	h.window -= int64(n)
	c.window -= int64(n)
	if len(first.data) == 0 {
		h.done = end
		h.pop(c.p)
	}
	return func() error { return c.frame.WriteData(id, end, data) }
}

func (c *peer) writeFields(id uint32, fields []hpack.HeaderField, end bool) error {
	c.block.Reset()
	large := false
	for _, f := range fields {
		if err := c.encode.WriteField(f); err != nil {
			return err
		}
		large = large || len(f.Name)+len(f.Value) > keptField
	}
	if large { // its buffer stays as large
		c.renewEncoder()
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
	if c.block.Cap() > frameSize { // one large head among many small ones
		c.block = bytes.Buffer{}
	}
	return err
}

// renewEncoder makes an encoder that begins with an empty table, and says so.
func (c *peer) renewEncoder() {
	c.encode = hpack.NewEncoder(&c.block)
	c.encode.SetMaxDynamicTableSize(0)
	c.encode.SetMaxDynamicTableSizeLimit(tableSize)
	c.encode.SetMaxDynamicTableSize(c.table)
}

// refill opens c's window as far again as the memory lasts, and gives back what it needs no more. What is held of some streams
// takes nothing from the others so. mu is held.
func (c *peer) refill() {
	needs := c.held // for ever: what was said before c was closed
	if !c.closed {
		if lack := c.base - c.given; lack >= c.base/4 {
			more := min(c.given+c.held+lack, maxWindow) - c.size
			switch {
			case more <= 0:
			case c.p.s.memory.reserve(int(more)):
				c.size += more
			default:
				c.refillLater()
			}
			if lack = min(lack, c.size-c.given-c.held); lack > 0 {
				c.given += lack
				c.send(func() error { return c.frame.WriteWindowUpdate(0, uint32(lack)) })
			}
		}
		needs = max(c.base, c.given+c.held)
	}
	if spare := c.size - needs; spare > 0 {
		c.size -= spare
		c.p.s.memory.release(int(spare))
	}
}

// refillLater tries again, since nobody tells of what others give back. mu is held.
func (c *peer) refillLater() {
	if c.tries != nil {
		return
	}
	c.tries = time.AfterFunc(refillPause, func() {
		c.p.mu.Lock()
		defer c.p.mu.Unlock()
		if c.tries = nil; !c.closed {
			c.refill()
		}
	})
}

// flushAndClose closes c behind what is queued. mu is held.
func (c *peer) flushAndClose() {
	c.hangUp = true
	c.changed.Broadcast()
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
				c.table = table
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
	defer c.refill()
	if st == nil {
		if c == c.p.front && f.StreamID > c.p.lastID {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	h := c.says(st)
	if h.ended { // said before it knew
		return nil
	}
	if h.given -= int64(size); h.given < 0 {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	data := f.Data()
	c.held += int64(len(data))
	if padding := size - len(data); padding > 0 {
		h.returned(padding)
	}
	if len(data) == 0 && !f.StreamEnded() {
		return nil
	}
	h.push(c.p, piece{data: bytes.Clone(data), whole: len(data), end: f.StreamEnded()})
	st.settle(c.p)
	return nil
}

// head reads on until the head is whole, and takes it.
func (c *peer) head(f *http2.HeadersFrame) error {
	id, end, p := f.StreamID, f.StreamEnded(), c.p
	c.fields, c.length, c.cost, c.full = []hpack.HeaderField{}, 0, 0, false // none at all is odd, and not ours to judge
	giveUp := func() {
		p.s.memory.give(c.cost)
		c.fields, c.cost = nil, 0
	}
	defer giveUp()
	if err := c.readFields(f); err != nil {
		return err
	}
	if c.cost > frameSize && !c.full { // what it is when it is written counts too, from a frame on
		if c.full = !p.s.memory.take(c.cost); !c.full {
			c.cost *= 2
		}
	}
	refused := http2.ErrCode(0)
	switch {
	case c.length > maxFields:
		refused = http2.ErrCodeEnhanceYourCalm
	case c.full:
		refused = http2.ErrCodeRefusedStream
	}
	said := piece{fields: c.fields, size: c.cost, end: end}

	p.mu.Lock()
	defer p.mu.Unlock()
	st := c.stream(id)
	switch {
	case c == p.front && id > p.lastID && id%2 == 1:
		p.lastID = id
		if refused == 0 && (len(p.streams) >= maxStreams || !p.begin(id, said)) {
			refused = http2.ErrCodeRefusedStream
		}
		if refused != 0 {
			giveUp()
			c.sendReset(id, refused)
			return nil
		}
	case st == nil && c == p.front && id > p.lastID:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case st == nil || c.says(st).ended: // of a stream that is over
		return nil
	case refused != 0:
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeEnhanceYourCalm}
	default:
		c.says(st).push(p, said)
		st.settle(p)
	}
	c.cost = 0
	return nil
}

// readFields decodes the head that begins with f. One of several frames is put together first: the decoder would keep its buffer
// for a string that is cut for ever.
func (c *peer) readFields(f *http2.HeadersFrame) error {
	block, held := f.HeaderBlockFragment(), 0
	defer func() { c.p.s.memory.give(held) }()
	for whole, total := f.HeadersEnded(), len(block)+frameHeader; !whole; {
		if held == 0 {
			block = bytes.Clone(block)
			if held = len(block); !c.p.s.memory.take(held) {
				held = 0
				return errNoRoom
			}
		}
		next, err := c.frame.ReadFrame()
		if err != nil {
			return err
		}
		more, ok := next.(*http2.ContinuationFrame)
		if !ok {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		part := more.HeaderBlockFragment()
		if total += len(part) + frameHeader; total > maxFields {
			return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
		}
		if !c.p.s.memory.take(len(part)) {
			return errNoRoom
		}
		held += len(part)
		block, whole = append(block, part...), more.HeadersEnded()
	}
	_, err := c.decode.Write(block)
	if err == nil && held > 0 { // it refers to what it read last: be that a field (:method GET) that nobody is told of
		c.decode.SetEmitEnabled(false)
		_, err = c.decode.Write([]byte{0x82})
		c.decode.SetEmitEnabled(true)
	}
	if err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	if err := c.decode.Close(); err != nil {
		return http2.ConnectionError(http2.ErrCodeCompression)
	}
	return nil
}

// errNoRoom ends a connection: whoever cannot read a head whole can read none behind it.
var errNoRoom = http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)

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
		if c.deaf(err) {
			c.p.s.r.http2(c.route, false)
		}
		c.lost(fmt.Errorf("no HTTP/2: %w", err))
		return
	}
	if c.laptop {
		c.p.s.r.http2(c.route, true)
	}
	_ = conn.SetDeadline(time.Time{})
	c.p.wg.Go(c.write)
	c.read()
}

// deaf says whether err, of a connection's beginning, shows that a laptop's process speaks no HTTP/2: not when it is silent, as it
// is at a breakpoint, or when the laptop has gone.
func (c *peer) deaf(err error) bool {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	return c.laptop && !c.closed && !errors.Is(err, os.ErrDeadlineExceeded) && c.takes()
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

// stepAside is retire for a laptop that takes no requests now: what has not begun there goes to the original. mu is held.
func (c *peer) stepAside() {
	waiting := c.waiting()
	c.retire()
	for _, st := range waiting {
		c.p.toOriginalInstead(st)
	}
	if len(c.byID) == 0 {
		c.flushAndClose()
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
	p.gone(c)
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
