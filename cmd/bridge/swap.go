package main

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"bridge/internal/carry"
	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/pkg/swap"
)

func newSwapCommand(a *app) *cobra.Command {
	var o swapOptions
	cmd := &cobra.Command{
		Use:   "swap KIND NAME [-- CMD...]",
		Short: "Let a process on this machine answer for a workload",
		Long: `swap puts a proxy in the place of a deployment, statefulset, replicaset or Argo rollout; of a pod, or a replicaset, that belongs to
one of these, in the owner's; before a pod that belongs to nobody, which goes on. The cluster's traffic for it arrives at a process on
this machine until you press Ctrl-C; then everything is given back. If bridge is killed or this machine is
gone, a keeper in the cluster gives back, if your account may make one a Role or an admin has prepared one; until
then the same command takes the swap up again. Where there can be no keeper the original goes on (--mode standby),
and answers what this machine cannot take.

The process has to listen on the container's ports, or on those that --port maps. With CMD bridge starts it, with
the environment and the files of the container (below the folder BRIDGE_ROOT), moves callers when it answers, and gives
back when it ends; signals and the exit code are CMD's. On Linux CMD has a network of its own, without root, as with
bridge connect -- CMD, and the files are at their paths.`,
		Example: `  bridge swap deployment orders                  # port 8080 of the pod comes to localhost:8080
  bridge swap deployment orders --port 3000:8080  # ... to localhost:3000
  bridge swap deployment orders -- go run .      # answered by a process with the pod's environment
  bridge swap deployment orders --to-pod 9090 -- go run .  # ... for which localhost:9090 is the sidecar's
  bridge swap deployment orders --publish 2345 -- dlv debug --headless --listen :2345  # ... with a debugger that an IDE reaches
  bridge swap deployment orders --header x-user=ada  # only requests with that header, the deployment answers the others
  bridge swap deployment orders --dry-run         # every object and change, nothing done
  bridge swap deployment orders --dry-run=server  # ... and what the cluster would refuse of it
  bridge swap statefulset db                     # all of its pods
  bridge swap pod web                            # one that belongs to nobody goes on, and answers when this machine cannot`,
		Args: targetArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				args, o.program = args[:dash], args[dash:]
				if len(o.program) == 0 {
					return hint.Newf(hint.Usage, "see: bridge swap --help", "there is nothing behind --")
				}
			}
			for _, name := range []string{"token", "cidr", "local-port", "publish", "network", "to-pod", "restart-on-liveness"} {
				if len(o.program) == 0 && cmd.Flags().Changed(name) {
					return hint.Newf(hint.Usage, fmt.Sprintf("write: bridge swap KIND NAME --%s ... -- CMD", name), "--%s is for a CMD", name)
				}
			}
			o.localTimeoutSet = cmd.Flags().Changed("local-timeout")
			t, err := parseWorkload(args)
			if err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			a.keep()
			defer a.sayFirst("") // an error comes after what it is about
			if t, err = a.workload(cmd.Context(), k, t); err != nil {
				return err
			}
			for {
				err := a.swap(cmd.Context(), k, t, o)
				if swap.FirstWasFaster(err) {
					a.say(fmt.Sprintf("%v: sharing it", err))
					continue
				}
				if !o.rejoin || !swap.GivenBackMeanwhile(err) || cmd.Context().Err() != nil {
					return err
				}
				a.say(fmt.Sprintf("%v; swapping anew", err))
			}
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.ports, "port", "p", nil, "LOCAL[:REMOTE], REMOTE a container port's name or a number (53/udp: UDP alone); without it the pod's port LOCAL, or its only one (repeatable; default: every port of the container to the same port here)")
	f.StringVar(&o.container, "container", "", "the container to stand in for (default: kubectl's default container, else the first with a port)")
	f.StringVar(&o.image, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "image of the proxy (default: none is needed, the proxy is carried to the node on the container's own image)")
	f.StringVar(&o.arch, "arch", "", "architecture of a carried proxy, amd64 or arm64 (default: that of the pod's node)")
	carrierFlag(cmd, &o.podProxy)
	f.DurationVar(&o.proxyTimeout, "proxy-timeout", 90*time.Second, "how long the proxy's pod may take to be Ready")
	f.DurationVar(&o.localTimeout, "local-timeout", 10*time.Second, "how long to wait for a process on the local ports, and for its probes (default with CMD: as long as it runs)")
	f.Var(newChoice("on", func(word string) { o.noProbes = word == "off" }, "on", "off"), "probes", "on: the container's own startup, readiness and liveness probes are run against the process here, and callers are refused while it is not ready")
	f.BoolVar(&o.execProbes, "allow-exec-probes", false, "run the commands of exec probes, which are the cluster's, on this machine (default: a TCP connection takes their place)")
	f.BoolVar(&o.restart, "restart-on-liveness", false, "end CMD, and start it again, when the pod's liveness or startup probe fails, as the kubelet would have done (default: that is only said)")
	f.BoolVar(&o.token, "token", false, "give CMD tokens of the workload's ServiceAccount too, good for an hour and refreshed; needs the right to create serviceaccounts/token")
	networkFlags(cmd, &o.network)
	f.Var(newChoice("auto", func(word string) { o.network.outside = word == "host" }, "auto", "host"), "network",
		"auto: CMD has a network of its own where this machine allows that (Linux), else variables that name a proxy; host: this machine's, and no such variables")
	f.IntSliceVar(&o.toPod, "to-pod", nil, "a TCP port of the pod's other containers that CMD finds at its own 127.0.0.1 (repeatable; takes mode replace)")
	f.BoolVar(&o.init, "init", false, "run the pod's init containers in the proxy's pod too, before it answers (default: sidecars alone; takes mode replace)")
	resumeWindowFlag(cmd, &o.resumeWindow)
	f.Var(newChoice(string(swap.ModeAuto), func(word string) { o.mode = swap.Mode(word) }, string(swap.ModeAuto), string(swap.ModeReplace), string(swap.ModeStandby)), "mode",
		"replace: the original is stopped. standby: it goes on, callers come by way of proxies, and those whom this machine cannot take go to it. auto: replace if somebody can start it again when this machine is gone, else standby")
	f.StringArrayVar(&o.headers, "header", nil, "NAME=VALUE: only requests with this header come here, the original answers all others; of baggage and tracestate a member, baggage:KEY=VALUE (repeatable, all must match; takes mode standby)")
	f.StringVar(&o.path, "path", "", "only requests whose path begins with this come here (takes mode standby)")
	f.BoolVar(&o.mirror, "mirror", false, "the original answers, and the process here gets a copy of what callers send; what it answers is dropped (takes mode standby)")
	f.Var(newChoice("auto", func(word string) { o.selfRestore = swap.SelfRestore(word) }, "auto", "always", "never"), "self-restore", "whether a keeper in the cluster gives back when this machine is gone; always swaps with one or not at all")
	f.DurationVar(&o.restoreAfter, "restore-after", proxypod.LeaseSeconds*time.Second, "how long this machine may be silent before the keeper gives back, 6s to 24h")
	f.BoolVar(&o.rejoin, "rejoin", false, "swap anew when this machine was away for so long that the swap was given back")
	f.BoolVar(&o.takeOver, "take-over", false, "with --header or --path: have the place of one who shares the swap, has the same requests, and is gone: without a heartbeat for --restore-after")
	f.Var(&o.dryRun, "dry-run", "print every change and object (of a carried proxy's ConfigMaps name and size), and do nothing; with server the API server judges each")
	f.Lookup("dry-run").NoOptDefVal = string(dryRunClient)
	f.VarP(newChoice("", func(word string) { o.output = word }, "yaml", "json"), "output", "o", "yaml or json, of a dry run")
	return cmd
}

type swapOptions struct {
	ports                      []string
	container, image, arch     string
	podProxy                   bool
	proxyTimeout, localTimeout time.Duration
	localTimeoutSet            bool
	resumeWindow               time.Duration
	mode                       swap.Mode
	headers                    []string
	path                       string
	mirror                     bool
	choice                     route.Choice // of headers, path and mirror; check makes it
	selfRestore                swap.SelfRestore
	restoreAfter               time.Duration
	rejoin, takeOver           bool
	dryRun                     dryRun
	output                     string // yaml or json, of a dry run; empty is yaml
	restart, token             bool
	program                    []string // CMD
	network                    network
	toPod                      []int
	init                       bool
	noProbes, execProbes       bool
}

// check refuses what does not go together, and makes choice.
func (o *swapOptions) check() error {
	if o.output != "" && o.dryRun == "" {
		return hint.Newf(hint.Usage, "add --dry-run, or leave it out", "-o %s is for a dry run", o.output)
	}
	if o.restoreAfter < 6*time.Second || o.restoreAfter > 24*time.Hour {
		return hint.Newf(hint.Usage, "", "--restore-after %v: 6s to 24h", o.restoreAfter)
	}
	choice, err := route.ParseChoice(o.headers, o.path, o.mirror)
	if err != nil {
		return err
	}
	o.choice = choice
	if o.takeOver && (choice.All() || choice.Mirror) {
		return hint.Newf(hint.Usage, "to have all of a swap that somebody left behind give it back: bridge restore KIND NAME", "--take-over is for --header and --path")
	}
	if o.restart && o.noProbes {
		return hint.Newf(hint.Usage, "leave out one of them", "--restart-on-liveness and --probes off do not go together: no probe is run that could ask for it")
	}
	if err := o.network.check(o.toPod); err != nil {
		return err
	}
	if _, err := portNumbers("--to-pod", o.toPod); err != nil {
		return err
	}
	return swap.Options{Mode: o.mode, Choice: choice, ToPod: toPod(o.toPod), Init: o.init}.Check()
}

func toPod(numbers []int) (ports []int32) {
	for _, n := range numbers {
		ports = append(ports, int32(n))
	}
	return ports
}

func (a *app) swap(ctx context.Context, k *kube.Client, t kube.Target, o swapOptions) error {
	options := swap.Options{Container: o.container, Ports: o.ports, PodProxy: o.podProxy, Owner: identity(), Now: time.Now(), NoProbes: o.noProbes, ExecProbes: o.execProbes,
		Mode: o.mode, Choice: o.choice, TakeOver: o.takeOver, Version: versionString(), SelfRestore: o.selfRestore, RestoreAfter: o.restoreAfter,
		ToPod: toPod(o.toPod), Init: o.init}
	source := proxypod.Source{Image: o.image, Arch: o.arch}
	if o.dryRun != "" {
		a.sayFirst("")
		return a.dryRun(ctx, k, t, options, source, o)
	}
	a.keep() // anew, with --rejoin
	program, err := a.programOf(ctx, k, t, o)
	if err != nil {
		return err
	}
	step := a.progress()
	session, note, err := swap.OpenSession(k, t)
	if err != nil {
		return err
	}
	defer session.Close()
	if note != "" {
		a.say("note: " + note)
	}
	plan, err := session.TakeUp(ctx, t, options, source, step)
	if err == nil && plan == nil {
		plan, err = session.Join(ctx, t, options, source, step)
	}
	if err != nil {
		return err
	}
	var parts []carry.Part
	if plan == nil {
		options.Client = session.Fingerprint()
		if plan, parts, err = planSwap(ctx, k, t, options, source); err != nil {
			return err
		}
	}
	if program != nil {
		if err := a.apart(o.network, program, plan.Ports); err != nil {
			return err
		}
		if o.restart && !slices.ContainsFunc(plan.Probes, func(p *probe.Probe) bool { return p.Kind != probe.Readiness }) {
			a.say("note: --restart-on-liveness: no liveness or startup probe is run here, so nothing restarts CMD")
		}
	}
	s := &swap.Swap{
		Kube: k, Plan: plan, Parts: parts, Session: session, SelfRestore: o.selfRestore,
		ReadyTimeout: o.proxyTimeout, Why: whyOf(k), ResumeWindow: o.resumeWindow, Version: versionString(), Program: program, Say: step, Log: a.log,
	}
	switch {
	case session.Joins():
		a.sayFirst(plan.SharingHeadline())
	case session.TakenUp():
		a.sayFirst(plan.TakeUpHeadline(k))
	default:
		a.sayFirst(plan.Headline(k))
	}
	for _, n := range plan.Notes {
		a.say("note: " + n)
	}
	for _, p := range plan.Ports {
		a.say("port " + p.String())
	}
	for _, p := range plan.Probes {
		a.say("probe " + p.String())
	}
	if program == nil {
		if err := s.AwaitLocal(ctx, o.localTimeout); err != nil {
			return err
		}
	}
	if program == nil { // else the terminal is CMD's
		s.Live = a.lines.show
		defer a.lines.show("")
	}
	a.onSecondSignal(func() {
		if plan.Shared() { // restore would take everybody's
			a.say("your share of the swap is not given back; do it by starting and ending the same command again")
			return
		}
		a.say("not given back; do it with: " + swap.Command(k, plan.Undo.Target))
	})
	defer a.onSecondSignal(nil)
	return s.Run(ctx)
}

// programOf is CMD, which can be started, nil without one. It says what the container runs in the cluster.
func (a *app) programOf(ctx context.Context, k *kube.Client, t kube.Target, o swapOptions) (*swap.Program, error) {
	if len(o.program) == 0 {
		return nil, nil
	}
	c, err := a.connectProgram(k, o.program, o.network, connect.Options{Log: a.log})
	if err != nil {
		return nil, err
	}
	if c.PodPorts, err = portNumbers("--to-pod", o.toPod); err != nil {
		return nil, err
	}
	for _, port := range c.PodPorts {
		a.own(c, port)
	}
	p := &swap.Program{Program: *c, Restart: o.restart, Token: o.token}
	if o.localTimeoutSet {
		p.LocalTimeout = o.localTimeout
	}
	if err := p.Check(ctx, k); err != nil {
		return nil, err
	}
	like, err := proxypod.FindLike(ctx, k, t, o.container)
	if err != nil {
		return nil, err
	}
	a.say("in the cluster the container runs " + like.Instead())
	return p, nil
}

// planSwap reads the cluster and plans; parts are a carried proxy's.
func planSwap(ctx context.Context, k *kube.Client, t kube.Target, o swap.Options, source proxypod.Source) (plan *swap.Plan, parts []carry.Part, err error) {
	facts, err := swap.Gather(ctx, k, t, source, o)
	if err != nil {
		return nil, nil, err
	}
	if source.Image == "" {
		if parts, err = carry.Parts(facts.Source.Arch); err != nil {
			return nil, nil, err
		}
		facts.Source.ConfigMaps = proxypod.ConfigMapNames(proxypod.LeaseName(string(t.Kind), t.Name), parts)
	}
	if plan, err = swap.MakePlan(ctx, k, facts, o); err != nil {
		return nil, nil, err
	}
	plan.LookAround(ctx, k)
	return plan, parts, nil
}

// identity is who swaps, for others to read: user@host.
func identity() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "somewhere"
	}
	return fmt.Sprintf("%s@%s", name, host)
}
