package tunnel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"bridge/internal/hint"
)

const (
	// carrierTimeout bounds Carrier: longer than a slow API server needs, short enough for a second try.
	carrierTimeout = 10 * time.Second
	// Tries are at once, then after backoffFirst, doubling up to backoffMax, each shortened by up to a
	// half at random, so that the laptops of an office do not come back in step.
	backoffFirst = 250 * time.Millisecond
	backoffMax   = 5 * time.Second
	// serverKeyPatience is how long a peer may show another key than the pinned one, which is never accepted,
	// before that is final: after a restart the pod's new name may reach us later than its new key.
	serverKeyPatience = 10 * time.Second
	// defaultResumeWindow is longer than a change of network takes, and shorter than most peers' patience.
	defaultResumeWindow = time.Minute
)

var (
	// ErrNoSession says that there is no session now. Another may come.
	ErrNoSession = errors.New("the tunnel is down")
	// ErrClosed says that Run has returned: there will be no session any more.
	ErrClosed = errors.New("the tunnel is closed")
)

// Phase is what a Client is doing.
type Phase int

// The phases, in their usual order.
const (
	Connecting   Phase = iota // no session yet
	Ready                     // a session on a carrier that answers
	Degraded                  // the same, but slow, lossy, or by a carrier that is a fallback
	Reconnecting              // the carrier is lost, the next one is being made; the session may live on
	Lost                      // for good: Run has returned
)

func (p Phase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Ready:
		return "ready"
	case Degraded:
		return "degraded"
	case Reconnecting:
		return "reconnecting"
	case Lost:
		return "lost"
	}
	return fmt.Sprintf("phase %d", int(p))
}

// Carries says whether there is a session on a carrier that answers.
func (p Phase) Carries() bool { return p == Ready || p == Degraded }

// State is a Client's phase, since when, and why.
type State struct {
	Phase Phase
	Since time.Time // when the phase began
	Err   error     // Degraded: what is wrong; Reconnecting, Lost: the last error; Connecting: of the last try, if any
}

// Client is the laptop's end: it keeps one session to the pod alive, over carriers that it dials.
// Set the fields before Run; Carrier and Key are needed, the rest may be left zero.
type Client struct {
	// Carrier dials the pod's tunnel port. ctx bounds the dialling (10 s), not conn. peer names whose
	// key is met: whatever keeps the same key has the same name. The pod's proxy makes its key when it
	// starts, so that is the pod's UID and its container's restart count (or container ID).
	//
	// A conn that has a method Degraded() string is asked every second by one goroutine what is wrong with it: that it is
	// the fallback for a better carrier, for instance. While that is not "" the phase is Degraded instead of Ready.
	// One that has a method Dead() error is asked as often whether it is beyond use, before silence would tell.
	Carrier func(ctx context.Context) (conn net.Conn, peer string, err error)
	Key     Key
	Version string // of this software, for the other end's messages

	// Pins are the peers' keys known before Run, as an earlier Client's Pinned gave them. Others are
	// learnt on first contact.
	Pins map[string]Fingerprint

	// ResumeWindow is how long a session, and all connections in it, outlives its carrier. Zero means 60 s, a
	// negative one that it does not; at most MaxResumeWindow.
	ResumeWindow time.Duration
	// KeyPatience is how long on end a pod may refuse our key before that is final: one that is there already may learn of it
	// later than we ask. Zero means not at all.
	KeyPatience time.Duration
	// Epoch tells two bridges with the same Key apart: the one with the higher epoch displaces the other, which gets
	// ErrDisplaced. Zero means the time of Run, in nanoseconds since 1970, so that the later one wins.
	Epoch uint64

	// Handle is called for each Inbound stream, in a goroutine of its own; it calls Accept or Refuse. ctx is done when
	// the stream or its session is; Run waits for its return. The stream is closed then. Nil refuses all. A header with
	// the network "udp" says that it carries datagrams: see SpliceDatagrams.
	Handle func(ctx context.Context, s *Stream)
	// OnState is called at each change, one call at a time. It must not block.
	OnState func(State)
	// OnNote is told what the pod says of itself, a line each (Server.Note): all of it at the start of a session, if there is
	// any, and at each change; and "" with lost when the session is, with which the pod may be. It must not block.
	OnNote func(text string, lost bool)
	Log    *slog.Logger // nil: no log

	once sync.Once
	mu   sync.Mutex
	c    clientState
}

// clientState is what changes while a Client runs; mu guards it.
type clientState struct {
	state   State
	session *session
	changed chan struct{} // closed and replaced at each change of state or session
	ended   error         // why Run has returned
	info    Info
	known   bool   // info is set
	ready   bool   // as SetReady said
	note    string // what the pod said last
	epoch   uint64
	pins    map[string]Fingerprint
}

// init makes the zero value's hidden half.
func (c *Client) init() {
	c.once.Do(func() {
		c.c.changed = make(chan struct{})
		c.c.state.Since = time.Now()
		c.c.pins = make(map[string]Fingerprint)
		maps.Copy(c.c.pins, c.Pins)
	})
}

func (c *Client) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// Run keeps a session until ctx is done, and then returns nil. It returns an error when there can be
// no session any more: another key than at first contact, for 10 s (ErrServerKey), our key refused
// for KeyPatience (ErrKeyRefused), a later bridge with our key (ErrDisplaced), another protocol version (*VersionError). Call it once.
func (c *Client) Run(ctx context.Context) error {
	c.init()
	if c.Carrier == nil || c.Key.isZero() {
		return errors.New("tunnel client: Carrier and Key must be set")
	}
	if c.c.epoch = c.Epoch; c.c.epoch == 0 {
		c.c.epoch = uint64(time.Now().UnixNano())
	}
	var handlers sync.WaitGroup
	err := c.keep(ctx, &handlers)
	handlers.Wait()
	c.mu.Lock()
	c.c.ended = ErrClosed
	if err != nil {
		c.c.ended = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.mu.Unlock()
	if err == nil {
		c.setState(Lost, context.Cause(ctx), nil)
		return nil
	}
	c.setState(Lost, err, nil)
	return err
}

// keep makes one link after the other: for the session there is, or else for a new one.
func (c *Client) keep(ctx context.Context, handlers *sync.WaitGroup) (err error) {
	c.setState(Connecting, nil, nil)
	phase := Connecting
	failures := 0
	var otherKey, refused doubt
	var sessions sync.WaitGroup
	var s *session
	defer func() {
		if s != nil && err != nil {
			s.kill(err)
		}
		sessions.Wait()
		c.forget(s)
	}()
	for {
		next, l, err := c.connect(ctx, s, handlers)
		if next != s {
			c.forget(s)
			if next != nil {
				sessions.Go(func() { _ = next.run(ctx) })
				sessions.Go(func() { c.keepLane(ctx, next) })
			}
			s = next
		}
		if err == nil {
			err = s.waitLink(l, func(why string) { c.judged(why, s) })
			phase = Reconnecting
			if l.useful {
				failures = 0
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if s != nil && !s.alive() {
			c.forget(s)
			s = nil
		}
		learning := otherKey.within(serverKeyPatience, errors.Is(err, ErrServerKey))
		unknown := refused.within(c.KeyPatience, errors.Is(err, ErrKeyRefused))
		if final := finalError(err); final != nil && !learning && !unknown {
			return final
		}
		wait := backoff(failures)
		failures++
		c.log().Info("tunnel: no carrier", "error", err, "next try in", wait)
		c.setState(phase, err, s)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// forget has what the pod said in s, which may be nil, be forgotten.
func (c *Client) forget(s *session) {
	if s != nil {
		c.note("", true)
	}
}

// note passes on what the pod says of itself, or that it is lost.
func (c *Client) note(text string, lost bool) {
	c.mu.Lock()
	nothing := c.c.note == "" && text == ""
	c.c.note = text
	c.mu.Unlock()
	if c.OnNote != nil && !nothing {
		c.OnNote(text, lost)
	}
}

// doubt is since when something has been so on end; zero when it is not.
type doubt time.Time

// within notes whether it is so now, and tells whether it has been for less than long.
func (d *doubt) within(long time.Duration, now bool) bool {
	switch since := time.Time(*d); {
	case !now:
		*d = doubt{}
		return false
	case since.IsZero():
		*d = doubt(time.Now())
		return long > 0
	default:
		return time.Since(since) < long
	}
}

// backoff is the wait after so many failures in a row.
func backoff(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	full := backoffMax
	if shift := failures - 1; shift < 5 {
		full = min(backoffMax, backoffFirst<<shift)
	}
	return full - mathrand.N(full/2)
}

// finalError is err with its next step when trying again cannot help, else nil.
func finalError(err error) error {
	var version *VersionError
	switch {
	case errors.As(err, &version):
		return hint.New(hint.TunnelLost, err, version.Advice())
	case errors.Is(err, ErrServerKey):
		return hint.New(hint.TunnelLost, err, "the proxy was replaced behind our back, or somebody is in between; "+
			"give back with bridge restore and start again")
	case errors.Is(err, ErrKeyRefused):
		return hint.New(hint.TunnelLost, err, "the proxy was started by another bridge command; give back with bridge restore and start again")
	case errors.Is(err, ErrDisplaced):
		return hint.New(hint.TunnelLost, err, "end one of the two bridge commands")
	}
	return nil
}

// connect makes a link and puts a session on it: s, which may be nil, when the pod still has it, else a new one. It
// returns the session there is then, nil for none, also with an error.
func (c *Client) connect(ctx context.Context, s *session, handlers *sync.WaitGroup) (*session, *link, error) {
	dialCtx, cancel := context.WithTimeout(ctx, carrierTimeout)
	carrier, peer, err := c.Carrier(dialCtx)
	cancel()
	if err != nil {
		return s, nil, err
	}
	c.mu.Lock()
	pinned := c.c.pins[peer]
	c.mu.Unlock()
	want, turn := c.newAttach(), 0
	if s != nil && s.alive() {
		want.kind, want.id = attachResume, s.id
		want.received, turn = s.conn.detach(errReplaced)
	}
	l, met, err := dialHandshake(ctx, carrier, c.Key, pinned, hello{protocol: Protocol, info: Info{Version: c.Version}}, want)
	if err != nil {
		return s, nil, err
	}
	c.mu.Lock()
	c.c.pins[peer] = met.key
	c.c.info, c.c.known = l.peer.info, true
	c.mu.Unlock()
	if want.kind == attachResume {
		err := met.answer.err()
		if err == nil && met.key != s.pod {
			err = fmt.Errorf("%w: it has another key", errUnknownSession)
		}
		if err == nil {
			return s, l, s.resume(l, turn, met.answer.received)
		}
		s.kill(err)
		if !errors.Is(err, errUnknownSession) {
			_ = l.Close()
			return nil, nil, err
		}
		want = c.newAttach()
		if met.answer, err = l.offer(ctx, want); err != nil {
			return nil, nil, err
		}
	}
	if err := met.answer.err(); err != nil {
		_ = l.Close()
		return nil, nil, err
	}
	s, err = newSession(ctx, l, &session{
		laptop:   true,
		id:       want.id,
		window:   want.window,
		pod:      met.key,
		log:      c.log(),
		accept:   c.handle,
		onNote:   func(text string) { c.note(text, false) },
		handlers: handlers,
	})
	if err != nil {
		return nil, nil, err
	}
	return s, l, nil
}

// errReplaced is why a link ends whose session goes on with the next.
var errReplaced = errors.New("replaced by another carrier")

// newAttach asks for a new session.
func (c *Client) newAttach() attach {
	a := attach{kind: attachNew, epoch: c.c.epoch, window: c.resumeWindow()}
	_, _ = rand.Read(a.id[:]) // never fails
	return a
}

func (c *Client) resumeWindow() time.Duration {
	switch {
	case c.ResumeWindow == 0:
		return defaultResumeWindow
	case c.ResumeWindow < 0:
		return 0
	}
	return min(c.ResumeWindow, MaxResumeWindow).Truncate(time.Millisecond)
}

func (c *Client) handle(ctx context.Context, st *Stream) {
	if st.header.Kind != Inbound || c.Handle == nil {
		_ = st.Refuse(fmt.Errorf("%v is not served here", st.header.Kind))
		return
	}
	c.Handle(ctx, st)
}

// setState publishes a change, and s, the session from now on.
func (c *Client) setState(phase Phase, err error, s *session) {
	c.mu.Lock()
	if c.c.state.Phase != phase {
		c.c.state.Since = time.Now()
	}
	c.c.state.Phase, c.c.state.Err = phase, err
	if c.c.session != s && s != nil {
		s.out.put(message{typ: messageReady, on: c.c.ready})
	}
	c.c.session = s
	close(c.c.changed)
	c.c.changed = make(chan struct{})
	state := c.c.state
	c.mu.Unlock()
	if c.OnState != nil {
		c.OnState(state)
	}
}

// judged publishes what is wrong with the present link, "" for nothing.
func (c *Client) judged(why string, s *session) {
	if why == "" {
		c.setState(Ready, nil, s)
		return
	}
	c.setState(Degraded, errors.New(why), s)
}

// State is what the client is doing now.
func (c *Client) State() State {
	state, _ := c.Watch()
	return state
}

// Watch is State, and a channel that is closed at the next change of state.
func (c *Client) Watch() (State, <-chan struct{}) {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.state, c.c.changed
}

// Info is what the pod said of itself at the latest session's start; false before the first.
func (c *Client) Info() (Info, bool) {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.info, c.c.known
}

// Pinned is a copy of the peers' keys, to be given to a later Client as Pins.
func (c *Client) Pinned() map[string]Fingerprint {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.c.pins)
}

// SetReady says whether the local process takes connections; not until it is called. The pod is told
// now, and again at the start of each session.
func (c *Client) SetReady(ready bool) {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.ready = ready
	if c.c.session != nil {
		c.c.session.out.put(message{typ: messageReady, on: ready})
	}
}

// WaitReady waits for a session on a carrier. The error wraps ErrClosed when there will be none.
func (c *Client) WaitReady(ctx context.Context) error {
	_, err := c.wait(ctx, true)
	return err
}

// wait waits for a session, and when ready is set also for its carrier.
func (c *Client) wait(ctx context.Context, ready bool) (*session, error) {
	c.init()
	for {
		c.mu.Lock()
		s, ended, changed := c.c.session, c.c.ended, c.c.changed
		phase := c.c.state.Phase
		last := c.c.state.Err
		c.mu.Unlock()
		if ended != nil {
			return nil, ended
		}
		if s != nil && s.alive() && (phase.Carries() || !ready) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := fmt.Errorf("%w: %w", ErrNoSession, context.Cause(ctx))
			if last != nil {
				err = fmt.Errorf("%w (%v)", err, last) //nolint:errorlint // what the carrier met is not what the target has: ECONNREFUSED, for one
			}
			return nil, err
		}
	}
}

// DialContext has the pod dial address and waits until it is connected ("tcp"; a *Stream), or until the pod has a socket for
// it ("udp", and "icmp", of which each datagram is an echo as internal/ping has it; a *Datagrams). It waits for a session first, for its next carrier, and for the next session when that is lost
// before the pod has answered; ctx bounds all of it. The error wraps syscall.ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT or EACCES (not allowed) or a *net.DNSError when the pod met
// that, and ErrClosed when Run has returned.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return c.dial(ctx, network, address, false)
}

// DialEarly is DialContext that does not wait for the pod: what is written goes right behind the header, so a question
// and its answer take one round trip. Read's first error is what the pod met, or syscall.ECONNRESET when the session was lost before it
// answered: that is not tried in the next.
func (c *Client) DialEarly(ctx context.Context, network, address string) (net.Conn, error) {
	return c.dial(ctx, network, address, true)
}

func (c *Client) dial(ctx context.Context, network, address string, early bool) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("dial %s through the tunnel: %w", address, err)
	}
	h := Header{Kind: Dial, Network: network, Address: address}
	if _, known := networks[network]; !known {
		return fail(net.UnknownNetworkError(network))
	}
	st, err := c.open(ctx, h, early)
	switch {
	case err != nil:
		return fail(err)
	case h.datagrams():
		return st.Datagrams(), nil
	}
	return st, nil
}

// open opens a stream and, unless it is early, waits for the pod's answer, in this session or the next.
func (c *Client) open(ctx context.Context, h Header, early bool) (*Stream, error) {
	for {
		s, err := c.wait(ctx, false)
		if err != nil {
			return nil, err
		}
		st, err := s.open(ctx, h)
		if err == nil && !early {
			if err = st.WaitStatus(ctx); err != nil {
				st.Reset()
			}
		}
		if err == nil {
			return st, nil
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
			if !c.State().Phase.Carries() { // it was not the target that did not answer
				err = fmt.Errorf("%w: %w", ErrNoSession, err)
			}
			return nil, err
		}
		if s.alive() {
			return nil, err
		}
		// Lost meanwhile. wait returns the next session once keep has noticed, too.
		<-s.ctx.Done()
	}
}
