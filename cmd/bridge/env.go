package main

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/podview"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

// lookOptions are those of the commands that look at a container by a pod of their own.
type lookOptions struct {
	container, image, arch string
	proxyTimeout           time.Duration
}

func lookFlags(cmd *cobra.Command, o *lookOptions) {
	f := cmd.Flags()
	f.StringVar(&o.container, "container", "", "the container to look at (default: kubectl's default container, else the first with a port)")
	f.StringVar(&o.image, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "image of the proxy (default: none is needed, the proxy is carried to the node on the container's own image)")
	f.StringVar(&o.arch, "arch", "", "architecture of a carried proxy, amd64 or arm64 (default: that of the pod's node)")
	f.DurationVar(&o.proxyTimeout, "proxy-timeout", 90*time.Second, "how long the pod may take to be Ready")
}

// look starts a pod like those of the workload, has use ask it, and removes it.
func (a *app) look(ctx context.Context, k *kube.Client, t kube.Target, o lookOptions, use func(ctx context.Context, p *proxypod.Proxy, t *tunnel.Client) error) error {
	if err := rights.Connect.For(t.Kind).Check(ctx, k, "look at "+t.String(), o.image == ""); err != nil {
		return err
	}
	like, err := proxypod.FindLike(ctx, k, t, o.container)
	if err != nil {
		return err
	}
	defer a.onSecondSignal(nil)
	own := &proxypod.Own{
		OnCreate: a.ownCreated(k, proxypod.KindEnv),
		Kube:     k, Kind: proxypod.KindEnv, Like: like, Image: o.image, Arch: o.arch, Owner: identity(), Version: versionString(),
		ReadyTimeout: o.proxyTimeout, Why: whyOf(k), Say: a.progress(), Log: a.log,
	}
	return own.Run(ctx, use)
}

func newEnvCommand(a *app) *cobra.Command {
	var o lookOptions
	format := podview.Formats[0]
	cmd := &cobra.Command{
		Use:   "env KIND NAME",
		Short: "Print the environment of a workload's container",
		Long: `env prints the environment that a container of a deployment, statefulset, replicaset, Argo rollout or bare pod has, as the cluster resolves it: ConfigMaps,
Secrets, fields, service links. For that it starts a pod like the workload's, which no Service and no controller takes for one of them, and
removes it. No right to read Secrets is needed. Variables that are this machine's own affair (PATH, HOME, ...) are left out.`,
		Example: `  bridge env deployment orders > .env
  eval "$(bridge env deployment orders --format shell)"
  docker run --env-file <(bridge env deployment orders --format docker) orders:dev`,
		Args: targetArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := parseWorkload(args)
			if err != nil {
				return err
			}
			if !slices.Contains(podview.Formats, format) {
				return hint.Newf(hint.Usage, "see: bridge env --help", "no format %q: there are %s", format, strings.Join(podview.Formats, ", "))
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			if t, err = a.workload(cmd.Context(), k, t); err != nil {
				return err
			}
			return a.look(cmd.Context(), k, t, o, func(ctx context.Context, _ *proxypod.Proxy, c *tunnel.Client) error {
				v, err := c.View(ctx, "")
				if err != nil {
					return err
				}
				return a.printEnv(v, format)
			})
		},
	}
	lookFlags(cmd, &o)
	cmd.Flags().StringVar(&format, "format", format, "dotenv, shell, json or docker")
	return cmd
}

func (a *app) printEnv(v *tunnel.View, format string) error {
	vars, kept := podview.Variables(v)
	if len(kept) > 0 {
		a.say("left out, this machine has its own: " + strings.Join(kept, ", "))
	}
	left, err := podview.Print(a.stdout, format, vars)
	for _, line := range left {
		a.say("left out: " + line)
	}
	return err
}
