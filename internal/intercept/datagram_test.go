package intercept

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bridge/pkg/tunnel"
)

func listenPacket(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// callUDP is a caller of the pod's UDP port.
func (r *rig) callUDP() *net.UDPConn {
	r.t.Helper()
	c, err := net.Dial("udp", r.address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UDPConn)
}

// echo is the laptop's program from now on: it sends back what it gets, until the test ends.
func (r *rig) echo() {
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, datagramBuffer)
		for {
			n, from, err := r.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = r.udp.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	r.t.Cleanup(func() {
		_ = r.udp.Close()
		wg.Wait()
	})
}

func send(t *testing.T, c *net.UDPConn, p []byte) {
	t.Helper()
	if _, err := c.Write(p); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, c *net.UDPConn, p []byte) {
	t.Helper()
	buf := make([]byte, datagramBuffer)
	if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], p) {
		t.Fatalf("%d bytes, %v; want %d", n, err, len(p))
	}
}

// ask sends p until it has come back: a system that is busy loses datagrams.
func ask(t *testing.T, c *net.UDPConn, p []byte) {
	t.Helper()
	buf := make([]byte, datagramBuffer)
	for {
		send(t, c, p)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(buf)
		if err == nil && bytes.Equal(buf[:n], p) {
			_ = c.SetReadDeadline(time.Time{})
			return
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
			return
		}
	}
}

func TestDatagramsReachTheLaptopAndTheirCallers(t *testing.T) {
	r := newRig(t)
	r.echo()
	r.open()
	one, two := r.callUDP(), r.callUDP()
	for _, size := range []int{0, 1, 1400, 40_000, 65507, 0} {
		for i, c := range []*net.UDPConn{one, two} {
			p := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(p)
			ask(t, c, p)
		}
	}
	for _, c := range []*net.UDPConn{one, two} { // a flow each, and one only
		want := tunnel.Header{Kind: tunnel.Inbound, Network: "udp", Address: r.address[len(r.pod.Host):],
			Peer: netip.MustParseAddrPort(c.LocalAddr().String())}
		if got := <-r.headers; got != want {
			t.Errorf("header %+v, want %+v", got, want)
		}
	}
	if len(r.headers) > 0 {
		t.Errorf("another stream: %+v", <-r.headers)
	}
}

func TestDatagramPortsFollowReadiness(t *testing.T) {
	r := newRig(t)
	r.echo()
	c := r.callUDP()
	for range 3 {
		send(t, c, []byte("anybody?"))
		if _, err := c.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("while not ready: %v", err)
		}
		r.open()
		ask(t, c, []byte("hello"))
		r.laptop.SetReady(false)
		r.expect(false)
	}
}

// TestFlowThatTheLaptopRefuses: the caller's next datagram begins another.
func TestFlowThatTheLaptopRefuses(t *testing.T) {
	r := newRig(t)
	r.echo()
	var refused atomic.Bool
	handle := r.laptop.Handle
	r.laptop.Handle = func(ctx context.Context, s *tunnel.Stream) {
		if !refused.Swap(true) {
			_ = s.Refuse(syscall.ECONNREFUSED)
			return
		}
		handle(ctx, s)
	}
	r.open()
	c := r.callUDP()
	buf := make([]byte, 10)
	for i := 0; ; i++ {
		send(t, c, []byte("hello"))
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := c.Read(buf); err == nil {
			if i == 0 {
				t.Error("answered by a flow that was refused")
			}
			return
		}
	}
}

// TestCallersMakeRoomForOthers: beyond the limit, the one that was silent longest goes.
func TestCallersMakeRoomForOthers(t *testing.T) {
	r := newRig(t)
	r.echo()
	r.open()
	callers := make([]*net.UDPConn, maxPortFlows+10)
	for i := range callers {
		callers[i] = r.callUDP()
		ask(t, callers[i], []byte("hello"))
	}
	end := time.After(time.Minute)
	for r.pod.datagrams.flows.Load() > maxPortFlows { // some may be about to end
		select {
		case <-end:
			t.Fatalf("%d flows", r.pod.datagrams.flows.Load())
		case <-time.After(10 * time.Millisecond):
		}
	}
	if len(r.headers) != len(callers) {
		t.Errorf("%d flows for %d callers", len(r.headers), len(callers))
	}
	ask(t, callers[0], []byte("again")) // with a new flow
	if len(r.headers) != len(callers)+1 {
		t.Errorf("the first caller still had its flow")
	}
}

// TestCallerThatIsNotReadLosesItsOwn datagrams only, and they are counted.
func TestCallerThatIsNotReadLosesItsOwn(t *testing.T) {
	r := newRig(t)
	r.echo()
	stuck := make(chan struct{})
	handle := r.laptop.Handle
	r.laptop.Handle = func(ctx context.Context, s *tunnel.Stream) {
		select {
		case stuck <- struct{}{}: // the first
			_ = s.Accept()
			<-ctx.Done()
		default:
			handle(ctx, s)
		}
	}
	r.open()
	slow, fast := r.callUDP(), r.callUDP()
	send(t, slow, []byte("first"))
	<-stuck
	for r.pod.datagrams.dropped.Load() == 0 {
		send(t, slow, make([]byte, 60_000))
		ask(t, fast, []byte("hello"))
	}
}

func TestDrainWaitsForAnswersToDatagrams(t *testing.T) {
	r := newRig(t)
	r.open()
	c := r.callUDP()
	send(t, c, []byte("question"))
	buf := make([]byte, 100)
	n, from, err := r.udp.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "question" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	over := r.drain(never)
	if _, err := r.udp.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	expect(t, c, []byte("answer")) // well within flowQuiet, or the caller would be refused here
	<-over
	send(t, c, []byte("question"))
	if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after draining: %v", err)
	}
}

func TestDrainDoesNotWaitForSilentFlows(t *testing.T) {
	r := newRig(t)
	r.open()
	c := r.callUDP()
	send(t, c, []byte("to be read by nobody"))
	if _, _, err := r.udp.ReadFromUDPAddrPort(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	<-r.drain(never)
}

// TestManyDatagrams: many callers have an answer each to all they ask, and nothing is left behind.
func TestManyDatagrams(t *testing.T) {
	r := newRig(t)
	r.echo()
	r.open()
	var wg sync.WaitGroup
	for range 20 {
		c := r.callUDP()
		wg.Go(func() {
			for i := range 200 {
				ask(t, c, binary.BigEndian.AppendUint32(nil, uint32(i)))
			}
		})
	}
	wg.Wait()
	if n := r.pod.datagrams.queued.Load(); n != 0 {
		t.Errorf("%d bytes still count as queued", n)
	}
}
