package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/podview"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/klog/v2"
)

// app is what every command is given.
type app struct {
	stdin  io.Reader
	stdout io.Writer // results
	stderr io.Writer // progress, hints and errors
	flags  *genericclioptions.ConfigFlags
	lines  *live        // stderr, for whoever writes lines
	log    *slog.Logger // to lines; debug with -v

	level        *slog.LevelVar
	keeping      bool     // say's lines wait for the command's first one
	kept         []string // while keeping
	secondSignal atomic.Pointer[func()]
	program      atomic.Pointer[func(os.Signal)] // gets the signals; nil: bridge does
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	a := &app{
		stdin: stdin, stdout: stdout, stderr: stderr, lines: newLive(stderr),
		flags: genericclioptions.NewConfigFlags(true),
		level: new(slog.LevelVar),
	}
	a.level.Set(slog.LevelWarn)
	a.log = slog.New(slog.NewTextHandler(a.lines, &slog.HandlerOptions{Level: a.level}))
	return a
}

// say prints a line for the person at the terminal.
func (a *app) say(line string) {
	if a.keeping {
		a.kept = append(a.kept, line)
		return
	}
	fmt.Fprintln(a.lines, printable(line))
}

// keep has say keep its lines until sayFirst is called: those about a command whose first line can be said only later.
func (a *app) keep() { a.keeping = true }

// sayFirst says line, if it is not empty, and then what was kept.
func (a *app) sayFirst(line string) {
	a.keeping = false
	if line != "" {
		a.say(line)
	}
	for _, after := range a.kept {
		a.say(after)
	}
	a.kept = nil
}

// progress returns a function that prints a step with the seconds since progress was called, for
// commands whose steps take time.
func (a *app) progress() func(line string) {
	start := time.Now()
	return func(line string) { fmt.Fprintf(a.lines, "%5.1fs  %s\n", time.Since(start).Seconds(), printable(line)) }
}

// kube is the cluster that the flags and the kubeconfig name. Whoever goes there first removes what a killed bridge has left on this machine.
func (a *app) kube() (*kube.Client, error) {
	if err := podview.Sweep(); err != nil {
		a.log.Warn("a killed bridge has left something", "error", err)
	}
	return kube.New(a.flags, "bridge/"+versionString())
}

// onSecondSignal has hook called when a second signal is about to end bridge at once. nil takes it back.
func (a *app) onSecondSignal(hook func()) {
	if hook == nil {
		a.secondSignal.Store(nil)
		return
	}
	a.secondSignal.Store(&hook)
}

// onSignal has signals go to pass. nil takes that back.
func (a *app) onSignal(pass func(os.Signal)) {
	if pass == nil {
		a.program.Store(nil)
		return
	}
	a.program.Store(&pass)
}

// newRootCommand makes the command tree. Add a command to the list, nowhere else.
func newRootCommand(a *app, args []string) *cobra.Command {
	root := &cobra.Command{
		Use:   "bridge",
		Short: "Connect this machine and a Kubernetes cluster, both ways",
		Long: `bridge connects this machine and a Kubernetes cluster, both ways, with nothing installed beforehand.

It reads the kubeconfig that kubectl reads.`,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// run prints errors.
		SilenceErrors: true,
		SilenceUsage:  true,
		// For unknownCommand: as many letters may differ.
		SuggestionsMinimumDistance: 2,
	}
	root.AddCommand(
		newSwapCommand(a),
		newRestoreCommand(a),
		newStatusCommand(a),
		newDiagnoseCommand(a),
		newProbesCommand(a),
		newLogsCommand(a),
		newExecCommand(a),
		newDebugCommand(a),
		newCaptureCommand(a),
		newEnvCommand(a),
		newFilesCommand(a),
		newForwardCommand(a),
		newConnectCommand(a),
		newRBACCommand(a),
		newImageCommand(a),
		newVersionCommand(a),
	)

	a.flags.AddFlags(root.PersistentFlags())
	root.PersistentFlags().BoolFuncP("verbose", "v", "log what bridge does on stderr", func(s string) error {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return err
		}
		a.level.Set(slog.LevelWarn)
		if on {
			a.level.Set(slog.LevelDebug)
		}
		return nil
	})
	// client-go logs what is none of the user's business; it is there with -v.
	klog.SetSlogLogger(slog.New(demoted{a.log.Handler()}))

	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(usageError)
	usageForArgs(root)
	return root
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		return fmt.Errorf("unknown command %q, did you mean %s?", args[0], strings.Join(like, " or "))
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// usageForArgs makes usage errors of what the commands' Args functions return.
func usageForArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			return usageError(cmd, check(cmd, args))
		}
	}
	for _, c := range cmd.Commands() {
		usageForArgs(c)
	}
}

// usageError gives err exit code 2 and points at the command's help.
func usageError(cmd *cobra.Command, err error) error {
	var has *hint.Error
	if err == nil || errors.As(err, &has) {
		return err
	}
	return hint.New(hint.Usage, err, "see: "+cmd.CommandPath()+" --help")
}

// demoted passes everything on as debug, but for klog's details (V(1) and up, below slog.LevelInfo):
// they have whole bodies of requests and answers in them, Secrets too.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo && d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle asks Enabled itself: who logs an error by klog's own interface does not.
func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	if !d.Enabled(ctx, r.Level) {
		return nil
	}
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
