//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// order is what the first bytes of a connection ask the server for. It answers with one byte at once,
// which says that the way is open. The server's clock bounds bulk, so that nobody has to end it from afar.
type order struct {
	what byte
	warm time.Duration // not counted
	time time.Duration // counted
}

const (
	// orderEcho: what comes is sent back.
	orderEcho = 'E'
	// orderUp: after one more byte, which starts the clock, bulk comes. When warm and time are over the
	// server sends 8 bytes, how much came within time; bulk that comes then is dropped until its mark.
	orderUp = 'U'
	// orderDown: after one more byte, bulk is sent for warm and time, and its mark.
	orderDown = 'D'
	// orderHTTP is no order but the beginning of a GET.
	orderHTTP = 'G'

	orderSize = 1 + 4 + 4 // what, and both in milliseconds

	// mark is the last byte of bulk; all others are 0. A half-close would do, but a port-forward takes a
	// second over one.
	mark = 1
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

// serve answers orders until ctx is done.
func serve(ctx context.Context, address string) error { return accept(ctx, address, answer) }

// answer does what one connection orders. What goes wrong with it is for its client to find.
func answer(c net.Conn) {
	defer c.Close()
	o, err := readOrder(c)
	if o.what == orderHTTP {
		answerHTTP(c, o)
		return
	}
	if err != nil {
		return
	}
	var one [1]byte
	if _, err := c.Write(one[:]); err != nil {
		return
	}
	if o.what == orderEcho {
		echo(c)
		return
	}
	if _, err := io.ReadFull(c, one[:]); err != nil {
		return
	}
	if o.what == orderUp {
		up(c, o)
	} else {
		down(c, o)
	}
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

// answerHTTP answers requests, one after the other, of the first of which o is the beginning.
func answerHTTP(c net.Conn, o order) {
	r := bufio.NewReader(io.MultiReader(bytes.NewReader(o.bytes()), c))
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", request, make([]byte, request))
	for {
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		if _, err := c.Write(answer); err != nil {
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
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if buf[n-1] == mark {
			_, _ = c.Write(buf[:1]) // all of it is here
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
	if _, err := c.Write([]byte{mark}); err == nil {
		_, _ = c.Read(buf[:1]) // the client closes when it has the mark
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
	fmt.Println(listening, ln.Addr())
	return acceptFrom(ctx, ln, handle)
}

func acceptFrom(ctx context.Context, ln net.Listener, handle func(net.Conn)) error {
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
