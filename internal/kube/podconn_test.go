package kube

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/spdystream/spdy"
)

// pipeConn is a podConn on one end of a pipe, and the other end once it has accepted the streams.
func pipeConn(t *testing.T) (p *podConn, far net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	go func() {
		framer, err := spdy.NewFramer(far, far)
		if err != nil {
			return
		}
		for range 2 {
			if _, err := framer.ReadFrame(); err != nil {
				return
			}
		}
		for _, id := range []spdy.StreamId{3, 1} {
			_ = framer.WriteFrame(&spdy.SynReplyFrame{StreamId: id})
		}
	}()
	c, err := newSession(&rawCarrier{Conn: near, r: bufio.NewReader(near)})
	if err != nil {
		t.Fatal(err)
	}
	p, err = newPodConn(c, podAddr{"shop", "orders-0", 80}, 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	c.rmu.Lock()
	err = p.readFrame() // the second reply
	c.rmu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	return p, far
}

func TestAPathThatAnswersNoPingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, far := pipeConn(t)
		go func() { _, _ = io.Copy(io.Discard, far) }()
		began := time.Now()
		_, err := p.Read(make([]byte, 1))
		if took := time.Since(began); !errors.Is(err, syscall.ETIMEDOUT) || !errors.Is(err, syscall.ECONNRESET) || took > 15*time.Second {
			t.Errorf("read: %v after %v", err, took)
		}
		_ = p.Close()
		_ = far.Close()
	})
}

// It has been answered until just now: that is the longest time.
func TestAPathThatAnswersNoMoreIsLostSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, far := pipeConn(t)
		const answers = 10
		var last time.Time
		go func() {
			var frame [12]byte
			for range answers {
				if _, err := io.ReadFull(far, frame[:]); err != nil {
					return
				}
				_, _ = far.Write(frame[:])
				last = time.Now()
			}
			_, _ = io.Copy(io.Discard, far)
		}()
		_, err := p.Read(make([]byte, 1))
		if took := time.Since(last); !errors.Is(err, syscall.ECONNRESET) || took > 15*time.Second {
			t.Errorf("read: %v after %v", err, took)
		}
		_ = p.Close()
		_ = far.Close()
	})
}

func TestAPathThatAnswersPingsIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, far := pipeConn(t)
		go func() {
			var frame [12]byte
			for {
				if _, err := io.ReadFull(far, frame[:]); err != nil {
					return
				}
				_, _ = far.Write(frame[:]) // a ping is its own answer
			}
		}()
		time.AfterFunc(time.Hour, func() { _ = p.Close() })
		if _, err := p.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		_ = far.Close()
	})
}

func TestAPodThatDoesNotReadIsNotTakenForADeadPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, far := pipeConn(t)
		// The far end takes the data into its buffers and looks at nothing behind it.
		go func() { _, _ = io.Copy(io.Discard, far) }()
		if _, err := p.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Minute, func() { _ = p.Close() })
		if _, err := p.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
		_ = far.Close()
	})
}

func TestThePeersPingIsAnsweredWhileAWriteWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, far := pipeConn(t)
		wrote := make(chan error, 1)
		go func() {
			_, err := p.Write(make([]byte, 100))
			wrote <- err
		}()
		go func() { _, _ = p.Read(make([]byte, 1)) }()
		synctest.Wait() // the write waits: nobody reads the pipe
		ping := pingFrame(2)
		if _, err := far.Write(ping); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		got := make([]byte, 8+100+len(ping))
		if _, err := io.ReadFull(far, got); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		if id := binary.BigEndian.Uint32(got[len(got)-4:]); string(got[108:112]) != string(ping[:4]) || id != 2 {
			t.Errorf("after the data came % x, want the answer % x", got[108:], ping)
		}
		_ = far.Close()
		_ = p.Close()
	})
}

// FuzzFrames has the cluster's side send anything.
func FuzzFrames(f *testing.F) {
	f.Add(append(pingFrame(2), goodbye(3, false, false)...))
	f.Add(goodbye(3, true, false))
	f.Add([]byte{0, 0, 0, 3, 1, 0, 0, 2, 'h', 'i'})
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0, 2, 'n', 'o', 0, 0, 0, 3, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		near, far := net.Pipe()
		go func() {
			_, _ = far.Write(in)
			_ = far.Close()
		}()
		c, err := newSession(&rawCarrier{Conn: near, r: bufio.NewReader(near)})
		if err != nil {
			t.Fatal(err)
		}
		p := &podConn{c: c, errID: 1, dataID: 3, closed: make(chan struct{}), onLost: func() {}, wmu: make(chan struct{}, 1)}
		n, err := io.Copy(io.Discard, p)
		if n > int64(len(in)) || len(p.errText) > maxErrorText {
			t.Errorf("%d bytes of %d, %d of error text, %v", n, len(in), len(p.errText), err)
		}
		_ = near.Close()
	})
}
