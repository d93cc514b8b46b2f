package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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
)

// health answers the kubelet's readiness probe: 200 or 503 for any GET, and nothing else. It is no server of
// net/http, so that the proxy stays small in memory and nobody can hold more of it than maxProbes connections.
type health struct {
	log   *slog.Logger
	ready atomic.Bool

	mu    sync.Mutex
	conns []net.Conn // oldest first
}

func (h *health) set(ready bool) { h.ready.Store(ready) }

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
			h.add(conn)
			wg.Go(func() { h.answer(conn) })
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

func (h *health) add(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.conns) == maxProbes {
		_ = h.conns[0].Close()
		h.conns = h.conns[1:]
	}
	h.conns = append(h.conns, conn)
}

func (h *health) remove(conn net.Conn) {
	_ = conn.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, c := range h.conns {
		if c == conn {
			h.conns = append(h.conns[:i:i], h.conns[i+1:]...)
			return
		}
	}
}

func (h *health) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.Close()
	}
}

// answer reads one request and answers it. What is no GET is closed without a word.
func (h *health) answer(conn net.Conn) {
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
	status, word := "503 Service Unavailable", "not ready\n"
	if h.ready.Load() {
		status, word = "200 OK", "ready\n"
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, len(word), word)
}
