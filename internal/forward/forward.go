// Package forward listens on this machine and joins each accepted connection with one that a dial
// function makes. cmd/bridge and pkg/swap use it; what is dialled is no concern of it.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

const (
	// maxConns bounds the connections of one listener. Each may be a connection of its own to the API
	// server, with buffers of some 100 KiB; beyond it callers wait in the accept queue.
	maxConns = 1024

	// maxAnyPort is how often a free port is looked for that is free on both loopback addresses.
	maxAnyPort = 20
)

// Listen opens port on all addresses, or on none. "localhost" is 127.0.0.1 and ::1, of which one may
// fail, as for kubectl; otherwise an address is an IP. With port 0 all get the same free one.
func Listen(addresses []string, port int) ([]net.Listener, error) {
	if len(addresses) == 0 {
		return nil, hint.Newf(hint.Usage, "give IP addresses or localhost", "no address to listen on")
	}
	for try := 1; ; try++ {
		lns, err := listen(addresses, port)
		if port != 0 || err == nil || !errors.Is(err, syscall.EADDRINUSE) || try == maxAnyPort {
			return lns, err
		}
	}
}

func listen(addresses []string, port int) (lns []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(lns)
			lns = nil
		}
	}()
	one := func(ip string) error {
		network := "tcp4" // not "tcp": 0.0.0.0 would listen on IPv6 too
		if strings.Contains(ip, ":") {
			network = "tcp6"
		}
		ln, err := net.Listen(network, net.JoinHostPort(ip, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		if port == 0 {
			port = ln.Addr().(*net.TCPAddr).Port
		}
		lns = append(lns, ln)
		return nil
	}
	for _, address := range addresses {
		if address != "localhost" {
			if _, err := netip.ParseAddr(address); err != nil {
				return lns, hint.Newf(hint.Usage, "give IP addresses or localhost", "address %q is not an IP address", address)
			}
			if err := one(address); err != nil {
				return lns, listenError(err)
			}
			continue
		}
		err4, err6 := one("127.0.0.1"), one("::1")
		// One family may be missing on this machine. A port that is taken in one family is no such
		// case: half of the programs that connect to localhost would reach somebody else.
		for _, err := range []error{err4, err6} {
			if err != nil && (errors.Is(err, syscall.EADDRINUSE) || err4 != nil && err6 != nil) {
				return lns, listenError(err)
			}
		}
	}
	return lns, nil
}

func listenError(err error) error {
	var op *net.OpError
	at := ""
	if errors.As(err, &op) && op.Addr != nil {
		at = op.Addr.String()
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return hint.New(hint.Other, &listenErr{"local address " + at + " is in use", err},
			"give another local port, such as 18080:80, or :80 for any free one")
	case errors.Is(err, syscall.EACCES):
		return hint.New(hint.Other, &listenErr{"local address " + at + ": not allowed", err},
			"ports below 1024 need root; give another local port, such as 18080:80, or :80 for any free one")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return hint.New(hint.Other, &listenErr{"local address " + at + " is not one of this machine", err}, "check --address")
	}
	return fmt.Errorf("listen: %w", err)
}

type listenErr struct {
	msg   string
	cause error
}

func (e *listenErr) Error() string { return e.msg }
func (e *listenErr) Unwrap() error { return e.cause }

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		_ = ln.Close()
	}
}

// Forwarder joins what Listeners accept with what Dial makes.
type Forwarder struct {
	Listeners []net.Listener
	// Address is given to Dial: "host:port", or what Dial takes for one.
	Address string
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	// OnConn, if set, is called for each connection that is accepted.
	OnConn func(c net.Conn)
	// OnError, if set, is called when a connection could not be made or did not end well.
	OnError func(c net.Conn, err error)
	Log     *slog.Logger // nil logs nothing
}

// Run serves until ctx is done; then it closes the listeners and all connections. It returns when
// everything has ended, with an error only if a listener fails.
func (f *Forwarder) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxConns)
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
	remote, err := f.Dial(ctx, "tcp", f.Address)
	if err != nil {
		reset(local)
		f.report(ctx, local, err)
		return
	}
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close()
		_ = remote.Close()
	})
	defer stop()
	f.report(ctx, local, tunnel.Splice(local, remote))
}

func (f *Forwarder) report(ctx context.Context, local net.Conn, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	if f.OnError != nil {
		f.OnError(local, err)
	}
}

// reset has the caller see a refusal at once instead of an empty answer.
func reset(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
