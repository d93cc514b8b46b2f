package netns

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
)

// Datagrams is what the programs send by UDP over IPv4, to any address and port but DNS's.
type Datagrams struct {
	in  *net.UDPConn // tells of each what it was sent to
	out *os.File     // a raw socket, which takes whole packets
}

// Close closes both. A nil d is closed.
func (d *Datagrams) Close() {
	if d == nil {
		return
	}
	if d.in != nil {
		_ = d.in.Close()
	}
	if d.out != nil {
		_ = d.out.Close()
	}
}

// maxPayload is what UDP over IPv4 can carry.
const maxPayload = 65507

var errTooLong = errors.New("a datagram is too long")

// packet is an IPv4 packet with a datagram from one address to another. The kernel fills in the length, and the checksum of the head; a
// datagram without one is as good where no wire is.
func packet(b []byte, from, to netip.AddrPort) ([]byte, error) {
	if len(b) > maxPayload {
		return nil, errTooLong
	}
	const head, udpHead = 20, 8
	p := make([]byte, head, head+udpHead+len(b))
	p[0], p[8], p[9] = 4<<4|head/4, 64, 17 // version and size of the head, time to live, UDP
	binary.BigEndian.PutUint16(p[2:], uint16(head+udpHead+len(b)))
	source, target := from.Addr().As4(), to.Addr().As4()
	copy(p[12:], source[:])
	copy(p[16:], target[:])
	p = binary.BigEndian.AppendUint16(p, from.Port())
	p = binary.BigEndian.AppendUint16(p, to.Port())
	p = binary.BigEndian.AppendUint16(p, uint16(udpHead+len(b)))
	p = append(p, 0, 0)
	return append(p, b...), nil
}
