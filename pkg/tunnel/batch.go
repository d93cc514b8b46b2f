package tunnel

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxBatch is the most that is written to a link at once: what a frame that comes just then waits for.
	maxBatch = 64 << 10
	// maxUnsent bounds what waits to be written. Bulk stops at bulkAhead; beyond it come small frames only.
	maxUnsent = 1 << 20
	// lastTimeout bounds how long closing waits for what was written before.
	lastTimeout = time.Second
)

// batchConn is a link as yamux sees it. yamux writes the header and the body of each frame by itself;
// here they are only kept, and one goroutine, flush, writes all that has piled up while its last write
// was under way. So many small frames share a system call and a record, and an idle path waits for nothing.
type batchConn struct {
	link *link
	gate *gate

	mu      sync.Mutex
	work    *sync.Cond // for flush: something to write, or the end
	room    *sync.Cond // for Write: less to write, or the end
	buf     sendBuffer
	body    bool        // a frame's header was written, and its body comes next
	closing bool        // write what is there, then close
	last    *time.Timer // bounds that
	err     error       // why nothing can be written any more

	written atomic.Uint64 // position up to which the link has everything
	end     atomic.Uint64 // position up to which Write took
}

func newBatchConn(l *link, g *gate) *batchConn {
	c := &batchConn{link: l, gate: g}
	c.work, c.room = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	return c
}

func (c *batchConn) Read(p []byte) (int, error) { return c.link.Read(p) }

// Write keeps p, and waits only when too much is kept already.
func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.err == nil && !c.closing && c.buf.len() >= maxUnsent {
		c.room.Wait()
	}
	if c.err != nil {
		return 0, c.err
	}
	if c.closing {
		return 0, net.ErrClosed
	}
	c.buf.append(p)
	c.end.Store(c.buf.end)
	c.gate.unsent.Store(int64(c.buf.len()))
	// A header alone is not worth a write: yamux writes the body next.
	c.body = !c.body && len(p) == frameHeader && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0
	if !c.body {
		c.work.Signal()
	}
	return len(p), nil
}

// flush writes until the conn is closed or the link fails, and closes the link.
func (c *batchConn) flush() {
	defer func() {
		_ = c.link.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.last != nil {
			c.last.Stop()
		}
	}()
	batch := make([]byte, maxBatch)
	for {
		c.mu.Lock()
		for c.err == nil && !c.closing && c.buf.len() == 0 {
			c.work.Wait()
		}
		n := c.buf.copyAt(batch, c.buf.start)
		over := c.err != nil || n == 0
		c.mu.Unlock()
		if over {
			return
		}
		_, err := c.link.Write(batch[:n])
		c.mu.Lock()
		c.buf.discard(c.buf.start + uint64(n))
		if err != nil {
			c.failLocked(err)
		}
		c.written.Store(c.buf.start)
		c.gate.unsent.Store(int64(c.buf.len()))
		c.room.Signal()
		c.mu.Unlock()
		c.gate.moved()
	}
}

// fail ends the conn at once.
func (c *batchConn) fail(err error) {
	c.mu.Lock()
	c.failLocked(err)
	c.mu.Unlock()
	_ = c.link.Close()
}

func (c *batchConn) failLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	c.work.Signal()
	c.room.Broadcast()
}

// Close has flush write what is left, for a moment, and close the link. It does not wait for that.
func (c *batchConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.closing {
		c.closing = true
		c.work.Signal()
		c.room.Broadcast()
		c.last = time.AfterFunc(lastTimeout, func() { c.fail(errors.New("closed")) })
	}
	return nil
}
