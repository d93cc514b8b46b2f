package kube

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/spdystream/spdy"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// idleFor is how long a session waits for another connection: short ones follow each other sooner, and load balancers cut what is silent for longer.
	idleFor = 30 * time.Second
	// maxIdle is how many sessions wait at once, all pods together.
	maxIdle = 64
	// leftFor is what the runtime takes to read what there is of a connection that was left, and to end it.
	leftFor = 2 * time.Second
	// reuseTimeout bounds opening streams on one that has waited: its path may be dead by now, and a new session takes little more than that.
	reuseTimeout = 2 * time.Second
)

// session is a carrier for one connection after the other: a pair of streams. What comes of those that were left is skipped.
type session struct {
	carrier
	framer  *spdy.Framer // writes to head; the other side unpacks headers by all that went before
	head    bytes.Buffer
	streams uint32 // IDs up to this are taken
	expires *time.Timer

	rmu   sync.Mutex // held by who reads: for a while after its end, that may be the connection before
	frame frame      // under rmu

	skipped atomic.Int64 // bytes of data of connections before
	leftAt  atomic.Int64 // when the last one was left, Unix ns
}

// Close ends Read and WriteFrame, and closes the carrier, a while later where a connection was left on it just now: what that had written may be on its way.
func (s *session) Close() error {
	if wait := s.carries(); wait > 0 {
		time.AfterFunc(wait, func() { _ = s.carrier.Close() })
		return errors.Join(s.SetReadDeadline(time.Unix(1, 0)), s.SetWriteDeadline(time.Unix(1, 0)))
	}
	return s.carrier.Close()
}

// carries is how long something of a connection that was left may be on its way.
func (s *session) carries() time.Duration {
	return min(leftFor, leftFor-time.Since(time.Unix(0, s.leftAt.Load()))) // clocks are set back
}

// frame is the one that is being read.
type frame struct {
	kind  spdy.ControlFrameType // dataFrame, or that of a control frame
	flags uint8
	id    uint32 // of the stream, or the ping; of other kinds the first four bytes
	left  int    // bytes of it that are not read
	fresh bool   // nobody has acted on it
}

// dataFrame is no kind of a control frame: these begin at 1.
const dataFrame spdy.ControlFrameType = 0

// await has frame be the next one that nobody has acted on. What is left of the one before is skipped. It needs rmu.
func (s *session) await() error {
	if s.frame.fresh {
		return nil
	}
	if s.frame.left > 0 {
		n, err := io.CopyN(io.Discard, s.carrier, int64(s.frame.left))
		s.frame.left -= int(n)
		if err != nil {
			return err
		}
	}
	var head [16]byte
	if _, err := io.ReadFull(s.carrier, head[:8]); err != nil {
		return err
	}
	f := frame{kind: dataFrame, flags: head[4], id: binary.BigEndian.Uint32(head[:]), left: int(binary.BigEndian.Uint32(head[4:]) & 0xffffff), fresh: true}
	if head[0]&0x80 != 0 {
		// Of control frames only the first four bytes matter here, which all of them begin with that are heeded; header blocks are not decoded.
		f.kind = spdy.ControlFrameType(binary.BigEndian.Uint16(head[2:]))
		n, err := io.ReadFull(s.carrier, head[8:8+min(f.left, 4)])
		if err != nil {
			return err
		}
		f.left -= n
		f.id = binary.BigEndian.Uint32(head[8:])
		if f.kind != spdy.TypePing {
			f.id &^= 1 << 31
		}
	}
	s.frame = f
	return nil
}

// newSession owns c, and closes it with an error.
func newSession(c carrier) (*session, error) {
	s := &session{carrier: c}
	var err error
	if s.framer, err = spdy.NewFramer(&s.head, &s.head); err != nil {
		_ = c.Close()
		return nil, err
	}
	return s, nil
}

// end says goodbye and closes it, when no connection has it.
func (s *session) end() {
	_ = s.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	_ = s.WriteFrame(goodbye(0, false, true), nil)
	_ = s.Close()
}

// idleSessions are those whose last connection has ended as it should, or was left: the upgrade through the API server and the kubelet is the most of what a short
// connection costs. One connection at a time has each session still, so one that nobody reads is in no other's way. The zero value is ready to use.
type idleSessions struct {
	mu   sync.Mutex
	of   map[types.UID][]*session // of a pod; the last one waits for the shortest time
	size int
}

// put keeps s for the next connection to the pod, for a while.
func (i *idleSessions) put(pod types.UID, s *session) {
	if !i.add(pod, s) {
		s.end()
	}
}

func (i *idleSessions) add(pod types.UID, s *session) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.size >= maxIdle {
		return false
	}
	if i.of == nil {
		i.of = make(map[types.UID][]*session)
	}
	i.of[pod] = append(i.of[pod], s)
	i.size++
	s.expires = time.AfterFunc(idleFor, func() {
		if i.remove(pod, s) {
			s.end()
		}
	})
	return true
}

// take returns one, or nil. It is the caller's.
func (i *idleSessions) take(pod types.UID) *session {
	i.mu.Lock()
	defer i.mu.Unlock()
	list := i.of[pod]
	if len(list) == 0 {
		return nil
	}
	s := list[len(list)-1]
	i.cut(pod, len(list)-1)
	s.expires.Stop()
	return s
}

// drop closes all of a pod's: one was not good any more.
func (i *idleSessions) drop(pod types.UID) {
	for s := i.take(pod); s != nil; s = i.take(pod) {
		if s.carries() > 0 {
			_ = s.Close()
		} else {
			_ = s.NetConn().Close() // without a goodbye that nobody takes
		}
	}
}

func (i *idleSessions) remove(pod types.UID, s *session) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := slices.Index(i.of[pod], s)
	if at >= 0 {
		i.cut(pod, at)
	}
	return at >= 0
}

// cut needs mu.
func (i *idleSessions) cut(pod types.UID, at int) {
	i.size--
	if i.of[pod] = slices.Delete(i.of[pod], at, at+1); len(i.of[pod]) == 0 {
		delete(i.of, pod)
	}
}

// dialAgain is a connection on a session that waits for one; nil when there is none that is good.
func (c *Client) dialAgain(ctx context.Context, pod types.UID, remote podAddr) *podConn {
	s := c.idle.take(pod)
	if s == nil {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, reuseTimeout)
	defer cancel()
	conn, err := c.openStreams(short, s, pod, remote, func() {})
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, errSkipped) {
			c.idle.drop(pod)
		}
		return nil
	}
	return conn
}

// openStreams is a connection on s, which it owns.
func (c *Client) openStreams(ctx context.Context, s *session, pod types.UID, remote podAddr, lost func()) (*podConn, error) {
	// From here on the carrier is ours: closing it is what ends a wait.
	stop := context.AfterFunc(ctx, func() { _ = s.NetConn().Close() })
	conn, err := newPodConn(s, remote, c.requestID.Add(1), lost)
	if conn != nil {
		conn.requests = c.requests
		if pod != "" {
			conn.keep = func(s *session) { c.idle.put(pod, s) }
			conn.spoilt = func() { c.idle.drop(pod) }
		}
	}
	if !stop() && ctx.Err() != nil {
		if conn != nil {
			_ = conn.Reset()
		}
		return nil, context.Cause(ctx)
	}
	return conn, err
}
