package kube

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/spdystream/spdy"
	corev1 "k8s.io/api/core/v1"

	"bridge/internal/cork"
	"bridge/internal/hint"
)

// A port-forward is SPDY/3.1 over a WebSocket or over the upgraded connection itself. One connection
// here carries one pair of streams at a time, and the ends of those that were left, so this file speaks the few frames that takes, without the
// goroutines, queues and copies of a full SPDY library: Read reads from the socket into the caller's
// buffer, and Write sends header and payload as one. That also makes a slow reader slow its own
// sender only, and lets deadlines reach the socket.

const (
	// maxFrame is the payload of one data frame: with its headers, SPDY's and WebSocket's of 8 bytes
	// each, two full records of TLS. That measures fastest through the API server and the kubelet; larger ones only
	// add delay.
	maxFrame = 2*cork.MaxRecord - 16

	// maxGather is how much of one Write leaves together, and so has a buffer of that size.
	maxGather = 4 * maxFrame

	// maxErrorText bounds what the kubelet may say about a failure.
	maxErrorText = 4 << 10

	// pingPeriod keeps load balancers from cutting a silent connection, and finds out that the path
	// is dead: an answer missing for deadAfter ends the connection, 15 s after the path at most.
	pingPeriod = 3 * time.Second
	deadAfter  = 12 * time.Second

	// goodbyeTimeout is what Close grants the last frame on a connection that takes no more bytes.
	goodbyeTimeout = time.Second

	// maxLittle is how much may be written to a connection that is left before its end: the pod's kernel takes it from the runtime, whether it is read
	// or not, so that it is in no other's way.
	maxLittle = 32 << 10

	// maxSkipped is how much of earlier connections may have come on a carrier that is used again.
	maxSkipped = 256 << 10

	// errorGrace is how long the end of one stream waits for the other's: the kubelet ends both at
	// once, in no order, and what the error stream says decides what the end of the data means.
	errorGrace = time.Second
)

// carrier is what the SPDY frames travel in. WriteFrame sends head and payload together; payload may
// be empty. A read or write deadline that passes leaves the carrier unusable in that direction.
type carrier interface {
	io.ReadCloser
	WriteFrame(head, payload []byte) error
	Gather(write func() error) error // the frames that write writes leave together
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	NetConn() net.Conn
}

// podAddr names a port of a pod: "pod/shop/orders-7d4b:8080".
type podAddr struct {
	namespace, pod string
	port           int
}

func (a podAddr) Network() string { return "tcp" }
func (a podAddr) String() string {
	return "pod/" + a.namespace + "/" + a.pod + ":" + strconv.Itoa(a.port)
}

var _ net.Conn = (*podConn)(nil)

// podConn is one port-forwarded connection. It follows net.Conn, with two remarks: a deadline that has
// passed ends that direction for good (frames would be torn), and the far end, the container runtime,
// gives an answer about one second after CloseWrite before it cuts the connection.
type podConn struct {
	c      *session
	remote podAddr
	closed chan struct{} // closed by Close, Reset and Leave
	once   sync.Once
	dmu    sync.Mutex            // held to set a deadline, and to close: c may be another's then
	keep   func(*session)        // takes what Close has no more use for; nil closes it
	spoilt func()                // is told that the runtime could not reach the port: what is kept may be of a sandbox that is gone; may be nil
	lost   atomic.Pointer[error] // why the watchdog cut the carrier
	onLost func()                // called when the carrier is lost

	errID, dataID uint32 // of the streams

	// Under c.rmu, which the reading goroutine holds.
	dataDone bool         // no data frame follows the current one
	farDone  atomic.Bool  // dataDone, or rerr is set, for others
	errDone  bool         // the error stream has ended
	whole    bool         // both have, with nothing said, and nothing of them is left to read
	errText  []byte       // what the error stream said
	rerr     error        // sticky
	heard    atomic.Int64 // bytes of data that have come

	wmu    chan struct{} // holds one token while nobody writes: a mutex with a try
	wbuf   [8]byte       // under wmu: the head of a data frame
	sent   bool          // under wmu: the last data frame is out
	first  bool          // under wmu: and nothing had come of the other side's last one, which then most likely has taken all
	little int           // under wmu: bytes written, up to maxLittle+1
	werr   error         // under wmu; sticky
	answer atomic.Uint64 // a ping of the peer to answer: 1<<32|id, 0 for none

	timer    *time.Timer
	reads    atomic.Uint64 // counts what came from the carrier
	readsOld uint64        // of watch alone: reads at its last run
	silent   int           // of watch alone: runs in a row in which Read waited and nothing came
	pinged   atomic.Int64  // when the ping that has no answer was sent, Unix ns; 0 if all are answered
	pingID   atomic.Uint32 // the last ping sent; ours are odd
	wrote    atomic.Uint64 // counts data frames written
	wroteAt  atomic.Uint64 // wrote when the last ping was sent
	answered atomic.Uint64 // wrote when the last answered ping was sent: so much has been taken

	loss     loss          // of Degraded's caller
	requests *requestConns // of Dead's
}

// newPodConn opens the next pair of streams for port on c and waits for the other side to accept them.
// It owns c from here on. The caller bounds it by closing c. lost is called, perhaps more than once, when the
// connection ends by losing c.
func newPodConn(c *session, remote podAddr, requestID int64, lost func()) (*podConn, error) {
	p := &podConn{c: c, remote: remote, onLost: lost, closed: make(chan struct{}), wmu: make(chan struct{}, 1)}
	p.pingID.Store(math.MaxUint32) // so that the first is 1
	if err := p.open(requestID); err != nil {
		_ = c.Close()
		return nil, err
	}
	p.start()
	return p, nil
}

// start has it written to, and watched.
func (p *podConn) start() {
	p.wmu <- struct{}{}
	probeOften(p.c.NetConn(), pingPeriod)
	// Set before it runs: watch uses it.
	p.timer = time.AfterFunc(math.MaxInt64, p.watch)
	p.timer.Reset(pingPeriod)
}

// open sends both requests in one flight. Data may follow only after the reply: until then the other
// side would drop it.
func (p *podConn) open(requestID int64) error {
	s := p.c
	h := http.Header{}
	h.Set(corev1.PortHeader, strconv.Itoa(p.remote.port))
	h.Set(corev1.PortForwardRequestIDHeader, strconv.FormatInt(requestID, 10))
	p.errID, p.dataID = s.streams+1, s.streams+3
	s.streams += 4
	h.Set(corev1.StreamType, corev1.StreamTypeError)
	// Nothing is ever written to the error stream, so it ends where it starts.
	err := s.framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(p.errID), Headers: h,
		CFHeader: spdy.ControlFrameHeader{Flags: spdy.ControlFlagFin}})
	if err != nil {
		return err
	}
	h.Set(corev1.StreamType, corev1.StreamTypeData)
	if err := s.framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(p.dataID), Headers: h}); err != nil {
		return err
	}
	err = s.WriteFrame(s.head.Bytes(), nil)
	s.head.Reset()
	if err != nil {
		return err
	}
	s.rmu.Lock() // once whoever still waits for the end of the connection before has seen the answer come
	defer s.rmu.Unlock()
	for {
		if err := p.readFrame(); err != nil {
			return err
		}
		if f := &s.frame; f.kind == spdy.TypeSynReply && f.id == p.dataID {
			return nil
		}
		if s.skipped.Load() > maxSkipped {
			return errSkipped
		}
	}
}

// errSkipped is of a carrier on which too much of earlier connections comes.
var errSkipped = errors.New("the port-forward still carries what earlier connections were sent")

// readFrame reads the next frame and acts on it. The payload of a data frame on the data stream
// remains to be read. It needs c.rmu. When p is closed meanwhile, the frame is left to whoever has the carrier next.
func (p *podConn) readFrame() error {
	f := &p.c.frame
	if err := p.c.await(); err != nil {
		return err
	}
	if p.isClosed() {
		return net.ErrClosed
	}
	f.fresh = false
	p.reads.Add(1)
	switch f.kind {
	case dataFrame:
		return p.readData()
	case spdy.TypePing:
		p.handlePing(f.id)
	case spdy.TypeRstStream:
		if f.id == p.dataID && !p.dataDone {
			return p.resetError()
		}
		p.ended(f.id)
	case spdy.TypeSynReply, spdy.TypeHeaders:
		if f.flags&uint8(spdy.ControlFlagFin) != 0 {
			p.ended(f.id)
		}
	}
	// GOAWAY only says that the peer takes no new streams; ours go on until it closes.
	return nil
}

func (p *podConn) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

func (p *podConn) ended(stream uint32) {
	switch stream {
	case p.dataID:
		p.dataDone = true
		p.farDone.Store(true)
	case p.errID:
		p.errDone = true
	}
}

// readData leaves what it does not read to readFrame, which skips it.
func (p *podConn) readData() error {
	f := &p.c.frame
	if f.flags&uint8(spdy.DataFlagFin) != 0 {
		p.ended(f.id)
	}
	switch f.id {
	case p.dataID:
	case p.errID:
		old := len(p.errText)
		p.errText = append(p.errText, make([]byte, min(f.left, maxErrorText-old))...)
		n, err := io.ReadFull(p.c, p.errText[old:])
		f.left -= n
		return err
	default: // of a connection before; a reset would not keep the kubelet's library from sending
		p.c.skipped.Add(int64(f.left))
	}
	return nil
}

// pending is what remains of a data frame to read.
func (p *podConn) pending() int {
	if f := &p.c.frame; f.kind == dataFrame && f.id == p.dataID && !f.fresh {
		return f.left
	}
	return 0
}

// Read reads what the pod's port sent. When the pod did not take the connection, or reset it, that is
// the error: it wraps ECONNREFUSED or ECONNRESET where the container runtime says so.
func (p *podConn) Read(b []byte) (int, error) {
	if p.isClosed() { // the carrier may be another's
		return 0, p.opError("read", net.ErrClosed)
	}
	p.c.rmu.Lock()
	defer p.c.rmu.Unlock()
	if p.isClosed() { // meanwhile
		return 0, p.opError("read", net.ErrClosed)
	}
	if len(b) == 0 {
		return 0, p.rerr
	}
	for p.rerr == nil && p.pending() == 0 {
		if p.dataDone && p.errDone {
			p.fail(p.readError(io.EOF, true)) // the answer to our own Close is no end
			p.whole = p.rerr == io.EOF        //nolint:errorlint // it is bare
			break
		}
		ending := p.dataDone || p.errDone && len(p.errText) > 0
		if ending {
			_ = p.SetReadDeadline(time.Now().Add(errorGrace))
		}
		if err := p.readFrame(); err != nil {
			p.fail(p.readError(err, ending))
		}
	}
	if p.rerr != nil {
		return 0, p.rerr
	}
	n, err := p.c.Read(b[:min(len(b), p.pending())])
	p.c.frame.left -= n
	p.reads.Add(1)
	if err != nil {
		p.fail(p.readError(err, false))
	}
	if n > 0 {
		p.heard.Add(int64(n))
		return n, nil
	}
	return 0, p.rerr
}

// fail has err be the last of Read.
func (p *podConn) fail(err error) {
	p.farDone.Store(true)
	p.rerr = err
}

// readError is what Read returns for an error of the carrier. ending says that the stream had ended
// and only the reason was awaited.
func (p *podConn) readError(err error, ending bool) error {
	if ending && !p.isClosed() {
		return p.endError()
	}
	return p.carrierError("read", err)
}

// Write sends b to the pod's port, in frames of almost 32 KiB.
func (p *podConn) Write(b []byte) (n int, err error) {
	if !p.lockWrite() {
		return 0, p.opError("write", net.ErrClosed)
	}
	defer p.unlockWrite()
	for n < len(b) {
		if p.werr != nil {
			return n, p.werr
		}
		if p.sent {
			return n, p.opError("write", syscall.EPIPE)
		}
		some := b[n:min(len(b), n+maxGather)]
		if p.werr = p.carrierError("write", p.c.Gather(func() error { return p.writeFrames(some) })); p.werr != nil {
			return n, p.werr
		}
		n += len(some)
	}
	return n, nil
}

// writeFrames needs wmu.
func (p *podConn) writeFrames(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), maxFrame)
		p.wrote.Add(1)
		p.little = min(p.little+n, maxLittle+1)
		if err := p.writeData(b[:n], 0); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// writeData needs wmu.
func (p *podConn) writeData(b []byte, flags spdy.DataFlags) error {
	binary.BigEndian.PutUint32(p.wbuf[:], p.dataID)
	binary.BigEndian.PutUint32(p.wbuf[4:], uint32(len(b)))
	p.wbuf[4] = uint8(flags)
	return p.c.WriteFrame(p.wbuf[:], b)
}

// CloseWrite tells the pod's port that nothing follows. The container runtime cuts the other
// direction about a second later.
func (p *podConn) CloseWrite() error {
	if !p.lockWrite() {
		return p.opError("close write", net.ErrClosed)
	}
	defer p.unlockWrite()
	if p.werr != nil || p.sent {
		return p.werr
	}
	p.sent, p.first = true, !p.farDone.Load()
	p.werr = p.carrierError("close write", p.writeData(nil, spdy.DataFlagFin))
	return p.werr
}

// Close ends both directions at once. It may cut off what was written just before: to have all of it
// arrive, CloseWrite and Read until the end.
func (p *podConn) Close() error { return p.end(false) }

// Reset ends both directions and has the far end forget what it has not passed on: some seconds later where a connection before was left just now and a
// Write is under way.
func (p *podConn) Reset() error { return p.end(true) }

func (p *podConn) end(reset bool) error {
	p.once.Do(func() {
		p.retire()
		select {
		case <-p.wmu:
			if !reset && p.keep != nil && p.over() {
				p.release()
				return
			}
			_ = p.c.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
			if p.werr == nil {
				_ = p.c.WriteFrame(p.goodbye(reset), nil)
			}
		default: // somebody is inside Write: closing the carrier ends that
		}
		_ = p.c.Close()
	})
	return nil
}

// over tells whether both streams are, so that their carrier is as new: what is left untaken of one holds up others there. It needs wmu.
func (p *podConn) over() bool {
	if !p.sound() || !p.c.rmu.TryLock() {
		return false
	}
	defer p.c.rmu.Unlock()
	return p.whole
}

// Leave is Close when all has been said (CloseWrite) and nobody is left to hear more: the container runtime would take a second to end the connection, and
// does that without us. What was written arrives. It does nothing, and is false, where that takes reading until the end: before the pod has answered, so
// that a failure is seen, after it has said much, of which more may be on its way, after more was written than the pod's kernel surely has room for, or
// when the carrier is not to be used again.
func (p *podConn) Leave() (left bool) {
	if heard := p.heard.Load(); p.keep == nil || heard == 0 || heard > maxSkipped || p.farDone.Load() {
		return false
	}
	select {
	case <-p.wmu:
	default:
		return false
	}
	if p.little <= maxLittle && p.sound() {
		p.once.Do(func() {
			p.retire()
			p.c.leftAt.Store(time.Now().UnixNano())
			p.release()
			left = true
		})
	}
	if !left {
		p.unlockWrite()
	}
	return left
}

// sound tells whether the carrier is good for others once the streams are over. It needs wmu.
func (p *podConn) sound() bool {
	return p.first && p.werr == nil && p.pinged.Load() == 0 && p.lost.Load() == nil && p.c.skipped.Load() <= maxSkipped
}

// retire has p touch its carrier no more, but for who is in Read or Write.
func (p *podConn) retire() {
	p.dmu.Lock()
	close(p.closed)
	p.dmu.Unlock()
	p.timer.Stop()
}

// release gives the carrier to the next connection. It needs wmu, for good. Who is in Read now goes when the next frame comes, or who has it next lets go.
func (p *podConn) release() {
	_ = errors.Join(p.c.SetReadDeadline(time.Time{}), p.c.SetWriteDeadline(time.Time{}))
	p.keep(p.c)
}

// goodbye is the end of the data stream and GOAWAY. It needs wmu.
func (p *podConn) goodbye(reset bool) []byte { return goodbye(p.dataID, reset, p.sent) }

func goodbye(stream uint32, reset, sent bool) []byte {
	var b []byte
	switch {
	case reset:
		b = binary.BigEndian.AppendUint32(b, 0x80030000|uint32(spdy.TypeRstStream))
		b = binary.BigEndian.AppendUint32(b, 8)
		b = binary.BigEndian.AppendUint32(b, stream)
		b = binary.BigEndian.AppendUint32(b, uint32(spdy.Cancel))
	case !sent:
		b = binary.BigEndian.AppendUint32(b, stream)
		b = binary.BigEndian.AppendUint32(b, uint32(spdy.DataFlagFin)<<24)
	}
	b = binary.BigEndian.AppendUint32(b, 0x80030000|uint32(spdy.TypeGoAway))
	b = binary.BigEndian.AppendUint32(b, 8)
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(spdy.GoAwayOK))
}

// lockWrite is false when the connection was closed here.
func (p *podConn) lockWrite() bool {
	if p.isClosed() {
		return false
	}
	select {
	case <-p.wmu:
		return true
	case <-p.closed:
		return false
	}
}

// unlockWrite first sends the answer to a ping that came in while the lock was held.
func (p *podConn) unlockWrite() {
	for {
		p.sendAnswer()
		p.wmu <- struct{}{}
		if p.answer.Load() == 0 {
			return
		}
		select {
		case <-p.wmu:
		default:
			return // whoever has it now will send it
		}
	}
}

// sendAnswer needs wmu.
func (p *podConn) sendAnswer() {
	if a := p.answer.Swap(0); a != 0 && p.werr == nil {
		p.werr = p.carrierError("write", p.c.WriteFrame(pingFrame(uint32(a)), nil))
	}
}

func pingFrame(id uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x80030000|uint32(spdy.TypePing))
	b = binary.BigEndian.AppendUint32(b, 4)
	return binary.BigEndian.AppendUint32(b, id)
}

// handlePing takes note of the answer to our ping (odd) or answers the peer's (even), but never waits
// for a writer: a pod that does not read must not keep us from reading.
func (p *podConn) handlePing(id uint32) {
	if id%2 == 1 {
		if id == p.pingID.Load() {
			p.pinged.Store(0)
			p.answered.Store(p.wroteAt.Load())
		}
		return
	}
	p.answer.Store(1<<32 | uint64(id))
	select {
	case <-p.wmu:
		p.unlockWrite()
	default:
	}
}

// watch runs every pingPeriod. It pings when the last ping was answered, and cuts the carrier when an
// answer is missing for too long. An answer can also be missing because the pod does not read: the
// ping waits behind our data. Then only what TCP knows tells dead from slow.
func (p *podConn) watch() {
	if p.isClosed() {
		return
	}
	defer p.timer.Reset(pingPeriod)
	probeOften(p.c.NetConn(), pingPeriod) // the path may take longer by now
	waiting := !p.c.rmu.TryLock()
	if !waiting {
		p.c.rmu.Unlock()
	}
	if reads := p.reads.Load(); waiting && reads == p.readsOld {
		p.silent++
	} else {
		p.silent, p.readsOld = 0, reads
	}
	quiet := time.Duration(p.silent)*pingPeriod >= deadAfter
	if at := p.pinged.Load(); at != 0 {
		if waited := time.Since(time.Unix(0, at)); waited >= deadAfter && quiet && p.isDead() {
			p.giveUp(waited)
		}
		return
	}
	select {
	case <-p.wmu:
	default: // a write is under way: that is traffic enough, and a ping would wait behind it
		if waited, dead := p.unheard(); quiet && dead {
			p.giveUp(waited)
		}
		return
	}
	id := p.pingID.Add(2)
	p.wroteAt.Store(p.wrote.Load())
	p.pinged.Store(time.Now().UnixNano())
	p.werr = p.carrierError("write", p.c.WriteFrame(pingFrame(id), nil))
	p.unlockWrite()
}

// giveUp ends Read and Write, which report it.
func (p *podConn) giveUp(waited time.Duration) {
	err := p.opError("read", &lostError{fmt.Errorf("no answer for %s: %w", waited.Round(time.Second), syscall.ETIMEDOUT)})
	p.lost.CompareAndSwap(nil, &err)
	_ = p.c.NetConn().Close()
}

// isDead is asked when an answer is overdue and nothing has come.
func (p *podConn) isDead() bool {
	if p.wroteAt.Load() == p.answered.Load() {
		return true // no data was on the way when the ping was sent, so nothing is in its way
	}
	_, dead := p.unheard()
	return dead
}

// unheard is how long TCP has waited for an acknowledgement, and whether that is too long.
func (p *podConn) unheard() (waited time.Duration, dead bool) {
	waited, ok := unacknowledged(p.c.NetConn())
	return waited, ok && waited > deadAfter
}

// LocalAddr is this end of the connection to the API server.
func (p *podConn) LocalAddr() net.Addr { return p.c.NetConn().LocalAddr() }

// RemoteAddr names the pod's port.
func (p *podConn) RemoteAddr() net.Addr { return p.remote }

// SetDeadline sets both deadlines. See podConn: a deadline that passes is the end.
func (p *podConn) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// SetReadDeadline bounds Read.
func (p *podConn) SetReadDeadline(t time.Time) error { return p.setDeadline(p.c.SetReadDeadline, t) }

// SetWriteDeadline bounds Write.
func (p *podConn) SetWriteDeadline(t time.Time) error { return p.setDeadline(p.c.SetWriteDeadline, t) }

func (p *podConn) setDeadline(set func(time.Time) error, t time.Time) error {
	p.dmu.Lock()
	defer p.dmu.Unlock()
	if p.isClosed() {
		return p.opError("set deadline", net.ErrClosed)
	}
	return set(t)
}

func (p *podConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: p.remote, Err: err}
}

// endError is what the end of the data stream means: io.EOF, unless the error stream has said more.
func (p *podConn) endError() error {
	text := strings.TrimSpace(string(p.errText))
	if text == "" {
		return io.EOF
	}
	if p.spoilt != nil {
		p.spoilt()
	}
	return p.opError("port-forward", portError(text))
}

func (p *podConn) resetError() error {
	return p.opError("port-forward", hint.Worded("the cluster gave up the connection", syscall.ECONNRESET))
}

// portError gives the kubelet's text its errno, and leaves out the ids nobody knows. The text is like
//
//	error forwarding port 81 to pod 3b8c3d14..., uid : failed to execute portforward in network
//	namespace "/var/run/netns/cni-7688d083": failed to connect to localhost:81 inside namespace
//	"3b8c3d14...", IPv4: dial tcp4 127.0.0.1:81: connect: connection refused IPv6 dial tcp6 ...
func portError(text string) error {
	short := text
	if _, after, ok := strings.Cut(text, `in network namespace "`); ok {
		if _, after, ok = strings.Cut(after, `": `); ok {
			short = after
		}
	}
	for _, e := range []struct {
		text  string
		errno syscall.Errno
	}{
		{"connection refused", syscall.ECONNREFUSED},
		{"connection reset", syscall.ECONNRESET},
		{"broken pipe", syscall.EPIPE},
		{"no route to host", syscall.EHOSTUNREACH},
		{"timed out", syscall.ETIMEDOUT},
	} {
		if strings.Contains(text, e.text) {
			return hint.Worded(short, e.errno)
		}
	}
	return errors.New(short)
}

// lostError is a connection to the API server that ended before its streams did. It says so and
// counts as a reset, whatever the socket said.
type lostError struct{ cause error }

func (e *lostError) Error() string {
	return "the connection through the API server was lost: " + e.cause.Error()
}
func (e *lostError) Unwrap() error { return e.cause }

// Is makes a lost connection a reset for those who copy.
func (e *lostError) Is(target error) bool { return target == syscall.ECONNRESET }

// carrierError says what an error of the carrier means for op: closed here, a deadline, or lost.
func (p *podConn) carrierError(op string, err error) error {
	if err == nil {
		return nil
	}
	if lost := p.lost.Load(); lost != nil {
		p.onLost()
		return *lost
	}
	if p.isClosed() {
		return p.opError(op, net.ErrClosed)
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() && !errors.Is(err, syscall.ETIMEDOUT) {
		return p.opError(op, os.ErrDeadlineExceeded)
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	p.onLost()
	return p.opError(op, &lostError{err})
}
