// Package standby knows who can take a caller's connection in a pod beside which the originals run: the laptop (Laptop), with
// a breaker, so that no caller waits for one that is away, and the originals (Originals). cmd/proxy gives both to
// internal/intercept, which makes the choice.
package standby

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// answerTimeout is how long a caller waits for the laptop at most, which happens once: then the breaker opens. It is longer
	// than the round trip of any tunnel that is of use.
	answerTimeout = time.Second
	// tryPause is between two tries of a broken way. A try costs the laptop a connection to its process.
	tryPause = 250 * time.Millisecond
)

// ErrAway says that the laptop does not take the connection: the tunnel is down, or its process does not answer.
var ErrAway = errors.New("the laptop is away")

var (
	errNoAnswer = errors.New("no answer within " + answerTimeout.String())
	errTunnel   = errors.New("the tunnel does not answer, or the process is not ready")
)

// Laptop dials the process on the laptop. Each port has a breaker: it opens when the tunnel does not answer, when the process refused
// a connection and when it gave no answer in time, and closes when a try of the laptop's own succeeds. So a caller meets a
// laptop that is away at most once, and one that is not there costs nothing.
// Set the fields, then Run.
type Laptop struct {
	// Open and Answering are *tunnel.Server's.
	Open      func(ctx context.Context, h tunnel.Header) (*tunnel.Stream, error)
	Answering func() (bool, <-chan struct{})
	// Ports are those that the laptop has; callers of others are for the originals.
	Ports []int
	// OnChange is told when a port's way opens or breaks, one call at a time for each port. They are broken at the start.
	OnChange func(port int, open bool)
	Log      *slog.Logger

	once sync.Once
	way  map[int]*way
}

// way is the one to a port of the laptop's process.
type way struct {
	port   int
	broken chan struct{} // capacity 1: somebody has met that it is

	mu    sync.Mutex
	open  context.Context // done when the way breaks; nil while it is broken
	cut   context.CancelFunc
	cause error // why it broke last
}

func (l *Laptop) init() {
	l.once.Do(func() {
		l.way = map[int]*way{}
		for _, port := range l.Ports {
			l.way[port] = &way{port: port, broken: make(chan struct{}, 1)}
		}
	})
}

// Run keeps the breakers until ctx is done.
func (l *Laptop) Run(ctx context.Context) {
	l.init()
	var wg sync.WaitGroup
	for _, w := range l.way {
		wg.Go(func() { l.keep(ctx, w) })
	}
	wg.Wait()
}

// Takes says whether the laptop takes connections, on one port at least.
func (l *Laptop) Takes() bool {
	l.init()
	for _, w := range l.way {
		if w.now() != nil {
			return true
		}
	}
	return false
}

// TakesOn says it of one port.
func (l *Laptop) TakesOn(port int) bool {
	l.init()
	w := l.way[port]
	return w != nil && w.now() != nil
}

// Dial connects to the laptop's process. The error wraps ErrAway, at once while the way is broken; else the laptop has answered when it
// returns, or answerTimeout is over.
func (l *Laptop) Dial(ctx context.Context, h tunnel.Header) (net.Conn, error) {
	l.init()
	port, _ := strconv.Atoi(strings.TrimPrefix(h.Address, ":"))
	w := l.way[port]
	if w == nil {
		return nil, ErrAway
	}
	open := w.now()
	if open == nil {
		return nil, ErrAway
	}
	st, err := l.connect(ctx, open, h)
	if err == nil {
		return st, nil
	}
	if ctx.Err() == nil {
		w.fail(open, err)
	}
	return nil, errors.Join(ErrAway, err)
}

// connect opens a stream and waits until the laptop has taken it, its way is broken, or too much time is over.
func (l *Laptop) connect(ctx, open context.Context, h tunnel.Header) (*tunnel.Stream, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errNoAnswer)
	defer cancel()
	defer context.AfterFunc(open, cancel)()
	st, err := l.Open(ctx, h)
	if err != nil {
		return nil, err
	}
	if err := st.WaitStatus(ctx); err != nil {
		st.Reset()
		return nil, err
	}
	return st, nil
}

// keep breaks a way when the tunnel does, tries a broken one, and tells of it.
func (l *Laptop) keep(ctx context.Context, w *way) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for told := false; ; {
		answering, changed := l.Answering()
		open := w.now()
		if !answering && open != nil {
			w.fail(open, errTunnel)
			open = nil
		}
		if told && open == nil {
			told = false
			l.Log.Info("the originals answer, not the laptop", "port", w.port, "because", w.why())
			l.OnChange(w.port, false)
		}
		if answering && open == nil {
			if l.try(ctx, w) == nil {
				w.mend()
				told = true
				l.Log.Info("the laptop answers", "port", w.port)
				l.OnChange(w.port, true)
				continue
			}
			pause.Reset(tryPause)
		}
		select {
		case <-changed:
		case <-w.broken:
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// try connects for nobody.
func (l *Laptop) try(ctx context.Context, w *way) error {
	st, err := l.connect(ctx, ctx, tunnel.Header{Kind: tunnel.Inbound, Network: "tcp", Address: ":" + strconv.Itoa(w.port)})
	if err != nil {
		return err
	}
	return st.Close()
}

// now is done when the way breaks; nil: it is broken.
func (w *way) now() context.Context {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.open
}

// fail breaks the way as it was when open was it.
func (w *way) fail(open context.Context, why error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.open != open {
		return // it was broken before
	}
	w.cut()
	w.open, w.cause = nil, why
	select {
	case w.broken <- struct{}{}:
	default:
	}
}

func (w *way) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

func (w *way) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open, w.cut = context.WithCancel(context.Background())
}
