package intercept

import (
	"context"
	"time"
)

const (
	// drainTick is how often Drain looks for quiet moments.
	drainTick = 2 * time.Millisecond

	// endGrace is how long the caller may take to close after us. What it sends in that time is lost;
	// clients see our end before, or repeat what crossed it, as with any server's idle timeout.
	endGrace = time.Second
)

// Drain closes the listeners, losing none of the connections that the kernel has queued, then ends
// every connection at a quiet moment, and resets what is left after limit or when ctx is done. UDP ports stay open until all
// callers are answered, or silent. It returns when there is nothing open any more. New callers should go elsewhere before it is called.
func (i *Interceptor) Drain(ctx context.Context, limit time.Duration) {
	i.stopAccepting(ctx)
	i.draining.Store(true)
	defer func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.closePorts()
	}()
	begin := time.Now()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(drainTick)
	defer look.Stop()
	for {
		all := i.all()
		now := time.Now()
		if len(all) == 0 && i.flowsQuiet(now) {
			return
		}
		for _, c := range all {
			c.endIfQuiet(now, float64(now.Sub(begin))/float64(limit))
		}
		select {
		case <-look.C:
		case <-i.changed:
		case <-deadline.C:
			i.log().Warn("drain: connections reset", "count", len(all), "after", limit)
			i.cut()
			ctx = context.Background() // done or not: what is left now ends by itself
		case <-ctx.Done():
			i.cut()
			ctx = context.Background()
		}
	}
}

// cut resets every connection and ends every flow.
func (i *Interceptor) cut() {
	i.mu.Lock()
	i.closePorts()
	i.mu.Unlock()
	i.resetAll()
}

// flowsQuiet says whether no caller of a UDP port waits for an answer.
func (i *Interceptor) flowsQuiet(now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, p := range i.udp {
		if !p.quiet(now) {
			return false
		}
	}
	return true
}

// stopAccepting closes the listeners when their queues are empty.
func (i *Interceptor) stopAccepting(ctx context.Context) {
	i.mu.Lock()
	if i.state != running {
		i.mu.Unlock()
		return
	}
	i.state = closing
	until := time.Now().Add(queueGrace)
	for _, l := range i.listeners {
		_ = l.SetDeadline(until)
	}
	i.mu.Unlock()

	grace := time.NewTimer(time.Until(until))
	defer grace.Stop()
	select {
	case <-grace.C:
	case <-ctx.Done():
	}
	// Whoever waits in Accept has returned, or does now; whoever waits for a slot has no time left.
	i.mu.Lock()
	i.closeListeners()
	i.mu.Unlock()
}

// endIfQuiet sends the caller our end if this is a quiet moment, and closes c some time after that. elapsed is
// the part of the drain that is over.
func (c *conn) endIfQuiet(now time.Time, elapsed float64) {
	if at := c.endedAt.Load(); at != 0 {
		if now.Sub(time.Unix(0, at)) > endGrace {
			c.end()
		}
		return
	}
	if c.rhythm.quiet(now, elapsed) {
		c.sendEnd(now)
	}
}

// sendEnd sends the caller our end, once, unless it has just spoken; it says whether it did.
func (c *conn) sendEnd(now time.Time) bool {
	if c.unread() || !c.endedAt.CompareAndSwap(0, now.UnixNano()) {
		return false
	}
	_ = c.TCPConn.CloseWrite() // fails when the caller is gone, which Splice meets
	return true
}
