package tunnel

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// What a session holds unread: each stream may send firstWindow before anybody has read anything of it, so a thousand callers who
// ask for much and read nothing could have the process killed for its memory. The pod has 256 MiB for everything.
const (
	podHold    = 96 << 20
	laptopHold = 512 << 20
	// holdFree is the part of it, an eighth, that is made free when streams are reset, so that this need not be done for each frame.
	holdFree = 8
	// holdPause is how long at least lies between two looks at all streams, which take milliseconds when there are thousands.
	holdPause = 10 * time.Millisecond
	// spareEvery is how long at least lies between two looks for empty buffers, while there is room still.
	spareEvery = time.Second
	// holdTold is how often the log says it, at most.
	holdTold = 10 * time.Second
)

// errUnread is why a stream was reset that held memory others needed.
var errUnread = errors.New("its reader takes nothing, and others need the memory")

// Memory is what the sessions of one process hold together. The zero value is ready; the limit is that of a pod, or of a laptop.
type Memory struct {
	mu    sync.Mutex              // for who comes or goes
	holds atomic.Pointer[[]*hold] // of the sessions there are; nil: none
}

// all are the holds there are; not to be changed.
func (m *Memory) all() []*hold {
	if list := m.holds.Load(); list != nil {
		return *list
	}
	return nil
}

func (m *Memory) used() (sum int64) {
	for _, h := range m.all() {
		sum += h.used.Load()
	}
	return sum
}

// change makes what it returns the holds there are.
func (m *Memory) change(to func([]*hold) []*hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := to(slices.Clone(m.all()))
	m.holds.Store(&list)
}

// hold counts the memory of what has arrived on a session's streams and was not passed on.
type hold struct {
	memory *Memory // nil until init: the session is alone
	limit  int64   // in bytes, of all that share memory
	used   atomic.Int64
	full   chan struct{} // capacity 1: memory is scarce
}

func (h *hold) init(laptop bool) {
	h.full = make(chan struct{}, 1)
	if h.limit = podHold; laptop {
		h.limit = laptopHold
	}
	if h.memory == nil {
		h.memory = new(Memory)
	}
	h.memory.change(func(list []*hold) []*hold { return append(list, h) })
}

// leave has what h holds count no more: its session is over.
func (h *hold) leave() {
	h.memory.change(func(list []*hold) []*hold { return slices.DeleteFunc(list, func(o *hold) bool { return o == h }) })
}

func (h *hold) add(n int64) {
	if h.used.Add(n); n <= 0 || !h.scarce() {
		return
	}
	for _, o := range h.memory.all() { // whoever has most may be one to whom nothing comes any more
		select {
		case o.full <- struct{}{}:
		default:
		}
	}
}

// scarce says whether more than half of the limit is used.
func (h *hold) scarce() bool { return h.memory.used() > h.limit/2 }

// excess is how much the session is to make free: of what is too much, and an eighth of the limit, not more than it has above its share.
func (h *hold) excess() int64 {
	share := h.limit / int64(max(1, len(h.memory.all())))
	over, above := h.memory.used()-h.limit, h.used.Load()-share
	if over <= 0 || above <= 0 {
		return 0
	}
	return min(over+h.limit/holdFree, above+share/holdFree)
}

// keepHeld keeps what s holds within its limit, until the session is over.
func (s *session) keepHeld() {
	var told, spared time.Time
	reset := 0 // since told
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.held.full:
		}
		if s.held.memory.used() > s.held.limit || time.Since(spared) > spareEvery {
			all := s.all()
			for _, st := range all {
				st.spare()
			}
			spared = time.Now()
			if excess := s.held.excess(); excess > 0 {
				for _, v := range overdue(s.stalled(all), excess) {
					v.stream.resetFor(errUnread)
					v.stream.spare()
					reset++
				}
			}
		}
		if reset > 0 && time.Since(told) > holdTold {
			s.log.Warn("tunnel: too much was held for connections whose reader takes nothing: some were reset", "reset", reset, "limit", s.held.limit)
			told, reset = time.Now(), 0
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(holdPause):
		}
	}
}

// stalled is a stream of which something is held that was not read.
type stalled struct {
	stream *Stream
	caller netip.Addr // not valid: not known
	memory int64
	since  time.Time // when its reader took something last
}

func (s *session) stalled(all []*Stream) (list []stalled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range all {
		if memory, since := st.receive.stalled(); memory > 0 && st.attached() {
			list = append(list, stalled{st, st.header.Peer.Addr(), int64(memory), since})
		}
	}
	return list
}

// overdue chooses whom to reset so that excess bytes are free: of the caller for whom most is held at the time, the stream of which
// nothing was read for longest. So a caller with many connections is no danger to one with few, nor one who reads nothing to one
// who reads slowly.
func overdue(list []stalled, excess int64) (chosen []stalled) {
	slices.SortFunc(list, func(a, b stalled) int { return a.since.Compare(b.since) })
	of := make(map[netip.Addr]int64)
	next := make(map[netip.Addr][]stalled) // in order
	for _, v := range list {
		of[v.caller] += v.memory
		next[v.caller] = append(next[v.caller], v)
	}
	for excess > 0 && len(of) > 0 {
		var most netip.Addr
		for caller, memory := range of {
			if c := cmp.Compare(memory, of[most]); c > 0 || c == 0 && caller.Less(most) {
				most = caller
			}
		}
		v := next[most][0]
		chosen = append(chosen, v)
		excess -= v.memory
		of[most] -= v.memory
		if next[most] = next[most][1:]; len(next[most]) == 0 {
			delete(of, most)
		}
	}
	return chosen
}

// attached says whether st has its yamux stream.
func (st *Stream) attached() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.mux != nil
}

// spare frees yamux's buffer when it is empty, or when st is closed: yamux itself would keep it until the stream has ended on both
// ends.
func (st *Stream) spare() {
	if !st.attached() {
		return
	}
	left, closed := st.receive.spare()
	if left > 0 {
		if !closed || !st.readMu.TryLock() { // a reader who has it is about to leave
			return
		}
		buf := buffers.Get().(*[spliceBuffer]byte)
		for left > 0 {
			n, err := st.mux.Read(buf[:min(left, spliceBuffer)]) // its deadline has passed: it waits for no data
			st.receive.dropped(n)
			if left -= uint64(n); n == 0 || err != nil {
				break
			}
		}
		buffers.Put(buf)
		st.readMu.Unlock()
	}
	if left == 0 {
		st.mux.Shrink()
		st.receive.shrunk()
	}
}
