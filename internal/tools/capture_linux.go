package tools

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"bridge/internal/pcapng"
)

// captureBuffer is what the kernel keeps of packets that are not written yet, in bytes. What comes beyond it is dropped, and counted.
const captureBuffer = 8 << 20

// capturing is one under way.
type capturing struct {
	socket   *os.File
	out      *bufio.Writer
	w        pcapng.Writer
	loopback map[int]bool // by the kernel's numbers of interfaces
	written  uint64
}

// stampDelay is how much later than it came a packet may be said to have come: what comes just after the socket was made has its time when it is read.
const stampDelay = 100 * time.Millisecond

// capture writes the packets of the pod's network from and to port until ctx ends.
func capture(ctx context.Context, s Streams, port uint16) (err error) {
	c := &capturing{loopback: map[int]bool{}}
	if c.socket, err = openPackets(port); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			_, _ = fmt.Fprintln(s.Err, "capture: a socket for packets:", err)
			return exitCode(CaptureDenied)
		}
		return fmt.Errorf("a socket for packets: %w", err)
	}
	defer c.socket.Close()
	c.out = bufio.NewWriterSize(s.Out, 64<<10)
	c.w.Out = c.out
	if err := c.begin(); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.Err, "capturing port %d\n", port)
	defer context.AfterFunc(ctx, func() { _ = c.socket.SetReadDeadline(time.Now()) })()
	if err = c.copy(time.Time{}); errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.socket.SetReadDeadline(time.Time{})
		err = c.copy(time.Now().Add(stampDelay))
	}
	return errors.Join(err, c.finish(s))
}

// openPackets opens a socket that gets the packets of all interfaces from their IP headers, those alone that the filter lets pass.
func openPackets(port uint16) (*os.File, error) {
	code, err := bpf.Assemble(portFilter(port))
	if err != nil {
		return nil, err
	}
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	// Of protocol 0 nothing comes before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "packets")
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, captureBuffer) // as much of it as net.core.rmem_max lets
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		_ = socket.Close()
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		_ = socket.Close()
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL)}); err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

// bigEndian is n as the kernel wants it: its bytes in the network's order.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// begin writes the head. The interfaces are one to who reads it: libpcap (1.10) takes no second one whose packets begin with their IP header.
func (c *capturing) begin() error {
	there, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("the network interfaces: %w", err)
	}
	for _, i := range there {
		c.loopback[i.Index] = i.Flags&net.FlagLoopback != 0
	}
	if err := c.w.Begin("bridge capture"); err != nil {
		return err
	}
	if err := c.w.Interface("any", pcapng.MaxPacket); err != nil {
		return err
	}
	return c.out.Flush()
}

// copy writes packets, and passes on what is written whenever there are no more at the moment. It ends with the socket's deadline; with last,
// when it has what came until then.
func (c *capturing) copy(last time.Time) error {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	packet, control := make([]byte, pcapng.MaxPacket), make([]byte, 256)
	for {
		var n, controls int
		var from unix.Sockaddr
		var err, flushed error
		wait := raw.Read(func(fd uintptr) bool {
			for {
				n, controls, _, from, err = unix.Recvmsg(int(fd), packet, control, unix.MSG_TRUNC)
				switch {
				case errors.Is(err, unix.EINTR):
				case errors.Is(err, unix.EAGAIN):
					flushed = c.out.Flush()
					return flushed != nil || !last.IsZero()
				default:
					return true
				}
			}
		})
		switch {
		case wait != nil:
			return wait
		case flushed != nil:
			return flushed
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ENETDOWN): // an interface has gone down
			continue
		case err != nil:
			return err
		}
		at := stampOf(control[:controls])
		if !last.IsZero() && at.After(last) {
			return nil
		}
		if link, ok := from.(*unix.SockaddrLinklayer); ok {
			if err := c.packet(link, packet[:min(n, len(packet))], n, at); err != nil {
				return err
			}
		}
	}
}

func (c *capturing) packet(link *unix.SockaddrLinklayer, data []byte, length int, at time.Time) error {
	p := pcapng.Packet{Time: at, Length: length, Data: data, Direction: pcapng.In}
	if link.Pkttype == unix.PACKET_OUTGOING {
		if c.loopback[link.Ifindex] {
			return nil // it comes in as well
		}
		p.Direction = pcapng.Out
	}
	c.written++
	return c.w.Packet(p)
}

// finish writes what was dropped, and says it.
func (c *capturing) finish(s Streams) error {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return err
	}
	var stats *unix.TpacketStats
	var asked error
	if err := raw.Control(func(fd uintptr) {
		stats, asked = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil {
		return err
	}
	if asked != nil {
		return asked
	}
	if err := c.w.Statistics(time.Now(), c.written+uint64(stats.Drops), uint64(stats.Drops)); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.Err, "%d packets captured, %d dropped by the kernel since they were not taken in time\n", c.written, stats.Drops)
	return c.out.Flush()
}

// stampOf is when the kernel had the packet.
func stampOf(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}
