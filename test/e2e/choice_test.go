//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/hint"
)

// conn is a connection from the client's pod.
func (w *world) conn(address string) net.Conn {
	near, far := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = w.exec(w.t.Context(), far, far, "dial", "--address", address)
		_ = far.Close()
	})
	w.t.Cleanup(func() {
		_ = near.Close()
		wg.Wait()
	})
	return near
}

// asker sends requests from the client's pod to orders, all on one connection.
type asker struct {
	w      *world
	client http.Client
	conns  atomic.Int32
}

func (w *world) asker(h2 bool) *asker {
	a := &asker{w: w, client: http.Client{Timeout: patience}}
	t := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
		a.conns.Add(1)
		return w.conn("orders:80"), nil
	}}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetUnencryptedHTTP2(h2)
	a.client.Transport = t
	w.t.Cleanup(t.CloseIdleConnections)
	return a
}

// answers sends a request, with a header "name: value", and wants want to answer it; the laptop may need more than one on a machine
// that is so busy that the original takes what is the laptop's for a moment. gRPC answers have no name.
func (a *asker) answers(want, path, header string) {
	a.w.t.Helper()
	if want == "laptop" {
		a.w.await("an answer by laptop", func() bool { return a.asks(path, header) == want })
	} else if by := a.asks(path, header); by != want {
		a.w.t.Errorf("%s (%s): answered by %q, want %s", path, header, by, want)
	}
}

// asks sends a request and is who answers it.
func (a *asker) asks(path, header string) string {
	a.w.t.Helper()
	by, err := a.ask(path, header)
	if err != nil {
		a.w.t.Fatalf("%s (%s): %v", path, header, err)
	}
	return by
}

func (a *asker) ask(path, header string) (by string, err error) {
	a.w.t.Helper()
	r, err := http.NewRequestWithContext(a.w.t.Context(), http.MethodGet, "http://orders"+path, nil)
	if err != nil {
		a.w.t.Fatal(err)
	}
	if name, value, ok := strings.Cut(header, ": "); ok {
		r.Header.Set(name, value)
	}
	answer, err := a.client.Do(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return strings.TrimSpace(string(body)), err
}

// members is what `bridge status` says of the one swap.
func (w *world) members() (e struct {
	Members []struct {
		Owner, State, Path string
		Mirror             bool
		Headers            []struct{ Name, Member, Value string }
	}
	Notes []string
}) {
	w.t.Helper()
	b := w.bridge("status", "-o", "json")
	b.exits(0)
	entries := []any{&e}
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &entries); err != nil || len(entries) != 1 {
		w.t.Fatalf("status: %d entries, %v", len(entries), err)
	}
	return e
}

// Requests on one connection go each to whom the header says, by HTTP/1.1 and HTTP/2; a killed bridge leaves all to the original, and
// takes up what it had, with the same flags only.
func TestChoiceByHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	local := localOrders(t)
	args := slices.Concat([]string{"swap", "deployment", "orders", "--self-restore", "never"}, local)
	b := w.bridge(append(args, "--header", "X-User=ada")...)
	b.says("mode standby, since the original is needed beside this machine: requests of --header x-user=ada come here")
	b.says("is answered here for --header x-user=ada")
	w.proxies()
	one, two := w.asker(false), w.asker(true)
	for _, a := range []*asker{one, two} {
		a.answers("original", "/", "")
		w.await("an answer by laptop", func() bool { return w.asks("x-user: ada") == "laptop" }) // from one proxy or the other
		for range 3 {
			a.answers("laptop", "/x?y", "X-User: ada")
			a.answers("original", "/x?y", "X-User: bob")
		}
		if n := a.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	}
	w.await("an upgraded connection of ada's at the laptop", func() bool { return w.upgraded("ada", "bob") == "laptop" })
	if by := w.upgraded("bob", "ada"); by != "original" {
		t.Errorf("bob's upgraded connection: answered by %q", by)
	}
	for _, what := range []string{"half-close", "reset", "send-reset", "upload"} { // no HTTP
		w.check("--what", what, "--address", "orders:7000", "--bytes", "1000000")
	}
	b.says("port 7000: a connection went to the original, since it cannot be read: no HTTP")
	tls := w.conn("orders:80")
	_ = tls.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(tls, "\x16\x03\x01\x00\x40 hello hello hello hello\r\n\r\n")
	if answer, err := bufio.NewReader(tls).ReadString('\n'); err != nil || !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
		t.Errorf("TLS: %q, %v", answer, err)
	}
	b.says("port 8080: a connection went to the original, since it cannot be read: TLS")
	if e := w.members(); len(e.Members) != 1 || e.Members[0].Owner == "" || len(e.Members[0].Headers) != 1 || e.Members[0].Headers[0].Value != "ada" {
		t.Errorf("status: %+v", e)
	}
	st := w.bridge("status")
	st.exits(0)
	st.prints("--header x-user=ada")

	l := w.load("--url", "http://orders", "--rate", "100", "--pooled", "--header", "x-user=ada")
	b.kill()
	w.await("an answer by original", func() bool { return w.asks("x-user: ada") == "original" })
	for _, a := range []*asker{one, two} {
		failed := int32(0)
		w.await("an answer by original here, too", func() bool { // the other proxy may learn of the kill a little later
			by, err := a.ask("/", "X-User: ada")
			if err != nil {
				failed++
			}
			return by == "original"
		})
		a.answers("original", "/", "X-User: ada")
		a.answers("original", "/", "")
		if n := a.conns.Load(); n > 2+failed { // a request that bridge had begun to get when it was killed ends with its connection
			t.Errorf("%d connections after the kill, %d failed", n, failed)
		}
	}
	other := w.bridge(append(args, "--header", "x-user=bob")...)
	other.says("with another choice of requests: --header x-user=ada and not --header x-user=bob")
	other.exits(int(hint.Conflict))
	b = w.bridge(append(args, "--header", "x-user=ada")...)
	b.says("taking up the swap")
	b.says(swapped)
	w.await("an answer by laptop", func() bool { return w.asks("x-user: ada") == "laptop" })
	r := l.end(t)
	t.Logf("%+v", r)
	if r.Failed > inFlight || r.By["laptop"] == 0 || r.By["original"] == 0 {
		t.Errorf("%+v", r)
	}
	b.terminate()
	w.assertGivenBack(before)
}

// upgraded is who answers on a connection whose first request, an upgrade, is one user's. What follows is no request any more, although it looks
// like another user's.
func (w *world) upgraded(first, then string) string {
	w.t.Helper()
	conn := w.conn("orders:80")
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	request := func(user string) string {
		return "GET /upgrade HTTP/1.1\r\nHost: orders\r\nX-User: " + user + "\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n"
	}
	_, _ = io.WriteString(conn, request(first))
	r := bufio.NewReader(conn)
	answer, err := http.ReadResponse(r, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		w.t.Fatalf("an upgrade: %+v, %v", answer, err)
	}
	_, _ = io.WriteString(conn, request(then)) // the whole of it, before anything is read: as somebody who does not wait
	by := ""
	for want := range strings.Lines(request(then)) {
		got, err := r.ReadString('\n')
		who, line, _ := strings.Cut(got, " ")
		if err != nil || line != want || by != "" && who != by {
			w.t.Fatalf("%q behind an upgrade: %q, %v, after an answer by %q", want, got, err, by)
		}
		by = who
	}
	return by
}

// asks is who answers one request with a header.
func (w *world) asks(header string) string {
	out := newLines()
	name, value, _ := strings.Cut(header, ": ")
	if err := w.exec(w.t.Context(), nil, out, "get", "--url", "http://orders", "--header", name+"="+value); err != nil {
		return err.Error()
	}
	return strings.Join(out.all(), "")
}

// All that was asked for has to match: a member of a list, and the path, which gRPC has too.
func TestChoiceByBaggageAndPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.beginSwap("--header", "baggage:user=ada", "--path", "/grpc.health.v1.Health", "--mode", "standby")
	b.says("answered here for --header baggage:user=ada --path /grpc.health.v1.Health")
	const check = "/grpc.health.v1.Health/Check/x" // not what the sample takes for a health check
	w.await("an answer by laptop", func() bool {
		out := newLines()
		err := w.exec(t.Context(), nil, out, "get", "--url", "http://orders"+check, "--header", "baggage=user=ada")
		return err == nil && slices.Contains(out.all(), "laptop")
	})
	for _, a := range []*asker{w.asker(false), w.asker(true)} {
		a.answers("laptop", check, "Baggage: team=blue, user=ada;ttl=1")
		a.answers("original", check, "Baggage: user=bob")
		a.answers("original", check, "")
		a.answers("original", "/other", "Baggage: user=ada")
		a.answers("laptop", check+"?q", "Baggage: user=ada")
		if n := a.conns.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
	}
	b.terminate()
	w.assertGivenBack(before)
}

// The laptop gets a copy of every request; frozen, it costs callers nothing, and is told what it missed.
func TestMirror(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var copies atomic.Int64
	local := http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Copy") != "" {
			copies.Add(1)
		}
		_, _ = io.WriteString(rw, "laptop")
	})}
	go func() { _ = local.Serve(ln) }()
	t.Cleanup(func() { _ = local.Close() })
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	b := w.bridge("swap", "deployment", "orders", "--port", port+":http", "--mirror", "--self-restore", "never")
	b.says("mode standby, since the original is needed beside this machine: the deployment answers, and this machine gets a copy of what its callers send")
	b.says("swapped: deployment/orders in " + w.ns + " is copied to here")
	w.proxies()
	loads := []*load{w.load("--url", "http://orders", "--rate", "100", "--header", "x-copy=1"), w.load("--url", "http://orders", "--rate", "100", "--pooled", "--header", "x-copy=1")}
	more := func() {
		t.Helper()
		seen := copies.Load()
		w.await("copies", func() bool { return copies.Load() > seen+100 })
	}
	more()
	b.signal(syscall.SIGSTOP)
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	e := w.members()
	b.signal(syscall.SIGCONT)
	b.says("the copy lacks")
	more()
	if len(e.Members) != 1 || !e.Members[0].Mirror {
		t.Errorf("status: %+v", e)
	}
	w.await("the notes in the status", func() bool { return strings.Contains(strings.Join(w.members().Notes, "\n"), "the copy lacks") })
	for _, l := range loads {
		r := l.end(t)
		t.Logf("%+v", r)
		if r.Failed > 0 || r.Stalled > 0 || r.By["original"] != r.Requests {
			t.Errorf("%+v", r)
		}
	}
	b.terminate()
	w.assertGivenBack(before)
}
