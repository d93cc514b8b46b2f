package tunnel

import (
	"net"
	"sync/atomic"
	"time"

	"bridge/internal/cork"
)

// wireRead is how much is read from a carrier at once: several records.
const wireRead = 128 << 10

// link is a carrier after the handshake: what a session runs on.
type link struct {
	net.Conn // TLS
	wire     *cork.Conn
	peer     hello

	left    int  // of a segment's data, still to be read; of the goroutine that reads
	asked   bool // it is to be acknowledged; likewise
	born    time.Time
	heard   atomic.Int64  // when the last segment came, in nanoseconds since born; 0: none yet
	gone    chan struct{} // closed when the session does not use it any more
	cause   error         // why; set before
	useful  bool          // something arrived on it; set before
	verdict *string       // what judge was told last; of its caller
	judged  chan string   // capacity 1: what is wrong with it by now, "" for nothing; only the newest matters
}

func newLink(t net.Conn, w *cork.Conn) *link {
	return &link{Conn: t, wire: w, born: time.Now(), gone: make(chan struct{}), judged: make(chan string, 1)}
}

// complaint is what the carrier says is wrong with it.
func (l *link) complaint() string {
	if c, ok := l.wire.Conn.(interface{ Degraded() string }); ok {
		return c.Degraded()
	}
	return ""
}

// dead is what the carrier knows of its end before any byte or silence tells it; nil for nothing.
func (l *link) dead() error {
	if c, ok := l.wire.Conn.(interface{ Dead() error }); ok {
		return c.Dead()
	}
	return nil
}

// judge has waitLink know why. One goroutine calls it.
func (l *link) judge(why string) {
	if l.verdict != nil && *l.verdict == why {
		return
	}
	l.verdict = &why
	select {
	case <-l.judged:
	default:
	}
	l.judged <- why
}

// Write sends p, whose records leave in one write of the carrier. One Write at a time.
func (l *link) Write(p []byte) (n int, err error) {
	err = l.wire.Gather(func() error {
		n, err = l.Conn.Write(p)
		return err
	})
	return n, err
}

// Close closes the carrier first: a TLS close notification could block on a carrier that is stuck.
func (l *link) Close() error {
	err := l.wire.Close()
	_ = l.Conn.Close() // has nothing left to close; it only marks the connection
	return err
}
