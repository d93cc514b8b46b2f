package reach

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

// proxyConns bounds the connections of a local end that go through the tunnel, which cost it little; the tunnel has room for
// three such ends.
const proxyConns = 5120

// work is all that is served.
type work struct {
	*Set
	group *errgroup.Group
	ctx   context.Context // done when all is to end

	// Of whoever starts ends: serveAll, and then Follow.
	known map[string]*unit  // with Follow, by their names
	said  map[string]string // of those that are to be tried again, what was said last

	mu      sync.Mutex
	pod     *proxyPod // the last; nil: none was needed
	left    int       // ends that go on
	removed error     // why a proxy pod has ended; RestoreIncomplete before all else
	none    error     // why there could be none, at noneAt
	noneAt  time.Time
}

// proxyPod is one, from its start to its end.
type proxyPod struct {
	ctx   context.Context // done when it has ended, of which the cause is why
	ready chan struct{}
	dial  Dial        // set when ready is closed
	lost  atomic.Bool // with its tunnel: it is being removed, and what comes needs another
}

// serveAll serves all ends until ctx is done or none is left; without Many until one fails.
func (s *Set) serveAll(ctx context.Context, known map[string]*unit, ends []*end, following *sync.WaitGroup) error {
	group, ctx := errgroup.WithContext(ctx)
	w := &work{Set: s, group: group, ctx: ctx, known: known, said: make(map[string]string), left: len(ends)}
	for _, e := range ends {
		w.start(e)
	}
	first := w.lastPod()
	group.Go(func() error {
		s.print(first, ends)
		return nil
	})
	if s.Once {
		group.Go(func() error { return s.untilGone(ctx, ends) })
	}
	if s.Follow != nil {
		group.Go(func() error {
			s.Follow(ctx, func(now []Target) { w.change(now, following) })
			return nil
		})
	}
	err := group.Wait()
	if hint.CodeOf(w.removed) == hint.RestoreIncomplete {
		return w.removed
	}
	return err
}

// start serves e, which left counts, and begins a proxy pod when e needs one and there is none.
func (w *work) start(e *end) {
	mine := w.ctx
	if e.proxy {
		e.pod, _ = w.proxyPod()
		mine = e.pod.ctx
	}
	w.group.Go(func() error {
		mine, cancel := context.WithCancelCause(mine)
		defer cancel(nil)
		defer context.AfterFunc(e.ctx, func() { cancel(nil) })()
		err := w.serve(mine, e)
		gone := e.ctx.Err() != nil // the target, or its port
		if err != nil && w.Many && w.Why != nil {
			err = w.Why(mine, err)
		}
		w.drop(e)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.left--
		switch {
		case w.ctx.Err() != nil, gone:
			return nil
		case err == nil:
			err = context.Cause(mine)
		}
		// With Follow others may come, but where all have ended with the proxy pod the person is to know.
		if w.left == 0 && (w.Follow == nil || e.proxy && e.pod.ctx.Err() != nil) {
			return w.named(e, err)
		}
		return w.broken(e, err)
	})
}

// lastPod is the proxy pod that was started last; nil when there is none.
func (w *work) lastPod() *proxyPod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// proxyPod is a proxy pod for what begins now: the last one, or another, begun with this, where that is over.
func (w *work) proxyPod() (p *proxyPod, begun bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if begun = w.pod == nil || w.pod.over(); begun {
		w.pod = w.startProxy()
	}
	return w.pod, begun
}

// over tells whether it takes nothing new any more.
func (p *proxyPod) over() bool { return p.lost.Load() || p.ctx.Err() != nil }

// began tells whether its tunnel has been there.
func (p *proxyPod) began() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// startProxy runs a proxy pod.
func (w *work) startProxy() *proxyPod {
	ctx, ended := context.WithCancelCause(w.ctx)
	p := &proxyPod{ctx: ctx, ready: make(chan struct{})}
	w.group.Go(func() error {
		err := w.runProxy(w.ctx, p)
		w.mu.Lock()
		if hint.CodeOf(w.removed) != hint.RestoreIncomplete {
			w.removed = err
		}
		w.mu.Unlock()
		if !p.began() && err != nil {
			w.noProxy(err)
		}
		ended(err)
		return nil
	})
	return p
}

// change ends what is not among the targets and ports that there are now, and begins those that are new. Ports that stay, stay.
func (w *work) change(now []Target, following *sync.WaitGroup) {
	for name, u := range w.known {
		i := slices.IndexFunc(now, func(t Target) bool { return t.String() == name })
		for p, e := range u.at {
			if i >= 0 && slices.Contains(now[i].Ports, p) {
				continue
			}
			delete(u.at, p)
			if e != nil {
				e.stop()
			}
			if e != nil && i >= 0 {
				w.Say(e.String() + " is gone")
			}
		}
		if i < 0 {
			delete(w.known, name)
			delete(w.said, name)
			w.Say(name + " is gone")
		}
	}
	mayProxy := sync.OnceValue(func() error { return w.CheckProxy(w.ctx) })
	for _, t := range now {
		failed := w.add(t, mayProxy, following)
		if w.ctx.Err() != nil {
			return
		}
		text := ""
		if len(failed) > 0 {
			text = errors.Join(failed...).Error()
		}
		if text != w.said[t.String()] {
			for _, err := range failed {
				_ = w.broken(t, err) // says it
			}
		}
		w.said[t.String()] = text
	}
}

// add begins the ports of t that are not known, and returns why some could not be. Those that waiting may mend are tried again at the
// next change.
func (w *work) add(t Target, mayProxy func() error, following *sync.WaitGroup) (failed []error) {
	u := w.known[t.String()]
	ports := slices.Clone(t.Ports)
	if u != nil {
		ports = slices.DeleteFunc(ports, func(p forward.Port) bool { _, known := u.at[p]; return known })
	}
	if len(ports) == 0 {
		return nil
	}
	if u == nil || !w.use(u) {
		var err error
		u, err = w.find(w.ctx, w.ctx, t, u, following)
		w.known[t.String()] = u
		if err != nil {
			w.release(u)
			return []error{err}
		}
	}
	defer w.release(u)
	ends, failed := w.endsOf(u, ports, mayProxy)
	for _, e := range ends {
		w.mu.Lock()
		w.left++
		w.mu.Unlock()
		w.start(e)
	}
	return failed
}

// runProxy keeps the proxy pod and its tunnel until ctx is done. The error is why there is none any more, or what is left of it.
func (s *Set) runProxy(ctx context.Context, p *proxyPod) error {
	err := s.Proxy(ctx, func(ctx context.Context, d Dial) error {
		p.dial = d
		close(p.ready)
		<-ctx.Done()
		p.lost.Store(true)
		return nil
	})
	if err == nil && ctx.Err() == nil {
		return errors.New("the proxy pod has ended")
	}
	return err
}

// print prints the lines of what openFirst has opened, in their order: of one target when all of it can be used, of several what
// needs no proxy pod at once.
func (s *Set) print(pod *proxyPod, ends []*end) {
	ends = slices.DeleteFunc(slices.Clone(ends), func(e *end) bool { return !e.first })
	if s.Many {
		for _, e := range ends {
			if !e.proxy {
				s.Print(strings.Join(e.lines, "\n"))
			}
		}
		ends = slices.DeleteFunc(ends, func(e *end) bool { return !e.proxy })
	}
	if slices.ContainsFunc(ends, (*end).proxied) && !pod.await(pod.ctx) {
		return
	}
	for _, e := range ends {
		s.Print(strings.Join(e.lines, "\n"))
	}
}

// await waits for the tunnel; false when ctx is done before.
func (p *proxyPod) await(ctx context.Context) bool {
	select {
	case <-p.ready:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve forwards e until ctx is done. It may leave e open.
func (w *work) serve(ctx context.Context, e *end) error {
	if !e.first {
		if err := w.open(ctx, e); err != nil {
			return err
		}
	}
	dial := w.dialPods(e)
	if e.proxy {
		if !e.pod.await(ctx) {
			return nil
		}
		dial = func(ctx context.Context, network, port string) (net.Conn, error) {
			return w.dialProxy(ctx, e, e.pod, network, port)
		}
	}
	if !e.first {
		w.Print(strings.Join(e.lines, "\n"))
	}
	if e.network == "udp" {
		d := &forward.Datagrams{
			Sockets: e.udp, Address: e.port.Remote, Dial: dial, Stats: &e.stats,
			Idle:    tunnel.FlowIdle(e.network, net.JoinHostPort(e.port.Host, e.port.Remote)),
			OnError: func(_ netip.AddrPort, err error) { w.failed(e, err) },
		}
		return d.Run(ctx)
	}
	f := &forward.Forwarder{
		Listeners: e.tcp, Address: e.port.Remote, Dial: dial, Stats: &e.stats, Log: w.Log,
		OnConn: func(c net.Conn) {
			w.Log.Debug("handling connection", "at", c.LocalAddr().String(), "from", c.RemoteAddr().String())
		},
		OnError: func(c net.Conn, err error) { w.connectionFailed(e, c, err) },
	}
	if e.proxy {
		f.MaxConns = proxyConns
	}
	return f.Run(ctx)
}
