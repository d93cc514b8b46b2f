package tunnel

import (
	"slices"
	"sync"
)

const (
	// maxFrame is the most that is handed to yamux in one write, and so what a small frame may have to
	// wait for: yamux itself has no limit.
	maxFrame = 32 << 10
	// bulkAhead is how much may wait to be written before no more bulk is let in: one frame that is with
	// yamux and one that is with the conn, so that neither ever waits for the other.
	bulkAhead = 2 * maxFrame
	// sparseWrite is the largest write that is let in at once, when its stream has nothing else waiting:
	// a request, an answer, a keystroke.
	sparseWrite = 4 << 10
)

// gate decides whose frame goes to yamux next. yamux sends in the order it is given, so whatever it has
// taken is what a late small frame waits for: the gate lets in no more bulk than keeps the carrier
// busy, one frame of each stream in turn. Frames of yamux's own and the control stream's do not pass it.
type gate struct {
	ahead int // bytes that may wait to be written; of bulk

	mu       sync.Mutex
	limit    int       // of bytes in flight
	unsent   int       // bytes that the conn below has, and no link yet
	inFlight int       // bytes that the conn below has, and the other end perhaps not yet: unsent, too
	reserved int       // bytes let in which the conn below does not have yet
	waiting  []*Stream // each once, first come first
}

// enter asks for n bytes of st. When it says no, st gets a notice on st.writable when it is worth asking again;
// until then it must either ask again or leave. After a yes, done follows when yamux has the bytes.
func (g *gate) enter(st *Stream, n int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	sparse := n <= sparseWrite && st.sparse() && g.reserved+g.inFlight < maxReplay
	i := slices.Index(g.waiting, st)
	if !sparse && (!g.open() || i > 0 || i < 0 && len(g.waiting) > 0) {
		if i < 0 {
			g.waiting = append(g.waiting, st)
		}
		return false
	}
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	g.reserved += n
	g.notify()
	return true
}

// done says that the conn below has the n bytes, or that they do not come.
func (g *gate) done(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reserved -= n
	g.notify()
}

// leave ends st's waiting, if it waits.
func (g *gate) leave(st *Stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, st); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	g.notify()
}

// set says what the conn below has, and how much may be in flight.
func (g *gate) set(unsent, inFlight, limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unsent, g.inFlight, g.limit = unsent, inFlight, limit
	g.notify()
}

// crowded says whether somebody waits.
func (g *gate) crowded() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) > 0
}

// open says whether bulk may enter. mu is held.
func (g *gate) open() bool { return g.reserved+g.unsent < g.ahead && g.reserved+g.inFlight < g.limit }

// notify tells the first that waits, when it may enter. mu is held.
func (g *gate) notify() {
	if len(g.waiting) > 0 && g.open() {
		select {
		case g.waiting[0].writable <- struct{}{}:
		default:
		}
	}
}
