package kube

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/moby/spdystream/spdy"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// idleFor is how long a session waits for another connection: short ones follow each other sooner, and load balancers cut what is silent for longer.
	idleFor = 30 * time.Second
	// maxIdle is how many sessions wait at once, all pods together.
	maxIdle = 64
	// reuseTimeout bounds opening streams on one that has waited: its path may be dead by now, and a new session takes little more than that.
	reuseTimeout = 2 * time.Second
)

// session is a carrier for one pair of streams after the other.
type session struct {
	carrier
	framer  *spdy.Framer // writes to head; the other side unpacks headers by all that went before
	head    bytes.Buffer
	streams uint32 // IDs up to this are taken
	expires *time.Timer
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

// end says goodbye and closes it, between two connections.
func (s *session) end() {
	_ = s.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	_ = s.WriteFrame(goodbye(0, false, true), nil)
	_ = s.Close()
}

// idleSessions are those whose last connection has ended as it should: the upgrade through the API server and the kubelet is the most of what a short
// connection costs. One pair of streams at a time has each session still, so a connection that nobody reads is in no other's way. The zero value is ready to use.
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
		_ = s.NetConn().Close()
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
		if ctx.Err() == nil {
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
