// Package flow carries datagrams of many senders that share a socket, or some: for each pair of addresses it keeps a connection of its
// own until that has been silent for long enough. internal/forward, internal/connect, internal/socks5, internal/netns and internal/packet use it.
package flow

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxFlows is how many flows a Table has at once; datagrams of others are dropped until one was silent for long enough.
	maxFlows = 1024
	// maxFew is how many there are of Few beside these: more than a script that looks for who is there pings at once.
	maxFew = 256
	// maxQueue is how many datagrams of a flow wait to be sent on. Those beyond it are dropped.
	maxQueue = 64
	// maxQueued is how many bytes wait so in all flows of a Table; a flow of long datagrams could hold 4 MiB.
	maxQueued = 16 << 20
	// maxFewQueued is that of Few beside it: each of these flows has as much.
	maxFewQueued = maxQueued * maxFew / maxFlows
	// MaxDatagram is the longest there is, in bytes.
	MaxDatagram = 64 << 10
)

// Pair is who sends datagrams to whom: those of UDP ("udp"), or echoes as internal/ping has them ("icmp"), where the sender's port is the identifier and
// the target's 0.
type Pair struct {
	Network  string
	From, To netip.AddrPort
}

// Echo tells whether they are echoes.
func (p Pair) Echo() bool { return p.Network == "icmp" }

// Table carries the flows of a socket, or of several; K tells them apart. Set the fields before Put.
type Table[K comparable] struct {
	// Dial makes a flow's connection, of which each Write is a datagram and each Read another.
	Dial func(ctx context.Context, k K) (net.Conn, error)
	// Answer sends the flow's sender what came back.
	Answer func(k K, b []byte) error
	// Idle is how long a flow may be silent.
	Idle func(k K) time.Duration
	// Few, if set, tells which flows have a small bound of their own: so many that come at once, or wait, leave the others their room.
	Few func(k K) bool
	// Begin, if set, is called at the beginning of each flow, and what it returns at its end, with why it could not be made, or nil.
	Begin func(k K) (end func(err error))
	// Refuse, if set, is told each datagram that waits when its flow could not be made, and why.
	Refuse func(k K, b []byte, err error)
	// Full, if set, is called once: when the first datagram is dropped for a bound of all flows together, which one sender may have
	// reached for all others. It must not call Put.
	Full func()

	mu        sync.Mutex
	full      sync.Once
	open      map[K]chan []byte
	few, many share
	wg        sync.WaitGroup
}

// share is what the flows of Few have together, or all others.
type share struct {
	flows  int
	queued atomic.Int64 // bytes; Put alone adds
}

// share is the one that k has a part of, and its bounds.
func (t *Table[K]) share(k K) (s *share, flows int, queued int64) {
	if t.Few != nil && t.Few(k) {
		return &t.few, maxFew, maxFewQueued
	}
	return &t.many, maxFlows, maxQueued
}

// Put sends a datagram on; b may be used again then. It waits for nobody: who is slow loses datagrams. ctx ends the flow.
func (t *Table[K]) Put(ctx context.Context, k K, b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, flows, queued := t.share(k)
	queue := t.open[k]
	if queue == nil {
		if s.flows == flows {
			t.overflow()
			return
		}
		s.flows++
		if t.open == nil {
			t.open = make(map[K]chan []byte)
		}
		queue = make(chan []byte, maxQueue)
		t.open[k] = queue
		t.wg.Go(func() { t.run(ctx, k, queue) })
	}
	if s.queued.Load()+int64(len(b)) > queued {
		t.overflow()
		return
	}
	select {
	case queue <- append([]byte(nil), b...):
		s.queued.Add(int64(len(b)))
	default:
	}
}

func (t *Table[K]) overflow() {
	if t.Full != nil {
		t.full.Do(t.Full)
	}
}

func (t *Table[K]) run(ctx context.Context, k K, queue <-chan []byte) {
	end := func(error) {}
	if t.Begin != nil {
		end = t.Begin(k)
	}
	err := t.carry(ctx, k, queue)
	defer func() { end(err) }() // which may take its time: the next datagram begins another flow
	s, _, _ := t.share(k)
	t.mu.Lock()
	delete(t.open, k)
	s.flows--
	t.mu.Unlock()
	for len(queue) > 0 { // nobody puts more
		b := <-queue
		s.queued.Add(-int64(len(b)))
		if err != nil && t.Refuse != nil {
			t.Refuse(k, b, err)
		}
	}
}

// Wait returns when all flows have ended, for which the ctx of Put has to.
func (t *Table[K]) Wait() { t.wg.Wait() }

// carry carries one flow, until it was silent for long enough. The error is that it could not be made.
func (t *Table[K]) carry(ctx context.Context, k K, queue <-chan []byte) error {
	target, err := t.Dial(ctx, k)
	if err != nil {
		return err
	}
	var once sync.Once
	end := func() { once.Do(func() { _ = target.Close() }) }
	defer end()
	defer context.AfterFunc(ctx, end)()
	var moved atomic.Int64
	moved.Store(time.Now().UnixNano())
	ended := make(chan struct{})
	var answers sync.WaitGroup
	defer answers.Wait()
	defer end()
	s, _, _ := t.share(k)
	answers.Go(func() {
		defer close(ended)
		t.answer(target, k, &moved)
	})
	for {
		select {
		case b := <-queue:
			s.queued.Add(-int64(len(b)))
			moved.Store(time.Now().UnixNano())
			_, _ = target.Write(b) // one that is lost
		case <-ended:
			return nil
		}
	}
}

// answer passes on what comes from target, until that has ended or the flow was silent for too long.
func (t *Table[K]) answer(target net.Conn, k K, moved *atomic.Int64) {
	idle := t.Idle(k)
	b := make([]byte, MaxDatagram)
	for {
		_ = target.SetReadDeadline(time.Unix(0, moved.Load()).Add(idle))
		n, err := target.Read(b)
		var timeout net.Error
		switch {
		case err == nil:
			moved.Store(time.Now().UnixNano())
			_ = t.Answer(k, b[:n]) // one that is lost
		case errors.As(err, &timeout) && timeout.Timeout():
			if time.Since(time.Unix(0, moved.Load())) >= idle {
				return
			}
		case !refused(err):
			return
		}
	}
}

// refused tells whether err is what the last datagram met, and the flow goes on.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
