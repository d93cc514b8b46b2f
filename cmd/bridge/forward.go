package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"

	"github.com/spf13/cobra"
)

type forwardOptions struct {
	target  kube.Target
	ports   []forward.Port
	address []string
	wait    time.Duration
}

func newForwardCommand(a *app) *cobra.Command {
	var o forwardOptions
	cmd := &cobra.Command{
		Use:   "forward TYPE/NAME [LOCAL:]REMOTE...",
		Short: "Forward local ports to a Service, a workload or a pod",
		Long: `Forward local ports to a Service, a workload or a pod.

TYPE is svc, deployment, statefulset, replicaset, daemonset or pod; a bare name is a pod.
Each connection goes to a ready pod of the target, in turn, and rollouts are followed: the
local port stays until bridge ends. REMOTE is the Service's port, otherwise the pod's; a
number or a name. LOCAL is REMOTE's number unless given; empty or 0 means any free port.`,
		Example: `  # Port 8080 here reaches the Service's port 80
  bridge forward svc/orders 8080:80

  # Any free port here
  bridge forward svc/orders :http

  # Several ports of one workload
  bridge forward deployment/orders 8080 9090:metrics`,
		Args: func(_ *cobra.Command, args []string) (err error) {
			if len(args) < 2 {
				return errors.New("a target and at least one port are needed")
			}
			if o.target, err = kube.ParseTarget(args[0]); err != nil {
				return err
			}
			for _, s := range args[1:] {
				p, err := forward.ParsePort(s)
				if err != nil {
					return err
				}
				o.ports = append(o.ports, p)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.forward(cmd.Context(), o) },
	}
	cmd.Flags().StringSliceVar(&o.address, "address", []string{"localhost"}, "IP addresses to listen on, or localhost (127.0.0.1 and ::1)")
	cmd.Flags().DurationVar(&o.wait, "pod-running-timeout", time.Minute, "how long a connection, and the start, waits for a ready pod")
	return cmd
}

func (a *app) forward(ctx context.Context, o forwardOptions) error {
	if o.wait <= 0 {
		return hint.Newf(hint.Usage, "give for example 30s or 1m", "--pod-running-timeout is %s", o.wait)
	}
	k, err := a.kube()
	if err != nil {
		return err
	}
	if err := rights.CheckForward(ctx, k, o.target); err != nil {
		return err
	}
	eps := &kube.Endpoints{Client: k, Namespace: k.Namespace, Target: o.target, Wait: o.wait, Log: a.log}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = eps.Run(ctx) })

	forwarders, lines, err := a.listen(ctx, eps, o)
	if err != nil {
		return err
	}
	for _, line := range lines {
		fmt.Fprintln(a.stdout, line)
	}
	errs := make(chan error, len(forwarders))
	for _, f := range forwarders {
		wg.Go(func() { errs <- f.Run(ctx) })
	}
	err = <-errs
	cancel()
	wg.Wait()
	return err
}

// listen waits for a ready pod, which says what the ports are, and opens all listeners or none.
func (a *app) listen(ctx context.Context, eps *kube.Endpoints, o forwardOptions) (fs []*forward.Forwarder, lines []string, err error) {
	defer func() {
		for _, f := range fs {
			for _, ln := range f.Listeners {
				if err != nil {
					_ = ln.Close()
				}
			}
		}
	}()
	if err := eps.WaitSynced(ctx); err != nil {
		return nil, nil, err
	}
	for _, p := range o.ports {
		ep, err := eps.Pick(ctx, p.Remote)
		if err != nil {
			return fs, nil, err
		}
		local := p.Local
		if p.Same && local == 0 { // a name
			if local, err = eps.PortNumber(p.Remote); err != nil {
				return fs, nil, err
			}
		}
		lns, err := forward.Listen(o.address, local)
		if err != nil {
			return fs, nil, err
		}
		f := &forward.Forwarder{
			Listeners: lns, Address: p.Remote, Log: a.log,
			Dial: func(ctx context.Context, _, port string) (net.Conn, error) { return eps.Dial(ctx, port) },
			OnConn: func(c net.Conn) {
				a.log.Debug("handling connection", "port", localPort(c), "from", c.RemoteAddr().String())
			},
			OnError: func(c net.Conn, err error) { a.connectionFailed(c, err) },
		}
		fs = append(fs, f)
		for _, ln := range lns {
			at := ln.Addr().(*net.TCPAddr).AddrPort()
			lines = append(lines, fmt.Sprintf("Forwarding from %s -> %d", netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), ep.Port))
			if !at.Addr().IsLoopback() {
				a.say(fmt.Sprintf("warning: everybody who reaches %s reaches %s through it, with your rights", at, o.target))
			}
		}
	}
	return fs, lines, nil
}

func localPort(c net.Conn) string {
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port
}

// connectionFailed says on stderr why the caller of one connection sees a reset. That a caller reset
// its connection, or is gone, is not worth a line.
func (a *app) connectionFailed(c net.Conn, err error) {
	a.log.Debug("connection failed", "port", localPort(c), "error", err)
	var op *net.OpError
	far := errors.As(err, &op) && op.Addr != nil && op.Addr.String() != c.RemoteAddr().String()
	line := fmt.Sprintf("connection to port %s: ", localPort(c))
	switch {
	case errors.Is(err, net.ErrClosed), op != nil && !far:
		return
	case far && errors.Is(err, syscall.ECONNREFUSED):
		a.say(line + "nothing listens on " + op.Addr.String())
	case far && errors.Is(err, syscall.ECONNRESET):
		a.say(line + op.Addr.String() + ": " + op.Err.Error())
	default:
		a.say(line + err.Error())
	}
	if next := hint.Of(err); next != "" {
		a.say("  hint: " + next)
	}
}
