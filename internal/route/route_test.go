package route

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"bridge/internal/servertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what must happen, and none of what is measured.
const patience = 20 * time.Second

// server accepts on loopback; each connection is handed to serve, and closed after it.
func server(t testing.TB, serve func(net.Conn)) (dial func(context.Context) (net.Conn, error)) {
	t.Helper()
	address := servertest.TCP(t, func(c *net.TCPConn) {
		_ = c.SetDeadline(time.Now().Add(patience))
		serve(c)
	})
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
}

// record is a server that answers each request of HTTP/1 with its name, one that it cannot read with 400, and keeps what it got.
type record struct {
	name string
	mu   sync.Mutex
	got  [][]byte // of each connection
}

func (r *record) serve(c net.Conn) {
	r.mu.Lock()
	i := len(r.got)
	r.got = append(r.got, nil)
	r.mu.Unlock()
	in := bufio.NewReader(readerFunc(func(p []byte) (int, error) {
		n, err := c.Read(p)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got[i] = append(r.got[i], p[:n]...)
		return n, err
	}))
	for {
		request, err := http.ReadRequest(in)
		if err == nil {
			_, err = io.Copy(io.Discard, request.Body)
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, in)
			return
		}
		answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(r.name))
		if request.Method != "HEAD" {
			answer += r.name
		}
		io.WriteString(c, answer)
	}
}

// all is what came, over all connections.
func (r *record) all() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return string(bytes.Join(r.got, nil))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// scripted sends each answer when what came ends with one of the askings.
func scripted(steps ...string) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for i := 0; i+1 < len(steps); i += 2 {
			var got strings.Builder
			for !strings.HasSuffix(got.String(), steps[i]) {
				b, err := in.ReadByte()
				if err != nil {
					return
				}
				got.WriteByte(b)
			}
			io.WriteString(c, steps[i+1])
		}
	}
}

// whole wants all of b to be given back in the end.
func whole(t testing.TB, b *Budget) *Budget {
	t.Cleanup(func() {
		if n := b.Used(); n != 0 {
			t.Errorf("%d bytes are held by nobody", n)
		}
	})
	return b
}

// through serves r on loopback, with a Budget that is whole in the end.
func through(t testing.TB, r *Router) (dial func(context.Context) (net.Conn, error)) {
	if r.Budget == nil {
		r.Budget = whole(t, new(Budget))
	}
	ctx, cancel := context.WithCancel(context.Background())
	dial = server(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Time{})
		if err := r.Serve(ctx, c); err != nil {
			t.Logf("serve: %v", err)
		}
	})
	t.Cleanup(cancel)
	return dial
}

func connect(t testing.TB, dial func(context.Context) (net.Conn, error)) *net.TCPConn {
	t.Helper()
	c, err := dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// ask sends all, in parts of size, ends, and returns what comes until the end.
func ask(t testing.TB, dial func(context.Context) (net.Conn, error), text string, size int) string {
	t.Helper()
	c := connect(t, dial)
	go func() {
		for p := []byte(text); len(p) > 0; {
			n := min(size, len(p))
			if _, err := c.Write(p[:n]); err != nil {
				return
			}
			p = p[n:]
		}
		_ = c.CloseWrite()
	}()
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("%.60q: answer %q: %v", text, answer, err)
	}
	return string(answer)
}

func ada(dial func(context.Context) (net.Conn, error)) func() []Route {
	return func() []Route {
		return []Route{{Name: "ada", Filter: Filter{Headers: []Header{{Name: "X-User", Value: "ada"}}}, Dial: dial}}
	}
}

const (
	plain = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
	adas  = "GET /x HTTP/1.1\r\nHost: x\r\nx-uSER:  ada \r\n\r\n"
)

// What is not a laptop's arrives at the original as it was sent, and what is not clear too.
func TestTheOriginalGetsWhatWasSent(t *testing.T) {
	post := "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"
	for name, text := range map[string]string{
		"nothing":              "",
		"one":                  plain,
		"pipelined":            plain + plain + plain,
		"head":                 "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + plain,
		"fixed":                "POST / HTTP/1.1\r\nhOST: x\r\nContent-Length: 3\r\n\r\nabc" + plain,
		"chunks and trailers":  "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"b\"\r\nabc\r\n0\r\nX: y\r\n\r\n" + plain,
		"close and more":       "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + adas,
		"old":                  "GET / HTTP/1.0\r\n\r\n" + adas,
		"connect":              "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n" + adas,
		"not HTTP":             "\x00\x01\x02" + adas,
		"TLS":                  "\x16\x03\x01\x02\x00\x01" + adas,
		"half a line":          "GET /x HT",
		"half a head":          "GET /x HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n",
		"half a body":          "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nab",
		"bare LF":              "GET / HTTP/1.1\nHost: x\nX-User: ada\n\n" + adas,
		"one bare LF":          "GET / HTTP/1.1\r\nHost: x\nX-User: ada\r\n\r\n" + adas,
		"bare CR":              "GET / HTTP/1.1\r\nHost: x\r\nA: b\rX-User: ada\r\nX-User: ada\r\n\r\n" + adas,
		"folded":               "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nX-User: ada\r\n\r\n" + adas,
		"space before colon":   "GET / HTTP/1.1\r\nHost: x\r\nX-User : ada\r\n\r\n" + adas,
		"empty line before":    "\r\n" + adas,
		"two spaces":           "GET  / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n\r\n" + adas,
		"no host":              "GET / HTTP/1.1\r\nX-User: ada\r\n\r\n" + adas,
		"two hosts":            "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nX-User: ada\r\n\r\n" + adas,
		"two versions":         "GET / HTTP/1.1 HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n\r\n" + adas,
		"HTTP/1.2":             "GET / HTTP/1.2\r\nHost: x\r\nX-User: ada\r\n\r\n" + adas,
		"NUL":                  "GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\nX-User: ada\r\n\r\n" + adas,
		"length and chunked":   post + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + adas,
		"two lengths":          post + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + adas,
		"the same length":      post + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd" + adas,
		"a list of lengths":    post + "Content-Length: 4, 4\r\n\r\nabcd" + adas,
		"signed length":        post + "Content-Length: +4\r\n\r\nabcd" + adas,
		"padded length":        post + "Content-Length: 04\r\n\r\nabcd" + adas,
		"huge length":          post + "Content-Length: 99999999999999999999\r\n\r\nabcd" + adas,
		"coding":               post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + adas,
		"odd coding":           post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + adas,
		"two codings":          post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + adas,
		"chunked in 1.0":       "POST / HTTP/1.0\r\nX-User: ada\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + adas,
		"chunk with LF":        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n" + adas,
		"chunk too long":       "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n" + adas,
		"chunk of no size":     "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n;\r\n0\r\n\r\n" + adas,
		"chunk 0x3":            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n" + adas,
		"chunk's space":        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n" + adas,
		"bad trailer":          "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n x\r\n\r\n" + adas,
		"a head over 64 KiB":   "GET / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nA: " + strings.Repeat("a", 70<<10) + "\r\n\r\n" + adas,
		"a preface and no 2":   string(preface) + adas + strings.Repeat("x", 100),
		"a preface and less":   string(preface) + "\x00\x00",
		"half a preface":       string(preface[:10]),
		"a preface and a PING": string(preface) + "\x00\x00\x08\x06\x00\x00\x00\x00\x00abcdefgh",
	} {
		for _, size := range []int{1 << 20, 1, 11} {
			if size == 1 && len(text) > 10<<10 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", name, size), func(t *testing.T) {
				original, laptop := &record{name: "original"}, &record{name: "laptop"}
				dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve))})
				ask(t, dial, text, size)
				if got := original.all(); got != text {
					t.Errorf("the original got\n%q, sent was\n%q", got, text)
				}
				if got := laptop.all(); got != "" {
					t.Errorf("the laptop got %q", got)
				}
			})
		}
	}
}

func TestEachRequestIsChosenAnew(t *testing.T) {
	body := "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 3\r\n\r\nabc"
	chunks := "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n"
	for _, size := range []int{1 << 20, 1, 7} {
		original, laptop := &record{name: "original"}, &record{name: "laptop"}
		dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve))})
		answers := ask(t, dial, plain+adas+body+plain+chunks+plain, size)
		o, l := "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\noriginal", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nlaptop"
		if want := o + l + l + o + l + o; answers != want {
			t.Errorf("answers %q, want %q", answers, want)
		}
		if got := original.all(); got != plain+plain+plain {
			t.Errorf("the original got %q", got)
		}
		if got := laptop.all(); got != adas+body+chunks {
			t.Errorf("the laptop got %q", got)
		}
		if len(original.got) != 1 || len(laptop.got) != 1 {
			t.Errorf("%d and %d connections", len(original.got), len(laptop.got))
		}
	}
}

// What the original or a laptop answers arrives as it was said.
func TestAnswersArriveAsTheyWereSaid(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	get := "GET / HTTP/1.1\r\nHost: x\r\nX-User: %s\r\n\r\n"
	for name, c := range map[string]struct {
		ask, answer string
		unclear     bool // the connection is the original's afterwards, and a laptop's ends
		last        bool // it ends
	}{
		"fixed":            {get, "HTTP/1.1 200 OK\r\ncontent-LENGTH:  3\r\nX:a\r\nx:b\r\n\r\nabc", false, false},
		"no reason":        {get, "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, false},
		"chunks":           {get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n", false, false},
		"interim":          {get, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok, false, false},
		"head":             {"HEAD / HTTP/1.1\r\nHost: x\r\nX-User: %s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", false, false},
		"no content":       {get, "HTTP/1.1 204 No Content\r\n\r\n", false, false},
		"not modified":     {get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", false, false},
		"until the end":    {get, "HTTP/1.1 200 OK\r\n\r\nabc", false, true},
		"until the end, 0": {get, "HTTP/1.0 200 OK\r\n\r\nabc", false, true},
		"closing":          {get, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na", false, true},
		"cut":              {get, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", false, true},
		"bare LF":          {get, "HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", true, false},
		"length and codes": {get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true, false},
		"not HTTP":         {get, "hello\n", true, false},
		"switches unasked": {get, "HTTP/1.1 101 Switching Protocols\r\n\r\nabc", true, false},
	} {
		for _, who := range []string{"ada", "bob"} {
			t.Run(name+"/"+who, func(t *testing.T) {
				text := strings.ReplaceAll(c.ask, "%s", who)
				steps := []string{"\r\n\r\n", c.answer, "\r\n\r\n", ok}
				if c.last {
					steps = steps[:2]
				}
				scripted := server(t, scripted(steps...))
				other := server(t, (&record{name: "other"}).serve)
				r := &Router{Original: scripted, Routes: ada(other)}
				if who == "ada" {
					r = &Router{Original: other, Routes: ada(scripted)}
				}
				client := connect(t, through(t, r))
				io.WriteString(client, text)
				if who == "ada" && c.unclear {
					got, err := io.ReadAll(client)
					if err == nil {
						t.Errorf("not reset; got %q", got)
					}
					return
				}
				got := make([]byte, len(c.answer))
				if _, err := io.ReadFull(client, got); err != nil || string(got) != c.answer {
					t.Fatalf("answer %q, %v", got, err)
				}
				if c.last {
					if rest, err := io.ReadAll(client); err != nil || len(rest) > 0 {
						t.Errorf("then %q, %v", rest, err)
					}
					return
				}
				io.WriteString(client, strings.Replace(text, "HEAD", "GET", 1))
				got = make([]byte, len(ok))
				if _, err := io.ReadFull(client, got); err != nil || string(got) != ok {
					t.Errorf("second answer %q, %v", got, err)
				}
			})
		}
	}
}

// An answer that nobody asked for is not taken for the next one's.
func TestASecondAnswerIsNotTheNextOnes(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
	laptop := server(t, scripted("\r\n\r\n", ok+"1"+ok+"2"))
	original := server(t, (&record{name: "o"}).serve)
	client := connect(t, through(t, &Router{Original: original, Routes: ada(laptop)}))
	in := bufio.NewReader(client)
	for _, c := range []struct{ text, want string }{{adas, "1"}, {plain, "o"}, {adas, "1"}, {plain, "o"}} {
		io.WriteString(client, c.text)
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(answer.Body); string(got) != c.want {
			t.Fatalf("answer %q, want %q", got, c.want)
		}
	}
}

func TestALaptopThatIsNotReachedCostsNothing(t *testing.T) {
	original := &record{name: "original"}
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	l.Close()
	refused := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(refused)})
	if got := ask(t, dial, adas+plain, 1<<20); strings.Count(got, "original") != 2 || original.all() != adas+plain {
		t.Errorf("answers %q, the original got %q", got, original.all())
	}
}

// switched is ada's route to a laptop that takes requests while on.
func switched(on *atomic.Bool, dial func(context.Context) (net.Conn, error)) func() []Route {
	return func() []Route {
		routes := ada(dial)()
		routes[0].Takes = on.Load
		return routes
	}
}

// A laptop that is known to be away has no further request, not by the connection that it had before either.
func TestALaptopThatTakesNoneHasNone(t *testing.T) {
	original, laptop := &record{name: "original"}, &record{name: "laptop"}
	var on atomic.Bool
	c := connect(t, through(t, &Router{Original: server(t, original.serve), Routes: switched(&on, server(t, laptop.serve))}))
	in := bufio.NewReader(c)
	for i, want := range []string{"original", "laptop", "original", "laptop", "laptop"} {
		on.Store(want == "laptop")
		io.WriteString(c, adas)
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := io.ReadAll(answer.Body); string(got) != want {
			t.Errorf("request %d: %s answers, want %s", i, got, want)
		}
		answer.Body.Close()
	}
}

// The original may be away while a laptop answers.
func TestALaptopAnswersWithoutAnOriginal(t *testing.T) {
	laptop := &record{name: "laptop"}
	none := func(context.Context) (net.Conn, error) { return nil, errors.New("no original") }
	dial := through(t, &Router{Original: none, Routes: ada(server(t, laptop.serve))})
	if got := ask(t, dial, adas+adas, 1<<20); strings.Count(got, "laptop") != 2 {
		t.Errorf("answers %q", got)
	}
	c := connect(t, dial)
	io.WriteString(c, plain)
	if got, err := io.ReadAll(c); err == nil {
		t.Errorf("not reset; got %q", got)
	}
}

func TestUpgradesFollowTheirRequest(t *testing.T) {
	const accept = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"
	echo := func(name string) func(net.Conn) {
		return func(c net.Conn) {
			scripted("\r\n\r\n", accept)(c)
			io.WriteString(c, name)
			io.Copy(c, c)
		}
	}
	dial := through(t, &Router{Original: server(t, echo("original")), Routes: ada(server(t, echo("laptop")))})
	const offer = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
	for _, c := range []struct{ head, name, after string }{
		{offer + "X-User: ada\r\n\r\n", "laptop", plain},
		{offer + "\r\n", "original", adas},
	} {
		if got, want := ask(t, dial, c.head+c.after, 1<<20), accept+c.name+c.after; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A tunnel is its whose the request for it is, with all that is said in it, also after requests of others.
func TestConnectFollowsItsRequest(t *testing.T) {
	const accept = "HTTP/1.1 200 Connection established\r\n\r\n"
	tunnel := func(name string) func(net.Conn) {
		return func(c net.Conn) {
			in := bufio.NewReader(c)
			if _, err := http.ReadRequest(in); err == nil {
				io.WriteString(c, accept+name)
				io.Copy(c, in)
			}
		}
	}
	const request = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n"
	for _, c := range []struct{ head, name, inside string }{
		{request + "X-User: ada\r\n\r\n", "laptop", plain},
		{request + "X-User: ada\r\n\r\n", "laptop", "\x16\x03\x01 and more"},
		{request + "X-User: bob\r\n\r\n", "original", adas},
	} {
		for _, size := range []int{1 << 20, 1, 7} {
			dial := through(t, &Router{Original: server(t, tunnel("original")), Routes: ada(server(t, tunnel("laptop")))})
			if got, want := ask(t, dial, c.head+c.inside, size), accept+c.name+c.inside; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}

	original := &record{name: "original"}
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, tunnel("laptop")))})
	const o = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\noriginal"
	if got, want := ask(t, dial, plain+plain+request+"X-User: ada\r\n\r\n"+plain, 1<<20), o+o+accept+"laptop"+plain; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := original.all(); got != plain+plain {
		t.Errorf("the original got %q", got)
	}
}

// An upgrade that is declined leaves the connection as it was.
func TestADeclinedUpgradeIsAnAnswer(t *testing.T) {
	original, laptop := &record{name: "original"}, &record{name: "laptop"}
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve))})
	head := "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	if got := ask(t, dial, head+adas+head, 1<<20); strings.Count(got, "original") != 2 || strings.Count(got, "laptop") != 1 {
		t.Errorf("got %q", got)
	}
}

// A laptop is not offered HTTP/2: it would have the requests of others on the same connection.
func TestALaptopIsNotOfferedHTTP2(t *testing.T) {
	original, laptop := &record{name: "original"}, &record{name: "laptop"}
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve))})
	offer := "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, keep-alive, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
	ask(t, dial, offer+"\r\n"+offer+"X-User: ada\r\n\r\n", 1<<20)
	if got := original.all(); got != offer+"\r\n" {
		t.Errorf("the original got %q", got)
	}
	if got, want := laptop.all(), "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nX-User: ada\r\n\r\n"; got != want {
		t.Errorf("the laptop got %q, want %q", got, want)
	}
}

// Servers of other protocols speak first.
func TestTheOriginalMaySpeakFirst(t *testing.T) {
	greeting := func(c net.Conn) {
		io.WriteString(c, "220 mail\r\n")
		scripted("HELO x\r\n", "250 ok\r\n")(c)
	}
	var reasons []Reason
	dial := through(t, &Router{Original: server(t, greeting), Routes: ada(nil), Unreadable: func(r Reason) { reasons = append(reasons, r) }})
	client := connect(t, dial)
	in := bufio.NewReader(client)
	if line, err := in.ReadString('\n'); err != nil || line != "220 mail\r\n" {
		t.Fatalf("%q, %v", line, err)
	}
	io.WriteString(client, "HELO x\r\n")
	if rest, err := io.ReadAll(in); err != nil || string(rest) != "250 ok\r\n" {
		t.Fatalf("%q, %v", rest, err)
	}
	if len(reasons) != 1 || reasons[0] != First {
		t.Errorf("told %q", reasons)
	}
}

// An original that speaks while the laptop is dialled has the request, head and body.
func TestTheOriginalMaySpeakWhileTheLaptopIsDialled(t *testing.T) {
	const text = "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 4\r\n\r\nbody"
	dialled, heard := make(chan struct{}), make(chan struct{})
	got := make(chan []byte, 1)
	original := server(t, func(c net.Conn) {
		<-dialled
		io.WriteString(c, "hello")
		all, _ := io.ReadAll(c)
		got <- all
	})
	laptop := &record{name: "laptop"}
	toLaptop := server(t, laptop.serve)
	client := connect(t, through(t, &Router{Original: original, Routes: ada(func(ctx context.Context) (net.Conn, error) {
		close(dialled)
		<-heard
		return toLaptop(ctx)
	})}))
	io.WriteString(client, text)
	if _, err := io.ReadFull(client, make([]byte, len("hello"))); err != nil {
		t.Fatal(err)
	}
	close(heard)
	_ = client.CloseWrite()
	if all := <-got; string(all) != text || laptop.all() != "" {
		t.Errorf("the original got %q, the laptop %q", all, laptop.all())
	}
}

// unsure is a laptop's connection that ends, and does not know how much it has sent.
type unsure struct {
	*net.TCPConn
	ended chan struct{} // closed when the caller's end is passed on
}

func (c unsure) Write(p []byte) (int, error) {
	_, _ = c.TCPConn.Write(p)
	return 0, errors.New("the tunnel has ended")
}

func (c unsure) CloseWrite() error {
	close(c.ended)
	return c.TCPConn.CloseWrite()
}

// A request that the laptop may have got goes to the original too only if that can do no harm.
func TestNoRequestIsActedOnTwice(t *testing.T) {
	silent := server(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	for method, again := range map[string]bool{"GET": true, "HEAD": true, "OPTIONS": true, "POST": false, "PUT": false, "X": false} {
		original := &record{name: "original"}
		ended := make(chan struct{})
		dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(func(ctx context.Context) (net.Conn, error) {
			c, err := silent(ctx)
			return unsure{c.(*net.TCPConn), ended}, err
		})})
		client := connect(t, dial)
		io.WriteString(client, method+" / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n\r\n")
		if again {
			if answer, err := http.ReadResponse(bufio.NewReader(client), &http.Request{Method: method}); err != nil || answer.StatusCode != 200 {
				t.Errorf("%s: %v, %v", method, answer, err)
			}
			continue
		}
		_ = client.CloseWrite()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("%s: the laptop does not learn of the caller's end", method)
		}
		if got, err := io.ReadAll(client); len(got) > 0 || original.all() != "" {
			t.Errorf("%s: answer %q, %v; the original got %q", method, got, err, original.all())
		}
	}
}

// A caller that goes away while only an answer is waited for is missed.
func TestACallersResetEndsTheWaitForAnAnswer(t *testing.T) {
	gone := make(chan struct{})
	laptop := server(t, func(c net.Conn) {
		io.Copy(io.Discard, c)
		close(gone)
	})
	refused := make(chan struct{})
	client := connect(t, through(t, &Router{Original: server(t, (&record{}).serve), Routes: ada(func(ctx context.Context) (net.Conn, error) {
		c, err := laptop(ctx)
		return refusing{c, refused}, err
	})}))
	io.WriteString(client, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 9\r\n\r\n")
	<-refused
	_ = client.SetLinger(0)
	client.Close()
	select {
	case <-gone:
	case <-time.After(patience):
		t.Error("the laptop does not learn of it")
	}
}

// refusing takes nothing, and may still have something to say.
type refusing struct {
	net.Conn
	refused chan struct{}
}

func (c refusing) Write([]byte) (int, error) {
	close(c.refused)
	return 1, errors.New("it takes no more")
}

func TestTLSIsSaid(t *testing.T) {
	original := &record{}
	var mu sync.Mutex
	var reasons []Reason
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(nil), Unreadable: func(r Reason) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, r)
	}})
	for range 3 {
		ask(t, dial, "\x16\x03\x01\x00\x01\x01", 1<<20)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(reasons, []Reason{TLS, TLS, TLS}) {
		t.Errorf("told %q", reasons)
	}
}

// Whoever sends part of a head and waits is not held up for ever.
func TestASlowHeadIsTheOriginals(t *testing.T) {
	original := server(t, scripted("WAIT", "here"))
	client := connect(t, through(t, &Router{Original: original, Routes: ada(nil), HeadTimeout: 10 * time.Millisecond}))
	io.WriteString(client, "WAIT")
	if got, err := io.ReadAll(client); err != nil || string(got) != "here" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestExpectationsWaitForTheirAnswer(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	const goOn, ok = "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	laptop := server(t, scripted("\r\n\r\n", goOn, "body", ok, "\r\n\r\n", ok))
	original := &record{name: "original"}
	client := connect(t, through(t, &Router{Original: server(t, original.serve), Routes: ada(laptop)}))
	io.WriteString(client, head)
	got := make([]byte, len(goOn))
	if _, err := io.ReadFull(client, got); err != nil || string(got) != goOn {
		t.Fatalf("%q, %v", got, err)
	}
	io.WriteString(client, "body"+adas)
	got = make([]byte, 2*len(ok))
	if _, err := io.ReadFull(client, got); err != nil || string(got) != ok+ok {
		t.Fatalf("%q, %v", got, err)
	}
}

// After a final answer to an expectation it is not known whether the body or another request comes: the laptop has no more of it.
func TestNoRequestHidesInABodyThatWasDeclined(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n"
	const no = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
	more := make(chan []byte, 1)
	laptop := server(t, func(c net.Conn) {
		scripted("\r\n\r\n", no)(c)
		rest, _ := io.ReadAll(c)
		more <- rest
	})
	original := &record{name: "original"}
	client := connect(t, through(t, &Router{Original: server(t, original.serve), Routes: ada(laptop)}))
	io.WriteString(client, head)
	got, err := io.ReadAll(client)
	if err != nil || string(got) != no {
		t.Fatalf("%q, %v", got, err)
	}
	io.WriteString(client, plain)
	client.Close()
	if rest := <-more; len(rest) > 0 {
		t.Errorf("the laptop got %q", rest)
	}
}

// Where a body to a laptop becomes unclear the connection ends, and nothing behind that is anybody's.
func TestAnUnclearBodyEndsALaptopsConnection(t *testing.T) {
	for _, body := range []string{"3\nabc\r\n0\r\n\r\n", "2\r\nabc\r\n0\r\n\r\n", "0x0\r\n\r\n", "0\r\nA : b\r\n\r\n", "0;\x00\r\n\r\n", "0;" + strings.Repeat("a", 5000) + "\r\n\r\n"} {
		original, laptop := &record{name: "original"}, &record{name: "laptop"}
		client := connect(t, through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve))}))
		head := "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nTransfer-Encoding: chunked\r\n\r\n"
		io.WriteString(client, head+body+plain+adas)
		if got, err := io.ReadAll(client); err == nil {
			t.Errorf("%.20q: not reset; got %q", body, got)
		}
		if got := original.all() + laptop.all(); strings.Contains(got, "GET") {
			t.Errorf("%.20q: got %q", body, got)
		}
	}
}

// A server may answer before it has the whole body, and close.
func TestAnEarlyAnswerArrives(t *testing.T) {
	const no = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
	early := func(c net.Conn) {
		scripted("\r\n\r\n", no)(c)
		_ = c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	}
	dial := through(t, &Router{Original: server(t, early), Routes: ada(server(t, early))})
	for _, who := range []string{"ada", "bob"} {
		client := connect(t, dial)
		fmt.Fprintf(client, "POST / HTTP/1.1\r\nHost: x\r\nX-User: %s\r\nContent-Length: 1000000\r\n\r\nabc", who)
		if got, err := io.ReadAll(client); err != nil || string(got) != no {
			t.Errorf("%s: %q, %v", who, got, err)
		}
	}
}

// A caller that goes away is missed by the one that answers it.
func TestACallersEndIsPassedOn(t *testing.T) {
	for _, who := range []string{"ada", "bob"} {
		for _, hard := range []bool{false, true} {
			gone := make(chan error, 1)
			begun := make(chan struct{})
			stream := func(c net.Conn) {
				scripted("\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")(c)
				close(begun)
				_, err := io.ReadAll(c)
				gone <- err
			}
			silent := func(c net.Conn) { io.Copy(io.Discard, c) }
			r := &Router{Original: server(t, silent), Routes: ada(server(t, stream))}
			if who == "bob" {
				r = &Router{Original: server(t, stream), Routes: ada(server(t, silent))}
			}
			client := connect(t, through(t, r))
			fmt.Fprintf(client, "GET / HTTP/1.1\r\nHost: x\r\nX-User: %s\r\n\r\n", who)
			<-begun
			if hard {
				_ = client.SetLinger(0)
			}
			client.Close()
			select {
			case <-gone:
			case <-time.After(patience):
				t.Errorf("%s, reset %v: not noticed", who, hard)
			}
		}
	}
}

// A laptop that ends an idle connection, as servers do, costs the caller nothing.
func TestAnIdleLaptopMayClose(t *testing.T) {
	closed := make(chan struct{}, 9)
	laptop := server(t, func(c net.Conn) {
		scripted("\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nl")(c)
		_ = c.Close()
		closed <- struct{}{}
	})
	original := &record{name: "o"}
	client := connect(t, through(t, &Router{Original: server(t, original.serve), Routes: ada(laptop)}))
	in := bufio.NewReader(client)
	for i := range 6 {
		text := []string{plain, adas}[i%2]
		io.WriteString(client, text)
		answer, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(answer.Body); err != nil || string(got) != []string{"o", "l"}[i%2] {
			t.Fatalf("%q, %v", got, err)
		}
		if i%2 == 1 {
			<-closed
		}
	}
}

// The original's end of an idle connection is the caller's too.
func TestAnIdleOriginalCloses(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\no"
	client := connect(t, through(t, &Router{Original: server(t, scripted("\r\n\r\n", ok)), Routes: ada(nil)}))
	io.WriteString(client, plain)
	if got, err := io.ReadAll(client); err != nil || string(got) != ok {
		t.Errorf("%q, %v", got, err)
	}
}

// The end of ctx resets what is open, in every state.
func TestServeEndsWithItsContext(t *testing.T) {
	silent := server(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	for _, text := range []string{"", "GET", plain, adas, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 9\r\n\r\nabc", "\x00", string(preface), string(preface) + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"} {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		client := connect(t, server(t, func(c net.Conn) {
			_ = c.SetDeadline(time.Time{})
			ended <- (&Router{Original: silent, Routes: ada(silent)}).Serve(ctx, c)
		}))
		io.WriteString(client, text)
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("%q: does not end", text)
		}
		if got, _ := io.ReadAll(client); len(got) > 0 {
			t.Errorf("%q: got %q", text, got)
		}
	}
}

// net/http's client and servers find nothing changed, with bodies of all sizes both ways.
func TestLikeNetHTTP(t *testing.T) {
	echo := func(name string) func(context.Context) (net.Conn, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("X-Name", name)
			w.Header().Set("Trailer", "X-Sum")
			n, _ := io.Copy(w, r.Body)
			w.Header().Set("X-Sum", fmt.Sprint(n, r.Trailer.Get("X-Sent")))
		})}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
		return func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
		}
	}
	dial := through(t, &Router{Original: echo("original"), Routes: ada(echo("laptop"))})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, MaxConnsPerHost: 3}
	defer transport.CloseIdleConnections()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 40 {
				body := bytes.Repeat([]byte("0123456789"), random.IntN(1<<uint(random.IntN(15))))
				who, name := "ada", "laptop"
				if random.IntN(2) == 0 {
					who, name = "bob", "original"
				}
				r, _ := http.NewRequest("POST", "http://x/a", io.NopCloser(bytes.NewReader(body)))
				r.Header.Set("X-User", who)
				r.Trailer = http.Header{"X-Sent": {"all"}}
				if random.IntN(2) == 0 {
					r.ContentLength, r.Trailer = int64(len(body)), nil
				}
				answer, err := transport.RoundTrip(r)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if err != nil || !bytes.Equal(got, body) || answer.Header.Get("X-Name") != name {
					t.Errorf("%d bytes of %d by %q, %v", len(got), len(body), answer.Header.Get("X-Name"), err)
				}
				sum := fmt.Sprint(len(body), map[bool]string{true: "all"}[r.Trailer != nil])
				if s := answer.Trailer.Get("X-Sum"); s != sum {
					t.Errorf("trailer %q, want %q", s, sum)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzTheOriginalGetsWhatWasSent: whatever is sent, and however it is cut, no byte is changed.
func FuzzTheOriginalGetsWhatWasSent(f *testing.F) {
	f.Add([]byte(plain+plain), 3)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"+plain), 5)
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"+plain), 50)
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"), 100)
	f.Add([]byte("\x16\x03\x01"), 1)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		if size < 1 || len(text)/size > 100 {
			return
		}
		original, laptop := &record{name: "original"}, &record{name: "laptop"}
		none := func() []Route { return []Route{{Filter: Filter{Path: "/never"}, Dial: server(t, laptop.serve)}} }
		dial := through(t, &Router{Original: server(t, original.serve), Routes: none})
		ask(t, dial, string(text), size)
		if got := original.all(); got != string(text) {
			t.Errorf("the original got %q, sent was %q", got, text)
		}
	})
}
