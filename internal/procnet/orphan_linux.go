package procnet

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Of linux/inet_diag.h: struct inet_diag_req_v2 and inet_diag_msg.
const (
	diagRequest = 56
	diagState   = 1  // where an answer has the state, 1 byte
	diagInode   = 68 // and the inode, 4 bytes
)

// Orphaned tells whether the TCP socket at local, which is connected to remote, is one of this machine's that no program has any more: it is closed, where
// its other end sees the same as of one that has ended its half alone. False where that cannot be told, as of other machines' and other networks' sockets,
// and of those that both sides have ended.
// It asks the kernel: sock_diag(7).
func Orphaned(local, remote net.Addr) bool {
	from, to, ok := tcpAddresses(local, remote)
	if !ok {
		return false
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	b := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	req := b[unix.SizeofNlMsghdr:]
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	if from.Addr().Is6() {
		req[0] = unix.AF_INET6
	}
	binary.BigEndian.PutUint16(req[8:], from.Port())
	binary.BigEndian.PutUint16(req[10:], to.Port())
	copy(req[12:], from.Addr().AsSlice())
	copy(req[28:], to.Addr().AsSlice())
	binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // any cookie
	if unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return false
	}
	answer := make([]byte, 4<<10)
	n, _, err := unix.Recvfrom(fd, answer, 0) // the kernel answers before Sendto returns
	if err != nil || n < unix.SizeofNlMsghdr+diagInode+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.SOCK_DIAG_BY_FAMILY {
		return false
	}
	return answer[unix.SizeofNlMsghdr+diagState] != TimeWait && binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr+diagInode:]) == 0
}

// tcpAddresses are IPv4 where both are, also as IPv6.
func tcpAddresses(local, remote net.Addr) (from, to netip.AddrPort, ok bool) {
	l, ok1 := local.(*net.TCPAddr)
	r, ok2 := remote.(*net.TCPAddr)
	if !ok1 || !ok2 {
		return from, to, false
	}
	from, to = l.AddrPort(), r.AddrPort()
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	return from, to, from.Addr().Is4() == to.Addr().Is4()
}
