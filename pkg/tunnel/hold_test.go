package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/internal/servertest"
)

// heapNow is the memory in use that no collection frees.
func heapNow() int64 {
	runtime.GC()
	runtime.GC() // pools keep theirs for one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func podSession(e *ends) *session {
	e.t.Helper()
	s, err := e.server.current()
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

// flood opens n streams from the pod, each of which the laptop writes data. What its
// writes ended with comes on the channel.
func flood(e *ends, n int, data []byte) (pod []*Stream, written <-chan error) {
	e.t.Helper()
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for range n {
		st, laptop := e.streams()
		pod = append(pod, st)
		wg.Go(func() {
			_, err := laptop.Write(data)
			errs <- err
			_ = laptop.Close()
		})
	}
	e.t.Cleanup(func() {
		for _, st := range pod {
			_ = st.Close()
		}
		wg.Wait()
	})
	return pod, errs
}

// full says whether the other end may send no more.
func (w *window) full() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got == w.limit
}

// Callers who ask for much and read nothing have no more held for them than there is room for. Who reads is read on, as fast as before.
func TestUnreadIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("moves gigabytes")
	}
	t.Run("bulk lane", func(t *testing.T) { unreadIsBounded(t, 2000, true) })
	t.Run("one carrier", func(t *testing.T) { unreadIsBounded(t, 1000, false) })
}

func unreadIsBounded(t *testing.T, streams int, lane bool) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()

	// One that is read, all the time.
	read, laptop := e.streams()
	s := read.s
	if !lane {
		s.bulk.over.Store(true)
		laptop.s.bulk.over.Store(true)
	}
	var got atomic.Int64
	var wg sync.WaitGroup
	block := randomBytes(1 << 20)
	wg.Go(func() {
		for {
			if _, err := laptop.Write(block); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond) // so that the others come to their turn
		}
	})
	wg.Go(func() {
		buf := make([]byte, len(block))
		for {
			n, err := io.ReadFull(read, buf)
			got.Add(int64(n))
			if !bytes.Equal(buf[:n], block[:n]) {
				t.Error("other bytes came than were sent")
				return
			}
			if err != nil {
				return
			}
		}
	})
	speed := func(d time.Duration) float64 {
		before := got.Load()
		time.Sleep(d)
		return float64(got.Load()-before) / 1e6 / d.Seconds()
	}
	time.Sleep(time.Second)
	alone := speed(time.Second)

	before := heapNow()
	data := randomBytes(firstWindow + maxFrame)
	pod, written := flood(e, streams, data)
	var most int64
	for i, st := range pod {
		for !st.isReset() && !st.receive.full() {
			time.Sleep(time.Millisecond)
		}
		if i%(streams/10) == 0 {
			most = max(most, heapNow()-before)
		}
	}
	most = max(most, heapNow()-before)
	beside := speed(2 * time.Second)
	t.Logf("held at most %d MiB (%d counted); the stream that is read: %.0f MB/s before, %.0f beside",
		most>>20, s.held.used.Load()>>20, alone, beside)
	if used := s.held.used.Load(); used > podHold+(4<<20) {
		t.Errorf("%d MiB are counted as held, limit %d", used>>20, podHold>>20)
	}
	if limit := int64(podHold + 64<<20); most > limit { // beside it: both ends of 2,000 streams
		t.Errorf("%d MiB more memory in use, want at most %d", most>>20, limit>>20)
	}
	if beside < alone/4 { // the machine may be busy
		t.Errorf("the stream that is read: %.0f MB/s beside those that are not, %.0f without", beside, alone)
	}

	read.Reset()
	wg.Wait()
	_ = laptop.Close()

	// The others are whole, or reset.
	whole := 0
	for _, st := range pod {
		b, err := io.ReadAll(st)
		switch {
		case err == nil && bytes.Equal(b, data):
			whole++
		case errors.Is(err, syscall.ECONNRESET) && st.isReset():
		default:
			t.Fatalf("%d bytes, %v", len(b), err)
		}
	}
	if whole < 100 || whole == streams {
		t.Errorf("%d streams of %d were whole", whole, streams)
	}
	for range pod {
		if err := <-written; err == nil {
			whole--
		} else {
			wantErr(t, "a write that nobody reads", err, syscall.ECONNRESET)
		}
	}
	if whole != 0 {
		t.Errorf("%d more streams were read to their end than written", whole)
	}
}

// A caller whose connection is spliced meets the reset, and nothing is held for it any more.
func TestUnreadSpliceIsReset(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	s := podSession(e)
	const callers, answer = 8, 2 << 20
	s.held.limit = callers / 2 * firstWindow // some of what is sent is in buffers of the kernel
	var spliced sync.WaitGroup
	data := make(chan error, callers)
	address := servertest.TCP(t, func(c *net.TCPConn) {
		_ = c.SetWriteBuffer(16 << 10)
		st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80", Peer: c.RemoteAddr().(*net.TCPAddr).AddrPort()})
		if err != nil {
			t.Error(err)
			return
		}
		spliced.Add(1)
		defer spliced.Done()
		_ = Splice(c, st)
	})
	var conns []*net.TCPConn
	for range callers {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).SetReadBuffer(32 << 10)
		conns = append(conns, c.(*net.TCPConn))
		laptop := <-e.inbound
		go func() {
			_, err := laptop.Write(make([]byte, answer))
			data <- err
			_ = laptop.Close()
		}()
	}
	wantErr(t, "the laptop's write", <-data, syscall.ECONNRESET)
	var reset atomic.Int32
	var reading sync.WaitGroup
	for _, c := range conns {
		reading.Go(func() {
			switch n, err := io.Copy(io.Discard, c); {
			case errors.Is(err, syscall.ECONNRESET):
				reset.Add(1)
			case n != answer || err != nil:
				t.Errorf("a caller that reads at last: %d bytes, %v", n, err)
			}
		})
	}
	reading.Wait()
	if n := reset.Load(); n == 0 || n == callers {
		t.Errorf("%d of %d callers were reset", n, callers)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	spliced.Wait()
	for range callers - 1 {
		<-data
	}
	for s.held.used.Load() != 0 {
		time.Sleep(time.Millisecond) // the other end's FINs
	}
}

// A splice with a caller that takes nothing at all keeps its buffer no longer than that: it does not wait for what came before the reset.
func TestUnreadSpliceDoesNotLinger(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	s := podSession(e)
	s.held.limit = firstWindow / 2
	pod, laptop := e.streams()
	caller, proxy := net.Pipe()
	done := make(chan struct{})
	go func() {
		_ = Splice(proxy, pod)
		close(done)
	}()
	_, err := laptop.Write(make([]byte, 2*firstWindow))
	wantErr(t, "the laptop's write", err, syscall.ECONNRESET)
	select {
	case <-done:
	case <-time.After(resetLinger / 2):
		t.Error("the splice waits for a caller who reads nothing")
		_ = caller.Close()
		<-done
	}
	_ = laptop.Close()
	for s.held.used.Load() != 0 {
		time.Sleep(time.Millisecond) // the other end's FIN
	}
}

// A buffer that yamux has filled once and that is empty again is freed when there is need, and nobody reset for it.
func TestReadStreamsKeepNoMemory(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	s := podSession(e)
	const streams = 40
	s.held.limit = streams / 4 * muxGrowth * firstWindow / 2
	for range streams {
		pod, laptop := e.streams()
		data := randomBytes(firstWindow / 2)
		go func() { _, _ = laptop.Write(data) }()
		for pod.receive.waiting() < firstWindow/2 {
			time.Sleep(time.Millisecond)
		}
		b := make([]byte, len(data))
		if _, err := io.ReadFull(pod, b); err != nil || !bytes.Equal(b, data) {
			t.Fatalf("wrong bytes, %v", err)
		}
		t.Cleanup(func() { _ = errors.Join(pod.Close(), laptop.Close()) })
	}
	for end := time.Now().Add(10 * time.Second); s.held.used.Load() > s.held.limit; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes are held, limit %d", s.held.used.Load(), s.held.limit)
		}
	}
}

// Callers who read all the time, if slowly, are not reset: what their windows may grow by together leaves room for the first of each.
func TestSteadyReadersAreNotReset(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	const readers, take = 48, 64 << 10
	end := time.Now().Add(4 * time.Second)
	var wg sync.WaitGroup
	for range readers {
		pod, laptop := e.streams()
		wg.Go(func() {
			for b := make([]byte, take); time.Now().Before(end); {
				if _, err := laptop.Write(b); err != nil {
					t.Errorf("write: %v", err)
					break
				}
			}
			_ = laptop.Close()
		})
		wg.Go(func() {
			defer pod.Close()
			for b := make([]byte, take); ; {
				if _, err := pod.Read(b); err != nil {
					if !errors.Is(err, io.EOF) {
						t.Errorf("read: %v", err)
					}
					return
				}
				if time.Now().Before(end) {
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
}

// A window whose reader is behind doubles as it is read, and halves while memory is scarce; what was allowed stays allowed.
func TestAWindowShrinksWhileMemoryIsScarce(t *testing.T) {
	h := new(hold)
	h.init(false)
	w, b := window{limit: firstWindow, size: firstWindow, held: h}, new(budget)
	for i, want := range []uint64{2 * firstWindow, 4 * firstWindow, 2 * firstWindow, firstWindow, leastWindow, leastWindow} {
		if i == 2 {
			h.limit = 1
		}
		allowed, grown := w.limit, b.used
		if !w.arrived(uint32(allowed-w.got), true) {
			t.Fatalf("turn %d: what was allowed has no room", i)
		}
		w.read(int(allowed-w.taken-w.size/2), b)
		if w.size != want || w.limit < allowed {
			t.Errorf("turn %d: a window of %d bytes to %d, want %d to %d at least", i, w.size, w.limit, want, allowed)
		}
		if h.scarce() && b.used != grown/2 {
			t.Errorf("turn %d: it keeps %d bytes of the budget, of %d", i, b.used, grown)
		}
	}
}

// The sessions of one process share the limit: who has more than its share makes room, also when it is another to which more comes.
func TestSessionsShareTheirMemory(t *testing.T) {
	shared := &Memory{}
	var sessions []*session
	var all [][]*Stream
	for range 2 {
		e := newEnds(t, tcpNetwork(t))
		e.server.Memory = shared
		e.start().waitReady()
		s := podSession(e)
		s.held.limit = 10 * muxGrowth * firstWindow
		first, laptop := e.streams()
		s.bulk.over.Store(true)
		laptop.s.bulk.over.Store(true)
		_ = errors.Join(first.Close(), laptop.Close())
		sessions = append(sessions, s)
		n := 9
		if len(sessions) == 2 {
			n = 3
		}
		pod, _ := flood(e, n, make([]byte, firstWindow+maxFrame))
		for _, st := range pod {
			for !st.isReset() && !st.receive.full() {
				time.Sleep(time.Millisecond)
			}
		}
		all = append(all, pod)
	}
	deadline := time.Now().Add(10 * time.Second)
	for shared.used() > sessions[0].held.limit {
		if time.Now().After(deadline) {
			t.Fatalf("%d KiB are held, limit %d", shared.used()>>10, sessions[0].held.limit>>10)
		}
		time.Sleep(time.Millisecond)
	}
	reset := func(pod []*Stream) (n int) {
		for _, st := range pod {
			if st.isReset() {
				n++
			}
		}
		return n
	}
	if many, few := reset(all[0]), reset(all[1]); many == 0 || few > 0 {
		t.Errorf("%d reset of the session that has most, %d of the other", many, few)
	}
}

// Where all is read memory is not scarce for long, and a window that has shrunk has room for a datagram.
func TestScarcityPasses(t *testing.T) {
	e := newEnds(t, pipeNetwork(t)).start().waitReady()
	const n, streams = 128 << 10, 12
	s := podSession(e)
	s.held.limit = streams * muxGrowth * n
	var pods, laptops []*Stream
	for range streams {
		pod, laptop := e.streams()
		pods, laptops = append(pods, pod), append(laptops, laptop)
		if err := pod.WaitStatus(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := laptop.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		for pod.receive.waiting() < n {
			time.Sleep(time.Millisecond)
		}
		if _, err := io.ReadFull(pod, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(30 * time.Second); s.held.scarce(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d bytes are held, and all is read", s.held.used.Load(), s.held.limit)
		}
		// Something moves.
		if _, err := laptops[0].Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(pods[0], make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for i, laptop := range laptops {
		for range 5 {
			if err := laptop.writeWhole(make([]byte, maxDatagram+2), time.Now().Add(10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(pods[i], make([]byte, maxDatagram+2)); err != nil {
				t.Fatal(err)
			}
		}
		_ = errors.Join(laptop.Close(), pods[i].Close())
	}
}

func TestOverdue(t *testing.T) {
	begin := time.Now()
	few, many := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	of := func(caller netip.Addr, memory int64, age time.Duration) stalled {
		return stalled{caller: caller, memory: memory, since: begin.Add(-age)}
	}
	reads := of(many, 100, 0)
	paused := of(few, 250, time.Hour)
	list := []stalled{reads, of(many, 100, time.Second), paused, of(many, 100, 3*time.Second), of(many, 100, 2*time.Second)}
	for _, c := range []struct {
		excess int64
		want   []stalled
	}{
		{0, nil},
		{1, []stalled{of(many, 100, 3*time.Second)}},
		{200, []stalled{of(many, 100, 3*time.Second), of(many, 100, 2*time.Second)}},
		{201, []stalled{of(many, 100, 3*time.Second), of(many, 100, 2*time.Second), paused}},
		{1000, []stalled{of(many, 100, 3*time.Second), of(many, 100, 2*time.Second), paused, of(many, 100, time.Second), reads}},
	} {
		if got := overdue(slices.Clone(list), c.excess); !slices.Equal(got, c.want) {
			t.Errorf("for %d bytes: %v, want %v", c.excess, got, c.want)
		}
	}
}
