package route

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"bridge/internal/http1"
)

// backend is one connection to the original or to a laptop.
type backend struct {
	s        *session
	route    string        // whose laptop it is
	laptop   bool          // it is one
	ready    chan struct{} // closed when it is connected, or err is set
	conn     net.Conn
	err      error         // of the dial
	finished chan struct{} // closed when nobody reads conn any more

	// Under s.mu:
	gone     error  // why it can be used no more
	held     []byte // what it said first and may be a server's beginning of HTTP/2; nobody reads conn any more
	half     bool   // it was sent the caller's end
	detached bool   // its goroutine is to end
}

// exchange is one request and its answer.
type exchange struct {
	b      *backend
	method string
	asked  http1.Request

	// Of the answer, known to the backend's goroutine only:
	head http1.Head
	body http1.Body
	last bool // the head was the last one, no interim one

	// Under s.mu:
	answered bool
	told     bool // some of the answer was passed on
	begun    bool // the request's body has
	cut      bool // no more of the request's body is to be taken: what follows may be another request
	close    bool // the connection ends behind the answer
}

// read passes b's answers on until b has no more, or somebody else is to read it.
func (b *backend) read() {
	defer close(b.finished)
	buf := newBuffer(&b.s.memory)
	defer buf.small()
	for {
		b.s.mu.Lock()
		stop := b.detached
		b.s.mu.Unlock()
		if stop {
			return
		}
		n, err := b.conn.Read(buf.p)
		if n > 0 && !b.said(buf.p[:n]) {
			return
		}
		if err != nil {
			b.lost(err)
			return
		}
		buf.fit(n)
	}
}

// lost notes that b says no more.
func (b *backend) lost(err error) {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.detached && errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	if x := s.exchange; x != nil && x.b == b && errors.Is(err, io.EOF) && x.last && x.body.UntilClose() {
		x.answered = true
	}
	b.gone = err
	s.cond.Broadcast()
}

// said passes on what b said. False when b is to be read no further.
func (b *backend) said(p []byte) bool {
	s := b.s
	for len(p) > 0 {
		s.mu.Lock()
		x := s.exchange
		asked := x != nil && x.b == b && !x.answered
		switch {
		case s.follow == b:
		case s.follow == nil && asked:
			x.told = true
		case s.follow == nil && !b.laptop && (s.current == nil || s.current == b):
			if s.current == nil && beginsHTTP2(p) {
				b.held = bytes.Clone(p)
				s.mu.Unlock()
				return false
			}
			s.r.unreadable(First)
			s.follow = b
			s.cond.Broadcast()
		default:
			b.gone = errUnasked
			s.cond.Broadcast()
			s.mu.Unlock()
			_ = b.conn.Close()
			return false
		}
		following := s.follow == b
		s.mu.Unlock()

		n := len(p)
		var err error
		if !following {
			if n, err = x.follow(p); err != nil && !errors.Is(err, errSwitched) {
				if b.laptop {
					if !errors.Is(err, errFull) {
						err = errors.Join(errUnclear, err)
					}
					s.r.log("connection ended", "route", b.route, "error", err)
					s.abort()
					return false
				}
				n = len(p)
			}
		}
		if _, err := s.client.Write(p[:n]); err != nil {
			s.abort()
			return false
		}
		p = p[n:]
		if !following && !b.noted(x, err) {
			return false
		}
	}
	return true
}

// follow reads along in an answer, and returns how many bytes of p are its. The error says that it cannot be told where it ends.
func (x *exchange) follow(p []byte) (n int, err error) {
	if x.last {
		return x.body.Read(p)
	}
	memory := &x.b.s.memory
	n, whole, err := x.head.Read(p)
	if err == nil && !whole && !memory.take(n) {
		return n, errFull
	}
	if err != nil || !whole {
		return n, err
	}
	memory.give(len(x.head.Bytes()) - n)
	answer, err := http1.ParseResponse(&x.head, x.method)
	if err != nil {
		return n, err
	}
	x.head = http1.Head{}
	if answer.Interim() {
		return n, nil
	}
	x.last, x.body = true, answer.Body
	if answer.Code == 101 {
		if x.b.laptop && x.asked.Upgrade == nil {
			return n, errors.New("it changes the protocol without being asked")
		}
		return n, errSwitched
	}
	if answer.Close {
		x.b.s.mu.Lock()
		x.close = true
		x.b.s.mu.Unlock()
	}
	return n, nil
}

var (
	// errSwitched is no failure: the connection speaks another protocol from here on.
	errSwitched = errors.New("another protocol follows")
	errFull     = errors.New("no memory left for an answer's head")
)

// noted acts on what was read of x's answer and has been passed on.
func (b *backend) noted(x *exchange, unclear error) bool {
	s := b.s
	s.mu.Lock()
	defer s.mu.Unlock()
	early := x.last && x.asked.Expect && !x.begun && !x.asked.Body.Over()
	switch {
	case errors.Is(unclear, errSwitched):
		if offers(x.asked, "h2c") {
			s.r.unreadable(Upgrade)
		}
		s.follow = b
	case errors.Is(unclear, errFull):
		s.r.unreadable(Full)
		s.follow = b
	case unclear != nil:
		s.r.unreadable(NotHTTP)
		s.follow = b
	case !b.laptop && (early || x.last && x.close):
		s.follow = b // what the caller sends next may be the body or another request
	case early:
		x.cut, x.close = true, true
	}
	if x.last && x.body.Over() {
		x.answered = true
	}
	s.cond.Broadcast()
	return true
}

func offers(r http1.Request, protocol string) bool {
	for _, offer := range r.Upgrade {
		if offer == protocol {
			return true
		}
	}
	return false
}

// withoutUpgrade takes the offer of another protocol out of a head, as whoever passes a request on may (RFC 9110
// section 7.8).
func withoutUpgrade(head []byte) []byte {
	var kept []byte
	for line := range bytes.Lines(head) {
		name, value, _ := strings.Cut(string(line), ":")
		switch strings.ToLower(name) {
		case "upgrade", "http2-settings":
			continue
		case "connection":
			var options []string
			for _, option := range http1.List(strings.TrimRight(value, "\r\n")) {
				if option != "upgrade" && option != "http2-settings" {
					options = append(options, option)
				}
			}
			if options == nil {
				continue
			}
			line = []byte(name + ": " + strings.Join(options, ", ") + "\r\n")
		}
		kept = append(kept, line...)
	}
	return kept
}

// detach ends b's goroutine.
func (b *backend) detach() {
	b.s.mu.Lock()
	b.detached = true
	b.s.mu.Unlock()
	_ = b.conn.SetReadDeadline(time.Unix(1, 0))
	<-b.finished
	_ = b.conn.SetReadDeadline(time.Time{})
}
