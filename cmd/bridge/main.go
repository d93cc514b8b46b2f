// Command bridge connects a developer's machine and a Kubernetes cluster, both ways. Each command has
// a file of its own: it reads flags, makes one call and prints. This package alone uses cobra, prints
// errors and exits.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"bridge/internal/child"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/netns"
)

func main() {
	netns.Main()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the whole of bridge but for the exit. It returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := newApp(stdin, stdout, stderr)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	signals := make(chan os.Signal, 2) // the first and the second
	notify(signals)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		a.handleSignals(signals, cancel, done)
	}()
	err := newRootCommand(a, args).ExecuteContext(ctx)
	signal.Stop(signals)
	close(done)
	<-ended
	return a.exitCode(err, context.Cause(ctx))
}

// signalError is the cause of a context that a signal has ended.
type signalError struct{ syscall.Signal }

func (s signalError) Error() string { return "ended by a signal: " + s.Signal.String() }

// code is what a shell reports for a program that the signal killed: 130, 143, 129, 131.
func (s signalError) code() int { return 128 + int(s.Signal) }

// sameSignal is how long one that comes once more is taken for the same, but of a terminal, where a person presses a key twice.
const sameSignal = 200 * time.Millisecond

// handleSignals cancels at the first signal, so that the command gives back what it took, and exits at
// the second, for a person who will not wait: timeout(1) sends its own twice, at once. While a program of the user's runs, signals are its own; without one SIGUSR1
// and SIGUSR2 are ignored.
func (a *app) handleSignals(signals <-chan os.Signal, cancel context.CancelCauseFunc, done <-chan struct{}) {
	var first time.Time
	var by os.Signal
	for {
		select {
		case <-done:
			return
		case s := <-signals:
			sig, ok := s.(syscall.Signal)
			if !ok {
				sig = syscall.SIGINT
			}
			if pass := a.program.Load(); pass != nil {
				(*pass)(sig)
				continue
			}
			if programsOnly(sig) {
				continue
			}
			switch {
			case first.IsZero():
				first, by = time.Now(), s
				cancel(signalError{sig})
				continue
			case s == by && s != os.Interrupt && time.Since(first) < sameSignal:
				continue
			}
			a.lines.show("") // the shell's prompt comes next
			if hook := a.secondSignal.Load(); hook != nil {
				(*hook)()
			}
			os.Exit(signalError{sig}.code())
		}
	}
}

// exitCode prints err, in the one place where errors are printed. A signal's code wins unless the
// command's own says more: that giving back is incomplete. The code of a program of the user's is bridge's.
func (a *app) exitCode(err, cause error) int {
	if exit, ok := err.(*child.ExitError); ok { //nolint:errorlint // wrapped it is a failure of ours
		return exit.Code
	}
	if v, ok := err.(verdict); ok { //nolint:errorlint // nobody wraps it
		return int(v)
	}
	var sig signalError
	bySignal := errors.As(cause, &sig)
	if bySignal && hint.CodeOf(err) != hint.RestoreIncomplete && (err == nil || errors.Is(err, context.Canceled) || errors.As(err, &signalError{})) {
		return sig.code()
	}
	if err == nil {
		return 0
	}
	fmt.Fprintf(a.stderr, "bridge: %s\n", printable(err.Error()))
	next := hint.Of(err)
	if hint.CodeOf(err) != hint.Usage { // which is about the flags themselves
		next = kube.Commands(next, kube.FlagsOf(a.flags))
	}
	if next != "" {
		fmt.Fprintf(a.stderr, "  hint: %s\n", strings.ReplaceAll(printable(next), "\n", "\n        "))
	}
	code := hint.CodeOf(err)
	if exit := new(child.ExitError); code == hint.Other && errors.As(err, &exit) && exit.Code != 0 {
		return exit.Code
	}
	if bySignal && code == hint.Other {
		return sig.code()
	}
	return int(code)
}

// printable is hint.Printable of each line: an error may name what the cluster has chosen the name of.
func printable(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = hint.Printable(line)
	}
	return strings.Join(lines, "\n")
}
