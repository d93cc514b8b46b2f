package route

import (
	"cmp"
	"sync"
	"sync/atomic"
)

const (
	// maxMemory is what all connections may hold together, beside what each takes while it is idle: 4,096 idle ones with their
	// 28 KiB, and this, are below the proxy's limit for its memory (cmd/proxy), with room for the tunnel.
	maxMemory = 64 << 20
	// freeMemory of each connection is counted with an idle one: so much is read of each, whatever others hold.
	freeMemory = 2 * smallBuffer
)

// Budget is the memory that the connections of a process hold together: what was read and not yet passed on, and the windows of
// HTTP/2, since whoever was let send may do so at any time. When it is spent, less is read ahead, windows stay small, and
// connections that need more than that at their start go to the original unread. The zero value is ready for use.
type Budget struct {
	// Size is in bytes; zero means 64 MiB. Set it before the first use.
	Size int64

	used atomic.Int64
}

// Used is how much is taken, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

func (b *Budget) size() int64 { return cmp.Or(b.Size, maxMemory) }

func (b *Budget) take(n int64) bool {
	for {
		used := b.used.Load()
		if used+n > b.size() {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

func (b *Budget) give(n int64) { b.used.Add(-n) }

// share is one connection's part of a Budget. Whatever became of the connection, close gives all of it back.
type share struct {
	budget *Budget

	mu     sync.Mutex
	held   int64 // take's
	kept   int64 // reserve's
	spare  int64 // ensure's
	taken  int64 // of the budget
	closed bool
}

// take has n bytes more be held. The first freeMemory bytes, and what ensure has, are there in any case.
func (s *share) take(n int) bool { return s.change(n, 0, 0) }

// give is what take had, or less where not all that is held could be taken.
func (s *share) give(n int) { s.change(-n, 0, 0) }

// reserve has n bytes that take does not use, until release.
func (s *share) reserve(n int) bool { return s.change(0, n, 0) }

func (s *share) release(n int) { s.change(0, -n, 0) }

// ensure has the next n bytes be there for take.
func (s *share) ensure(n int) bool { return s.change(0, 0, n) }

func (s *share) change(held, kept, spare int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	h, k, a := max(0, s.held+int64(held)), max(0, s.kept+int64(kept)), max(0, s.spare+int64(spare))
	more := k + max(a, h-freeMemory) - s.taken
	switch {
	case more > 0 && !s.budget.take(more):
		return false
	case more < 0:
		s.budget.give(-more)
	}
	s.held, s.kept, s.spare = h, k, a
	s.taken += more
	return true
}

// clear gives all back.
func (s *share) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.give(s.taken)
	s.held, s.kept, s.spare, s.taken = 0, 0, 0, 0
}

// close gives all back; nothing is to be had from then on.
func (s *share) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.give(s.taken)
	s.taken, s.closed = 0, true
}
