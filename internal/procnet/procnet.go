// Package procnet reads the sockets in /proc/net/tcp, tcp6, udp and udp6: proc_pid_net(5).
package procnet

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// States of sockets, as the kernel numbers them.
const (
	TimeWait  = 6 // both sides have ended; a program may still have it, though it has no inode
	Closed    = 7 // of UDP: not connected
	Listening = 10
)

// Socket is a line.
type Socket struct {
	Local, Remote netip.AddrPort // IPv4 in IPv6 is IPv4
	State         int
	Sent, Waiting uint64 // bytes: not acknowledged, not read
	Inode         string // what /proc/PID/fd calls it: "socket:[INODE]"
}

// Parse reads a line; false for the heading, and for what is none.
func Parse(line string) (s Socket, ok bool) {
	f := strings.Fields(line)
	if len(f) < 10 || !strings.HasSuffix(f[0], ":") {
		return s, false
	}
	var ok1, ok2 bool
	s.Local, ok1 = parseAddress(f[1])
	s.Remote, ok2 = parseAddress(f[2])
	state, err := strconv.ParseUint(f[3], 16, 8)
	tx, rx, ok3 := strings.Cut(f[4], ":")
	s.Sent, _ = strconv.ParseUint(tx, 16, 64)
	s.Waiting, _ = strconv.ParseUint(rx, 16, 64)
	s.State, s.Inode = int(state), f[9]
	return s, err == nil && ok1 && ok2 && ok3
}

// parseAddress reads "0100007F:1F90": words of 32 bits, each as a number of this machine's.
func parseAddress(s string) (netip.AddrPort, bool) {
	address, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if err != nil || err2 != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), true
}
