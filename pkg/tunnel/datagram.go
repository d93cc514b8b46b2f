package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxDatagram is what UDP can carry: 65,507 bytes over IPv4, and 20 more over IPv6.
	maxDatagram = 65527
	// datagramNote in the place of a length announces a status instead of a datagram.
	datagramNote = 0xffff
	// datagramHead is the length before each datagram.
	datagramHead = 2
	// datagramPatience is how long a datagram waits for room. Longer than a busy carrier keeps one waiting, and about when
	// programs that speak UDP send it again.
	datagramPatience = time.Second
)

// packet holds one datagram, with its length before it.
type packet [datagramHead + maxDatagram]byte

// packets lends buffers to what is on its way: most flows are idle most of the time, and must not hold 64 KiB each.
var packets = sync.Pool{New: func() any { return new(packet) }}

// appendNote appends the message that says of a datagram's socket that it met err, which is not nil.
func appendNote(b []byte, err error) []byte {
	b = binary.BigEndian.AppendUint16(b, datagramNote)
	return appendStatus(b, statusOf(err))
}

// Datagrams is a stream of network "udp" or "icmp", as a net.Conn that keeps the boundaries of what it carries, as a connected UDP
// socket does: each Read is one datagram (what does not fit is lost), each Write another, and both may be empty.
//
// Read fails with an error that wraps syscall.ECONNREFUSED or its like when the socket at the other end met that, and goes on
// after it; io.EOF is the end of the flow. Write waits up to a second for room for all of its datagram, else drops and counts it.
type Datagrams struct {
	*Stream
	readMu  sync.Mutex
	reader  datagramReader
	dropped atomic.Uint64
}

// Datagrams is st as what it carries, for a stream whose header says "udp" or "icmp"; to be called once.
func (st *Stream) Datagrams() *Datagrams {
	return &Datagrams{Stream: st, reader: datagramReader{read: st.read}}
}

// Dropped counts the datagrams that Write had no room for.
func (d *Datagrams) Dropped() uint64 { return d.dropped.Load() }

// Read reads one datagram.
func (d *Datagrams) Read(p []byte) (int, error) {
	d.readMu.Lock()
	defer d.readMu.Unlock()
	b, err := d.next()
	n := copy(p, b)
	d.reader.release()
	return n, err
}

// next is the next datagram, which is good until the reader's release. One call at a time.
func (d *Datagrams) next() ([]byte, error) {
	if d.opener {
		if err := d.readStatus(context.Background()); err != nil {
			return nil, err
		}
	}
	b, err := d.reader.next()
	switch note := (*noteError)(nil); {
	case errors.As(err, &note):
		err = d.fail("read", fmt.Errorf("%w: %w", note, note.err(d.header.Network, d.header.Address)))
	case errors.Is(err, errDatagram):
		d.Reset()
		err = d.fail("read", fmt.Errorf("%w: %w", syscall.ECONNRESET, err))
	}
	return b, err
}

// datagramReader takes a flow's bytes apart, however they arrive.
type datagramReader struct {
	read func([]byte) (int, error)

	head  [datagramHead]byte // of the datagram that is being read
	body  *packet            // nil: the head is not complete
	have  int                // bytes of the one or the other
	taken *packet            // what next returned, until release
}

// errDatagram says that the other end does not keep the rules.
var errDatagram = errors.New("not a datagram")

// noteError is what the socket at the other end met. The flow goes on.
type noteError struct{ status }

func (e *noteError) Error() string { return "the other end's socket" }

// next is the next datagram, which is good until release, or a *noteError, or errDatagram, or what read returned. After a deadline it
// goes on where it was.
func (r *datagramReader) next() ([]byte, error) {
	if r.body == nil {
		if err := r.fill(r.head[:]); err != nil {
			return nil, err
		}
		r.body, r.have = packets.Get().(*packet), 0
	}
	length := int(binary.BigEndian.Uint16(r.head[:]))
	switch {
	case length == datagramNote:
		return nil, r.note()
	case length > maxDatagram:
		return nil, fmt.Errorf("%w: %d bytes", errDatagram, length)
	}
	if err := r.fill(r.body[:length]); err != nil {
		return nil, err
	}
	r.taken, r.body, r.have = r.body, nil, 0
	return r.taken[:length], nil
}

// release ends the use of what next returned.
func (r *datagramReader) release() {
	if r.taken != nil {
		packets.Put(r.taken)
		r.taken = nil
	}
}

// note reads a status and returns it.
func (r *datagramReader) note() error {
	for {
		need, err := statusNeeds(r.body[:r.have])
		if err != nil {
			return fmt.Errorf("%w: %w", errDatagram, err)
		}
		if need == 0 {
			break
		}
		if err := r.fill(r.body[:r.have+need]); err != nil {
			return err
		}
	}
	s := parseStatus(r.body[:r.have])
	packets.Put(r.body)
	r.body, r.have = nil, 0
	if s.code == statusOK {
		return fmt.Errorf("%w: a note of nothing", errDatagram)
	}
	return &noteError{s}
}

// fill reads until b, which holds r.have bytes, is full.
func (r *datagramReader) fill(b []byte) error {
	for r.have < len(b) {
		n, err := r.read(b[r.have:])
		r.have += n
		switch {
		case r.have == len(b):
		case err == io.EOF && (r.have > 0 || r.body != nil): //nolint:errorlint // a Stream returns it bare
			return fmt.Errorf("%w: %w", errDatagram, io.ErrUnexpectedEOF)
		case err != nil:
			return err
		}
	}
	return nil
}

// Write sends one datagram, or drops it.
func (d *Datagrams) Write(p []byte) (int, error) {
	if len(p) > maxDatagram {
		return 0, d.fail("write", syscall.EMSGSIZE)
	}
	buf := packets.Get().(*packet)
	defer packets.Put(buf)
	b := append(binary.BigEndian.AppendUint16(buf[:0], uint16(len(p))), p...)
	if err := d.send(b); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadFrom is Read, and says from whom: this and WriteTo make it a net.PacketConn, by which net.Resolver and its like know UDP.
func (d *Datagrams) ReadFrom(p []byte) (int, net.Addr, error) {
	n, err := d.Read(p)
	return n, d.RemoteAddr(), err
}

// WriteTo fails, as it does on a connected UDP socket: there is one address to write to.
func (d *Datagrams) WriteTo([]byte, net.Addr) (int, error) {
	return 0, d.fail("write", net.ErrWriteToConnected)
}

// tell sends what a socket at this end met.
func (d *Datagrams) tell(err error) error { return d.send(appendNote(nil, err)) }

// send sends b whole, or drops it.
func (d *Datagrams) send(b []byte) error {
	err := d.writeWhole(b, time.Now().Add(datagramPatience))
	if errors.Is(err, errNoRoom) {
		d.dropped.Add(1)
		return nil
	}
	return err
}

const (
	// flowIdle is how long a flow may be silent: RFC 4787 section 4.3 asks for 2 minutes at least.
	flowIdle = 2 * time.Minute
	// dnsIdle is that of DNS, where nothing follows the answer, and each question has a flow of its own.
	dnsIdle = 30 * time.Second
	dnsPort = "53"
	// echoIdle is that of echoes: an answer that is later is none, and each program that pings has a flow for each target.
	echoIdle = 15 * time.Second
)

// FlowIdle is how long a flow of datagrams, of network "udp" or "icmp", to address ("host:port" or ":port") may be silent before it is over.
func FlowIdle(network, address string) time.Duration {
	if network == "icmp" {
		return echoIdle
	}
	if _, port, err := net.SplitHostPort(address); err == nil && port == dnsPort {
		return dnsIdle
	}
	return flowIdle
}

// SpliceDatagrams copies datagrams both ways between st, of network "udp" or "icmp", and conn, a connected UDP socket or what looks like
// one, until one of them ends or both were silent for idle (0: for ever), and closes both. What conn meets (a refusal
// by ICMP, for one) is told to the other end and ends nothing. It returns the first error; an end, a local close and
// silence are none. dropped counts what there was no room for in st.
func SpliceDatagrams(st *Stream, conn net.Conn, idle time.Duration) (dropped uint64, err error) {
	f := &datagramSplice{d: st.Datagrams(), conn: conn, idle: idle}
	f.moved()
	var first firstError
	end := func(err error) {
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
			first.set(err)
		}
		_ = st.Close()
		_ = conn.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() { end(f.fromStream()) })
	end(f.fromSocket())
	wg.Wait()
	return f.d.Dropped(), first.err
}

type datagramSplice struct {
	d    *Datagrams
	conn net.Conn
	idle time.Duration
	last atomic.Int64 // nanoseconds after flowEpoch, when a datagram moved
}

func (f *datagramSplice) moved() { f.last.Store(int64(time.Since(flowEpoch))) }

// silentAt is when f was silent for too long, unless something moves before.
func (f *datagramSplice) silentAt() time.Time {
	return flowEpoch.Add(time.Duration(f.last.Load()) + f.idle)
}

// fromStream sends what the other end sends, until that ends.
func (f *datagramSplice) fromStream() error {
	for {
		p, err := f.d.next()
		if note := (*noteError)(nil); errors.As(err, &note) {
			continue // of the other end's socket: there is no way to pass it on through ours
		}
		if err != nil {
			return err
		}
		f.moved()
		err = f.write(p)
		f.d.reader.release()
		if err != nil {
			return err
		}
	}
}

// write sends p from the socket. A system that knows of a refusal reports it instead of sending.
func (f *datagramSplice) write(p []byte) error {
	for range 2 {
		_, err := f.conn.Write(p)
		if err == nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err := f.d.tell(err); err != nil {
			return err
		}
	}
	return nil
}

// fromSocket passes on what comes to the socket, until there was silence for too long.
func (f *datagramSplice) fromSocket() error {
	from := newPacketSource(f.conn)
	if f.idle > 0 {
		_ = f.conn.SetReadDeadline(f.silentAt()) // fails when it is closed, as next does
	}
	for {
		p, err := from.next()
		switch {
		case err == nil:
			f.moved()
			_, err = f.d.Write(p)
			from.release()
			if err != nil {
				return err
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			until := f.silentAt()
			if passed(until) {
				return nil
			}
			_ = f.conn.SetReadDeadline(until)
		case codeOf(err) != statusOther: // what a datagram of ours has met
			if err := f.d.tell(err); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// packetSource is a source of datagrams.
type packetSource struct {
	conn net.Conn
	raw  syscall.RawConn // where the system lets us read so; else nil
	buf  *packet
}

func newPacketSource(c net.Conn) *packetSource {
	s := &packetSource{conn: c}
	if c, ok := c.(*net.UDPConn); ok {
		s.raw = rawRead(c)
	}
	return s
}

// next is the next datagram, which is good until release.
func (s *packetSource) next() ([]byte, error) {
	if whole, ok := s.conn.(interface{ Next() ([]byte, error) }); ok {
		return whole.Next()
	}
	if s.raw == nil {
		n, err := s.conn.Read(s.lend())
		return s.buf[:n], err
	}
	n, err := tryRead(s.raw, s.lend, s.release)
	if err != nil {
		s.release()
		return nil, readError(s.conn, "udp", err)
	}
	return s.buf[:n], nil
}

func (s *packetSource) lend() []byte {
	if s.buf == nil {
		s.buf = packets.Get().(*packet)
	}
	return s.buf[:]
}

func (s *packetSource) release() {
	if s.buf != nil {
		packets.Put(s.buf)
		s.buf = nil
	}
}
