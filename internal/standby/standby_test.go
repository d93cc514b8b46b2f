package standby

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"bridge/internal/intercept"
	"bridge/pkg/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a pod in standby with a real tunnel to a laptop, a program there, and an original at the same port of another
// address. Both are HTTP servers that answer who they are, and echo what comes behind CONNECT.
type rig struct {
	t         *testing.T
	laptop    *Laptop
	originals *Originals
	client    *tunnel.Client
	address   string // where callers connect
	app       *server
	original  *server
	callers   atomic.Int32 // streams of callers that came to the laptop
	frozen    atomic.Bool  // the laptop answers no stream
	opens     chan bool    // what OnChange of the laptop's was told
	reached   chan bool    // likewise of the originals
	cut       func()       // ends the laptop
}

// host returns an address of the loopback that is the caller's alone.
func host() string {
	return fmt.Sprintf("127.%d.%d.%d", 2+rand.IntN(250), 1+rand.IntN(250), 1+rand.IntN(250))
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, opens: make(chan bool, 100), reached: make(chan bool, 100)}
	r.app, r.original = newServer(t, host()+":0", "laptop"), newServer(t, host()+":0", "original")
	_, portText, _ := net.SplitHostPort(r.original.address)
	port, _ := strconv.Atoi(portText)
	podHost := host()
	r.address = net.JoinHostPort(podHost, portText)
	originalHost, _, _ := net.SplitHostPort(r.original.address)

	podKey, laptopKey := newKey(t), newKey(t)
	carrier, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tunnel.Server{Key: podKey, Client: laptopKey.Fingerprint()}
	pod := &intercept.Interceptor{Host: podHost, Ports: []int{port}, Open: s.Open}
	log := slog.New(slog.DiscardHandler)
	r.laptop = &Laptop{Open: s.Open, Answering: s.Answering, Ports: []int{port}, Log: log, OnChange: func(port int, open bool) {
		if open {
			pod.Leave(port, intercept.ToOriginal)
		} else {
			pod.Leave(port, intercept.ToLaptop)
		}
		r.opens <- open
	}}
	r.originals = &Originals{Host: originalHost, Ports: []int{port}, Log: log, Needed: func() bool { return true }, OnChange: func(reached bool) {
		r.reached <- reached
	}}
	pod.Laptop, pod.Original = r.laptop.Dial, r.originals.Dial
	r.client = &tunnel.Client{Key: laptopKey, Handle: r.handle, Carrier: func(ctx context.Context) (net.Conn, string, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", carrier.Addr().String())
		return c, "pod", err
	}}
	r.client.SetReady(true)

	podCtx, podStop := context.WithCancel(t.Context())
	laptopCtx, cut := context.WithCancel(t.Context())
	r.cut = cut
	pod.Start(podCtx)
	if err := pod.SetReady(true); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(pod.Wait)
	wg.Go(func() { r.laptop.Run(podCtx) })
	wg.Go(func() { r.originals.Run(podCtx) })
	wg.Go(func() { _ = s.Serve(podCtx, carrier) })
	wg.Go(func() { _ = r.client.Run(laptopCtx) })
	t.Cleanup(func() {
		cut()
		podStop()
		wg.Wait()
	})
	r.expect(r.opens, true)
	r.expect(r.reached, true)
	return r
}

func newKey(t *testing.T) tunnel.Key {
	t.Helper()
	k, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// handle is what bridge does with a stream on the laptop.
func (r *rig) handle(ctx context.Context, s *tunnel.Stream) {
	if s.Header().Peer.IsValid() {
		r.callers.Add(1)
	}
	if r.frozen.Load() {
		<-ctx.Done()
		return
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.app.address)
	if err != nil {
		_ = s.Refuse(err)
		return
	}
	if err := s.Accept(); err != nil {
		_ = conn.Close()
		return
	}
	_ = tunnel.Splice(s, conn)
}

func (r *rig) expect(from <-chan bool, want bool) {
	r.t.Helper()
	if got := <-from; got != want {
		r.t.Fatalf("told %v", got)
	}
}

// server answers GET with its name.
type server struct {
	t       *testing.T
	name    string
	address string
	http    *http.Server
	ended   chan struct{}
}

func newServer(t *testing.T, address, name string) *server {
	s := &server{t: t, name: name, address: address}
	s.listen()
	t.Cleanup(s.close)
	return s
}

// listen begins, or begins again at the same address.
func (s *server) listen() {
	s.t.Helper()
	l, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	if l.Addr().String() != s.address { // the first time: from then on others read it
		s.address = l.Addr().String()
	}
	s.ended = make(chan struct{})
	s.http = &http.Server{Handler: s}
	go func() {
		defer close(s.ended)
		_ = s.http.Serve(l)
	}()
}

func (s *server) close() {
	_ = s.http.Close()
	<-s.ended
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect {
		_, _ = io.WriteString(w, s.name)
		return
	}
	w.WriteHeader(http.StatusOK)
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	_, _ = io.Copy(conn, rw)
	_ = conn.Close()
}

// caller keeps one connection.
type caller struct {
	t *testing.T
	*net.TCPConn
	in *bufio.Reader
}

func (r *rig) call() *caller {
	r.t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return &caller{r.t, c.(*net.TCPConn), bufio.NewReader(c)}
}

// ask is one request, and who answered it.
func (c *caller) ask() (string, error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}

// answers has a new caller answered by want.
func (r *rig) answers(want string) *caller {
	r.t.Helper()
	c := r.call()
	if got, err := c.ask(); err != nil || got != want {
		r.t.Fatalf("answered by %q, %v; want %s", got, err, want)
	}
	return c
}

// TestOriginalsAnswerWhileTheProcessIsAway: no caller fails, at most the first meets the refusal, and kept connections come
// back with the process.
func TestOriginalsAnswerWhileTheProcessIsAway(t *testing.T) {
	r := newRig(t)
	r.answers("laptop")
	for range 3 {
		before := r.callers.Load()
		r.app.close()
		var kept *caller
		for range 20 {
			kept = r.answers("original")
		}
		if n := r.callers.Load() - before; n != 1 {
			t.Errorf("%d callers were sent to a process that is not there", n)
		}
		r.expect(r.opens, false)
		r.app.listen()
		r.expect(r.opens, true)
		if _, err := kept.in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("a kept connection stays with the original: %v", err)
		}
		r.answers("laptop")
	}
}

// TestCallersDoNotWaitForALaptopThatIsFrozen: those who meet it first are passed on together, and nobody after them is sent to it.
func TestCallersDoNotWaitForALaptopThatIsFrozen(t *testing.T) {
	r := newRig(t)
	kept := r.answers("laptop")
	r.frozen.Store(true)
	var wg sync.WaitGroup
	for range 10 {
		c := r.call()
		wg.Go(func() {
			if got, err := c.ask(); err != nil || got != "original" {
				t.Errorf("answered by %q, %v", got, err)
			}
		})
	}
	wg.Wait()
	r.expect(r.opens, false)
	before := r.callers.Load()
	for range 20 {
		r.answers("original")
	}
	if n := r.callers.Load() - before; n != 0 {
		t.Errorf("%d callers were sent to a laptop that is frozen", n)
	}
	if _, err := kept.in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection stays with the frozen laptop: %v", err)
	}
	r.frozen.Store(false)
	r.expect(r.opens, true)
	r.answers("laptop")
}

func TestOriginalsAnswerWhenTheLaptopIsGone(t *testing.T) {
	r := newRig(t)
	idle, busy := r.answers("laptop"), r.call()
	if _, err := io.WriteString(busy, "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, err := http.ReadResponse(busy.in, &http.Request{Method: http.MethodConnect}); err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", answer, err)
	}
	r.cut()
	r.expect(r.opens, false)
	r.answers("original")
	if _, err := idle.in.ReadByte(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) { // whichever is first
		t.Errorf("an idle connection: %v, want its end", err)
	}
	if _, err := busy.in.ReadByte(); !errors.Is(err, syscall.ECONNRESET) { // the laptop has said that it goes
		t.Errorf("a connection in use: %v, want a reset", err)
	}
}

func TestNotReadyIsPassedOn(t *testing.T) {
	r := newRig(t)
	for range 3 {
		r.client.SetReady(false)
		r.expect(r.opens, false)
		before := r.callers.Load()
		r.answers("original")
		if r.callers.Load() != before {
			t.Error("a caller was sent to a process that is not ready")
		}
		r.client.SetReady(true)
		r.expect(r.opens, true)
		r.answers("laptop")
	}
}

func TestNobodyIsAReset(t *testing.T) {
	r := newRig(t)
	r.client.SetReady(false)
	r.expect(r.opens, false)
	r.original.close()
	if _, err := r.call().ask(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
	r.expect(r.reached, false)
	r.original.listen()
	r.expect(r.reached, true)
	r.answers("original")
}

// TestACallerOfADeadPortLosesNobodyTheOriginals: a port at which nothing answers says nothing of the others.
func TestACallerOfADeadPortLosesNobodyTheOriginals(t *testing.T) {
	alive := newServer(t, host()+":0", "original")
	at, portText, _ := net.SplitHostPort(alive.address)
	port, _ := strconv.Atoi(portText)
	reached := make(chan bool, 1)
	o := &Originals{
		Host: at, Ports: []int{port}, Needed: func() bool { return true }, OnChange: func(is bool) { reached <- is }, Log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { o.Run(ctx) })
	if !<-reached {
		t.Fatal("not reached")
	}
	cancel()
	wg.Wait() // so that nobody looks again
	if _, err := o.Dial(t.Context(), tunnel.Header{Address: ":1"}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port 1: %v", err)
	}
	if !o.Reached() || len(reached) > 0 {
		t.Error("the originals count as not reached, and nobody was told")
	}
}

// TestBytesToAnOriginalAreExact, with a half-close in between.
func TestBytesToAnOriginalAreExact(t *testing.T) {
	r := newRig(t)
	r.client.SetReady(false)
	r.expect(r.opens, false)
	r.original.close()
	l, err := net.Listen("tcp", r.original.address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c := r.call()
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	var app net.Conn
	for app == nil { // among those who only look
		a, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.Read(make([]byte, 1)); err == nil {
			app = a
		} else {
			_ = a.Close()
		}
	}
	defer func() { _ = app.Close() }()
	send := func(to net.Conn) (sum [32]byte) {
		h := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(to, h), rand.NewChaCha8([32]byte{1}), 8<<20); err != nil {
			t.Error(err)
		}
		_ = to.(interface{ CloseWrite() error }).CloseWrite()
		return [32]byte(h.Sum(nil))
	}
	receive := func(from io.Reader) [32]byte {
		h := sha256.New()
		if _, err := io.Copy(h, from); err != nil {
			t.Error(err)
		}
		return [32]byte(h.Sum(nil))
	}
	sent := make(chan [32]byte, 1)
	go func() { sent <- send(c.TCPConn) }()
	if receive(app) != <-sent {
		t.Error("to the original: the bytes are not the same")
	}
	go func() { sent <- send(app) }() // after the caller's end
	if receive(c.in) != <-sent {
		t.Error("to the caller: the bytes are not the same")
	}
}

func TestPortsThatTheLaptopDoesNotHaveAreTheOriginals(t *testing.T) {
	l := &Laptop{Answering: func() (bool, <-chan struct{}) { return true, nil }}
	if _, err := l.Dial(t.Context(), tunnel.Header{Address: ":1"}); !errors.Is(err, ErrAway) {
		t.Error(err)
	}
	if l.Takes() {
		t.Error("a laptop without ports takes connections")
	}
}
