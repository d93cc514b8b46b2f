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
// every connection at a quiet moment, and resets what is left after limit or when ctx is done. It
// returns when there is no connection any more. New ones should go elsewhere before it is called.
func (i *Interceptor) Drain(ctx context.Context, limit time.Duration) {
	i.stopAccepting(ctx)
	i.draining.Store(true)
	begin := time.Now()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	look := time.NewTicker(drainTick)
	defer look.Stop()
	for {
		all := i.all()
		if len(all) == 0 {
			return
		}
		now := time.Now()
		for _, c := range all {
			c.endIfQuiet(now, float64(now.Sub(begin))/float64(limit))
		}
		select {
		case <-look.C:
		case <-i.changed:
		case <-deadline.C:
			i.log().Warn("drain: connections reset", "count", len(all), "after", limit)
			i.resetAll()
			ctx = context.Background() // done or not: what is left now ends by itself
		case <-ctx.Done():
			i.resetAll()
			ctx = context.Background()
		}
	}
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

// sendEnd sends the caller our end, once, unless it has just spoken.
func (c *conn) sendEnd(now time.Time) {
	if !c.unread() && c.endedAt.CompareAndSwap(0, now.UnixNano()) {
		_ = c.TCPConn.CloseWrite() // fails when the caller is gone, which Splice meets
	}
}
