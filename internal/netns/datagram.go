package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"

	"bridge/internal/flow"
	"bridge/internal/ping"
)

// Datagrams is what the programs send by UDP, to any address and port but DNS's of IPv4, and their echo requests. What the kernel cannot hand out is not
// there: such UDP is refused at once, and echo requests are not permitted.
type Datagrams struct {
	in   []source
	out4 *os.File // raw sockets, which take whole packets; nil without in's of that version
	out6 *os.File
}

// source is a socket that tells of each datagram what it was sent to.
type source struct {
	conn net.PacketConn
	read func(b, oob []byte) (p flow.Pair, payload []byte, err error)
}

// Close closes all. A nil d is closed.
func (d *Datagrams) Close() {
	if d == nil {
		return
	}
	for _, s := range d.in {
		_ = s.conn.Close()
	}
	for _, f := range []*os.File{d.out4, d.out6} {
		if f != nil {
			_ = f.Close()
		}
	}
}

const (
	protocolICMP   = 1
	protocolUDP    = 17
	protocolICMPv6 = 58

	// udpHead is what UDP has before a payload, maxPayload what it can carry over IPv4, and maxPayload6 what there is room for over IPv6 in a packet of the
	// loopback device.
	udpHead     = 8
	maxPayload  = 65507
	maxPayload6 = 65536 - 40 - udpHead
)

var errTooLong = errors.New("a datagram is too long")

// udpMessage is a datagram from one address to another, with its checksum.
func udpMessage(from, to netip.AddrPort, b []byte) []byte {
	size := udpHead + len(b)
	m := make([]byte, 0, size)
	m = binary.BigEndian.AppendUint16(m, from.Port())
	m = binary.BigEndian.AppendUint16(m, to.Port())
	m = binary.BigEndian.AppendUint16(m, uint16(size))
	m = append(append(m, 0, 0), b...)
	if !to.Addr().Is6() { // one without is as good where no wire is
		return m
	}
	sum := ping.Checksum(m, ping.Pseudo(from.Addr(), to.Addr(), protocolUDP, size))
	if sum == 0 { // which says that there is none
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(m[6:], sum)
	return m
}

// Answer sends p's sender a datagram that comes from its target.
func (d *Datagrams) Answer(p flow.Pair, b []byte) error {
	if len(b) > maxPayload || p.To.Addr().Is6() && len(b) > maxPayload6 {
		return errTooLong
	}
	if p.Network == "icmp" {
		return d.send(p.To.Addr(), p.From.Addr(), true, ping.Reply(p.To.Addr(), p.From.Addr(), p.From.Port(), b))
	}
	return d.send(p.To.Addr(), p.From.Addr(), false, udpMessage(p.To, p.From, b))
}

// Refuse tells p's sender that an echo does not reach its target, for err. Of UDP nothing is told.
func (d *Datagrams) Refuse(p flow.Pair, echo []byte, err error) {
	if p.Network != "icmp" {
		return
	}
	by := own4
	if p.To.Addr().Is6() {
		by = own6
	}
	_ = d.send(by, p.From.Addr(), true, ping.Refusal(by, p.From.Addr(), p.To.Addr(), p.From.Port(), echo, err)) // one that is lost
}

// packet is one that a raw socket takes, with a message of ICMP or of UDP.
func packet(from, to netip.Addr, icmp bool, message []byte) []byte {
	protocol := byte(protocolUDP)
	switch {
	case icmp && to.Is6():
		protocol = protocolICMPv6
	case icmp:
		protocol = protocolICMP
	}
	return append(ping.Header(from, to, protocol, len(message)), message...)
}
