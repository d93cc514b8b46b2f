package tunnel

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testLog shows the log with -v.
func testLog(t testing.TB, who string) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("end", who)
}

// network is how a test's carriers are made: a listener, and a dial that reaches it.
type network struct {
	ln   net.Listener
	dial func(ctx context.Context) (net.Conn, error)
}

func pipeNetwork(testing.TB) network {
	ln := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	return network{ln, ln.dial}
}

func tcpNetwork(t testing.TB) network {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return network{ln, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", ln.Addr().String())
	}}
}

// tlsNetwork puts another TLS around the tunnel's own, as an API server's port-forward does.
func tlsNetwork(t testing.TB) network {
	n := tcpNetwork(t)
	key := newKey(t)
	dial := n.dial
	n.ln = tls.NewListener(n.ln, &tls.Config{Certificates: []tls.Certificate{key.cert}})
	n.dial = func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return tls.Client(c, &tls.Config{InsecureSkipVerify: true}), nil
	}
	return n
}

var networkKinds = []struct {
	name string
	make func(testing.TB) network
}{
	{"pipe", pipeNetwork},
	{"tcp", tcpNetwork},
	{"tls", tlsNetwork},
	{"upgrade", upgradeNetwork},
}

// onAll runs f over each kind of carrier.
func onAll(t *testing.T, f func(*testing.T, *ends)) {
	for _, kind := range networkKinds {
		t.Run(kind.name, func(t *testing.T) { f(t, newEnds(t, kind.make(t))) })
	}
}

type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case l.conns <- b:
		return a, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return addr{"pipe", "pipe"} }

func newKey(t testing.TB) Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// testEpoch is the epoch of the tests' clients.
const testEpoch = 7

// testAttach asks for a new session, as the tests' clients do.
func testAttach() attach {
	a := attach{kind: attachNew, epoch: testEpoch, window: time.Minute}
	_, _ = rand.Read(a.id[:])
	return a
}

// ends is a client and a server that know each other; start runs them.
type ends struct {
	t       testing.TB
	network network
	client  *Client // nil: not started
	server  *Server
	laptop  Key

	ready   chan bool    // what OnReady was told
	inbound chan *Stream // what Handle was given; the test closes them

	running  context.Context
	stop     context.CancelFunc
	stopOnce sync.Once
	wg       sync.WaitGroup
	ended    chan error // what Run returned
}

func newEnds(t testing.TB, n network) *ends {
	t.Helper()
	e := &ends{t: t, network: n, ready: make(chan bool, 100), inbound: make(chan *Stream, 10000), ended: make(chan error, 1)}
	laptop, pod := newKey(t), newKey(t)
	e.laptop = laptop
	e.client = &Client{
		Key: laptop, Epoch: testEpoch, Version: "v1-laptop", Log: testLog(t, "laptop"),
		Carrier: func(ctx context.Context) (net.Conn, string, error) {
			c, err := n.dial(ctx)
			return c, "pod-1", err
		},
		Handle: func(ctx context.Context, s *Stream) {
			e.inbound <- s
			<-ctx.Done()
			for !s.over() && e.running.Err() == nil { // a reset is not enough: the test closes it
				time.Sleep(time.Millisecond)
			}
		},
	}
	e.server = &Server{
		Key: pod, Client: laptop.Fingerprint(), Log: testLog(t, "pod"),
		Info: func() Info {
			return Info{Version: "v1-pod", Nameservers: []string{"10.0.0.10"}, Search: []string{"a.svc"}, Ndots: 5}
		},
		OnReady: func(r bool) { e.ready <- r },
	}
	return e
}

// only lets in that key, for acceptTLS.
func only(client Fingerprint) func(Fingerprint) error {
	return func(f Fingerprint) error {
		if f != client {
			return errClientKey
		}
		return nil
	}
}

// over is whether somebody here has closed st.
func (st *Stream) over() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.closed
}

func (e *ends) start() *ends {
	e.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e.running, e.stop = ctx, cancel
	e.wg.Go(func() {
		if err := e.server.Serve(ctx, e.network.ln); err != nil {
			e.t.Errorf("Serve: %v", err)
		}
	})
	if e.client != nil {
		e.wg.Go(func() { e.ended <- e.client.Run(ctx) })
	}
	e.t.Cleanup(e.close)
	return e
}

// close ends both and waits.
func (e *ends) close() {
	e.stopOnce.Do(func() {
		e.stop()
		e.wg.Wait()
	})
}

func (e *ends) waitReady() *ends {
	e.t.Helper()
	if err := e.client.WaitReady(context.Background()); err != nil {
		e.t.Fatalf("no session: %v", err)
	}
	for !e.server.Connected() {
		time.Sleep(time.Millisecond) // the pod is a moment behind; there is no event for it but OnReady
	}
	return e
}

// streams opens one inbound stream: the pod's end and the laptop's, accepted.
func (e *ends) streams() (pod, laptop *Stream) {
	e.t.Helper()
	pod, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err != nil {
		e.t.Fatal(err)
	}
	laptop = <-e.inbound
	if err := laptop.Accept(); err != nil {
		e.t.Fatal(err)
	}
	return pod, laptop
}

// echoTCP is a server's Dial to a TCP server that sends back what it gets.
func echoTCP(t testing.TB) func(context.Context, string, string) (net.Conn, error) {
	return dialTo(servertest.TCP(t, servertest.Echo))
}

func dialTo(address string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func netipAddr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
