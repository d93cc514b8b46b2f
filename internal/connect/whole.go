package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"bridge/internal/dns"
	"bridge/internal/hint"
	"bridge/internal/machine"
	"bridge/internal/packet"
)

// Whole has this whole machine see the cluster's names and addresses.
type Whole struct {
	// Machine is held, and has a plan. Run closes it.
	Machine *machine.Machine
	// Ready is told when all is in place. It may be nil.
	Ready func()
	// Unchanged has names answered again without a question. Nil means none.
	Unchanged dns.Unchanged
	// DialTimeout is Options'.
	DialTimeout time.Duration
	// Log gets what failed, at level debug. Nil means none.
	Log *slog.Logger
}

// Run changes the machine and serves through t, which has had a session, until ctx is done, which is no error. Then the machine is as
// before, or Machine.Close, called again, says why not: that is not Run's error, which others may have a better one for.
func (w *Whole) Run(ctx context.Context, t Tunnel) error {
	defer func() { _ = w.Machine.Close() }()
	pod, ok := t().Info()
	if !ok {
		return errors.New("the pod told nothing of its resolver")
	}
	device, err := w.Machine.Open(packet.MTU)
	if err != nil {
		return err
	}
	at := netip.AddrPortFrom(w.Machine.Address(), 53)
	udp, tcp, err := dns.Listen(at.String())
	if err != nil {
		return hint.New(hint.Other, fmt.Errorf("the DNS server: %w", err),
			"who listens on port 53 of all addresses (ss -lnp sport = :53) leaves none for others: have it listen on its own address")
	}
	names := &dns.Server{
		Dial: t.dialSoon(dnsPatience), Nameservers: pod.Nameservers, Search: pod.Search, Ndots: pod.Ndots, System: w.Machine.System, Log: w.Log,
		Namespaced: true, From: w.Machine.Local, Unchanged: t.unchanged(w.Unchanged),
	}
	ranges := w.Machine.Ranges()
	packets := &packet.Stack{
		Dial: t.dial, DialTimeout: w.DialTimeout, From: w.Machine.Local, Log: w.Log,
		Takes: func(a netip.Addr) bool {
			return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		},
	}
	// Names are still answered while the resolver is brought back.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, serving := errgroup.WithContext(serving)
	g.Go(func() error { return names.Serve(serving, udp, tcp) })
	g.Go(func() error { return packets.Run(serving, device) })
	err = w.Machine.Resolve(machine.Zones{Domain: Domain(pod), Search: pod.Search})
	if err == nil && ctx.Err() == nil {
		if w.Ready != nil {
			w.Ready()
		}
		watching, cancel := context.WithCancel(serving)
		defer context.AfterFunc(ctx, cancel)()
		w.Machine.Watch(watching)
		<-watching.Done()
		cancel()
	}
	_ = w.Machine.Restore()
	stop()
	return errors.Join(err, g.Wait())
}
