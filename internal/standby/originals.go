package standby

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// originalTries is how often a caller is tried to be connected to an original, each time perhaps to another one: one may
	// just be going. originalTimeout bounds each, retryPause is between them.
	originalTries   = 3
	originalTimeout = 2 * time.Second
	retryPause      = 50 * time.Millisecond
	// checkEvery is how often the originals are looked for while the laptop is away and no caller tells whether they are there,
	// and searchEvery while they are not.
	checkEvery  = 5 * time.Second
	searchEvery = 500 * time.Millisecond
)

// Originals dials the pods that the proxy stands before, by the address of a Service that selects them: the cluster keeps that
// to those that are ready, and spreads connections over them. Set the fields, then Run.
type Originals struct {
	Host string // the Service's address
	// Ports are those of the pods; the Service has the same.
	Ports []int
	// Needed says whether anybody has to know whether the originals are there.
	Needed func() bool
	// OnChange is told when the originals are reached, or no longer, one call at a time. They are not at the start.
	OnChange func(reached bool)
	Log      *slog.Logger

	once sync.Once
	news chan struct{} // capacity 1

	mu      sync.Mutex
	reached bool      // Run alone sets it
	at      time.Time // when one was reached last; zero: the last caller has reached none
}

func (o *Originals) init() { o.once.Do(func() { o.news = make(chan struct{}, 1) }) }

// Dial connects to one of the originals.
func (o *Originals) Dial(ctx context.Context, h tunnel.Header) (conn net.Conn, err error) {
	o.init()
	port := strings.TrimPrefix(h.Address, ":")
	for try := 0; try < originalTries; try++ {
		if try > 0 && pause(ctx, retryPause) != nil {
			break
		}
		if conn, err = o.connect(ctx, port); err == nil {
			o.met(time.Now())
			return conn, nil
		}
	}
	if ctx.Err() == nil {
		o.met(time.Time{})
	}
	return nil, fmt.Errorf("original: %w", err)
}

func (o *Originals) connect(ctx context.Context, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: originalTimeout}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(o.Host, port))
}

// met notes when a caller has reached an original; zero: it has not. That is one port, or one pod which just goes: Run looks
// whether they are there.
func (o *Originals) met(at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at = at
	if o.reached == at.IsZero() {
		o.Look()
	}
}

// Reached says whether the originals are reached, as OnChange was told last, or is about to be.
func (o *Originals) Reached() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.reached
}

// Look has Run look whether they are there, as when the laptop has just gone.
func (o *Originals) Look() {
	o.init()
	select {
	case o.news <- struct{}{}:
	default:
	}
}

// Run keeps Reached true to what is, until ctx is done.
func (o *Originals) Run(ctx context.Context) {
	o.init()
	tick := time.NewTicker(searchEvery)
	defer tick.Stop()
	for {
		if o.due() {
			err := o.check(ctx)
			if ctx.Err() != nil {
				return
			}
			o.found(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-o.news:
		}
	}
}

// due says whether it is time to look, and has what callers meet from now on count for the next time.
func (o *Originals) due() bool {
	needed := o.Needed()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.reached && (!needed || time.Since(o.at) <= checkEvery) {
		return false
	}
	o.at = time.Now()
	return true
}

// found makes a check's result known.
func (o *Originals) found(err error) {
	reached := err == nil
	o.mu.Lock()
	changed := o.reached != reached
	o.reached = reached
	o.mu.Unlock()
	switch {
	case !changed:
		return
	case reached:
		o.Log.Info("the originals are reached")
	default:
		o.Log.Warn("the originals are not reached", "error", err)
	}
	o.OnChange(reached)
}

// check connects for nobody, to the first port that answers.
func (o *Originals) check(ctx context.Context) error {
	var errs []error
	for _, port := range o.Ports {
		conn, err := o.connect(ctx, strconv.Itoa(port))
		if err == nil {
			_ = conn.Close()
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
