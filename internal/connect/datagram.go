package connect

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bridge/internal/netns"
	"bridge/pkg/tunnel"
)

const (
	// maxFlows is how many pairs of addresses have a flow of datagrams at once; those of others are dropped until one was silent for
	// long enough.
	maxFlows = 1024
	// maxFlowQueue is how many datagrams of a flow wait to be sent on. Those beyond it are dropped.
	maxFlowQueue = 64
	// maxDatagram is the longest there is.
	maxDatagram = 64 << 10
)

// pair is who sends datagrams to whom.
type pair struct{ from, to netip.AddrPort }

// flows carries a program's datagrams.
type flows struct {
	g *gate
	d *netns.Datagrams

	mu   sync.Mutex
	open map[pair]chan []byte
	wg   sync.WaitGroup
}

// serve carries what arrives, until ctx is done, and returns when all has ended. It waits for nobody: who is slow loses datagrams.
func (f *flows) serve(outer context.Context) error {
	ctx, cancel := context.WithCancel(outer)
	defer f.wg.Wait()
	defer cancel()
	defer context.AfterFunc(outer, f.d.Close)()
	b := make([]byte, maxDatagram)
	for {
		n, from, to, err := f.d.Read(b)
		switch {
		case outer.Err() != nil:
			return nil
		case err != nil:
			return err
		case to.IsValid():
			f.put(ctx, pair{from, to}, append([]byte(nil), b[:n]...))
		}
	}
}

func (f *flows) put(ctx context.Context, p pair, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue := f.open[p]
	if queue == nil {
		if len(f.open) == maxFlows {
			return
		}
		queue = make(chan []byte, maxFlowQueue)
		f.open[p] = queue
		f.wg.Go(func() {
			if err := f.carry(ctx, p, queue); err != nil {
				f.g.log.Debug("datagrams of the program", "to", p.to, "error", err)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.open, p)
		})
	}
	select {
	case queue <- b:
	default:
	}
}

// carry carries one flow, until it was silent for long enough.
func (f *flows) carry(ctx context.Context, p pair, queue <-chan []byte) error {
	target, err := f.g.reach(ctx, "udp", p.to)
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
	answers.Go(func() {
		defer close(ended)
		f.answer(target, p, &moved)
	})
	for {
		select {
		case b := <-queue:
			moved.Store(time.Now().UnixNano())
			_, _ = target.Write(b) // one that is lost
		case <-ended:
			return nil
		}
	}
}

// answer sends the program what comes from target, until that has ended or the flow was silent for too long.
func (f *flows) answer(target net.Conn, p pair, moved *atomic.Int64) {
	idle := tunnel.FlowIdle(p.to.String())
	b := make([]byte, maxDatagram)
	for {
		_ = target.SetReadDeadline(time.Unix(0, moved.Load()).Add(idle))
		n, err := target.Read(b)
		var timeout net.Error
		switch {
		case err == nil:
			moved.Store(time.Now().UnixNano())
			if err := f.d.Write(b[:n], p.to, p.from); err != nil {
				f.g.log.Debug("datagram for the program", "from", p.to, "error", err)
			}
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
