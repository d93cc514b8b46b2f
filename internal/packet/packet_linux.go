package packet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/link/nested"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"bridge/internal/flow"
	"bridge/internal/ping"
	"bridge/pkg/tunnel"
)

const (
	// MTU is what a device should have, in bytes. Its packets never leave this machine, and the fewer there are the less each byte costs.
	MTU = 65520

	// maxConns is how many TCP connections there are at once, with those that are being dialled. The first packet of others is dropped,
	// and the program's system sends it again.
	maxConns = 4096

	// bufferSize bounds what is kept of a connection each way, in bytes: some packets of the longest. The way is short, more gains nothing.
	bufferSize = 256 << 10

	// defaultDialTimeout is what the pod's own dials take at most.
	defaultDialTimeout = 30 * time.Second

	// waitTime is how long the ports of a connection that its target has ended first are not taken again. The program's system waits for nothing
	// then, and takes its port for the next one; the way is this machine's own, where nothing arrives late.
	waitTime = time.Millisecond

	// handshakeTime is how long, at the end, handshakes may take that a program's system goes on with: it does so at once, or is gone.
	handshakeTime = 200 * time.Millisecond

	nic = 1
)

// Stack carries what arrives at a device.
type Stack struct {
	// Dial connects to where a packet goes; network is "tcp", "udp" or, of an echo request, "icmp", address an IP address and a port. It must return when ctx
	// is done.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Takes tells whether packets to an address are carried. All others are dropped.
	Takes func(netip.Addr) bool

	// From tells whether packets from an address are carried. All others are dropped. Nil means those of everybody who reaches the device.
	From func(netip.Addr) bool

	// DialTimeout bounds one Dial. Zero means 30 seconds.
	DialTimeout time.Duration

	// MTU is the device's, if it is not the usual one.
	MTU uint32

	// Link is the address of the device where each packet has an Ethernet header, to it and from it. Nil means that there is none.
	Link net.HardwareAddr

	// Log gets what failed, at level debug. Nil means none.
	Log *slog.Logger
}

// run is one Run.
type run struct {
	*Stack
	ctx   context.Context
	stack *stack.Stack
	flows *flow.Table[flow.Pair]
	slots chan struct{}

	mu    sync.RWMutex
	ended bool // nothing begins any more
	conns sync.WaitGroup
}

// Run carries what is sent through device, the descriptor of one, until ctx is done, which is no error, or the device is
// gone. Then all connections are reset; it returns when all has ended. The device stays open, and is the caller's.
func (s *Stack) Run(outer context.Context, device int) error {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	gone := make(chan error, 1)
	link, err := fdbased.New(&fdbased.Options{
		FDs: []int{device}, MTU: cmp.Or(s.MTU, MTU),
		EthernetHeader: s.Link != nil, Address: tcpip.LinkAddress(s.Link),
		RXChecksumOffload: true, // they come from this machine's own memory
		ClosedFunc: func(e tcpip.Error) {
			err := errors.New("the device is gone")
			if e != nil {
				err = fmt.Errorf("read from the device: %s", e)
			}
			select {
			case gone <- err:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	r := &run{Stack: s, ctx: ctx, slots: make(chan struct{}, maxConns)}
	r.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	r.flows = &flow.Table[flow.Pair]{
		Dial: func(ctx context.Context, p flow.Pair) (net.Conn, error) {
			ctx, cancel := r.dialContext(ctx)
			defer cancel()
			return s.Dial(ctx, p.Network, p.To.String())
		},
		Answer: r.answer,
		Refuse: r.refuse,
		Idle:   func(p flow.Pair) time.Duration { return tunnel.FlowIdle(p.Network, p.To.String()) },
		Few:    flow.Pair.Echo,
		Begin: func(p flow.Pair) func(error) {
			return func(err error) {
				if err != nil {
					s.Log.Debug("datagrams", "network", p.Network, "to", p.To, "error", err)
				}
			}
		},
	}
	if err := r.configure(link); err != nil {
		r.stack.Destroy()
		return err
	}
	select {
	case <-outer.Done():
		err = nil
	case err = <-gone:
	}
	cancel()
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.wait()
	r.flows.Wait()
	r.stack.Destroy()
	return err
}

// wait returns when all connections have ended. It ends those in the middle of a handshake, which knows no ctx.
func (r *run) wait() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.conns.Wait()
	}()
	again := time.NewTicker(handshakeTime)
	defer again.Stop()
	for {
		select {
		case <-ended:
			return
		case <-again.C:
		}
		for _, e := range r.stack.RegisteredEndpoints() {
			e.Abort()
		}
	}
}

func (r *run) configure(link stack.LinkEndpoint) error {
	size := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: bufferSize, Max: bufferSize}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: bufferSize, Max: bufferSize}
	sack := tcpip.TCPSACKEnabled(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(waitTime)
	for _, option := range []tcpip.SettableTransportProtocolOption{&size, &send, &sack, &wait} {
		if err := r.stack.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return failed("set up TCP", err)
		}
	}
	forwarder := tcp.NewForwarder(r.stack, bufferSize, maxConns, r.connection)
	r.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	r.stack.SetTransportProtocolHandler(udp.ProtocolNumber, r.datagram)
	f := &filter{link: tcpip.LinkAddress(r.Link), takes: r.Takes, from: r.From, put: r.put}
	if f.from == nil {
		f.from = func(netip.Addr) bool { return true }
	}
	f.Init(link, f)
	r.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	if err := r.stack.CreateNIC(nic, f); err != nil {
		return failed("set up the device", err)
	}
	// Every address is its own.
	if err := r.stack.SetPromiscuousMode(nic, true); err != nil {
		return failed("set up the device", err)
	}
	if err := r.stack.SetSpoofing(nic, true); err != nil {
		return failed("set up the device", err)
	}
	return nil
}

func failed(what string, err tcpip.Error) error { return fmt.Errorf("%s: %s", what, err) }

// connection carries one, which its program has asked for and which is not made yet.
func (r *run) connection(request *tcp.ForwarderRequest) {
	if !r.begin() {
		request.Complete(true)
		return
	}
	defer r.conns.Done()
	id := request.ID()
	to := netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		request.Complete(false) // as if the packet had been lost
		return
	}
	ctx, cancel := r.dialContext(r.ctx)
	target, err := r.Dial(ctx, "tcp", to.String())
	cancel()
	if err != nil {
		request.Complete(true)
		r.Log.Debug("connection", "to", to, "error", err)
		return
	}
	var queue waiter.Queue
	endpoint, refused := request.CreateEndpoint(&queue)
	request.Complete(false)
	if refused != nil { // the program has gone
		tunnel.Abort(target)
		r.Log.Debug("connection", "to", to, "error", refused.String())
		return
	}
	endpoint.SocketOptions().SetDelayOption(false)
	c := &conn{TCPConn: gonet.NewTCPConn(&queue, endpoint), endpoint: endpoint}
	if err := new(tunnel.Flow).SpliceContext(r.ctx, c, target); err != nil {
		r.Log.Debug("connection", "to", to, "error", err)
	}
}

func (r *run) dialContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(r.DialTimeout, defaultDialTimeout))
}

// begin counts a connection, if there may be more.
func (r *run) begin() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.ended {
		r.conns.Add(1)
	}
	return !r.ended
}

// conn is a program's connection, which can be reset.
type conn struct {
	*gonet.TCPConn
	endpoint tcpip.Endpoint
}

// Reset resets it.
func (c *conn) Reset() { c.endpoint.Abort() }

// Read and Write have the errors of a system's connection.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	return n, systemError(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	return n, systemError(err)
}

// systemError is an error of the stack's, which says what it is by its text alone, as the system's.
func systemError(err error) error {
	op := new(net.OpError)
	if !errors.As(err, &op) || op.Err == nil {
		return err
	}
	switch op.Err.Error() {
	case (&tcpip.ErrConnectionReset{}).String():
		op.Err = syscall.ECONNRESET
	case (&tcpip.ErrClosedForSend{}).String():
		op.Err = syscall.EPIPE
	}
	return err
}

// datagram takes one of UDP.
func (r *run) datagram(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	r.put(flow.Pair{
		Network: "udp", From: netip.AddrPortFrom(address(id.RemoteAddress), id.RemotePort), To: netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort),
	}, pkt.Data().AsRange().ToSlice())
	return true
}

// put takes a datagram. It waits for nobody.
func (r *run) put(p flow.Pair, b []byte) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !r.ended {
		r.flows.Put(r.ctx, p, b)
	}
}

// answer sends p's sender a datagram.
func (r *run) answer(p flow.Pair, b []byte) error {
	if p.Network == "icmp" {
		return r.send(p, ping.Reply(p.To.Addr(), p.From.Addr(), p.From.Port(), b))
	}
	length := uint16(header.UDPMinimumSize + len(b))
	h := make(header.UDP, length)
	copy(h[header.UDPMinimumSize:], b)
	h.Encode(&header.UDPFields{SrcPort: p.To.Port(), DstPort: p.From.Port(), Length: length})
	sum := h.CalculateChecksum(checksum.Combine(header.PseudoHeaderChecksum(udp.ProtocolNumber, stackAddress(p.To), stackAddress(p.From), length), checksum.Checksum(b, 0)))
	if sum != math.MaxUint16 { // 0 says that there is none (RFC 768), which over IPv6 is dropped (RFC 8200)
		sum = ^sum
	}
	h.SetChecksum(sum)
	return r.send(p, h)
}

// refuse tells p's sender that an echo does not reach its target. Of UDP nothing is told.
func (r *run) refuse(p flow.Pair, b []byte, err error) {
	if p.Network == "icmp" {
		_ = r.send(p, ping.Refusal(p.To.Addr(), p.From.Addr(), p.To.Addr(), p.From.Port(), b, err)) // one that is lost
	}
}

// send sends p's sender a message, of UDP or of ICMP, which comes from its target.
func (r *run) send(p flow.Pair, message []byte) error {
	network, transport := ipv4.ProtocolNumber, header.ICMPv4ProtocolNumber
	if p.To.Addr().Is6() {
		network, transport = ipv6.ProtocolNumber, header.ICMPv6ProtocolNumber
	}
	if p.Network == "udp" {
		transport = udp.ProtocolNumber
	}
	route, err := r.stack.FindRoute(nic, stackAddress(p.To), stackAddress(p.From), network, false)
	if err != nil {
		return failed("answer a datagram", err)
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{ReserveHeaderBytes: int(route.MaxHeaderLength()), Payload: buffer.MakeWithData(message)})
	defer pkt.DecRef()
	if err := route.WritePacket(stack.NetworkHeaderParams{Protocol: transport, TTL: route.DefaultTTL()}, pkt); err != nil {
		return failed("answer a datagram", err)
	}
	return nil
}

// filter takes echo requests, and drops packets that the stack would answer, or take, by itself: other ICMP, and those to or from other addresses.
type filter struct {
	nested.Endpoint
	link        tcpip.LinkAddress
	takes, from func(netip.Addr) bool
	put         func(p flow.Pair, echo []byte)
}

// DeliverNetworkPacket is told each packet that the device has.
func (f *filter) DeliverNetworkPacket(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	from, to, icmp, ok := ends(protocol, pkt)
	switch {
	case !ok || !f.takes(to) || !f.from(from):
	case !icmp:
		f.Endpoint.DeliverNetworkPacket(protocol, pkt)
	default:
		if id, echo, ok := ping.ParseRequest(icmpMessage(pkt.Data().AsRange().ToSlice()), to.Is6()); ok {
			f.put(flow.Pair{Network: "icmp", From: netip.AddrPortFrom(from, id), To: netip.AddrPortFrom(to, 0)}, echo)
		}
	}
}

// Capabilities are the device's, where nobody has to be asked for an address of the link: there is one.
func (f *filter) Capabilities() stack.LinkEndpointCapabilities {
	return f.Endpoint.Capabilities() &^ stack.CapabilityResolutionRequired
}

// AddHeader adds the Ethernet header, if there is one.
func (f *filter) AddHeader(pkt *stack.PacketBuffer) {
	pkt.EgressRoute.RemoteLinkAddress = f.link
	f.Endpoint.AddHeader(pkt)
}

// ends says from where to where a packet goes, and whether ICMP is in it.
func ends(protocol tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) (from, to netip.Addr, icmp, ok bool) {
	switch protocol {
	case ipv4.ProtocolNumber:
		if b, ok := pkt.Data().PullUp(header.IPv4MinimumSize); ok {
			h := header.IPv4(b)
			return address(h.SourceAddress()), address(h.DestinationAddress()), h.TransportProtocol() == header.ICMPv4ProtocolNumber, true
		}
	case ipv6.ProtocolNumber:
		if b, ok := pkt.Data().PullUp(header.IPv6MinimumSize); ok {
			h := header.IPv6(b)
			return address(h.SourceAddress()), address(h.DestinationAddress()), h.TransportProtocol() == header.ICMPv6ProtocolNumber, true
		}
	}
	return from, to, false, false
}

// icmpMessage is what a packet of ICMP has in it; nil of one that is not whole.
func icmpMessage(b []byte) []byte {
	if header.IPVersion(b) == header.IPv6Version {
		if h := header.IPv6(b); h.IsValid(len(b)) {
			return h.Payload()
		}
		return nil
	}
	if h := header.IPv4(b); h.IsValid(len(b)) && !h.More() && h.FragmentOffset() == 0 {
		return h.Payload()
	}
	return nil
}

// stackAddress is one for the stack.
func stackAddress(a netip.AddrPort) tcpip.Address { return tcpip.AddrFromSlice(a.Addr().AsSlice()) }

// address is one of the stack's.
func address(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
