package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// spliceBuffer is one frame: more would be cut up again.
	spliceBuffer = maxFrame
	// smallRead is what an idle stream is read with first: most requests and answers fit.
	smallRead = 512
	// manyHeld is how many frames may be read from TCP connections and not be passed on, as no carrier takes them; beyond it, with
	// more than a thousand connections that send, crowdedRead is read of each.
	manyHeld    = 1024
	crowdedRead = 2 << 10
)

// framesHeld are those that are lent from the pool, which is the process's, too.
var framesHeld atomic.Int64

var buffers = sync.Pool{New: func() any { return new([spliceBuffer]byte) }}

// source is a conn that is read to be passed on. Most connections are idle most of the time, and thousands of them
// must not hold a frame's buffer each: one is taken from the pool when there is something to put in it.
type source struct {
	conn net.Conn
	raw  syscall.RawConn // of a TCP connection, where the system lets us read it so; else nil
	seen func(p []byte, err error)
	big  *[spliceBuffer]byte
	part []byte // in its place, where many hold one

	stream *Stream // conn, if it is one; else nil
	small  []byte  // for it
	lent   int     // what it counts as unread until release: more may come when this was passed on
}

// watched is a TCP connection whose owner is told what was read, as its own Read would have told it.
type watched interface {
	net.Conn
	syscall.Conn
	Seen(p []byte, err error)
}

func newSource(c net.Conn) *source {
	s := &source{conn: c}
	switch c := c.(type) {
	case *net.TCPConn:
		s.raw = rawRead(c)
	case watched:
		s.raw, s.seen = rawRead(c), c.Seen
	case *Stream:
		s.stream, s.small = c, make([]byte, smallRead)
	}
	return s
}

// next reads what there is. It is good until release.
func (s *source) next() ([]byte, error) {
	if s.raw != nil {
		return s.nextRaw()
	}
	if s.stream != nil {
		p := s.small
		if s.stream.receive.waiting() > smallRead {
			s.big = buffers.Get().(*[spliceBuffer]byte)
			p = s.big[:]
		}
		n, err := s.stream.lend(p)
		s.lent = n
		return p[:n], err
	}
	s.big = buffers.Get().(*[spliceBuffer]byte)
	n, err := s.conn.Read(s.big[:])
	return s.big[:n], err
}

// nextRaw tries to read as net does, with a buffer only for the try.
func (s *source) nextRaw() (p []byte, err error) {
	n, err := tryRead(s.raw, s.buffer, s.release) // nothing else may hold the buffer while it waits
	switch {
	case err != nil:
		err = readError(s.conn, "tcp", err)
	case n == 0:
		err = io.EOF
	}
	if p = s.part; s.big != nil {
		p = s.big[:]
	}
	p = p[:n]
	if s.seen != nil {
		s.seen(p, err)
	}
	return p, err
}

// buffer is what to read to until release.
func (s *source) buffer() []byte {
	if framesHeld.Add(1) > manyHeld {
		framesHeld.Add(-1)
		s.part = make([]byte, crowdedRead)
		return s.part
	}
	s.big = buffers.Get().(*[spliceBuffer]byte)
	return s.big[:]
}

// tryRead waits until there is something to read, and reads it to what lend gives; after a try in vain back takes that
// again. The error is the wait's, or an errno.
func tryRead(raw syscall.RawConn, lend func() []byte, back func()) (n int, err error) {
	waitErr := raw.Read(func(fd uintptr) bool {
		p := lend()
		for {
			if n, err = readFD(fd, p); !isErrno(err, syscall.EINTR) {
				break
			}
		}
		if isErrno(err, syscall.EAGAIN) {
			back()
			return false
		}
		n = max(0, n)
		return true
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// readError is err of tryRead as net has it.
func readError(c net.Conn, network string, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err
	}
	return &net.OpError{Op: "read", Net: network, Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", err)}
}

func (s *source) release() {
	if s.lent > 0 {
		s.stream.took(s.lent)
		s.lent = 0
	}
	s.part = nil
	if s.big != nil {
		buffers.Put(s.big)
		s.big = nil
		if s.raw != nil {
			framesHeld.Add(-1)
		}
	}
}
