//go:build linux

package child

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/test/pty"
)

// screen is a terminal's other end: what a person sees and types.
type screen struct {
	t     *testing.T
	f     *os.File
	seen  chan string // pieces of what is written
	sofar string
}

// at starts a program as the head of a session on a terminal of its own.
func at(t *testing.T, script string, args ...string) *screen {
	t.Helper()
	ptmx, tty := pty.Open(t)
	defer tty.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "ENV=", "PS1=prompt ", "B="+os.Args[0])
	if script != "" {
		cmd.Env = append(cmd.Env, parentEnv+"="+script)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, f: ptmx, seen: make(chan string, 1000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := ptmx.Read(buf)
			s.seen <- string(buf[:n])
			if err != nil {
				return // nobody has the terminal any more
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		<-read // the hang-up has ended all who had it
		_ = ptmx.Close()
	})
	return s
}

func (s *screen) types(text string) {
	s.t.Helper()
	if _, err := s.f.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// shows waits for text, and forgets what came before it.
func (s *screen) shows(text string) {
	s.t.Helper()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(s.sofar, text) {
		select {
		case more := <-s.seen:
			s.sofar += more
		case <-deadline:
			s.t.Fatalf("no %q in %q", text, s.sofar)
		}
	}
	_, s.sofar, _ = strings.Cut(s.sofar, text)
}

const (
	ctrlC = "\x03"
	ctrlZ = "\x1a"
)

// bridge is how the shell at the terminal starts one that runs script.
func bridge(script string) string { return parentEnv + "='" + script + "' $B" }

func TestJobControl(t *testing.T) {
	s := at(t, "", "sh", "-i")
	s.shows("prompt")
	// The words are cut so that the echo of what is typed is not taken for what is written.
	s.types(bridge(`echo rea""dy; read x; echo got-$x; exit 7`) + "\n")
	s.shows("ready")
	s.types(ctrlZ)
	s.shows("Stopped")
	s.types("fg\n")
	s.types("hello\n")
	s.shows("got-hello")
	s.types("echo code-$?\n")
	s.shows("code-7")

	// Into the background and out of it while it runs: then it has the terminal again.
	back := filepath.Join(t.TempDir(), "back")
	s.types(bridge(`echo rea""dy; until [ -e `+back+` ]; do :; done; read x; echo got-$x; exit 8`) + "\n")
	s.shows("ready")
	s.types(ctrlZ)
	s.shows("Stopped")
	s.types("bg\n")
	s.types("echo the-shell-$((40 + 2))\n")
	s.shows("the-shell-42")
	s.types("fg\n")
	s.shows("${B}") // the shell says what it has brought back
	if err := os.WriteFile(back, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.types("again\n")
	s.shows("got-again")
	s.types("echo code-$?\n")
	s.shows("code-8")
}

// Ctrl-C is the program's alone: the bridge of this test would end of it.
func TestCtrlC(t *testing.T) {
	s := at(t, "", "sh", "-i")
	s.shows("prompt")
	s.types(bridge(`trap "echo cau\"\"ght; exit 5" INT; echo rea""dy; while :; do sleep 0.05; done`) + "\n")
	s.shows("ready")
	s.types(ctrlC)
	s.shows("caught")
	s.types("echo code-$?\n")
	s.shows("code-5")
	s.types("$B/none || echo still-$((40 + 2))\n")
	s.shows("still-42")
}

// One that ends in the background leaves the terminal to the shell.
func TestEndInTheBackground(t *testing.T) {
	s := at(t, "", "sh", "-i")
	s.shows("prompt")
	s.types(bridge(`echo rea""dy; kill -STOP $$; echo we""nt on`) + "\n")
	s.shows("ready")
	s.shows("Stopped")
	s.types("bg\n")
	s.shows("went on")
	s.types("wait; echo shell-$((40 + 2))\n")
	s.shows("shell-42")
}

// In a pipeline the terminal stays with the others in it, until the program asks for it.
func TestPipeline(t *testing.T) {
	s := at(t, "", "sh", "-i")
	s.shows("prompt")
	s.types(bridge(`echo rea""dy; read x; echo got-$x`) + " | cat\n")
	s.shows("ready")
	s.types("hello\n")
	s.shows("got-hello")
	s.shows("prompt")
}

// Where there is no shell that could have it continue, a program that is stopped goes on.
func TestNobodyToContinueIt(t *testing.T) {
	s := at(t, `trap "echo went on; exit" CONT; echo ready; while :; do :; done`, os.Args[0])
	s.shows("ready")
	s.types(ctrlZ)
	s.shows("went on")
}
