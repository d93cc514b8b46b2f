package route

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestSharesOfABudget(t *testing.T) {
	b := &Budget{Size: 100 << 10}
	one, two := &share{budget: b}, &share{budget: b}
	for _, step := range []struct {
		name string
		do   func() bool
		ok   bool
		used int64
	}{
		{"what is free", func() bool { return one.take(freeMemory) }, true, 0},
		{"more", func() bool { return one.take(1 << 10) }, true, 1 << 10},
		{"a part of its own", func() bool { return two.reserve(90 << 10) }, true, 91 << 10},
		{"too much", func() bool { return one.take(10 << 10) }, false, 91 << 10},
		{"all the rest", func() bool { return two.ensure(9 << 10) }, true, 100 << 10},
		{"what was ensured", func() bool { return two.take(freeMemory + 9<<10) }, true, 100 << 10},
		{"more than that", func() bool { return two.take(1) }, false, 100 << 10},
		{"less", func() bool { two.release(80 << 10); return true }, true, 20 << 10},
		{"nothing but what is ensured", func() bool { two.give(freeMemory + 9<<10); return true }, true, 20 << 10},
		{"more than it took", func() bool { one.give(1 << 20); return true }, true, 19 << 10},
		{"the end", func() bool { two.close(); return true }, true, 0},
		{"after it", func() bool { return two.take(1) }, false, 0},
	} {
		ok := step.do()
		if used := b.Used(); ok != step.ok || used != step.used {
			t.Errorf("%s: %v, %d used; want %v, %d", step.name, ok, used, step.ok, step.used)
		}
	}
}

// stall is how long who takes nothing for so long takes nothing at all.
const stall = 300 * time.Millisecond

// stuff writes parts until all are written, or nobody takes them. It keeps no large copy of them, which would count as held.
func stuff(c net.Conn, parts ...string) {
	for _, p := range parts {
		for len(p) > 0 {
			n := min(len(p), 64<<10)
			_ = c.SetWriteDeadline(time.Now().Add(stall))
			if _, err := io.WriteString(c, p[:n]); err != nil {
				return
			}
			p = p[n:]
		}
	}
}

// Callers that have as much held as they can get no more than the budget together. Others are answered meanwhile.
func TestCallersTogetherHoldNoMoreThanTheBudget(t *testing.T) {
	const size, callers = 8 << 20, 64
	const idle = 128 << 10 // what a connection takes in any case, here with its other ends
	stop := make(chan struct{})
	defer close(stop)
	stopped := server(t, func(net.Conn) { <-stop })
	silent := wireServer(t, func(*wire) { <-stop })
	closed := wireServer(t, func(*wire) { <-stop }, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
	body := strings.Repeat("x", 16000)
	full := make(chan struct{}, callers)
	flood := wireServer(t, func(w *wire) {
		w.next()
		w.head(1, false, ":status", "200")
		for range connWindow / len(body) {
			_ = w.WriteData(1, false, []byte(body))
		}
		full <- struct{}{}
		<-stop
	})
	long, ahead := strings.Repeat("x", 8<<20), strings.Repeat(plain, 10000)
	begin := func(c net.Conn) *wire {
		w := newWire(t, c)
		w.Conn.Write(preface)
		w.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		return w
	}
	for name, attack := range map[string]struct {
		laptop func(context.Context) (net.Conn, error)
		do     func(c net.Conn)
	}{
		"a head": {stopped, func(c net.Conn) {
			stuff(c, "GET / HTTP/1.1\r\nHost: x\r\n", "a: "+strings.Repeat("a", 60<<10))
		}},
		"small fields": {stopped, func(c net.Conn) {
			stuff(c, "GET / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"+strings.Repeat("a:\r\n", 1990)+"\r\n", plain)
		}},
		"too many of them": {stopped, func(c net.Conn) {
			stuff(c, "GET / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"+strings.Repeat("a:\r\n", 15000)+"\r\n", plain)
		}},
		"a body": {stopped, func(c net.Conn) {
			stuff(c, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 1000000000\r\n\r\n", long)
		}},
		"requests ahead": {stopped, func(c net.Conn) {
			stuff(c, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 60000\r\n\r\n"+strings.Repeat("x", 60000)+plain, ahead)
		}},
		"streams": {silent, func(c net.Conn) {
			w := begin(c)
			for id := uint32(1); id < 400; id += 2 {
				_ = w.SetWriteDeadline(time.Now().Add(stall))
				w.get(id, "ada", false)
				for range 4 {
					if w.WriteData(id, false, []byte(body)) != nil {
						return
					}
				}
			}
		}},
		"streams of nothing": {silent, func(c net.Conn) {
			w := begin(c)
			for id := uint32(1); id < 2*maxStreams; id += 2 {
				_ = w.SetWriteDeadline(time.Now().Add(stall))
				w.get(id, "ada", false)
			}
		}},
		"bodies of single bytes": {silent, func(c net.Conn) {
			w := begin(c)
			w.get(1, "ada", false)
			for range 20000 {
				_ = w.SetWriteDeadline(time.Now().Add(stall))
				if w.WriteData(1, false, []byte("x")) != nil {
					return
				}
			}
		}},
		"heads that wait": {closed, func(c net.Conn) {
			w := begin(c)
			for id := uint32(1); id < 1000; id += 2 {
				_ = w.SetWriteDeadline(time.Now().Add(stall))
				w.head(id, true, ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "x", "x-user", "ada", "x-long", body[:8000])
			}
		}},
		"answers": {flood, func(c net.Conn) {
			begin(c).get(1, "ada", true)
			select {
			case <-full:
			case <-time.After(stall): // there was no memory for it
			}
		}},
		"questions": {silent, func(c net.Conn) {
			w := begin(c)
			for range 200000 {
				_ = w.SetWriteDeadline(time.Now().Add(stall))
				if w.WritePing(false, [8]byte{}) != nil {
					return
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			budget := whole(t, &Budget{Size: size})
			route := func(original func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
				return through(t, &Router{Original: original, Routes: ada(attack.laptop), Budget: budget, HeadTimeout: patience})
			}
			attacked, http1, http2 := route(closed), route(server(t, (&record{name: "original"}).serve)), route(h2Server(t, echo("original")))
			before := heap()
			var all sync.WaitGroup
			for range callers {
				c := connect(t, attacked)
				all.Go(func() { attack.do(c) })
			}
			all.Wait()
			used := budget.Used()
			var grown int64
			little := func() bool { // where the machine is slow, some is still on its way
				grown = heap() - before
				return grown <= 2*size+callers*idle
			}
			if used > size || !soon(little) {
				t.Errorf("%d bytes more are held, %d of the budget", grown, used)
			} else {
				t.Logf("%.1f MiB more are held, %.1f of the budget", float64(grown)/(1<<20), float64(used)/(1<<20))
			}
			if got := ask(t, http1, plain+plain, 1<<20); strings.Count(got, "original") != 2 {
				t.Errorf("another caller: %q", got)
			}
			if name, err := get(t, h2Client(t, http2), "bob"); name != "original" {
				t.Errorf("another caller of HTTP/2: %q, %v", name, err)
			}
		})
	}
}

// While others hold all of it nothing is lost: the laptop has what needs little, and the original what needs more, unread.
func TestAllIsAnsweredWithoutMemory(t *testing.T) {
	long := "GET /x HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nA: " + strings.Repeat("a", 50<<10) + "\r\n\r\n"
	body := strings.Repeat("b", 1<<20)
	post := fmt.Sprintf("POST /x HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for _, size := range []int{1 << 20, 777} {
		original, laptop := &record{name: "original"}, &record{name: "laptop"}
		var mu sync.Mutex
		var told []Reason
		dial := through(t, &Router{Original: server(t, original.serve), Routes: ada(server(t, laptop.serve)), Budget: whole(t, &Budget{Size: 1}), Unreadable: func(r Reason) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, r)
		}})
		if got := ask(t, dial, adas+post+plain+long+adas, size); strings.Count(got, "laptop") != 2 || strings.Count(got, "original") != 3 {
			t.Errorf("answers %q", got)
		}
		if laptop.all() != adas+post || original.all() != plain+long+adas {
			t.Errorf("the laptop got %d bytes, the original %d", len(laptop.all()), len(original.all()))
		}
		if fmt.Sprint(told) != "[no memory left]" {
			t.Errorf("told %q", told)
		}
	}
	client := h2Client(t, through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, echo("laptop"))), Budget: whole(t, &Budget{Size: 1})}))
	for range 3 {
		if got, err := get(t, client, "ada"); got != "original" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}

// With little memory HTTP/2 is as slow as that is small, and no slower.
func TestHTTP2WithLittleMemory(t *testing.T) {
	const both = 2*(peerMemory+connWindow) + spareMemory + frameSize
	for _, size := range []int64{both, both + peerMemory + connWindow} { // without a laptop, and with
		client := h2Client(t, through(t, &Router{Original: h2Server(t, echo("original")), Routes: ada(h2Server(t, echo("laptop"))), Budget: whole(t, &Budget{Size: size})}))
		want := "original"
		if size > both {
			want = "laptop"
		}
		if name, err := get(t, client, "ada"); name != want {
			t.Errorf("%q answers, %v", name, err)
		}
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				r, _ := http.NewRequest("POST", "http://x/", strings.NewReader(strings.Repeat("x", 1<<20)))
				r.Header.Set("X-User", []string{"ada", "bob"}[i%2])
				answer, err := client.RoundTrip(r)
				if err != nil {
					t.Error(err)
					return
				}
				defer answer.Body.Close()
				if n, err := io.Copy(io.Discard, answer.Body); n != 1<<20 || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				if name := answer.Header.Get("X-Name"); i%2 == 0 && name != want {
					t.Errorf("%s answers", name)
				}
			})
		}
		all.Wait()
	}
}

// heap is what is in use of it.
func heap() int64 {
	runtime.GC()
	runtime.GC() // for what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// long is a head of n bytes or so to who, in frames of stream 1.
func long(w *wire, who string, n int) {
	w.buf.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/"}, {":authority", "x"}, {"x-user", who}, {"x-long", strings.Repeat("x", n)}} {
		_ = w.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true})
	}
	block := w.buf.Bytes()
	part := min(len(block), 16000)
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:part], EndHeaders: part == len(block)})
	for block = block[part:]; len(block) > 0; block = block[part:] {
		part = min(len(block), 16000)
		_ = w.WriteContinuation(1, part == len(block), block[:part])
	}
}

// What a large head took is there again when it has been passed on, while its connection stays.
func TestLargeHeadsLeaveNothingBehind(t *testing.T) {
	const callers, each = 64, 40 << 10
	var passed atomic.Int64
	drain := wireServer(t, func(w *wire) {
		buf := make([]byte, 4<<10)
		for {
			n, err := w.Conn.Read(buf)
			if passed.Add(int64(n)); err != nil {
				return
			}
		}
	})
	budget := whole(t, new(Budget))
	d := through(t, &Router{Original: drain, Routes: ada(drain), Budget: budget, HeadTimeout: patience})
	var all []net.Conn
	for range callers {
		w := wireClient(t, d)
		for f := http2.Frame(nil); f == nil; {
			f, _ = w.ReadFrame() // it is served
		}
		all = append(all, w.Conn)
	}
	before, used := heap(), budget.Used()
	for _, c := range all {
		long(newWire(t, c), "bob", 50<<10)
	}
	var grown int64
	if !soon(func() bool { return passed.Load() > callers*each }) {
		t.Fatalf("%d bytes have been passed on", passed.Load())
	}
	if !soon(func() bool { grown = heap() - before; return grown < callers*each && budget.Used() == used }) {
		t.Errorf("%d bytes more are held, %d of the budget", grown, budget.Used()-used)
	}
}

// soon says whether something comes to hold.
func soon(holds func() bool) bool {
	for end := time.Now().Add(patience / 2); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// A head counts until it is written, not until it is about to be.
func TestAHeadCountsUntilItIsWritten(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	budget := whole(t, new(Budget))
	d := through(t, &Router{Original: func(context.Context) (net.Conn, error) { return near, nil }, Routes: ada(nil), Budget: budget, HeadTimeout: patience})
	client := wireClient(t, d)
	_ = far.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(far, make([]byte, len(preface))); err != nil {
		t.Fatal(err)
	}
	original := newWire(t, far)
	if _, err := original.ReadFrame(); err != nil {
		t.Fatal(err)
	}
	original.WriteSettings()
	for range 2 { // what it is told, before the head
		if _, err := original.ReadFrame(); err != nil {
			t.Fatal(err)
		}
	}
	used := budget.Used()
	const size = 60 << 10
	long(client, "bob", size)
	head := make([]byte, frameHeader)
	if _, err := io.ReadFull(far, head); err != nil || head[3] != byte(http2.FrameHeaders) {
		t.Fatalf("%x, %v", head, err)
	}
	if more := budget.Used() - used; more < size {
		t.Errorf("%d bytes count of a head that is not written, of %d", more, size)
	}
	go io.Copy(io.Discard, far)
	if !soon(func() bool { return budget.Used() == used }) {
		t.Errorf("%d bytes count of a head that is written", budget.Used()-used)
	}
}

// Without memory a stream is refused, and its connection goes on.
func TestAStreamWithoutMemoryIsRefusedAlone(t *testing.T) {
	const size = 3*(peerMemory+connWindow) + spareMemory + frameSize
	for fields := range 20 {
		ended := func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
		silent := wireServer(t, func(w *wire) { _, _ = io.Copy(io.Discard, w.Conn) })
		w := wireClient(t, through(t, &Router{Original: silent, Routes: ada(ended), Budget: whole(t, &Budget{Size: size}), HeadTimeout: patience}))
		head := []string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "x", "x-user", "ada"}
		for i := range fields {
			head = append(head, fmt.Sprintf("x-field-%d", i), "some value")
		}
		refused := 0
		for id := uint32(1); id < 400 && refused < 5; id += 2 {
			w.head(id, false, head...)
			_ = w.WritePing(false, [8]byte{})
			for answered := false; !answered; {
				f, err := w.ReadFrame()
				if err != nil {
					t.Fatalf("%d fields: %v after %d refusals", fields, err, refused)
				}
				switch f := f.(type) {
				case *http2.RSTStreamFrame:
					if refused++; f.ErrCode != http2.ErrCodeRefusedStream {
						t.Errorf("%d fields: %v", fields, f)
					}
				case *http2.PingFrame:
					answered = true
				}
			}
		}
		if refused < 5 {
			t.Errorf("%d fields: %d refusals", fields, refused)
		}
	}
}

// Whatever ends a connection in the middle of something, no other one is made then, which nobody would close.
func TestNothingBeginsAfterTheEnd(t *testing.T) {
	mine, theirs := net.Pipe()
	defer theirs.Close()
	dialled := func(ctx context.Context) (net.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// So much that there is some again when the end has given its own back, and none before.
	budget := &Budget{Size: 2*(peerMemory+connWindow) + 2*streamMemory}
	p := &proxy{s: &session{r: &Router{Original: dialled}, ctx: ctx}, streams: map[uint32]*stream{}, backs: map[string]*peer{}}
	p.s.memory.budget = budget
	for range 2 {
		if !p.s.memory.reserve(peerMemory + connWindow) {
			t.Fatal("no memory")
		}
	}
	p.front = p.newPeer("", mine)
	laptop := p.newPeer("ada", nil)
	laptop.laptop = true
	p.peers, p.backs["ada"] = []*peer{laptop}, laptop
	p.mu.Lock()
	for id := uint32(1); id < 5; id += 2 {
		st := &stream{id: id, back: laptop}
		st.up.stream, st.down.stream = st, st
		st.up.from, p.lastID = p.front, id
		p.streams[id] = st
		st.up.push(p, piece{fields: []hpack.HeaderField{}})
	}
	for p.s.memory.take(1 << 10) {
	}
	for range freeControl { // one more is the end
		p.front.sendReset(99, 0)
	}
	laptop.stepAside()
	if p.over == nil {
		t.Error("it goes on")
	}
	if p.toLaptop(Route{Name: "bob", Dial: dialled}) != nil || p.toOriginal() != nil || len(p.peers) != 1 {
		t.Errorf("%d connections after the end", len(p.peers))
	}
	p.mu.Unlock()
	cancel()
	p.wg.Wait()
}

// A head that fails while it is read has nothing of the memory.
func TestAHeadThatFailsGivesItsMemoryBack(t *testing.T) {
	odd := wireServer(t, func(w *wire) {
		w.next()
		w.buf.Reset()
		_ = w.enc.WriteField(hpack.HeaderField{Name: "x-long", Value: strings.Repeat("x", 14000)})
		_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: append(w.buf.Bytes(), 0xff, 0xff, 0xff), EndHeaders: true})
		w.next()
	})
	silent := wireServer(t, func(w *wire) { _, _ = io.Copy(io.Discard, w.Conn) })
	budget := whole(t, new(Budget))
	w := wireClient(t, through(t, &Router{Original: silent, Routes: ada(odd), Budget: budget, HeadTimeout: patience}))
	w.get(1, "bob", false) // keeps the connection
	w.head(3, false)
	used := int64(0)
	for id := uint32(5); id < 21; id += 2 {
		w.get(id, "ada", true)
		if f, ok := w.next().(*http2.RSTStreamFrame); !ok || f.StreamID != id {
			t.Fatalf("%v", f)
		}
		now := int64(-1)
		if !soon(func() bool { now = budget.Used(); return used == 0 || now == used }) {
			t.Fatalf("%d bytes of the budget, %d before", now, used)
		}
		used = now
	}
}

// A laptop's answer for which there is no memory is not said to be odd.
func TestAnAnswerWithoutMemorySaysSo(t *testing.T) {
	var log bytes.Buffer
	goOn := make(chan struct{})
	laptop := server(t, func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, len(adas)))
		<-goOn
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	budget := &Budget{Size: 1}
	ended := make(chan struct{})
	r := &Router{Original: server(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }), Routes: ada(laptop), Budget: budget,
		Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	mine, theirs := net.Pipe()
	defer mine.Close()
	_ = mine.SetDeadline(time.Now().Add(patience))
	go func() { defer close(ended); _ = r.Serve(context.Background(), theirs) }()
	_, _ = io.WriteString(mine, adas)
	_ = mine.SetWriteDeadline(time.Now().Add(stall))
	_, _ = io.WriteString(mine, strings.Repeat(plain, 1000)) // until it takes no more
	close(goOn)
	<-ended
	if got := log.String(); !strings.Contains(got, errFull.Error()) || strings.Contains(got, errUnclear.Error()) {
		t.Errorf("log %q", got)
	}
}
