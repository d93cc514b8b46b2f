package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"bridge/internal/keeper"
)

// keepConfig is the command line of `proxy keep`.
type keepConfig struct {
	lease       string
	health      string // the readiness listener
	replicaSets []string
}

func parseKeep(args []string, stderr io.Writer) (c keepConfig, err error) {
	f := flag.NewFlagSet("proxy keep", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.lease, "lease", "", "`name` of the swap's Lease in the pod's namespace")
	f.StringVar(&c.health, "health", "", "`address` that answers the readiness probe")
	f.Func("replicaset", "`name` of one of the target's (repeatable)", func(s string) error {
		c.replicaSets = append(c.replicaSets, s)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return c, err
	}
	switch {
	case f.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case c.lease == "" || c.health == "":
		return c, errors.New("keep: --lease and --health are needed")
	}
	return c, nil
}

// serve runs the keeper until ctx is done (SIGTERM), and returns nil. It is ready when it has proven what it can do.
func (c keepConfig) serve(ctx context.Context, log *slog.Logger) error {
	api, err := keeper.InPod()
	if err != nil {
		return err
	}
	name, err := os.Hostname() // the pod's
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", c.health)
	if err != nil {
		return fmt.Errorf("health: %w", err)
	}
	log.Info("keeper", "version", version, "lease", c.lease, "health", ln.Addr())
	h := newHealth(log)
	k := &keeper.Keeper{
		API: api, Lease: c.lease, Name: name, ReplicaSets: c.replicaSets,
		OnReady: func() { h.set(true) }, Log: log,
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.serve(ctx, ln) })
	group.Go(func() error { return k.Run(ctx) })
	return group.Wait()
}
