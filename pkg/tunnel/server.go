package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
)

// maxFlows is how many flows of datagrams the laptop may have open: each has a socket, and those of a client that forgets them
// live for minutes.
const maxFlows = 2048

// Server is the pod's end: it serves one laptop, the one whose key it was given.
// Set the fields before Serve; Key and Client are needed.
type Server struct {
	Key    Key
	Client Fingerprint // the laptop's key, and no other
	// Info is asked at the start of each session. Nil tells the laptop nothing.
	Info func() Info
	// Dial serves the laptop's Dial streams, network "tcp", "udp" and "icmp". ctx is done when the laptop has lost interest. Nil refuses all.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// View tells w what the container sees, the same each time unless something has changed. One call at a time; an error has the laptop
	// ask again. Nil refuses.
	View func(w *ViewWriter) error
	// OnReady is told, at each change and one call at a time, whether there is a session whose laptop said that
	// its process is ready. False at the start, without a call. It must not block.
	OnReady func(bool)
	Log     *slog.Logger // nil: no log
	// Memory is shared with other Servers of the process, so that there is one bound of what their callers do not read. Nil: its own.
	Memory *Memory

	alone  sync.Once
	door   Door         // Serve's
	flows  atomic.Int32 // that are open
	viewMu sync.Mutex   // one call of View at a time

	mu      sync.Mutex
	session *session
	ended   bool   // by End
	ready   bool   // of session
	epoch   uint64 // the highest that a laptop came with

	note string // Note's

	answering bool          // of session
	changed   chan struct{} // closed at the next change of answering; nil: nobody waits for one

	readyMu sync.Mutex
	told    bool // what OnReady was told last
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// Serve accepts carriers from ln, of this laptop alone, as Door's does.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	if s.Key.isZero() || s.Client == (Fingerprint{}) {
		_ = ln.Close()
		return errors.New("tunnel server: Key and Client must be set")
	}
	s.alone.Do(func() {
		s.door.Key, s.door.Log = s.Key, s.Log
		s.door.Server = func(f Fingerprint) *Server {
			if s.Client.equal(f) {
				return s
			}
			return nil
		}
	})
	return s.door.Serve(ctx, ln)
}

// Refused counts the connections to Serve that did not become a session.
func (s *Server) Refused() uint64 { return s.door.refused.Load() }

// errLeft is why a laptop that has come through the door is let go.
var errLeft = errors.New("the laptop is let in no more")

// End ends the session for good: nobody is let in any more. For who has a Door.
func (s *Server) End() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.displace(nil)
}

// serve makes a session of a carrier and runs it.
func (s *Server) serve(ctx context.Context, l *link) error {
	ours := hello{protocol: Protocol}
	if s.Info != nil {
		ours.info = s.Info()
	}
	if err := acceptHello(ctx, l, ours); err != nil {
		var version *VersionError
		if errors.As(err, &version) {
			err = fmt.Errorf("%w; %s", err, version.Advice())
		}
		return err
	}
	return s.admit(ctx, l)
}

// admit does what the laptop wants of l: it goes on with the session there is, or runs a new one, which takes until that
// is over.
func (s *Server) admit(ctx context.Context, l *link) error {
	for range maxAttaches {
		var a attach
		err := l.bounded(ctx, func() (err error) { a, err = readAttach(l); return err })
		if err != nil {
			return err
		}
		if !s.enter(a) {
			_ = answer(ctx, l, attached{verdict: attachOld})
			_ = l.Close()
			return fmt.Errorf("%w: its epoch is %d", ErrDisplaced, a.epoch)
		}
		if a.kind == attachNew {
			s.run(ctx, l, a)
			return nil
		}
		if current, err := s.current(); err == nil && current.id == a.id && (a.kind != attachLane || !current.bulk.over.Load()) {
			conn, resume := current.conn, current.resume
			if a.kind == attachLane {
				conn, resume = current.bulk.conn, current.bulk.resume
			}
			if conn.knows(a.received) {
				_ = l.Close() // nobody else does, and the laptop waits for an answer
				return errDelayed
			}
			received, turn := conn.detach(errReplaced)
			if err := answer(ctx, l, attached{received: received}); err != nil {
				return err
			}
			return resume(l, turn, a.received)
		}
		if err := answer(ctx, l, attached{verdict: attachUnknown}); err != nil {
			return err
		}
	}
	_ = l.Close()
	return errors.New("asked for sessions that are over, and for no new one")
}

// errDelayed is why a carrier is not taken whose laptop has another by now.
var errDelayed = errors.New("asked for its session before what it has acknowledged on a later carrier")

// maxAttaches is how often a laptop may ask on one link: for the session it had, and then for a new one.
const maxAttaches = 2

func answer(ctx context.Context, l *link, a attached) error {
	return l.bounded(ctx, func() error {
		_, err := l.Write(appendAttached(nil, a))
		return err
	})
}

// enter takes note of a's epoch; false when a later one was seen.
func (s *Server) enter(a attach) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.epoch < s.epoch {
		return false
	}
	s.epoch = a.epoch
	return true
}

// run displaces the session there is and runs the next one on l.
func (s *Server) run(ctx context.Context, l *link, a attach) {
	s.displace(nil)
	if err := answer(ctx, l, attached{}); err != nil {
		s.log().Warn("tunnel: no session", "error", err)
		return
	}
	var handlers sync.WaitGroup
	defer handlers.Wait()
	next := &session{id: a.id, window: a.window, log: s.log(), accept: s.handle, handlers: &handlers}
	next.held.memory = s.Memory
	next.onReady = func(ready, answering bool) { s.setReady(next, ready, answering) }
	next, err := newSession(ctx, l, next)
	if err != nil {
		s.log().Warn("tunnel: no session", "error", err)
		return
	}
	s.displace(next)
	s.log().Info("tunnel: session", "laptop", l.peer.info.Version)
	err = next.run(ctx)
	s.mu.Lock()
	if s.session == next {
		s.setLocked(nil, false, false)
	}
	s.mu.Unlock()
	s.tellReady()
	s.log().Info("tunnel: session ended", "reason", err)
}

var errDisplaced = errors.New("displaced by a new session")

// displace makes next the session, and closes the one before with all its streams.
func (s *Server) displace(next *session) {
	s.mu.Lock()
	over, why := []*session{s.session}, errDisplaced
	if s.ended {
		over, why, next = append(over, next), errLeft, nil
	}
	s.setLocked(next, false, false)
	s.mu.Unlock()
	s.tellReady()
	for _, o := range over {
		if o != nil {
			o.kill(why)
		}
	}
}

func (s *Server) setReady(of *session, ready, answering bool) {
	s.mu.Lock()
	if s.session == of {
		s.setLocked(of, ready, answering)
	}
	s.mu.Unlock()
	s.tellReady()
}

// setLocked needs mu.
func (s *Server) setLocked(of *session, ready, answering bool) {
	if of != nil && of != s.session && s.note != "" {
		of.out.put(message{typ: messageNote, text: s.note})
	}
	s.session, s.ready = of, ready
	if answering != s.answering && s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	s.answering = answering
}

// Answering says whether the laptop takes connections at this moment: its process is ready, there is a carrier, and no answer is
// late on that. A cut that may heal shows at once, where OnReady waits for 5 s. changed is closed at the next change.
func (s *Server) Answering() (answering bool, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.answering, s.changed
}

// Note has the laptop told what there is to know here, a line each, in place of what Note said before; also the next laptop. Of
// more than 1024 bytes the first lines arrive, and how many there are beside them.
func (s *Server) Note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.note == text {
		return
	}
	s.note = text
	if s.session != nil {
		s.session.out.put(message{typ: messageNote, text: text})
	}
}

// tellReady calls OnReady when there is something new to tell.
func (s *Server) tellReady() {
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	if ready != s.told {
		s.told = ready
		if s.OnReady != nil {
			s.OnReady(ready)
		}
	}
}

// Connected says whether there is a session.
func (s *Server) Connected() bool {
	_, err := s.current()
	return err == nil
}

func (s *Server) current() (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil || !s.session.alive() {
		return nil, ErrNoSession
	}
	return s.session, nil
}

// Open opens a stream to the laptop, and does not wait for its answer. The error wraps ErrNoSession
// when there is no session.
func (s *Server) Open(ctx context.Context, h Header) (*Stream, error) {
	current, err := s.current()
	if err != nil {
		return nil, err
	}
	return current.open(ctx, h)
}

// handle serves one stream of the laptop's.
func (s *Server) handle(ctx context.Context, st *Stream) {
	h := st.Header()
	if h.Kind == Look && s.View != nil {
		if err := s.tellView(st); err != nil {
			s.log().Warn("tunnel: view", "error", err)
			st.Reset()
		}
		return
	}
	if h.Kind != Dial || s.Dial == nil {
		_ = st.Refuse(fmt.Errorf("%v is not served here", h.Kind))
		return
	}
	if h.datagrams() {
		defer s.flows.Add(-1)
		if s.flows.Add(1) > maxFlows {
			_ = st.Refuse(fmt.Errorf("more than %d flows of datagrams", maxFlows))
			return
		}
	}
	conn, err := s.Dial(ctx, h.Network, h.Address)
	if err != nil {
		_ = st.Refuse(err)
		return
	}
	if err := st.Accept(); err != nil {
		_ = conn.Close()
		return
	}
	if h.datagrams() {
		if dropped, err := SpliceDatagrams(st, conn, FlowIdle(h.Network, h.Address)); err != nil || dropped > 0 {
			s.log().Debug("tunnel: flow ended", "target", h.Address, "error", err, "dropped", dropped)
		}
		return
	}
	if err := Splice(st, conn); err != nil {
		s.log().Debug("tunnel: connection ended", "target", h.Address, "error", err)
	}
}
