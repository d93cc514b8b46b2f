package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"bridge/internal/child"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
	"bridge/internal/terminal"
)

// streamOptions are those of the commands that run a program in a container.
type streamOptions struct{ stdin, tty bool }

func newExecCommand(a *app) *cobra.Command {
	var o streamOptions
	var container string
	cmd := &cobra.Command{
		Use:   "exec TYPE/NAME [-c CONTAINER] [-i] [-t] -- CMD",
		Short: "Run a program in a container of a pod",
		Long: `exec runs a program in a container of a pod, as kubectl exec does. Of a workload or a Service it takes a pod that is ready, or else one that
runs, and says which. The exit code is the program's.`,
		Example: `  bridge exec deployment/orders -- env
  bridge exec -it deployment/orders -c app -- sh
  tar c data | bridge exec -i pod/orders-0 -- tar x -C /tmp`,
		Args: execArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			t, err := kube.ParseTarget(args[:dash]...)
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			p, err := k.RunningPod(cmd.Context(), k.Namespace, t)
			if err != nil {
				return rights.Exec.Needed(k, err)
			}
			named := container != ""
			if container, err = kube.ContainerName(p, container); err != nil {
				return err
			}
			if err := k.NotRunning(p, container); err != nil {
				return err
			}
			a.sayWhere(t, p, container, named)
			return a.runIn(cmd.Context(), a.possible(o), func(ctx context.Context, s kube.Streams) (int, error) {
				code, err := k.Run(ctx, p.Namespace, p.Name, container, args[dash:], s)
				return code, rights.Exec.Needed(k, err)
			})
		},
	}
	cmd.Flags().StringVarP(&container, "container", "c", "", "the container (default: kubectl's default container, else the first)")
	streamFlags(cmd, &o)
	return cmd
}

func streamFlags(cmd *cobra.Command, o *streamOptions) {
	cmd.Flags().BoolVarP(&o.stdin, "stdin", "i", false, "the program reads what is typed, or what comes from a pipe")
	cmd.Flags().BoolVarP(&o.tty, "tty", "t", false, "the program has a terminal, with -i")
}

// execArgs wants a target before -- and a program behind it.
func execArgs(cmd *cobra.Command, args []string) error {
	dash := cmd.ArgsLenAtDash()
	switch {
	case dash < 0 && len(args) > 1:
		return fmt.Errorf("write -- before the program: %s", cmd.Use)
	case dash < 0 || dash == len(args):
		return errors.New("name a program, behind --")
	}
	return podArgs(args[:dash])
}

// podArgs wants one target.
func podArgs(args []string) error {
	switch {
	case len(args) == 0:
		return errors.New("name a pod or a workload")
	case len(args) > 2, len(args) == 2 && (strings.Contains(args[0], "/") || strings.Contains(args[1], "/")):
		return fmt.Errorf("%q: name one pod or workload", args)
	}
	return nil
}

// sayWhere says on stderr which pod and container were chosen, where that was not said by the user.
func (a *app) sayWhere(t kube.Target, p *corev1.Pod, container string, named bool) {
	if t.Kind != kube.Pod {
		a.say("in pod/" + p.Name + ", container " + container)
	} else if !named && len(p.Spec.Containers) > 1 {
		a.say("in container " + container)
	}
}

// possible says what of o is left out since it cannot be.
func (a *app) possible(o streamOptions) streamOptions {
	switch {
	case o.tty && !o.stdin:
		a.say("note: -t is for -i, and is left out")
		o.tty = false
	case o.tty && terminal.Open(a.stdin, a.stdout) == nil:
		a.say("note: the standard input is no terminal, so -t is left out")
		o.tty = false
	}
	return o
}

// runIn has run run a program elsewhere with this machine's standard streams, and its terminal if o says so, which has to be possible.
// The error is a child.ExitError when the program's exit code is not 0.
func (a *app) runIn(ctx context.Context, o streamOptions, run func(context.Context, kube.Streams) (code int, err error)) error {
	s := kube.Streams{Stdout: a.stdout, Stderr: a.stderr}
	if o.stdin {
		s.Stdin = a.stdin
	}
	if t := terminal.Open(a.stdin, a.stdout); o.tty && t != nil {
		var stop func()
		s.TTY = true
		s.Size, stop = t.Sizes()
		defer stop()
		if err := t.Raw(); err != nil {
			return hint.New(hint.Other, fmt.Errorf("the terminal: %w", err), "leave out -t")
		}
		defer t.Restore()
		before := a.secondSignal.Load()
		a.onSecondSignal(func() {
			t.Restore()
			if before != nil {
				(*before)()
			}
		})
		defer a.secondSignal.Store(before)
	}
	code, err := run(ctx, s)
	if err == nil && code != 0 {
		err = &child.ExitError{Code: code}
	}
	return err
}
