package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tcpPair is two ends of one TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// path is what tests of splicing look at: two TCP ends, with one splice, or two and a tunnel, between.
type path struct {
	left, right *net.TCPConn
	flow        *Flow
	done        chan error // what each Splice returned
	splices     int
}

// onPaths runs f over TCP-splice-TCP, and over TCP-splice-tunnel-splice-TCP both ways round.
func onPaths(t *testing.T, f func(*testing.T, func() *path)) {
	t.Run("tcp", func(t *testing.T) {
		f(t, func() *path {
			left, a := tcpPair(t)
			b, right := tcpPair(t)
			p := &path{left, right, new(Flow), make(chan error, 1), 1}
			go func() { p.done <- p.flow.Splice(a, b) }()
			return p
		})
	})
	for _, podLeft := range []bool{true, false} {
		name := map[bool]string{true: "inbound", false: "outbound"}[podLeft]
		t.Run(name, func(t *testing.T) {
			e := newEnds(t, tcpNetwork(t)).start().waitReady()
			defer e.wantNoStreams()
			f(t, func() *path {
				pod, laptop := e.streams()
				x, y := pod, laptop
				if !podLeft {
					x, y = laptop, pod
				}
				left, a := tcpPair(t)
				b, right := tcpPair(t)
				p := &path{left, right, new(Flow), make(chan error, 2), 2}
				go func() { p.done <- p.flow.Splice(a, x) }()
				go func() { p.done <- Splice(y, b) }()
				return p
			})
		})
	}
}

// wait closes the two ends and waits for the splices; it returns their first error.
func (p *path) wait() (err error) {
	_, _ = p.left.Close(), p.right.Close()
	for range p.splices {
		err = errors.Join(err, <-p.done)
	}
	return err
}

func TestSpliceHalfClose(t *testing.T) {
	onPaths(t, func(t *testing.T, path func() *path) {
		for _, leftFirst := range []bool{true, false} {
			p := path()
			first, second := p.left, p.right
			if !leftFirst {
				first, second = second, first
			}
			_, _ = first.Write([]byte("request"))
			_ = first.CloseWrite()
			if got, err := io.ReadAll(second); err != nil || string(got) != "request" {
				t.Errorf("%q, %v", got, err)
			}
			_, _ = second.Write([]byte("answer after the end"))
			_ = second.CloseWrite()
			if got, err := io.ReadAll(first); err != nil || string(got) != "answer after the end" {
				t.Errorf("%q, %v", got, err)
			}
			if err := p.wait(); err != nil {
				t.Errorf("splice: %v", err)
			}
		}
	})
}

// TestSpliceReset resets each side in each state: the other side sees a reset, not an end.
func TestSpliceReset(t *testing.T) {
	states := map[string]func(from, to *net.TCPConn){
		"idle": func(_, _ *net.TCPConn) {},
		"used": func(from, to *net.TCPConn) {
			_, _ = from.Write([]byte("x"))
			_, _ = io.ReadFull(to, make([]byte, 1))
			_, _ = to.Write([]byte("y"))
			_, _ = io.ReadFull(from, make([]byte, 1))
		},
		"other side half-closed": func(from, to *net.TCPConn) {
			_ = to.CloseWrite()
			_, _ = io.ReadAll(from)
		},
	}
	onPaths(t, func(t *testing.T, path func() *path) {
		for name, setUp := range states {
			for _, fromLeft := range []bool{true, false} {
				p := path()
				from, to := p.left, p.right
				if !fromLeft {
					from, to = to, from
				}
				setUp(from, to)
				_ = from.SetLinger(0)
				_ = from.Close()
				_, err := to.Read(make([]byte, 1))
				wantErr(t, name, err, syscall.ECONNRESET)
				if err := p.wait(); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: splice: %v", name, err)
				}
			}
		}
	})
}

// TestSpliceResetWhileWriting: the reset is met by a write, and a system tells of it only once.
func TestSpliceResetWhileWriting(t *testing.T) {
	onPaths(t, func(t *testing.T, path func() *path) {
		p := path()
		var wg sync.WaitGroup
		wg.Go(func() { // fills everything between, and blocks
			n, err := io.Copy(p.left, onlyReader{endless{}})
			if err == nil || n == 0 {
				t.Errorf("wrote %d, %v", n, err)
			}
		})
		_, _ = io.CopyN(io.Discard, p.right, 1<<20)
		_ = p.right.SetLinger(0)
		_ = p.right.Close()
		wg.Wait()
		if err := p.wait(); err == nil {
			t.Error("splice: no error")
		}
	})
}

// TestSpliceKeepsAResetMetByAWrite: the stream's other end is told of a reset, whether a read or a write of the local
// conn met it.
func TestSpliceKeepsAResetMetByAWrite(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	for range 50 {
		pod, laptop := e.streams()
		b, right := tcpPair(t)
		done := make(chan error, 1)
		go func() { done <- Splice(laptop, b) }()
		go func() {
			_, _ = io.CopyN(io.Discard, right, 1<<16)
			_ = right.SetLinger(0)
			_ = right.Close()
		}()
		_, err := io.Copy(onlyWriter{pod}, endless{})
		wantErr(t, "write", err, syscall.ECONNRESET)
		_, err = pod.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNRESET)
		if err := <-done; err == nil { // reset, or broken pipe: whichever direction was first
			t.Error("splice: no error")
		}
		_ = pod.Close()
	}
	e.wantNoStreams()
}

type onlyWriter struct{ io.Writer }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestSpliceAnswerAndClose: a server that answers a request it has not read, and closes, loses nothing of the answer.
func TestSpliceAnswerAndClose(t *testing.T) {
	onPaths(t, func(t *testing.T, path func() *path) {
		for range 20 {
			p := path()
			answer := randomBytes(100_000)
			go func() {
				_, _ = p.right.Write(answer)
				_ = p.right.Close()
			}()
			if got, err := io.ReadAll(p.left); err != nil || !bytes.Equal(got, answer) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := p.wait(); err != nil {
				t.Errorf("splice: %v", err)
			}
		}
	})
}

// TestSpliceClosedByOthers: closing one of the spliced conns ends the other side without a reset.
func TestSpliceClosedByOthers(t *testing.T) {
	left, a := tcpPair(t)
	b, right := tcpPair(t)
	done := make(chan error)
	go func() { done <- Splice(a, b) }()
	_, _ = left.Write([]byte("x"))
	_, _ = io.ReadFull(right, make([]byte, 1))
	_ = a.Close()
	for _, c := range []*net.TCPConn{left, right} {
		if got, err := io.ReadAll(c); err != nil || len(got) > 0 {
			t.Errorf("%q, %v", got, err)
		}
		_ = c.Close()
	}
	if err := <-done; err != nil {
		t.Errorf("splice: %v", err)
	}
}

// TestSpliceStuckAtTheEndOfItsSession: a program that reads nothing, or reads only after it could write, does not keep a
// connection whose session is over.
func TestSpliceStuckAtTheEndOfItsSession(t *testing.T) {
	for name, serve := range map[string]func(*net.TCPConn){
		"reads nothing": func(c *net.TCPConn) {
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
			}
		},
		"echoes": func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnds(t, tcpNetwork(t)).start().waitReady()
			pod, laptop := e.streams()
			local, program := tcpPair(t)
			done := make(chan error, 1)
			go func() { done <- Splice(laptop, local) }()
			served := make(chan struct{})
			go func() { defer close(served); serve(program) }()
			for { // until nothing moves any more
				_ = pod.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
				if _, err := pod.Write(make([]byte, maxFrame)); err != nil {
					break
				}
			}
			laptop.s.kill(errors.New("over"))
			wantErr(t, "splice", <-done, syscall.ECONNRESET)
			<-served
			_ = program.Close()
			_ = pod.Close()
		})
	}
}

// TestSpliceWithoutHalfClose: a conn that has no CloseWrite is closed instead.
func TestSpliceWithoutHalfClose(t *testing.T) {
	left, a := tcpPair(t)
	b, right := net.Pipe()
	done := make(chan error)
	go func() { done <- Splice(a, b) }()
	go func() {
		_, _ = left.Write([]byte("x"))
		_ = left.CloseWrite()
	}()
	if got, err := io.ReadAll(right); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Errorf("splice: %v", err)
	}
	_, _ = left.Close(), right.Close()
}

// TestSpliceLeaves: b is left to itself when a has ended and Leave says so, and whoever is in its Read then is not waited for.
func TestSpliceLeaves(t *testing.T) {
	for _, ends := range []bool{true, false} {
		left, a := tcpPair(t)
		b, right := tcpPair(t)
		asked := 0
		stays := make(chan struct{})
		f := Flow{Leave: func() bool { asked++; return asked == 3 }}
		done := make(chan error)
		go func() { done <- f.Splice(a, stuck{b, stays}) }()
		_, _ = left.Write([]byte("x"))
		if ends {
			_ = left.CloseWrite()
			if got, err := io.ReadAll(right); err != nil || string(got) != "x" {
				t.Errorf("%q, %v", got, err)
			}
			if err := <-done; err != nil || asked != 3 {
				t.Errorf("%v, asked %d times", err, asked)
			}
			close(stays)
		} else { // a reset is no end
			_ = left.SetLinger(0)
			_ = left.Close()
			close(stays)
			if err := <-done; err == nil || asked != 0 {
				t.Errorf("%v, asked %d times", err, asked)
			}
		}
		_, _ = left.Close(), right.Close()
	}
}

// stuck is a conn whose Read waits for more than its end.
type stuck struct {
	net.Conn
	stays chan struct{}
}

func (s stuck) Read(b []byte) (int, error) {
	<-s.stays
	return s.Conn.Read(b)
}

func (s stuck) CloseWrite() error { return s.Conn.(*net.TCPConn).CloseWrite() }

// TestSpliceRefused: the caller of a refused connection sees a reset.
func TestSpliceRefused(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.client.Handle = func(_ context.Context, st *Stream) { _ = st.Refuse(syscall.ECONNREFUSED) }
	e.start().waitReady()
	caller, a := tcpPair(t)
	st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "splice", Splice(a, st), syscall.ECONNREFUSED)
	_, err = caller.Read(make([]byte, 1))
	wantErr(t, "caller", err, syscall.ECONNRESET)
	_ = caller.Close()
	e.wantNoStreams()
}

func TestFlowSaysWhatMovedLast(t *testing.T) {
	left, a := tcpPair(t)
	b, right := tcpPair(t)
	var f Flow
	if at, way, moving := f.Last(); !at.IsZero() || way != Neither || moving {
		t.Errorf("before: %v, %v, %v", at, way, moving)
	}
	done := make(chan error)
	go func() { done <- f.Splice(a, b) }()
	move := func(from, to *net.TCPConn, want Direction) {
		t.Helper()
		before := time.Now()
		_, _ = from.Write([]byte("x"))
		_, _ = io.ReadFull(to, make([]byte, 1))
		for { // the byte is here before the splice has noted that it is written
			at, way, moving := f.Last()
			if way == want && !moving {
				if at.Before(before) || at.After(time.Now()) {
					t.Errorf("at %v, not after %v", at, before)
				}
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	move(left, right, AToB)
	move(right, left, BToA)
	go func() { _, _ = io.Copy(left, onlyReader{endless{}}) }()
	for last := time.Now(); ; time.Sleep(time.Millisecond) { // full: read, and not written
		if at, way, moving := f.Last(); way == AToB && moving && at.Equal(last) {
			break
		} else {
			last = at
		}
	}
	_ = right.Close()
	if err := <-done; err == nil {
		t.Error("splice: no error for bytes that could not be delivered")
	}
	_ = left.Close()
}
