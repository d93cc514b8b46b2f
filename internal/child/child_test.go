//go:build linux

package child

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// parentEnv makes the test binary a bridge that runs a shell with this script.
const parentEnv = "BRIDGE_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentEnv) != "" {
		p, err := (&Command{Args: []string{"sh", "-c", os.Getenv(parentEnv)}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}).Start()
		if err != nil {
			os.Exit(1)
		}
		os.Exit(p.Wait(context.Background()).Code)
	}
	goleak.VerifyTestMain(m)
}

// output is written by the program and read by the test, which is woken.
type output struct {
	mu    sync.Mutex
	b     bytes.Buffer
	lines chan string
}

func newOutput() *output { return &output{lines: make(chan string, 100)} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	for {
		line, err := o.b.ReadString('\n')
		if err != nil {
			o.b.WriteString(line)
			return len(p), nil
		}
		o.lines <- strings.TrimSpace(line)
	}
}

func start(t *testing.T, o *output, script string, grace time.Duration) *Process {
	t.Helper()
	p, err := (&Command{Args: []string{"sh", "-c", script}, Env: os.Environ(), Stdout: o, Stderr: os.Stderr, Grace: grace}).Start()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExitCodes(t *testing.T) {
	for script, code := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -KILL $$": 137, "kill -TERM $$": 143, "exit 255": 255} {
		if exit := start(t, newOutput(), script, 0).Wait(t.Context()); exit.Code != code {
			t.Errorf("%q: %d, want %d", script, exit.Code, code)
		}
	}
	if _, err := (&Command{Args: []string{"/none"}}).Start(); err == nil {
		t.Error("what is not there was started")
	}
	if err := (&Command{Args: []string{"no-such-program"}}).Find(); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("%v", err)
	}
}

// Away from a terminal signals reach the program, and all that it has started.
func TestSignalsReachTheProgramAndItsChildren(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2} {
		if signal.Ignored(sig) {
			continue // under nohup: a shell cannot catch what was ignored before it
		}
		o := newOutput()
		// The inner shell is not replaced by exec, and the outer one passes nothing on.
		p := start(t, o, `trap 'echo outer' INT TERM HUP QUIT USR1 USR2; sh -c 'trap "echo inner; exit 1" INT TERM HUP QUIT USR1 USR2; echo ready; while :; do sleep 0.05; done'; exit 5`, time.Hour)
		if line := <-o.lines; line != "ready" {
			t.Fatal(line)
		}
		p.Signal(sig)
		if exit := p.Wait(t.Context()); exit.Code != 5 {
			t.Errorf("%v: exit code %d", sig, exit.Code)
		}
		got := map[string]bool{<-o.lines: true, <-o.lines: true}
		if !got["inner"] || !got["outer"] {
			t.Errorf("%v reached %v", sig, got)
		}
		p.Signal(sig) // is nobody's any more
	}
}

// SIGINT, SIGQUIT and SIGUSR1 may be answered otherwise than by ending; SIGTERM may be ignored for the grace period.
func TestAProgramThatDoesNotEndIsKilled(t *testing.T) {
	o := newOutput()
	p := start(t, o, `trap '' TERM; trap 'echo no' INT QUIT USR1; echo ready; while :; do sleep 0.05; done`, 50*time.Millisecond)
	<-o.lines
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGQUIT, syscall.SIGUSR1} {
		p.Signal(sig)
		if line := <-o.lines; line != "no" {
			t.Fatal(line)
		}
	}
	if p.killer != nil {
		t.Error("it would be killed all the same")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if exit := p.Wait(ctx); exit.Code != 137 {
		t.Errorf("exit code %d", exit.Code)
	}
}

// A program does not outlive a bridge that is killed.
func TestKilledWithItsBridge(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), parentEnv+"=echo $$; exec sleep 1000")
	o := newOutput()
	cmd.Stdout = o
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(<-o.lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the test is worth nothing: %v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // returns when nobody has its standard output any more
	for deadline := time.Now().Add(30 * time.Second); runs(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it still runs")
		}
	}
}

// runs tells whether there is such a process, and not only nobody who asks for its exit code.
func runs(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// What a program leaves of its group ends soon after it: at SIGTERM, even when it is stopped, or else after the grace period.
func TestWhatAProgramLeavesBehindEnds(t *testing.T) {
	for name, left := range map[string]string{
		"runs":            `sleep 1000`,
		"is stopped":      `kill -STOP $$; sleep 1000`,
		"ignores SIGTERM": `trap "" TERM; while :; do sleep 0.05; done`,
	} {
		o := newOutput()
		p := start(t, o, `sh -c 'echo $$; `+left+`' & read x; exit 3`, 100*time.Millisecond)
		pid, err := strconv.Atoi(<-o.lines)
		if err != nil {
			t.Fatal(err)
		}
		if exit := p.Wait(t.Context()); exit.Code != 3 {
			t.Errorf("%s: exit code %d", name, exit.Code)
		}
		if runs(pid) {
			t.Errorf("%s: it is still there", name)
		}
	}
}
