package tunnel

import (
	"bufio"
	"errors"
	"net"
	"sync"
)

const (
	// wireRead is how much is read from a carrier at once: several of TLS's records, which crypto/tls
	// would fetch one by one.
	wireRead = 128 << 10
	// wireWrite is room for one write of the layer above, cut into records: 16 KiB and 22 bytes each.
	wireWrite = segmentHeader + maxBatch + 1<<10
)

// wire is a carrier as TLS sees it. crypto/tls reads and writes one record of at most 16 KiB at a time,
// and on a port-forward each of these calls is a frame, a message and a record of its own in every hop. So the
// records of one write leave together, and reads are larger. It starts doing so when open is called:
// nobody gets a buffer before it is known who that is.
type wire struct {
	net.Conn
	r *bufio.Reader // nil until open

	mu     sync.Mutex
	corked bool   // between cork and uncork records are kept
	out    []byte // the records kept
}

// open ends the time of caution. The goroutine that reads calls it.
func (w *wire) open() {
	w.r = bufio.NewReaderSize(w.Conn, wireRead)
	w.out = make([]byte, 0, wireWrite)
}

func (w *wire) Read(p []byte) (int, error) {
	if w.r == nil {
		return w.Conn.Read(p)
	}
	return w.r.Read(p)
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.corked {
		return w.Conn.Write(p)
	}
	w.out = append(w.out, p...)
	return len(p), nil
}

func (w *wire) cork() {
	w.mu.Lock()
	w.corked = true
	w.mu.Unlock()
}

func (w *wire) uncork() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.corked = false
	_, err := w.Conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// link is a carrier after the handshake: what a session runs on.
type link struct {
	net.Conn // TLS
	wire     *wire
	peer     hello

	left    int           // of a segment's data, still to be read; of the goroutine that reads
	gone    chan struct{} // closed when the session does not use it any more
	cause   error         // why; set before
	useful  bool          // something arrived on it; set before
	verdict *string       // what judge was told last; of its caller
	judged  chan string   // capacity 1: what is wrong with it by now, "" for nothing; only the newest matters
}

func newLink(t net.Conn, w *wire) *link {
	return &link{Conn: t, wire: w, gone: make(chan struct{}), judged: make(chan string, 1)}
}

// complaint is what the carrier says is wrong with it.
func (l *link) complaint() string {
	if c, ok := l.wire.Conn.(interface{ Degraded() string }); ok {
		return c.Degraded()
	}
	return ""
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
func (l *link) Write(p []byte) (int, error) {
	l.wire.cork()
	n, err := l.Conn.Write(p)
	return n, errors.Join(err, l.wire.uncork())
}

// Close closes the carrier first: a TLS close notification could block on a carrier that is stuck.
func (l *link) Close() error {
	err := l.wire.Close()
	_ = l.Conn.Close() // has nothing left to close; it only marks the connection
	return err
}
