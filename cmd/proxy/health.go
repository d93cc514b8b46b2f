package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxProbe bounds a request: the kubelet's has about 150 bytes.
	maxProbe = 4 << 10
	// maxProbes is how many connections are open at once. When one more comes the oldest goes, so that
	// nobody can keep the kubelet out by holding connections.
	maxProbes = 16
	// probeTimeout bounds a connection; the kubelet's own timeout is 1 s unless the probe says more.
	probeTimeout = 5 * time.Second
	// probeHold is how long a probe waits for the first time that this is ready: the kubelet asks when the container starts, and
	// then once a second. Its timeout is 1 s.
	probeHold = 800 * time.Millisecond
)

// health answers the kubelet's readiness probe: 200 or 503 for any GET, and nothing else. It is no server of
// net/http, so that the proxy stays small in memory and nobody can hold more of it than maxProbes connections.
type health struct {
	log   *slog.Logger
	hold  time.Duration // probeHold
	ready atomic.Bool
	once  sync.Once
	first chan struct{} // closed when it is ready for the first time

	mu     sync.Mutex
	probes []*probe // oldest first
}

// probe is one connection while it is open.
type probe struct {
	net.Conn
	closed chan struct{}
}

func (p *probe) end() {
	close(p.closed)
	_ = p.Close()
}

func newHealth(log *slog.Logger) *health {
	return &health{log: log, hold: probeHold, first: make(chan struct{})}
}

func (h *health) set(ready bool) {
	h.ready.Store(ready)
	if ready {
		h.once.Do(func() { close(h.first) })
	}
}

// serve answers on ln until ctx is done; then it closes everything and returns nil.
func (h *health) serve(ctx context.Context, ln net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer func() { _ = ln.Close() }()
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			p := h.add(conn)
			wg.Go(func() { h.answer(p) })
		case ctx.Err() != nil:
			h.closeAll()
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("health: %w", err)
		default: // no descriptors or no memory
			h.log.Warn("health", "error", err)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

func (h *health) add(conn net.Conn) *probe {
	p := &probe{conn, make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.probes) == maxProbes {
		h.probes[0].end()
		h.probes = h.probes[1:]
	}
	h.probes = append(h.probes, p)
	return p
}

func (h *health) remove(p *probe) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.probes, p); i >= 0 {
		p.end()
		h.probes = slices.Delete(h.probes, i, i+1)
	}
}

func (h *health) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.probes {
		p.end()
	}
	h.probes = nil
}

// answer reads one request and answers it. What is no GET is closed without a word.
func (h *health) answer(conn *probe) {
	defer h.remove(conn)
	_ = conn.SetDeadline(time.Now().Add(probeTimeout))
	var buf [maxProbe]byte
	n := 0
	for !bytes.Contains(buf[:n], []byte("\r\n\r\n")) {
		if n == len(buf) {
			return
		}
		m, err := conn.Read(buf[n:])
		if err != nil {
			return
		}
		n += m
	}
	if !bytes.HasPrefix(buf[:n], []byte("GET ")) {
		return
	}
	select {
	case <-h.first:
	case <-conn.closed:
		return
	case <-time.After(h.hold):
	}
	status, word := "503 Service Unavailable", "not ready\n"
	if h.ready.Load() {
		status, word = "200 OK", "ready\n"
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, len(word), word)
}
