package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// bulkAfter is how much a stream has sent when it moves to the bulk lane, and a lane is asked for, since a second carrier is not
	// worth it for less. Where it had to wait for its turn, and others do, a frame is enough: of many streams these would be megabytes.
	bulkAfter = 128 << 10
	// laneAhead is what bulkAhead is on the bulk lane, where nothing small waits: two batches.
	laneAhead = 2 * maxBatch
	// laneIdle is how long the laptop keeps a carrier that no stream uses. It costs every hop a connection, and TCP has forgotten by
	// then what the path carries: of the few small packets since it has learnt too little, and a new connection finds out sooner.
	laneIdle = 10 * time.Second
)

// laneFrame is the first byte of a frame on the bulk lane, SPEC.md section 9.
type laneFrame uint8

const (
	laneData laneFrame = 1
	laneEnd  laneFrame = 2
)

const laneHeader = 8 // type, length (3), stream (4)

func appendLaneHeader(b []byte, typ laneFrame, stream uint32, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(typ)<<24|uint32(length))
	return binary.BigEndian.AppendUint32(b, stream)
}

func parseLaneHeader(b [laneHeader]byte) (typ laneFrame, stream uint32, length int, err error) {
	first := binary.BigEndian.Uint32(b[:])
	typ, length = laneFrame(first>>24), int(first&0xffffff)
	if typ != laneData && typ != laneEnd || length > maxFrame || (typ == laneData) != (length > 0) {
		return 0, 0, 0, fmt.Errorf("bulk lane: frame type %d with %d bytes", typ, length)
	}
	return typ, binary.BigEndian.Uint32(b[4:]), length, nil
}

// lane is a session's second carrier, for bulk. On one carrier everything waits for what was sent before it, in every hop
// between the ends: little may be in flight there, so that small frames are quick, and then no hop has enough to do.
// A direction of a stream that has sent a lot moves here, once and for good, where more may be in flight. It is a resumable
// connection of its own, without yamux: windows and resets are the session's.
type lane struct {
	s      *session
	conn   *resumable
	gate   gate
	wanted chan struct{} // laptop: there is something for it, and no carrier; capacity 1
	asked  atomic.Bool   // pod: the laptop was told that, since the last carrier
	over   atomic.Bool   // it could not be kept: nothing moves any more
}

func newLane(s *session) *lane {
	b := &lane{s: s, wanted: make(chan struct{}, 1)}
	b.gate.ahead = laneAhead
	b.conn = newResumable(&b.gate)
	b.conn.path.bulk = true
	return b
}

// run keeps the lane until the session is over.
func (b *lane) run() {
	var wg sync.WaitGroup
	wg.Go(b.conn.flush)
	wg.Go(b.read)
	b.watch()
	_ = b.conn.Close()
	wg.Wait()
}

// ask has the laptop make a carrier.
func (b *lane) ask() {
	if !b.s.laptop {
		if !b.asked.Swap(true) {
			b.s.out.put(message{typ: messageLane})
		}
		return
	}
	select {
	case b.wanted <- struct{}{}:
	default: // it knows
	}
}

// used says whether the lane is needed: by a stream, or by what one that is closed here has left behind.
func (b *lane) used() bool {
	return !b.conn.delivered() || slices.ContainsFunc(b.s.all(), (*Stream).needsLane)
}

// open says whether a stream may move now.
func (b *lane) open() bool { return !b.over.Load() && b.conn.linked() }

// errIdle says that the carrier is not needed.
var errIdle = errors.New("no stream uses it")

// watch pings, drops a link on which nothing came or that is not needed, and gives up when one that is was missed for the session's
// window.
func (b *lane) watch() {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	end := stoppedTimer()
	defer end.Stop()
	var (
		l      *link
		gone   <-chan struct{} // of l; nil when there is none
		live   *liveness
		pinged time.Time
		used   time.Time // when a stream needed the link
		last   time.Time // when tick fired
		ending bool      // the session's end is about to come on the other carrier
		missed bool      // there is no link, but one is needed, and end runs
		clocks clocks
	)
	// miss sees to it that a link which is needed comes back, or all of this ends.
	miss := func() {
		switch used := b.used(); {
		case ending || used == missed:
		case used:
			missed = true
			b.ask()
			if l == nil {
				end.Reset(max(b.s.window, carrierTimeout)) // the first may be just about to come
			} else {
				end.Reset(b.s.window)
			}
		default:
			missed = false
			end.Stop()
		}
	}
	for {
		select {
		case <-b.s.ctx.Done():
			return
		case l = <-b.conn.links:
			gone, missed, ending = l.gone, false, false
			end.Stop()
			b.asked.Store(false)
			last = time.Now()
			live, pinged, used = &liveness{start: last}, last, last
			b.conn.ping()
		case <-gone:
			gone = nil
			b.asked.Store(false)
			b.s.log.Info("tunnel: bulk carrier ended", "reason", l.cause)
			if ending = errors.Is(l.cause, errEnded); ending {
				end.Reset(max(b.s.window, lastTimeout))
			}
			miss()
		case <-end.C:
			cause := errors.New("there was none")
			if l != nil {
				cause = l.cause
			}
			b.giveUp(fmt.Errorf("no bulk carrier for %v: %w", b.s.window, cause))
			return
		case <-tick.C:
			if gone == nil {
				miss()
				break
			}
			if err := l.dead(); err != nil {
				b.conn.drop(l, err)
				break
			}
			now := time.Now()
			if b.used() {
				used = now
			} else if b.s.laptop && b.s.window > 0 && now.Sub(used) >= laneIdle { // without a window a stream that moves just now would be lost
				select {
				case <-b.wanted: // while this one was made
				default:
				}
				b.conn.drop(l, errIdle)
				break
			}
			if heard := l.heard.Load(); heard > 0 {
				live.answer(l.born.Add(time.Duration(heard)))
			}
			woke := clocks.jumped(now)
			if woke {
				live.woke(now)
			}
			dead, late := live.check(last.Add(clockEvery), now)
			last = now
			switch {
			case dead:
				b.conn.drop(l, fmt.Errorf("%w for %v", ErrDead, now.Sub(live.last()).Round(time.Second)))
			case woke, late, now.Sub(pinged) >= pingEvery:
				pinged = now
				b.conn.ping()
			}
		}
	}
}

// giveUp resets what has moved: what was in flight is lost. The session goes on without the lane. A stream that moves just now
// is reset by who moves it, or learns that it moved.
func (b *lane) giveUp(err error) {
	b.over.Store(true)
	b.conn.fail(err)
	for _, st := range b.s.all() {
		if st.onLane() && st.attached() { // else acceptStreams does it
			st.Reset()
		}
	}
}

// send gives the conn a frame of st's.
func (b *lane) send(typ laneFrame, st *Stream, p []byte) error {
	var head [laneHeader]byte
	return b.conn.writeTwo(appendLaneHeader(head[:0], typ, st.id, len(p)), p)
}

// read hands out what arrives until the lane is over.
func (b *lane) read() {
	err := b.readFrames()
	if b.s.ctx.Err() == nil && !b.over.Load() && !errors.Is(err, errEnded) {
		b.giveUp(err)
	}
}

func (b *lane) readFrames() error {
	for {
		var head [laneHeader]byte
		if _, err := io.ReadFull(b.conn, head[:]); err != nil {
			return err
		}
		typ, id, length, err := parseLaneHeader(head)
		if err != nil {
			b.s.kill(err)
			return err
		}
		p := buffers.Get().(*[spliceBuffer]byte)
		if _, err := io.ReadFull(b.conn, p[:length]); err != nil {
			buffers.Put(p)
			return err
		}
		st := b.s.stream(id)
		switch {
		case st == nil: // closed here
			buffers.Put(p)
		case typ == laneEnd:
			buffers.Put(p)
			st.moved.finish()
		case !st.receive.arrived(uint32(length), false):
			buffers.Put(p)
			err := fmt.Errorf("stream %d: more than its window", id)
			b.s.kill(err)
			return err
		default:
			st.moved.add(p, length)
		}
	}
}

// arrivals are what has come of a stream on the bulk lane and is not yet read. The zero value is ready.
type arrivals struct {
	here atomic.Bool // the other end has said that it moved
	turn bool        // what came on the main lane is read: under readMu

	mu    sync.Mutex
	wake  chan struct{} // capacity 1, made when first waited for: something came
	parts []part
	ended bool
	gone  bool // nobody reads any more
}

// part is what is left of a frame.
type part struct {
	buffer     *[spliceBuffer]byte
	begin, end int
}

func (a *arrivals) add(b *[spliceBuffer]byte, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.gone {
		buffers.Put(b)
		return
	}
	defer a.notifyLocked()
	if last := len(a.parts) - 1; last >= 0 { // each buffer is filled: what is kept is what the window counts
		m := copy(a.parts[last].buffer[a.parts[last].end:], b[:n])
		a.parts[last].end += m
		if m > 0 {
			n = copy(b[:], b[m:n])
		}
	}
	if n == 0 {
		buffers.Put(b)
		return
	}
	a.parts = append(a.parts, part{b, 0, n})
}

func (a *arrivals) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.notifyLocked()
}

// over says whether the end has come.
func (a *arrivals) over() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// notify has a waiting reader look again.
func (a *arrivals) notify() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.notifyLocked()
}

func (a *arrivals) notifyLocked() {
	select {
	case a.wake <- struct{}{}:
	default: // nobody waits, or it knows
	}
}

// take copies to p what there is. Without anything it says whether that was the end, and else what to wait for.
func (a *arrivals) take(p []byte) (n int, ended bool, wake <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.parts) > 0 && n < len(p) {
		first := &a.parts[0]
		m := copy(p[n:], first.buffer[first.begin:first.end])
		n += m
		if first.begin += m; first.begin == first.end {
			buffers.Put(first.buffer)
			a.parts[0] = part{}
			a.parts = a.parts[1:]
		}
	}
	if a.wake == nil {
		a.wake = make(chan struct{}, 1)
	}
	return n, a.ended, a.wake
}

// drop gives back what nobody will read.
func (a *arrivals) drop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone = true
	for _, p := range a.parts {
		buffers.Put(p.buffer)
	}
	a.parts = nil
}

// Where no second carrier can be had at all, it is tried laneTries times like a first one, and then every laneRetry.
const (
	laneTries = 5
	laneRetry = time.Minute
)

// errNoLane says that the pod would not have the carrier.
var errNoLane = errors.New("the pod does not take a second carrier")

// keepLane makes a carrier for s's bulk lane whenever one is wanted.
func (c *Client) keepLane(ctx context.Context, s *session) {
	never := true
	for failures := 0; ; {
		select {
		case <-s.bulk.wanted:
		case <-s.ctx.Done():
			return
		}
		l, err := c.connectLane(ctx, s)
		switch {
		case err == nil:
			never = false
			select {
			case <-l.gone:
			case <-s.ctx.Done():
				return
			}
			if err = l.cause; errors.Is(err, errEnded) {
				return
			}
			if l.heard.Load() > 0 {
				failures = 0
			}
			if errors.Is(err, errIdle) {
				continue
			}
			s.bulk.ask() // what the pod asked while this one was made may be about this one's loss
		case errors.Is(err, errNoLane):
			c.log().Info("tunnel: no bulk carrier", "error", err)
			if s.ctx.Err() == nil {
				s.bulk.giveUp(err)
			}
			return
		default:
			s.bulk.ask() // it still is
		}
		wait := backoff(failures)
		if failures++; never && failures > laneTries {
			wait = laneRetry
		}
		c.log().Info("tunnel: no bulk carrier", "error", err, "next try in", wait)
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(wait):
		}
		if s.bulk.over.Load() {
			return
		}
	}
}

func (c *Client) connectLane(ctx context.Context, s *session) (*link, error) {
	dialCtx, cancel := context.WithTimeout(ctx, carrierTimeout)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	carrier, _, err := c.Carrier(dialCtx)
	if err != nil {
		return nil, err
	}
	want := attach{kind: attachLane, id: s.id, epoch: c.c.epoch}
	received, turn := s.bulk.conn.detach(errReplaced)
	want.received = received
	// The pod that has the session, and no other.
	l, met, err := dialHandshake(dialCtx, carrier, c.Key, s.pod, hello{protocol: Protocol, info: Info{Version: c.Version}}, want)
	if err != nil {
		return nil, err
	}
	if err := met.answer.err(); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("%w: %w", errNoLane, err)
	}
	return l, s.bulk.resume(l, turn, met.answer.received)
}

// resume goes on with l, on which the other end said that it has the first theirs bytes of what we sent. On error l is
// closed.
func (b *lane) resume(l *link, turn int, theirs uint64) error {
	err := b.conn.attach(l, turn, theirs)
	if err != nil && !errors.Is(err, errReplaced) {
		b.giveUp(err)
		return fmt.Errorf("%w: %w", errNoLane, err)
	}
	return err
}
