package intercept

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/pkg/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a pod and a laptop with a real tunnel between them, and a program on the laptop.
type rig struct {
	t       *testing.T
	pod     *Interceptor
	laptop  *tunnel.Client
	address string             // where callers in the cluster connect
	app     net.Listener       // the laptop's program; the test accepts
	udp     *net.UDPConn       // its UDP port; the test reads
	headers chan tunnel.Header // of the streams that reached the laptop
	ready   chan bool          // what the pod was told, after it has acted on it
	cut     context.CancelFunc // ends the laptop's side
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, headers: make(chan tunnel.Header, 2*maxPortFlows), ready: make(chan bool, 10)}
	podKey, laptopKey := newKey(t), newKey(t)
	r.app = listen(t, "127.0.0.1:0")
	carrier := listen(t, "127.0.0.1:0")

	// An address of this test alone, so that a port is free and stays free while it is closed.
	host := fmt.Sprintf("127.%d.%d.%d", 2+rand.IntN(250), 1+rand.IntN(250), 1+rand.IntN(250))
	free := listen(t, host+":0")
	port := free.Addr().(*net.TCPAddr).Port
	_ = free.Close()
	r.address = net.JoinHostPort(host, strconv.Itoa(port))

	server := &tunnel.Server{Key: podKey, Client: laptopKey.Fingerprint()}
	r.udp = listenPacket(t)
	r.pod = &Interceptor{Host: host, Ports: []int{port}, UDP: []int{port}, Open: server.Open}
	server.OnReady = func(ready bool) {
		if err := r.pod.SetReady(ready); err != nil && !errors.Is(err, errNotRunning) {
			t.Error(err)
		}
		r.ready <- ready
	}
	r.laptop = &tunnel.Client{Key: laptopKey, Handle: r.handle, Carrier: func(ctx context.Context) (net.Conn, string, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", carrier.Addr().String())
		return c, "pod", err
	}}

	podCtx, podStop := context.WithCancel(t.Context())
	laptopCtx, cut := context.WithCancel(t.Context())
	r.cut = cut
	var wg sync.WaitGroup
	r.pod.Start(podCtx)
	wg.Go(r.pod.Wait)
	wg.Go(func() {
		if err := server.Serve(podCtx, carrier); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { _ = r.laptop.Run(laptopCtx) })
	t.Cleanup(func() {
		cut()
		podStop()
		_, _ = r.app.Close(), r.udp.Close()
		wg.Wait()
	})
	return r
}

// handle is what bridge does with a stream on the laptop.
func (r *rig) handle(ctx context.Context, s *tunnel.Stream) {
	r.headers <- s.Header()
	network, address := s.Header().Network, r.app.Addr()
	if network == "udp" {
		address = r.udp.LocalAddr()
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address.String())
	if err != nil {
		_ = s.Refuse(err)
		return
	}
	if err := s.Accept(); err != nil {
		_ = conn.Close()
		return
	}
	if network == "udp" {
		_, _ = tunnel.SpliceDatagrams(s, conn, 0)
		return
	}
	_ = tunnel.Splice(s, conn)
}

// open makes the laptop ready and waits until the pod's port is open.
func (r *rig) open() {
	r.t.Helper()
	r.laptop.SetReady(true)
	r.expect(true)
}

func (r *rig) expect(ready bool) {
	r.t.Helper()
	if got := <-r.ready; got != ready {
		r.t.Fatalf("the pod was told ready=%v", got)
	}
}

// pair is a caller's connection and its other end at the program on the laptop.
func (r *rig) pair() (caller, app *net.TCPConn) {
	r.t.Helper()
	caller = r.call()
	c, err := r.app.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return caller, c.(*net.TCPConn)
}

func (r *rig) call() *net.TCPConn {
	r.t.Helper()
	c, err := net.Dial("tcp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func newKey(t *testing.T) tunnel.Key {
	t.Helper()
	k, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, text string) {
	t.Helper()
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
		t.Fatalf("read %q, %v; want %q", buf, err, text)
	}
}

// ends reads the end of c's other direction: nil for a clean one.
func ends(c net.Conn) error {
	n, err := io.Copy(io.Discard, c)
	if err == nil && n > 0 {
		return fmt.Errorf("%d more bytes", n)
	}
	return err
}

func TestPortsFollowReadiness(t *testing.T) {
	r := newRig(t)
	refused := func() {
		t.Helper()
		if c, err := net.Dial("tcp", r.address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial while not ready: %v, %v", c, err)
		}
	}
	refused()
	for range 3 {
		r.open()
		caller, app := r.pair()
		want := tunnel.Header{Kind: tunnel.Inbound, Network: "tcp", Address: r.address[len(r.pod.Host):],
			Peer: netip.MustParseAddrPort(caller.LocalAddr().String())}
		if got := <-r.headers; got != want {
			t.Errorf("header %+v, want %+v", got, want)
		}
		r.laptop.SetReady(false)
		r.expect(false)
		refused()
		write(t, caller, "open connections stay") // closing the port ends none
		read(t, app, "open connections stay")
	}
}

func TestRefusalByTheLaptopIsAReset(t *testing.T) {
	r := newRig(t)
	r.open()
	_ = r.app.Close() // nobody listens on the laptop any more
	caller, err := net.Dial("tcp", r.address)
	if err == nil { // else it came before the dial was over
		err = ends(caller)
		_ = caller.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
}

func TestHalfCloseBothWays(t *testing.T) {
	r := newRig(t)
	r.open()
	for _, first := range []string{"caller", "app"} {
		one, other := r.pair()
		if first == "app" {
			one, other = other, one
		}
		write(t, one, "all I have")
		if err := one.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		read(t, other, "all I have")
		if err := ends(other); err != nil {
			t.Errorf("%s first: %v instead of the end", first, err)
		}
		write(t, other, "an answer after the end")
		read(t, one, "an answer after the end")
		_ = other.Close()
		if err := ends(one); err != nil {
			t.Errorf("%s first: %v instead of the second end", first, err)
		}
	}
}

func TestResetBothWays(t *testing.T) {
	r := newRig(t)
	r.open()
	for _, first := range []string{"caller", "app"} {
		one, other := r.pair()
		if first == "app" {
			one, other = other, one
		}
		write(t, one, "x")
		read(t, other, "x")
		_ = one.SetLinger(0)
		_ = one.Close()
		if err := ends(other); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s resets: the other end sees %v", first, err)
		}
	}
}

func TestBytesAreExact(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	send := func(c *net.TCPConn, seed uint64, sum chan<- [32]byte) {
		h := sha256.New()
		source := rand.NewChaCha8([32]byte{byte(seed)})
		if _, err := io.CopyN(io.MultiWriter(c, h), source, 20<<20); err != nil {
			t.Error(err)
		}
		_ = c.CloseWrite()
		sum <- [32]byte(h.Sum(nil))
	}
	receive := func(c *net.TCPConn, sum chan<- [32]byte) {
		h := sha256.New()
		if _, err := io.Copy(h, c); err != nil {
			t.Error(err)
		}
		sum <- [32]byte(h.Sum(nil))
	}
	var sums [4]chan [32]byte
	for i := range sums {
		sums[i] = make(chan [32]byte, 1)
	}
	go send(caller, 1, sums[0])
	go receive(app, sums[1])
	go send(app, 2, sums[2])
	go receive(caller, sums[3])
	if <-sums[0] != <-sums[1] || <-sums[2] != <-sums[3] {
		t.Error("the bytes are not the same")
	}
}

func TestLostSessionResetsCallers(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, _ := r.pair()
	r.cut()
	r.expect(false)
	if err := ends(caller); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
	if _, err := net.Dial("tcp", r.address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial without a laptop: %v", err)
	}
}

func TestCheckNamesThePortThatCannotBeOpened(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	i := &Interceptor{Host: "127.0.0.1", Ports: []int{l.Addr().(*net.TCPAddr).Port}}
	if err := i.Check(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
}

// drain runs Drain and returns a channel that is closed when it is over.
// TestLeaveReachesWhoIsBeingDialled: an original that is slow to take a connection does not keep it when the laptop is back.
func TestLeaveReachesWhoIsBeingDialled(t *testing.T) {
	r := newRig(t)
	dialled, left := make(chan struct{}), make(chan struct{})
	r.pod.Laptop = func(context.Context, tunnel.Header) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
	r.pod.Original = func(ctx context.Context, _ tunnel.Header) (net.Conn, error) {
		close(dialled)
		<-left
		return (&net.Dialer{}).DialContext(ctx, "tcp", r.app.Addr().String())
	}
	r.open()
	caller := r.call()
	<-dialled
	r.pod.Leave(r.pod.Ports[0], ToOriginal)
	close(left)
	app, err := r.app.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.Close() }()
	const request, answer = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"
	write(t, caller, request)
	read(t, app, request)
	if all := r.pod.all(); len(all) != 1 || !all[0].leaving.Load() {
		t.Fatal("the connection stays with the original")
	}
	write(t, app, answer)
	read(t, caller, answer)
	if err := ends(caller); err != nil {
		t.Error(err)
	}
}

func (r *rig) drain(limit time.Duration) <-chan struct{} {
	over := make(chan struct{})
	go func() {
		defer close(over)
		r.pod.Drain(r.t.Context(), limit)
	}()
	return over
}

// never is a limit that no test waits for.
const never = time.Hour

func TestDrainEndsAnIdleConnectionCleanly(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	write(t, caller, "request")
	read(t, app, "request")
	write(t, app, "answer")
	read(t, caller, "answer")
	over := r.drain(never)
	if err := ends(caller); err != nil {
		t.Errorf("the caller sees %v instead of the end", err)
	}
	_ = caller.Close() // as a client does with an idle connection that the server has ended
	if err := ends(app); err != nil {
		t.Errorf("the program sees %v instead of the end", err)
	}
	_ = app.Close()
	<-over
	if _, err := net.Dial("tcp", r.address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after draining: %v", err)
	}
}

func TestDrainClosesWhenTheCallerDoesNot(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	write(t, app, "greeting")
	read(t, caller, "greeting")
	<-r.drain(never) // and nobody closes
	if err := ends(caller); err != nil {
		t.Errorf("the caller sees %v instead of the end", err)
	}
}

func TestDrainWaitsForAnAnswer(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	write(t, caller, "request")
	read(t, app, "request")
	idle, idleApp := r.pair()
	write(t, idleApp, "greeting")
	read(t, idle, "greeting")
	over := r.drain(never)
	if err := ends(idle); err != nil { // by now the other one would have been ended, too
		t.Fatal(err)
	}
	_ = idle.Close()
	write(t, app, "answer")
	read(t, caller, "answer")
	if err := ends(caller); err != nil {
		t.Errorf("the caller sees %v instead of the end", err)
	}
	_ = caller.Close()
	_ = app.Close()
	<-over
}

func TestDrainResetsWhatIsLeftAtTheLimit(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	write(t, caller, "request")
	read(t, app, "request") // and no answer
	<-r.drain(20 * time.Millisecond)
	if err := ends(caller); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
}

func TestDrainTakesWhatTheKernelHasQueued(t *testing.T) {
	r := newRig(t)
	r.open()
	var callers []*net.TCPConn
	for range 50 {
		callers = append(callers, r.call()) // accepted by the kernel, perhaps not yet by us
	}
	over := r.drain(never)
	for _, c := range callers {
		app, err := r.app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		write(t, c, "request")
		go func() { // answers, and ends first
			_, _ = io.CopyN(app, app, int64(len("request")))
			_ = app.Close()
		}()
	}
	for _, c := range callers {
		read(t, c, "request")
		if err := ends(c); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}
	<-over
}

func TestDrainReturnsWhenItsContextEnds(t *testing.T) {
	r := newRig(t)
	r.open()
	caller, app := r.pair()
	write(t, caller, "request")
	read(t, app, "request")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.pod.Drain(ctx, never)
	if err := ends(caller); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the caller sees %v, want a reset", err)
	}
}

func TestRhythmFindsTheGap(t *testing.T) {
	const ms = time.Millisecond
	start := time.Now()
	after := func(exchanges int, gap, answer, pause time.Duration) (*rhythm, time.Time) {
		now := start
		r := &rhythm{at: now}
		for range exchanges {
			r.fromCaller(now, nil)
			now = now.Add(answer)
			r.toCaller(now)
			r.told(now, nil)
			now = now.Add(pause)
			r.toCaller(now)
			r.told(now, nil)
			now = now.Add(gap)
		}
		return r, now.Add(-gap)
	}
	for _, c := range []struct {
		name               string
		exchanges          int
		gap, answer, pause time.Duration
		silent             time.Duration
		elapsed            float64
		quiet              bool
	}{
		{"just answered", 10, 20 * ms, ms, 0, ms, 0, false},
		{"early in the gap", 10, 20 * ms, ms, 0, 3 * ms, 0, true},
		{"the next request is near", 10, 20 * ms, ms, 0, 15 * ms, 0, false},
		{"still near later on", 10, 20 * ms, ms, 0, 15 * ms, 0.7, false},
		{"near, and the drain is nearly over", 10, 20 * ms, ms, 0, 15 * ms, 0.8, true},
		{"a longer silence than ever", 10, 20 * ms, ms, 0, 600 * ms, 0, true},
		{"answers have pauses", 10, 20 * ms, ms, 4 * ms, 3 * ms, 0, false},
		{"after such a pause", 10, 20 * ms, ms, 4 * ms, 9 * ms, 0, true},
		{"one exchange tells nothing", 1, 20 * ms, ms, 0, 3 * ms, 0, false},
		{"one exchange, long ago", 1, 20 * ms, ms, 0, 600 * ms, 0, true},
		{"after such a pause, later on", 10, 20 * ms, ms, 4 * ms, 3 * ms, 0.7, false},
		{"no gaps at all", 10, 0, ms, 0, 3 * ms, 0.7, false},
		{"no gaps at all, nearly over", 10, 0, ms, 0, 3 * ms, 0.8, true},
	} {
		r, answered := after(c.exchanges, c.gap, c.answer, c.pause)
		if got := r.quiet(answered.Add(c.silent), c.elapsed); got != c.quiet {
			t.Errorf("%s: quiet %v", c.name, got)
		}
	}
	r := &rhythm{at: start}
	if r.quiet(start.Add(quietFresh-1), 0) || !r.quiet(start.Add(quietFresh), 0) {
		t.Error("a fresh connection has its own quiet time")
	}
	r.fromCaller(start, nil)
	if r.quiet(start.Add(never), 0.9) {
		t.Error("quiet while the caller waits for an answer")
	}
	r.toCaller(start)
	if r.quiet(start.Add(never), 0.9) {
		t.Error("quiet while an answer is being written")
	}
	r.told(start, nil)
	r.halfClosed()
	if r.quiet(start.Add(never), 0.9) {
		t.Error("quiet while the other direction ends by itself")
	}
}

// TestIdleConnectionsHoldNoBuffer: what one takes, at all its ends together, is less than the buffer that it is read with.
func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	r := newRig(t)
	r.open()
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what was in pools goes with the second
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	use := func() {
		caller, app := r.pair()
		write(t, caller, "question")
		read(t, app, "question")
		write(t, app, "answer")
		read(t, caller, "answer")
	}
	use() // what all of them share
	before := heap()
	const many = 500
	for range many {
		use()
	}
	if each := (heap() - before) / many; each > 24<<10 {
		t.Errorf("each takes %d bytes", each)
	}
}
