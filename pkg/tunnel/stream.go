package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// Stream is one connection in a session: a net.Conn with half-close and reset.
//
// On the end that opened it, writing is possible at once; the first Read (or WaitStatus) consumes the
// other end's answer, and its error wraps syscall.ECONNREFUSED and its like, or a *net.DNSError, when that
// refused. The end that accepted it answers with Accept or Refuse; writing before either accepts.
//
// When the stream was reset, or its session is lost, reads (after what had arrived) and writes fail with an error that
// wraps syscall.ECONNRESET; writes with syscall.EPIPE when the other end was closed. The end of the session is never an io.EOF.
type Stream struct {
	s      *session
	id     uint32
	opener bool
	header Header          // set before anyone but the session has the stream; the session's mu guards it till then
	ctx    context.Context // done when the stream or its session is
	cancel context.CancelCauseFunc

	// peerDone: the other end's FIN has arrived, perhaps behind data that is not read yet. peerDoneAt
	// (set before) is how much of the control stream had arrived by then: a reset is in there, if it was one.
	peerDone   atomic.Bool
	peerDoneAt uint64

	forgotten bool // closed on this end; the session's mu guards it
	ended     bool // by the other end; likewise

	writeMu  sync.Mutex    // one Write (or CloseWrite) at a time
	done     atomic.Bool   // our FIN is sent; set under the lock
	lastEnd  uint64        // where our last frame ends in what the conn was given
	sent     uint64        // bytes given to yamux, or to the bulk lane
	queued   bool          // it had to wait for its turn at the gate
	writable chan struct{} // capacity 1: room in the window, a turn at the gate, a deadline or an end may have come

	// came is how much has arrived by yamux, and got how much of it was read (under readMu): a session that ends between the two
	// must not pass for the end of the stream.
	came atomic.Uint64
	got  uint64

	readMu  sync.Mutex  // one read of yamux's at a time: two, with a FIN behind unread data, can lock each other out
	met     atomic.Bool // the other end has sent something of it, so it knows the stream
	hasLeft atomic.Bool // our direction has moved to the bulk lane
	moved   arrivals    // what the other end sent there

	sendLimit atomic.Uint64 // how many bytes the other end lets us send
	receive   window        // how many we let the other end send

	statusMu  sync.Mutex // one reader or writer of the status at a time
	status    []byte     // opener: as read so far
	answered  bool       // the status is read or sent
	statusErr error      // opener: the refusal

	mu            sync.Mutex
	mux           *yamux.Stream // nil until attached
	closed        bool          // by Close
	reset         bool          // by Reset
	peerReset     bool          // by the other end
	stopped       bool          // the other end reads no more
	readDeadline  time.Time
	writeDeadline time.Time
}

// past is a deadline that wakes whoever is blocked.
var past = time.Unix(1, 0)

func newStream(s *session, id uint32, opener bool) *Stream {
	st := &Stream{s: s, id: id, opener: opener, writable: make(chan struct{}, 1)}
	st.ctx, st.cancel = context.WithCancelCause(s.ctx)
	st.sendLimit.Store(firstWindow)
	st.receive.limit, st.receive.size, st.receive.held = firstWindow, firstWindow, &s.held
	return st
}

// attach gives st its yamux stream. What arrived about it before holds.
func (st *Stream) attach(y *yamux.Stream) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mux = y
	st.wake()
}

// wake makes blocked reads and writes return when the state says so. mu is held.
func (st *Stream) wake() {
	st.notify()
	st.moved.notify()
	if st.mux == nil {
		return
	}
	if st.reset || st.closed || st.s.ending.Load() {
		_ = st.mux.SetReadDeadline(past)
	}
	if st.reset || st.closed || st.peerReset || st.stopped {
		_ = st.mux.SetWriteDeadline(past)
	}
}

// Header is what the connection is.
func (st *Stream) Header() Header { return st.header }

// Accept tells the opener that it is connected.
func (st *Stream) Accept() error { return st.answer(status{}) }

// Refuse tells the opener why it is not connected, and closes the stream. A nil err is still a refusal.
func (st *Stream) Refuse(err error) error {
	if err == nil {
		err = errors.New("refused")
	}
	return errors.Join(st.answer(statusOf(err)), st.Close())
}

// answer sends the status, once. writeMu is not held.
func (st *Stream) answer(answer status) error {
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	return st.answerLocked(answer)
}

func (st *Stream) answerLocked(answer status) error {
	if st.opener || st.answered {
		return nil
	}
	st.answered = true
	_, err := st.write(appendStatus(nil, answer))
	return err
}

// WaitStatus waits for the other end's answer: nil when it is connected. Opening end only. When ctx ends
// first the stream stays as it is.
func (st *Stream) WaitStatus(ctx context.Context) error {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = st.mux.SetReadDeadline(past)
		st.moved.notify()
		close(woken)
	})
	err := st.readStatus(ctx)
	if !stop() {
		<-woken
		st.mu.Lock()
		_ = st.mux.SetReadDeadline(st.readDeadline)
		st.wake()
		st.mu.Unlock()
	}
	return err
}

func (st *Stream) readStatus(ctx context.Context) error {
	st.statusMu.Lock()
	defer st.statusMu.Unlock()
	for !st.answered {
		need, err := statusNeeds(st.status)
		if err != nil {
			st.Reset()
			return st.fail("read", err)
		}
		if need == 0 {
			st.answered = true
			st.statusErr = parseStatus(st.status).err(st.header.Network, st.header.Address)
			break
		}
		n := len(st.status)
		st.status = append(st.status, make([]byte, need)...)
		got, err := st.readOnce(st.status[n:])
		st.status = st.status[:n+got]
		st.took(got)
		if err == io.EOF { //nolint:errorlint // readOnce returns it bare
			return st.fail("read", fmt.Errorf("closed without an answer: %w", syscall.ECONNRESET))
		}
		if err == errAgain { //nolint:errorlint // likewise
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		if err != nil {
			return err
		}
	}
	return st.statusErr
}

// Read reads what the other end wrote; io.EOF after its half-close.
func (st *Stream) Read(p []byte) (int, error) {
	if st.opener {
		if err := st.readStatus(context.Background()); err != nil {
			return 0, err
		}
	}
	return st.read(p)
}

func (st *Stream) read(p []byte) (int, error) {
	n, err := st.readUntaken(p)
	st.took(n)
	return n, err
}

// lend is Read for bytes that stay in p, a splice's buffer, and are not taken before took says so.
func (st *Stream) lend(p []byte) (int, error) {
	if st.opener {
		if err := st.readStatus(context.Background()); err != nil {
			return 0, err
		}
	}
	n, err := st.readUntaken(p)
	st.receive.lend(n)
	return n, err
}

func (st *Stream) readUntaken(p []byte) (int, error) {
	for {
		n, err := st.readOnce(p)
		if err == errAgain { //nolint:errorlint // readOnce returns it bare
			continue
		}
		return n, err
	}
}

// errAgain means that a deadline of yamux's passed which is none of ours, or no longer.
var errAgain = errors.New("woken")

// readOnce is one read of yamux's, with its errors made ours.
func (st *Stream) readOnce(p []byte) (int, error) {
	st.readMu.Lock()
	defer st.readMu.Unlock()
	if err := st.readError(); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if st.moved.turn {
		return st.readMoved(p)
	}
	if st.s.ending.Load() {
		<-st.s.over // what has arrived can be read then, as ever
	}
	n, err := st.mux.Read(p)
	switch {
	case n > 0 || err == nil:
		st.got += uint64(n)
		return n, nil // yamux may add the error of a window update: the next read meets it
	case errors.Is(err, yamux.ErrTimeout):
		if err := st.readError(); err != nil {
			return 0, err
		}
		return 0, errAgain
	case errors.Is(err, io.EOF) && st.peerDone.Load():
		if !st.s.read.wait(st.peerDoneAt) || st.got != st.came.Load() {
			return 0, st.fail("read", syscall.ECONNRESET) // the session ended first
		}
		if err := st.readError(); err != nil { // what came about a stream that is over here was not kept
			return 0, err
		}
		if st.moved.here.Load() {
			st.moved.turn = true
			return 0, errAgain
		}
		if st.wasReset() {
			return 0, st.fail("read", syscall.ECONNRESET)
		}
		return 0, io.EOF
	default: // RST, or the session is over, which yamux reports as io.EOF
		if err := st.readError(); err != nil {
			return 0, err
		}
		return 0, st.fail("read", syscall.ECONNRESET)
	}
}

// took counts n bytes that were read, and tells the other end when it may send more.
func (st *Stream) took(n int) {
	if n == 0 {
		return
	}
	if limit, changed := st.receive.read(n, &st.s.budget); changed && !st.peerEnded() {
		st.s.out.put(message{typ: messageWindow, stream: st.id, limit: limit})
	}
}

// peerEnded says whether nothing more comes from the other end; false when that is not known yet.
func (st *Stream) peerEnded() bool {
	switch {
	case !st.peerDone.Load() || !st.s.read.reached(st.peerDoneAt):
		return false
	case st.moved.here.Load():
		return st.moved.over()
	}
	return true
}

// readMoved reads what came on the bulk lane.
func (st *Stream) readMoved(p []byte) (int, error) {
	over := st.s.ctx.Err() != nil // then nothing more comes
	n, ended, wake := st.moved.take(p)
	if n > 0 {
		return n, nil
	}
	// Asked again: whoever ends the stream from now on wakes us.
	if err := st.readError(); err != nil {
		return 0, err
	}
	switch {
	case st.wasReset(), over && !ended:
		return 0, st.fail("read", syscall.ECONNRESET)
	case ended:
		return 0, io.EOF
	}
	st.mu.Lock()
	late, stop := timerAt(st.readDeadline)
	st.mu.Unlock()
	defer stop()
	select {
	case <-wake:
	case <-late:
	case <-st.s.ctx.Done():
	}
	return 0, errAgain
}

// timerAt fires at deadline, or never when that is zero.
func timerAt(deadline time.Time) (<-chan time.Time, func() bool) {
	if deadline.IsZero() {
		return nil, func() bool { return true }
	}
	timer := time.NewTimer(time.Until(deadline))
	return timer.C, timer.Stop
}

func (st *Stream) wasReset() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.peerReset
}

// readError is why reading is not possible now, nil when it is.
func (st *Stream) readError() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.closed:
		return st.fail("read", net.ErrClosed)
	case st.reset:
		return st.fail("read", syscall.ECONNRESET)
	case passed(st.readDeadline):
		return st.fail("read", os.ErrDeadlineExceeded)
	}
	return nil
}

// Write writes all of p, or fails.
func (st *Stream) Write(p []byte) (int, error) {
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	if err := st.answerLocked(status{}); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, st.writeError(patience{})
	}
	return st.write(p)
}

// errNoRoom says that there was no room for a whole write in time.
var errNoRoom = errors.New("no room")

// writeWhole writes all of p, which is no longer than leastWindow / 2, or, when there is no room for it by then, nothing: errNoRoom.
// What it has begun no deadline ends.
func (st *Stream) writeWhole(p []byte, until time.Time) error {
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	if err := st.answerLocked(status{}); err != nil {
		return err
	}
	_, err := st.writeWith(p, patience{room: len(p), until: until})
	return err
}

// patience is what a write waits for before its first frame, and for how long.
type patience struct {
	room  int       // in the window
	until time.Time // zero: for ever
	begun bool      // no deadline counts any more
}

// write needs writeMu.
func (st *Stream) write(p []byte) (int, error) {
	return st.writeWith(p, patience{room: 1})
}

func (st *Stream) writeWith(p []byte, w patience) (total int, err error) {
	for {
		n, err := st.turn(len(p), w)
		if err != nil {
			return total, err
		}
		if !w.until.IsZero() {
			w = patience{room: 1, begun: true}
		}
		reserved := n
		conn, gate := st.way()
		if st.hasLeft.Load() {
			if err = st.s.bulk.send(laneData, st, p[:n]); err != nil {
				n = 0
			}
		} else {
			n, err = st.mux.Write(p[:n])
		}
		st.sent += uint64(n)
		gate.done(reserved)
		st.lastEnd = conn.end.Load()
		st.perhapsMove()
		total += n
		p = p[n:]
		switch {
		case len(p) == 0: // all is sent, whatever has become of the stream meanwhile
			return total, nil
		case err == nil:
		case errors.Is(err, yamux.ErrTimeout): // ours, or no longer: writeError knows
		default:
			if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
				// yamux may still send it: the stream's state is not known, nor the carrier's worth.
				st.s.lost(err)
			}
			if err := st.writeError(w); err != nil {
				return total, err
			}
			return total, st.fail("write", syscall.ECONNRESET)
		}
	}
}

// way is what our direction goes by. writeMu is held.
func (st *Stream) way() (*resumable, *gate) {
	if st.hasLeft.Load() {
		return st.s.bulk.conn, &st.s.bulk.gate
	}
	return st.s.conn, &st.s.gate
}

// perhapsMove moves our direction to the bulk lane when it has sent enough, and the other end knows the stream, whose first frame the lane may
// overtake: what was written before comes by yamux and ends with its FIN, behind the message that says so. writeMu is held.
func (st *Stream) perhapsMove() {
	enough := uint64(bulkAfter)
	if st.queued && st.s.gate.crowded() {
		enough = maxFrame
	}
	if st.hasLeft.Load() || !st.met.Load() || st.sent < enough {
		return
	}
	if !st.s.bulk.open() {
		st.s.bulk.ask()
		return
	}
	st.hasLeft.Store(true)
	st.lastEnd = 0
	st.s.out.putThen(message{typ: messageMoved, stream: st.id}, func() { _ = st.mux.Close() })
	if st.s.bulk.over.Load() {
		st.Reset()
	}
}

// onLane says whether a direction of st has moved to the bulk lane: ours, or the other end's that is not known to be over.
func (st *Stream) onLane() bool { return st.hasLeft.Load() || st.comesByLane() }

func (st *Stream) comesByLane() bool { return st.moved.here.Load() && !st.moved.over() }

// needsLane says whether more of a direction that has moved may be sent.
func (st *Stream) needsLane() bool {
	st.mu.Lock()
	over, unheard := st.reset || st.peerReset, st.stopped
	st.mu.Unlock()
	return !over && (st.hasLeft.Load() && !unheard && !st.done.Load() || st.comesByLane())
}

// turn waits until a frame of up to n bytes may go to yamux, and says how large: the window has
// room for it, and the gate has let it in. writeMu is held.
func (st *Stream) turn(n int, w patience) (int, error) {
	n = min(n, maxFrame)
	_, gate := st.way()
	for {
		if err := st.writeError(w); err != nil {
			gate.leave(st)
			return 0, err
		}
		if room := st.sendLimit.Load() - st.sent; room >= uint64(w.room) {
			if m := int(min(uint64(n), room)); gate.enter(st, m) {
				return m, nil
			}
			st.queued = true
		}
		if err := st.waitWritable(w); err != nil {
			gate.leave(st)
			return 0, err
		}
	}
}

// waitWritable waits for a notice, or the time when w is over.
func (st *Stream) waitWritable(w patience) error {
	st.mu.Lock()
	deadline := st.writeDeadline
	st.mu.Unlock()
	if w.begun {
		deadline = time.Time{}
	}
	if deadline.IsZero() || !w.until.IsZero() && w.until.Before(deadline) {
		deadline = w.until
	}
	late, stop := timerAt(deadline)
	defer stop()
	select {
	case <-st.writable:
	case <-late:
	case <-st.s.ctx.Done():
		return st.fail("write", syscall.ECONNRESET)
	}
	return nil
}

// notify has a waiting turn look again.
func (st *Stream) notify() {
	select {
	case st.writable <- struct{}{}:
	default:
	}
}

// sparse says whether all that we gave yamux has left. writeMu is held.
func (st *Stream) sparse() bool {
	conn, _ := st.way()
	return conn.handed.Load() >= st.lastEnd
}

// writeError is why writing is not possible now, nil when it is. writeMu is held.
func (st *Stream) writeError(w patience) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.closed:
		return st.fail("write", net.ErrClosed)
	case st.reset || st.peerReset:
		return st.fail("write", syscall.ECONNRESET)
	case st.done.Load() || st.stopped:
		return st.fail("write", syscall.EPIPE)
	case w.begun:
	case passed(st.writeDeadline):
		return st.fail("write", os.ErrDeadlineExceeded)
	case passed(w.until):
		return errNoRoom
	}
	return nil
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

func (st *Stream) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tunnel", Addr: st.RemoteAddr(), Err: err}
}

// CloseWrite ends our direction: the other end reads io.EOF after what was written. It waits for a
// Write in progress. Reading goes on.
func (st *Stream) CloseWrite() error {
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	if st.done.Load() {
		return nil
	}
	if err := st.answerLocked(status{}); err != nil {
		return err
	}
	if err := st.writeError(patience{begun: true}); err != nil {
		return err
	}
	st.finishLocked()
	return nil
}

// finish sends our FIN, once.
func (st *Stream) finish() {
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	st.finishLocked()
}

func (st *Stream) finishLocked() {
	if st.done.Swap(true) {
		return
	}
	switch {
	case !st.hasLeft.Load():
		_ = st.mux.Close() // always nil; a lost session is met elsewhere
	case !st.isReset():
		_ = st.s.bulk.send(laneEnd, st, nil) // likewise. After a reset it could arrive before that, as a good end
	}
}

func (st *Stream) isReset() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.reset
}

// Close ends both directions. What was written still arrives; the other end's writes fail from now on.
// Blocked reads and writes return net.ErrClosed.
func (st *Stream) Close() error {
	st.mu.Lock()
	if st.closed {
		st.mu.Unlock()
		return nil
	}
	st.closed = true
	if !st.reset && !st.peerEnded() {
		st.s.out.put(message{typ: messageReset, stream: st.id, code: resetNotReading})
	}
	reset := st.reset
	st.wake()
	st.mu.Unlock()
	st.cancel(nil)
	if !reset { // else the FIN goes out behind the message
		st.finish()
	}
	st.s.forget(st)
	return nil
}

// Reset ends both directions: the other end's writes fail with ECONNRESET at once, its reads after
// what was written before; ours both at once.
func (st *Stream) Reset() { st.resetFor(nil) }

// resetFor is Reset; cause is its context's.
func (st *Stream) resetFor(cause error) {
	st.mu.Lock()
	if st.closed || st.reset {
		st.mu.Unlock()
		return
	}
	st.reset = true
	st.s.out.putThen(message{typ: messageReset, stream: st.id, code: resetBoth}, st.finish)
	st.wake()
	st.mu.Unlock()
	st.cancel(cause)
	st.s.forget(st)
}

// resetByPeer is the other end's reset message. It never blocks: the control stream waits for it. Reads go
// on until the FIN that follows the message. The yamux stream ends when whoever has this one closes it.
func (st *Stream) resetByPeer(code resetCode) {
	st.mu.Lock()
	if code == resetNotReading {
		st.stopped = true
	} else {
		st.peerReset = true
	}
	st.wake()
	st.mu.Unlock()
	if code != resetNotReading {
		st.cancel(nil)
	}
}

// LocalAddr is the address that was dialled on the accepting end, and a name for this end otherwise.
func (st *Stream) LocalAddr() net.Addr {
	if st.opener {
		return st.callerAddr()
	}
	return addr{st.header.Network, st.header.Address}
}

// RemoteAddr is the address that was dialled on the opening end, and the caller's on the accepting one.
func (st *Stream) RemoteAddr() net.Addr {
	if st.opener {
		return addr{st.header.Network, st.header.Address}
	}
	return st.callerAddr()
}

func (st *Stream) callerAddr() net.Addr {
	if !st.header.Peer.IsValid() {
		return addr{st.header.Network, "tunnel"}
	}
	if st.header.Network == "udp" {
		return net.UDPAddrFromAddrPort(st.header.Peer)
	}
	return net.TCPAddrFromAddrPort(st.header.Peer)
}

// addr is a net.Addr that is only a text.
type addr struct{ network, address string }

func (a addr) Network() string { return a.network }
func (a addr) String() string  { return a.address }

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (st *Stream) SetDeadline(t time.Time) error {
	return errors.Join(st.SetReadDeadline(t), st.SetWriteDeadline(t))
}

// SetReadDeadline bounds reads, the one that is blocked too; zero means no bound.
func (st *Stream) SetReadDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return st.fail("set", net.ErrClosed)
	}
	st.readDeadline = t
	_ = st.mux.SetReadDeadline(t)
	st.wake()
	return nil
}

// SetWriteDeadline bounds writes, the one that is blocked too; zero means no bound.
func (st *Stream) SetWriteDeadline(t time.Time) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return st.fail("set", net.ErrClosed)
	}
	st.writeDeadline = t
	_ = st.mux.SetWriteDeadline(t)
	st.wake()
	return nil
}
