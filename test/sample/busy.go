package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// busy keeps connections to a server's "copy" full of bytes both ways, and says "started" when all of them
// carry. Then it takes orders from its standard input. For each line it prints a Pulse, which has that
// line as its name. When the input ends, it ends the connections in order and prints a BusyReport.
type busy struct {
	address     string
	via         string // an HTTP proxy; empty dials address itself
	connections int
}

// Pulse is printed once every connection has carried a byte that was sent after the order, or has ended.
type Pulse struct {
	Name    string        `json:"name"`
	Carry   int           `json:"carry"`   // connections that do
	Reset   int           `json:"reset"`   // connections that were reset, ever
	First   time.Duration `json:"first"`   // from the order to the first byte
	Slowest time.Duration `json:"slowest"` // and to the last connection's
}

// BusyReport is how it ended.
type BusyReport struct {
	Exact int      `json:"exact"` // connections that gave back every byte in its place
	Reset int      `json:"reset"`
	Wrong []string `json:"wrong,omitempty"` // what became of the others
	Bytes int64    `json:"bytes"`           // sent, in all
}

const (
	busyChunk = 4 << 10
	busyEvery = 20 * time.Millisecond // a chunk; so that many connections do not need a machine each
	// busyAhead is how much may be on its way: enough for every buffer to have some of it, and so little that
	// a Pulse does not measure how long a full buffer takes to drain.
	busyAhead = 64 << 10
)

func (b *busy) run(stdin io.Reader, stdout io.Writer) error {
	w := &watched{stop: make(chan struct{})}
	w.moved = sync.NewCond(&w.mu)
	var wg sync.WaitGroup
	for i := range b.connections {
		conn, err := b.dial()
		if err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
		defer conn.Close()
		c := &busyConn{TCPConn: conn, sentSum: sha256.New(), gotSum: sha256.New()}
		w.conns = append(w.conns, c)
		random := rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), 'b'})
		wg.Go(func() { w.send(c, random) })
		wg.Go(func() { w.receive(c) })
	}
	w.pulse("")
	fmt.Fprintln(stdout, "started")
	out := json.NewEncoder(stdout)
	for orders := bufio.NewScanner(stdin); orders.Scan(); {
		if err := out.Encode(w.pulse(orders.Text())); err != nil {
			return err
		}
	}
	for _, c := range w.conns {
		if err := c.SetDeadline(time.Now().Add(checkTimeout)); err != nil {
			return err
		}
	}
	close(w.stop)
	wg.Wait()
	return out.Encode(w.report())
}

// dial connects and gives the order.
func (b *busy) dial() (*net.TCPConn, error) {
	address := b.address
	if b.via != "" {
		address = b.via
	}
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	conn := c.(*net.TCPConn)
	if b.via != "" {
		if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", b.address); err != nil {
			return nil, err
		}
		// The server says nothing before it is asked, so no byte of its own is lost here.
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("proxy: %s", resp.Status)
		}
	}
	_, err = fmt.Fprintln(conn, "copy")
	return conn, err
}

// busyConn is one connection; the mutex of watched guards it.
type busyConn struct {
	*net.TCPConn
	sent, got       int64
	sentSum, gotSum hash.Hash
	ended           bool // got is final
	readErr         error
	sendErr         error
}

func (c *busyConn) reset() bool {
	return c.ended && (errors.Is(c.readErr, syscall.ECONNRESET) || errors.Is(c.sendErr, syscall.ECONNRESET))
}

// watched are the connections, and their news.
type watched struct {
	stop  chan struct{}
	mu    sync.Mutex
	moved *sync.Cond
	conns []*busyConn
}

func (w *watched) send(c *busyConn, random io.Reader) {
	tick := time.NewTicker(busyEvery)
	defer tick.Stop()
	chunk := make([]byte, busyChunk)
	for {
		select {
		case <-w.stop:
			_ = c.CloseWrite()
			return
		case <-tick.C:
		}
		w.mu.Lock()
		if c.sent-c.got >= busyAhead {
			w.mu.Unlock()
			continue
		}
		_, _ = random.Read(chunk) // never fails
		c.sent += busyChunk
		c.sentSum.Write(chunk)
		w.mu.Unlock()
		if _, err := c.Write(chunk); err != nil {
			w.mu.Lock()
			c.sendErr = err
			w.mu.Unlock()
			return
		}
	}
}

func (w *watched) receive(c *busyConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		w.mu.Lock()
		c.got += int64(n)
		c.gotSum.Write(buf[:n])
		if err != nil {
			c.ended, c.readErr = true, err
		}
		w.mu.Unlock()
		w.moved.Broadcast()
		if err != nil {
			return
		}
	}
}

func (w *watched) pulse(name string) Pulse {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, start := Pulse{Name: name}, time.Now()
	marks := make([]int64, len(w.conns))
	for i, c := range w.conns {
		marks[i] = c.sent
	}
	for {
		p.Carry, p.Reset = 0, 0
		waiting := 0
		for i, c := range w.conns {
			switch {
			case c.reset():
				p.Reset++
			case c.got > marks[i]:
				p.Carry++
			case !c.ended:
				waiting++
			}
		}
		if p.Slowest = time.Since(start); p.Carry > 0 && p.First == 0 {
			p.First = p.Slowest
		}
		if waiting == 0 {
			return p
		}
		w.moved.Wait()
	}
}

func (w *watched) report() BusyReport {
	var r BusyReport
	for i, c := range w.conns {
		r.Bytes += c.sent
		switch {
		case c.reset():
			r.Reset++
		case errors.Is(c.readErr, io.EOF) && c.sendErr == nil && c.got == c.sent && bytes.Equal(c.gotSum.Sum(nil), c.sentSum.Sum(nil)):
			r.Exact++
		default:
			r.Wrong = append(r.Wrong, fmt.Sprintf("connection %d: %d bytes sent (%v), %d came back (%v)", i, c.sent, c.sendErr, c.got, c.readErr))
		}
	}
	return r
}

// dial joins the standard streams to one connection, and ends when the other end has ended it.
func dial(address string, stdin io.Reader, stdout io.Writer) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	conn := c.(*net.TCPConn)
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stdin)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(stdout, conn)
	return err
}
