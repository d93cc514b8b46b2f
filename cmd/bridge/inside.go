package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

// insideOptions are those of a pod that diagnose and probes ask from.
type insideOptions struct {
	on           bool
	image, arch  string
	proxyTimeout time.Duration
}

// insideTimeout is how long that pod may take to be Ready: what is found without it is worth more than its answer.
const insideTimeout = 45 * time.Second

// insideFlags adds the flags. what is what is done from the pod.
func insideFlags(cmd *cobra.Command, o *insideOptions, what string) {
	f := cmd.Flags()
	f.BoolVar(&o.on, "inside", false, "start a pod, remove it at the end, and "+what)
	f.StringVar(&o.image, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "image of --inside's pod (default: none is needed, the proxy is carried to the node on the image of a running pod)")
	f.StringVar(&o.arch, "arch", "", "architecture of a carried proxy, amd64 or arm64 (default: that of the cluster's nodes)")
	f.DurationVar(&o.proxyTimeout, "proxy-timeout", insideTimeout, "how long --inside's pod may take to be Ready")
}

// check refuses flags that want --inside. changed tells whether one was given.
func (o *insideOptions) check(changed func(name string) bool) error {
	for _, name := range []string{"arch", "proxy-timeout"} {
		if changed(name) && !o.on {
			return hint.Newf(hint.Usage, "add --inside", "--%s is for the pod of --inside", name)
		}
	}
	return nil
}

// inside dials from a proxy pod, which is there as long as it is used.
func (a *app) inside(k *kube.Client, o insideOptions) diagnose.Inside {
	return func(ctx context.Context, use func(context.Context, diagnose.From) error) error {
		if err := rights.Connect.Check(ctx, k, "a proxy pod to dial from", o.image == ""); err != nil {
			return err
		}
		defer a.onSecondSignal(nil)
		own := &proxypod.Own{
			OnCreate: a.ownCreated(k, proxypod.KindDiagnose),
			Kube:     k, Kind: proxypod.KindDiagnose, Image: o.image, Arch: o.arch, Owner: identity(), Version: versionString(),
			ReadyTimeout: o.proxyTimeout, Why: whyOf(k), Say: a.progress(), Log: a.log,
		}
		return own.Run(ctx, func(ctx context.Context, p *proxypod.Proxy, t *tunnel.Client) error {
			return use(ctx, diagnose.From{
				Namespace: p.Namespace, Labels: map[string]string{proxypod.ProxyLabel: proxypod.LabelValue(p.Lease)}, Dial: dialFrom(t),
			})
		})
	}
}

// dialFrom dials through t. What the way to the pod has met is diagnose.ErrNotDialled.
func dialFrom(t *tunnel.Client) diagnose.Dial {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := t.DialContext(ctx, network, address)
		if err != nil && (errors.Is(err, tunnel.ErrNoSession) || !t.State().Phase.Carries()) {
			err = fmt.Errorf("%w: %v", diagnose.ErrNotDialled, err) //nolint:errorlint // what the carrier has met is not the address's
		}
		return c, err
	}
}
