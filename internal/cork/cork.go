// Package cork is what a connection needs below TLS. crypto/tls reads and writes one record of at most
// 16 KiB at a time, and each of these calls is a system call, a packet, a wake-up of every hop behind. With
// a Conn between, the records of one write leave together, and reads are larger.
package cork

import (
	"bufio"
	"errors"
	"net"
	"sync"
)

const (
	// Record is what TLS 1.3 adds to a record.
	Record = 22
	// MaxRecord is how many bytes a record holds.
	MaxRecord = 16 << 10
)

// Conn is a connection that gathers.
type Conn struct {
	net.Conn
	r *bufio.Reader // nil until Open: reads are not larger

	mu     sync.Mutex
	corked bool   // what is written is kept
	out    []byte // that
}

// Open has up to size bytes be read at once from now on: nobody gets a buffer before it is known who that is. The
// goroutine that reads calls it, or whoever starts it.
func (c *Conn) Open(size int) { c.r = bufio.NewReaderSize(c.Conn, size) }

func (c *Conn) Read(p []byte) (int, error) {
	if c.r == nil {
		return c.Conn.Read(p)
	}
	return c.r.Read(p)
}

func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		return c.Conn.Write(p)
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

// Gather runs write, and what that writes leaves in one Write. One call at a time; what another goroutine writes
// meanwhile leaves with it.
func (c *Conn) Gather(write func() error) error {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
	err := write()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	if len(c.out) > 0 {
		_, sent := c.Conn.Write(c.out)
		err = errors.Join(err, sent)
		c.out = c.out[:0]
	}
	return err
}
