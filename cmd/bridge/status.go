package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/printers"

	"bridge/pkg/swap"
)

func newStatusCommand(a *app) *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List who has swapped what, the connects and the forwards",
		Long: `status lists the swaps, connects and forwards of the namespace, with who made them, their last heartbeat, and the
state of the tunnel that it told: connecting, ready, degraded, reconnecting or lost. Without a heartbeat for 25
seconds (sooner with a --restore-after of less than a minute) that is unknown; after 60 (--restore-after of the swap) it was left behind. What becomes of a swap then is told too.
Below each forward through a proxy pod is what it forwards, as the last heartbeat told. One straight to pods has nothing in the
cluster and is not listed. -o wide says why a state is what it is, and has the command that gives it back.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			k, err := a.kube()
			if err != nil {
				return err
			}
			namespace := k.Namespace
			if all {
				namespace = ""
			}
			entries, err := swap.List(cmd.Context(), k, namespace)
			if err != nil {
				return err
			}
			if len(entries) == 0 && (output == "" || output == "wide") {
				a.say("no swap, connect or forward in " + where(namespace))
				return nil
			}
			return printStatus(a.stdout, entries, output)
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "in all namespaces")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, yaml or wide")
	return cmd
}

func where(namespace string) string {
	if namespace == "" {
		return "any namespace"
	}
	return "namespace " + namespace
}

func printStatus(w io.Writer, entries []swap.Entry, output string) error {
	return printOr(w, entries, output, "status", func(wide bool) error {
		if err := printers.NewTablePrinter(printers.PrintOptions{Wide: wide}).PrintObj(statusTable(entries), w); err != nil {
			return err
		}
		table := forwardTable(entries)
		if len(table.Rows) == 0 {
			return nil
		}
		fmt.Fprintln(w)
		return printers.NewTablePrinter(printers.PrintOptions{}).PrintObj(table, w)
	})
}

// forwardTable is what each forward has counted.
func forwardTable(entries []swap.Entry) *metav1.Table {
	t := &metav1.Table{}
	for _, name := range []string{"Namespace", "Forward", "Local", "Target", "Connections", "Total", "Sent", "Received", "Last Error"} {
		t.ColumnDefinitions = append(t.ColumnDefinitions, metav1.TableColumnDefinition{Name: name, Type: "string"})
	}
	for _, e := range entries {
		_, name, _ := strings.Cut(e.Target, "/")
		for _, f := range e.Forwards {
			last := f.LastError
			if last != "" {
				last += " (" + age(f.LastErrorAt) + ")"
			}
			t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{e.Namespace, name, strings.Join(f.Local, ","), f.Target, f.Open, f.Total, f.Sent, f.Received, last}})
		}
	}
	return t
}

// statusTable is the entries as kubectl would print them; columns of priority 1 are for wide.
func statusTable(entries []swap.Entry) *metav1.Table {
	t := &metav1.Table{}
	for i, name := range []string{"Namespace", "Target", "Mode", "Owner", "Since", "Last Heartbeat", "State", "If Lost", "Probes", "Requests", "Why", "Replicas", "Services", "Notes", "Give Back With"} {
		c := metav1.TableColumnDefinition{Name: name, Type: "string"}
		if i > 9 {
			c.Priority = 1
		}
		t.ColumnDefinitions = append(t.ColumnDefinitions, c)
	}
	for _, e := range entries {
		replicas := ""
		if e.Mode == swap.ModeReplace {
			replicas = strconv.Itoa(int(e.Replicas))
		}
		row := func(owner string, since time.Time, m swap.Member, requests string) {
			t.Rows = append(t.Rows, metav1.TableRow{Cells: []any{
				e.Namespace, e.Target, string(e.Mode), owner, age(since), age(m.Heartbeat), state(m), e.IfLost, probes(m), requests, m.Reason,
				replicas, strings.Join(e.Services, ","), strings.Join(m.Notes, "; "), e.Restore,
			}})
		}
		for _, m := range e.Members {
			row(m.Owner, m.Since, m, m.Choice.String())
		}
		if len(e.Members) == 0 {
			row(e.Owner, e.Since, swap.Member{Heartbeat: e.Heartbeat, State: e.State, StateSince: e.StateSince, Reason: e.Reason, Probes: e.Probes, Notes: e.Notes}, "")
		}
	}
	return t
}

// state is a tunnel's, and for how long.
func state(m swap.Member) string {
	if m.StateSince.IsZero() {
		return m.State
	}
	return m.State + " for " + duration.HumanDuration(time.Since(m.StateSince))
}

// probes are their results, "readiness failure for 12s", and what the kubelet would have done.
func probes(m swap.Member) string {
	var out []string
	for _, p := range m.Probes {
		text := string(p.Kind) + " " + p.Result.String()
		if !p.Since.IsZero() {
			text += " for " + duration.HumanDuration(time.Since(p.Since))
		}
		if !p.Restart.IsZero() {
			text += " (the kubelet would have restarted it at " + clock(p.Restart) + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// clock is a time of today's, or one with its day.
func clock(t time.Time) string {
	t = t.Local()
	if t.Format(time.DateOnly) == time.Now().Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format("15:04:05 on 2 Jan")
}

func age(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return duration.HumanDuration(time.Since(t)) + " ago"
}
