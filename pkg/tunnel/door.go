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

// maxUnknown is how many connections may be in the handshake at once: a laptop needs one, a second when it reconnects; the rest are
// strangers. Where many laptops reconnect at once some are refused, and try again.
const maxUnknown = 8

// Door lets in several laptops, each to a Server of its own, at one listener. Set the fields before Serve.
type Door struct {
	Key Key // the pod's, which all of them meet
	// Server is whose server it is, with Door's Key; nil: it is let in by no other than a refusal. It is asked in each handshake.
	Server func(Fingerprint) *Server
	Log    *slog.Logger // nil: no log

	refused atomic.Uint64
}

func (d *Door) log() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}

// Serve accepts carriers from ln until ctx is done, and then returns nil. It closes ln. When it
// returns the sessions are closed and everything it started has ended. It may be called for several listeners at once: a
// session goes on over carriers of any of them.
func (d *Door) Serve(ctx context.Context, ln net.Listener) error {
	defer func() { _ = ln.Close() }()
	if d.Key.isZero() || d.Server == nil {
		return errors.New("tunnel door: Key and Server must be set")
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()

	unknown := make(chan struct{}, maxUnknown)
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		var temporary net.Error
		if errors.As(err, &temporary) && temporary.Timeout() {
			continue
		}
		if err != nil {
			return fmt.Errorf("tunnel listener: %w", err)
		}
		select {
		case unknown <- struct{}{}:
			wg.Go(func() { d.serve(ctx, conn, func() { <-unknown }) })
		default:
			d.refuse(conn, fmt.Errorf("more than %d handshakes at once", maxUnknown))
			_ = conn.Close()
		}
	}
}

func (d *Door) refuse(conn net.Conn, err error) {
	d.log().Warn("tunnel: connection refused", "from", conn.RemoteAddr(), "error", err, "count", d.refused.Add(1))
}

// serve finds out who is there. known is called once that is known, or the connection closed.
func (d *Door) serve(ctx context.Context, conn net.Conn, known func()) {
	var s *Server
	l, err := acceptTLS(ctx, conn, d.Key, func(f Fingerprint) error {
		if s = d.Server(f); s == nil {
			return fmt.Errorf("%w: %v", errClientKey, f)
		}
		return nil
	})
	known()
	if err == nil {
		err = s.serve(ctx, l)
	}
	if err != nil {
		d.refuse(conn, err)
	}
}
