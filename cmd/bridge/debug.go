package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bridge/internal/debug"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
	"bridge/internal/terminal"
	"bridge/internal/tools"
)

type debugOptions struct {
	streamOptions
	image, proxyImage, container, copyTo, arch string
	keep                                       bool
}

func newDebugCommand(a *app) *cobra.Command {
	var o debugOptions
	cmd := &cobra.Command{
		Use:   "debug TYPE/NAME [--image IMAGE] [--copy-to NAME] [-- CMD]",
		Short: "Look around in a pod, with tools that its image does not have",
		Long: `debug adds a container to a running pod, with the processes, the network, the user and the volumes of one of its containers, and runs CMD there.
With --copy-to it makes a copy of the pod instead, in which the container's own program is held: for one that crashes, and where the right
to add containers is missing. Without CMD it has a prompt; the exit code is CMD's.

Without --image there are tools of bridge's own: ` + strings.Join(tools.Names(), ", ") + ` (help at the prompt says what they do). They are carried
by bridge: to a copy in any case, into a running pod where an image with a shell runs in it, or beside it on its node. Else they come from the proxy's image, which
--proxy-image names.`,
		Example: `  bridge debug deployment/orders
  bridge debug deployment/orders --copy-to orders-debug
  bridge debug pod/orders-0 --proxy-image registry.example.com/bridge-proxy:1.0 -- ss -l
  bridge debug pod/orders-0 --image busybox -it -- sh`,
		Args: func(cmd *cobra.Command, args []string) error {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				if dash == len(args) {
					return podArgs(nil)
				}
				args = args[:dash]
			} else if len(args) > 1 && strings.Contains(args[0], "/") {
				return errors.New("write -- before the program")
			}
			return podArgs(args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var command []string
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				args, command = args[:dash], args[dash:]
			}
			t, err := kube.ParseTarget(args...)
			if err != nil {
				return err
			}
			if err := o.check(command); err != nil {
				return err
			}
			if len(command) == 0 {
				o.stdin, o.tty = true, o.tty || terminal.Open(a.stdin, a.stdout) != nil
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			if err := rights.CheckDebug(cmd.Context(), k, t, o.image != "", o.copyTo != ""); err != nil {
				return err
			}
			if o.copyTo != "" {
				return a.debugCopy(cmd.Context(), k, t, o, command)
			}
			return a.debugBeside(cmd.Context(), k, t, o, command)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "", "an image of yours, which runs CMD or what it runs by itself, in the place of bridge's tools")
	f.StringVar(&o.proxyImage, "proxy-image", os.Getenv("BRIDGE_PROXY_IMAGE"), "the image with bridge's tools for a running pod: bridge image push makes it (default: none is needed where an image with a shell runs, by which they are carried)")
	f.StringVarP(&o.container, "container", "c", "", "the container to look at (default: kubectl's default container, else the first)")
	f.StringVar(&o.copyTo, "copy-to", "", "make a copy of the pod under this name, with the container's program held; it is removed at the end")
	f.BoolVar(&o.keep, "keep", false, "leave the copy")
	f.StringVar(&o.arch, "arch", "", "architecture of the tools that are carried, amd64 or arm64 (default: that of the pod's node)")
	streamFlags(cmd, &o.streamOptions)
	return cmd
}

func (o *debugOptions) check(command []string) error {
	switch {
	case o.copyTo != "" && o.image != "":
		return hint.Newf(hint.Usage, "leave out --image: a copy runs on its own image, and has the tools beside", "--copy-to and --image do not go together")
	case o.copyTo == "" && o.keep:
		return hint.Newf(hint.Usage, "see: bridge debug --help", "--keep is for --copy-to")
	case o.arch != "" && o.copyTo == "" && (o.image != "" || o.proxyImage != ""):
		return hint.Newf(hint.Usage, "leave it out: the image's is taken", "--arch is of tools that are carried, which these are not")
	case o.copyTo == "" && o.image == "" && len(command) > 0 && !slices.Contains(tools.Names(), command[0]):
		next := "name an image that has it with --image; bridge exec runs what is in the container"
		if instead := tools.Instead(command[0]); instead != "" {
			next = instead + " does such things; or " + next
		}
		return hint.Newf(hint.Usage, next, "%q is none of the tools: %s", command[0], strings.Join(tools.Names(), ", "))
	}
	return nil
}

// debugCopy runs the command in a copy of one of t's pods.
func (a *app) debugCopy(ctx context.Context, k *kube.Client, t kube.Target, o debugOptions, command []string) error {
	defer a.onSecondSignal(nil)
	c := &debug.Copy{
		Kube: k, Target: t, Container: o.container, Name: o.copyTo, Arch: o.arch, Keep: o.keep, Say: a.say,
		OnCreate: func(remove string, there bool) {
			words := "the copy may have been made; if so, remove it with: "
			if there {
				words = "the copy is still there; remove it with: "
			}
			a.onSecondSignal(func() { a.say(words + remove) })
		},
	}
	return c.Run(ctx, func(ctx context.Context, p *debug.Place) error { return a.runAt(ctx, k, o.streamOptions, p, command) })
}

// debugBeside runs the command in a container that is added to one of t's pods.
func (a *app) debugBeside(ctx context.Context, k *kube.Client, t kube.Target, o debugOptions, command []string) error {
	streams := a.possible(o.streamOptions)
	e := &debug.Ephemeral{
		Kube: k, Target: t, Container: o.container, Image: o.image, ProxyImage: o.proxyImage, Arch: o.arch, Command: command,
		Stdin: streams.stdin, TTY: streams.tty, Owner: identity(), Say: a.say,
	}
	p, err := e.Start(ctx)
	if err != nil {
		return err
	}
	switch {
	case o.image == "":
		return a.runAt(ctx, k, streams, p, command)
	case streams.stdin:
		if streams.tty {
			a.say("if there is no prompt, press Enter")
		}
		return a.runIn(ctx, streams, func(ctx context.Context, s kube.Streams) (int, error) { return p.Attach(ctx, k, s, a.say) })
	}
	return a.runIn(ctx, streams, func(ctx context.Context, s kube.Streams) (int, error) { return p.Output(ctx, k, s.Stdout, a.say) })
}

// runAt runs a command, or the tools' prompt, where the tools are.
func (a *app) runAt(ctx context.Context, k *kube.Client, o streamOptions, p *debug.Place, command []string) error {
	return a.runIn(ctx, a.possible(o), func(ctx context.Context, s kube.Streams) (int, error) {
		return p.Run(ctx, k, command, s)
	})
}
