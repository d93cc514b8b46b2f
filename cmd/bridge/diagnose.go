package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/swap"
)

// verdict is an exit code that is a result: the command has done its work, and there is no error to print.
type verdict hint.Code

func (v verdict) Error() string { return fmt.Sprintf("exit code %d", int(v)) }

func newDiagnoseCommand(a *app) *cobra.Command {
	var all, noDial, watch bool
	var inside insideOptions
	var timeout time.Duration
	var output string
	var files []string
	cmd := &cobra.Command{
		Use:   "diagnose [TYPE/NAME... | TYPE NAME | -f FILE]",
		Short: "Say why something does not work",
		Long: `diagnose reads the namespace once, with your own rights, and says what does not work, and why: the state that shows
it, the direction of the fault, the events, and the next command or the smallest change that mends it. What one fault
explains stands behind it. With names it is about these, and what they stand on. It changes nothing; that it connects to
the pods' ports, by port-forward, can be left out.

With --inside it starts a proxy pod in the namespace, as bridge connect does, and removes it. From there it asks as others in the cluster do:
the pods' ports and probes at their addresses, and what Services lead to without a selector, or by an external name.

With -f the API server tries the objects of a file, as a strict dry run: a field that is misspelt is named.

With --watch it looks until there is no problem, and every workload and pod is as it is to be: for use after an apply.

Exit code 0 when nothing is wrong, 10 for warnings, 11 for problems. What your account may not read is said.`,
		Example: `  bridge diagnose                      # the namespace
  bridge diagnose deployment/orders    # and its pods, services, claims, nodes
  bridge diagnose --watch --timeout 5m # after kubectl apply: until all is well
  bridge diagnose -f shop.yaml         # would it be taken, and does what is there of it work
  bridge diagnose -A -o json           # all namespaces, for a program`,
		RunE: func(cmd *cobra.Command, args []string) error {
			// A format that does not exist is no reason to read a cluster.
			if err := printOr(io.Discard, nil, output, "diagnose", func(bool) error { return nil }); err != nil {
				return err
			}
			if all && len(args) > 0 {
				return hint.Newf(hint.Usage, "leave out -A, and name the namespace with -n", "names are of one namespace")
			}
			if len(files) > 0 && (all || len(args) > 0) {
				return hint.Newf(hint.Usage, "leave out -A and the names: it is about the objects of the file", "-f names what to look at")
			}
			if len(files) > 0 && watch {
				return hint.Newf(hint.Usage, "look at what was applied with: bridge diagnose --watch", "-f tries a file once, and --watch looks again and again")
			}
			if timeout != 0 && !watch {
				return hint.Newf(hint.Usage, "add --watch", "--timeout is how long --watch may take")
			}
			if inside.on && (watch || noDial) {
				return hint.Newf(hint.Usage, "leave out --watch and --no-dial", "--inside dials once, from a pod of its own")
			}
			if err := inside.check(cmd.Flags().Changed); err != nil {
				return err
			}
			o := diagnose.Options{AllNamespaces: all, NoDial: noDial}
			namespace, err := kube.Namespace(a.flags)
			if err != nil {
				return err
			}
			for _, arg := range asOne(args) {
				t, err := diagnose.ParseTarget(arg, namespace)
				if err != nil {
					return err
				}
				o.Targets = append(o.Targets, t)
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			if len(files) > 0 {
				if o.Tried, err = kube.TryManifests(ctx, k, a.stdin, files); err != nil {
					return err
				}
				k = k.In(diagnose.NamespaceOf(o.Tried, k.Namespace))
			}
			if inside.on {
				o.Inside = a.inside(k, inside)
			}
			return a.diagnose(ctx, k, o, watch, output)
		},
	}
	cmd.Flags().BoolVarP(&all, "all-namespaces", "A", false, "in all namespaces")
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "a file of objects, - for stdin: try them on the API server, which names what it does not know, and look at those that are there")
	cmd.Flags().BoolVar(&noDial, "no-dial", false, "do not connect to the pods' ports")
	insideFlags(cmd, &inside, "ask from there, too: ports and probes at the pods' addresses, hand-made endpoints, external names")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "look every 2 seconds until there is no problem and nothing is on its way")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "end --watch after that time with what is wrong then (default never)")
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, yaml or wide, which shortens nothing")
	return cmd
}

func (a *app) diagnose(ctx context.Context, k *kube.Client, o diagnose.Options, watch bool, output string) error {
	namespace := k.Namespace
	if o.AllNamespaces {
		namespace = ""
	}
	o.Swaps = knownSwaps(k, namespace)
	look := diagnose.Run
	if watch {
		look = func(ctx context.Context, k *kube.Client, o diagnose.Options) (*diagnose.Report, error) {
			return diagnose.Watch(ctx, k, o, a.progress())
		}
	}
	var kept error // the pod of --inside was not removed
	if inside := o.Inside; inside != nil {
		o.Inside = func(ctx context.Context, use func(context.Context, diagnose.From) error) error {
			err := inside(ctx, use)
			if hint.CodeOf(err) == hint.RestoreIncomplete {
				kept = err
			}
			return err
		}
	}
	r, err := look(ctx, k, o)
	if err != nil && kept != nil {
		return kept
	}
	late := watch && err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded)
	if late && r == nil {
		return hint.New(hint.Unreachable, fmt.Errorf("not one look was done in time: %w", err), "give it more time with --timeout")
	}
	if err != nil && !late {
		return err
	}
	err = printOr(a.stdout, r, output, "diagnose", func(wide bool) error {
		a.say(r.Summary())
		if d := r.Dialled; d != nil {
			a.say("note: " + d.String())
		}
		if b := r.Beyond; b != nil {
			a.say("note: " + b.String())
		}
		for _, note := range unread(r, wide) {
			a.say("note: " + note)
		}
		return printFindings(a.stdout, r, wide)
	})
	if err != nil {
		return err
	}
	switch worst := r.Worst(); {
	case kept != nil:
		return kept
	case worst == diagnose.Problem || late:
		return verdict(hint.Problems)
	case worst == diagnose.Warning:
		return verdict(hint.Warnings)
	}
	return nil
}

// whyOf explains what is not well in k's cluster, as a diagnosis would, for a command that ends over it.
func whyOf(k *kube.Client) func(context.Context, error) error {
	return func(ctx context.Context, err error) error { return diagnose.Explain(ctx, k, err) }
}

// knownSwaps reads the swaps of the namespace for a diagnosis.
func knownSwaps(k *kube.Client, namespace string) func(context.Context) ([]diagnose.Swap, error) {
	return func(ctx context.Context) (out []diagnose.Swap, err error) {
		entries, err := swap.List(ctx, k, namespace)
		for _, e := range entries {
			if e.Kind == proxypod.KindSwap && !e.Over {
				out = append(out, diagnose.Swap{Namespace: e.Namespace, Target: e.Target, Owner: e.Owner, Heartbeat: e.Heartbeat, Left: !e.Alive, IfLost: e.IfLost, Restore: e.Restore})
			}
		}
		return out, err
	}
}

// unread are lines about what was not read, one for each reason.
func unread(r *diagnose.Report, wide bool) (out []string) {
	kinds := map[string][]string{}
	var reasons, checks []string
	for _, u := range r.Unread {
		if kinds[u.Why] == nil {
			reasons = append(reasons, u.Why)
		}
		kinds[u.Why] = append(kinds[u.Why], u.Resource)
		checks = append(checks, u.Checks...)
	}
	for _, why := range reasons {
		out = append(out, fmt.Sprintf("not read: %s (%s)", strings.Join(kinds[why], ", "), why))
	}
	if slices.Sort(checks); wide && len(checks) > 0 {
		out = append(out, "so these checks were left out: "+strings.Join(slices.Compact(checks), ", "))
	}
	return out
}

// printFindings prints each finding by the three steps in which one looks for a fault by hand: state, direction, events.
func printFindings(w io.Writer, r *diagnose.Report, wide bool) error {
	p := findingPrinter{w: w, all: r.Several(), wide: wide, now: r.Time}
	for i, f := range r.Findings {
		if i > 0 {
			p.line("")
		}
		p.finding(f, "")
	}
	return p.err
}

// findingPrinter prints findings and keeps the first error.
type findingPrinter struct {
	w    io.Writer
	all  bool // findings are of several namespaces
	wide bool
	now  time.Time
	err  error
}

// line prints one, without what a log or a message may have in it to move a terminal.
func (p *findingPrinter) line(format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, fmt.Sprintf(format, args...))
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, strings.TrimRight(text, " "))
	}
}

// field prints lines with a label before the first.
func (p *findingPrinter) field(indent, label string, lines ...string) {
	for i, l := range lines {
		if i > 0 {
			label = ""
		}
		p.line("%s  %-10s %s", indent, label, l)
	}
}

func (p *findingPrinter) finding(f diagnose.Finding, indent string) {
	about := f.Object.String()
	if f.Owner != (diagnose.Ref{}) {
		about = f.Owner.String() + ", " + about
	}
	if n := len(f.Also); n > 0 {
		about += fmt.Sprintf(" and %d more", n)
	}
	if p.all && f.Object.Namespace != "" {
		about += " in " + f.Object.Namespace
	}
	p.line("%s%s %s: %s", indent, f.Severity, f.ID, about)
	p.line("%s  %s", indent, f.Summary)
	var lines []string
	for _, e := range f.State {
		lines = append(lines, p.evidence(e))
	}
	p.field(indent, "state", lines...)
	p.field(indent, "direction", string(f.Direction)+": "+f.Why)
	lines = nil
	for _, e := range f.Events {
		lines = append(lines, p.evidence(e))
	}
	p.field(indent, "events", lines...)
	p.field(indent, "log", f.Log...)
	p.field(indent, "next", f.Next...)
	lines = nil
	for _, s := range f.Symptoms {
		if p.wide {
			p.field(indent, "explains", "")
			p.finding(s, indent+"    ")
			continue
		}
		lines = append(lines, fmt.Sprintf("%s: %s (%s)", s.Object, s.Summary, s.ID))
	}
	p.field(indent, "explains", lines...)
}

// evidence is a line; without wide, of a long one its beginning and its end, where runtimes say the reason.
func (p *findingPrinter) evidence(e diagnose.Evidence) string {
	text := e.From + ": " + e.Says
	const first, last = 120, 140
	if runes := []rune(text); !p.wide && len(runes) > first+last {
		text = string(runes[:first]) + " … " + string(runes[len(runes)-last:])
	}
	var when []string
	if !e.At.IsZero() {
		when = append(when, duration.HumanDuration(p.now.Sub(e.At))+" ago")
	}
	if e.Count > 1 {
		when = append(when, fmt.Sprintf("%d times", e.Count))
	}
	if len(when) > 0 {
		text = fmt.Sprintf("%s (%s)", text, strings.Join(when, ", "))
	}
	return text
}

// asOne has TYPE and NAME, as other commands take them, as one target.
func asOne(args []string) []string {
	if len(args) != 2 || strings.Contains(args[0]+args[1], "/") {
		return args
	}
	one := args[0] + "/" + args[1]
	if _, err := diagnose.ParseTarget(one, ""); err != nil {
		return args
	}
	return []string{one}
}
