package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// dialPods is e's dial by a port-forward, for as long as its target is pods: what is none any more goes through a proxy pod.
func (w *work) dialPods(e *end) Dial {
	return func(ctx context.Context, network, port string) (net.Conn, error) {
		if e.fixed.Pod != "" {
			return w.Kube.DialEndpoint(ctx, e.fixed)
		}
		if w.Via == Pods || e.eps.Beyond(network) == "" {
			c, err := e.eps.Dial(ctx, port)
			if err == nil || w.Via == Pods || e.eps.Beyond(network) == "" { // it may have become something else meanwhile
				return c, err
			}
		}
		return w.dialBeyond(ctx, e, network, port)
	}
}

// dialBeyond dials through a proxy pod what was pods when e began. It waits for one to be started, as long as a dial may.
func (w *work) dialBeyond(ctx context.Context, e *end, network, port string) (net.Conn, error) {
	pod := w.lastPod()
	if pod == nil || pod.over() {
		if err := w.mayBegin(ctx); err != nil {
			return nil, fmt.Errorf("%s needs a proxy pod now, because %s: %w", e, e.eps.Beyond(network), err)
		}
		var begun bool
		if pod, begun = w.proxyPod(); begun && e.firstNote() {
			w.Say(fmt.Sprintf("note: %s goes through a proxy pod now, because %s", e, e.eps.Beyond(network)))
		}
	}
	return w.dialProxy(ctx, e, pod, network, port)
}

// mayBegin returns why no other proxy pod is to be begun for a connection: that the user may have none, or what the last one met, if that was just now. Each
// connection would begin another.
func (w *work) mayBegin(ctx context.Context) error {
	w.mu.Lock()
	err := w.none
	again := err != nil && time.Since(w.noneAt) < repeatAfter
	w.mu.Unlock()
	if again {
		return err
	}
	if err = w.CheckProxy(ctx); err != nil && ctx.Err() == nil {
		w.noProxy(err)
	}
	return err
}

// noProxy remembers why there is no proxy pod.
func (w *work) noProxy(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.none, w.noneAt = err, time.Now()
}

// firstNote is true once: what is noted of an end is not said again with each proxy pod.
func (e *end) firstNote() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	first := !e.noted
	e.noted = true
	return first
}

// dialProxy dials e's target through a proxy pod, which resolves names.
func (w *work) dialProxy(ctx context.Context, e *end, pod *proxyPod, network, port string) (net.Conn, error) {
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		late := hint.Newf(hint.Other, "bridge status says how the tunnel is", "no answer within --dial-timeout %s", w.DialTimeout)
		ctx, cancel := context.WithTimeoutCause(ctx, w.DialTimeout, late)
		defer cancel()
		select {
		case <-pod.ready:
		case <-pod.ctx.Done():
			return nil, context.Cause(pod.ctx)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		conn, err := pod.dial(ctx, network, address)
		if errors.Is(err, late) && !errors.Is(err, tunnel.ErrNoSession) {
			words := fmt.Sprintf("%s gives the proxy pod no answer within --dial-timeout %s", address, w.DialTimeout)
			err = hint.New(hint.Other, hint.Worded(words, err), "nobody is at that address, or what is sent there is dropped: a NetworkPolicy, or a firewall")
		}
		return conn, err
	}
	switch {
	case e.eps == nil:
		return dial(ctx, net.JoinHostPort(e.port.Host, port))
	case e.fixed != (kube.Endpoint{}):
		return dial(ctx, e.fixed.Address())
	}
	return e.eps.DialBy(ctx, network, port, dial)
}

// untilGone returns an error when the pod that all ends are bound to has gone.
func (s *Set) untilGone(ctx context.Context, ends []*end) error {
	pod := ends[0].fixed
	watch := &kube.Endpoints{Client: s.Kube, Namespace: pod.Namespace, Target: kube.Target{Kind: kube.Pod, Name: pod.Pod}, Log: s.Log}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = watch.Run(ctx) })
	err := watch.WaitGone(ctx, pod.UID)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	return hint.Newf(hint.Other, "without --reconnect=never bridge goes on with the next pod", "lost connection to pod: %s in %s is gone", pod.Pod, pod.Namespace)
}

// connectionFailed says why the caller of one connection sees a reset. That a caller reset
// its connection, or is gone, is not worth a line.
func (s *Set) connectionFailed(e *end, c net.Conn, err error) {
	var op *net.OpError
	far := errors.As(err, &op) && op.Addr != nil && op.Addr.String() != c.RemoteAddr().String()
	switch {
	case errors.Is(err, tunnel.ErrNoSession): // what the way to the proxy pod met is in it, and is not the target's
		s.failed(e, err)
	case errors.Is(err, net.ErrClosed), op != nil && !far && op.Addr != nil:
		s.Log.Debug("connection ended by its caller", "to", e.String(), "error", err)
	case far && errors.Is(err, syscall.ECONNREFUSED):
		s.failed(e, hint.Worded("nothing listens on "+op.Addr.String(), err))
	case far && errors.Is(err, syscall.ECONNRESET):
		s.failed(e, hint.Worded(op.Addr.String()+": "+op.Err.Error(), err))
	default:
		s.failed(e, err)
	}
}

// repeatAfter is how long the same failure of an end is not said again: each datagram may meet it. As long one of a proxy pod's is not tried again.
const repeatAfter = 10 * time.Second

// failed counts a failure, and says it unless it was said just now.
func (s *Set) failed(e *end, err error) {
	e.stats.Failed(err)
	line := fmt.Sprintf("connection to %s: %v", e, err)
	e.mu.Lock()
	again := line == e.said && time.Since(e.saidAt) < repeatAfter
	if !again {
		e.said, e.saidAt = line, time.Now()
	}
	e.mu.Unlock()
	if again {
		return
	}
	if s.Why != nil && e.ctx != nil {
		err = s.Why(e.ctx, err)
	}
	s.Say(line + indentedHint(err))
}

// indentedHint is err's hint as a line of its own, or several.
func indentedHint(err error) string {
	next := hint.Of(err)
	if next == "" {
		return ""
	}
	return "\n  hint: " + strings.ReplaceAll(next, "\n", "\n        ")
}
