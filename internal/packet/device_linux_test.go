package packet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// wire is a Stack's device whose other end is the test: what a program's system would send, and what would be forwarded to it.
type wire struct {
	t     *testing.T
	fd    int
	end   context.CancelFunc
	ended chan error
}

func newWire(t *testing.T, s *Stack) *wire {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetNonblock(fds[1], true), unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}))
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &wire{t: t, fd: fds[0], end: cancel, ended: make(chan error, 1)}
	go func() {
		w.ended <- s.Run(ctx, fds[1])
		close(w.ended)
	}()
	t.Cleanup(func() {
		cancel()
		<-w.ended
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	})
	return w
}

// syn sends the first packet of a connection.
func (w *wire) syn(from, to string) {
	w.t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	a, b := tcpip.AddrFrom4(src.Addr().As4()), tcpip.AddrFrom4(dst.Addr().As4())
	packet := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	ip, tcp := header.IPv4(packet), header.TCP(packet[header.IPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: a, DstAddr: b})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 65535,
	})
	tcp.SetChecksum(^tcp.CalculateChecksum(header.PseudoHeaderChecksum(header.TCPProtocolNumber, a, b, uint16(len(tcp)))))
	if _, err := unix.Write(w.fd, packet); err != nil {
		w.t.Fatal(err)
	}
}

// flags are those of the next packet of TCP that the Stack sends.
func (w *wire) flags() header.TCPFlags {
	w.t.Helper()
	b := make([]byte, MTU)
	n, err := unix.Read(w.fd, b)
	if err != nil || n < header.IPv4MinimumSize+header.TCPMinimumSize {
		w.t.Fatalf("%d bytes, %v", n, err)
	}
	return header.TCP(b[header.IPv4(b).HeaderLength():n]).Flags()
}

// A datagram over IPv6 has a checksum whatever is in it: one whose checksum is 0 has that said otherwise.
func TestADatagramHasAChecksum(t *testing.T) {
	w := newWire(t, &Stack{
		Dial: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			go func() { _, _ = io.Copy(far, far); _ = far.Close() }()
			return near, nil
		},
		Takes: func(netip.Addr) bool { return true },
	})
	a, b := tcpip.AddrFrom16(netip.MustParseAddr("fd78::1").As16()), tcpip.AddrFrom16(netip.MustParseAddr("fd77::10").As16())
	packet := make([]byte, header.IPv6MinimumSize+header.UDPMinimumSize+2)
	udp := header.UDP(packet[header.IPv6MinimumSize:])
	header.IPv6(packet).Encode(&header.IPv6Fields{PayloadLength: uint16(len(udp)), TransportProtocol: header.UDPProtocolNumber, HopLimit: 64, SrcAddr: a, DstAddr: b})
	udp.Encode(&header.UDPFields{SrcPort: 40000, DstPort: 53, Length: uint16(len(udp))})
	pseudo := header.PseudoHeaderChecksum(header.UDPProtocolNumber, a, b, uint16(len(udp)))
	binary.BigEndian.PutUint16(udp.Payload(), ^udp.CalculateChecksum(pseudo)) // with it the sum is all ones, there and back
	udp.SetChecksum(math.MaxUint16)
	if _, err := unix.Write(w.fd, packet); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, MTU)
	n, err := unix.Read(w.fd, got)
	if err != nil || n != len(packet) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	answer := header.UDP(got[header.IPv6MinimumSize:n])
	if !bytes.Equal(answer.Payload(), udp.Payload()) || answer.Checksum() != math.MaxUint16 {
		t.Errorf("%x came back, with the checksum %#x", answer.Payload(), answer.Checksum())
	}
}

// The end does not wait for a handshake that nobody goes on with.
func TestTheEndWaitsForNoHandshake(t *testing.T) {
	_, d := target(t)
	w := newWire(t, &Stack{Dial: d, Takes: func(netip.Addr) bool { return true }})
	w.syn("192.0.2.1:40000", "10.77.0.1:80")
	if got := w.flags(); got != header.TCPFlagSyn|header.TCPFlagAck {
		t.Fatalf("the answer has the flags %v", got)
	}
	w.end()
	select {
	case err := <-w.ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience): // its tries would take longer
		t.Error("it waits for a handshake")
	}
}

// A neighbour whose packets this machine forwards is not let in.
func TestPacketsOfOthersAreDropped(t *testing.T) {
	const others = 100
	asked := make(chan string, others+1)
	own := netip.MustParseAddr("192.0.2.1")
	w := newWire(t, &Stack{
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			asked <- address
			return nil, unix.ECONNREFUSED
		},
		Takes: func(netip.Addr) bool { return true },
		From:  func(a netip.Addr) bool { return a == own },
	})
	for port := range others {
		w.syn(fmt.Sprintf("203.0.113.5:%d", 40000+port), "10.77.0.1:80")
	}
	w.syn("192.0.2.1:40000", "10.77.0.2:80") // packets keep their order
	if got := <-asked; got != "10.77.0.2:80" {
		t.Errorf("%s was dialled", got)
	}
	if got := w.flags(); got&header.TCPFlagRst == 0 {
		t.Errorf("the answer has the flags %v", got)
	}
	if len(asked) > 0 {
		t.Errorf("%s was dialled", <-asked)
	}
}

// The port of a connection that its target has ended is good for the next one, as it is where nothing is in between.
func TestAPortIsTakenAgainAtOnce(t *testing.T) {
	ln, d := target(t)
	p := newPlace(t, d)
	const soon = 30 * time.Second // of the 60 s that a port rests with others
	local := &net.TCPAddr{}
	for range 3 {
		var c net.Conn
		err := error(unix.EADDRINUSE)
		// The end of the one before may not have come back here, or not have arrived there.
		for end := time.Now().Add(soon); (errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.ECONNREFUSED)) && time.Now().Before(end); time.Sleep(time.Millisecond) {
			p.do(func() { c, err = (&net.Dialer{Timeout: soon, LocalAddr: local}).Dial("tcp", "10.77.0.1:80") })
		}
		if err != nil {
			t.Fatalf("from port %d: %v", local.Port, err)
		}
		local = c.LocalAddr().(*net.TCPAddr)
		s, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d, %v", n, err)
		}
		_ = c.Close()
	}
}
