package tunnel

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// TestAnsweringIsQuickerThanReady: who can go elsewhere is told of a cut at once, of a path that swallows everything within
// 9 s, and of a process that is not ready with the word of it; OnReady stays true while a cut may heal.
func TestAnsweringIsQuickerThanReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		var current atomic.Pointer[badConn]
		dial, held := e.client.Carrier, make(chan struct{})
		e.client.Carrier = func(ctx context.Context) (net.Conn, string, error) {
			if current.Load() != nil {
				select {
				case <-held: // until the test wants another one
				case <-ctx.Done():
					return nil, "", ctx.Err()
				}
			}
			c, peer, err := dial(ctx)
			if err != nil {
				return nil, "", err
			}
			bad := newBadConn(c)
			current.Store(bad)
			return bad, peer, nil
		}
		// becomes waits for a change to want, and says how long it took.
		becomes := func(want bool) time.Duration {
			t.Helper()
			start := time.Now()
			for {
				answering, changed := e.server.Answering()
				if answering == want {
					return time.Since(start)
				}
				<-changed
			}
		}
		e.start().waitReady()
		defer e.close()
		if answering, _ := e.server.Answering(); answering {
			t.Error("before the laptop's process is ready")
		}
		e.client.SetReady(true)
		becomes(true)
		if ready := <-e.ready; !ready {
			t.Error("OnReady: false")
		}
		e.client.SetReady(false)
		becomes(false)
		if ready := <-e.ready; ready {
			t.Error("OnReady: true")
		}
		e.client.SetReady(true)
		becomes(true)
		<-e.ready

		_ = current.Load().Conn.Close()
		if took := becomes(false); took > 0 {
			t.Errorf("a cut is told after %v", took)
		}
		held <- struct{}{}
		becomes(true)
		if len(e.ready) > 0 {
			t.Errorf("OnReady was told of a cut that has healed: %v", <-e.ready)
		}

		current.Load().swallow.Store(true)
		current.Load().deaf.Store(true)
		// A ping that is due a moment after a tick waits for the next one, and so does what is late.
		if took := becomes(false); took > pingEvery+silentFor+2*clockEvery {
			t.Errorf("a dead path is told after %v", took)
		}
		if len(e.ready) > 0 {
			t.Errorf("OnReady was told: %v", <-e.ready)
		}
		current.Load().swallow.Store(false)
		_ = current.Load().Conn.Close()
		close(held)
		becomes(true)
	})
}
