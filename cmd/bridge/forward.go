package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"bridge/internal/diagnose"
	"bridge/internal/forward"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/reach"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

type forwardOptions struct {
	targets     []reach.Target
	file        string // -f
	services    bool   // --all
	selector    string // -l
	address     []string
	udp         bool
	via         reach.Way
	once        bool
	wait        time.Duration
	dialTimeout time.Duration

	image, arch  string
	podProxy     bool
	proxyTimeout time.Duration
	resumeWindow time.Duration
	allow        []netip.Prefix
}

func newForwardCommand(a *app) *cobra.Command {
	o := forwardOptions{via: reach.Auto}
	cmd := &cobra.Command{
		Use:   "forward TYPE/NAME [LOCAL:]REMOTE... | [LOCAL:]HOST:PORT... | -f FILE | --all",
		Short: "Forward local ports to a Service, a workload, a pod or a host",
		Long: `Forward local ports to a Service, a workload, a pod, or a host that the cluster reaches.

TYPE is svc, deployment, statefulset, replicaset, daemonset, rollout, job, replicationcontroller or
pod; a bare name is a pod.
Each connection goes to a ready pod of the target, in turn, and rollouts are followed: the
local port stays until bridge ends. REMOTE is the Service's port, otherwise the pod's; a
number or a name, with /udp behind it for UDP. LOCAL is REMOTE's number unless given; empty or
0 means any free port, and unix:PATH a socket of that name. HOST is resolved in the cluster.

UDP, hosts, and Services that have no pods go through a proxy pod in the namespace, which is removed at
the end; --via proxy has everything go through it.`,
		Example: `  # Port 8080 here reaches the Service's port 80
  bridge forward svc/orders 8080:80

  # Any free port here
  bridge forward svc/orders :http

  # Several ports of one workload
  bridge forward deployment/orders 8080 9090:metrics

  # A database that the cluster reaches, and one pod of a StatefulSet
  bridge forward 15432:db.example.com:5432
  bridge forward orders-0.orders:8080

  # Every Service of the namespace, each at an address of its own
  bridge forward --all -n shop`,
		Args: func(_ *cobra.Command, args []string) error { return o.parse(args) },
		RunE: func(cmd *cobra.Command, _ []string) error { return a.forward(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "filename", "f", "", "a list of targets, - is stdin: in each line what is written behind bridge forward; # begins a comment")
	f.BoolVar(&o.services, "all", false, "all Services of the namespace, each at a loopback address of its own with its real ports")
	f.StringVarP(&o.selector, "selector", "l", "", "those Services of --all that have these labels, as app=orders; --all need not be said then")
	f.StringSliceVar(&o.address, "address", []string{"localhost"}, "IP addresses to listen on, or localhost (127.0.0.1 and ::1)")
	f.BoolVar(&o.udp, "udp", false, "all ports are UDP, unless they have /tcp behind them")
	f.Var(newChoice("auto", func(word string) { o.via = reach.Way(word) }, "auto", "pods", "proxy"), "via",
		"how connections get there: pods, a port-forward for each; proxy, a proxy pod; auto is pods, and proxy for what needs it")
	f.Var(newChoice("always", func(word string) { o.once = word == "never" }, "always", "never"), "reconnect",
		"never: stay with the first pod, and end when it does, as kubectl")
	f.DurationVar(&o.wait, "pod-running-timeout", time.Minute, "how long a connection, and the start, waits for a ready pod")
	dialTimeoutFlag(cmd, "a connection through the proxy pod", &o.dialTimeout)
	f.StringVar(&o.image, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "image of the proxy (default: none is needed, the proxy is carried to the node on the image of a running pod)")
	f.StringVar(&o.arch, "arch", "", "architecture of a carried proxy, amd64 or arm64 (default: that of the cluster's nodes)")
	allowFlag(cmd, &o.allow)
	carrierFlag(cmd, &o.podProxy)
	f.DurationVar(&o.proxyTimeout, "proxy-timeout", 90*time.Second, "how long the proxy's pod may take to be Ready")
	resumeWindowFlag(cmd, &o.resumeWindow)
	return cmd
}

// parse reads the arguments, and looks whether they and the flags go together.
func (o *forwardOptions) parse(args []string) error {
	o.services = o.services || o.selector != ""
	many := o.services || o.file != ""
	switch {
	case o.services && o.file != "":
		return errors.New("--all and -l choose Services, -f is a list: give one of them")
	case many && len(args) > 0:
		return fmt.Errorf("with -f, -l or --all no target is given: %s", args[0])
	case many && o.once:
		return errors.New("--reconnect=never is for one target")
	case o.services && o.udp:
		return errors.New("--all and -l take each port as its Service has it: leave out --udp")
	case o.services && !slices.Equal(o.address, []string{"localhost"}):
		return errors.New("--all and -l choose the addresses: leave out --address")
	case o.wait <= 0:
		return hint.Newf(hint.Usage, "give for example 30s or 1m", "--pod-running-timeout is %s", o.wait)
	case many:
		return nil
	}
	parsed, err := forward.ParseArgs(args)
	if err != nil {
		return err
	}
	t, err := reach.ParseTarget(parsed, "")
	o.targets = []reach.Target{t}
	return err
}

func (a *app) forward(ctx context.Context, o forwardOptions) error {
	if o.file != "" {
		var err error
		if o.targets, err = a.forwardList(ctx, o.file); err != nil {
			return err
		}
	}
	k, err := a.kube()
	if err != nil {
		return err
	}
	check := func(ctx context.Context, t kube.Target) error { return rights.CheckForward(ctx, k, t, o.once) }
	if o.services {
		if o.targets, err = reach.Services(ctx, k, o.selector); err != nil {
			return err
		}
		first := o.targets[0].Object
		check = func(context.Context, kube.Target) error { return nil } // one for all: who lists Services reads each
		if err := rights.CheckForward(ctx, k, kube.Target{Kind: kube.Service, Name: first.Name}, false); err != nil {
			return err
		}
		if !reach.OwnAddresses() {
			a.say("note: this system's loopback is 127.0.0.1 alone: Services have free ports there, where their own are taken")
		}
	}
	var mu sync.Mutex // lines of several targets may come at once
	locked := func(print func(string)) func(string) {
		return func(line string) {
			mu.Lock()
			defer mu.Unlock()
			print(line)
		}
	}
	set := &reach.Set{
		Kube: k, Targets: o.targets, Many: o.services || o.file != "", Address: o.address, UDP: o.udp, Via: o.via, Once: o.once,
		Wait: o.wait, DialTimeout: o.dialTimeout, Check: check,
		CheckProxy: func(ctx context.Context) error {
			return rights.Connect.Check(ctx, k, "a proxy pod for forward", o.image == "")
		},
		Why:   whyOf(k),
		Print: locked(func(line string) { fmt.Fprintln(a.stdout, line) }), Say: locked(a.say), Log: a.log,
	}
	if o.services {
		set.Follow = func(ctx context.Context, changed func([]reach.Target)) {
			reach.FollowServices(ctx, k, o.selector, changed, a.log)
		}
	}
	set.Proxy = func(ctx context.Context, use func(context.Context, reach.Dial) error) error {
		return a.forwardProxy(ctx, k, o, set, use)
	}
	return diagnose.Explain(ctx, k, set.Run(ctx))
}

// forwardList reads -f. When ctx is done it leaves a read behind, which a terminal or a pipe may keep for ever.
func (a *app) forwardList(ctx context.Context, name string) ([]reach.Target, error) {
	type result struct {
		targets []reach.Target
		err     error
	}
	done := make(chan result, 1)
	go func() {
		targets, err := a.readList(name)
		done <- result{targets, err}
	}()
	select {
	case r := <-done:
		return r.targets, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *app) readList(name string) (targets []reach.Target, err error) {
	in := a.stdin
	if name == "-" {
		name = "stdin"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, hint.New(hint.Usage, fmt.Errorf("-f: %w", err), "give a file, or - for stdin")
		}
		defer f.Close()
		in = io.Reader(f)
	}
	list, err := forward.ParseList(in, name)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		t, err := reach.ParseTarget(l.Args, l.Where)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// forwardProxy runs the proxy pod of what needs one. Its Lease tells what set counts.
func (a *app) forwardProxy(ctx context.Context, k *kube.Client, o forwardOptions, set *reach.Set, use func(context.Context, reach.Dial) error) error {
	defer a.onSecondSignal(nil)
	own := &proxypod.Own{
		OnCreate: a.ownCreated(k, proxypod.KindForward),
		Kube:     k, Kind: proxypod.KindForward, Image: o.image, Arch: o.arch, Owner: identity(), Version: versionString(),
		ReadyTimeout: o.proxyTimeout, Why: whyOf(k), ResumeWindow: o.resumeWindow, Allow: o.allow, PodProxy: o.podProxy, Say: a.progress(), Log: a.log,
		More: proxypod.More{Annotations: func() map[string]string { return forwardsAnnotation(set.Stats()) }},
	}
	return own.Run(ctx, func(ctx context.Context, _ *proxypod.Proxy, t *tunnel.Client) error { return use(ctx, t.DialContext) })
}

// maxTold bounds what a Lease tells of local ends, in bytes: all annotations of an object have 256 KiB.
const maxTold = 64 << 10

// forwardsAnnotation tells of as many as there is room for, from the first on.
func forwardsAnnotation(stats []forward.Stat) map[string]string {
	text := []byte("[")
	for _, st := range stats {
		one, err := json.Marshal(st)
		if err != nil || len(text)+len(one) > maxTold-len(",]") {
			break
		}
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = append(text, one...)
	}
	return map[string]string{proxypod.ForwardsAnnotation: string(append(text, ']'))}
}
