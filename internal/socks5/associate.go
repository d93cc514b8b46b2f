package socks5

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"bridge/internal/flow"
	"bridge/pkg/tunnel"
)

// maxAssociations is how many clients send datagrams at once; further ones are refused. Each has a socket and a buffer of 64 KiB.
// Programs that make an association for each flow come as far as the flows do (internal/flow).
const maxAssociations = 1024

var (
	errAssociations = errors.New("too many UDP associations")
	errShort        = errors.New("datagram is shorter than its SOCKS5 header")
	errReserved     = errors.New("datagram does not begin as one of SOCKS5")
	errFragment     = errors.New("fragments of datagrams are not supported")
)

// association is one UDP ASSOCIATE (RFC 1928 section 7).
type association struct {
	s     *session
	relay *net.UDPConn
	// client is where datagrams have to come from. A port of 0 becomes that of the first one; from then on, and so in every flow,
	// it stays.
	client netip.AddrPort
}

// datagramFlow is the datagrams between an association's client and one target.
type datagramFlow struct {
	a  *association
	to target
}

// newFlows carries the datagrams of all associations, whose bounds are therefore common.
func (s *session) newFlows() *flow.Table[datagramFlow] {
	return &flow.Table[datagramFlow]{
		Dial: func(ctx context.Context, f datagramFlow) (net.Conn, error) {
			return s.dial(ctx, "udp", f.to.address())
		},
		Answer: datagramFlow.answer,
		Idle:   func(f datagramFlow) time.Duration { return tunnel.FlowIdle("udp", f.to.address()) },
		Begin: func(f datagramFlow) func(error) {
			return func(err error) {
				if err != nil {
					s.log.Debug("socks5 datagrams", "client", f.a.client, "target", f.to.address(), "error", err)
				}
			}
		},
		Full: func() {
			s.log.Debug("socks5 datagrams are dropped: too many targets at a time, or too much that waits for the tunnel")
		},
	}
}

// associate opens a UDP socket beside c for the client's datagrams, which it has said come from from, until the client closes c.
func (s *session) associate(ctx context.Context, c *net.TCPConn, from target) error {
	select {
	case s.relays <- struct{}{}:
		defer func() { <-s.relays }()
	default:
		return s.refuseSOCKS(c, replyGeneralFailure, errAssociations)
	}
	// The address that the client has reached: it is loopback, and what comes there comes from this machine.
	local, peer := addrOf(c.LocalAddr()), addrOf(c.RemoteAddr())
	relay, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		return s.refuseSOCKS(c, replyGeneralFailure, fmt.Errorf("open a socket for datagrams: %w", err))
	}
	defer func() { _ = relay.Close() }()
	if _, err := c.Write(appendReply(nil, replySucceeded, relay.LocalAddr())); err != nil {
		return err
	}
	a := &association{s: s, relay: relay, client: sender(peer, from)}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() {
		_ = relay.Close()
		_ = c.Close()
	})
	defer stop()
	var receiving sync.WaitGroup
	defer receiving.Wait()
	defer cancel() // also the flows
	receiving.Go(func() {
		defer cancel()
		if err := flow.Receive(ctx, relay, func(from netip.AddrPort, b []byte) { a.put(ctx, from, b) }); err != nil {
			s.log.Debug("socks5 datagrams", "client", c.RemoteAddr(), "error", err)
		}
	})
	if _, err := io.Copy(io.Discard, c); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func addrOf(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }

// sender is where a client's datagrams have to come from: its own address, and the port that it has announced for that, or 0,
// any, if it knows none yet. An address that is not its own, as some announce by mistake, says nothing.
func sender(peer netip.Addr, announced target) netip.AddrPort {
	addr, err := netip.ParseAddr(announced.host)
	if err != nil || addr != peer && !addr.IsUnspecified() {
		return netip.AddrPortFrom(peer, 0)
	}
	return netip.AddrPortFrom(peer, announced.port)
}

// put sends a datagram on, unless it is another's, or none of SOCKS5's: nobody can be told.
func (a *association) put(ctx context.Context, from netip.AddrPort, b []byte) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if from.Addr() != a.client.Addr() || a.client.Port() != 0 && a.client.Port() != from.Port() {
		return
	}
	to, data, err := parseDatagram(b)
	if err != nil {
		a.s.log.Debug("socks5 datagram dropped", "client", from, "error", err)
		return
	}
	if a.client.Port() == 0 {
		a.client = from
	}
	a.s.flows.Put(ctx, datagramFlow{a, to}, data)
}

// answer sends the client what came back, with the target as it had been named: a client that knows a name alone knows the answer
// by that.
func (f datagramFlow) answer(b []byte) error {
	_, err := f.a.relay.WriteToUDPAddrPort(append(f.to.append(make([]byte, 3, 3+maxTarget+len(b))), b...), f.a.client)
	return err
}

// maxTarget is the length of the longest target: type, length, name, port.
const maxTarget = 1 + 1 + 255 + 2

// parseDatagram takes off the header: two reserved bytes, the number of the fragment, the target. The reserved ones are
// zero, as no message begins that a web page can have a browser send (STUN, DTLS, QUIC).
func parseDatagram(b []byte) (to target, data []byte, err error) {
	switch {
	case len(b) < 4:
		return target{}, nil, errShort
	case b[0] != 0 || b[1] != 0:
		return target{}, nil, errReserved
	case b[2] != 0:
		return target{}, nil, errFragment
	}
	r := bytes.NewReader(b[4:])
	if to, err = readTarget(r, b[3]); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errShort
		}
		return target{}, nil, err
	}
	return to, b[len(b)-r.Len():], nil
}
