package tunnel

import (
	"sync"
	"time"
)

const (
	// firstWindow is what a stream may have sent before the other end has read anything of it. It is a
	// connection's first flight, what each stream that nobody reads may hold, and what yamux starts with.
	firstWindow = 256 << 10
	// maxWindow is what one stream may grow to: a window's worth travels per round trip, and 16 MiB fill 1 Gbit/s at 130 ms.
	// It is no queue before a slow link: what is in flight is bounded for the whole session.
	maxWindow = 16 << 20
	// leastWindow is what that of a stream which is read shrinks to when memory is scarce. Half of it is the least room of one of which all is
	// read, which has to be enough for a datagram.
	leastWindow = 4 * maxFrame
	// maxBudget is what all windows of a session may have grown by, in memory: streams that are read slowly may fill them, and
	// must stay below what a hold has for them, with room for others.
	maxBudget = 64 << 20
	// muxGrowth is how much memory yamux takes for a byte that has arrived: its buffers double.
	muxGrowth = 2
)

// window is what one stream lets the other end send: up to limit, counted from the stream's start. It grows
// with use: whoever has read half of it gets a window twice as large, while the session's budget lasts. It counts, too,
// what memory the stream's unread bytes take.
type window struct {
	mu     sync.Mutex
	got    uint64 // bytes that have arrived
	byMux  uint64 // of them, the first, which came by yamux; the others by the bulk lane
	lent   uint64 // bytes that a splice has in a buffer of its own, behind those that are taken
	taken  uint64 // bytes that were read, and by a splice also written
	limit  uint64
	size   uint64
	grown  uint64 // what it has of the budget
	closed bool   // nobody here reads any more
	over   bool   // ended by both

	held    *hold
	peak    uint64    // the most that yamux had in the buffer that it has now
	counted uint64    // what held has counted
	since   time.Time // when something was taken last, or when what is held began to be
}

// arrived counts n bytes; false when there was no room for them.
func (w *window) arrived(n uint32, byMux bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.got == w.taken {
		w.since = time.Now()
	}
	w.got += uint64(n)
	if byMux {
		w.byMux += uint64(n)
	}
	w.count()
	return w.got <= w.limit
}

// lend counts n bytes that are in a splice's buffer until read takes them.
func (w *window) lend(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lent += uint64(n)
	w.count()
}

// read counts n bytes that were read, and says how far the other end may send when it is time to tell it. Of what was lent,
// that is the first.
func (w *window) read(n int, b *budget) (limit uint64, changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken += uint64(n)
	w.lent -= min(w.lent, uint64(n))
	w.since = time.Now()
	w.count()
	if w.closed || w.limit-w.taken > w.size/2 {
		return 0, false
	}
	mux, lane := w.unread()
	switch more := min(w.size, maxWindow-w.size); {
	case mux+lane > w.size/4 && w.held.scarce(): // its reader is slow: rather this than that somebody is reset
		w.size = max(w.size/2, leastWindow)
		b.give(w.grown / 2)
		w.grown -= w.grown / 2
	case w.size < firstWindow:
		w.size += more
	case w.got == w.byMux && b.take(more*muxGrowth):
		w.size += more
		w.grown += more * muxGrowth
	case w.got != w.byMux && b.take(more):
		w.size += more
		w.grown += more
	}
	if w.taken+w.size <= w.limit { // what was allowed stays allowed
		return 0, false
	}
	w.limit = w.taken + w.size
	return w.limit, true
}

// unread is how many bytes yamux and the bulk lane have. mu is held.
func (w *window) unread() (mux, lane uint64) {
	gone := w.taken + w.lent
	mux = w.byMux - min(w.byMux, gone)
	return mux, w.got - min(w.got, gone+mux)
}

// waiting is how many bytes have arrived and were not lent or read.
func (w *window) waiting() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	mux, lane := w.unread()
	return mux + lane
}

// count tells held what memory is in use. mu is held.
func (w *window) count() {
	var memory uint64
	mux, lane := w.unread()
	w.peak = max(w.peak, mux)
	if !w.over {
		memory += muxGrowth * w.peak
	}
	if !w.over && !w.closed && lane > 0 {
		memory += lane + spliceBuffer
	}
	if w.lent > smallRead {
		memory += spliceBuffer
	}
	w.held.add(int64(memory) - int64(w.counted))
	w.counted = memory
}

// spare is how many bytes yamux's buffer has, and whether nobody reads them any more.
func (w *window) spare() (left uint64, closed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left, _ = w.unread()
	return left, w.closed
}

// dropped notes that n bytes, which nobody reads, were taken out of yamux's buffer.
func (w *window) dropped(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken += uint64(n)
	w.count()
}

// shrunk notes that yamux has freed its buffer, or has a new one for what has arrived meanwhile.
func (w *window) shrunk() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.peak, _ = w.unread()
	w.count()
}

// stalled is the memory that is in use for what nobody has read, and since when.
func (w *window) stalled() (memory uint64, since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.got == w.taken || w.closed {
		return 0, time.Time{}
	}
	return w.counted, w.since
}

// close says that nobody here reads any more.
func (w *window) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.count()
}

// end gives back what w has of b, and of what is held all but a splice's buffer.
func (w *window) end(b *budget) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.closed, w.over = true, true
		w.count()
		b.give(w.grown)
	}
}

// budget is the memory that the windows of one session share.
type budget struct {
	mu   sync.Mutex
	used uint64
}

func (b *budget) take(n uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+n > maxBudget {
		return false
	}
	b.used += n
	return true
}

func (b *budget) give(n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}
