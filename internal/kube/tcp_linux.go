package kube

import (
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"bridge/internal/cork"
)

// unacknowledged is how long the peer of a TCP connection has acknowledged nothing although something
// waits for it. A peer that only does not read acknowledges all the same. ok is false when unknown.
func unacknowledged(conn net.Conn) (silent time.Duration, ok bool) {
	if t, isTLS := conn.(*tls.Conn); isTLS {
		conn = t.NetConn()
	}
	if c, isCork := conn.(*cork.Conn); isCork {
		conn = c.Conn
	}
	tcp, isTCP := conn.(*net.TCPConn)
	if !isTCP {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = raw.Control(func(fd uintptr) {
		info, ierr := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if ierr == nil && info.Unacked > 0 {
			silent, ok = time.Duration(info.Last_ack_recv)*time.Millisecond, true
		}
	})
	return silent, ok && err == nil
}
