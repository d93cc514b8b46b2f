package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
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
	// settled is how long a session must have lived for its end to be followed by a try at once.
	settled = 5 * time.Second
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
	Ready                     // a session that answers
	Reconnecting              // the session is lost, the next one is being made
	Lost                      // for good: Run has returned
)

func (p Phase) String() string {
	switch p {
	case Connecting:
		return "connecting"
	case Ready:
		return "ready"
	case Reconnecting:
		return "reconnecting"
	case Lost:
		return "lost"
	}
	return fmt.Sprintf("phase %d", int(p))
}

// State is a Client's phase, since when, and why.
type State struct {
	Phase Phase
	Since time.Time // when the phase began
	Err   error     // Reconnecting, Lost: the last error; Connecting: of the last try, if any
}

// Client is the laptop's end: it keeps one session to the pod alive, over carriers that it dials.
// Set the fields before Run; Carrier and Key are needed, the rest may be left zero.
type Client struct {
	// Carrier dials the pod's tunnel port. ctx bounds the dialling (10 s), not conn. peer names whose
	// key is met: whatever keeps the same key has the same name. The pod's proxy makes its key when it
	// starts, so that is the pod's UID and its container's restart count (or container ID).
	Carrier func(ctx context.Context) (conn net.Conn, peer string, err error)
	Key     Key
	Version string // of this software, for the other end's messages

	// Pins are the peers' keys known before Run, as an earlier Client's Pinned gave them. Others are
	// learnt on first contact.
	Pins map[string]Fingerprint

	// Handle is called for each Inbound stream, in a goroutine of its own; it calls Accept or Refuse. ctx is done when
	// the stream or its session is; Run waits for its return. The stream is closed then. Nil refuses all.
	Handle func(ctx context.Context, s *Stream)
	// OnState is called at each change, one call at a time. It must not block.
	OnState func(State)
	Log     *slog.Logger // nil: no log

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
	known   bool // info is set
	ready   bool // as SetReady said
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
// (ErrKeyRefused), another protocol version (*VersionError). Call it once.
func (c *Client) Run(ctx context.Context) error {
	c.init()
	if c.Carrier == nil || c.Key.isZero() {
		return errors.New("tunnel client: Carrier and Key must be set")
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

// keep makes one session after the other.
func (c *Client) keep(ctx context.Context, handlers *sync.WaitGroup) error {
	c.setState(Connecting, nil, nil)
	phase := Connecting
	failures := 0
	var otherKey time.Time // since when the pod shows another key; zero when it does not
	for {
		s, err := c.connect(ctx, handlers)
		if err == nil {
			began := time.Now()
			c.setState(Ready, nil, s)
			err = s.run(ctx)
			phase = Reconnecting
			if time.Since(began) >= settled {
				failures = 0
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, ErrServerKey) {
			otherKey = time.Time{}
		} else if otherKey.IsZero() {
			otherKey = time.Now()
		}
		patient := !otherKey.IsZero() && time.Since(otherKey) < serverKeyPatience
		if final := finalError(err); final != nil && !patient {
			return final
		}
		wait := backoff(failures)
		failures++
		c.log().Info("tunnel: no session", "error", err, "next try in", wait)
		c.setState(phase, err, nil)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
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
	return full - rand.N(full/2)
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
	}
	return nil
}

// connect makes one session.
func (c *Client) connect(ctx context.Context, handlers *sync.WaitGroup) (*session, error) {
	dialCtx, cancel := context.WithTimeout(ctx, carrierTimeout)
	carrier, peer, err := c.Carrier(dialCtx)
	cancel()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	pinned := c.c.pins[peer]
	c.mu.Unlock()
	l, met, err := dialHandshake(ctx, carrier, c.Key, pinned, hello{protocol: protocolVersion, info: Info{Version: c.Version}})
	if err != nil {
		return nil, err
	}
	s, err := newSession(ctx, l, &session{
		laptop:   true,
		log:      c.log(),
		accept:   c.handle,
		handlers: handlers,
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.c.pins[peer] = met
	c.c.info, c.c.known = l.peer.info, true
	c.mu.Unlock()
	return s, nil
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
	c.c.session = s
	if s != nil {
		s.out.put(message{typ: messageReady, on: c.c.ready})
	}
	close(c.c.changed)
	c.c.changed = make(chan struct{})
	state := c.c.state
	c.mu.Unlock()
	if c.OnState != nil {
		c.OnState(state)
	}
}

// State is what the client is doing now.
func (c *Client) State() State {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.c.state
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

// WaitReady waits for a session. The error wraps ErrClosed when there will be none.
func (c *Client) WaitReady(ctx context.Context) error {
	_, err := c.wait(ctx)
	return err
}

func (c *Client) wait(ctx context.Context) (*session, error) {
	c.init()
	for {
		c.mu.Lock()
		s, ended, changed := c.c.session, c.c.ended, c.c.changed
		last := c.c.state.Err
		c.mu.Unlock()
		if ended != nil {
			return nil, ended
		}
		if s != nil && s.alive() {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err := fmt.Errorf("%w: %w", ErrNoSession, context.Cause(ctx))
			if last != nil {
				err = fmt.Errorf("%w (%w)", err, last)
			}
			return nil, err
		}
	}
}

// DialContext has the pod dial address ("tcp" only) and waits until it is connected. It waits for a session first, and
// for the next one when that is lost before the pod has answered; ctx bounds all of it. The error wraps
// syscall.ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT or EACCES (not allowed) or a *net.DNSError when the pod met
// that, and ErrClosed when Run has returned.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("dial %s through the tunnel: %w", address, err)
	}
	if network != "tcp" {
		return fail(net.UnknownNetworkError(network))
	}
	for {
		s, err := c.wait(ctx)
		if err != nil {
			return fail(err)
		}
		st, err := s.open(ctx, Header{Kind: Dial, Network: network, Address: address})
		if err == nil {
			if err = st.WaitStatus(ctx); err == nil {
				return st, nil
			}
			st.Reset()
		}
		if ctx.Err() != nil {
			return fail(context.Cause(ctx))
		}
		if s.alive() {
			return fail(err)
		}
		// Lost before an answer. wait returns the next session once keep has noticed, too.
		<-s.ctx.Done()
	}
}
