package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bridge/internal/flow"
	"bridge/internal/ping"
)

// The kinds of sockets that are handed over for Datagrams.
const (
	udp4, icmp4, raw4 = "udp4", "icmp4", "raw4"
	udp6, icmp6, raw6 = "udp6", "icmp6", "raw6"
)

// And those where a device is in the place of nftables.
const (
	tun        = "tun"
	veth       = "veth"
	namesPass  = "names pass" // no socket
	redirected = "redirected" // no socket
	localPort  = "local port"
)

// datagramSockets opens those that this kernel has, on none of the taken ports, and has datagrams and echo requests come to them.
func datagramSockets(o Options, taken []uint16) (kinds []string, files []*os.File) {
	for _, six := range []bool{false, true} {
		if !six || len(o.IPv6) > 0 {
			names, more := socketsOf(six, taken)
			kinds, files = append(kinds, names...), append(files, more...)
		}
	}
	return kinds, files
}

// passEchoes has echo requests go to a device, and the kernel answer for itself again, where datagramSockets has opened names. What cannot be leaves them where
// they were: without an answer.
func passEchoes(names []string) {
	for six, name := range map[bool]string{false: icmp4, true: icmp6} {
		_ = ignoreEchoes(six, false)
		if !slices.Contains(names, name) {
			_ = letEchoes(six)
		}
	}
}

// ignoreEchoes has the kernel answer no echo request of one version, or answer them again.
func ignoreEchoes(six, ignore bool) error {
	file, text := "/proc/sys/net/ipv4/icmp_echo_ignore_all", "0"
	if six {
		file = "/proc/sys/net/ipv6/icmp/echo_ignore_all"
	}
	if ignore {
		text = "1"
	}
	return os.WriteFile(file, []byte(text), 0)
}

// socketsOf opens those of one version of IP.
func socketsOf(six bool, taken []uint16) (kinds []string, files []*os.File) {
	family, udp, icmp, raw := unix.AF_INET, udp4, icmp4, raw4
	if six {
		family, udp, icmp, raw = unix.AF_INET6, udp6, icmp6, raw6
	}
	out, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, nil
	}
	kinds, files = []string{raw}, []*os.File{os.NewFile(uintptr(out), raw)}
	if in, port, err := transparentApart(six, taken); err == nil {
		if catchDatagrams(six, port) == nil {
			kinds, files = append(kinds, udp), append(files, in)
		} else {
			_ = in.Close()
		}
	}
	if in, err := echoes(six); err == nil {
		if letEchoes(six) == nil {
			kinds, files = append(kinds, icmp), append(files, in)
		} else {
			_ = in.Close()
		}
	}
	return kinds, files
}

// transparentApart is transparent on none of the taken ports.
func transparentApart(six bool, taken []uint16) (*os.File, uint16, error) {
	for {
		in, port, err := transparent(six)
		if err != nil || !slices.Contains(taken, port) {
			return in, port, err
		}
		defer func() { _ = in.Close() }() // then, so that it is not found again
	}
}

// transparent is a socket on any port that is free, which tells what a datagram was sent to.
func transparent(six bool) (*os.File, uint16, error) {
	family, level, is, tell, all := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT, unix.IP_RECVORIGDSTADDR, unix.Sockaddr(&unix.SockaddrInet4{})
	if six {
		family, level, is, tell, all = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, unix.IPV6_RECVORIGDSTADDR, &unix.SockaddrInet6{}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	err = errors.Join(unix.SetsockoptInt(fd, level, is, 1), unix.SetsockoptInt(fd, level, tell, 1))
	if six {
		err = errors.Join(err, unix.SetsockoptInt(fd, level, unix.IPV6_V6ONLY, 1))
	}
	err = errors.Join(err, unix.Bind(fd, all))
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, 0, err
	}
	f := os.NewFile(uintptr(fd), "datagrams")
	if six {
		return f, uint16(bound.(*unix.SockaddrInet6).Port), nil
	}
	return f, uint16(bound.(*unix.SockaddrInet4).Port), nil
}

// echoes is a socket that hears the echo requests of one version, which the kernel answers no more: all addresses are its own.
func echoes(six bool) (*os.File, error) {
	family, protocol := unix.AF_INET, protocolICMP
	if six {
		family, protocol = unix.AF_INET6, protocolICMPv6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "echoes")
	err = ping.Only(fd, six, ping.Requests(six))
	if err == nil && six {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, 1))
	}
	if err == nil {
		err = ignoreEchoes(six, true)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// add takes a socket that was handed over.
func (d *Datagrams) add(kind string, f *os.File) error {
	switch kind {
	case raw4:
		d.out4 = f
		return nil
	case raw6:
		d.out6 = f
		return nil
	}
	defer func() { _ = f.Close() }()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	s := source{conn: c}
	switch c := c.(type) {
	case *net.UDPConn:
		s.read = readUDP(c)
	case *net.IPConn:
		if s.read = readEcho4(c); kind == icmp6 {
			s.read = readEcho6(c)
		}
	}
	d.in = append(d.in, s)
	return nil
}

// Receive gives put what is sent, until Close, which is no error, and answers itself what is sent to the namespace's own addresses. put must not keep b,
// and may be called several times at once.
func (d *Datagrams) Receive(put func(p flow.Pair, b []byte)) error {
	var g errgroup.Group
	for _, s := range d.in {
		g.Go(func() error {
			err := d.receive(s, put)
			if err != nil {
				d.Close()
			}
			return err
		})
	}
	return g.Wait()
}

func (d *Datagrams) receive(s source, put func(p flow.Pair, b []byte)) error {
	b, oob := make([]byte, flow.MaxDatagram), make([]byte, 128)
	for {
		p, payload, err := s.read(b, oob)
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		case !p.To.IsValid(): // not for us
		case p.Network == "icmp" && slices.ContainsFunc(within, func(w netip.Prefix) bool { return w.Contains(p.To.Addr()) }):
			_ = d.Answer(p, payload)
		default:
			put(p, payload)
		}
	}
}

// readUDP reads datagrams, with what they were sent to.
func readUDP(c *net.UDPConn) func(b, oob []byte) (flow.Pair, []byte, error) {
	return func(b, oob []byte) (flow.Pair, []byte, error) {
		p := flow.Pair{Network: "udp"}
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
		if err != nil {
			return p, nil, err
		}
		p.From = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		err = told(oob[:oobn], func(level, kind int32, b []byte) {
			switch { // a socket address: family, port, (flow,) address
			case level == unix.SOL_IP && kind == unix.IP_ORIGDSTADDR && len(b) >= 8:
				p.To = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:]))
			case level == unix.SOL_IPV6 && kind == unix.IPV6_ORIGDSTADDR && len(b) >= 24:
				p.To = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:]))
			}
		})
		return p, b[:n], err
	}
}

// readEcho4 reads echo requests of IPv4, whose packets come with their header.
func readEcho4(c *net.IPConn) func(b, oob []byte) (flow.Pair, []byte, error) {
	return func(b, _ []byte) (p flow.Pair, echo []byte, err error) {
		n, _, _, _, err := c.ReadMsgIP(b, nil)
		if err != nil || n < 20 || int(b[0]&0xf)*4 > n {
			return p, nil, err
		}
		from, to := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p, echo = asked(from, to, b[int(b[0]&0xf)*4:n])
		return p, echo, nil
	}
}

// readEcho6 reads those of IPv6, which come without, and are told of beside.
func readEcho6(c *net.IPConn) func(b, oob []byte) (flow.Pair, []byte, error) {
	return func(b, oob []byte) (p flow.Pair, echo []byte, err error) {
		n, oobn, _, sender, err := c.ReadMsgIP(b, oob)
		if err != nil {
			return p, nil, err
		}
		from, _ := netip.AddrFromSlice(sender.IP)
		err = told(oob[:oobn], func(level, kind int32, info []byte) {
			if level == unix.SOL_IPV6 && kind == unix.IPV6_PKTINFO && len(info) >= 16 {
				p, echo = asked(from, netip.AddrFrom16([16]byte(info[:16])), b[:n])
			}
		})
		return p, echo, err
	}
}

// asked is who asks whom by a message; not valid when it is no echo request.
func asked(from, to netip.Addr, message []byte) (p flow.Pair, echo []byte) {
	id, echo, ok := ping.ParseRequest(message, to.Is6())
	if !ok {
		return p, nil
	}
	return flow.Pair{Network: "icmp", From: netip.AddrPortFrom(from, id), To: netip.AddrPortFrom(to, 0)}, echo
}

// told gives each what the kernel has told beside a datagram.
func told(oob []byte, each func(level, kind int32, b []byte)) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		each(m.Header.Level, m.Header.Type, m.Data)
	}
	return err
}

// send sends a program a message of ICMP or of UDP.
func (d *Datagrams) send(from, to netip.Addr, icmp bool, message []byte) error {
	var f *os.File
	var at unix.Sockaddr
	if to.Is6() {
		f, at = d.out6, &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		f, at = d.out4, &unix.SockaddrInet4{Addr: to.As4()}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendto(int(fd), packet(from, to, icmp, message), unix.MSG_DONTWAIT, at)
	})
	return errors.Join(err, os.NewSyscallError("sendto", sent))
}
