package tools

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"bridge/internal/hint"
)

// target is the root of process 1: of the container that is looked at, but where the pod's containers, or the node's, share their processes.
const target = "/proc/1/root"

// prompt reads commands, one a line, until the input ends: the tools, programs of this file system, and cd, exit and help.
func prompt(s Streams) int {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(s.Err, format+"\n", args...) }
	say("tools: %s; help says what they do. No shell: no pipes, variables or patterns; exit or Ctrl-D ends it.", strings.Join(Names(), ", "))
	about(say)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt)
	defer signal.Stop(signals)
	in := &input{r: bufio.NewReader(s.In), read: make(chan typed, 1)}
	code := 0
	for {
		where, _ := os.Getwd()
		_, _ = fmt.Fprintf(s.Err, "%s> ", where)
		line, err := in.line(context.Background())
		words, bad := split(line)
		switch {
		case bad != nil:
			say("%v", bad)
			code = 2
		case len(words) == 0:
		case words[0] == "exit":
			if len(words) > 1 {
				if code, err = strconv.Atoi(words[1]); err != nil || code < 0 || code > 255 {
					say("exit [0 to 255]")
					code = 2
					continue
				}
			}
			return code
		case words[0] == "cd":
			code = 0
			if len(words) != 2 {
				words = []string{"cd", "/"}
			}
			if err := os.Chdir(words[1]); err != nil {
				say("%v", err)
				code = 1
			}
		default:
			code = runLine(words, in, s, signals)
		}
		if err != nil {
			say("")
			return code
		}
	}
}

// input is what is typed, for the prompt and the tools. A tool that ends may leave a read under way: what that brings is for who asks next.
type input struct {
	r    *bufio.Reader
	read chan typed

	mu    sync.Mutex
	under bool // a read is under way
}

type typed struct {
	line string
	err  error
}

// line waits for a line, or for ctx: io.EOF then.
func (in *input) line(ctx context.Context) (string, error) {
	in.mu.Lock()
	if !in.under {
		in.under = true
		go func() {
			line, err := in.r.ReadString('\n')
			in.read <- typed{line, err}
		}()
	}
	in.mu.Unlock()
	select {
	case <-ctx.Done():
		return "", io.EOF
	case t := <-in.read:
		in.mu.Lock()
		in.under = false
		in.mu.Unlock()
		return t.line, t.err
	}
}

// toolInput is what a tool reads, until ctx ends.
type toolInput struct {
	ctx  context.Context // a Read has none
	in   *input
	rest string
	err  error
}

func (t *toolInput) Read(b []byte) (int, error) {
	if t.rest == "" && t.err == nil {
		t.rest, t.err = t.in.line(t.ctx)
	}
	if t.rest == "" {
		return 0, t.err
	}
	n := copy(b, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// runLine runs one command; Ctrl-C ends it, and not the prompt.
func runLine(words []string, in *input, s Streams, signals <-chan os.Signal) int {
	select {
	case <-signals: // of the prompt's
	default:
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan int, 1)
	go func() { done <- runWords(ctx, words, in, s) }()
	for {
		select {
		case code := <-done:
			return code
		case <-signals:
			cancel()
		}
	}
}

func runWords(ctx context.Context, words []string, in *input, s Streams) int {
	if _, ok := table()[words[0]]; ok || words[0] == "help" {
		return Run(ctx, words, Streams{&toolInput{ctx: ctx, in: in}, s.Out, s.Err})
	}
	path, err := exec.LookPath(words[0])
	if err != nil {
		_, _ = fmt.Fprintln(s.Err, absent(words[0], words[0]+": no tool, and no program here"))
		return 127
	}
	// Ctrl-C comes to it from the terminal.
	cmd := exec.Command(path, words[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	default:
		_, _ = fmt.Fprintln(s.Err, err)
		return 126
	}
}

// about says whose files are seen from here, as far as they are not these.
func about(say func(format string, args ...any)) {
	own, err := os.Stat("/")
	theirs, err2 := os.Stat(target + "/")
	name, _ := os.ReadFile("/proc/1/comm")
	first := hint.Printable(strings.TrimSpace(string(name)))
	switch {
	case err != nil:
	case errors.Is(err2, fs.ErrPermission):
		say("Process 1 is %s. Its files are at %s, and may not be read from here: its user is another, or has more rights.", first, target)
	case err2 != nil || os.SameFile(own, theirs):
	default:
		say("Process 1 is %s. Its files are below %s.", first, target)
		if _, err := os.Stat(target + "/bin/sh"); err == nil {
			say("There is a /bin/sh; where that is a container's, bridge exec -it runs it there.")
		}
	}
}

// split parts a line into words as a shell does, by blanks, quotes and backslashes.
func split(line string) (words []string, err error) {
	var word strings.Builder
	open, escaped := false, false
	var quote rune
	for _, r := range strings.TrimRight(line, "\r\n") {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			open, escaped = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			open, quote = true, r
		case r == ' ' || r == '\t':
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			open = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote is not closed")
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}
