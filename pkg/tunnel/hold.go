package tunnel

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
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
	// holdTold is how often the log says it, at most.
	holdTold = 10 * time.Second
)

// errUnread is why a stream was reset that held memory others needed.
var errUnread = errors.New("its reader takes nothing, and others need the memory")

// hold counts the memory of what has arrived on a session's streams and was not passed on.
type hold struct {
	limit int64 // in bytes
	used  atomic.Int64
	full  chan struct{} // capacity 1: more than limit is used
}

func (h *hold) init(laptop bool) {
	h.full = make(chan struct{}, 1)
	if h.limit = podHold; laptop {
		h.limit = laptopHold
	}
}

func (h *hold) add(n int64) {
	if h.used.Add(n) > h.limit && n > 0 {
		select {
		case h.full <- struct{}{}:
		default:
		}
	}
}

// keepHeld keeps what s holds within its limit, until the session is over.
func (s *session) keepHeld() {
	var told time.Time
	reset := 0 // since then
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.held.full:
		}
		all := s.all()
		for _, st := range all {
			st.spare()
		}
		if excess := s.held.used.Load() - s.held.limit; excess > 0 {
			for _, v := range overdue(s.stalled(all), excess+s.held.limit/holdFree) {
				v.stream.resetFor(errUnread)
				v.stream.spare()
				reset++
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
	spare, closed := st.receive.spare()
	if closed && spare && st.readMu.TryLock() { // else its reader is about to leave
		buf := buffers.Get().(*[spliceBuffer]byte)
		for {
			if n, err := st.mux.Read(buf[:]); n == 0 || err != nil { // its deadline has passed
				break
			}
		}
		buffers.Put(buf)
		st.readMu.Unlock()
	}
	if spare {
		st.mux.Shrink()
	}
}
