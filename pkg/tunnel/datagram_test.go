package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// maxUDP4 is the longest datagram that IPv4 carries.
const maxUDP4 = 65507

// echoUDP is a UDP server that sends back what it gets, until the test ends.
func echoUDP(t testing.TB) string {
	t.Helper()
	return udpServer(t, func(p []byte) [][]byte { return [][]byte{p} })
}

// udpServer answers each datagram with what f says.
func udpServer(t testing.TB, f func(p []byte) [][]byte) string {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, p := range f(buf[:n]) {
				_, _ = c.WriteToUDPAddrPort(p, from)
			}
		}
	})
	t.Cleanup(func() {
		_ = c.Close()
		wg.Wait()
	})
	return c.LocalAddr().String()
}

// udp dials address through e's tunnel.
func (e *ends) udp(address string) *Datagrams {
	e.t.Helper()
	c, err := e.client.DialContext(context.Background(), "udp", address)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = c.Close() })
	return c.(*Datagrams)
}

func (d *Datagrams) mustWrite(t testing.TB, p []byte) {
	t.Helper()
	if n, err := d.Write(p); n != len(p) || err != nil {
		t.Fatalf("write of %d: %d, %v", len(p), n, err)
	}
}

// mustRead reads one datagram, with more room than any needs.
func (d *Datagrams) mustRead(t testing.TB) []byte {
	t.Helper()
	buf := make([]byte, 2*maxDatagram)
	n, err := d.Read(buf)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return buf[:n]
}

func TestDatagramsKeepTheirBoundaries(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.server.Dial = dialTo(echoUDP(t))
		e.start().waitReady()
		c := e.udp("echo:7")
		for _, size := range []int{0, 1, 2, 512, 1400, maxFrame - 2, maxFrame, maxFrame + 1, maxUDP4, 0} {
			p := randomBytes(size)
			c.mustWrite(t, p)
			if got := c.mustRead(t); !bytes.Equal(got, p) {
				t.Errorf("%d bytes came back as %d", size, len(got))
			}
		}
		// Many at once, of which a UDP socket on this machine loses none that its buffer holds.
		for i := range 50 {
			c.mustWrite(t, fmt.Appendf(nil, "datagram %d", i))
		}
		for i := range 50 {
			if got := string(c.mustRead(t)); got != fmt.Sprintf("datagram %d", i) {
				t.Errorf("datagram %d: %q", i, got)
			}
		}
		// What does not fit is lost, and nothing of the next one.
		c.mustWrite(t, []byte("a long one"))
		c.mustWrite(t, []byte("next"))
		short := make([]byte, 6)
		if n, err := c.Read(short); n != 6 || err != nil || string(short) != "a long" {
			t.Errorf("short read: %q, %v", short[:n], err)
		}
		if got := string(c.mustRead(t)); got != "next" {
			t.Errorf("after a short read: %q", got)
		}
		c.mustWrite(t, []byte("packet"))
		if n, from, err := net.PacketConn(c).ReadFrom(short); n != 6 || err != nil || from != c.RemoteAddr() {
			t.Errorf("ReadFrom: %d, %v, %v", n, from, err)
		}
		_, err := c.WriteTo(short, c.RemoteAddr())
		wantErr(t, "WriteTo", err, net.ErrWriteToConnected)
		_, err = c.Write(make([]byte, maxDatagram+1))
		wantErr(t, "too long", err, syscall.EMSGSIZE)
		_ = c.Close()
		e.wantNoStreams()
	})
}

// Echo requests are datagrams to the tunnel: whose dial makes them requests is the pod's.
func TestEchoesAreDatagrams(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	echo := echoUDP(t)
	e.server.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if network != "icmp" || address != "10.244.0.7:0" {
			return nil, fmt.Errorf("%s %s is dialled", network, address)
		}
		return new(net.Dialer).DialContext(ctx, "udp", echo)
	}
	e.start().waitReady()
	c, err := e.client.DialContext(context.Background(), "icmp", "10.244.0.7:0")
	if err != nil {
		t.Fatal(err)
	}
	d := c.(*Datagrams)
	d.mustWrite(t, []byte("\x00\x01ping"))
	if got := string(d.mustRead(t)); got != "\x00\x01ping" || d.RemoteAddr().Network() != "icmp" {
		t.Errorf("%q from %s %v", got, d.RemoteAddr().Network(), d.RemoteAddr())
	}
	_ = c.Close()
	e.wantNoStreams()
}

// TestDatagramThatTheSocketRefuses: the pod's socket takes less than the tunnel, and says so.
func TestDatagramThatTheSocketRefuses(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.server.Dial = dialTo(echoUDP(t))
	e.start().waitReady()
	c := e.udp("echo:7")
	c.mustWrite(t, make([]byte, maxUDP4+1))
	if _, err := c.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("read: %v", err)
	}
	_, _ = c.Read(make([]byte, 1)) // it was tried twice
	c.mustWrite(t, []byte("still there"))
	if got := string(c.mustRead(t)); got != "still there" {
		t.Errorf("after it: %q", got)
	}
}

func TestICMPRefusalIsReadAsOne(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		address := socket.LocalAddr().String()
		_ = socket.Close()
		e.server.Dial = dialTo(address)
		e.start().waitReady()
		c := e.udp("nobody:7")
		for range 3 { // it is no end
			c.mustWrite(t, []byte("anybody?"))
			_, err := c.Read(make([]byte, 10))
			wantErr(t, "read", err, syscall.ECONNREFUSED)
		}
		_ = c.Close()
		e.wantNoStreams()
	})
}

func TestRefusedFlow(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.server.Dial = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "nowhere", IsNotFound: true}
	}
	e.start().waitReady()
	_, err := e.client.DialContext(context.Background(), "udp", "nowhere:7")
	var dns *net.DNSError
	if !errors.As(err, &dns) || !dns.IsNotFound {
		t.Errorf("dial: %v", err)
	}
	e.wantNoStreams()
}

func TestFlowsAreBounded(t *testing.T) {
	e := newEnds(t, tcpNetwork(t))
	e.server.Dial = dialTo(echoUDP(t))
	e.server.flows.Store(maxFlows - 1)
	e.start().waitReady()
	first := e.udp("echo:7")
	if _, err := e.client.DialContext(context.Background(), "udp", "echo:7"); err == nil || !strings.Contains(err.Error(), "2048 flows") {
		t.Errorf("one too many: %v", err)
	}
	_ = first.Close()
	e.wantNoStreams() // and the place is free again, once the pod has closed its socket
	for e.server.flows.Load() == maxFlows {
		time.Sleep(time.Millisecond)
	}
	e.udp("echo:7").mustWrite(t, nil)
}

// inboundDatagrams opens a flow from the pod: its end and the laptop's.
func (e *ends) inboundDatagrams(t testing.TB) (pod, laptop *Datagrams) {
	t.Helper()
	st, err := e.server.Open(context.Background(), Header{Kind: Inbound, Network: "udp", Address: ":53", Peer: netipAddr("10.1.2.3:4567")})
	if err != nil {
		t.Fatal(err)
	}
	other := <-e.inbound
	t.Cleanup(func() { _, _ = st.Close(), other.Close() })
	return st.Datagrams(), other.Datagrams()
}

// TestDatagramsWithoutRoomAreDropped: a writer is held up for a while, then drops, and what has begun arrives whole.
func TestDatagramsWithoutRoomAreDropped(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.inboundDatagrams(t)
	const size = 60_000
	p := randomBytes(size)
	written := 0
	for pod.Dropped() == 0 { // nobody reads
		binary.BigEndian.PutUint32(p, uint32(written))
		pod.mustWrite(t, p)
		written++
	}
	if written--; written != firstWindow/size {
		t.Errorf("%d datagrams found room, want %d", written, firstWindow/size)
	}
	deadline := time.Now().Add(time.Millisecond)
	_ = pod.SetWriteDeadline(deadline)
	_, err := pod.Write(p)
	wantErr(t, "with a deadline", err, os.ErrDeadlineExceeded)
	_ = pod.SetWriteDeadline(time.Time{})
	for i := range written {
		got := laptop.mustRead(t)
		if len(got) != size || binary.BigEndian.Uint32(got) != uint32(i) {
			t.Errorf("datagram %d: %d bytes, number %d", i, len(got), binary.BigEndian.Uint32(got))
		}
	}
	pod.mustWrite(t, []byte("goes on"))
	if got := string(laptop.mustRead(t)); got != "goes on" {
		t.Errorf("after the drops: %q", got)
	}
}

// TestDatagramReadDeadline: a read that was interrupted loses nothing.
func TestDatagramReadDeadline(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.inboundDatagrams(t)
	for _, part := range []string{"\x00", "\x05", "hel", "lo\x00\x00\xff", "\xff\x02\x00", "\x03no!\x00\x01x"} {
		if _, err := pod.Stream.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
		if part == "lo\x00\x00\xff" || strings.HasSuffix(part, "x") {
			continue
		}
		for { // until the part has arrived, and is not enough
			_ = laptop.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			_, err := laptop.Read(make([]byte, 10))
			if part == "\xff\x02\x00" && err == nil { // hello, and the empty one
				continue
			}
			wantErr(t, "read", err, os.ErrDeadlineExceeded)
			break
		}
	}
	_ = laptop.SetReadDeadline(time.Time{})
	_, err := laptop.Read(make([]byte, 10))
	wantErr(t, "the note", err, syscall.ECONNREFUSED)
	if got := string(laptop.mustRead(t)); got != "x" {
		t.Errorf("after the note: %q", got)
	}
}

func TestFlowIdle(t *testing.T) {
	for address, want := range map[string]time.Duration{
		":53": 30 * time.Second, "10.0.0.10:53": 30 * time.Second, "[fd00::a]:53": 30 * time.Second,
		":5353": 2 * time.Minute, "dns:80": 2 * time.Minute, "53": 2 * time.Minute,
	} {
		if got := FlowIdle("udp", address); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
	if got := FlowIdle("icmp", "10.0.0.10:0"); got != 15*time.Second {
		t.Errorf("echoes: %v", got)
	}
}

// TestSilentFlowEnds at both ends, and one in which something moves does not.
func TestSilentFlowEnds(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	const idle = 50 * time.Millisecond
	pod, laptop := e.inboundDatagrams(t)
	socket, err := net.Dial("udp", echoUDP(t))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if dropped, err := SpliceDatagrams(laptop.Stream, socket, idle); dropped != 0 || err != nil {
			t.Errorf("%d dropped, %v", dropped, err)
		}
	})
	last := begin
	for time.Since(begin) < 3*idle { // in whatever time this machine takes for it
		before := last
		last = time.Now()
		_, err := pod.Write([]byte("x"))
		if err == nil {
			before = last
			_, err = pod.Read(make([]byte, 1))
		}
		if err != nil {
			if time.Since(before) < idle {
				t.Fatalf("ended while in use: %v", err)
			}
			last = before
			break // it was this machine that was silent
		}
	}
	_, err = pod.Read(make([]byte, 1))
	wantErr(t, "after silence", err, io.EOF)
	if silent := time.Since(last); silent < idle {
		t.Errorf("ended after %v of silence", silent)
	}
	wg.Wait()
}

// TestFlowEndsWithEither end: the socket closes with the stream, and the stream with the socket.
func TestFlowEndsWithEither(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	for _, first := range []string{"stream", "socket", "session"} {
		pod, laptop := e.inboundDatagrams(t)
		socket, err := net.Dial("udp", echoUDP(t))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = SpliceDatagrams(laptop.Stream, socket, 0) })
		pod.mustWrite(t, []byte("x"))
		pod.mustRead(t)
		switch first {
		case "stream":
			_ = pod.Close()
		case "socket":
			_ = socket.Close()
			_, err := pod.Read(nil)
			wantErr(t, "read", err, io.EOF)
		case "session":
			s, err := e.server.current()
			if err != nil {
				t.Fatal(err)
			}
			s.kill(errors.New("by the test"))
		}
		wg.Wait()
		_ = pod.Close()
	}
}

// datagramGolden is what one end sends of a flow: datagrams and a note.
func datagramGolden() []byte {
	b := []byte("\x00\x05hello\x00\x00")
	return appendNote(b, syscall.ECONNREFUSED)
}

func TestDatagramBytes(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	pod, laptop := e.inboundDatagrams(t)
	pod.mustWrite(t, []byte("hello"))
	pod.mustWrite(t, nil)
	if err := pod.tell(syscall.ECONNREFUSED); err != nil {
		t.Fatal(err)
	}
	if err := pod.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(onlyReader{laptop.Stream})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "datagrams", got)
	if !bytes.Equal(got, datagramGolden()) {
		t.Errorf("%x", got)
	}
}

// TestMalformedDatagramsResetTheirStream and nothing else.
func TestMalformedDatagramsResetTheirStream(t *testing.T) {
	e := newEnds(t, tcpNetwork(t)).start().waitReady()
	for name, bad := range map[string]string{
		"too long": "\xff\xf8", "ends in a length": "\x00", "ends before its datagram": "\x00\x01", "ends in a datagram": "\x00\x02x",
		"a note of nothing": "\xff\xff\x00\x00\x00", "a note with a long text": "\xff\xff\x02\x02\x01", "ends in a note": "\xff\xff\x02",
	} {
		pod, laptop := e.inboundDatagrams(t)
		pod.mustWrite(t, []byte("good"))
		if _, err := io.WriteString(pod.Stream, bad); err != nil {
			t.Fatal(err)
		}
		_ = pod.CloseWrite()
		if got := string(laptop.mustRead(t)); got != "good" {
			t.Errorf("%s: %q came before", name, got)
		}
		_, err := laptop.Read(make([]byte, 10))
		wantErr(t, name, err, syscall.ECONNRESET)
	}
}

// FuzzDatagrams: whatever one end sends, and in whatever parts it arrives, the other end reads what the rules make of it.
func FuzzDatagrams(f *testing.F) {
	f.Add(datagramGolden(), 100)
	f.Add(datagramGolden(), 1)
	f.Add([]byte("\x00\x01"), 1)
	f.Add([]byte("\xff\xff\x00\x00\x00"), 3)
	again := errors.New("a deadline")
	f.Fuzz(func(t *testing.T, b []byte, part int) {
		rest, late := b, false
		r := datagramReader{read: func(p []byte) (int, error) {
			if late = !late; late {
				return 0, again // between any two parts
			}
			if len(rest) == 0 {
				return 0, io.EOF
			}
			n := copy(p[:min(max(1, part), len(p))], rest)
			rest = rest[n:]
			return n, nil
		}}
		var read []byte
		for {
			p, err := r.next()
			var note *noteError
			switch {
			case errors.Is(err, again):
				continue
			case err == nil:
				read = append(binary.BigEndian.AppendUint16(read, uint16(len(p))), p...)
				r.release()
			case errors.As(err, &note): // its text is cleaned
				read = b[:len(b)-len(rest)]
			case errors.Is(err, errDatagram):
				return
			case !errors.Is(err, io.EOF) || len(read) != len(b):
				t.Fatalf("%v after %x, sent %x", err, read, b)
			default:
				return
			}
			if !bytes.HasPrefix(b, read) {
				t.Fatalf("read %x, sent %x", read, b)
			}
		}
	})
}
