package tunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// controlStream is the id of the control stream: the first that yamux's client opens.
const controlStream = 1

// headerTimeout bounds the wait for the header of a new stream, which may queue behind bulk data.
const headerTimeout = 30 * time.Second

// ErrDead says that the other end did not answer for too long.
var ErrDead = errors.New("no answer through the tunnel")

// session is the multiplexer on one link after the other, the same on both ends. It is over when either end says
// so, or when there was no link for its window. Its owner calls run, which returns then.
type session struct {
	laptop   bool
	log      *slog.Logger
	id       sessionID
	window   time.Duration // how long it outlives its link
	pod      Fingerprint   // laptop: whose session it is
	conn     *resumable
	gate     gate
	bulk     *lane
	budget   budget
	held     hold
	mux      *yamux.Session
	control  *yamux.Stream
	out      *outbox
	live     atomic.Pointer[liveness]       // of the present link, or the last
	quality  quality                        // likewise
	accept   func(context.Context, *Stream) // handles a stream of the other end; own goroutine
	onReady  func(ready, answering bool)    // pod: as Server.OnReady and Server.Answering have it; may be nil
	onNote   func(string)                   // laptop: as Client.OnNote; may be nil
	handlers *sync.WaitGroup                // of the owner: counts accept calls

	ctx    context.Context // done when the session is
	cancel context.CancelFunc
	wg     sync.WaitGroup // everything that run waits for

	ending   atomic.Bool   // no reader may wait in yamux any more
	over     chan struct{} // closed when yamux has ended every stream
	overOnce sync.Once

	controlSeen uint64 // payload of the control stream that has arrived; frameTap's goroutine only
	read        progress

	mu         sync.Mutex
	err        error // why it is over; nil while it runs
	linkErr    error // the first that reading the link met
	streams    map[uint32]*Stream
	unaccepted int // in streams, not yet taken from yamux
	accepted   int // in streams, opened by the other end and taken from yamux, also those that only the other end has not ended

	readyMu     sync.Mutex // one onReady at a time
	laptopReady bool       // as it said
	away        bool       // no link for a while
	cut         bool       // no link
	late        bool       // no answer on the link for longer than is usual
}

// newSession puts a multiplexer on l, its first link, and sets up the control stream. On error l is closed.
func newSession(ctx context.Context, l *link, s *session) (*session, error) {
	s.gate.ahead = bulkAhead
	s.conn = newResumable(&s.gate)
	s.bulk = newLane(s)
	if err := s.conn.attach(l, 0, 0); err != nil {
		return nil, err
	}
	s.held.init(s.laptop)
	s.out = newOutbox()
	s.live.Store(&liveness{start: time.Now()})
	s.streams = make(map[uint32]*Stream)
	s.over = make(chan struct{})
	s.read.moved = sync.NewCond(&s.read.mu)
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	tap := &frameTap{ReadWriteCloser: s.conn, see: s.seeFrame, say: s.sayFrame, failed: s.linkFailed}

	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.conn.fail(context.Cause(ctx)) })
	defer stop()
	var err error
	s.wg.Go(s.conn.flush)
	if s.laptop {
		if s.mux, err = yamux.Client(tap, yamuxConfig(s.log, s.window)); err == nil {
			s.control, err = s.mux.OpenStream()
		}
	} else {
		if s.mux, err = yamux.Server(tap, yamuxConfig(s.log, s.window)); err == nil {
			s.control, err = s.mux.AcceptStreamWithContext(ctx)
		}
	}
	if err == nil && s.control.StreamID() != controlStream {
		err = fmt.Errorf("stream %d opened first", s.control.StreamID())
	}
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		err = fmt.Errorf("tunnel session: %w", err)
		if s.mux == nil {
			_ = s.conn.Close()
		} else {
			s.kill(err)
		}
		s.wg.Wait()
		s.held.leave()
		return nil, err
	}
	s.wg.Add(1) // until run: open may come first
	return s, nil
}

// run keeps the session until ctx is done or the session over, and says why. When it returns, its
// links are closed, all streams are reset, and nothing of the session runs but the handlers.
func (s *session) run(ctx context.Context) error {
	s.wg.Go(s.readControl)
	s.wg.Go(s.writeControl)
	for range acceptors {
		s.wg.Go(s.acceptStreams)
	}
	s.wg.Go(s.bulk.run)
	s.wg.Go(s.keepHeld)
	s.wg.Go(func() { s.watch(ctx) })
	s.wg.Done() // newSession's
	s.wg.Wait()
	s.held.leave()
	return s.err
}

// kill ends the session; the first error stays. It must not be called from yamux's own goroutines
// (frameTap), which it waits for.
func (s *session) kill(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.mu.Unlock()
	s.cancel()
	s.wakeReaders()
	_ = s.mux.Close() // and with it the conn
	s.overOnce.Do(func() { close(s.over) })
}

// wakeReaders takes every reader out of yamux, before yamux ends the session: between that and the end of its
// streams they would spin there, and thousands of them let nothing else run. They wait for over instead.
func (s *session) wakeReaders() {
	s.mu.Lock()
	again := s.ending.Swap(true)
	s.mu.Unlock()
	if again {
		return
	}
	for _, st := range s.all() {
		st.mu.Lock()
		st.wake()
		st.mu.Unlock()
	}
}

// lost is kill for an error of yamux's, which knows less than the link.
func (s *session) lost(err error) {
	s.mu.Lock()
	if s.linkErr != nil {
		err = s.linkErr
	}
	s.mu.Unlock()
	if errors.Is(err, io.EOF) {
		err = errors.New("closed by the other end")
	}
	s.kill(fmt.Errorf("session lost: %w", err))
}

// waitLink waits until l is lost, or the session, and says why. Meanwhile judged is told what is wrong with l, "" for
// nothing: at its start and at each change.
func (s *session) waitLink(l *link, judged func(why string)) error {
	gone := l.gone
	if s.window == 0 {
		gone = nil // one is lost with the other
	}
	for {
		select {
		case why := <-l.judged:
			judged(why)
		case <-gone:
			return fmt.Errorf("carrier lost: %w", l.cause)
		case <-s.ctx.Done():
			<-l.gone
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.err
		}
	}
}

// resume goes on with l, on which the other end said that it has the first theirs bytes of what we sent. On error
// l is closed.
func (s *session) resume(l *link, turn int, theirs uint64) error {
	err := s.conn.attach(l, turn, theirs)
	if err != nil && !errors.Is(err, errReplaced) {
		s.kill(err)
	}
	return err
}

// linkFailed is called by frameTap, before yamux hears of err.
func (s *session) linkFailed(err error) {
	s.mu.Lock()
	if s.linkErr == nil {
		s.linkErr = err
	}
	s.mu.Unlock()
	s.wakeReaders()
}

// alive says whether the session can still be used.
func (s *session) alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && !s.mux.IsClosed()
}

// awayAfter is how long a pod counts a laptop without a link as ready: a cut is healed sooner, and whoever calls
// later than that had better be told.
const awayAfter = 5 * time.Second

// watch pings, drops a link on which no answer came, and kills the session when ctx is done, when yamux has given
// up, or when there was no link for its window.
func (s *session) watch(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	due, away, end := stoppedTimer(), stoppedTimer(), stoppedTimer()
	defer due.Stop()
	defer away.Stop()
	defer end.Stop()
	var (
		l       *link
		gone    <-chan struct{} // of l; nil when there is none
		planned time.Time       // when due fires
		pinged  time.Time
		clocks  clocks
	)
	ping := func(now time.Time) {
		pinged = now
		s.out.put(message{typ: messagePing, echo: s.quality.ping(now)})
	}
	for {
		select {
		case <-ctx.Done():
			s.bulk.conn.drain(lastTimeout) // the end must not overtake it
			s.kill(context.Cause(ctx))
			return
		case <-s.ctx.Done():
			return
		case <-s.mux.CloseChan():
			s.lost(yamux.ErrSessionShutdown)
			return
		case l = <-s.conn.links:
			gone = l.gone
			away.Stop()
			end.Stop()
			s.live.Store(&liveness{start: time.Now()})
			s.quality.begin(time.Now())
			s.tellReady(func() { s.away, s.cut, s.late = false, false, false })
			l.judge(l.complaint())
			ping(time.Now())
		case <-gone:
			gone = nil
			due.Stop()
			s.log.Info("tunnel: carrier lost", "error", l.cause)
			if s.window == 0 {
				s.kill(fmt.Errorf("carrier lost: %w", l.cause))
				return
			}
			s.tellReady(func() { s.cut = true })
			away.Reset(awayAfter)
			end.Reset(s.window)
		case <-away.C:
			s.tellReady(func() { s.away = true })
		case <-end.C:
			s.kill(fmt.Errorf("no carrier for %v: %w", s.window, l.cause))
			return
		case <-tick.C:
			now := time.Now() // the ticker's may be an old one
			if clocks.jumped(now) && gone != nil {
				s.live.Load().woke(now)
				ping(now)
			} else if now.Sub(pinged) >= pingEvery {
				ping(now)
			}
			if gone != nil {
				if err := l.dead(); err != nil {
					s.conn.drop(l, err)
				}
				l.judge(cmp.Or(l.complaint(), s.quality.look(now)))
				s.tellReady(func() { s.late = s.quality.late(now) })
			}
		case <-due.C:
			if gone == nil {
				break
			}
			live := s.live.Load()
			dead, woke := live.check(planned, time.Now())
			if dead {
				s.conn.drop(l, fmt.Errorf("%w for %v", ErrDead, time.Since(live.last()).Round(time.Second)))
			} else if woke {
				ping(time.Now())
			}
		}
		if gone != nil {
			planned = s.live.Load().due() // earlier than before, after the first answer
			due.Reset(time.Until(planned))
		}
	}
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// tellReady makes a change, and tells the owner what follows from it.
func (s *session) tellReady(change func()) {
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	change()
	if s.onReady != nil {
		s.onReady(s.laptopReady && !s.away, s.laptopReady && !s.cut && !s.late)
	}
}

// seeFrame is called by frameTap for each frame that arrives, before yamux sees it.
func (s *session) seeFrame(f frame) error {
	id, flags := f.stream, f.flags
	if id == controlStream {
		s.controlSeen += uint64(f.data)
		return nil
	}
	s.live.Load().answer(time.Now())
	if flags&(flagSYN|flagACK|flagFIN|flagRST) == 0 && f.data == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if flags&flagSYN != 0 && s.streams[id] == nil {
		if theirs := id%2 == 0; theirs != s.laptop {
			return fmt.Errorf("stream %d opened by the wrong end", id)
		}
		// The other end knows of a stream that an acceptor takes before that has counted it.
		if s.unaccepted == acceptBacklog+acceptors {
			return fmt.Errorf("more than %d streams at once", acceptBacklog)
		}
		if s.accepted >= 2*maxStreams {
			return fmt.Errorf("more than %d streams that were closed or reset, and which it does not end", maxStreams)
		}
		s.unaccepted++
		s.streams[id] = newStream(s, id, false)
	}
	st := s.streams[id]
	if st == nil {
		return nil
	}
	st.met.Store(true)
	if !st.receive.arrived(f.data, true) {
		return fmt.Errorf("stream %d: more than its window", id)
	}
	st.came.Add(uint64(f.data))
	if flags&flagFIN != 0 {
		st.peerDoneAt = s.controlSeen
		st.peerDone.Store(true)
	}
	if flags&(flagFIN|flagRST) != 0 {
		st.ended = true
		if st.forgotten {
			s.remove(st)
		}
	}
	return nil
}

// sayFrame is called by frameTap for each frame that yamux writes. A stream of ours is known from its first one on, so before
// anything can come back about it.
func (s *session) sayFrame(f frame) {
	if f.flags&flagSYN == 0 || f.stream == controlStream {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[f.stream] = newStream(s, f.stream, true)
}

// progress is how far the control stream has been read and acted on.
type progress struct {
	mu    sync.Mutex
	moved *sync.Cond
	bytes uint64
	ended bool
}

func (p *progress) advance(to uint64, ended bool) {
	p.mu.Lock()
	p.bytes, p.ended = to, ended
	p.mu.Unlock()
	p.moved.Broadcast()
}

// wait returns once so many bytes are acted on, or, with false, none will be any more.
func (p *progress) wait(bytes uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.bytes < bytes && !p.ended {
		p.moved.Wait()
	}
	return p.bytes >= bytes
}

// reached says whether so many bytes are acted on, or none will be any more.
func (p *progress) reached(bytes uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes >= bytes || p.ended
}

// readControl reads the other end's messages until the session ends.
func (s *session) readControl() {
	var bytes uint64
	counted := readerFunc(func(p []byte) (int, error) {
		n, err := s.control.Read(p)
		bytes += uint64(n)
		return n, err
	})
	for {
		m, err := readMessage(counted)
		if err != nil {
			s.read.advance(bytes, true)
			s.lost(err)
			return
		}
		switch m.typ {
		case messagePing:
			s.out.put(message{typ: messagePong, echo: m.echo})
		case messagePong:
			now := time.Now()
			s.live.Load().answer(now)
			s.quality.pong(m.echo, now)
		case messageReset:
			if st := s.stream(m.stream); st != nil {
				st.resetByPeer(m.code)
			}
		case messageWindow:
			if st := s.stream(m.stream); st != nil {
				st.sendLimit.Store(max(st.sendLimit.Load(), m.limit))
				st.notify()
			}
		case messageMoved:
			if st := s.stream(m.stream); st != nil {
				st.moved.here.Store(true)
				if s.bulk.over.Load() && st.attached() {
					st.Reset()
				}
			}
		case messageLane:
			if s.laptop {
				s.bulk.ask()
			}
		case messageReady:
			s.tellReady(func() { s.laptopReady = m.on })
		case messageNote:
			if s.onNote != nil {
				s.onNote(m.text)
			}
		}
		s.read.advance(bytes, false)
	}
}

// writeControl writes our messages, and the FINs that must come after them, until the session ends.
func (s *session) writeControl() {
	var buf []byte
	var after []func()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.out.wake:
		}
		buf, after = s.out.take(buf[:0])
		for rest := buf; len(rest) > 0; {
			n := min(len(rest), maxFrame)
			if _, err := s.control.Write(rest[:n]); err != nil {
				s.lost(err)
				return
			}
			rest = rest[n:]
		}
		for _, f := range after {
			f()
		}
	}
}

// acceptStreams takes streams from yamux and never waits for what becomes of them: a stream left in
// yamux's backlog would hold up the ones behind it. Several of it run.
func (s *session) acceptStreams() {
	for {
		y, err := s.mux.AcceptStream()
		if err != nil {
			s.lost(err)
			return
		}
		s.mu.Lock()
		st := s.streams[y.StreamID()]
		s.unaccepted--
		s.accepted++
		tooMany := s.accepted > maxStreams
		s.mu.Unlock()
		st.attach(y)
		if tooMany {
			s.log.Warn("too many streams: new one reset", "limit", maxStreams)
			st.Reset()
			continue
		}
		if st.moved.here.Load() && s.bulk.over.Load() {
			st.Reset()
			continue
		}
		s.handlers.Go(func() { s.serve(st) })
	}
}

// serve reads a stream's header and hands it to the owner. The stream is closed when that returns.
func (s *session) serve(st *Stream) {
	defer func() { _ = st.Close() }()
	_ = st.SetReadDeadline(time.Now().Add(headerTimeout))
	h, err := readHeader(readerFunc(st.read))
	if err != nil {
		if s.ctx.Err() == nil {
			s.log.Warn("stream dropped", "error", err)
		}
		st.Reset()
		return
	}
	_ = st.SetReadDeadline(time.Time{})
	s.mu.Lock()
	st.header = h
	s.mu.Unlock()
	s.accept(st.ctx, st)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// open opens a stream and sends its header, without waiting for the status.
func (s *session) open(ctx context.Context, h Header) (*Stream, error) {
	header, err := appendHeader(nil, h)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil, ErrNoSession
	}
	s.wg.Add(1)
	s.mu.Unlock()

	// yamux's open and write take no context, and wait for their turn on the carrier.
	type result struct {
		st  *Stream
		err error
	}
	opened := make(chan result)
	go func() {
		defer s.wg.Done()
		st, err := s.openNow(h, header)
		select {
		case opened <- result{st, err}:
		case <-ctx.Done():
			if st != nil {
				st.Reset()
			}
		}
	}()
	select {
	case r := <-opened:
		return r.st, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *session) openNow(h Header, header []byte) (*Stream, error) {
	y, err := s.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSession, err)
	}
	s.mu.Lock()
	st := s.streams[y.StreamID()]
	st.header = h
	s.mu.Unlock()
	st.attach(y)
	if st.moved.here.Load() && s.bulk.over.Load() { // as in acceptStreams
		st.Reset()
	}
	st.writeMu.Lock()
	defer st.writeMu.Unlock()
	if _, err := st.write(header); err != nil {
		st.Reset()
		return nil, fmt.Errorf("%w: %w", ErrNoSession, err)
	}
	return st, nil
}

func (s *session) stream(id uint32) *Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// all is a copy of the streams there are.
func (s *session) all() []*Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.streams))
}

// forget drops a stream that is closed on this end, once the other end has ended it, too: until then what it sends counts
// against the stream's window, which does not grow any more, and the stream against its number.
func (s *session) forget(st *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.forgotten = true
	st.receive.close()
	st.moved.drop()
	if st.ended {
		s.remove(st)
	}
}

// remove drops a stream that has ended on both ends. mu is held.
func (s *session) remove(st *Stream) {
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	st.receive.end(&s.budget)
	if !st.opener {
		s.accepted--
	}
}
