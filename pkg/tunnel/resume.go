package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"bridge/internal/cork"
)

const (
	// maxBatch is the most that is written to a link at once: what a frame that comes just then waits for.
	maxBatch = 64 << 10
	// fullBatch is maxBatch less what the segment and TLS add, and what a carrier adds to two frames of 32 KiB: so
	// that a full batch is two of these, in whole records, with no small rest behind.
	fullBatch = maxBatch - segmentHeader - 4*cork.Record - 2*16
	// maxReplay bounds what is kept until the other end has it: a link of 1 Gbit/s and 130 ms has so much in flight.
	maxReplay = 16 << 20
	// replaySlack is room beyond it for what does not pass the gate: small frames.
	replaySlack = 1 << 20
	// ackEvery is how much arrives at most before it is acknowledged unasked.
	ackEvery = 1 << 20
	// An acknowledgement is asked for askParts times for what may be in flight, and not more often than every askEvery
	// bytes: one that nothing else carries costs every hop as much as a small request. What arrives is mostly
	// answered, and data carries an acknowledgement for nothing; the pings see to the rest.
	askParts = 4
	askEvery = maxBatch
	// A segment costs every hop of a port-forward as much as 16 KiB do, so a small one waits for company: while fewSegments
	// are on their way already, for a part of what a round trip takes now, until there are holdBelow bytes. A path that carries little
	// is never kept waiting.
	fewSegments = 4
	holdBelow   = 8 << 10
	holdPart    = 4
	holdMost    = 2 * time.Millisecond
	// lastTimeout bounds how long closing waits for what was written before.
	lastTimeout = time.Second
)

// segmentType is the first byte of a segment, SPEC.md section 4.
type segmentType uint8

const (
	segmentData segmentType = 1
	segmentAck  segmentType = 2
	segmentEnd  segmentType = 3
	segmentAsk  segmentType = 4 // data, perhaps none, to be acknowledged at once
)

const segmentHeader = 12 // type, length (3), received (8)

// segment is a segment's header.
type segment struct {
	typ      segmentType
	length   int    // bytes of data that follow
	received uint64 // bytes of the session that the sender of this has
}

func appendSegment(b []byte, s segment) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(s.typ)<<24|uint32(s.length))
	return binary.BigEndian.AppendUint64(b, s.received)
}

func readSegment(r io.Reader) (segment, error) {
	var b [segmentHeader]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return segment{}, err
	}
	first := binary.BigEndian.Uint32(b[:])
	s := segment{typ: segmentType(first >> 24), length: int(first & 0xffffff), received: binary.BigEndian.Uint64(b[4:])}
	if s.typ < segmentData || s.typ > segmentAsk || s.length > maxBatch || s.typ == segmentData && s.length == 0 ||
		(s.typ == segmentAck || s.typ == segmentEnd) && s.length > 0 {
		return segment{}, &protocolError{fmt.Sprintf("segment: type %d with %d bytes", s.typ, s.length)}
	}
	return s, nil
}

// protocolError ends the session: another carrier would not make it right.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

// resumable is what yamux runs on: a byte stream each way that outlives its links. What is written is kept
// until the other end has acknowledged it, and what a lost link swallowed is sent again on the next.
//
// It also gathers: yamux writes the header and the body of each frame by itself, and here that only fills
// the buffer. One goroutine, flush, sends all that has piled up while its last write was under way. So many small
// frames share a system call and a record, and an idle path waits for nothing.
type resumable struct {
	gate  *gate
	links chan *link // capacity 1: the newest that was attached

	mu   sync.Mutex
	work *sync.Cond // for flush: something to send and a link, or the end
	room *sync.Cond // for Write: room in buf, or the end
	up   *sync.Cond // for Read: a link, or the end

	link    *link               // nil: none now
	turn    int                 // counts the links that came and went
	buf     sendBuffer          // what the other end has not acknowledged
	next    uint64              // position that link gets next
	sent    uint64              // position up to which some link got it
	ask     uint64              // position up to which an acknowledgement was asked for
	latest  [fewSegments]uint64 // where the last segments of data ended; a ring
	oldest  int                 // the oldest of them
	sentAt  time.Time           // when the last one was sent
	held    *time.Timer         // ends a wait for company
	pinging bool                // the next segment asks for an acknowledgement
	body    bool                // a frame's header was written, and its body comes next
	path    flight              // how much may be on its way

	received uint64 // bytes given to yamux
	acked    uint64 // of them acknowledged to the other end
	due      bool   // to be acknowledged now

	closing bool        // send what is there and the end, then close
	last    *time.Timer // bounds that
	err     error       // why it is over

	handed atomic.Uint64 // next, for those without the lock
	end    atomic.Uint64 // buf.end, likewise
}

func newResumable(g *gate) *resumable {
	r := &resumable{gate: g, links: make(chan *link, 1)}
	r.path.begin()
	r.work, r.room, r.up = sync.NewCond(&r.mu), sync.NewCond(&r.mu), sync.NewCond(&r.mu)
	return r
}

// detach ends the link there is, for another one to follow. It says what to tell the other end and
// attach: how much has arrived, and whose turn it is.
func (r *resumable) detach(cause error) (received uint64, turn int) {
	r.mu.Lock()
	l := r.link
	r.dropLocked(cause)
	r.turn++
	received, turn = r.received, r.turn
	r.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
	return received, turn
}

// knows says whether the other end has acknowledged more than theirs bytes. It asked for the session before that, if so, and this
// comes late: it has a better link.
func (r *resumable) knows(theirs uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return theirs < r.buf.start
}

// attach goes on with l, on which the other end said that it has the first theirs bytes. It closes l on error: errReplaced when another
// detach came between. Any other is the end, as the other end cannot have that.
func (r *resumable) attach(l *link, turn int, theirs uint64) error {
	err := r.attachLocked(l, turn, theirs)
	if err != nil {
		_ = l.Close()
	}
	return err
}

func (r *resumable) attachLocked(l *link, turn int, theirs uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if turn != r.turn || r.err != nil || r.closing {
		return errReplaced
	}
	if theirs < r.buf.start { // acknowledged on the link before, since knows
		return errReplaced
	}
	if theirs > r.sent {
		return fmt.Errorf("resume: the other end has %d bytes, at most %d were possible", theirs, r.sent)
	}
	r.buf.discard(theirs)
	r.next = theirs
	r.acked, r.due = r.received, false // as we told
	r.ask = theirs
	r.link = l
	r.path.begin()
	r.moved()
	select {
	case <-r.links:
	default:
	}
	r.links <- l
	r.work.Signal()
	r.up.Broadcast()
	return nil
}

// drop takes l out of use. The session goes on when another link is attached.
func (r *resumable) drop(l *link, cause error) {
	r.mu.Lock()
	if r.link == l {
		r.dropLocked(cause)
	}
	r.mu.Unlock()
	_ = l.Close()
}

func (r *resumable) dropLocked(cause error) {
	if r.link != nil {
		r.link.cause = cause
		close(r.link.gone)
		r.link = nil
		r.work.Signal() // to end, when closing
		r.room.Broadcast()
	}
}

// moved publishes positions. mu is held.
func (r *resumable) moved() {
	r.handed.Store(r.next)
	r.end.Store(r.buf.end)
	r.gate.set(int(r.buf.end-r.next), r.buf.len(), r.path.limit)
	r.room.Broadcast()
}

// linked says whether there is a link.
func (r *resumable) linked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link != nil
}

// delivered says whether the other end has acknowledged all that was written.
func (r *resumable) delivered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.len() == 0
}

// ping has the other end send a segment.
func (r *resumable) ping() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pinging = true
	r.work.Signal()
}

// drain waits until the other end has all that was written, while there is a link, and not longer than atMost.
func (r *resumable) drain(atMost time.Duration) {
	late := false
	timer := time.AfterFunc(atMost, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		late = true
		r.room.Broadcast()
	})
	defer timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil && r.link != nil && r.buf.len() > 0 && !late {
		if r.next == r.buf.end && r.ask < r.next {
			r.pinging = true // what was sent last did not ask
			r.work.Signal()
		}
		r.room.Wait()
	}
}

// roomFor waits while too much is kept already. mu is held.
func (r *resumable) roomFor(n int) error {
	for r.err == nil && !r.closing && r.buf.len()+n > maxReplay+replaySlack {
		r.room.Wait()
	}
	if r.err == nil && r.closing {
		return net.ErrClosed
	}
	return r.err
}

// writeTwo keeps head and body, which belong together.
func (r *resumable) writeTwo(head, body []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.roomFor(len(head) + len(body)); err != nil {
		return err
	}
	r.buf.append(head)
	r.buf.append(body)
	r.moved()
	r.work.Signal()
	return nil
}

// Write keeps p. It waits only when too much is kept already.
func (r *resumable) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.roomFor(len(p)); err != nil {
		return 0, err
	}
	r.buf.append(p)
	r.moved()
	// A header alone is not worth a segment: yamux writes the body next.
	r.body = !r.body && len(p) == frameHeader && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0
	if !r.body {
		r.work.Signal()
	}
	return len(p), nil
}

// flush sends until the session is over.
func (r *resumable) flush() {
	defer r.fail(net.ErrClosed)
	out := make([]byte, 0, segmentHeader+maxBatch)
	for {
		l, out, end := r.nextSegment(out)
		if l == nil {
			return
		}
		if _, err := l.Write(out); err != nil {
			r.drop(l, err)
		} else if end {
			return
		}
	}
}

// stuck says whether as much is on its way as may be, and no acknowledgement was asked for that would change that: what may be has
// become less. mu is held.
func (r *resumable) stuck() bool {
	return int(r.next-r.buf.start) >= r.path.limit && r.ask <= r.buf.start
}

// hold says whether what there is to send had better wait for more, and sees to it that this ends. mu is held.
func (r *resumable) hold() bool {
	if r.buf.end-r.next >= holdBelow || r.latest[r.oldest] <= r.buf.start {
		return false
	}
	wait := min(holdMost, r.path.lately/holdPart) - time.Since(r.sentAt)
	if wait <= 0 {
		return false
	}
	if r.held == nil {
		r.held = time.AfterFunc(wait, r.release)
	} else {
		r.held.Reset(wait)
	}
	return true
}

// release has flush look again.
func (r *resumable) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.work.Signal()
}

// nextSegment waits for something to send and a link to send it on, and puts it in out. A nil link is the end.
func (r *resumable) nextSegment(out []byte) (l *link, b []byte, end bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil && !r.closing && (r.link == nil || !r.due && !r.pinging && !r.stuck() && (r.next == r.buf.end || r.hold())) {
		r.work.Wait()
	}
	if r.err != nil || r.link == nil {
		return nil, nil, false
	}
	n := int(min(fullBatch, r.buf.end-r.next))
	s := segment{typ: segmentData, length: n, received: r.received}
	enough := n > 0 && r.next+uint64(n)-r.ask >= uint64(max(askEvery, r.path.limit/askParts))
	switch {
	case n == 0 && r.closing:
		s.typ = segmentEnd
	case r.pinging || enough || r.stuck():
		s.typ = segmentAsk
		r.ask = r.next + uint64(n)
	case n == 0:
		s.typ = segmentAck
	}
	b = appendSegment(out[:0], s)
	b = b[:segmentHeader+n]
	r.buf.copyAt(b[segmentHeader:], r.next)
	r.acked, r.due, r.pinging = r.received, false, false
	r.next += uint64(n)
	r.sent = max(r.sent, r.next)
	now := time.Now()
	if n > 0 {
		r.latest[r.oldest] = r.next
		r.oldest = (r.oldest + 1) % fewSegments
		r.sentAt = now
	}
	r.path.sent(r.next, r.buf.start, now)
	r.moved()
	return r.link, b, s.typ == segmentEnd
}

// Read reads what the other end wrote, from whatever link there is. It waits while there is none.
func (r *resumable) Read(p []byte) (int, error) {
	for {
		r.mu.Lock()
		for r.err == nil && r.link == nil && !r.closing {
			r.up.Wait()
		}
		l, err := r.link, r.err
		r.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if l == nil {
			return 0, net.ErrClosed
		}
		n, err := r.readFrom(l, p)
		if n > 0 {
			return n, nil
		}
		var wrong *protocolError
		switch {
		case errors.As(err, &wrong), errors.Is(err, errEnded):
			r.fail(err)
		case err != nil:
			r.drop(l, err)
		}
	}
}

// errEnded is the other end's word that the session is over.
var errEnded = errors.New("closed by the other end")

// readFrom reads from l. What arrives on a link that is not the present one any more does not count: the
// other end was told that it did not, and sends it again. 0 and nil means that there was no data yet.
func (r *resumable) readFrom(l *link, p []byte) (int, error) {
	if l.left == 0 {
		s, err := readSegment(l)
		if err != nil {
			return 0, err
		}
		l.heard.Store(max(1, int64(time.Since(l.born))))
		if err := r.acknowledged(l, s.received); err != nil {
			return 0, err
		}
		if s.typ == segmentEnd {
			return 0, errEnded
		}
		l.left, l.asked = s.length, s.typ == segmentAsk
		if l.left == 0 {
			r.mu.Lock()
			defer r.mu.Unlock()
			if l.asked && r.link == l {
				r.owe()
			}
			return 0, nil
		}
	}
	n, err := l.Read(p[:min(len(p), l.left)])
	l.left -= n
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link != l {
		return 0, err
	}
	r.received += uint64(n)
	l.useful = l.useful || n > 0
	if l.left == 0 && l.asked || r.received-r.acked >= ackEvery {
		r.owe()
	}
	return n, err
}

// owe has the next segment, which acknowledges, be sent now. mu is held.
func (r *resumable) owe() {
	r.due = true
	r.work.Signal()
}

// acknowledged drops what the other end has.
func (r *resumable) acknowledged(l *link, theirs uint64) error {
	r.mu.Lock()
	if r.link != l || theirs == r.buf.start {
		r.mu.Unlock()
		return nil
	}
	if theirs < r.buf.start || theirs > r.next {
		defer r.mu.Unlock()
		return &protocolError{fmt.Sprintf("segment: the other end has %d bytes, %d to %d were possible", theirs, r.buf.start, r.next)}
	}
	r.buf.discard(theirs)
	r.path.acked(theirs, time.Now())
	r.moved()
	r.work.Signal() // what was held may go
	r.mu.Unlock()
	return nil
}

// fail ends the session at once.
func (r *resumable) fail(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	l := r.link
	r.dropLocked(err)
	for _, t := range []*time.Timer{r.last, r.held} {
		if t != nil {
			t.Stop()
		}
	}
	r.work.Broadcast()
	r.room.Broadcast()
	r.up.Broadcast()
	r.buf.discard(r.buf.end)
	r.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
}

// Close has flush send what is left and the end, when there is a link, and not for longer than a moment.
// It does not wait for that.
func (r *resumable) Close() error {
	r.mu.Lock()
	if r.err != nil || r.closing {
		r.mu.Unlock()
		return nil
	}
	r.closing = true
	alone := r.link == nil
	if !alone {
		r.last = time.AfterFunc(lastTimeout, func() { r.fail(net.ErrClosed) })
	}
	r.work.Broadcast()
	r.room.Broadcast()
	r.up.Broadcast()
	r.mu.Unlock()
	if alone {
		r.fail(net.ErrClosed)
	}
	return nil
}
