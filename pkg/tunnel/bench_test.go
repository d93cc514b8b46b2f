package tunnel

import (
	"context"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bridge/internal/servertest"
)

// The benchmarks compare what a tunnel over loopback TCP carries with the loopback itself, in the same run.
// go test -run '^$' -bench . -count 5 ./pkg/tunnel

// benchPaths runs f with an opener that connects to a server served by serve: raw, and through the tunnel.
func benchPaths(b *testing.B, serve func(*net.TCPConn), f func(b *testing.B, dial func() (net.Conn, error))) {
	address := servertest.TCP(b, serve)
	b.Run("raw", func(b *testing.B) {
		f(b, func() (net.Conn, error) { return net.Dial("tcp", address) })
	})
	b.Run("tunnel", func(b *testing.B) {
		e := newEnds(b, tcpNetwork(b))
		e.server.Dial = dialTo(address)
		e.start().waitReady()
		defer e.close()
		f(b, func() (net.Conn, error) { return e.client.DialContext(context.Background(), "tcp", address) })
	})
}

func mustDial(b *testing.B, dial func() (net.Conn, error)) net.Conn {
	b.Helper()
	c, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkUp is bulk from the laptop, until the server has all of it.
func BenchmarkUp(b *testing.B) {
	benchPaths(b, func(c *net.TCPConn) {
		_, _ = io.Copy(io.Discard, onlyReader{c})
		_, _ = c.Write([]byte("!"))
	}, func(b *testing.B, dial func() (net.Conn, error)) {
		c := mustDial(b, dial)
		buf := make([]byte, maxFrame)
		b.SetBytes(maxFrame)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
		_, _ = io.ReadFull(c, buf[:1])
		_ = c.Close()
	})
}

// BenchmarkDown is bulk to the laptop.
func BenchmarkDown(b *testing.B) {
	benchPaths(b, func(c *net.TCPConn) {
		_, _ = io.Copy(c, onlyReader{endless{}})
	}, func(b *testing.B, dial func() (net.Conn, error)) {
		c := mustDial(b, dial)
		buf := make([]byte, maxFrame)
		b.SetBytes(maxFrame)
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.Close()
	})
}

func echoServe(c *net.TCPConn) { _, _ = io.Copy(c, onlyReader{c}) }

// BenchmarkRequests is 128 bytes there and back, on 32 connections at once.
func BenchmarkRequests(b *testing.B) {
	benchPaths(b, echoServe, func(b *testing.B, dial func() (net.Conn, error)) {
		const conns = 32
		work := make(chan struct{}, conns)
		var wg sync.WaitGroup
		for range conns {
			c := mustDial(b, dial)
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 128)
				for range work {
					if _, err := c.Write(buf); err != nil {
						b.Error(err)
					}
					if _, err := io.ReadFull(c, buf); err != nil {
						b.Error(err)
					}
				}
			})
		}
		for b.Loop() {
			work <- struct{}{}
		}
		close(work)
		wg.Wait()
	})
}

// BenchmarkEcho is one byte there and back on one idle connection.
func BenchmarkEcho(b *testing.B) {
	benchPaths(b, echoServe, func(b *testing.B, dial func() (net.Conn, error)) {
		c := mustDial(b, dial)
		buf := make([]byte, 1)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = c.Close()
	})
}

// BenchmarkEchoBesideBulk is BenchmarkEcho while eight more connections carry what they can, four each way. What counts is
// the quantiles; MB/s is the bulk's.
func BenchmarkEchoBesideBulk(b *testing.B) {
	const bulkUp, bulkDown, echoes = 'u', 'd', 'e'
	benchPaths(b, func(c *net.TCPConn) {
		what := make([]byte, 1)
		_, _ = io.ReadFull(c, what)
		switch what[0] {
		case bulkUp:
			_, _ = io.Copy(io.Discard, onlyReader{c})
		case bulkDown:
			_, _ = io.Copy(c, onlyReader{endless{}})
		default:
			echoServe(c)
		}
	}, func(b *testing.B, dial func() (net.Conn, error)) {
		start := func(what byte) net.Conn {
			c := mustDial(b, dial)
			if _, err := c.Write([]byte{what}); err != nil {
				b.Fatal(err)
			}
			return c
		}
		var moved atomic.Int64
		var wg sync.WaitGroup
		var conns []net.Conn
		for i := range 8 {
			what, move := byte(bulkUp), net.Conn.Write
			if i%2 == 1 {
				what, move = bulkDown, net.Conn.Read
			}
			c := start(what)
			conns = append(conns, c)
			wg.Go(func() {
				buf := make([]byte, maxFrame)
				for {
					n, err := move(c, buf)
					moved.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
		}
		c := start(echoes)
		conns = append(conns, c)
		buf := make([]byte, 1)
		var took []time.Duration
		began, before := time.Now(), moved.Load()
		for b.Loop() {
			sent := time.Now()
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(sent))
		}
		b.ReportMetric(float64(moved.Load()-before)/1e6/time.Since(began).Seconds(), "bulkMB/s")
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		for _, c := range conns {
			_ = c.Close()
		}
		wg.Wait()
	})
}

// BenchmarkOpen is connect, one byte there and back, close; eight at a time.
func BenchmarkOpen(b *testing.B) {
	benchPaths(b, echoServe, func(b *testing.B, dial func() (net.Conn, error)) {
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			buf := make([]byte, 1)
			for pb.Next() {
				c, err := dial()
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = c.Write(buf)
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Error(err)
				}
				_ = c.Close()
			}
		})
	})
}

// BenchmarkIdle opens connections, uses each once, and says what memory one then costs (both of its ends in the tunnel,
// and for raw none, together with the echo server's).
func BenchmarkIdle(b *testing.B) {
	benchPaths(b, echoServe, func(b *testing.B, dial func() (net.Conn, error)) {
		heap := func() uint64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapInuse + m.StackInuse
		}
		before := heap()
		var conns []net.Conn
		buf := make([]byte, 100)
		for b.Loop() {
			c := mustDial(b, dial)
			conns = append(conns, c)
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/float64(len(conns)), "B/conn")
		for _, c := range conns {
			_ = c.Close()
		}
	})
}
