package main

import (
	"context"
	"encoding/json"
	"errors"

	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/swap"
	"bridge/pkg/tunnel"
)

// dryRun is who looks at what a swap would do: the user, or the API server too.
type dryRun string

const (
	dryRunClient dryRun = "client"
	dryRunServer dryRun = "server"
)

// Set takes one of the two, or none.
func (d *dryRun) Set(s string) error {
	switch s {
	case "client", "server", "none":
		*d = dryRun(s)
		if s == "none" {
			*d = ""
		}
		return nil
	}
	return errors.New("want client, server or none")
}

func (d *dryRun) String() string { return string(*d) }

// Type is for the help.
func (d *dryRun) Type() string { return "client|server" }

// dryRun prints the plan, with a key that nobody has.
func (a *app) dryRun(ctx context.Context, k *kube.Client, t kube.Target, options swap.Options, source proxypod.Source, o swapOptions) error {
	key, err := tunnel.NewKey()
	if err != nil {
		return err
	}
	options.Client = key.Fingerprint()
	d, err := swap.DryJoin(ctx, k, t, options, source, a.say)
	if err != nil {
		return err
	}
	if d == nil {
		plan, parts, err := planSwap(ctx, k, t, options, source)
		if err != nil {
			return err
		}
		if d, err = plan.DryRun(k, parts); err != nil {
			return err
		}
	}
	var refused error
	if o.dryRun == dryRunServer {
		refused = d.Try(ctx)
	}
	if o.output == "json" {
		e := json.NewEncoder(a.stdout)
		e.SetIndent("", "  ")
		err = e.Encode(d)
	} else {
		var text []byte
		if text, err = d.YAML(); err == nil {
			_, err = a.stdout.Write(text)
		}
	}
	if refused != nil {
		return refused
	}
	return err
}
