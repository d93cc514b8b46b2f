// Package tools is a small set of programs for looking around in a pod, in one executable: cmd/proxy runs them as `proxy tool NAME`, where
// bridge debug has put it. They are on the standard library, and do what is needed of the programs of the same names, no more.
package tools

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"bridge/internal/hint"
)

// Streams are a tool's.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// tool returns the error that it ends with; exitCode for a code of its own.
type tool struct {
	usage, what string
	run         func(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error
}

// exitCode is how a tool ends that has said why itself.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// interrupted is the exit code of what Ctrl-C has ended.
const interrupted = 130

// lastWords is how long a tool has to end that Ctrl-C ends.
const lastWords = 200 * time.Millisecond

// errUsage is of arguments that a tool cannot use.
var errUsage = errors.New("wrong arguments")

func table() map[string]tool {
	return map[string]tool{
		"ls":         {"ls [-l] [-t] [-r] [PATH...]", "list folders, with what is hidden; -t the newest first, -r backwards", list},
		"cat":        {"cat [FILE...]", "print files", cat},
		"ps":         {"ps", "all processes that are seen from here", ps},
		"env":        {"env [PID]", "the environment, or a process's: env 1", env},
		"ss":         {"ss [-l] [-t] [-u]", "sockets of the pod; -l those that are listened at, -t TCP's, -u UDP's", ss},
		"dig":        {"dig [@SERVER] [+search] [+short] [TYPE] NAME, or dig -x ADDRESS", "ask a DNS server, by default the pod's", dig},
		"curl":       {"curl [-v] [-i] [-I] [-k] [-L] [-f] [-X METHOD] [-H HEADER]... [-d DATA] [-m SECONDS] [-connect-timeout SECONDS] [-o FILE] [-w FORMAT] URL", "an HTTP request", curl},
		"nc":         {"nc [-u] [-z] [-w SECONDS] HOST PORT, or nc -l [-u] PORT", "a connection to the standard streams; -z only opens it, -l waits for one", netcat},
		"http-probe": {"http-probe [-timeout 1s] [-H HEADER]... URL", "one probe as the kubelet makes it: exit code 0 when it succeeds", httpProbe},
	}
}

// Prompt and Hold are names beside the tools': for a person, and to be there.
const (
	Prompt = "prompt"
	Hold   = "hold"
)

// Attended before a tool's name has the tool end with the standard input, on which nothing comes: who has started it is gone then.
const Attended = "attended"

// Names are the tools', sorted.
func Names() []string { return slices.Sorted(maps.Keys(table())) }

// Instead is the tool that does what a program which is none of them is asked for; "" without one.
func Instead(program string) string {
	switch program {
	case "nslookup", "host", "getent", "drill":
		return "dig"
	case "wget", "http", "httpie":
		return "curl"
	case "netstat", "lsof":
		return "ss"
	case "telnet", "ncat", "netcat", "socat":
		return "nc"
	case "top", "pgrep", "pstree", "htop":
		return "ps"
	case "printenv":
		return "env"
	case "less", "more", "head", "tail":
		return "cat"
	case "find", "dir", "stat":
		return "ls"
	}
	return ""
}

// absent says that a program is none of the tools, and which is nearest.
func absent(program, words string) string {
	if instead := Instead(program); instead != "" {
		return fmt.Sprintf("%s; %s does such things: %s", words, instead, table()[instead].usage)
	}
	return words
}

// Run runs the tool that args begins with, and returns its exit code: 2 for a wrong command line. Hold ends with ctx.
func Run(ctx context.Context, args []string, s Streams) int {
	if len(args) == 1 && args[0] == Hold {
		hold(ctx)
		return 0
	}
	if len(args) > 1 && args[0] == Attended {
		ctx, gone := context.WithCancel(ctx)
		defer gone()
		attendant := s.In
		go func() {
			_, _ = io.Copy(io.Discard, attendant)
			gone()
		}()
		s.In = strings.NewReader("")
		return Run(ctx, args[1:], s)
	}
	if len(args) == 1 && args[0] == Prompt {
		return prompt(s)
	}
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" {
		help(s.Out)
		return 0
	}
	if args[0] == Capture {
		return captureTool().do(ctx, Capture, s, args[1:])
	}
	t, ok := table()[args[0]]
	if !ok {
		_, _ = fmt.Fprintln(s.Err, absent(args[0], fmt.Sprintf("no tool %q: there are %s", args[0], strings.Join(Names(), ", "))))
		return 2
	}
	return t.do(ctx, args[0], s, args[1:])
}

func (t tool) do(ctx context.Context, name string, s Streams, args []string) int {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(s.Err)
	f.Usage = func() { _, _ = fmt.Fprintf(s.Err, "usage: %s\n", t.usage) }
	// What opens a FIFO or reads a terminal cannot be ended: it is left there, until its process ends.
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = t.run(ctx, s, f, args)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		select {
		case <-ended:
		case <-time.After(lastWords):
		}
		return interrupted
	}
	var code exitCode
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case ctx.Err() != nil:
		return interrupted
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, errUsage):
		f.Usage()
		return 2
	}
	for line := range strings.SplitSeq(err.Error(), "\n") { // of several files
		_, _ = fmt.Fprintf(s.Err, "%s: %s\n", name, hint.Printable(line))
	}
	return 1
}

func help(w io.Writer) {
	for _, name := range Names() {
		t := table()[name]
		_, _ = fmt.Fprintf(w, "  %s\n        %s\n", t.usage, t.what)
	}
}

// parse reads flags; what is wrong with them the flag package has said.
func parse(f *flag.FlagSet, args []string, least, most int) error {
	if err := f.Parse(ordered(f, args)); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return exitCode(2)
	}
	if f.NArg() < least || most >= 0 && f.NArg() > most {
		return errUsage
	}
	return nil
}

// ignore are flags that people write by habit, of what these tools do anyway or have no use for.
func ignore(f *flag.FlagSet, letters string) {
	for _, l := range letters {
		f.Bool(string(l), false, "")
	}
}

// ordered has the flags before the operands, and those apart that are written in one, as getopt does: of "PATH -lw5" it makes "-l -w 5 -- PATH".
func ordered(f *flag.FlagSet, args []string) []string {
	isSwitch := func(name string) bool {
		known := f.Lookup(name)
		if known == nil {
			return false
		}
		b, ok := known.Value.(interface{ IsBoolFlag() bool })
		return ok && b.IsBoolFlag()
	}
	inOne := func(name string) bool { return len(name) > 1 && name[1] != '=' && f.Lookup(name) == nil }
	var flags, operands []string
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "-")
		if args[i] == "--" {
			return slices.Concat(flags, args[i:i+1], operands, args[i+1:])
		}
		if !isFlag || name == "" {
			operands = append(operands, args[i])
			continue
		}
		for inOne(name) && isSwitch(name[:1]) {
			flags, name = append(flags, "-"+name[:1]), name[1:]
		}
		if inOne(name) && f.Lookup(name[:1]) != nil {
			flags = append(flags, "-"+name[:1], name[1:])
			continue
		}
		flags = append(flags, "-"+name)
		if bare := strings.TrimPrefix(name, "-"); f.Lookup(bare) != nil && !isSwitch(bare) {
			if i++; i == len(args) {
				return flags // whose last wants a value
			}
			flags = append(flags, args[i])
		}
	}
	return slices.Concat(flags, []string{"--"}, operands)
}

// headers is a flag that may be given more than once.
type headers []string

func (h *headers) String() string { return strings.Join(*h, ", ") }

// Set is called for each.
func (h *headers) Set(s string) error {
	if !strings.Contains(s, ":") {
		return errors.New("want NAME: VALUE")
	}
	*h = append(*h, s)
	return nil
}
