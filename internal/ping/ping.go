// Package ping is what bridge knows of ICMP: echo requests that it sends, as a net.Conn whose datagrams are echoes (Dial), and the messages by
// which it answers a program in a target's place (Reply, Refusal). The proxy dials by it for the laptop's programs (internal/intercept), and
// internal/connect for those of this machine; internal/netns and internal/packet meet the programs. It dials on Linux.
//
// An echo is the sequence number (2 bytes) and the data of a request, which the answer to it has as well. The identifier tells one program's from
// another's, and is each side's own.
package ping

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"syscall"
)

// The types of messages, of ICMP (RFC 792) and of ICMPv6 (RFC 4443).
const (
	reply4, unreachable4, request4 = 0, 3, 8
	unreachable6, request6, reply6 = 1, 128, 129

	// Codes of "unreachable".
	host4, prohibited4    = 1, 13
	prohibited6, address6 = 1, 3
)

const (
	protocol4, protocol6 = 1, 58

	// headSize is what a message has before an echo's data, and an error before the packet that it quotes; echoAt is where an echo begins in it.
	headSize = 8
	echoAt   = 6
)

// Requests and Replies are the types of the messages that programs send and get: of ICMP, and of ICMPv6 with six.
func Requests(six bool) byte { return either(six, request6, request4) }

// Replies are the types of all that answers one: an echo, or an error.
func Replies(six bool) []byte {
	return []byte{either(six, reply6, reply4), either(six, unreachable6, unreachable4)}
}

func either(six bool, a, b byte) byte {
	if six {
		return a
	}
	return b
}

// ParseRequest takes an echo request apart; ok is false when message is none. echo is part of it.
func ParseRequest(message []byte, six bool) (id uint16, echo []byte, ok bool) {
	return parse(message, Requests(six))
}

func parse(message []byte, kind byte) (id uint16, echo []byte, ok bool) {
	if len(message) < headSize || message[0] != kind || message[1] != 0 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(message[4:]), message[echoAt:], true
}

// Reply is the message by which from answers an echo of to's.
func Reply(from, to netip.Addr, id uint16, echo []byte) []byte {
	return whole(from, to, either(to.Is6(), reply6, reply4), 0, withID(id, echo))
}

// Refusal is the message by which by tells from that its echo did not reach to, for err.
func Refusal(by, from, to netip.Addr, id uint16, echo []byte, err error) []byte {
	prohibited := errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM)
	kind, code := byte(unreachable4), byte(host4)
	switch {
	case to.Is6() && prohibited:
		kind, code = unreachable6, prohibited6
	case to.Is6():
		kind, code = unreachable6, address6
	case prohibited:
		code = prohibited4
	}
	request := whole(from, to, Requests(to.Is6()), 0, withID(id, echo))
	quoted := append(Header(from, to, protocol(to.Is6()), len(request)), request[:headSize]...)
	return whole(by, from, kind, code, append(make([]byte, 4), quoted...))
}

func protocol(six bool) byte { return either(six, protocol6, protocol4) }

// withID is what stands behind the checksum.
func withID(id uint16, echo []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, id), echo...)
}

// whole is a message from one address to another.
func whole(from, to netip.Addr, kind, code byte, rest []byte) []byte {
	b := append([]byte{kind, code, 0, 0}, rest...)
	var sum uint32
	if to.Is6() {
		sum = Pseudo(from, to, protocol6, len(b))
	}
	binary.BigEndian.PutUint16(b[2:], Checksum(b, sum))
	return b
}

// Header is the IP header, of the version that the addresses have, of a packet in which size bytes of a protocol follow.
func Header(from, to netip.Addr, protocol byte, size int) []byte {
	const hops = 64
	if to.Is6() {
		b := append(make([]byte, 0, 40), 6<<4, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(size))
		b = append(b, protocol, hops)
		return append(append(b, from.AsSlice()...), to.AsSlice()...)
	}
	b := make([]byte, 12, 20)
	b[0], b[8], b[9] = 4<<4|20/4, hops, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(20+size))
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[10:], Checksum(b, 0))
	return b
}

// Pseudo is the sum to begin a checksum with over IPv6 (RFC 8200 section 8.1), of size bytes of a protocol.
func Pseudo(from, to netip.Addr, protocol byte, size int) uint32 {
	return add(add(uint32(size)+uint32(protocol), from.AsSlice()), to.AsSlice())
}

// Checksum is that of b (RFC 1071), with what sum has already.
func Checksum(b []byte, sum uint32) uint16 {
	for sum = add(sum, b); sum > 0xffff; {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// add adds b's words, of which there are few enough for 32 bits.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) > 0 {
		sum += uint32(b[0]) << 8
	}
	return sum
}
