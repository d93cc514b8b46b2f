//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"bridge/pkg/tunnel"
)

// A connection through the real port-forward, the pod's sockets and back is a net.Conn by all rules. It runs alone:
// nettest gives 1,000 round trips one minute, however busy the machine is.
func TestExactIsANetConn(t *testing.T) {
	d := newDirect(t)
	for _, nearFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("near first %v", nearFirst), func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				near, far, err := d.pair()
				if err != nil {
					return nil, nil, nil, err
				}
				stop := func() { _, _ = near.Close(), far.Close() }
				if nearFirst {
					return near, far, stop, nil
				}
				return far, near, stop, nil
			})
		})
	}
}

// sendSum writes n bytes and ends the direction; it returns their sum.
func sendSum(c *tunnel.Stream, seed byte, n int64) (hash.Hash, error) {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(c, sum), io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)); err != nil {
		return nil, err
	}
	return sum, c.CloseWrite()
}

func TestExactBulkBothWays(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	size := soak[int64](1<<30, 32<<20)
	near, far := d.mustPair()
	var wg sync.WaitGroup
	for i, way := range [][2]*tunnel.Stream{{near, far}, {far, near}} {
		sent := make(chan []byte, 1)
		wg.Go(func() {
			sum, err := sendSum(way[0], byte(i), size)
			if err != nil {
				t.Error(err)
				_ = way[0].Close()
				sent <- nil
				return
			}
			sent <- sum.Sum(nil)
		})
		wg.Go(func() {
			got := sha256.New()
			if n, err := io.Copy(got, way[1]); n != size || err != nil {
				t.Errorf("%d of %d bytes, %v", n, size, err)
			}
			if !bytes.Equal(got.Sum(nil), <-sent) {
				t.Error("the bytes are not the same")
			}
		})
	}
	wg.Wait()
}

func echo(st *tunnel.Stream) {
	_, _ = io.Copy(st, struct{ io.Reader }{st})
	_ = st.CloseWrite()
}

// exchange sends data and expects it back, and then the end.
func exchange(st *tunnel.Stream, data []byte) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer st.Close()
	wg.Go(func() {
		if _, err := st.Write(data); err == nil {
			_ = st.CloseWrite()
		}
	})
	got, err := io.ReadAll(st)
	if err == nil && !bytes.Equal(got, data) {
		err = fmt.Errorf("got %d bytes back for %d, or others", len(got), len(data))
	}
	return err
}

// Two thousand connections are all open before the first is used, and all used at once.
func TestExactManyAtOnce(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	d.serveWith(echo)
	many := soak(2000, 300)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var open, wg sync.WaitGroup
	open.Add(many)
	for i := range many {
		wg.Go(func() {
			st, err := d.dial(ctx)
			open.Done()
			if err != nil {
				t.Error(err)
				return
			}
			open.Wait()
			if err := exchange(st, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 5000)); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// Connections come and go, and leave nothing behind at either end.
func TestExactShortConnectionsLeaveNothing(t *testing.T) {
	// Not parallel: it counts what the whole process has.
	d := newDirect(t)
	d.serveWith(echo)
	many := soak(50_000, 1500)
	run := func(n int) {
		t.Helper()
		const workers = 16
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := w; i < n; i += workers {
					st, err := d.dial(t.Context())
					if err == nil {
						err = exchange(st, []byte("short "+strconv.Itoa(i)))
					}
					if err != nil {
						t.Errorf("connection %d of %d: %v", i, n, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	run(many / 5) // pools, buffers and windows are what they will be
	before := d.usage()
	run(many)
	if t.Failed() {
		return
	}
	var after usage
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) { // the last ones are closing
		after = d.usage()
		if after.within(before) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d connections there is %+v, before them %+v", many, after, before)
		}
	}
	t.Logf("after %d connections %+v, before them %+v", many, after, before)
}

// usage is what the two ends hold. The pod's is 0 where it cannot be seen.
type usage struct {
	goroutines, descriptors int
	heap                    uint64 // bytes, after a collection
	podDescriptors          int
	podMemory               uint64 // bytes, resident
}

const (
	// spareGoroutines is what a process may have more for other reasons: idle HTTP connections to the API server and their like.
	spareGoroutines, spareDescriptors = 10, 5
	// spareMemory is more than a collector lags behind, and less than 1,500 connections hold.
	spareMemory = 24 << 20
)

func (u usage) within(before usage) bool {
	return u.goroutines <= before.goroutines+spareGoroutines && u.descriptors <= before.descriptors+spareDescriptors &&
		u.heap <= before.heap+spareMemory &&
		u.podDescriptors <= before.podDescriptors+spareDescriptors && u.podMemory <= before.podMemory+spareMemory
}

func (d *direct) usage() usage {
	d.t.Helper()
	runtime.GC()
	runtime.GC() // what was in pools goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u := usage{goroutines: runtime.NumGoroutine(), descriptors: d.descriptors("/proc/self"), heap: m.HeapAlloc}
	if s.embedded {
		pod := d.proxyProcess()
		u.podDescriptors = d.descriptors(pod)
		status, err := os.ReadFile(filepath.Join(pod, "status"))
		if err != nil {
			d.t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(status), "VmRSS:")
		if _, err := fmt.Sscanf(line, "%d kB", &u.podMemory); err != nil {
			d.t.Fatal(err)
		}
		u.podMemory <<= 10
	}
	return u
}

func (d *direct) descriptors(process string) int {
	d.t.Helper()
	all, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		d.t.Fatal(err)
	}
	return len(all)
}

// Ten thousand connections of connect are held idle through one proxy, within its memory, and so are as many of a swap; and
// all of them still work.
func TestExactIdleConnections(t *testing.T) {
	// Not parallel: it counts what the whole process has.
	d := newDirect(t)
	d.apply(fmt.Sprintf(clientYAML, s.image))
	d.apply(fmt.Sprintf(ordersYAML, s.image))
	d.awaitReady("app=client", 1)
	d.awaitReady("app=orders", 2)
	server := net.JoinHostPort(d.pods("app=orders")[0].Status.PodIP, "7000")
	many := soak(10_000, 500)
	before := d.usage()
	conns := make([]net.Conn, many)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	each := func(f func(i int) error) {
		t.Helper()
		const workers = 16
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := w; i < many; i += workers {
					if err := f(i); err != nil {
						t.Errorf("connection %d of %d: %v", i, many, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	line := []byte("still there?\n")
	ask := func(i int) error {
		if _, err := conns[i].Write(line); err != nil {
			return err
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(conns[i], got); err != nil || !bytes.Equal(got, line) {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	}
	each(func(i int) (err error) {
		if conns[i], err = d.client.DialContext(t.Context(), "tcp", server); err != nil {
			return err
		}
		if _, err := conns[i].Write([]byte("echo\n")); err != nil {
			return err
		}
		return ask(i)
	})
	if t.Failed() {
		return
	}
	held := d.usage()
	each(ask)
	each(func(i int) error { return conns[i].Close() })
	t.Logf("each of %d took %d bytes of the laptop's heap, and %d of the pod's memory: %+v, before %+v",
		many, (held.heap-min(held.heap, before.heap))/uint64(many), (held.podMemory-min(held.podMemory, before.podMemory))/uint64(many), held, before)

	d.serveWith(func(st *tunnel.Stream) { // as the sample's server does with "echo"
		r := bufio.NewReaderSize(st, 64)
		if _, err := r.ReadString('\n'); err != nil {
			return
		}
		_, _ = io.CopyBuffer(st, struct{ io.Reader }{r}, make([]byte, 64))
	})
	d.check("--what", "many", "--address", net.JoinHostPort(d.ip, strconv.Itoa(firstListen)), "--connections", strconv.Itoa(many))
	if s.embedded {
		t.Logf("after as many of a swap: %+v", d.usage())
	}
}

// A server that answers and closes at once loses nothing, however much is still on its way.
func TestExactAnswerAndClose(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	data := make([]byte, 200_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	d.serveWith(func(st *tunnel.Stream) { _, _ = st.Write(data) }) // and the stream is closed
	for i := range soak(1000, 50) {
		st, err := d.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(st)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("connection %d: %d of %d bytes, %v", i, len(got), len(data), err)
		}
		_ = st.Close()
	}
}

// A connection that nobody reads, full to the brim, holds up nobody but its writer.
func TestExactUnreadConnection(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	blocked, unread := d.mustPair()
	filling := make(chan error, 1)
	var written int64
	go func() {
		for {
			n, err := blocked.Write(make([]byte, 1<<20))
			written += int64(n)
			if err != nil {
				filling <- err
				return
			}
		}
	}()
	for range soak(200, 20) {
		near, far, err := d.pair()
		if err != nil {
			t.Fatal(err)
		}
		go echo(far)
		if err := exchange(near, bytes.Repeat([]byte("beside"), 100_000)); err != nil {
			t.Error(err)
		}
		_ = far.Close()
	}
	// It is not lost, either: what was written is there to be read, in order, once somebody does.
	_ = blocked.SetWriteDeadline(time.Now().Add(-time.Second))
	if err := <-filling; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	_ = blocked.SetWriteDeadline(time.Time{})
	_ = blocked.CloseWrite()
	if n, err := io.Copy(io.Discard, unread); n != written || err != nil {
		t.Errorf("%d of %d bytes, %v", n, written, err)
	}
}

func TestExactOneByteWrites(t *testing.T) {
	t.Parallel()
	d := newDirect(t)
	near, far := d.mustPair()
	data := make([]byte, soak(100_000, 5000))
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	var wg sync.WaitGroup
	for _, way := range [][2]*tunnel.Stream{{near, far}, {far, near}} {
		wg.Go(func() {
			for i := range data {
				if _, err := way[0].Write(data[i : i+1]); err != nil {
					t.Error(err)
					break
				}
			}
			_ = way[0].CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(way[1]); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d of %d bytes, or others, %v", len(got), len(data), err)
			}
		})
	}
	wg.Wait()
}
