package intercept

import (
	"context"
	"time"

	"bridge/pkg/tunnel"
)

// A connection is ended at a quiet moment: its last bytes went to the caller and nothing has moved
// since for the quiet time. A long one mistakes no pause in an answer for its end; a short one finds the
// gap in a busy connection. So it starts long and halves on and on, down to its floor when drainShrink
// of the limit is over.
const (
	quietFirst  = 512 * time.Millisecond
	quietLast   = 2 * time.Millisecond // more than the wake-up of the goroutine that reads the caller
	quietSteps  = 8                    // halvings from quietFirst to quietLast
	drainShrink = 0.4

	// quietFresh is the quiet time of a connection that nothing has come through yet: its first request
	// is likely under way, and no client repeats that one by itself.
	quietFresh = time.Second
	// endGrace is how long the caller may take to close after us. What it sends in that time is lost;
	// clients see our end before, or repeat what crossed it, as with any server's idle timeout.
	endGrace = time.Second
)

// quiet is the quiet time when elapsed of limit is over.
func quiet(elapsed, limit time.Duration) time.Duration {
	step := time.Duration(drainShrink*float64(limit)) / quietSteps
	if step <= 0 {
		return quietLast
	}
	return max(quietFirst>>min(elapsed/step, quietSteps), quietLast)
}

// Drain closes the listeners, losing none of the connections that the kernel has queued, then ends
// every connection at a quiet moment, and resets what is left after limit or when ctx is done. It
// returns when there is no connection any more. New ones should go elsewhere before it is called.
func (i *Interceptor) Drain(ctx context.Context, limit time.Duration) {
	i.stopAccepting(ctx)
	begin := time.Now()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		all := i.all()
		if len(all) == 0 {
			return
		}
		wait := quiet(time.Since(begin), limit)
		for _, c := range all {
			c.endIfQuiet(wait)
		}
		look := time.NewTimer(wait / 4)
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
		look.Stop()
	}
}

// stopAccepting closes the listeners when their queues are empty.
func (i *Interceptor) stopAccepting(ctx context.Context) {
	i.mu.Lock()
	if i.state != running {
		i.mu.Unlock()
		return
	}
	i.state = draining
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

// endIfQuiet sends the caller our end if c has been quiet for wait, and closes c some time after that.
func (c *conn) endIfQuiet(wait time.Duration) {
	at, way, moving := c.flow.Last()
	switch {
	case !c.endedAt.IsZero():
		if time.Since(c.endedAt) > endGrace {
			c.end()
		}
		return
	case moving || c.half.Load():
		return // under way; or about to end by itself
	case way == tunnel.Neither:
		if time.Since(c.since) < quietFresh {
			return
		}
	case way == tunnel.AToB || time.Since(at) < wait:
		return // the caller waits for an answer; or is not quiet
	}
	if c.unread() {
		return
	}
	c.endedAt = time.Now()
	_ = c.TCPConn.CloseWrite() // fails when the caller is gone, which Splice meets
}
