package route

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// maxCopy is how far the laptop may be behind on one connection, maxCopies on all: what a pod's memory bears.
	maxCopy   = 256 << 10
	maxCopies = 8 << 20
	// maxCopied is how many connections are copied at once: so few that what waits for a slow laptop takes no place of a
	// caller's (internal/intercept has some twelve times as many).
	maxCopied = 1024
	// copyLinger is how long the laptop may take for the rest once the caller has gone.
	copyLinger = 5 * time.Second
)

// Mirror gives the laptop a copy of what callers send, and drops what it answers. It never makes a caller wait: a copy
// that falls behind ends, since a stream with a gap means nothing. The zero value is ready; Serve may run many times at once.
type Mirror struct {
	copied, dropped atomic.Uint64
	held, copies    atomic.Int64
}

// Counts are the bytes that callers sent and the laptop was given, and those that it was not.
func (m *Mirror) Counts() (copied, dropped uint64) { return m.copied.Load(), m.dropped.Load() }

// Serve runs serve, which carries conn and closes it, with a conn whose bytes, as they are read, go to the laptop too, which
// dial connects to. It returns when the copy has ended: soon after serve, at once after an error of that or done ctx.
func (m *Mirror) Serve(ctx context.Context, conn net.Conn, dial func(ctx context.Context) (net.Conn, error), serve func(net.Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &tee{Conn: conn, m: m}
	t.changed.L = &t.mu
	defer context.AfterFunc(ctx, t.cut)()
	var wg sync.WaitGroup
	defer m.copies.Add(-1)
	if m.copies.Add(1) > maxCopied {
		t.cut()
	} else {
		wg.Go(func() { t.copy(ctx, dial) })
	}
	err := serve(t)
	t.end()
	linger := copyLinger
	if err != nil {
		linger = 0
	}
	timer := time.AfterFunc(linger, cancel)
	defer timer.Stop()
	wg.Wait()
	return err
}

// tee is a caller's connection with its copy.
type tee struct {
	net.Conn
	m *Mirror

	mu      sync.Mutex
	changed sync.Cond
	queue   []byte
	ended   bool     // nothing more comes
	over    bool     // nothing more is taken
	laptop  net.Conn // nil: not connected
}

// Read reads what the caller says.
func (t *tee) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.note(p[:n], err)
	return n, err
}

// SyscallConn lets tunnel.Splice read without Read, and so without a buffer while there is nothing; it tells Seen.
func (t *tee) SyscallConn() (syscall.RawConn, error) {
	if c, ok := t.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// Seen notes what was read so.
func (t *tee) Seen(p []byte, err error) {
	if c, ok := t.Conn.(interface{ Seen(p []byte, err error) }); ok {
		c.Seen(p, err)
	}
	t.note(p, err)
}

func (t *tee) note(p []byte, err error) {
	if len(p) > 0 {
		t.put(p)
	}
	if errors.Is(err, io.EOF) {
		t.end()
	}
}

// CloseWrite sends the caller our end.
func (t *tee) CloseWrite() error {
	if half, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return t.Close()
}

// SetLinger with 0 makes Close a reset, where the connection can do that.
func (t *tee) SetLinger(seconds int) error {
	if c, ok := t.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(seconds)
	}
	return nil
}

func (t *tee) put(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := int64(len(p))
	if !t.over && (len(t.queue)+len(p) > maxCopy || t.m.held.Load()+n > maxCopies) {
		t.cutLocked()
	}
	if t.over {
		t.m.dropped.Add(uint64(n))
		return
	}
	t.m.held.Add(n)
	t.queue = append(t.queue, p...)
	t.changed.Broadcast()
}

func (t *tee) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.changed.Broadcast()
}

// cut ends the copy at once.
func (t *tee) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cutLocked()
}

func (t *tee) cutLocked() {
	if !t.over {
		t.over = true
		t.drop(len(t.queue))
		t.queue = nil
	}
	if t.laptop != nil {
		tunnel.Abort(t.laptop)
	}
	t.changed.Broadcast()
}

// drop counts n bytes that were held and are lost. mu is held.
func (t *tee) drop(n int) {
	t.m.held.Add(-int64(n))
	t.m.dropped.Add(uint64(n))
}

// copy sends what is put, until the end of it.
func (t *tee) copy(ctx context.Context, dial func(ctx context.Context) (net.Conn, error)) {
	conn, err := dial(ctx)
	if err != nil {
		t.cut()
		return
	}
	defer conn.Close()
	t.mu.Lock()
	t.laptop = conn
	over := t.over
	t.mu.Unlock()
	if over {
		return
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		_, _ = io.Copy(io.Discard, conn)
		t.mu.Lock()
		defer t.mu.Unlock()
		if !t.ended || len(t.queue) > 0 { // it does not want the rest
			t.cutLocked()
		}
	})
	defer answers.Wait()
	for {
		t.mu.Lock()
		for len(t.queue) == 0 && !t.ended && !t.over {
			t.changed.Wait()
		}
		p := bytes.Clone(t.queue[:min(len(t.queue), bigBuffer)])
		if t.queue = t.queue[len(p):]; len(t.queue) == 0 {
			t.queue = nil
		}
		over := t.over
		t.mu.Unlock()
		if over {
			return
		}
		if len(p) == 0 {
			closeWrite(conn)
			return
		}
		_, err := conn.Write(p)
		t.mu.Lock()
		if err != nil {
			t.drop(len(p))
			t.cutLocked()
		} else {
			t.m.held.Add(-int64(len(p)))
			t.m.copied.Add(uint64(len(p)))
		}
		t.mu.Unlock()
	}
}
