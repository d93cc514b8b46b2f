package route

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
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

// stuff writes parts until all are written, or nobody takes them.
func stuff(c net.Conn, parts ...string) {
	for _, p := range parts {
		_ = c.SetWriteDeadline(time.Now().Add(stall))
		if _, err := io.WriteString(c, p); err != nil {
			return
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
	long := strings.Repeat("x", 8<<20)
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
			stuff(c, "GET / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\n"+strings.Repeat("a:\r\n", 15000)+"\r\n", plain)
		}},
		"a body": {stopped, func(c net.Conn) {
			stuff(c, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 1000000000\r\n\r\n", long)
		}},
		"requests ahead": {stopped, func(c net.Conn) {
			stuff(c, "POST / HTTP/1.1\r\nHost: x\r\nX-User: ada\r\nContent-Length: 60000\r\n\r\n"+strings.Repeat("x", 60000)+plain, strings.Repeat(plain, 10000))
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
			if grown := heap() - before; used > size || grown > 2*size+callers*idle {
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
