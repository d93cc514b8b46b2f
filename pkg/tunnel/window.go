package tunnel

import "sync"

const (
	// firstWindow is what a stream may have sent before the other end has read anything of it. It is a
	// connection's first flight, what each stream that nobody reads may hold, and what yamux starts with.
	firstWindow = 256 << 10
	// maxWindow is what one stream may grow to: a window's worth travels per round trip, and 16 MiB fill 1 Gbit/s at 130 ms.
	// It is no queue before a slow link: what is in flight is bounded for the whole session.
	maxWindow = 16 << 20
	// maxBudget is what all windows of a session may have grown by: the memory that streams which stopped reading hold.
	maxBudget = 64 << 20
)

// window is what one stream lets the other end send: up to limit, counted from the stream's start. It grows
// with use: whoever has read half of it gets a window twice as large, while the session's budget lasts.
type window struct {
	mu    sync.Mutex
	got   uint64 // bytes that have arrived
	taken uint64 // bytes read by us
	limit uint64
	size  uint64
	over  bool
}

// arrived counts n bytes; false when there was no room for them.
func (w *window) arrived(n uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got += uint64(n)
	return w.got <= w.limit
}

// read counts n bytes that were read, and says how far the other end may send when it is time to tell it.
func (w *window) read(n int, b *budget) (limit uint64, changed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.taken += uint64(n)
	if w.over || w.limit-w.taken > w.size/2 {
		return 0, false
	}
	if more := min(w.size, maxWindow-w.size); b.take(more) {
		w.size += more
	}
	w.limit = w.taken + w.size
	return w.limit, true
}

// idle says whether everything that is known to be on its way was read.
func (w *window) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got == w.taken
}

// end gives back what w has of b.
func (w *window) end(b *budget) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.over = true
		b.give(w.size - firstWindow)
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
