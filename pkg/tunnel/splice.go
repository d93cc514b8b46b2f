package tunnel

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Splice copies both ways between a and b until both directions are done, and closes both. The end of
// one direction becomes a half-close of the other side (CloseWrite; a conn without it is closed), a
// reset, or any other failure, becomes a reset (Abort) after what came before it; when nobody takes that
// within resetLinger of a Stream's reset, or the end of its session, without it. When someone
// else closes a or b, the other is closed too, without a reset. It returns the first error; the end of a direction and a local close are none.
func Splice(a, b net.Conn) error { return new(Flow).Splice(a, b) }

// resetLinger is how long what came before a reset may wait for its reader.
const resetLinger = 5 * time.Second

// Direction is the way that bytes went.
type Direction int

// The directions of a Flow.
const (
	Neither Direction = iota // nothing has moved yet
	AToB
	BToA
)

// Flow is one splice that can be watched while it runs: a proxy that shuts down ends a connection when
// its last bytes went to the caller some time ago and none are under way. The zero value is ready
// to use, once.
type Flow struct {
	// OnMove, if set, is told the bytes that were written, by both directions at once. Set it before Splice.
	OnMove func(way Direction, n int)
	// Leave, if set, is called for a while after a has ended, until it is true: then nobody is left there to read what b still says, b has been left to
	// itself, and its end is not awaited: Splice returns while the direction from b may still be in b's Read. It is for a b that takes long to end.
	Leave func() bool

	last   atomic.Int64 // nanoseconds after flowEpoch, shifted left by 2, and the Direction; 0: nothing yet
	moving atomic.Int32 // directions that hold bytes which are read and not yet written
	ended  atomic.Int32 // directions that are over
	reset  atomic.Bool  // one side was reset, or failed, and so both are to be
	until  context.Context
}

// flowEpoch makes the times in Flow.last small, and monotonic.
var flowEpoch = time.Now()

// Last is when bytes last moved (were read or written), which way, and whether some are read and
// not yet written now. A zero time and Neither before the first.
func (f *Flow) Last() (at time.Time, way Direction, moving bool) {
	moving = f.moving.Load() > 0
	last := f.last.Load()
	if last == 0 {
		return time.Time{}, Neither, moving
	}
	return flowEpoch.Add(time.Duration(last >> 2)), Direction(last & 3), moving
}

func (f *Flow) moved(way Direction) {
	f.last.Store(int64(time.Since(flowEpoch))<<2 | int64(way))
}

// Splice is the function Splice, watched.
func (f *Flow) Splice(a, b net.Conn) error {
	done := make(chan struct{})
	defer close(done)
	for _, c := range []net.Conn{a, b} {
		if st, ok := c.(*Stream); ok {
			defer context.AfterFunc(st.ctx, func() {
				linger := resetLinger
				if errors.Is(context.Cause(st.ctx), errUnread) { // nobody took for longer what would have to be kept
					linger = 0
				}
				select {
				case <-done:
				case <-time.After(linger):
					f.Fail(a, b)
				}
			})()
		}
	}
	var first firstError
	over := make(chan struct{})
	go func() {
		defer close(over)
		f.copy(a, b, BToA, &first)
	}()
	if f.copy(b, a, AToB, &first) && f.Leave != nil && f.left(over) {
		f.close(a, b) // the other direction ends when b's Read does
		return nil
	}
	<-over
	return first.err
}

// left calls Leave until the other direction is over: a program's socket is closed a moment after its end is seen.
func (f *Flow) left(over <-chan struct{}) bool {
	for wait := time.Duration(0); wait < time.Second; wait = max(time.Millisecond, 4*wait) {
		select {
		case <-over:
			return false
		case <-time.After(wait):
		}
		if f.Leave() {
			return true
		}
	}
	return false
}

type firstError struct {
	once sync.Once
	err  error
}

func (e *firstError) set(err error) { e.once.Do(func() { e.err = err }) }

// copy moves one direction, and passes on how it ended. After both directions, dst and src are closed. ended tells that src has, by itself, and dst has not.
func (f *Flow) copy(dst, src net.Conn, way Direction, first *firstError) (ended bool) {
	readErr, writeErr := f.move(dst, src, way)
	switch {
	case errors.Is(readErr, net.ErrClosed), errors.Is(readErr, io.ErrClosedPipe), errors.Is(writeErr, net.ErrClosed):
		// Closed by the other direction, which may not have come to src yet, or by somebody who wants the connection to end.
		f.close(dst, src)
	case isErrno(writeErr, syscall.ECONNRESET), isErrno(writeErr, syscall.EPIPE), errors.Is(writeErr, io.ErrClosedPipe):
		// dst takes no more, but what it said before may be still to be read: the other direction goes
		// on and finds the end behind that. A system tells of a reset only once, so it must be remembered.
		first.set(writeErr)
		if isErrno(writeErr, syscall.ECONNRESET) {
			f.reset.Store(true)
		}
		if f.ended.Add(1) == 2 {
			f.close(dst, src)
			return false
		}
		// src may read nothing, and so stop the other direction, before it has written all that it has to.
		_, _ = io.Copy(io.Discard, onlyRead{src})
	case writeErr != nil || readErr != nil:
		first.set(cmp.Or(readErr, writeErr))
		f.Fail(dst, src)
	default:
		if !f.reset.Load() {
			if half, ok := dst.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // fails when dst is gone, which the other direction finds
			} else {
				_ = dst.Close()
			}
		}
		if f.ended.Add(1) == 2 {
			f.close(dst, src)
			return false
		}
		return !f.reset.Load()
	}
	return false
}

// SpliceContext is Splice until ctx is done, which is a reset of both: what was cut off is not taken for all there was.
func (f *Flow) SpliceContext(ctx context.Context, a, b net.Conn) error {
	f.until = ctx // whoever closes one of them after its end has not ended what it carries
	defer context.AfterFunc(ctx, func() { f.Fail(a, b) })()
	return f.Splice(a, b)
}

// Fail resets a and b, which Splice has, in the middle of what they carry: neither side takes that for all there was.
func (f *Flow) Fail(a, b net.Conn) {
	f.reset.Store(true)
	f.close(a, b)
}

// close closes both conns, or resets them where one was.
func (f *Flow) close(a, b net.Conn) {
	for _, c := range []net.Conn{a, b} {
		if f.reset.Load() || f.until != nil && f.until.Err() != nil {
			Abort(c)
		} else {
			_ = c.Close()
		}
	}
}

// onlyRead keeps io.Copy from taking a way of its own.
type onlyRead struct{ io.Reader }

// move copies until src ends or one of them fails; both nil is the end.
func (f *Flow) move(dst, src net.Conn, way Direction) (readErr, writeErr error) {
	from := newSource(src)
	for {
		p, err := from.next()
		if len(p) > 0 {
			f.moving.Add(1)
			f.moved(way)
			var n int
			n, writeErr = dst.Write(p)
			f.moved(way)
			if f.OnMove != nil {
				f.OnMove(way, n)
			}
			f.moving.Add(-1)
		}
		from.release()
		if writeErr != nil {
			return nil, writeErr
		}
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return err, nil
		}
	}
}

// Abort closes c so that its other end sees a reset, where c can do that.
func Abort(c net.Conn) {
	switch c := c.(type) {
	case interface{ Reset() }:
		c.Reset()
		return
	case interface{ Reset() error }: // a port-forward's
		_ = c.Reset()
		return
	case interface{ SetLinger(int) error }:
		_ = c.SetLinger(0)
	}
	_ = c.Close()
}
