package kube

import (
	"crypto/tls"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"bridge/internal/cork"
)

// unacknowledged is how long the peer of a TCP connection has acknowledged nothing although something
// waits for it, and no probe of its closed window. A peer that only does not read acknowledges all the same. ok is false when unknown.
func unacknowledged(conn net.Conn) (silent time.Duration, ok bool) {
	info, ok := tcpInfo(conn)
	if !ok || info.Unacked == 0 && info.Probes < 2 {
		return 0, false
	}
	return time.Duration(info.Last_ack_recv) * time.Millisecond, true
}

// longestRTO is the most that TCP waits before it sends again, and so the most for TCP_RTO_MAX_MS.
const longestRTO = 2 * time.Minute

// probeOften has TCP ask a peer whose window is closed at least once in that time, where the kernel can (6.15). Usually it asks in the end only every
// 2 minutes, and nothing else tells that such a peer is gone. The same setting bounds how long TCP waits for an acknowledgement: where the path takes longer, all would
// be sent twice (RFC 6298, 2.5, wants a minute at least for that). So it is never less than twice what that wait would be now, and to be set anew from time to time.
func probeOften(conn net.Conn, most time.Duration) {
	info, ok := tcpInfo(conn)
	if !ok {
		return
	}
	now := time.Duration(info.Rtt+4*info.Rttvar) * time.Microsecond // RFC 6298, 2.3
	most = min(max(most, 2*now), longestRTO)
	if raw, err := tcpUnder(conn).SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, int(most.Milliseconds()))
		})
	}
}

// retransmitted counts the packets with data that a TCP connection sent, and how many of them for another time. ok is
// false when unknown.
func retransmitted(conn net.Conn) (sent, again uint32, ok bool) {
	info, ok := tcpInfo(conn)
	if !ok {
		return 0, 0, false
	}
	return info.Data_segs_out, info.Total_retrans, true
}

// tcpUnder is the TCP connection that conn is, or that is under its TLS; nil when there is none.
func tcpUnder(conn net.Conn) *net.TCPConn {
	if t, isTLS := conn.(*tls.Conn); isTLS {
		conn = t.NetConn()
	}
	if own, isOwn := conn.(ownDeadline); isOwn {
		conn = own.Conn
	}
	if c, isCork := conn.(*cork.Conn); isCork {
		conn = c.Conn
	}
	tcp, _ := conn.(*net.TCPConn)
	return tcp
}

// tcpInfo asks the kernel.
func tcpInfo(conn net.Conn) (info *unix.TCPInfo, ok bool) {
	tcp := tcpUnder(conn)
	if tcp == nil {
		return nil, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, false
	}
	var infoErr error
	err = raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	})
	return info, err == nil && infoErr == nil
}
