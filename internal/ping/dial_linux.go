package ping

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMessage is the longest there is, in bytes: in the longest packet of IPv4. maxEcho is what has room in it.
const (
	maxMessage = 65535 - 20
	maxEcho    = maxMessage - echoAt
)

// conn is one identifier's echoes with a target.
type conn struct {
	net.Conn
	six, raw bool
	id       uint16            // of a raw socket; the kernel has one of its own for others, and puts it in place of ours
	lent     *[maxMessage]byte // of messages, with what was read
}

// messages lends buffers for what has arrived: hundreds of programs that ping must not hold 64 KiB each.
var messages = sync.Pool{New: func() any { return new([maxMessage]byte) }}

// Dial makes a socket whose echoes go to address, an IP address and a port, which means nothing. Each Write sends an echo request and each Read has the
// answer to one; what a request has met is Read's error, as of a UDP socket. The error wraps syscall.EACCES when this process may send none.
func Dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", address, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &conn{six: to.Addr().Unmap().Is6()}
	socket, err := c.open(to.Addr().Unmap())
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to.Addr(), err)
	}
	defer func() { _ = socket.Close() }()
	c.Conn, err = net.FileConn(socket)
	if err != nil {
		return nil, fmt.Errorf("ping %s: %w", to.Addr(), err)
	}
	return c, nil
}

// open is a connected socket: one that users may have whose group the system lets, or else one of root's.
func (c *conn) open(to netip.Addr) (*os.File, error) {
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if c.six {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if errors.Is(err, unix.EACCES) {
		c.raw = true
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("the sysctl net.ipv4.ping_group_range lets nobody here send echo requests: %w", syscall.EACCES)
	case err != nil:
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), "ping")
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	c.id = binary.BigEndian.Uint16(id[:])
	if c.raw {
		err = Only(fd, c.six, either(c.six, reply6, reply4))
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(to)))
	}
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// Only has a raw socket of ICMP, or of ICMPv6 with six, hear messages of one type alone.
func Only(fd int, six bool, kind byte) error {
	const icmpFilter = 1 // ICMP_FILTER: a bit for each type that is not wanted
	if !six {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, int(^(uint32(1)<<kind))))
	}
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[kind/32] &^= 1 << (kind % 32)
	return os.NewSyscallError("setsockopt", unix.SetsockoptICMPv6Filter(fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &f))
}

// Read reads the answer to an echo; what does not fit is lost.
func (c *conn) Read(p []byte) (int, error) {
	echo, err := c.Next()
	n := copy(p, echo)
	c.release()
	return n, err
}

// Next is Read with a buffer of c's own, which is good until the next call: those that wait have none. One reads at a time.
func (c *conn) Next() ([]byte, error) {
	c.release()
	for {
		message, err := c.receive()
		if err != nil {
			c.release()
			return nil, err
		}
		if c.raw && !c.six { // with its IP header
			if len(message) < 20 || int(message[0]&0xf)*4 > len(message) {
				continue
			}
			message = message[int(message[0]&0xf)*4:]
		}
		id, echo, ok := parse(message, either(c.six, reply6, reply4))
		if !ok || c.raw && id != c.id { // another's
			continue
		}
		return echo, nil
	}
}

// receive waits for a message.
func (c *conn) receive() (message []byte, err error) {
	raw, err := c.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	n := 0
	waited := raw.Read(func(fd uintptr) bool {
		if c.lent == nil {
			c.lent = messages.Get().(*[maxMessage]byte)
		}
		for {
			if n, err = unix.Read(int(fd), c.lent[:]); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			c.release()
			return false
		}
		return true
	})
	switch {
	case waited != nil:
		return nil, waited
	case err != nil:
		return nil, &net.OpError{Op: "read", Net: "icmp", Addr: c.RemoteAddr(), Err: os.NewSyscallError("read", err)}
	}
	return c.lent[:n], nil
}

func (c *conn) release() {
	if c.lent != nil {
		messages.Put(c.lent)
		c.lent = nil
	}
}

// Write sends an echo request.
func (c *conn) Write(echo []byte) (int, error) {
	if len(echo) < headSize-echoAt {
		return len(echo), nil // is dropped
	}
	if len(echo) > maxEcho {
		return 0, &net.OpError{Op: "write", Net: "icmp", Addr: c.RemoteAddr(), Err: syscall.EMSGSIZE}
	}
	b := slices.Concat([]byte{Requests(c.six), 0, 0, 0}, binary.BigEndian.AppendUint16(nil, c.id), echo)
	if !c.six { // of ICMPv6 it is the kernel's business
		binary.BigEndian.PutUint16(b[2:], Checksum(b, 0))
	}
	if _, err := c.Conn.Write(b); err != nil {
		return 0, err
	}
	return len(echo), nil
}
