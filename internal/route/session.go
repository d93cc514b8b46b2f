package route

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"bridge/internal/http1"
	"bridge/pkg/tunnel"
)

const (
	// maxAhead is how much of what a caller sends is taken before it is wanted: enough for a head, so that a caller
	// that sends requests ahead, or goes away, is noticed.
	maxAhead = 64 << 10
	// Most connections are idle most of the time: they hold a small buffer, and a big one while much moves.
	smallBuffer = 4 << 10
	bigBuffer   = 32 << 10
	// linger is how long a caller may still send after our end, so that what it was told is not lost in a reset.
	linger = time.Second
)

var bigBuffers = sync.Pool{New: func() any { return new([bigBuffer]byte) }}

var (
	errAborted = errors.New("aborted")
	errAway    = errors.New("it takes no requests now")
	errUnasked = errors.New("an answer that nobody asked for")
	errUnclear = errors.New("the laptop's answer could be read in two ways")
)

// session is one caller's connection. Three kinds of goroutines work on it: run takes requests from in, one after the
// other, and sends each to its backend; readClient fills in; one for each backend passes its answers on.
type session struct {
	r      *Router
	ctx    context.Context
	client net.Conn
	wg     sync.WaitGroup
	read   chan struct{} // closed when readClient has ended
	memory share         // of it are what is in in, or was taken of it and not passed on yet, and large buffers

	mu       sync.Mutex
	cond     sync.Cond // something below has changed
	in       []byte    // what the caller said and nobody took. Taken from the front, added to at the end, never overwritten
	before   int       // bytes that were taken of in, and are in memory as long as it
	short    bool      // there is no memory for more of what the caller says
	inErr    error     // the end of it, behind in
	detached bool      // readClient is to end
	original *backend
	kept     map[string]*backend // those of the routes
	current  *backend            // that had the last request; nil: the original
	exchange *exchange           // under way; nil: none
	follow   *backend            // the connection is this one's from now on
	aborted  bool
}

// run is the caller's way to the backends.
func (s *session) run() error {
	s.mu.Lock()
	s.connectOriginal()
	s.mu.Unlock()
	s.wg.Go(s.readClient)
	for first := true; ; first = false {
		head, next := s.nextHead(first)
		switch next {
		case aFarewell:
			return s.gone()
		case anEnd:
			return s.finish()
		case aRest:
			return s.hand(head.Bytes())
		case anHTTP2:
			return s.serveHTTP2()
		}
		request, err := http1.ParseRequest(head)
		if err != nil {
			s.r.log("not read", "error", err)
			s.r.unreadable(NotHTTP)
			return s.hand(head.Bytes())
		}
		if on, err := s.serve(request, head.Bytes()); !on {
			return err
		}
	}
}

// what is next on a connection.
type next int

const (
	aRequest next = iota
	aRest         // of the connection: follow's, or else the original's
	anHTTP2
	anEnd     // of what the caller says; all was answered
	aFarewell // of the one that the connection is with, or of the caller
)

// nextHead waits for a request's head. What it took of another thing is in the head.
func (s *session) nextHead(first bool) (*http1.Head, next) {
	head := &http1.Head{Request: true}
	late := false
	var timer *time.Timer
	defer func() {
		if timer != nil {
			timer.Stop()
		}
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		undecided := first && len(s.in) < len(preface) && bytes.HasPrefix(preface, s.in)
		if first && bytes.HasPrefix(s.in, preface) {
			return head, anHTTP2
		}
		if len(s.in) > 0 && !undecided && s.original.held != nil {
			s.r.unreadable(First)
			s.follow = s.original
		}
		if p := s.in; len(p) > 0 && !undecided && s.follow == nil {
			first = false
			n, whole, err := head.Read(p)
			s.take(n)
			switch {
			case err != nil:
				if h := head.Bytes(); len(h) > 0 && h[0] == 0x16 {
					s.r.unreadable(TLS)
				} else {
					s.r.unreadable(NotHTTP)
				}
				return head, aRest
			case whole:
				return head, aRequest
			}
		}
		if timer == nil && (len(head.Bytes()) > 0 || len(s.in) > 0) {
			timer = time.AfterFunc(s.r.patience(), func() {
				s.mu.Lock()
				late = true
				s.mu.Unlock()
				s.cond.Broadcast()
			})
		}
		now := s.current
		if now == nil {
			now = s.original
		}
		switch {
		case s.aborted || s.inErr != nil && !errors.Is(s.inErr, io.EOF):
			return head, aFarewell
		case s.follow != nil:
			return head, aRest
		case late:
			s.r.unreadable(Slow)
			return head, aRest
		case s.short && len(s.in) == 0:
			s.r.unreadable(Full)
			return head, aRest
		case !now.laptop && now.gone != nil:
			return head, aFarewell
		case s.inErr != nil && len(head.Bytes()) == 0 && len(s.in) == 0 && now.laptop:
			return head, anEnd
		case s.inErr != nil:
			return head, aRest
		}
		s.cond.Wait()
	}
}

func (r *Router) patience() time.Duration {
	if r.HeadTimeout > 0 {
		return r.HeadTimeout
	}
	return headTimeout
}

// serve has one request answered. False ends run.
func (s *session) serve(request http1.Request, head []byte) (on bool, err error) {
	route := s.match(request)
	request = lasting(request)
	var x *exchange
	for {
		b, err := s.choose(route)
		if err != nil {
			s.abort()
			return false, err
		}
		said := head
		switch {
		case request.Method == "CONNECT", !b.laptop && request.Close:
			return false, s.handTo(b, head)
		case b.laptop && offers(request, "h2c"):
			// Once accepted, the connection's later requests would be the laptop's too.
			said = withoutUpgrade(head)
			request.Upgrade = nil
		}
		x = &exchange{b: b, method: request.Method, asked: request, close: request.Close}
		s.mu.Lock()
		odd, follow := b.held != nil, s.follow
		if follow == nil {
			s.exchange, s.current = x, b
		}
		s.mu.Unlock()
		switch {
		case follow != nil: // the original spoke unasked, while the laptop was dialled
			return false, s.handTo(follow, head)
		case odd:
			s.r.unreadable(First)
			return false, s.handTo(b, head)
		}
		_, err = b.conn.Write(said)
		if err == nil {
			break
		}
		if !b.laptop || !s.untold(x) {
			return false, s.answerOnly(x)
		}
		s.r.log("laptop not reached", "route", b.route, "error", err)
		route = nil
	}
	s.give(len(head))
	if on, err := s.sendBody(x); !on {
		return false, err
	}
	return s.awaitAnswer(x)
}

// lasting is a request without what takes as much memory as its head, or many times that.
func lasting(r http1.Request) http1.Request {
	r.Method, r.Target, r.Fields = strings.Clone(r.Method), "", nil
	switch {
	case offers(r, "h2c"):
		r.Upgrade = []string{"h2c"}
	case r.Upgrade != nil:
		r.Upgrade = []string{"another"}
	}
	return r
}

// match is the route that a request is for; nil: none, so that it is the original's.
func (s *session) match(request http1.Request) *Route {
	for _, route := range s.r.Routes() {
		if route.Filter.Matches(request.Target, request.Fields) {
			return &route
		}
	}
	return nil
}

// choose connects to route's laptop where there is one that can be reached, and else to the original.
func (s *session) choose(route *Route) (*backend, error) {
	if route != nil {
		b, err := s.laptop(*route)
		if err == nil {
			return b, nil
		}
		s.r.log("laptop not reached", "route", route.Name, "error", err)
	}
	return s.connected()
}

// laptop is a connection to route's laptop: the one of an earlier request where it is still there.
func (s *session) laptop(route Route) (*backend, error) {
	s.mu.Lock()
	b := s.kept[route.Name]
	takes := route.takes()
	usable := b != nil && b.gone == nil && takes
	if !usable && b != nil {
		_ = b.conn.Close()
		delete(s.kept, route.Name)
	}
	s.mu.Unlock()
	if usable {
		return b, nil
	}
	if !takes {
		return nil, errAway
	}
	conn, err := route.Dial(s.ctx)
	if err != nil {
		return nil, err
	}
	b = &backend{s: s, route: route.Name, laptop: true, conn: conn, finished: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		tunnel.Abort(conn)
		return nil, errAborted
	}
	s.kept[route.Name] = b
	s.wg.Go(b.read)
	return b, nil
}

// untold takes a laptop to which x's head could not be written whole out of the way. False when the original cannot have x
// instead: some of the answer was passed on, or the laptop may have got it all the same (a tunnel that ends does not know how much
// it has sent) and it is a request that must not be acted on twice.
func (s *session) untold(x *exchange) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.told || !safe(x.method) {
		return false
	}
	delete(s.kept, x.b.route)
	s.exchange = nil
	tunnel.Abort(x.b.conn)
	return true
}

// safe says whether a request changes nothing (RFC 9110 section 9.2.1).
func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions || method == http.MethodTrace
}

// connectOriginal begins to. mu is held.
func (s *session) connectOriginal() {
	b := &backend{s: s, ready: make(chan struct{}), finished: make(chan struct{})}
	s.original = b
	s.wg.Go(func() {
		conn, err := s.r.Original(s.ctx)
		s.mu.Lock()
		b.conn, b.err = conn, err
		if err == nil && s.aborted {
			tunnel.Abort(conn)
		}
		s.mu.Unlock()
		close(b.ready)
		if err != nil {
			close(b.finished)
			return
		}
		b.read()
	})
}

// connected is the connection to the original. One that was lost, or never made, is made anew, once.
func (s *session) connected() (*backend, error) {
	for again := false; ; again = true {
		s.mu.Lock()
		b := s.original
		s.mu.Unlock()
		<-b.ready
		s.mu.Lock()
		if b.err == nil && b.gone == nil {
			s.mu.Unlock()
			return b, nil
		}
		err := errors.Join(b.err, b.gone)
		if again || s.aborted || b.gone != nil && (s.current == nil || s.current == b) {
			s.mu.Unlock()
			return nil, err
		}
		if b.conn != nil {
			_ = b.conn.Close()
		}
		s.connectOriginal()
		s.mu.Unlock()
	}
}

// sendBody passes the request's body on as it comes. False ends run.
func (s *session) sendBody(x *exchange) (on bool, err error) {
	body := x.asked.Body
	for !body.Over() {
		s.mu.Lock()
		for len(s.in) == 0 && s.inErr == nil && s.follow == nil && x.b.gone == nil && !s.aborted && !x.cut {
			s.cond.Wait()
		}
		switch {
		case s.aborted:
			s.mu.Unlock()
			return false, errAborted
		case s.follow != nil:
			s.mu.Unlock()
			return false, s.hand(nil)
		case x.b.gone != nil || x.cut:
			s.mu.Unlock()
			return false, s.answerOnly(x)
		case len(s.in) == 0 && errors.Is(s.inErr, io.EOF):
			s.mu.Unlock()
			return s.awaitAnswer(x) // which passes the end on
		case len(s.in) == 0:
			s.mu.Unlock()
			return false, s.gone()
		}
		x.begun = true
		p := s.in
		n, err := body.Read(p)
		if err != nil {
			s.mu.Unlock()
			if x.b.laptop {
				s.abort()
				return false, err
			}
			s.r.log("not read", "error", err)
			s.r.unreadable(NotHTTP)
			return false, s.hand(nil)
		}
		s.take(n)
		s.mu.Unlock()
		_, err = x.b.conn.Write(p[:n])
		s.give(n)
		if err != nil {
			return false, s.answerOnly(x)
		}
	}
	return true, nil
}

// awaitAnswer returns when x is answered. What the caller sends ahead waits. False ends run.
func (s *session) awaitAnswer(x *exchange) (on bool, err error) {
	s.mu.Lock()
	for !x.answered && x.b.gone == nil && s.follow == nil && !s.aborted {
		if errors.Is(s.inErr, io.EOF) && len(s.in) == 0 && !x.b.half {
			s.endTo(x.b)
			continue
		}
		if s.inErr != nil && !errors.Is(s.inErr, io.EOF) {
			s.mu.Unlock()
			return false, s.gone()
		}
		s.cond.Wait()
	}
	defer s.mu.Unlock()
	switch {
	case s.aborted:
		return s.end(func() error { return errAborted })
	case s.follow != nil:
		return s.end(func() error { return s.hand(nil) })
	case !x.answered:
		return s.end(s.gone)
	case x.close || x.b.half:
		return s.end(s.finish)
	}
	s.exchange = nil
	return true, nil
}

// endTo sends b the caller's end. mu is held, but not meanwhile.
func (s *session) endTo(b *backend) {
	b.half = true
	s.mu.Unlock()
	closeWrite(b.conn)
	s.mu.Lock()
}

// end calls last without mu, which is held.
func (s *session) end(last func() error) (on bool, err error) {
	s.mu.Unlock()
	defer s.mu.Lock()
	return false, last()
}

// answerOnly is the end of a connection whose backend takes no more, or shall have no more: what it has still to say is
// passed on, and what the caller sends is dropped. That it ends, or is gone, is passed on too.
func (s *session) answerOnly(x *exchange) error {
	s.mu.Lock()
	for !x.answered && x.b.gone == nil && s.follow == nil && !s.aborted && (s.inErr == nil || errors.Is(s.inErr, io.EOF)) {
		s.ignore()
		if s.inErr != nil && !x.b.half {
			s.endTo(x.b)
			continue
		}
		s.cond.Wait()
	}
	answered, follow := x.answered, s.follow
	s.mu.Unlock()
	switch {
	case follow != nil:
		return s.hand(nil)
	case answered:
		return s.finish()
	}
	return s.gone()
}

// take takes the first n bytes of in, whose memory is given back once they are passed on. mu is held.
func (s *session) take(n int) {
	s.in = s.in[n:]
	if s.before += n; s.before > len(s.in) { // a few bytes must not hold many
		s.in, s.before = bytes.Clone(s.in), 0
	}
	if len(s.in) == 0 {
		s.in = nil
	}
	s.cond.Broadcast()
}

// ignore forgets what is in in. mu is held.
func (s *session) ignore() {
	n := len(s.in)
	s.take(n)
	s.memory.give(n)
}

// give gives the memory of n bytes back.
func (s *session) give(n int) {
	s.memory.give(n)
	s.mu.Lock() // whoever found none is waiting by now
	defer s.mu.Unlock()
	s.cond.Broadcast()
}

// readClient takes what the caller says.
func (s *session) readClient() {
	defer close(s.read)
	b := newBuffer(&s.memory)
	defer b.small()
	for {
		s.mu.Lock()
		for len(s.in) >= maxAhead && !s.detached && !s.aborted {
			s.cond.Wait()
		}
		stop := s.detached || s.aborted
		s.mu.Unlock()
		if stop {
			return
		}
		n, err := s.client.Read(b.p)
		s.mu.Lock()
		s.add(b.p[:n])
		if err != nil && (!s.detached || !errors.Is(err, os.ErrDeadlineExceeded)) {
			s.inErr = err
		}
		s.mu.Unlock()
		s.cond.Broadcast()
		if err != nil {
			return
		}
		b.fit(n)
	}
}

// add puts p into in, as there is memory for it: some at least when nothing is held. mu is held.
func (s *session) add(p []byte) {
	for len(p) > 0 {
		n := len(p)
		if !s.memory.take(n) {
			n = min(n, smallBuffer)
			for !s.memory.take(n) && !s.detached && !s.aborted {
				s.short = true
				s.cond.Broadcast()
				s.cond.Wait()
			}
			s.short = false
		}
		s.in = append(s.in, p[:n]...)
		p = p[n:]
		s.cond.Broadcast()
	}
}

// buffer is what a connection is read with.
type buffer struct {
	memory *share
	p      []byte
	own    [smallBuffer]byte
	big    *[bigBuffer]byte
}

func newBuffer(memory *share) *buffer {
	b := &buffer{memory: memory}
	b.p = b.own[:]
	return b
}

// fit makes it larger after a read that filled it, if there is memory for that, and small again after one that would not have.
func (b *buffer) fit(n int) {
	switch {
	case n == len(b.p) && b.big == nil && b.memory.reserve(bigBuffer):
		b.big = bigBuffers.Get().(*[bigBuffer]byte)
		b.p = b.big[:]
	case n < smallBuffer:
		b.small()
	}
}

func (b *buffer) small() {
	if b.big != nil {
		bigBuffers.Put(b.big)
		b.memory.release(bigBuffer)
	}
	b.big, b.p = nil, b.own[:]
}

// hand gives the rest of the connection to the one that it follows, or else to the original. What was taken of in is taken.
func (s *session) hand(taken []byte) error {
	s.mu.Lock()
	b := s.follow
	s.mu.Unlock()
	if b == nil {
		var err error
		if b, err = s.connected(); err != nil {
			s.abort()
			return err
		}
	}
	return s.handTo(b, taken)
}

// handTo gives the rest of the connection to b, as it is.
func (s *session) handTo(b *backend, taken []byte) error {
	s.mu.Lock()
	s.follow = b
	s.mu.Unlock()
	rest := s.detachClient()
	s.mu.Lock()
	held := b.held
	for _, other := range s.kept {
		if other != b {
			_ = other.conn.Close()
		}
	}
	if b.laptop && s.original.conn != nil {
		_ = s.original.conn.Close()
	}
	s.mu.Unlock()
	if held != nil {
		if _, err := s.client.Write(held); err != nil {
			s.abort()
			return err
		}
	}
	for _, p := range [][]byte{taken, rest} {
		if len(p) > 0 {
			// b is read meanwhile: it may not take this before it has said something. When it takes no more, it may still
			// have something to say.
			_, _ = b.conn.Write(p)
			s.give(len(p))
		}
	}
	b.detach()
	s.mu.Lock()
	lost := b.gone != nil && !errors.Is(b.gone, io.EOF) || s.inErr != nil && !errors.Is(s.inErr, io.EOF)
	s.mu.Unlock()
	if lost { // a reset is told only once, so Splice would not see it
		return s.gone()
	}
	return tunnel.Splice(s.client, b.conn)
}

// detachClient ends readClient, and returns what is left in in.
func (s *session) detachClient() []byte {
	s.mu.Lock()
	s.detached = true
	s.mu.Unlock()
	s.cond.Broadcast()
	_ = s.client.SetReadDeadline(time.Unix(1, 0))
	<-s.read
	_ = s.client.SetReadDeadline(time.Time{})
	s.mu.Lock()
	defer s.mu.Unlock()
	rest := s.in
	s.in, s.before = nil, 0
	return rest
}

// gone ends the connection as the one that it is with has ended, or resets all where the caller is the one.
func (s *session) gone() error {
	s.mu.Lock()
	now := s.current
	if s.follow != nil {
		now = s.follow
	} else if now == nil {
		now = s.original
	}
	err := now.gone
	if s.inErr != nil && !errors.Is(s.inErr, io.EOF) {
		err = s.inErr
	}
	s.mu.Unlock()
	if errors.Is(err, io.EOF) {
		return s.finish()
	}
	s.abort()
	if err == nil {
		err = errAborted
	}
	return err
}

// finish ends the connection after what was said.
func (s *session) finish() error {
	s.closeBackends()
	closeWrite(s.client)
	late := false
	timer := time.AfterFunc(linger, func() {
		s.mu.Lock()
		late = true
		s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.inErr == nil && !late && !s.aborted {
		s.ignore()
		s.cond.Wait()
	}
	return nil
}

func (s *session) closeBackends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.kept {
		_ = b.conn.Close()
	}
	if s.original.conn != nil {
		_ = s.original.conn.Close()
	}
}

// abort resets all.
func (s *session) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	tunnel.Abort(s.client)
	for _, b := range s.kept {
		tunnel.Abort(b.conn)
	}
	if s.original != nil && s.original.conn != nil {
		tunnel.Abort(s.original.conn)
	}
	s.cond.Broadcast()
}

// close ends what run has left.
func (s *session) close() {
	s.mu.Lock()
	s.aborted = true
	s.mu.Unlock()
	s.cond.Broadcast()
	_ = s.client.Close()
	s.closeBackends()
}
