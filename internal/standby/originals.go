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
	reached bool
	at      time.Time // when that was found
	err     error     // the last
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
			o.found(nil)
			return conn, nil
		}
	}
	if ctx.Err() == nil {
		o.found(err)
	}
	return nil, fmt.Errorf("original: %w", err)
}

func (o *Originals) connect(ctx context.Context, port string) (net.Conn, error) {
	d := net.Dialer{Timeout: originalTimeout}
	return d.DialContext(ctx, "tcp", net.JoinHostPort(o.Host, port))
}

// found notes how a dial went.
func (o *Originals) found(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	changed := o.reached != (err == nil)
	o.reached, o.at, o.err = err == nil, time.Now(), err
	if changed {
		o.Look()
	}
}

// Reached says whether the last dial reached an original.
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
	for told := false; ; {
		o.mu.Lock()
		reached, age, err := o.reached, time.Since(o.at), o.err
		o.mu.Unlock()
		if !reached || o.Needed() && age > checkEvery {
			err = o.check(ctx)
			reached = err == nil
		}
		if ctx.Err() != nil {
			return
		}
		if reached != told {
			told = reached
			if reached {
				o.Log.Info("the originals are reached")
			} else {
				o.Log.Warn("the originals are not reached", "error", err)
			}
			o.OnChange(reached)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-o.news:
		}
	}
}

// check connects for nobody, to the first port that answers.
func (o *Originals) check(ctx context.Context) error {
	var errs []error
	for _, port := range o.Ports {
		conn, err := o.connect(ctx, strconv.Itoa(port))
		if err == nil {
			_ = conn.Close()
			o.found(nil)
			return nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if ctx.Err() == nil {
		o.found(err)
	}
	return err
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
