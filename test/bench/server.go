//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// order is what the first bytes of a connection ask the server for. The server's clock bounds it, so
// that a client is never needed to end it.
type order struct {
	what byte
	warm time.Duration // not counted
	time time.Duration // counted
}

const (
	orderEcho = 'E' // send back what comes
	orderUp   = 'U' // after warm and time: 8 bytes, how many came within time; what comes later is dropped
	orderDown = 'D' // send for warm and time and close

	orderSize = 1 + 4 + 4 // what, and both in milliseconds
)

const (
	// chunk is one write of bulk data. It is more than any of the variants passes on at once.
	chunk = 64 << 10
	// request is the size of a small request and of its answer.
	request = 128
	// drainTimeout bounds what the server waits for after an order's time: what is under way.
	drainTimeout = 20 * time.Second
)

func (o order) bytes() []byte {
	b := binary.BigEndian.AppendUint32([]byte{o.what}, uint32(o.warm.Milliseconds()))
	return binary.BigEndian.AppendUint32(b, uint32(o.time.Milliseconds()))
}

func readOrder(r io.Reader) (o order, err error) {
	var b [orderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return o, err
	}
	ms := func(b []byte) time.Duration { return time.Duration(binary.BigEndian.Uint32(b)) * time.Millisecond }
	return order{b[0], ms(b[1:]), ms(b[5:])}, nil
}

// serve answers orders until ctx is done. What goes wrong with a connection is for its client to find.
func serve(ctx context.Context, address string) error {
	return accept(ctx, address, func(c net.Conn) {
		defer c.Close()
		o, err := readOrder(c)
		if err != nil {
			return
		}
		switch o.what {
		case orderEcho:
			echo(c)
		case orderUp:
			up(c, o)
		case orderDown:
			down(c, o)
		}
	})
}

func echo(c net.Conn) {
	var buf [4 * request]byte // small: there are thousands of them
	for {
		n, err := c.Read(buf[:])
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func up(c net.Conn, o order) {
	buf := make([]byte, chunk)
	begin := time.Now().Add(o.warm)
	end := begin.Add(o.time)
	_ = c.SetDeadline(end)
	var counted uint64
	for {
		n, err := c.Read(buf)
		now := time.Now()
		if now.After(begin) && now.Before(end) {
			counted += uint64(n)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || err == nil && now.After(end) {
			break
		}
		if err != nil {
			return
		}
	}
	_ = c.SetDeadline(end.Add(drainTimeout))
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, counted)); err != nil {
		return
	}
	for {
		if _, err := c.Read(buf); err != nil {
			return
		}
	}
}

func down(c net.Conn, o order) {
	buf := make([]byte, chunk)
	end := time.Now().Add(o.warm + o.time)
	_ = c.SetDeadline(end.Add(drainTimeout))
	for time.Now().Before(end) {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// relay connects what it accepts with address.
func relay(ctx context.Context, listen, to string) error {
	return accept(ctx, listen, func(c net.Conn) {
		far, err := net.Dial("tcp", to)
		if err != nil {
			c.Close()
			return
		}
		join(c, far)
	})
}

// accept prints where it listens, for the program that waits for it, and handles each connection in a
// goroutine of its own. It ends when ctx does, and the process with it.
func accept(ctx context.Context, address string, handle func(net.Conn)) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening on", ln.Addr())
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go handle(c)
	}
}

// join copies both ways as Go programs usually do: io.Copy, which lets the kernel splice TCP with TCP.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() { oneWay(a, b) })
	oneWay(b, a)
	wg.Wait()
	a.Close()
	b.Close()
}

func oneWay(dst, src net.Conn) {
	_, err := io.Copy(dst, src)
	if half, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	dst.Close() // a yamux stream's half-close, or an error
}
