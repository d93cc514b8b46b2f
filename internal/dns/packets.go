package dns

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxPackets is how many answers are kept as they are sent, and maxPacket how long one may be: some 3 MiB.
	maxPackets = 2048
	maxPacket  = 1232

	idLen  = 2  // bytes of a message's ID
	header = 12 // bytes before the question
)

// packets answers over UDP what has been answered to the same bytes before, without taking them apart: most of what a question costs
// when its answer is remembered. It is dns.Server's reader, who hands on what it cannot answer.
type packets struct {
	dns.Reader
	from    func(netip.Addr) bool
	in, out []byte // of the one goroutine that reads

	mu      sync.RWMutex
	entries map[string]packet // by the question's bytes after its ID
}

// packet is an answer as it is sent. It never changes.
type packet struct {
	b      []byte
	ttls   []int // where its lifetimes are
	packed time.Time
	until  time.Time
}

func (p packet) expired(now time.Time) bool { return !now.Before(p.until) }

func newPackets(from func(netip.Addr) bool) *packets {
	return &packets{from: from, in: make([]byte, maxUDPQuery), entries: make(map[string]packet)}
}

// takes tells whether a client is answered, as Server.From does.
func takes(from func(netip.Addr) bool, client net.Addr) bool {
	if from == nil {
		return true
	}
	at, err := netip.ParseAddrPort(client.String())
	return err == nil && from(at.Addr().Unmap())
}

// chosen is a listener for those who are answered.
type chosen struct {
	net.Listener
	from func(netip.Addr) bool
}

// Accept closes the connections of others.
func (l *chosen) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || takes(l.from, c.RemoteAddr()) {
			return c, err
		}
		_ = c.Close()
	}
}

// decorate makes p the reader of a server.
func (p *packets) decorate(r dns.Reader) dns.Reader {
	p.Reader = r
	return p
}

// ReadUDP returns the next question that p does not answer. It sets no deadline, so that the one that ends the server stays.
func (p *packets) ReadUDP(conn *net.UDPConn, _ time.Duration) ([]byte, *dns.SessionUDP, error) {
	for {
		n, session, err := dns.ReadFromSessionUDP(conn, p.in)
		if err != nil {
			return nil, nil, err
		}
		if !takes(p.from, session.RemoteAddr()) {
			continue
		}
		q := p.in[:n]
		if !p.answer(q) {
			return bytes.Clone(q), session, nil
		}
		_, _ = dns.WriteToSessionUDP(conn, p.out, session) // lost, as datagrams are
	}
}

// socket is one at a single address, from which its answers leave without more. dns.Server takes it for no UDP socket of its own, and does
// not have the kernel tell of each datagram where it arrived, which costs as much as a quarter of the answers.
type socket struct{ *net.UDPConn }

// asker is who asked on a socket.
type asker netip.AddrPort

func (a asker) Network() string { return "udp" }
func (a asker) String() string  { return netip.AddrPort(a).String() }

// WriteTo answers an asker.
func (s socket) WriteTo(b []byte, to net.Addr) (int, error) {
	return s.WriteToUDPAddrPort(b, netip.AddrPort(to.(asker)))
}

// ReadPacketConn is ReadUDP of a socket.
func (p *packets) ReadPacketConn(conn net.PacketConn, _ time.Duration) ([]byte, net.Addr, error) {
	s := conn.(socket)
	for {
		n, from, err := s.ReadFromUDPAddrPort(p.in)
		if err != nil {
			return nil, nil, err
		}
		if p.from != nil && !p.from(from.Addr().Unmap()) {
			continue
		}
		q := p.in[:n]
		if !p.answer(q) {
			return bytes.Clone(q), asker(from), nil
		}
		_, _ = s.WriteToUDPAddrPort(p.out, from) // lost, as datagrams are
	}
}

// answer has the answer to q in p.out, and says whether it has one.
func (p *packets) answer(q []byte) bool {
	if len(q) < header {
		return false
	}
	p.mu.RLock()
	e, ok := p.entries[string(q[idLen:])]
	p.mu.RUnlock()
	now := time.Now()
	if !ok || e.expired(now) {
		return false
	}
	p.out = append(append(p.out[:0], q[:idLen]...), e.b[idLen:]...)
	age := uint32(now.Sub(e.packed).Seconds())
	for _, at := range e.ttls {
		ttl := binary.BigEndian.Uint32(p.out[at:])
		binary.BigEndian.PutUint32(p.out[at:], ttl-min(age, ttl))
	}
	return true
}

// put remembers that m is the answer to q until then. What has several addresses is not kept: each client gets those in an order of its own.
// Nor is a question with an EDNS option, which may be one client's own.
func (p *packets) put(q, m *dns.Msg, until time.Time) {
	now := time.Now()
	if !now.Before(until) || len(q.Answer)+len(q.Ns) > 0 || addressesOf(m.Answer) > 1 {
		return
	}
	switch opt := q.IsEdns0(); {
	case opt == nil && len(q.Extra) > 0, opt != nil && (len(q.Extra) > 1 || len(opt.Option) > 0):
		return
	}
	k, err := q.Pack()
	if err != nil {
		return
	}
	b, err := m.Pack()
	if err != nil || len(b) > maxPacket {
		return
	}
	ttls, ok := lifetimes(b)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	k = k[idLen:]
	if _, ok := p.entries[string(k)]; !ok && len(p.entries) >= maxPackets {
		evict(p.entries, now)
	}
	p.entries[string(k)] = packet{b: b, ttls: ttls, packed: now, until: until}
}

// lifetimes are the places in a message of ours of its records' lifetimes, but for the one of OPT, which is none.
func lifetimes(b []byte) (at []int, ok bool) {
	const fixed = 10 // type, class, TTL, length
	n := 0
	for i := 6; i < header; i += 2 {
		n += int(binary.BigEndian.Uint16(b[i:]))
	}
	off := header
	var err error
	for range binary.BigEndian.Uint16(b[4:]) {
		if _, off, err = dns.UnpackDomainName(b, off); err != nil {
			return nil, false
		}
		off += 4
	}
	for range n {
		if _, off, err = dns.UnpackDomainName(b, off); err != nil || off+fixed > len(b) {
			return nil, false
		}
		if binary.BigEndian.Uint16(b[off:]) != dns.TypeOPT {
			at = append(at, off+4)
		}
		off += fixed + int(binary.BigEndian.Uint16(b[off+8:]))
	}
	return at, off == len(b)
}

func addressesOf(rrs []dns.RR) (n int) {
	for _, rr := range rrs {
		if isAddress(rr) {
			n++
		}
	}
	return n
}

func isAddress(rr dns.RR) bool {
	t := rr.Header().Rrtype
	return t == dns.TypeA || t == dns.TypeAAAA
}
