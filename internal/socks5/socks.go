package socks5

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"bridge/pkg/tunnel"
)

// The numbers of RFC 1928.
const (
	version5 = 0x05

	methodNone         = 0x00
	methodNoAcceptable = 0xff

	commandConnect   = 0x01
	commandAssociate = 0x03

	addressIPv4   = 0x01
	addressDomain = 0x03
	addressIPv6   = 0x04
)

// request is what a SOCKS5 client asks for.
type request struct {
	command byte
	target
}

// target is where a client wants to go.
type target struct {
	host string // an address without brackets, or a name, never resolved here
	port uint16
}

func (t target) address() string {
	return net.JoinHostPort(t.host, strconv.Itoa(int(t.port)))
}

var (
	errVersion  = errors.New("not SOCKS version 5")
	errAddrType = errors.New("unknown SOCKS5 address type")
	errDomain   = errors.New("host name is empty or holds characters that no host name has")
)

// readMethods reads the client's greeting after its first byte and says whether it accepts to go on
// without authentication.
func readMethods(r io.Reader) (ok bool, err error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return false, err
	}
	methods := make([]byte, n[0]) // at most 255
	if _, err := io.ReadFull(r, methods); err != nil {
		return false, err
	}
	for _, m := range methods {
		if m == methodNone {
			return true, nil
		}
	}
	return false, nil
}

// readRequest reads one request and not a byte more: what follows belongs to the target. errAddrType
// and errDomain still fill in the command, and can be answered.
func readRequest(r io.Reader) (request, error) {
	var head [4]byte // version, command, reserved, address type
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return request{}, err
	}
	if head[0] != version5 {
		return request{}, errVersion
	}
	to, err := readTarget(r, head[3])
	if err != nil && !errors.Is(err, errAddrType) && !errors.Is(err, errDomain) {
		return request{}, err
	}
	return request{command: head[1], target: to}, err
}

// readTarget reads an address of the given type and a port, and not a byte more.
func readTarget(r io.Reader, kind byte) (target, error) {
	var size int
	switch kind {
	case addressIPv4:
		size = net.IPv4len
	case addressIPv6:
		size = net.IPv6len
	case addressDomain:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return target{}, err
		}
		size = int(n[0])
	default:
		return target{}, errAddrType
	}
	body := make([]byte, size+2) // at most 257
	if _, err := io.ReadFull(r, body); err != nil {
		return target{}, err
	}
	host, port := body[:size], binary.BigEndian.Uint16(body[size:])
	if kind == addressDomain {
		if !plausibleName(host) {
			return target{}, errDomain
		}
		return target{string(host), port}, nil
	}
	addr, _ := netip.AddrFromSlice(host)
	return target{addr.Unmap().String(), port}, nil
}

// append appends t as requests, replies and datagrams have it.
func (t target) append(b []byte) []byte {
	if addr, err := netip.ParseAddr(t.host); err != nil {
		b = append(b, addressDomain, byte(len(t.host)))
		b = append(b, t.host...)
	} else if addr = addr.Unmap().WithZone(""); addr.Is4() {
		b = append(append(b, addressIPv4), addr.AsSlice()...)
	} else {
		b = append(append(b, addressIPv6), addr.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, t.port)
}

// plausibleName keeps out what could change the meaning of "host:port" or of a log line; whether
// such a name exists is for the resolver on the other side. Literal addresses pass.
func plausibleName(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || c == '[' || c == ']' || c == '/' || c == '%' {
			return false
		}
	}
	return len(b) > 0
}

// appendReply appends a reply that names bound as our address towards the target, or for datagrams; a bound that is neither TCP's
// nor UDP's, also nil, becomes 0.0.0.0:0.
func appendReply(b []byte, code reply, bound net.Addr) []byte {
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if a, ok := bound.(interface{ AddrPort() netip.AddrPort }); ok && a.AddrPort().IsValid() {
		at = a.AddrPort()
	}
	return target{at.Addr().String(), at.Port()}.append(append(b, version5, byte(code), 0))
}

// serveSOCKS speaks SOCKS5 with c, whose first byte has been read, until the connection is over. The
// deadline of the handshake is already set.
func (s *session) serveSOCKS(ctx context.Context, c *net.TCPConn) error {
	ok, err := readMethods(c)
	if err != nil {
		return fmt.Errorf("read SOCKS5 greeting: %w", err)
	}
	if !ok {
		_, err := c.Write([]byte{version5, methodNoAcceptable})
		return errors.Join(errors.New("client insists on SOCKS5 authentication"), err)
	}
	if _, err := c.Write([]byte{version5, methodNone}); err != nil {
		return err
	}
	req, err := readRequest(c)
	switch {
	case errors.Is(err, errAddrType):
		return s.refuseSOCKS(c, replyAddressNotSupported, err)
	case errors.Is(err, errDomain):
		return s.refuseSOCKS(c, replyGeneralFailure, err)
	case err != nil:
		return fmt.Errorf("read SOCKS5 request: %w", err)
	case req.command != commandConnect && req.command != commandAssociate:
		return s.refuseSOCKS(c, replyCommandNotSupported, fmt.Errorf("SOCKS5 command %d is not supported", req.command))
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if req.command == commandAssociate {
		return s.associate(ctx, c, req.target)
	}
	return s.connect(ctx, c, req.target)
}

// connect joins c with to.
func (s *session) connect(ctx context.Context, c *net.TCPConn, to target) error {
	conn, err := s.dial(ctx, "tcp", to.address())
	if err != nil {
		return s.refuseSOCKS(c, refusalFor(err).socks, fmt.Errorf("dial %s: %w", to.address(), err))
	}
	if _, err := c.Write(appendReply(nil, replySucceeded, conn.LocalAddr())); err != nil {
		return errors.Join(err, conn.Close())
	}
	return new(tunnel.Flow).SpliceContext(ctx, c, conn)
}

// refuseSOCKS answers with code and returns why.
func (s *session) refuseSOCKS(c *net.TCPConn, code reply, why error) error {
	if _, err := c.Write(appendReply(nil, code, nil)); err != nil {
		return errors.Join(why, err)
	}
	return why
}
