package route

import (
	"slices"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

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
	waits  bool  // is in active
	window int64 // what the receiver takes
	given  int64 // what the sender may send
	credit int64 // what it may send again and was not told yet
	ended  bool  // the sender has said its last
	done   bool  // the receiver was told
}

// piece is something to be passed on: fields, bytes, or an end by reset.
type piece struct {
	fields []hpack.HeaderField
	size   int // what fields take of the memory
	data   []byte
	whole  int // the length of data with what was passed on, whose memory is still there
	end    bool
	reset  bool
	code   http2.ErrCode
	hangUp bool // with reset: the caller's connection ends, as the backend's has
}

// pop takes the first piece away. mu is held.
func (h *half) pop(p *proxy) {
	h.let(p, h.queue[0])
	h.queue[0] = piece{}
	if h.queue = h.queue[1:]; len(h.queue) == 0 {
		h.queue = nil
	}
}

// let counts a piece that is held no longer. mu is held.
func (h *half) let(p *proxy, gone piece) {
	p.letHead(gone.size)
	if gone.whole > 0 {
		h.from.held -= int64(gone.whole)
		h.returned(gone.whole)
	}
}

// letHead counts a head that is held no longer. mu is held.
func (p *proxy) letHead(size int) {
	p.held -= size
	p.s.memory.give(size)
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
	c.refill()
	h.credit += int64(n)
	if h.credit >= c.streamWindow/4 && !h.ended {
		m := h.credit
		h.given += m
		h.credit = 0
		c.send(func() error { return c.frame.WriteWindowUpdate(id, uint32(m)) })
	}
}

// push queues a piece, and is the sender's last when end or reset says so. mu is held.
func (h *half) push(p *proxy, next piece) {
	if next.end || next.reset {
		h.ended = true
	}
	last := len(h.queue) - 1
	switch {
	case next.fields == nil && !next.reset && last >= 0 && h.queue[last].fields == nil && !h.queue[last].end && h.queue[last].whole+len(next.data) <= frameSize:
		h.queue[last].data = append(h.queue[last].data, next.data...)
		h.queue[last].whole += next.whole
		h.queue[last].end = next.end
	case len(h.queue) >= maxPieces:
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
	queue := h.queue
	h.queue, h.ended = nil, true
	for _, piece := range queue {
		h.let(p, piece)
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
	if st.up.done && st.down.done && p.streams[st.id] == st {
		delete(p.streams, st.id)
		p.s.memory.give(streamMemory)
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

// cancel ends st without a word to either. mu is held.
func (st *stream) cancel(p *proxy) {
	st.up.drop(p)
	st.down.drop(p)
	st.up.done, st.down.done, st.up.ended, st.down.ended = true, true, true, true
	st.settle(p)
}
