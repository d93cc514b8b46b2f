package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

func TestStreamIsANetConn(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind.name, func(t *testing.T) {
			e := newEnds(t, kind.make(t)).start().waitReady()
			t.Run("opener first", func(t *testing.T) {
				nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
					pod, laptop := e.streams()
					return pod, laptop, func() { _ = pod.Close(); _ = laptop.Close() }, nil
				})
			})
			t.Run("acceptor first", func(t *testing.T) {
				nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
					pod, laptop := e.streams()
					return laptop, pod, func() { _ = pod.Close(); _ = laptop.Close() }, nil
				})
			})
			e.wantNoStreams()
		})
	}
}

// wantNoStreams waits until both ends have forgotten every stream, and so has yamux.
func (e *ends) wantNoStreams() {
	e.t.Helper()
	c, err := e.client.wait(context.Background(), true)
	if err != nil {
		e.t.Fatal(err)
	}
	s, err := e.server.current()
	if err != nil {
		e.t.Fatal(err)
	}
	for _, s := range []*session{c, s} {
		left := func() (n int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.streams) + s.mux.NumStreams() - 1 // the control stream
		}
		for deadline := time.Now().Add(10 * time.Second); left() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				e.t.Errorf("laptop %v: %d streams are left", s.laptop, left())
				break
			}
		}
	}
}

func TestOpenCarriesTheHeader(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		h := Header{Kind: Inbound, Network: "tcp", Address: ":8080", Peer: netipAddr("10.1.2.3:4567")}
		pod, err := e.server.Open(context.Background(), h)
		if err != nil {
			t.Fatal(err)
		}
		laptop := <-e.inbound
		if laptop.Header() != h || pod.Header() != h {
			t.Errorf("header: %+v and %+v, want %+v", laptop.Header(), pod.Header(), h)
		}
		if got := laptop.RemoteAddr().String(); got != "10.1.2.3:4567" {
			t.Errorf("caller: %s", got)
		}
		_, _ = laptop.Close(), pod.Close()
		e.wantNoStreams()
	})
}

func TestPayloadArrivesBeforeTheAnswer(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		pod, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pod.Write([]byte("early")); err != nil {
			t.Fatal(err)
		}
		laptop := <-e.inbound
		buf := make([]byte, 5)
		if _, err := io.ReadFull(laptop, buf); err != nil || string(buf) != "early" {
			t.Fatalf("%q, %v", buf, err)
		}
		if _, err := laptop.Write([]byte("answer")); err != nil { // accepts
			t.Fatal(err)
		}
		_ = laptop.CloseWrite()
		if got, err := io.ReadAll(pod); err != nil || string(got) != "answer" {
			t.Fatalf("%q, %v", got, err)
		}
		_, _ = laptop.Close(), pod.Close()
		e.wantNoStreams()
	})
}

// TestHalfClose ends each direction first once; the other still carries data.
func TestHalfClose(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		for _, podFirst := range []bool{true, false} {
			pod, laptop := e.streams()
			first, second := pod, laptop
			if !podFirst {
				first, second = laptop, pod
			}
			send(t, first, "one")
			wantRead(t, second, "one")
			if _, err := first.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after CloseWrite: %v, want EPIPE", err)
			}
			send(t, second, "two")
			wantRead(t, first, "two")
			_, _ = first.Close(), second.Close()
			_, err := first.Read(make([]byte, 1))
			wantErr(t, "read after Close", err, net.ErrClosed)
			_, err = first.Write(make([]byte, 1))
			wantErr(t, "write after Close", err, net.ErrClosed)
		}
		e.wantNoStreams()
	})
}

func send(t testing.TB, st *Stream, text string) {
	t.Helper()
	if _, err := st.Write([]byte(text)); err != nil {
		t.Error(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Error(err)
	}
}

func wantRead(t testing.TB, st *Stream, text string) {
	t.Helper()
	if got, err := io.ReadAll(st); err != nil || string(got) != text {
		t.Errorf("read %q, %v, want %q", got, err, text)
	}
}

// TestLastBytesArrive writes more than fits in anything but the window, and closes at once.
func TestLastBytesArrive(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		data := randomBytes(firstWindow)
		for range 20 {
			pod, laptop := e.streams()
			var wg sync.WaitGroup
			wg.Go(func() {
				if _, err := laptop.Write(data); err != nil {
					t.Error(err)
				}
				_ = laptop.Close()
			})
			if got, err := io.ReadAll(pod); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(data))
			}
			wg.Wait()
			_ = pod.Close()
		}
		e.wantNoStreams()
	})
}

// TestClosedPeerTakesNoMore: after Close, the other end's blocked write fails, and what was sent to it is still read.
func TestClosedPeerTakesNoMore(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		pod, laptop := e.streams()
		if _, err := laptop.Write([]byte("goodbye")); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := pod.Write(make([]byte, maxWindow))
			wantErr(t, "blocked write", err, syscall.EPIPE)
		})
		waitFull(pod)
		_ = laptop.Close()
		wg.Wait()
		wantRead(t, pod, "goodbye")
		_ = pod.Close()
		e.wantNoStreams()
	})
}

// waitFull waits until a Write is under way, and long enough for it to fill the window. When it has not, the
// tests that use this still hold, only for a write that is not blocked yet.
func waitFull(st *Stream) {
	for {
		locked := st.writeMu.TryLock()
		if locked {
			st.writeMu.Unlock()
			time.Sleep(time.Millisecond)
			continue
		}
		time.Sleep(20 * time.Millisecond)
		return
	}
}

// TestReset resets a stream from each end, in each state, with reads and writes blocked or not.
func TestReset(t *testing.T) {
	states := []struct {
		name  string
		setUp func(t *testing.T, a, b *Stream)
	}{
		{"idle", func(*testing.T, *Stream, *Stream) {}},
		{"sender half-closed", func(_ *testing.T, a, _ *Stream) { _ = a.CloseWrite() }},
		{"receiver half-closed", func(_ *testing.T, _, b *Stream) { _ = b.CloseWrite() }},
		{"data unread", func(t *testing.T, a, b *Stream) {
			for _, st := range []*Stream{a, b} {
				if _, err := st.Write(make([]byte, 100_000)); err != nil {
					t.Error(err)
				}
			}
		}},
	}
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		for _, state := range states {
			for _, fromPod := range []bool{true, false} {
				pod, laptop := e.streams()
				a, b := pod, laptop
				if !fromPod {
					a, b = laptop, pod
				}
				state.setUp(t, a, b)
				a.Reset()
				_, err := a.Read(make([]byte, 1))
				wantErr(t, state.name+": own read", err, syscall.ECONNRESET)
				_, err = a.Write(make([]byte, 1))
				wantErr(t, state.name+": own write", err, syscall.ECONNRESET)
				// What was sent before the reset comes first, then the reset, unless the end was sent before.
				_, err = io.Copy(io.Discard, onlyReader{b})
				if state.name != "sender half-closed" {
					wantErr(t, state.name+": other's read", err, syscall.ECONNRESET)
				} else if err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: other's read: %v", state.name, err)
				}
				for err = nil; err == nil; {
					_, err = b.Write(make([]byte, 1))
				}
				if state.name != "receiver half-closed" {
					wantErr(t, state.name+": other's write", err, syscall.ECONNRESET)
				}
				_, _ = a.Close(), b.Close()
			}
		}
		e.wantNoStreams()
	})
}

type onlyReader struct{ io.Reader }

// TestResetWakes: reads and writes that are blocked, on both ends, return ECONNRESET.
func TestResetWakes(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		for _, fromPod := range []bool{true, false} {
			// Two streams, since a reader would make room for the writer.
			read1, read2 := e.streams()
			write1, write2 := e.streams()
			var wg sync.WaitGroup
			for _, st := range []*Stream{read1, read2} {
				wg.Go(func() {
					_, err := st.Read(make([]byte, 1))
					wantErr(t, "blocked read", err, syscall.ECONNRESET)
				})
			}
			for _, st := range []*Stream{write1, write2} {
				wg.Go(func() {
					_, err := st.Write(make([]byte, maxWindow))
					wantErr(t, "blocked write", err, syscall.ECONNRESET)
				})
				waitFull(st)
			}
			if fromPod {
				read1.Reset()
				write1.Reset()
			} else {
				read2.Reset()
				write2.Reset()
			}
			wg.Wait()
			for _, st := range []*Stream{read1, read2, write1, write2} {
				_ = st.Close()
			}
		}
		e.wantNoStreams()
	})
}

// TestResetAtOnce: the reset may reach the other end before that has accepted the stream from yamux.
func TestResetAtOnce(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.client.Handle = func(_ context.Context, st *Stream) {
			_, err := io.Copy(io.Discard, st)
			wantErr(t, "read", err, syscall.ECONNRESET)
		}
		e.start().waitReady()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 10 {
					st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
					if err != nil {
						t.Error(err)
						return
					}
					st.Reset()
				}
			})
		}
		wg.Wait()
		e.wantNoStreams()
	})
}

// TestEmptyWrite returns, also when the window is full.
func TestEmptyWrite(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	for range 2 {
		if n, err := pod.Write(nil); n != 0 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		_ = pod.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := pod.Write(make([]byte, 2*firstWindow))
		wantErr(t, "a full window", err, os.ErrDeadlineExceeded)
		_ = pod.SetWriteDeadline(time.Time{})
	}
	_, _ = pod.Close(), laptop.Close()
	e.wantNoStreams()
}

func TestDeadlines(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.streams()
	_ = pod.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := pod.Read(make([]byte, 1))
	wantErr(t, "read", err, os.ErrDeadlineExceeded)
	_ = pod.SetReadDeadline(time.Time{})
	send(t, laptop, "later")
	wantRead(t, pod, "later")

	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	waiting, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "WaitStatus", waiting.WaitStatus(ctx), context.DeadlineExceeded)
	other := <-e.inbound
	send(t, other, "still there")
	wantRead(t, waiting, "still there")
	for _, st := range []*Stream{pod, laptop, waiting, other} {
		_ = st.Close()
	}
	e.wantNoStreams()
}

// Test100MB sends 100 MB (10 MB over the simpler carriers) each way at the same time and compares.
func Test100MB(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		pod, laptop := e.streams()
		size := int64(10 << 20)
		if strings.HasSuffix(t.Name(), "/tls") {
			size *= 10
		}
		var wg sync.WaitGroup
		for i, pair := range [][2]*Stream{{pod, laptop}, {laptop, pod}} {
			sent, got := sha256.New(), sha256.New()
			wg.Go(func() {
				source := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
				if n, err := io.Copy(io.MultiWriter(sent, pair[0]), source); n != size || err != nil {
					t.Errorf("sent %d, %v", n, err)
				}
				if err := pair[0].CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				if n, err := io.Copy(got, onlyReader{pair[1]}); n != size || err != nil {
					t.Errorf("got %d, %v", n, err)
				}
			})
			defer func() {
				if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
					t.Error("the bytes differ")
				}
			}()
		}
		wg.Wait()
		_, _ = pod.Close(), laptop.Close()
		e.wantNoStreams()
	})
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// TestManyAtOnce runs 500 connections each way at the same time, all open before the first is used.
func TestManyAtOnce(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		const many = 500
		e.server.Dial = echoTCP(t)
		e.client.Handle = func(_ context.Context, st *Stream) { _, _ = io.Copy(st, onlyReader{st}) }
		e.start().waitReady()
		var open, wg sync.WaitGroup
		open.Add(2 * many)
		use := func(st *Stream, err error) {
			open.Done()
			if err != nil {
				t.Error(err)
				return
			}
			open.Wait()
			data := randomBytes(10_000)
			wg.Go(func() { send(t, st, string(data)) })
			wantRead(t, st, string(data))
			_ = st.Close()
		}
		for range many {
			wg.Go(func() {
				st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
				use(st, err)
			})
			wg.Go(func() {
				c, err := e.client.DialContext(context.Background(), "tcp", "echo:7")
				st, _ := c.(*Stream)
				use(st, err)
			})
		}
		wg.Wait()
		e.wantNoStreams()
	})
}

// TestSlowReader: streams that nobody reads, full to the brim, hold up neither the others nor the session.
func TestSlowReader(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		var blocked []*Stream
		var wg sync.WaitGroup
		for range 4 {
			pod, laptop := e.streams()
			for _, st := range []*Stream{pod, laptop} {
				wg.Go(func() { _, _ = st.Write(make([]byte, maxWindow)) })
				waitFull(st)
				blocked = append(blocked, st)
			}
		}
		pod, laptop := e.streams()
		data := randomBytes(4 << 20)
		wg.Go(func() { send(t, pod, string(data)) })
		wantRead(t, laptop, string(data))
		for _, st := range append(blocked, pod, laptop) {
			st.Reset()
		}
		wg.Wait()
		e.wantNoStreams()
	})
}

// TestNeverAccepted: streams whose handler neither answers nor reads do not end the session or hold up others.
func TestNeverAccepted(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.start().waitReady()
		var left []*Stream
		for range 2 * acceptBacklog {
			st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "tcp", Address: ":80"})
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, st, <-e.inbound)
		}
		pod, laptop := e.streams()
		send(t, pod, "still served")
		wantRead(t, laptop, "still served")
		for _, st := range append(left, pod, laptop) {
			_ = st.Close()
		}
		e.wantNoStreams()
	})
}

// TestClosedStreamTakesNoMoreThanItsWindow: a peer that goes on sending to a stream that we have closed loses its session.
func TestClosedStreamTakesNoMoreThanItsWindow(t *testing.T) {
	for _, end := range []string{"closed", "reset"} {
		e := newEnds(t, tcpNetwork(t)).start().waitReady()
		pod, laptop := e.streams()
		s, err := e.client.wait(context.Background(), true)
		if err != nil {
			t.Fatal(err)
		}
		if end == "closed" {
			_ = laptop.Close()
		} else {
			laptop.Reset()
		}
		sent := 0
		for s.alive() && sent < muxWindow { // past our own windows and messages
			_ = pod.mux.SetWriteDeadline(time.Now().Add(time.Second))
			n, _ := pod.mux.Write(make([]byte, maxFrame))
			sent += n
		}
		<-s.ctx.Done()
		if sent < firstWindow-maxFrame {
			t.Errorf("%s: lost after %d bytes", end, sent)
		}
		s.mu.Lock()
		if !strings.Contains(s.err.Error(), "more than its window") {
			t.Errorf("%s: %v", end, s.err)
		}
		s.mu.Unlock()
		_ = pod.Close()
		e.close()
	}
}

// TestStreamsThatTheOtherEndDoesNotEndAreBounded.
func TestStreamsThatTheOtherEndDoesNotEndAreBounded(t *testing.T) {
	s := &session{laptop: true, streams: make(map[uint32]*Stream), accepted: 2*maxStreams - 1, ctx: context.Background()}
	s.live.Store(&liveness{start: time.Now()})
	if err := s.seeFrame(frame{stream: 2, flags: flagSYN}); err != nil {
		t.Error(err)
	}
	s.accepted++
	if err := s.seeFrame(frame{stream: 4, flags: flagSYN}); err == nil {
		t.Error("took one more")
	}
}

// TestAnswerBeforeTheStreamIsReturned: what comes about a stream as soon as its first frame is sent is not lost.
func TestAnswerBeforeTheStreamIsReturned(t *testing.T) {
	s := &session{laptop: true, streams: make(map[uint32]*Stream), ctx: context.Background()}
	s.live.Store(&liveness{start: time.Now()})
	tap := &frameTap{ReadWriteCloser: readOnly{}, see: s.seeFrame, say: s.sayFrame}
	const id = 3
	_, _ = tap.Write([]byte{0, 1, 0, flagSYN, 0, 0, 0, id, 0, 0, 0, 0})
	st := s.stream(id)
	if st == nil || !st.opener {
		t.Fatalf("%+v", st)
	}
	st.resetByPeer(resetBoth)
	if err := s.seeFrame(frame{stream: id, flags: flagFIN}); err != nil {
		t.Fatal(err)
	}
	if !st.wasReset() || !st.ended || st.ctx.Err() == nil {
		t.Error("the reset was not kept")
	}
	// A body is no header, whatever it looks like.
	_, _ = tap.Write([]byte{0, 0, 0, 0, 0, 0, 0, id, 0, 0, 0, frameHeader})
	_, _ = tap.Write([]byte{0, 1, 0, flagSYN, 0, 0, 0, id + 2, 0, 0, 0, 0})
	if s.stream(id+2) != nil {
		t.Error("a body taken for a header")
	}
}

// TestStreamsThatWaitAreBounded, and as many as the other end may think fit do.
func TestStreamsThatWaitAreBounded(t *testing.T) {
	s := &session{laptop: true, streams: make(map[uint32]*Stream), unaccepted: acceptBacklog + acceptors - 1, ctx: context.Background()}
	s.live.Store(&liveness{start: time.Now()})
	if err := s.seeFrame(frame{stream: 2, flags: flagSYN}); err != nil {
		t.Error(err)
	}
	if err := s.seeFrame(frame{stream: 4, flags: flagSYN}); err == nil {
		t.Error("took one more")
	}
}
