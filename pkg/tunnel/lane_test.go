package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// moveBoth sends enough each way that both directions of the stream move, and reads all of it.
func moveBoth(t *testing.T, a, b *Stream) {
	t.Helper()
	var wg sync.WaitGroup
	for _, way := range [][2]*Stream{{a, b}, {b, a}} {
		stop := make(chan struct{})
		wg.Go(func() {
			buf := make([]byte, maxFrame)
			for !way[0].hasLeft.Load() {
				if _, err := way[0].Write(buf); err != nil {
					t.Error(err)
					break
				}
			}
			close(stop)
			_, _ = way[0].Write([]byte{1})
		})
		wg.Go(func() {
			buf := make([]byte, maxFrame)
			for {
				n, err := way[1].Read(buf)
				if err != nil || n > 0 && buf[n-1] == 1 {
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestBulkMoves: a stream that sends much gets the second carrier, each way, and arrives exactly, up to its half-close.
func TestBulkMoves(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		pod, laptop := e.streams()
		var wg sync.WaitGroup
		for i, way := range [][2]*Stream{{pod, laptop}, {laptop, pod}} {
			sent, got := sha256.New(), sha256.New()
			var n, m int64
			var pair sync.WaitGroup
			pair.Go(func() {
				source := rand.NewChaCha8([32]byte{byte(i)})
				buf := make([]byte, 100_000)
				for range 20_000 { // bounded: moving is not a matter of how much, but of when the carrier is there
					_, _ = source.Read(buf)
					sent.Write(buf)
					w, err := way[0].Write(buf)
					n += int64(w)
					if err != nil {
						t.Errorf("write: %v", err)
						break
					}
					if way[0].hasLeft.Load() && n > 8<<20 {
						break
					}
				}
				if !way[0].hasLeft.Load() {
					t.Error("not moved")
				}
				if err := way[0].CloseWrite(); err != nil {
					t.Errorf("close write: %v", err)
				}
			})
			pair.Go(func() {
				var err error
				if m, err = io.Copy(got, onlyReader{way[1]}); err != nil {
					t.Errorf("read: %v", err)
				}
			})
			wg.Go(func() {
				pair.Wait()
				if n != m || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
					t.Errorf("sent %d bytes, got %d, or others", n, m)
				}
			})
		}
		wg.Wait()
		_, _ = pod.Close(), laptop.Close()
		e.wantNoStreams()
	})
}

// TestACrowdMovesSooner: where many wait for their turn on the first carrier, streams move that have sent little, and arrive exactly.
func TestACrowdMovesSooner(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	data := randomBytes(bulkAfter - maxFrame)
	var moved atomic.Int32
	for round := 0; round < 100 && moved.Load() == 0; round++ { // that they wait is a matter of the scheduler's
		var wg sync.WaitGroup
		for range 64 {
			pod, laptop := e.streams()
			wg.Go(func() {
				if _, err := pod.Write(data); err != nil {
					t.Error(err)
				}
				if pod.hasLeft.Load() {
					moved.Add(1)
				}
				_ = pod.CloseWrite()
			})
			wg.Go(func() {
				if got, err := io.ReadAll(laptop); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%d bytes of %d, or others, %v", len(got), len(data), err)
				}
				_ = errors.Join(laptop.Close(), pod.Close())
			})
		}
		wg.Wait()
	}
	if moved.Load() == 0 {
		t.Error("none has moved")
	}
}

// stalling is a carrier that can be made to bring nothing.
type stalling struct {
	net.Conn
	now *atomic.Bool
}

func (c stalling) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for c.now.Load() {
		time.Sleep(time.Millisecond)
	}
	return n, err
}

// stallFirst makes what the first carrier brings to the laptop wait while the result is true.
func stallFirst(e *ends) *atomic.Bool {
	var now, made atomic.Bool
	dial := e.client.Carrier
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, peer, err := dial(ctx)
		if err == nil && !made.Swap(true) {
			c = stalling{c, &now}
		}
		return c, peer, err
	}
	return &now
}

// TestTheLaneDoesNotOvertakeAStreamsBeginning: what is sent of a stream of which the other end does not know yet arrives, however slow
// the first carrier is.
func TestTheLaneDoesNotOvertakeAStreamsBeginning(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	stalled := stallFirst(e)
	e.start().waitReady()
	pod, laptop := e.streams()
	moveBoth(t, pod, laptop)
	stalled.Store(true)
	data := randomBytes(bulkAfter + 2*maxFrame)
	var sending sync.WaitGroup
	const streams = 8
	for range streams {
		sending.Go(func() {
			st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
			if err != nil {
				t.Error(err)
				return
			}
			t.Cleanup(func() { _ = st.Close() })
			if _, err := st.Write(data); err != nil {
				t.Error(err)
			}
			_ = st.CloseWrite()
		})
	}
	time.Sleep(200 * time.Millisecond) // long enough for all that can go by the lane
	stalled.Store(false)
	for range streams {
		st := <-e.inbound
		if err := st.Accept(); err != nil {
			t.Error(err)
		}
		_ = st.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%d bytes of %d, or others, %v", len(got), len(data), err)
		}
		_ = st.Close()
	}
	sending.Wait()
	_ = errors.Join(pod.Close(), laptop.Close())
}

// TestAReaderThatWakesLateSeesTheReset: this end resets a stream, and the other's end comes before its reader wakes: that is no good end.
func TestAReaderThatWakesLateSeesTheReset(t *testing.T) {
	e := newEnds(t, pipeNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	got := make(chan error)
	go func() {
		_, err := laptop.Read(make([]byte, 10))
		got <- err
	}()
	time.Sleep(100 * time.Millisecond) // it waits
	laptop.mu.Lock()                   // resetFor, but for the reader's wake
	laptop.reset = true
	laptop.mu.Unlock()
	laptop.s.forget(laptop)
	pod.Reset()
	wantErr(t, "the read", <-got, syscall.ECONNRESET)
	_ = errors.Join(pod.Close(), laptop.Close())
}

// heldBack is a carrier of which nothing is read after the first answer once the other end uses it.
type heldBack struct {
	net.Conn
	used   func() bool
	closed chan struct{}
	once   sync.Once
}

func (c *heldBack) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func (c *heldBack) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(300 * time.Millisecond)
	if c.used() {
		<-c.closed
	}
	return n, err
}

// TestALaneThatNeverComes: the pod has a first bulk carrier and moves a stream, and the answer that says so never reaches the laptop. The
// stream is reset, at both ends, when the session's window is over.
func TestALaneThatNeverComes(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.client.ResumeWindow = time.Second
	var dials atomic.Int32
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c, err := e.network.dial(ctx)
		if err == nil && dials.Add(1) > 1 {
			s, err := e.server.current()
			if err != nil {
				return c, "pod-1", nil // the session is over
			}
			c = &heldBack{Conn: c, closed: make(chan struct{}), used: s.bulk.conn.linked}
		}
		return c, "pod-1", err
	}
	e.start().waitReady()
	pod, laptop := e.streams()
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(io.Discard, onlyRead{laptop}) })
	buf := make([]byte, maxFrame)
	var err error
	for end := time.Now().Add(30 * time.Second); err == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err = pod.Write(buf)
	}
	wantErr(t, "a write to a stream whose lane does not come", err, syscall.ECONNRESET)
	_ = errors.Join(pod.Close(), laptop.Close())
	reading.Wait()
}

// TestALaneGivenUpBeforeAStreamIsAccepted: the stream has moved, and is not taken from yamux yet.
func TestALaneGivenUpBeforeAStreamIsAccepted(t *testing.T) {
	e := newEnds(t, pipeNetwork(t)).start().waitReady()
	s := podSession(e)
	if err := s.seeFrame(frame{stream: 1001, flags: flagSYN}); err != nil {
		t.Fatal(err)
	}
	s.stream(1001).moved.here.Store(true)
	s.bulk.giveUp(errors.New("lost"))
	c, err := e.client.DialContext(t.Context(), "tcp", "orders:80") // goes on
	if err == nil {
		_ = c.Close()
	}
	if s.ctx.Err() != nil {
		t.Errorf("the session has ended: %v", s.err)
	}
}

// TestMovedStreamEnds: what Close, Reset and a deadline mean does not depend on the lane.
func TestMovedStreamEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end   func(*Stream)
		read  error
		write error
	}{
		"close": {func(st *Stream) { _ = st.Close() }, io.EOF, syscall.EPIPE},
		"reset": {func(st *Stream) { st.Reset() }, syscall.ECONNRESET, syscall.ECONNRESET},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t, tcpNetwork(t)).start().waitReady()
			pod, laptop := e.streams()
			moveBoth(t, pod, laptop)
			_ = laptop.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := laptop.Read(make([]byte, 1))
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("read beyond a deadline: %v", err)
			}
			_ = laptop.SetReadDeadline(time.Time{})
			if name == "close" {
				send(t, pod, "last")
				c.end(pod)
				wantRead(t, laptop, "last")
			} else {
				c.end(pod)
			}
			_, err = laptop.Read(make([]byte, 1))
			wantErr(t, "read", err, c.read)
			for err = nil; err == nil; {
				_, err = laptop.Write([]byte("x"))
			}
			wantErr(t, "write", err, c.write)
			_ = laptop.Close()
			_ = pod.Close()
			e.wantNoStreams()
		})
	}
}

// TestAMovedStreamNobodyReads holds its window and no more, and the others go on beside it.
func TestAMovedStreamNobodyReads(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	moveBoth(t, pod, laptop)
	_ = pod.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := io.Copy(pod, onlyReader{endless{}})
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() || n > maxWindow {
		t.Errorf("wrote %d bytes: %v; want a timeout and at most %d", n, err, maxWindow)
	}
	beside, here := e.streams()
	moveBoth(t, beside, here)
	for _, st := range []*Stream{pod, laptop, beside, here} {
		st.Reset()
		_ = st.Close()
	}
	e.wantNoStreams()
}

// TestWithoutASecondCarrier: when there is none, bulk stays where it is.
func TestWithoutASecondCarrier(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	dial := e.client.Carrier
	var carriers atomic.Int32
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		if carriers.Add(1) > 1 {
			return nil, "", errors.New("one is all you get")
		}
		return dial(ctx)
	}
	e.start().waitReady()
	pod, laptop := e.streams()
	const size = 32 << 20
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.CopyN(pod, onlyReader{endless{}}, size)
		_ = pod.CloseWrite()
	})
	if n, err := io.Copy(io.Discard, onlyReader{laptop}); n != size || err != nil {
		t.Errorf("got %d bytes: %v", n, err)
	}
	wg.Wait()
	if carriers.Load() < 2 {
		t.Error("no second carrier was tried")
	}
	_, _ = pod.Close(), laptop.Close()
	e.wantNoStreams()
}

// TestTheLaneIsLost: beyond the window what has moved is reset on both ends, and the rest of the session goes on, on one carrier.
func TestTheLaneIsLost(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.client.ResumeWindow = 200 * time.Millisecond
	dial := e.client.Carrier
	var mu sync.Mutex
	var second net.Conn
	carriers := 0
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		mu.Lock()
		defer mu.Unlock()
		if carriers++; carriers > 2 {
			return nil, "", errors.New("no more")
		}
		conn, peer, err := dial(ctx)
		second = conn
		return conn, peer, err
	}
	e.start().waitReady()
	session, _ := e.client.wait(t.Context(), true)
	pod, laptop := e.streams()
	quietPod, quietLaptop := e.streams()
	moveBoth(t, pod, laptop)
	mu.Lock()
	_ = second.Close()
	mu.Unlock()
	for _, st := range []*Stream{pod, laptop} {
		_, err := st.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNRESET)
		_ = st.Close()
	}
	send(t, quietPod, "still here")
	wantRead(t, quietLaptop, "still here")
	if now, _ := e.client.wait(t.Context(), true); now != session {
		t.Error("another session")
	}
	_, _ = quietPod.Close(), quietLaptop.Close()
	e.wantNoStreams()
}

// TestADeadLaneIsReplaced: a bulk carrier that swallows everything is noticed within 15 s, and the stream goes on.
func TestADeadLaneIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		carriers := make(chan *badConn, 10)
		cuttable(e).wrap = func(conn net.Conn) net.Conn {
			bad := newBadConn(conn)
			carriers <- bad
			return bad
		}
		e.start().waitReady()
		defer e.close()
		<-carriers
		pod, laptop := e.streams()
		moveBoth(t, pod, laptop)
		lane := <-carriers
		time.Sleep(pingEvery + pingEvery/2) // bubble time: a ping has been answered
		start := time.Now()
		lane.swallow.Store(true)
		lane.deaf.Store(true)
		send(t, pod, "through the hole")
		wantRead(t, laptop, "through the hole")
		if took := time.Since(start); took > deadAfter+clockEvery {
			t.Errorf("healed after %v", took)
		}
		_ = lane.Conn.Close()
		_, _ = pod.Close(), laptop.Close()
		e.wantNoStreams()
	})
}

// TestTheLaneRests: a carrier that no stream uses is let go, however long that lasts, and another one comes when one sends much again,
// whichever end that is. A stream that has moved keeps it.
func TestTheLaneRests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		cut := cuttable(e)
		carriers := func() int {
			cut.mu.Lock()
			defer cut.mu.Unlock()
			return len(cut.carriers)
		}
		e.start().waitReady()
		defer e.close()
		session, _ := e.client.wait(t.Context(), true)
		for round := range 3 {
			pod, laptop := e.streams()
			from, to := pod, laptop
			if round == 2 {
				from, to = laptop, pod
			}
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = io.Copy(io.Discard, onlyReader{to}) })
			buf := make([]byte, maxFrame)
			for !from.hasLeft.Load() {
				if _, err := from.Write(buf); err != nil {
					t.Fatal(err)
				}
			}
			if got, want := carriers(), 2+round; got != want {
				t.Errorf("round %d: %d carriers were made, want %d", round, got, want)
			}
			time.Sleep(2 * laneIdle)
			if !session.bulk.open() {
				t.Errorf("round %d: let go while a stream uses it", round)
			}
			_ = from.CloseWrite()
			wg.Wait()
			_, _ = pod.Close(), laptop.Close()
			e.wantNoStreams()
			time.Sleep(pingEvery + laneIdle + 2*clockEvery) // the last that was sent is acknowledged with a ping at the latest
			if session.bulk.open() {
				t.Errorf("round %d: not let go", round)
			}
			time.Sleep(2 * defaultResumeWindow)
		}
	})
}

// TestTheEndsAgreeOnRest: when one end has closed a stream that moved, and whoever has the other end does nothing, the carrier is let go
// once and not asked for again, and what had arrived can still be read. Without a resume window nothing is let go.
func TestTheEndsAgreeOnRest(t *testing.T) {
	for name, window := range map[string]time.Duration{"default": 0, "none": -1} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := newEnds(t, pipeNetwork(t))
				e.client.ResumeWindow = window
				cut := cuttable(e)
				e.start().waitReady()
				defer e.close()
				pod, laptop := e.streams()
				moveBoth(t, pod, laptop)
				send(t, laptop, "last")
				_ = laptop.Close()
				time.Sleep(5 * time.Minute)
				cut.mu.Lock()
				if n := len(cut.carriers); n != 2 {
					t.Errorf("%d carriers were made", n)
				}
				cut.mu.Unlock()
				if let := !pod.s.bulk.open(); let != (window == 0) {
					t.Errorf("let go: %v", let)
				}
				wantRead(t, pod, "last")
				_ = pod.Close()
				e.wantNoStreams()
			})
		})
	}
}

// TestMovedWordsOutliveTheSession: what has arrived, up to its end, can be read when the session is over.
func TestMovedWordsOutliveTheSession(t *testing.T) {
	for range 10 {
		e := newEnds(t, tcpNetwork(t)).start().waitReady()
		pod, laptop := e.streams()
		moveBoth(t, pod, laptop)
		send(t, laptop, "last words")
		_ = laptop.CloseWrite()
		for !pod.moved.over() {
			time.Sleep(time.Millisecond) // there is no event for bytes on their way
		}
		laptop.s.kill(errors.New("bridge ends"))
		<-pod.s.ctx.Done()
		if b, err := io.ReadAll(onlyReader{pod}); err != nil || string(b) != "last words" {
			t.Errorf("%q, %v", b, err)
		}
		e.close()
	}
}

// TestAPodThatEndsResetsWhatMoved: connections that were under way end as reset, never as if their end had come.
func TestAPodThatEndsResetsWhatMoved(t *testing.T) {
	for range 5 {
		e := newEnds(t, tcpNetwork(t))
		e.server.Dial = echoTCP(t)
		e.start().waitReady()
		var busy, over sync.WaitGroup
		for range 16 {
			conn, err := e.client.DialContext(t.Context(), "tcp", "orders:80")
			if err != nil {
				t.Fatal(err)
			}
			busy.Add(1)
			over.Go(func() { _, _ = io.Copy(onlyWriter{conn}, endless{}) })
			over.Go(func() {
				st := conn.(*Stream)
				buf := make([]byte, maxFrame)
				var err error
				for moved := false; err == nil; {
					_, err = st.Read(buf)
					if !moved && (err != nil || st.moved.here.Load()) {
						moved = true
						busy.Done()
					}
				}
				wantErr(t, "read", err, syscall.ECONNRESET)
				_ = st.Close()
			})
		}
		busy.Wait()
		current, err := e.server.current()
		if err != nil {
			t.Fatal(err)
		}
		current.kill(errors.New("the pod ends"))
		over.Wait()
		e.close()
	}
}

// TestTheEndWaitsForTheLane: a bridge that ends in order has sent what was written before, on both carriers.
func TestTheEndWaitsForTheLane(t *testing.T) {
	for range 10 {
		e := newEnds(t, tcpNetwork(t)).start().waitReady()
		pod, laptop := e.streams()
		moveBoth(t, pod, laptop)
		const size = 200_000
		if _, err := laptop.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		_ = laptop.CloseWrite()
		laptop.s.bulk.conn.drain(lastTimeout)
		laptop.s.kill(errors.New("bridge ends"))
		<-pod.s.ctx.Done()
		if n, err := io.Copy(io.Discard, onlyReader{pod}); n != size {
			t.Errorf("%d bytes, %v", n, err)
		}
		e.close()
	}
}

// TestSmallFramesShareABuffer: what is kept for a reader is about what the window counts.
func TestSmallFramesShareABuffer(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	moveBoth(t, pod, laptop)
	_ = laptop.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for range 2000 {
		if _, err := laptop.Write(make([]byte, 1000)); err != nil {
			break
		}
	}
	laptop.s.bulk.conn.drain(lastTimeout)
	pod.moved.mu.Lock()
	kept, bytes := len(pod.moved.parts)*spliceBuffer, 0
	for _, p := range pod.moved.parts {
		bytes += p.end - p.begin
	}
	pod.moved.mu.Unlock()
	if bytes < 100_000 || kept > 2*bytes+2*spliceBuffer {
		t.Errorf("%d bytes for %d", kept, bytes)
	}
	for _, st := range []*Stream{pod, laptop} {
		st.Reset()
		_ = st.Close()
	}
	e.wantNoStreams()
}

// TestThePodGaveTheLaneUp: then the laptop does, what had moved is reset, and bulk goes on without it.
func TestThePodGaveTheLaneUp(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	moveBoth(t, pod, laptop)
	pod.s.bulk.giveUp(errors.New("a moment before the laptop"))
	for _, st := range []*Stream{pod, laptop} {
		_, err := st.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNRESET)
		_ = st.Close()
	}
	const size = 4 << 20
	beside, here := e.streams()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.CopyN(here, onlyReader{endless{}}, size)
		_ = here.CloseWrite()
	})
	n, err := io.Copy(io.Discard, onlyReader{beside})
	// It may have moved before the laptop knew, and is reset then: but it does not hang.
	if n != size && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%d bytes, %v", n, err)
	}
	wg.Wait()
	for !laptop.s.bulk.over.Load() {
		time.Sleep(time.Millisecond)
	}
	_, _ = beside.Close(), here.Close()
	e.wantNoStreams()
}

func TestLaneHeaderLimits(t *testing.T) {
	for name, bad := range map[string][laneHeader]byte{
		"type 0": {0, 0, 0, 1}, "type 3": {3, 0, 0, 0}, "data without data": {1}, "end with data": {2, 0, 0, 1}, "too long": {1, 0, 0x80, 1},
	} {
		if typ, id, n, err := parseLaneHeader(bad); err == nil {
			t.Errorf("%s: read %d, %d, %d", name, typ, id, n)
		}
	}
}

func TestGoldenLane(t *testing.T) {
	golden(t, "lane-data", append(appendLaneHeader(nil, laneData, 6, 5), "hello"...))
	golden(t, "lane-end", appendLaneHeader(nil, laneEnd, 6, 0))
}

func FuzzLaneHeader(f *testing.F) {
	f.Add(appendLaneHeader(nil, laneData, 6, 5))
	f.Add(appendLaneHeader(nil, laneEnd, 6, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var head [laneHeader]byte
		if copy(head[:], b) < laneHeader {
			return
		}
		typ, id, n, err := parseLaneHeader(head)
		if err == nil && !bytes.Equal(appendLaneHeader(nil, typ, id, n), head[:]) {
			t.Errorf("%x came back as %x", head, appendLaneHeader(nil, typ, id, n))
		}
	})
}
