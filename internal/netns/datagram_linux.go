package netns

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// datagramSockets opens the two of Datagrams, on none of the taken ports.
func datagramSockets(taken []uint16) (files []*os.File, port uint16, err error) {
	in, port, err := transparent()
	for err == nil && slices.Contains(taken, port) {
		defer func(f *os.File) { _ = f.Close() }(in) // then, so that it is not found again
		in, port, err = transparent()
	}
	if err != nil {
		return nil, 0, err
	}
	files = append(files, in)
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return files, 0, os.NewSyscallError("socket", err)
	}
	return append(files, os.NewFile(uintptr(out), "raw")), port, nil
}

// transparent is a socket on any port that is free, which tells what a datagram was sent to.
func transparent() (*os.File, uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1),
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{}),
	)
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), "datagrams"), uint16(bound.(*unix.SockaddrInet4).Port), nil
}

// Read waits for a datagram, from a program to what it has sent it to. What is longer than p is cut.
func (d *Datagrams) Read(p []byte) (n int, from, to netip.AddrPort, err error) {
	oob := make([]byte, 128)
	n, oobn, _, from, err := d.in.ReadMsgUDPAddrPort(p, oob)
	if err != nil {
		return 0, from, to, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, from, to, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_ORIGDSTADDR && len(m.Data) >= 8 {
			b := m.Data // a sockaddr_in: family, port, address
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
		}
	}
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), to, nil
}

// Write sends a program a datagram that comes from the address from.
func (d *Datagrams) Write(b []byte, from, to netip.AddrPort) error {
	p, err := packet(b, from, to)
	if err != nil {
		return err
	}
	raw, err := d.out.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendto(int(fd), p, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
	return errors.Join(err, os.NewSyscallError("sendto", sent))
}

func newDatagrams(in *net.UDPConn, out *os.File) *Datagrams { return &Datagrams{in, out} }
