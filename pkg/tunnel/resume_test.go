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
	"syscall"
	"testing"
	"time"
)

// cutter keeps the carriers that a client dials, and can refuse new ones.
type cutter struct {
	mu       sync.Mutex
	carriers []net.Conn
	refuse   error // dialling meets this
	wrap     func(net.Conn) net.Conn
	dialled  chan struct{} // capacity 1: a carrier was made
}

// cuttable makes e's client dial through a cutter.
func cuttable(e *ends) *cutter {
	c := &cutter{dialled: make(chan struct{}, 1)}
	dial := e.client.Carrier
	e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
		c.mu.Lock()
		refuse, wrap := c.refuse, c.wrap
		c.mu.Unlock()
		if refuse != nil {
			return nil, "", refuse
		}
		conn, peer, err := dial(ctx)
		if err != nil {
			return nil, "", err
		}
		if wrap != nil {
			conn = wrap(conn)
		}
		c.mu.Lock()
		c.carriers = append(c.carriers, conn)
		c.mu.Unlock()
		select {
		case c.dialled <- struct{}{}:
		default:
		}
		return conn, peer, nil
	}
	return c
}

// cut closes all carriers.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.carriers {
		_ = conn.Close()
	}
	c.carriers = nil
}

func (c *cutter) setRefuse(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = err
}

// phases gives a channel of the client's phases. Call it before start.
func (e *ends) phases() chan Phase {
	phases := make(chan Phase, 10000)
	e.client.OnState = func(s State) { phases <- s.Phase }
	return phases
}

func waitPhase(phases chan Phase, want Phase) {
	for p := range phases {
		if p == want {
			return
		}
	}
}

// TestCutUnderLoad cuts the carrier 100 times under 32 busy streams, 16 each way: no byte is lost, duplicated or
// reordered, and nobody notices.
func TestCutUnderLoad(t *testing.T) {
	cuts := 100
	if testing.Short() {
		cuts = 10
	}
	onAll(t, func(t *testing.T, e *ends) {
		c := cuttable(e)
		phases := e.phases()
		e.start().waitReady()
		session, _ := e.client.wait(context.Background(), true)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 32 {
			from, to := e.streams()
			if i%2 == 0 {
				from, to = to, from
			}
			sent, got := sha256.New(), sha256.New()
			var n, m int64
			var pair sync.WaitGroup
			pair.Go(func() {
				source := rand.NewChaCha8([32]byte{byte(i)})
				buf := make([]byte, 1+i*1000)
				for {
					select {
					case <-stop:
						_ = from.CloseWrite()
						return
					default:
					}
					_, _ = source.Read(buf)
					sent.Write(buf)
					w, err := from.Write(buf)
					n += int64(w)
					if err != nil {
						t.Errorf("stream %d: write: %v", i, err)
						return
					}
				}
			})
			pair.Go(func() {
				var err error
				if m, err = io.Copy(got, onlyReader{to}); err != nil {
					t.Errorf("stream %d: read: %v", i, err)
				}
			})
			wg.Go(func() {
				pair.Wait()
				if n != m || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
					t.Errorf("stream %d: sent %d bytes, got %d, or others", i, n, m)
				}
				_, _ = from.Close(), to.Close()
			})
		}
		waitPhase(phases, Ready)
		for range cuts {
			given := func() uint64 { return session.conn.end.Load() + session.bulk.conn.end.Load() }
			before := given()
			for given() < before+100_000 {
				time.Sleep(100 * time.Microsecond) // there is no event for bytes on their way
			}
			c.cut()
			waitPhase(phases, Reconnecting)
			waitPhase(phases, Ready)
		}
		close(stop)
		wg.Wait()
		if after, _ := e.client.wait(context.Background(), true); after != session {
			t.Error("another session")
		}
		e.wantNoStreams()
	})
}

// TestBlackHole: a carrier that swallows everything is replaced after 15 s, and the streams go on.
func TestBlackHole(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		c := cuttable(e)
		var bad *badConn
		c.wrap = func(conn net.Conn) net.Conn { bad = newBadConn(conn); return bad }
		phases := e.phases()
		e.start().waitReady()
		defer e.close()
		waitPhase(phases, Ready)
		pod, laptop := e.streams()
		time.Sleep(pingEvery + pingEvery/2) // bubble time
		hole := bad
		hole.swallow.Store(true)
		hole.deaf.Store(true)
		start := time.Now()
		var wg sync.WaitGroup
		for _, pair := range [][2]*Stream{{pod, laptop}, {laptop, pod}} {
			wg.Go(func() { send(t, pair[0], "into the dark") })
			wg.Go(func() { wantRead(t, pair[1], "into the dark") })
		}
		wg.Wait()
		if took := time.Since(start); took > deadAfter+clockEvery {
			t.Errorf("went on after %v", took)
		}
		_ = hole.Conn.Close()
		_, _ = pod.Close(), laptop.Close()
		e.wantNoStreams()
	})
}

// TestBeyondTheWindow: without a carrier for longer than the window, all streams are reset on both ends, and not before.
func TestBeyondTheWindow(t *testing.T) {
	for _, window := range []time.Duration{0, 10 * time.Second, -1} {
		bubble(t, func(t *testing.T) {
			e := newEnds(t, pipeNetwork(t))
			e.client.ResumeWindow = window
			want := max(0, window)
			if window == 0 {
				want = defaultResumeWindow
			}
			c := cuttable(e)
			e.start().waitReady()
			defer e.close()
			pod, laptop := e.streams()
			c.setRefuse(errors.New("no network"))
			start := time.Now()
			c.cut()
			var wg sync.WaitGroup
			for _, st := range []*Stream{pod, laptop} {
				wg.Go(func() {
					_, err := st.Read(make([]byte, 1))
					wantErr(t, "read", err, syscall.ECONNRESET)
					if took := time.Since(start); took != want {
						t.Errorf("reset after %v, want %v", took, want)
					}
					_ = st.Close()
				})
			}
			wg.Wait()
			if e.server.Connected() {
				t.Error("the pod still has the session")
			}
			c.setRefuse(nil)
			e.waitReady()
			pod, laptop = e.streams()
			send(t, pod, "in the next session")
			wantRead(t, laptop, "in the next session")
			_, _ = pod.Close(), laptop.Close()
			e.wantNoStreams()
		})
	}
}

// TestFullReplayBuffer: without a carrier writers wait when enough is kept, and nothing is lost.
func TestFullReplayBuffer(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	c := cuttable(e)
	phases := e.phases()
	e.start().waitReady()
	var streams [][2]*Stream
	for range 8 {
		pod, laptop := e.streams()
		streams = append(streams, [2]*Stream{pod, laptop})
	}
	session, _ := e.client.wait(context.Background(), true)
	c.setRefuse(errors.New("no network"))
	c.cut()
	waitPhase(phases, Reconnecting)
	data := randomBytes(1 << 20)
	var wg sync.WaitGroup
	for _, s := range streams {
		wg.Go(func() { send(t, s[1], string(data)) })
	}
	for { // until nobody gets on any more
		before := session.conn.end.Load()
		time.Sleep(20 * time.Millisecond)
		if session.conn.end.Load() == before {
			break
		}
	}
	session.conn.mu.Lock()
	kept := session.conn.buf.len()
	session.conn.mu.Unlock()
	if kept == 0 || kept > firstFlight+2*bulkAhead {
		t.Errorf("%d bytes are kept", kept)
	}
	c.setRefuse(nil)
	for _, s := range streams {
		wantRead(t, s[0], string(data))
		_, _ = s[0].Close(), s[1].Close()
	}
	wg.Wait()
	e.wantNoStreams()
}

// TestDialWaitsForTheNextCarrier: also a connection to the laptop does, for a while.
func TestDialWaitsForTheNextCarrier(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.server.Dial = echoTCP(t)
	c := cuttable(e)
	phases := e.phases()
	e.start().waitReady()
	c.setRefuse(errors.New("no network"))
	c.cut()
	waitPhase(phases, Reconnecting)
	var wg sync.WaitGroup
	wg.Go(func() {
		conn, err := e.client.DialContext(context.Background(), "tcp", "echo:7")
		if err != nil {
			t.Error(err)
			return
		}
		send(t, conn.(*Stream), "hello")
		wantRead(t, conn.(*Stream), "hello")
		_ = conn.Close()
	})
	wg.Go(func() {
		pod, laptop := e.streams()
		send(t, pod, "hello")
		wantRead(t, laptop, "hello")
		_, _ = pod.Close(), laptop.Close()
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	_, err := e.client.DialContext(ctx, "tcp", "echo:7")
	wantErr(t, "bounded dial", err, context.DeadlineExceeded)
	c.setRefuse(nil)
	wg.Wait()
	e.wantNoStreams()
}

// TestEndIsTold: when one end ends, the other does not wait for the window.
func TestEndIsTold(t *testing.T) {
	for _, who := range []string{"laptop", "pod"} {
		bubble(t, func(t *testing.T) {
			e := newEnds(t, pipeNetwork(t)).start().waitReady()
			defer e.close()
			pod, laptop := e.streams()
			start := time.Now()
			c, _ := e.client.wait(context.Background(), true)
			s, _ := e.server.current()
			st := pod
			if who == "laptop" {
				c.kill(errors.New("the end"))
			} else {
				s.kill(errors.New("the end"))
				st = laptop
			}
			_, err := st.Read(make([]byte, 1))
			wantErr(t, "read", err, syscall.ECONNRESET)
			if took := time.Since(start); took > 0 {
				t.Errorf("%s's end was noticed after %v", who, took)
			}
			_, _ = pod.Close(), laptop.Close()
		})
	}
}

// TestAnotherPodDoesNotKnowTheSession: a new proxy process; all streams are reset at once, and the next session is there.
func TestAnotherPodDoesNotKnowTheSession(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e, other, carriers := twoPods(t, "pod-1", "pod-2")
		e.start().waitReady()
		defer e.close()
		defer other.close()
		pod, laptop := e.streams()
		start := time.Now()
		_ = (<-carriers).Close()
		_, err := laptop.Read(make([]byte, 1))
		wantErr(t, "read", err, syscall.ECONNRESET)
		if took := time.Since(start); took > 0 {
			t.Errorf("reset after %v", took)
		}
		<-other.ready
		if len(carriers) != 1 {
			t.Errorf("%d more carriers", len(carriers))
		}
		_, _ = pod.Close(), laptop.Close()
	})
}

// TestLaterBridgeDisplaces: the one with the lower epoch ends, and does not come back.
func TestLaterBridgeDisplaces(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		later := testAttach()
		later.epoch++
		l, met, err := dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: Protocol}, later)
		if err != nil || met.answer.verdict != attachOK {
			t.Fatal(met, err)
		}
		wantFinal(t, e, ErrDisplaced)
		e.waitRefused(1)
		_ = l.Close()
	})
}

// resuming makes a session by hand, which has sent n bytes, and gives a function that asks to go on with it.
func resuming(t *testing.T, e *ends, n int) (a attach, again func(attach) (*link, *meeting, error)) {
	again = func(a attach) (*link, *meeting, error) {
		conn, err := e.network.dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return dialHandshake(context.Background(), conn, e.laptop, Fingerprint{}, hello{protocol: Protocol}, a)
	}
	a = testAttach()
	l, met, err := again(a)
	if err != nil || met.answer.verdict != attachOK {
		t.Fatal(met, err)
	}
	const openControl = "\x00\x01\x00\x01\x00\x00\x00\x01\x00\x1c\x00\x00"
	if n < len(openControl) {
		t.Fatal("the control stream takes more")
	}
	// A ping that is cut short waits for its end; further frames of no consequence fill up.
	if _, err := l.Write(append(appendSegment(nil, segment{typ: segmentData, length: len(openControl)}), openControl...)); err != nil {
		t.Fatal(err)
	}
	s, err := readSegment(l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(l, make([]byte, s.length)); err != nil {
		t.Fatal(err)
	}
	for !e.server.Connected() {
		time.Sleep(time.Millisecond)
	}
	_ = l.Close()
	a.kind = attachResume
	a.received = uint64(s.length)
	return a, again
}

// TestFalseResumes: whoever has the key and yet resumes what was not there gets no session, and no byte twice.
func TestFalseResumes(t *testing.T) {
	run := func(name string, f func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error))) {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t, tcpNetwork(t))
			e.client = nil
			e.start()
			a, again := resuming(t, e, 12)
			f(t, e, a, again)
		})
	}
	over := func(t *testing.T, e *ends, l *link) {
		t.Helper()
		_, _ = io.Copy(io.Discard, l) // until the pod has closed
		_ = l.Close()
		for e.server.Connected() {
			time.Sleep(time.Millisecond)
		}
	}
	run("the right one", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		for range 3 { // each takes it over from the one before
			l, met, err := again(a)
			if err != nil || met.answer != (attached{received: 12}) {
				t.Fatalf("%+v, %v", met, err)
			}
			s, err := readSegment(l)
			if err != nil || s.received != 12 {
				t.Fatalf("%+v, %v", s, err)
			}
			defer func() { _ = l.Close() }()
		}
	})
	run("another session's", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		a.id[3]++
		l, met, err := again(a)
		if err != nil || met.answer.verdict != attachUnknown {
			t.Fatalf("%+v, %v", met, err)
		}
		// Asking for a session that is not there a second time is too much; the one that is there stays.
		if answer, err := l.offer(context.Background(), a); err != nil || answer.verdict != attachUnknown {
			t.Fatalf("%+v, %v", answer, err)
		}
		_, _ = io.Copy(io.Discard, l)
		_ = l.Close()
		e.waitRefused(1)
		if !e.server.Connected() {
			t.Error("the good session is gone")
		}
	})
	run("an old epoch", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		a.epoch--
		l, met, err := again(a)
		if err != nil || met.answer.verdict != attachOld {
			t.Fatalf("%+v, %v", met, err)
		}
		_ = l.Close()
		if !e.server.Connected() {
			t.Error("the good session is gone")
		}
	})
	run("bytes that were never sent", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		a.received += 1 << 20
		l, _, err := again(a)
		if err != nil {
			t.Fatal(err)
		}
		over(t, e, l)
	})
	run("less than was acknowledged", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		l, _, err := again(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Write(appendSegment(nil, segment{typ: segmentAck, received: a.received})); err != nil {
			t.Fatal(err)
		}
		s, err := e.server.current()
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			s.conn.mu.Lock()
			start := s.conn.buf.start
			s.conn.mu.Unlock()
			if start == a.received {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("not acknowledged")
			}
		}
		a.received--
		if _, met, err := again(a); !errors.Is(err, io.EOF) { // closed, and not left to the laptop's own patience
			t.Fatalf("%+v, %v, want it closed without an answer", met, err)
		}
		e.waitRefused(1)
		// The link there is goes on.
		if _, err := l.Write(appendSegment(nil, segment{typ: segmentAck, received: a.received + 1})); err != nil {
			t.Fatal(err)
		}
		s.conn.ping()
		for {
			got, err := readSegment(l)
			if err != nil {
				t.Fatal(err)
			}
			if got.typ == segmentAsk {
				break
			}
			if _, err := io.CopyN(io.Discard, l, int64(got.length)); err != nil {
				t.Fatal(err)
			}
		}
		_ = l.Close()
	})
	for name, b := range map[string][]byte{
		"an acknowledgement of what was never sent": appendSegment(nil, segment{typ: segmentAck, received: 1 << 40}),
		"a segment of no type":                      make([]byte, segmentHeader),
		"garbage":                                   randomBytes(1000),
		"the end":                                   appendSegment(nil, segment{typ: segmentEnd}),
	} {
		run(name, func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
			l, _, err := again(a)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) == segmentHeader && b[0] == byte(segmentEnd) {
				b = appendSegment(nil, segment{typ: segmentEnd, received: a.received})
			}
			if _, err := l.Write(b); err != nil {
				t.Fatal(err)
			}
			over(t, e, l)
		})
	}
	run("garbage instead", func(t *testing.T, e *ends, a attach, again func(attach) (*link, *meeting, error)) {
		a.kind = 9
		if l, _, err := again(a); err == nil {
			_ = l.Close()
			t.Fatal("answered")
		}
		e.waitRefused(1)
		if !e.server.Connected() {
			t.Error("the good session is gone")
		}
	})
}

// TestSuspended: the time of day went on and we did not.
func TestSuspended(t *testing.T) {
	if suspended(time.Second, time.Second) || suspended(time.Minute, time.Minute+wakeSlack) || suspended(time.Minute, -time.Hour) {
		t.Error("awake, and a clock that was set back")
	}
	if !suspended(time.Second, 10*time.Minute) {
		t.Error("ten minutes asleep")
	}
	var c clocks
	now := time.Now()
	if c.jumped(now) || c.jumped(now.Add(time.Second)) {
		t.Error("jumped")
	}
	start := now
	l := &liveness{start: start}
	l.answer(start.Add(time.Second))
	woke := start.Add(2 * time.Second)
	l.woke(woke)
	if due := l.due(); !due.Equal(woke.Add(wakeGrace)) {
		t.Errorf("due %v after waking", due.Sub(woke))
	}
	l.answer(woke.Add(time.Second))
	if due := l.due(); !due.Equal(woke.Add(time.Second + deadAfter)) {
		t.Errorf("due %v after waking and an answer", due.Sub(woke))
	}
}

// FuzzSendBuffer: whatever is appended and discarded, what is in the buffer is what was put there.
func FuzzSendBuffer(f *testing.F) {
	f.Add([]byte{200, 10, 255, 255, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var b sendBuffer
		var model []byte
		for i, step := range steps {
			if i%2 == 0 {
				p := bytes.Repeat([]byte{byte(i)}, int(step)*997)
				b.append(p)
				model = append(model, p...)
			} else {
				n := len(model) * int(step) / 255
				b.discard(b.start + uint64(n))
				model = model[n:]
			}
			got := make([]byte, len(model)/2+1)
			n := b.copyAt(got, b.start+uint64(len(model)/2))
			if b.len() != len(model) || !bytes.Equal(got[:n], model[len(model)/2:]) {
				t.Fatalf("step %d: %d bytes, want %d", i, b.len(), len(model))
			}
			if most := b.len()/chunkSize + 2; len(b.chunks) > most {
				t.Fatalf("step %d: %d chunks for %d bytes", i, len(b.chunks), b.len())
			}
		}
	})
}

// TestLostSessionWakesItsReaders, thousands of them, without delay: yamux lets them spin while it closes.
func TestLostSessionWakesItsReaders(t *testing.T) {
	for _, how := range []string{"killed", "link failed"} {
		t.Run(how, func(t *testing.T) {
			const many = 700
			e := newEnds(t, tcpNetwork(t)).start().waitReady()
			var reading, wg sync.WaitGroup
			for range many {
				pod, laptop := e.streams()
				for _, st := range []*Stream{pod, laptop} {
					reading.Add(1)
					wg.Go(func() {
						reading.Done()
						_, err := st.Read(make([]byte, 1))
						wantErr(t, "read", err, syscall.ECONNRESET)
						_ = st.Close()
					})
				}
			}
			reading.Wait()
			s, err := e.server.current()
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if how == "killed" {
				s.kill(errors.New("by the test"))
			} else {
				s.conn.fail(errors.New("by the test"))
			}
			wg.Wait()
			// It takes a fraction of a second; with readers that spin, minutes.
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}
