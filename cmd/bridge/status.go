package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"bridge/internal/hint"
	"bridge/pkg/swap"
)

func newStatusCommand(a *app) *cobra.Command {
	var all bool
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List who has swapped what",
		Args:  cobra.NoArgs,
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
				a.say("nothing is swapped in " + where(namespace))
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
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(entries)
	case "yaml":
		b, err := yaml.Marshal(entries)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	case "", "wide":
	default:
		return hint.Newf(hint.Usage, "bridge status --help", "-o %s: not a format; there are json, yaml and wide", output)
	}
	wide := output == "wide"
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(tw, "NAMESPACE\tTARGET\tOWNER\tSINCE\tLAST HEARTBEAT\tSTATE")
	if wide {
		fmt.Fprint(tw, "\tREPLICAS\tSERVICES\tGIVE BACK WITH")
	}
	fmt.Fprintln(tw)
	for _, e := range entries {
		state := "held"
		if !e.Alive {
			state = "left behind"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s", e.Namespace, e.Target, e.Owner, age(e.Since), age(e.Heartbeat), state)
		if wide {
			fmt.Fprintf(tw, "\t%d\t%v\t%s", e.Replicas, e.Services, e.Restore)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}

func age(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return duration.HumanDuration(time.Since(t)) + " ago"
}
