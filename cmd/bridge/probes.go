package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/probe"
	"bridge/internal/rights"
	"bridge/internal/terminal"
)

func newProbesCommand(a *app) *cobra.Command {
	var watch bool
	var inside insideOptions
	var output string
	cmd := &cobra.Command{
		Use:   "probes TYPE/NAME",
		Short: "Run the probes of a workload's pods, and say what they mean",
		Long: `probes shows each startup, readiness and liveness probe of the pods: how it is set, what that means in seconds, what it
gives now, in how long, and what the kubelet would do next if it went on like that. It runs them itself, once: by port-forward,
and commands in their containers.

With --inside it starts a proxy pod in the namespace, as bridge connect does, and removes it: those that ask a port are run from there, at
the pods' addresses, where the kubelet asks.

Exit code 0 when all of them succeed, 11 when one does not.`,
		Example: `  bridge probes deployment/orders
  bridge probes pod/orders-0 --watch   # a table, every 2 seconds
  bridge probes pod/orders-0 --inside  # from a pod, at its address`,
		Args: func(_ *cobra.Command, args []string) error { return podArgs(args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := printOr(io.Discard, nil, output, "probes", func(bool) error { return nil }); err != nil {
				return err
			}
			if watch && output != "" {
				return hint.Newf(hint.Usage, "leave out -o, or --watch", "--watch is a table")
			}
			if err := inside.check(cmd.Flags().Changed); err != nil {
				return err
			}
			t, err := kube.ParseTarget(args...)
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			var r *diagnose.LiveReport
			look := func(ctx context.Context, from *diagnose.From) (err error) {
				if watch {
					return a.watchProbes(ctx, k, t, from)
				}
				r, err = diagnose.Live(ctx, k, t, from)
				return err
			}
			ctx := cmd.Context()
			if inside.on {
				if _, err = k.Pods(ctx, k.Namespace, t); err == nil { // no pod is started for what is not there
					err = a.inside(k, inside)(ctx, func(ctx context.Context, from diagnose.From) error { return look(ctx, &from) })
				}
			} else {
				err = look(ctx, nil)
			}
			if err != nil || r == nil {
				return rights.Probes.Needed(k, err)
			}
			if err := printOr(a.stdout, r, output, "probes", func(bool) error { return printProbes(a.stdout, r) }); err != nil {
				return err
			}
			for _, note := range probeNotes(r) {
				a.say("note: " + note)
			}
			if slices.ContainsFunc(r.Probes, func(p diagnose.LiveProbe) bool { return p.Result != probe.Success || p.Disputed }) {
				return verdict(hint.Problems)
			}
			return nil
		},
	}
	insideFlags(cmd, &inside, "run from there, at the pods' addresses, the probes that ask a port")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "a table, anew every 2 seconds, until Ctrl-C")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return cmd
}

// probesEvery is how often --watch runs them: no more often than most kubelets do.
const probesEvery = 2 * time.Second

// watchProbes prints a table again and again. On a terminal each takes the place of the one before.
func (a *app) watchProbes(ctx context.Context, k *kube.Client, t kube.Target, from *diagnose.From) error {
	tick := time.NewTicker(probesEvery)
	defer tick.Stop()
	for {
		r, err := diagnose.Live(ctx, k, t, from)
		if ctx.Err() != nil {
			return nil // Ctrl-C is how it ends
		}
		if err != nil && !kube.Transient(err) {
			return err
		}
		var table strings.Builder
		if terminal.Is(a.stdout) {
			table.WriteString("\x1b[H\x1b[2J")
		}
		if err != nil {
			fmt.Fprintln(&table, err)
		} else if err := printers.NewTablePrinter(printers.PrintOptions{}).PrintObj(probesTable(r), &table); err != nil {
			return err
		}
		if _, err := io.WriteString(a.stdout, table.String()); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func probesTable(r *diagnose.LiveReport) *metav1.Table {
	table := &metav1.Table{}
	for _, name := range []string{"Pod", "Container", "Probe", "Now", "In", "Answer", "Next"} {
		table.ColumnDefinitions = append(table.ColumnDefinitions, metav1.TableColumnDefinition{Name: name, Type: "string"})
	}
	for _, p := range r.Probes {
		table.Rows = append(table.Rows, metav1.TableRow{Cells: []any{p.Pod, p.Container, p.Kind, p.Result.String(), took(p), p.Answer, p.Next}})
	}
	return table
}

// took is how long a run took, "" where that is not known.
func took(p diagnose.LiveProbe) string {
	if p.Seconds == 0 {
		return ""
	}
	return time.Duration(p.Seconds * float64(time.Second)).Round(time.Millisecond).String()
}

func printProbes(w io.Writer, r *diagnose.LiveReport) error {
	p := findingPrinter{w: w}
	last := ""
	for i, l := range r.Probes {
		if of := l.Pod + " " + l.Container; of != last {
			if i > 0 {
				p.line("")
			}
			p.line("pod/%s container %s: %s", l.Pod, l.Container, l.State)
			last = of
		}
		p.line("  %s: %s", l.Kind, l.What)
		p.field("  ", "set", l.Set.String())
		p.field("  ", "means", l.Means)
		now := l.Result.String()
		if in := took(l); in != "" {
			now += " in " + in
		}
		if l.Inside {
			now += ", from a pod"
		}
		p.field("  ", "now", now+": "+l.Answer)
		if l.Kubelet != "" {
			p.field("  ", "kubelet", l.Kubelet)
		}
		p.field("  ", "next", l.Next)
	}
	return p.err
}

func probeNotes(r *diagnose.LiveReport) (out []string) {
	if len(r.Without) > 0 {
		out = append(out, "without a probe: "+strings.Join(r.Without, ", "))
	}
	if r.Left > 0 {
		out = append(out, fmt.Sprintf("%d more pods were left out", r.Left))
	}
	if len(r.Probes) == 0 && len(r.Without) == 0 {
		out = append(out, "no pod")
	}
	return out
}
