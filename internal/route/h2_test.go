package route

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Server serves HTTP/2 without TLS.
func h2Server(t testing.TB, handler http.HandlerFunc) (dial func(context.Context) (net.Conn, error)) {
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Protocols.SetHTTP1(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
}

func h2Client(t testing.TB, dial func(context.Context) (net.Conn, error)) *http.Transport {
	c := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, Protocols: new(http.Protocols)}
	c.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// echo sends back what comes as it comes, in the way of gRPC: the last word is in the trailers.
func echo(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Order"] = r.Header["X-Order"]
		w.Header().Set("X-Name", name)
		w.WriteHeader(200)
		_ = http.NewResponseController(w).Flush()
		buf := make([]byte, 32<<10)
		total := 0
		for {
			n, err := r.Body.Read(buf)
			_, _ = w.Write(buf[:n])
			_ = http.NewResponseController(w).Flush()
			if total += n; err != nil {
				break
			}
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", fmt.Sprint(total))
		w.Header().Set(http.TrailerPrefix+"X-Sent", r.Trailer.Get("X-Sent"))
	}
}

func TestStreamsOfHTTP2AreChosenOneByOne(t *testing.T) {
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, echo("laptop")))})
	client := h2Client(t, dial)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			who, name := "ada", "laptop"
			if i%2 == 0 {
				who, name = "bob", "original"
			}
			size := 1 << (i % 22)
			in, out := io.Pipe()
			r, _ := http.NewRequest("POST", "http://x/a", in)
			r.Header.Set("X-User", who)
			r.Header["X-Order"] = []string{"b", "a", "c"}
			r.Trailer = http.Header{"X-Sent": nil}
			answer, err := client.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return
			}
			defer answer.Body.Close()
			if got := answer.Header; got.Get("X-Name") != name || fmt.Sprint(got["X-Order"]) != "[b a c]" || answer.ProtoMajor != 2 {
				t.Errorf("answer %v", got)
			}
			// One message there and back, and then many.
			got := make([]byte, 5)
			io.WriteString(out, "hello")
			if _, err := io.ReadFull(answer.Body, got); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			body := bytes.Repeat([]byte{byte(i)}, size)
			wg.Go(func() {
				_, _ = out.Write(body)
				r.Trailer.Set("X-Sent", "all")
				out.Close()
			})
			all, err := io.ReadAll(answer.Body)
			if err != nil || !bytes.Equal(all, body) {
				t.Errorf("%d bytes of %d, %v", len(all), size, err)
			}
			if answer.Trailer.Get("Grpc-Status") != fmt.Sprint(size+5) || answer.Trailer.Get("X-Sent") != "all" {
				t.Errorf("trailers %v", answer.Trailer)
			}
		})
	}
	wg.Wait()
}

func get(t testing.TB, client http.RoundTripper, who string) (name string, err error) {
	r, _ := http.NewRequest("GET", "http://x/a", nil)
	r.Header.Set("X-User", who)
	answer, err := client.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	_, err = io.ReadAll(answer.Body)
	return answer.Header.Get("X-Name"), err
}

// A laptop that is known to be away has no further stream, and ends those that it has.
func TestALaptopThatTakesNoneHasNoStream(t *testing.T) {
	var on atomic.Bool
	client := h2Client(t, through(t, &Router{Original: h2Server(t, echo("original")), Routes: switched(&on, h2Server(t, echo("laptop")))}))
	on.Store(true)
	in, out := io.Pipe()
	r, _ := http.NewRequest("POST", "http://x/", in)
	r.Header.Set("X-User", "ada")
	open, err := client.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Body.Close()
	for i, want := range []string{"laptop", "original", "original", "laptop"} {
		on.Store(want == "laptop")
		if got, err := get(t, client, "ada"); err != nil || got != want {
			t.Errorf("stream %d: %q answers (%v), want %s", i, got, err, want)
		}
	}
	io.WriteString(out, "hello")
	out.Close()
	if got, err := io.ReadAll(open.Body); err != nil || string(got) != "hello" || open.Header.Get("X-Name") != "laptop" {
		t.Errorf("the stream of before: %q of %q, %v", got, open.Header.Get("X-Name"), err)
	}
}

// A laptop that is not reached, or speaks no HTTP/2, leaves its requests to the original; of the latter it is told.
func TestALaptopWithoutHTTP2CostsNothing(t *testing.T) {
	original := h2Server(t, echo("original"))
	var away atomic.Bool
	for name, c := range map[string]struct {
		dial func(context.Context) (net.Conn, error)
		by   string
		told string
	}{
		"refused": {func(context.Context) (net.Conn, error) { return nil, errors.New("refused") }, "original", "[]"},
		"HTTP/1":  {server(t, (&record{name: "laptop"}).serve), "original", "[ada false ada false]"},
		"closes":  {server(t, func(net.Conn) {}), "original", "[ada false ada false]"},
		"leaves":  {server(t, func(net.Conn) { away.Store(true) }), "original", "[]"},
		"HTTP/2":  {h2Server(t, echo("laptop")), "laptop", "[ada true]"},
	} {
		away.Store(false)
		var mu sync.Mutex
		told := []string{}
		routes := ada(c.dial)()
		routes[0].Takes = func() bool { return !away.Load() }
		client := h2Client(t, through(t, &Router{Original: original, Routes: func() []Route { return routes }, HTTP2: func(route string, speaks bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(route, " ", speaks))
		}}))
		for range 2 {
			if got, err := get(t, client, "ada"); got != c.by || err != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		mu.Lock()
		if got := fmt.Sprint(told); got != c.told {
			t.Errorf("%s: told %s, want %s", name, got, c.told)
		}
		mu.Unlock()
	}
}

// An original without HTTP/2 has the connection as it is, and so says what it thinks of it.
func TestAnOriginalWithoutHTTP2SaysSo(t *testing.T) {
	original := &record{name: "original"}
	dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(nil)})
	text := string(preface) + "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00\x00"
	// net/http reads the preface as a request, and its SM as what is behind it.
	if got := ask(t, dial, text, 1<<20); !strings.HasPrefix(got, "HTTP/1.1 ") {
		t.Errorf("answer %q", got)
	}
	if got := original.all(); got != text {
		t.Errorf("the original got %q", got)
	}
}

func TestALaptopAnswersHTTP2WithoutAnOriginal(t *testing.T) {
	none := func(context.Context) (net.Conn, error) { return nil, errors.New("no original") }
	client := h2Client(t, through(t, &Router{Original: none, Routes: ada(h2Server(t, echo("laptop")))}))
	if got, err := get(t, client, "ada"); got != "laptop" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := get(t, client, "bob"); err == nil {
		t.Errorf("%q answers", got)
	}
	if got, err := get(t, client, "ada"); got != "laptop" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// wire is one end of HTTP/2 in single frames.
type wire struct {
	t testing.TB
	net.Conn
	*http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newWire(t testing.TB, c net.Conn) *wire {
	w := &wire{t: t, Conn: c, Framer: http2.NewFramer(c, c)}
	w.enc = hpack.NewEncoder(&w.buf)
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return w
}

func wireClient(t testing.TB, dial func(context.Context) (net.Conn, error), settings ...http2.Setting) *wire {
	w := newWire(t, connect(t, dial))
	w.Conn.Write(preface)
	w.WriteSettings(settings...)
	return w
}

// wireServer takes each connection with serve.
func wireServer(t testing.TB, serve func(*wire), settings ...http2.Setting) func(context.Context) (net.Conn, error) {
	return server(t, func(c net.Conn) {
		if _, err := io.ReadFull(c, make([]byte, len(preface))); err != nil {
			return
		}
		w := newWire(t, c)
		w.WriteSettings(settings...)
		serve(w)
	})
}

func (w *wire) head(id uint32, end bool, fields ...string) {
	w.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		w.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.buf.Bytes(), EndStream: end, EndHeaders: true})
}

func (w *wire) get(id uint32, who string, end bool) {
	w.head(id, end, ":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x", "x-user", who)
}

// next is the next frame that is about a stream or ends all; nil at the end.
func (w *wire) next() http2.Frame {
	for {
		f, err := w.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				w.WriteSettingsAck()
			}
		case *http2.WindowUpdateFrame, *http2.PingFrame:
		default:
			return f
		}
	}
}

// What gRPC makes of a reset depends on its code.
func TestResetsKeepTheirCodes(t *testing.T) {
	codes := make(chan http2.ErrCode, 9)
	serve := func(w *wire) {
		for {
			switch f := w.next().(type) {
			case *http2.MetaHeadersFrame:
				if f.StreamEnded() {
					w.head(f.StreamID, false, ":status", "200")
					w.WriteData(f.StreamID, false, []byte("part"))
					w.WriteRSTStream(f.StreamID, http2.ErrCodeEnhanceYourCalm)
				} else {
					w.head(f.StreamID, false, ":status", "200")
				}
			case *http2.RSTStreamFrame:
				codes <- f.ErrCode
			case nil:
				return
			}
		}
	}
	dial := through(t, &Router{Original: wireServer(t, serve), Routes: ada(wireServer(t, serve))})
	w := wireClient(t, dial)
	for i, who := range []string{"ada", "bob"} {
		id := uint32(4*i + 1)
		w.get(id, who, true)
		var seen []string
		for len(seen) < 3 {
			switch f := w.next().(type) {
			case *http2.MetaHeadersFrame:
				seen = append(seen, "head")
			case *http2.DataFrame:
				seen = append(seen, string(f.Data()))
			case *http2.RSTStreamFrame:
				seen = append(seen, f.ErrCode.String())
			case nil:
				t.Fatalf("%s: ended after %q", who, seen)
			}
		}
		if fmt.Sprint(seen) != "[head part ENHANCE_YOUR_CALM]" {
			t.Errorf("%s: %q", who, seen)
		}
		w.get(id+2, who, false)
		w.next()
		w.WriteRSTStream(id+2, http2.ErrCodeCancel)
		if code := <-codes; code != http2.ErrCodeCancel {
			t.Errorf("%s: the backend was told %v", who, code)
		}
	}
}

// A stream that nobody reads does not stop another one, and no more of it is held than its window.
func TestOneStreamThatIsNotReadStopsNoOther(t *testing.T) {
	sent := make(chan int, 1)
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Big") == "" {
			echo("laptop")(w, r)
			return
		}
		total := 0
		for r.Context().Err() == nil {
			n, err := w.Write(make([]byte, 32<<10))
			if total += n; err != nil {
				break
			}
		}
		sent <- total
	}
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, handler))})
	w := wireClient(t, dial, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
	w.WriteWindowUpdate(0, 1<<20)
	w.head(1, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "x-user", "ada", "x-big", "1")
	for got := 0; got < 1000; {
		if f, ok := w.next().(*http2.DataFrame); ok {
			got += len(f.Data())
		}
	}
	for id := uint32(3); id < 100; id += 2 {
		w.get(id, []string{"ada", "bob"}[id/2%2], true)
		for ended := false; !ended; {
			switch f := w.next().(type) {
			case *http2.MetaHeadersFrame:
				ended = f.StreamID == id && f.StreamEnded()
			case nil:
				t.Fatal("ended")
			}
		}
	}
	w.WriteRSTStream(1, http2.ErrCodeCancel)
	if n := <-sent; n > 2*laptopStreamWindow { // the server's own buffer is behind it
		t.Errorf("%d bytes were taken", n)
	}
}

// What a laptop does not take keeps nothing else of the caller's connection waiting.
func TestStreamsThatALaptopDoesNotTakeStopNoOther(t *testing.T) {
	stop := make(chan struct{})
	stopped := wireServer(t, func(*wire) { <-stop }) // as a process at a breakpoint
	t.Cleanup(func() { close(stop) })
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(stopped)})
	w := wireClient(t, dial)
	const stalled = 64
	window, streams := 65535, map[uint32]int{}
	id := uint32(1)
	// read takes frames until one is an answer's end.
	read := func() (ended uint32) {
		f, err := w.ReadFrame()
		switch f := f.(type) {
		case nil:
			t.Fatalf("ended: %v", err)
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				window += int(f.Increment)
			} else {
				streams[f.StreamID] += int(f.Increment)
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				w.WriteSettingsAck()
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				return f.StreamID
			}
			w.WriteWindowUpdate(0, f.Length)
			w.WriteWindowUpdate(f.StreamID, f.Length)
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				return f.StreamID
			}
		}
		return 0
	}
	send := func(id uint32, n int, end bool) {
		for n > 0 {
			part := min(n, frameSize, window, streams[id])
			if part <= 0 {
				read()
				continue
			}
			n -= part
			window, streams[id] = window-part, streams[id]-part
			w.WriteData(id, end && n == 0, make([]byte, part))
		}
	}
	for range stalled {
		streams[id] = 65535
		w.get(id, "ada", false)
		send(id, 65535, false)
		id += 2
	}
	streams[id] = 65535
	w.get(id, "bob", false)
	send(id, 1<<20, true)
	for read() != id {
	}
}

// A backend that says goodbye keeps what it has begun; what it has not seen may be tried again, on another connection.
func TestGoodbyesOfABackend(t *testing.T) {
	n := 0
	var mu sync.Mutex
	serve := func(w *wire) {
		mu.Lock()
		n++
		mine := n
		mu.Unlock()
		var first uint32
		for {
			f, ok := w.next().(*http2.MetaHeadersFrame)
			if !ok {
				return
			}
			switch {
			case mine > 1:
				w.head(f.StreamID, true, ":status", "200", "x-name", fmt.Sprint(mine))
			case first == 0:
				first = f.StreamID
			default:
				w.WriteGoAway(first, http2.ErrCodeNo, nil)
				w.head(first, true, ":status", "200", "x-name", "1")
			}
		}
	}
	w := wireClient(t, through(t, &Router{Original: wireServer(t, serve), Routes: ada(nil)}))
	w.get(1, "bob", true)
	w.get(3, "bob", true)
	var seen []string
	for len(seen) < 2 {
		switch f := w.next().(type) {
		case *http2.MetaHeadersFrame:
			seen = append(seen, fmt.Sprint(f.StreamID, " ", f.RegularFields()[0].Value))
		case *http2.RSTStreamFrame:
			seen = append(seen, fmt.Sprint(f.StreamID, " ", f.ErrCode))
		case nil:
			t.Fatal("ended")
		}
	}
	if all := strings.Join(seen, ", "); !strings.Contains(all, "1 1") || !strings.Contains(all, "3 REFUSED_STREAM") {
		t.Errorf("seen %q", all)
	}
	w.get(5, "bob", true)
	if f, ok := w.next().(*http2.MetaHeadersFrame); !ok || f.RegularFields()[0].Value != "2" {
		t.Errorf("then %v", f)
	}
}

// The limit that a backend sets is kept; what is above it waits.
func TestStreamsWaitForTheirTurn(t *testing.T) {
	open := make(chan uint32, 9)
	serve := func(w *wire) {
		for {
			f, ok := w.next().(*http2.MetaHeadersFrame)
			if !ok {
				return
			}
			open <- f.StreamID
			if f.StreamID > 1 {
				w.head(f.StreamID-2, true, ":status", "200")
			}
		}
	}
	limit := http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 2}
	w := wireClient(t, through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(wireServer(t, serve, limit))}))
	for id := uint32(1); id < 8; id += 2 {
		w.get(id, "ada", true)
	}
	for id := uint32(1); id < 8; id += 2 {
		if got := <-open; got != id {
			t.Fatalf("stream %d begun, want %d", got, id)
		}
	}
}

// A lost backend ends its own streams, and the connection when there is no other: what the caller would see without us.
func TestALostBackendEndsItsStreams(t *testing.T) {
	lose := func(w *wire) { w.next() }
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(wireServer(t, lose))})
	w := wireClient(t, dial)
	w.get(1, "bob", false)
	w.next()
	w.get(3, "ada", true)
	if f, ok := w.next().(*http2.RSTStreamFrame); !ok || f.StreamID != 3 || f.ErrCode != http2.ErrCodeInternal {
		t.Errorf("got %v", f)
	}
	w.WriteData(1, true, []byte("still here"))
	if f, ok := w.next().(*http2.DataFrame); !ok || string(f.Data()) != "still here" {
		t.Errorf("got %v", f)
	}
	w = wireClient(t, dial)
	w.get(1, "ada", true)
	if f := w.next(); f != nil {
		t.Errorf("got %v", f)
	}
}

// Heads may come in parts, and be padded, with a priority; interim answers and their order stay.
func TestOddFramesOfHTTP2(t *testing.T) {
	big := strings.Repeat("a", 40<<10)
	serve := func(w *wire) {
		f, ok := w.next().(*http2.MetaHeadersFrame)
		if !ok {
			return
		}
		var order []string
		for _, field := range f.RegularFields() {
			order = append(order, field.Name)
		}
		w.head(f.StreamID, false, ":status", "103", "link", "x")
		w.head(f.StreamID, false, ":status", "200", "x-order", strings.Join(order, ","))
		w.WriteDataPadded(f.StreamID, false, []byte("body"), make([]byte, 99))
		w.head(f.StreamID, true, "grpc-status", "0")
		w.next()
	}
	w := wireClient(t, through(t, &Router{Original: wireServer(t, serve), Routes: ada(nil)}))
	fields := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "z", "1", "cookie", "a=1", "a", big, "cookie", "b=2", "te", "trailers"}
	for i := 0; i < len(fields); i += 2 {
		w.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	block := w.buf.Bytes()
	w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:5], EndStream: true, PadLength: 7, Priority: http2.PriorityParam{Weight: 3}})
	for block = block[5:]; len(block) > 10000; block = block[10000:] {
		w.WriteContinuation(1, false, block[:10000])
	}
	w.WriteContinuation(1, true, block)
	w.WritePriority(1, http2.PriorityParam{Weight: 9})
	var seen []string
	for ended := false; !ended; {
		switch f := w.next().(type) {
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				seen = append(seen, field.Name+"="+field.Value)
			}
			ended = f.StreamEnded()
		case *http2.DataFrame:
			seen = append(seen, string(f.Data()))
		case nil:
			t.Fatalf("ended after %q", seen)
		}
	}
	if got, want := fmt.Sprint(seen), "[:status=103 link=x :status=200 x-order=z,cookie,a,cookie,te body grpc-status=0]"; got != want {
		t.Errorf("seen %v, want %v", got, want)
	}
}

// A caller that breaks the rules is told and left; one that only asks and never reads is left.
func TestACallerThatBreaksTheRules(t *testing.T) {
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, echo("laptop")))})
	for name, do := range map[string]func(w *wire){
		"frame too long": func(w *wire) { w.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)) },
		"unknown stream": func(w *wire) { w.WriteData(5, true, nil) },
		"bad compression": func(w *wire) {
			w.WriteRawFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff, 0xff, 0xff})
		},
		"push": func(w *wire) { w.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 9)) },
		"window": func(w *wire) {
			w.WriteWindowUpdate(0, 1<<31-1)
			w.WriteWindowUpdate(0, 1<<31-1)
		},
		"more than the window": func(w *wire) {
			w.get(1, "ada", false)
			for range 2 * maxWindow / frameSize {
				if w.WriteData(3, false, make([]byte, frameSize)) != nil {
					return
				}
			}
		},
	} {
		w := wireClient(t, dial)
		go do(w)
		in := http2.NewFramer(io.Discard, w.Conn) // do writes meanwhile
		for {
			f, _ := in.ReadFrame()
			if _, ok := f.(*http2.GoAwayFrame); ok {
				break
			}
			if f == nil {
				t.Errorf("%s: no goodbye", name)
				break
			}
		}
	}
}

// Fields that leave a new encoder behind, with small ones between them, to a caller with any table.
func TestLargeFieldsLikeSmallOnes(t *testing.T) {
	dial := through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, echo("laptop")))})
	for _, table := range []uint32{0, 100, tableSize} {
		w := wireClient(t, dial, http2.Setting{ID: http2.SettingHeaderTableSize, Val: table})
		for i := range 12 {
			order := strings.Repeat("x", []int{10, 10 << 10, 20, 15 << 10}[i%4])
			w.head(uint32(2*i+1), true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "x-user", []string{"ada", "bob"}[i%2], "x-order", order)
			got := ""
			for end := false; !end; {
				switch f := w.next().(type) {
				case *http2.MetaHeadersFrame:
					for _, field := range f.RegularFields() {
						if field.Name == "x-order" {
							got = field.Value
						}
					}
					end = f.StreamEnded()
				case *http2.DataFrame:
					end = f.StreamEnded()
				default:
					t.Fatalf("table of %d: %v", table, f)
				}
			}
			if got != order {
				t.Errorf("table of %d: %d bytes of %d", table, len(got), len(order))
			}
		}
	}
}

// Each side is told of the longest head that the other one takes, and a longer one is refused alone.
func TestHeadsThatAreTooLong(t *testing.T) {
	told := make(chan http2.Setting, 8)
	listen := func(f http2.Frame) {
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			if v, ok := s.Value(http2.SettingMaxHeaderListSize); ok {
				told <- http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: v}
			}
		}
	}
	original := wireServer(t, func(w *wire) {
		for {
			f, err := w.ReadFrame()
			if err != nil {
				return
			}
			listen(f)
		}
	}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1 << 20})
	w := wireClient(t, through(t, &Router{Original: original, Routes: ada(original)}), http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000})
	f, err := w.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	listen(f)
	seen := map[uint32]int{}
	for range 3 { // the caller's own to the original, ours to that, and ours to the caller
		seen[(<-told).Val]++
	}
	if fmt.Sprint(seen) != fmt.Sprint(map[uint32]int{1000: 2, maxFields: 1}) {
		t.Errorf("told %v", seen)
	}
	fields := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x"}
	for range 20 {
		fields = append(fields, "x-indexed", strings.Repeat("x", 3900))
	}
	w.head(1, true, fields...)
	if f, ok := w.next().(*http2.RSTStreamFrame); !ok || f.ErrCode != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("%v", f)
	}
	_ = w.WritePing(false, [8]byte{})
	if f, err := w.ReadFrame(); err != nil || f.Header().Type != http2.FramePing {
		t.Errorf("%v, %v", f, err)
	}
}

func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("no curl")
	}
	whole := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Name", name)
			_, _ = w.Write(body)
		}
	}
	dial := through(t, &Router{Original: h2Server(t, whole("original")), Routes: ada(h2Server(t, whole("laptop")))})
	c := connect(t, dial)
	address := c.RemoteAddr().String()
	for _, version := range []string{"--http2-prior-knowledge", "--http1.1", "--http1.0", "--http2"} {
		for who, name := range map[string]string{"ada": "laptop", "bob": "original"} {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			out, err := exec.CommandContext(ctx, curl, "-sS", "-i", version, "-H", "X-User: "+who, "--data", "hello", "http://"+address+"/a").CombinedOutput()
			cancel()
			if err != nil || !strings.Contains(strings.ToLower(string(out)), "x-name: "+name) || !strings.HasSuffix(string(out), "hello") {
				t.Errorf("%s %s: %v\n%s", version, who, err, out)
			}
		}
	}
}
