package kube

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// way is one of the two ways to a port-forward: one of them may not pass what stands before the API server.
type way int

const (
	byWebSocket way = iota // an HTTP GET; kubectl's first choice too
	bySPDY                 // an HTTP POST
)

const (
	// avoidFor is how long a way comes second after it failed where the other worked, or what it had opened
	// was lost before settled. After that it is tried first again: API servers and load balancers are replaced.
	avoidFor = time.Minute
	settled  = 30 * time.Second

	// The second way is started when the first has not answered within leadFactor times what the last opening took, but
	// not within minLead (a WebSocket takes five round trips) and not later than maxLead (a carrier has 10 s).
	leadFactor = 3
	minLead    = 500 * time.Millisecond
	maxLead    = 3 * time.Second
)

// ways is how the two have fared with this API server. The zero value is ready.
type ways struct {
	mu    sync.Mutex
	avoid [2]time.Time // until then it comes second
	took  time.Duration
}

// open calls dial for the better way, and for the other as well when that has failed or does not answer soon. The first
// connection is the one; the other, if it comes at all, is closed. dial ends when its context does, and has lost called
// when the connection is lost later.
func (w *ways) open(ctx context.Context, dial func(ctx context.Context, by way, lost func()) (*podConn, error)) (*podConn, error) {
	type result struct {
		by   way
		conn *podConn
		took time.Duration
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, 2)
	var running sync.WaitGroup
	start := func(by way) {
		running.Go(func() {
			began := time.Now()
			conn, err := dial(ctx, by, func() {
				if time.Since(began) < settled {
					w.shun(by)
				}
			})
			results <- result{by, conn, time.Since(began), err}
		})
	}
	defer func() {
		cancel()
		running.Wait()
		close(results)
		for late := range results {
			if late.err == nil {
				_ = late.conn.Close()
			}
		}
	}()

	first, second, lead := w.order()
	start(first)
	patience := time.NewTimer(lead)
	defer patience.Stop()
	var failed error
	for waiting, both := 1, false; ; {
		select {
		case r := <-results:
			waiting--
			if r.err == nil {
				w.opened(r.by, r.by == second, r.took)
				return r.conn, nil
			}
			failed = better(failed, r.err)
			if !otherMayWork(r.err) || both && waiting == 0 {
				return nil, failed
			}
		case <-patience.C:
		}
		if !both {
			both = true
			waiting++
			start(second)
		}
	}
}

// order is which way comes first, and how long it is given before the second is tried as well.
func (w *ways) order() (first, second way, lead time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	lead = min(max(leadFactor*w.took, minLead), maxLead)
	if now := time.Now(); now.Before(w.avoid[byWebSocket]) && !now.Before(w.avoid[bySPDY]) {
		return bySPDY, byWebSocket, lead
	}
	return byWebSocket, bySPDY, lead
}

// opened takes note of the way that worked; instead says that the other was tried first.
func (w *ways) opened(by way, instead bool, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.took = took
	if instead {
		w.avoid[1-by] = time.Now().Add(avoidFor)
	}
}

func (w *ways) shun(by way) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.avoid[by] = time.Now().Add(avoidFor)
}

// better is which error tells more: the API server's own words, then the later.
func better(before, now error) error {
	status := apierrors.APIStatus(nil)
	if errors.As(before, &status) && !errors.As(now, &status) {
		return before
	}
	return now
}

// otherMayWork tells whether err speaks against the way and not against the request or the API server. The
// rights count as well: a WebSocket needs get (and create) on pods/portforward, SPDY create alone.
func otherMayWork(err error) bool {
	var op *net.OpError
	switch {
	case apierrors.IsNotFound(err), apierrors.IsUnauthorized(err):
		return false
	case isTLS(err), errors.As(err, new(*net.DNSError)), errors.As(err, &op) && op.Op == "dial":
		return false
	}
	return true
}
