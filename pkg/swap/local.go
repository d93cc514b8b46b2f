package swap

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

// localDialTimeout bounds the dial of a local process: on one's own machine it answers at once or
// its backlog is full.
const localDialTimeout = 5 * time.Second

// dialLocal reaches the local process, which may listen on 127.0.0.1 or on ::1 alone, with UDP on 127.0.0.1 only: there
// is no answer to a dial by which to choose.
func (s *Swap) dialLocal(ctx context.Context, p Port) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, localDialTimeout)
	defer cancel()
	if p.UDP {
		return s.Plan.reach(ctx, "udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.Local))))
	}
	return s.Plan.reach(ctx, "tcp", p.localhost())
}

// localhost is where a TCP port is on this machine.
func (p Port) localhost() string { return net.JoinHostPort("localhost", strconv.Itoa(int(p.Local))) }

// place is where the local process is.
type place struct {
	dial   connect.Dial
	inside bool // a network of its own

	published *sync.Map // the ports of it that bridge has at this machine's localhost
}

// reach dials where the local process is: on this machine, or where Program runs.
func (p *Plan) reach(ctx context.Context, network, address string) (net.Conn, error) {
	if at := p.place.Load(); at != nil {
		return at.dial(ctx, network, address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// elsewhere tells whether Program has a network of its own, and somebody outside of it answers at a local port.
func (p *Plan) elsewhere(ctx context.Context, port Port) bool {
	at := p.place.Load()
	if at == nil || !at.inside {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, localDialTimeout)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", port.localhost())
	if err != nil {
		return false
	}
	_ = conn.Close()
	_, ours := at.published.Load(uint16(port.Local))
	return !ours
}

// leave has nobody reached, whoever has the ports on this machine: while Program does not run.
func (p *Plan) leave() {
	p.place.Store(&place{dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}})
}

// AwaitLocal waits until every local port answers a TCP dial and the target's probes make the process ready, at most timeout;
// UDP has nothing that it could wait for. Call it before Run.
func (s *Swap) AwaitLocal(ctx context.Context, timeout time.Duration) error {
	s.init()
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	for _, p := range s.Plan.Ports {
		for said, told := false, false; !p.UDP; said = true {
			conn, err := s.dialLocal(bounded, p)
			if err == nil {
				_ = conn.Close()
				break
			}
			if !said && timeout > 0 {
				s.Say(fmt.Sprintf("waiting for a process on localhost:%d, for port %d of the pod", p.Local, p.Remote))
			}
			if !told && time.Since(start) > elsewherePatience && s.Plan.elsewhere(bounded, p) {
				told = true
				s.Say(fmt.Sprintf("something outside of CMD's network has localhost:%d: if it is what you mean, a container of docker run -p for instance, use --network host", p.Local))
			}
			if sleep(bounded, localPoll) == nil {
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return hint.Newf(hint.Other, fmt.Sprintf("start your process first, or map another port: --port LOCAL:%d", p.Remote),
				"nothing listens on localhost:%d, where port %d of the pod would go", p.Local, p.Remote)
		}
	}
	return s.awaitProbes(ctx, bounded)
}

const (
	// localPoll is how often AwaitLocal tries.
	localPoll = 200 * time.Millisecond
	// elsewherePatience is how long Program may take before it is said that somebody else answers, who may have nothing to do with it.
	elsewherePatience = 3 * time.Second
)

// handle is one connection from the cluster, or the datagrams of one caller: it dials the local process and joins the two.
func (s *Swap) handle(ctx context.Context, st *tunnel.Stream) {
	h := st.Header()
	remote, err := strconv.ParseUint(strings.TrimPrefix(h.Address, ":"), 10, 16)
	i := slices.IndexFunc(s.Plan.Ports, func(p Port) bool { return p.at() == at{int32(remote), h.Network == "udp"} })
	if err != nil || i < 0 {
		s.Log.Debug("connection to a port that is not mapped", "address", h.Address)
		_ = st.Refuse(fmt.Errorf("port %q is not mapped", h.Address))
		return
	}
	local, err := s.dialLocal(ctx, s.Plan.Ports[i])
	if err != nil {
		if h.Peer.IsValid() { // else nobody called: the proxy tries whether it is back
			s.probes.Hurry()
		}
		if h.Peer.IsValid() && !s.refused.Swap(true) {
			what := "are reset"
			if s.Plan.standby() {
				what = "go to the original"
			}
			s.sayRefused.Do(func() {
				s.Say(fmt.Sprintf("localhost:%d does not answer: callers of port %d %s until your process is back", s.Plan.Ports[i].Local, remote, what))
			})
		}
		s.Log.Debug("local process", "caller", h.Peer, "err", err)
		_ = st.Refuse(err)
		return
	}
	if h.Network == "tcp" {
		s.refused.Store(false)
	}
	if err := st.Accept(); err != nil {
		_ = local.Close()
		return
	}
	if h.Network == "udp" {
		// How long silence may last is the pod's decision: two would cross.
		if dropped, err := tunnel.SpliceDatagrams(st, local, 0); err != nil || dropped > 0 {
			s.Log.Debug("flow ended", "caller", h.Peer, "err", err, "dropped", dropped)
		}
		return
	}
	if err := tunnel.Splice(st, local); err != nil {
		s.Log.Debug("connection ended", "caller", h.Peer, "err", err)
	}
}
