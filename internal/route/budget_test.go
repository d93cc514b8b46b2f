package route

import (
	"context"
	"io"
	"net"
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
			if grown := heap() - before; used > size || grown > size*3/2+callers*idle {
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

// heap is what is in use of it.
func heap() int64 {
	runtime.GC()
	runtime.GC() // for what pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
