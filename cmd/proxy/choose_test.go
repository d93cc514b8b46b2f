package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/intercept"
	"bridge/internal/member"
	"bridge/internal/route"
	"bridge/pkg/tunnel"
)

// standing is a proxy in standby, with a laptop and an original that say who they are.
type standing struct {
	t       *testing.T
	proxy   *proxy
	laptop  *tunnel.Client
	address string // where callers connect
	tunnel  string // where laptops do
	file    string // of members; "" with one laptop alone
	got     chan string
	local   atomic.Pointer[string] // the address of the laptop's process
	notes   chan string
	cut     func() // ends the laptop
}

// named answers with name, by HTTP/1 and HTTP/2, and tells got who was asked for what. What is no HTTP it sends back.
func named(t *testing.T, address, name string, got chan<- string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- name + " " + r.URL.Path
		_, _ = io.Copy(io.Discard, r.Body) // else the end of a long request is not sent, if the answer is quick
		_, _ = io.WriteString(w, name)
	})}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return l.Addr().String()
}

// stand starts them. app is as connect's.
func stand(t *testing.T, choice route.Choice, app bool) *standing {
	t.Helper()
	host := func() string {
		return fmt.Sprintf("127.%d.%d.%d", 2+rand.IntN(250), 1+rand.IntN(250), 1+rand.IntN(250))
	}
	s := &standing{t: t, got: make(chan string, 1000), notes: make(chan string, 100)}
	original := named(t, host()+":0", "original", s.got)
	local := named(t, "127.0.0.1:0", "laptop", s.got)
	s.local.Store(&local)
	originalHost, portText, _ := net.SplitHostPort(original)
	var number int
	_, _ = fmt.Sscan(portText, &number)
	podHost := host()
	s.address = net.JoinHostPort(podHost, portText)

	podKey, laptopKey := newKey(t), newKey(t)
	c := config{client: laptopKey.Fingerprint(), tunnel: "127.0.0.1:0", health: "127.0.0.1:0", listen: []int{number}, originalsAt: originalHost, mirror: choice.Mirror}
	if !choice.All() && !choice.Mirror {
		c.client, c.membersAt = tunnel.Fingerprint{}, filepath.Join(t.TempDir(), "shares")
		s.file = c.membersAt
		s.share(member.Share{Client: laptopKey.Fingerprint(), Filter: choice.Filter})
	}
	log := slog.New(slog.DiscardHandler)
	p := &proxy{config: c, log: log, health: newHealth(log), useless: make(chan struct{})}
	p.ports = &intercept.Interceptor{Host: podHost}
	p.build(podKey)
	doors, err := c.open()
	if err != nil {
		t.Fatal(err)
	}
	s.proxy, s.tunnel = p, doors.tunnel.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.run(ctx, doors); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		wg.Wait()
		if n := p.chooser.memory.Used(); n != 0 {
			t.Errorf("%d bytes are held by nobody", n)
		}
	})
	s.laptop, s.cut = s.connect(laptopKey, &s.local, app)
	s.takes(true)
	for !p.originals.Reached() || !p.health.ready.Load() {
		time.Sleep(time.Millisecond)
	}
	return s
}

// share has the proxy's file say who has what, as the kubelet does it.
func (s *standing) share(shares ...member.Share) {
	s.t.Helper()
	var l member.List
	for _, sh := range shares {
		l.Members = append(l.Members, member.Member{Client: sh.Client, Choice: route.Choice{Filter: sh.Filter}})
	}
	text, err := l.Shares()
	if err == nil {
		err = os.WriteFile(s.file+"~", text, 0o600)
	}
	if err == nil {
		err = os.Rename(s.file+"~", s.file)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// connect is a laptop whose process is at local. Without an app it takes connections, and no byte of them.
func (s *standing) connect(key tunnel.Key, local *atomic.Pointer[string], app bool) (c *tunnel.Client, cut func()) {
	c = &tunnel.Client{Key: key, KeyPatience: time.Minute, OnNote: func(text string, _ bool) { s.notes <- text },
		Carrier: func(ctx context.Context) (net.Conn, string, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", s.tunnel)
			return conn, "pod", err
		},
		Handle: func(ctx context.Context, st *tunnel.Stream) {
			if !app {
				_ = st.Accept()
				<-ctx.Done()
				_ = st.Close()
				return
			}
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", *local.Load())
			if err != nil {
				_ = st.Refuse(err)
				return
			}
			_ = st.Accept()
			_ = tunnel.Splice(st, conn)
		},
	}
	ctx, cut := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	s.t.Cleanup(func() {
		cut()
		wg.Wait()
	})
	c.SetReady(true)
	return c, cut
}

func newKey(t *testing.T) tunnel.Key {
	t.Helper()
	k, err := tunnel.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// taking is whether the laptop does; with members all of them.
func (s *standing) taking() bool {
	if s.proxy.members == nil {
		return s.proxy.laptop.Takes()
	}
	s.proxy.members.mu.Lock()
	defer s.proxy.members.mu.Unlock()
	return len(s.proxy.members.seats) > 0 && !slices.ContainsFunc(s.proxy.members.seats, func(m *seat) bool { return !m.laptop.Takes() })
}

// takes waits until the laptop takes connections, or none.
func (s *standing) takes(want bool) {
	for s.taking() != want {
		time.Sleep(time.Millisecond)
	}
}

func choose(t *testing.T, mirror bool, headers ...string) route.Choice {
	t.Helper()
	c, err := route.ParseChoice(headers, "", mirror)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// asker sends requests on one connection.
func (s *standing) asker(h2 bool) *http.Client {
	dials := 0
	t := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if dials++; dials > 1 {
			return nil, errors.New("a second connection")
		}
		return new(net.Dialer).DialContext(ctx, network, s.address)
	}}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetUnencryptedHTTP2(h2)
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// ask sends one request and wants it answered.
func (s *standing) ask(c *http.Client, user, want string) {
	s.t.Helper()
	r, _ := http.NewRequest("GET", "http://"+s.address+"/"+user, nil)
	r.Header.Set("X-User", user)
	answer, err := c.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || string(body) != want {
		s.t.Errorf("%s: answered by %q, %v; want %s", user, body, err, want)
	}
}

// Each request on one connection is chosen for, also when the laptop is not ready, or gone.
func TestEachRequestIsChosen(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", h2), func(t *testing.T) {
			s := stand(t, choose(t, false, "x-user=ada"), true)
			c := s.asker(h2)
			for range 3 {
				s.ask(c, "ada", "laptop")
				s.ask(c, "bob", "original")
			}
			s.laptop.SetReady(false)
			s.takes(false)
			s.ask(c, "ada", "original")
			s.laptop.SetReady(true)
			s.takes(true)
			s.ask(c, "ada", "laptop")
			s.cut()
			s.takes(false)
			s.ask(c, "ada", "original")
			s.ask(c, "bob", "original")
		})
	}
}

// A port that speaks TLS is the original's, and the laptop is told, the next one too.
func TestWhatCannotBeReadIsTold(t *testing.T) {
	s := stand(t, choose(t, false, "x-user=ada"), true)
	for range 2 {
		c, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "\x16\x03\x01\x00\x40 hello hello hello hello\r\n\r\n")
		if answer, err := bufio.NewReader(c).ReadString('\n'); !strings.HasPrefix(answer, "HTTP/1.1 400") { // as net/http says
			t.Errorf("%q, %v", answer, err)
		}
		_ = c.Close()
	}
	if note := <-s.notes; note != "port "+port(s.address)+": a connection went to the original, since it cannot be read: TLS" {
		t.Errorf("told %q", note)
	}
	select {
	case note := <-s.notes:
		t.Errorf("told %q too", note)
	default:
	}
}

// A laptop whose process speaks HTTP/1 only is told why it gets no request of HTTP/2, once, and no longer when it gets them.
func TestALaptopWithoutHTTP2IsTold(t *testing.T) {
	s := stand(t, choose(t, false, "x-user=ada"), true)
	both := s.local.Load()
	old := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(old.Close)
	address := old.Listener.Addr().String()
	s.local.Store(&address)
	c := s.asker(true)
	for range 3 {
		s.ask(c, "ada", "original")
	}
	if note := <-s.notes; !strings.HasPrefix(note, "port "+port(s.address)+": requests of HTTP/2 go to the original") || !strings.Contains(note, "h2c") {
		t.Errorf("told %q", note)
	}
	s.local.Store(both)
	s.ask(c, "ada", "laptop")
	if note := <-s.notes; note != "" {
		t.Errorf("told %q", note)
	}
}

// The laptop gets a copy; without it everything is the same to callers, and what is missing is told.
func TestACopyCostsNothing(t *testing.T) {
	s := stand(t, choose(t, true), true)
	c := s.asker(false)
	s.ask(c, "one", "original")
	for range 2 {
		if got := <-s.got; got != "original /one" && got != "laptop /one" {
			t.Errorf("%s", got)
		}
	}
	s.proxy.chooser.count()
	s.cut()
	s.takes(false)
	s.ask(c, "two", "original")
	s.ask(s.asker(false), "three", "original")
	if !s.proxy.taken() {
		t.Error("not ready without the laptop")
	}
	select {
	case note := <-s.notes:
		t.Errorf("told %q", note)
	default:
	}

	frozen := stand(t, choose(t, true), false)
	big, err := frozen.asker(false).Post("http://"+frozen.address+"/", "", strings.NewReader(strings.Repeat("x", 8<<20)))
	if err != nil {
		t.Fatal(err)
	}
	_ = big.Body.Close()
	frozen.proxy.chooser.count()
	if note := <-frozen.notes; !strings.HasPrefix(note, "the copy lacks ") || !strings.HasSuffix(note, " that callers sent") {
		t.Errorf("told %q", note)
	}
}

// A copy that goes on lacking something is told of at once, and then more and more seldom, and at last what it was in all.
func TestALackingCopyIsToldMoreAndMoreSeldom(t *testing.T) {
	var told []string
	c := &chooser{log: slog.New(slog.DiscardHandler), tell: func(text string) { told = append(told, text) }}
	lack := func() {
		near, far := net.Pipe()
		go func() {
			_, _ = far.Write(make([]byte, 1000))
			_ = far.Close()
		}()
		away := func(context.Context) (net.Conn, error) { return nil, errors.New("away") }
		_ = c.mirror.Serve(t.Context(), near, away, func(conn net.Conn) error {
			_, err := io.Copy(io.Discard, conn)
			return err
		})
	}
	count := func(periods int, lacking bool) {
		for range periods {
			if lacking {
				lack()
			}
			c.count()
		}
	}
	count(1, true)
	if len(told) != 1 {
		t.Fatalf("told %q at the first time", told)
	}
	count(100, true)
	if len(told) < 4 || len(told) > 8 {
		t.Errorf("told %d times in 101 periods", len(told))
	}
	count(maxQuiet, false)
	if last := told[len(told)-1]; last != "the copy lacks 101000 bytes of 101000 that callers sent" {
		t.Errorf("told last %q", last)
	}
	n := len(told)
	count(3*maxQuiet, false)
	if len(told) != n {
		t.Errorf("told %q while nothing happened", told[n:])
	}
	count(1, true)
	if len(told) != n+1 {
		t.Errorf("told %q of something new", told[n:])
	}
}
