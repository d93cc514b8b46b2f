// Package forward listens on this machine and joins each accepted connection with one that a dial
// function makes. cmd/bridge and internal/connect use it; what is dialled is no concern of it.
package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"bridge/internal/procnet"
	"bridge/pkg/tunnel"
)

// maxConns is the usual bound of a Forwarder's connections. Each may be a connection of its own to the API
// server, with buffers of some 100 KiB; beyond it callers wait in the accept queue.
const maxConns = 1024

// Forwarder joins what Listeners accept with what Dial makes.
type Forwarder struct {
	Listeners []net.Listener
	// Address is given to Dial: "host:port", or what Dial takes for one.
	Address string
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxConns bounds the connections at once; beyond it callers wait in the accept queue. Zero means 1024.
	MaxConns int
	// Stats, if set, counts.
	Stats *Stats
	// OnConn, if set, is called for each connection that is accepted.
	OnConn func(c net.Conn)
	// OnError, if set, is called when a connection could not be made or did not end well.
	OnError func(c net.Conn, err error)
	Log     *slog.Logger // nil logs nothing
}

// Run serves until ctx is done; then it closes the listeners and resets all connections: a caller must not take what it has for all. It returns when
// everything has ended, but for what a connection that was left still reads, with an error only if a listener fails.
func (f *Forwarder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, cmp.Or(f.MaxConns, maxConns))
	for _, ln := range f.Listeners {
		wg.Go(func() {
			if err := f.accept(ctx, ln, slots, &wg); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	closeAll(f.Listeners)
	wg.Wait()
	if err := context.Cause(ctx); errors.As(err, new(*acceptError)) {
		return err
	}
	return nil
}

type acceptError struct{ error }

func (e *acceptError) Unwrap() error { return e.error }

func (f *Forwarder) accept(ctx context.Context, ln net.Listener, slots chan struct{}, wg *sync.WaitGroup) error {
	for failed := 0; ; {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// Out of descriptors, or a caller that was gone already: others may still come.
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxAcceptErrors {
				return &acceptError{fmt.Errorf("accept on %s: %w", ln.Addr(), err)}
			}
			f.log("accept", "error", err)
			pause(ctx, acceptPause)
			continue
		}
		failed = 0
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return nil
		}
		wg.Go(func() {
			defer func() { <-slots }()
			f.serve(ctx, conn)
		})
	}
}

const (
	// An accept that fails is tried again after acceptPause, and given up after about 10 seconds.
	acceptPause     = 100 * time.Millisecond
	maxAcceptErrors = 100
)

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (f *Forwarder) log(msg string, args ...any) {
	if f.Log != nil {
		f.Log.Debug(msg, args...)
	}
}

// serve owns local.
func (f *Forwarder) serve(ctx context.Context, local net.Conn) {
	if f.OnConn != nil {
		f.OnConn(local)
	}
	defer f.Stats.opened()()
	remote, err := f.Dial(ctx, "tcp", f.Address)
	if err != nil {
		tunnel.Abort(local) // not an empty answer
		f.report(ctx, local, err)
		return
	}
	flow := &tunnel.Flow{OnMove: func(way tunnel.Direction, n int) { f.Stats.moved(way == tunnel.AToB, n) }}
	if r, ok := remote.(interface{ Leave() bool }); ok { // a port-forward
		flow.Leave = func() bool { return procnet.Orphaned(local.RemoteAddr(), local.LocalAddr()) && r.Leave() }
	}
	f.report(ctx, local, flow.SpliceContext(ctx, local, remote))
}

func (f *Forwarder) report(ctx context.Context, local net.Conn, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	if f.OnError != nil {
		f.OnError(local, err)
	}
}
