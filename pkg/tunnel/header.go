package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
)

// Kind says what a stream is for.
type Kind uint8

// The kinds of stream.
const (
	Dial    Kind = 1 // laptop to pod: dial this for me
	Inbound Kind = 2 // pod to laptop: a caller arrived on this port
	Look    Kind = 3 // laptop to pod: what does the container see? SPEC.md section 11
)

func (k Kind) String() string {
	switch k {
	case Dial:
		return "dial"
	case Inbound:
		return "inbound"
	case Look:
		return "view"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Header is the first thing on a stream: what its connection is.
type Header struct {
	Kind    Kind
	Network string         // "tcp", "udp", or of a Dial "icmp"
	Address string         // Dial: "host:port"; Inbound: ":port", the pod's; Look: the Sum of an earlier View, or ""
	Peer    netip.AddrPort // Inbound: the caller; zero when not known
}

const (
	// maxHeader bounds a header on the wire: a DNS name has at most 255 bytes, the rest is small.
	maxHeader = 1024
	// headerFixed is the shortest body: kind, network, length of the caller's address, length of the target.
	headerFixed = 5
)

var networks = map[string]byte{"tcp": 1, "udp": 2, "icmp": 3}

// datagrams tells whether the stream carries these, and not bytes.
func (h Header) datagrams() bool { return h.Network != "tcp" }

func networkName(code byte) string {
	for name, c := range networks {
		if c == code {
			return name
		}
	}
	return fmt.Sprintf("number %d", code)
}

// check says what is wrong with the kind or the network.
func (h Header) check() error {
	_, known := networks[h.Network]
	switch {
	case h.Kind < Dial || h.Kind > Look:
		return fmt.Errorf("stream header: %v", h.Kind)
	case !known:
		return fmt.Errorf("stream header: network %q, want tcp, udp or icmp", h.Network)
	case h.Network == "icmp" && h.Kind != Dial:
		return fmt.Errorf("stream header: %v of network icmp", h.Kind)
	}
	return nil
}

// appendHeader appends h as in SPEC.md section 6.
func appendHeader(b []byte, h Header) ([]byte, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	var ip []byte
	if h.Peer.IsValid() {
		ip = h.Peer.Addr().Unmap().AsSlice()
	}
	size := headerFixed + len(ip) + len(h.Address)
	if len(ip) > 0 {
		size += 2
	}
	if 2+size > maxHeader {
		return nil, fmt.Errorf("stream header: %d bytes, at most %d: target %.64q", 2+size, maxHeader, h.Address)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = append(b, byte(h.Kind), networks[h.Network], byte(len(ip)))
	if len(ip) > 0 {
		b = append(b, ip...)
		b = binary.BigEndian.AppendUint16(b, h.Peer.Port())
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Address)))
	return append(b, h.Address...), nil
}

// readHeader reads one header and not a byte more.
func readHeader(r io.Reader) (Header, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return Header{}, fmt.Errorf("stream header: %w", err)
	}
	size := binary.BigEndian.Uint16(length[:])
	if size < headerFixed || size > maxHeader-2 {
		return Header{}, fmt.Errorf("stream header: %d bytes, want %d to %d", size, headerFixed, maxHeader-2)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return Header{}, fmt.Errorf("stream header: %w", err)
	}
	return parseHeader(body)
}

func parseHeader(body []byte) (Header, error) {
	h := Header{Kind: Kind(body[0]), Network: networkName(body[1])}
	if err := h.check(); err != nil {
		return Header{}, err
	}
	ipLen, rest := int(body[2]), body[3:]
	switch ipLen {
	case 0:
	case 4, 16:
		if len(rest) < ipLen+2 {
			return Header{}, fmt.Errorf("stream header: cut short in the caller's address")
		}
		ip, _ := netip.AddrFromSlice(rest[:ipLen])
		h.Peer = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(rest[ipLen:]))
		rest = rest[ipLen+2:]
	default:
		return Header{}, fmt.Errorf("stream header: caller's address of %d bytes", ipLen)
	}
	if len(rest) < 2 {
		return Header{}, fmt.Errorf("stream header: cut short before the target")
	}
	n := int(binary.BigEndian.Uint16(rest))
	if rest = rest[2:]; len(rest) < n {
		return Header{}, fmt.Errorf("stream header: cut short in the target")
	}
	h.Address = string(rest[:n])
	return h, nil
}
