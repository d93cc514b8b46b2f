//go:build unix

package swap

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/child"
	"bridge/internal/connect"
	"bridge/internal/probe"
)

// When the kubelet would restart the container the program is ended and started anew, if that is asked for: at SIGTERM, or killed when its time is
// over. The exit code is the last one's.
func TestProgramIsRestartedForItsLiveness(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		ended  string // how the first one has
	}{
		"it ends":           {`trap "exit 4" TERM; echo up; while :; do sleep 0.02; done`, "exit code 4"},
		"it does not":       {`trap "" TERM; echo up; while :; do sleep 0.02; done`, "exit code 137"},
		"it has many parts": {`sh -c 'trap "" TERM; while :; do sleep 0.02; done' & trap "exit 4" TERM; echo up; while :; do sleep 0.02; done`, "exit code 4"},
	} {
		t.Run(name, func(t *testing.T) {
			out, in := io.Pipe()
			said := make(chan string, 10)
			pass := make(chan func(os.Signal), 2) // to the first one and the second
			s := &Swap{Plan: &Plan{grace: 200 * time.Millisecond}, Program: &Program{Restart: true}, lines: &lines{}, Say: func(line string) { said <- line }}
			s.init()
			c := connect.Program{Args: []string{"sh", "-c", tt.script}, Env: os.Environ(), Stdout: in, Outside: true, Grace: s.Plan.grace, OnSignal: func(f func(os.Signal)) {
				if f != nil {
					pass <- f
				}
			}}
			ended := make(chan error)
			go func() { ended <- s.keepProgram(t.Context(), t.Context(), &c) }()
			up := func() {
				t.Helper()
				if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
					t.Fatal(err)
				}
			}
			<-pass
			up()
			s.sayProbe(probe.Change{State: probe.State{Kind: probe.Readiness, Result: probe.Failure, Row: 3}}) // restarts nothing
			s.sayProbe(probe.Change{State: probe.State{Kind: probe.Liveness, What: "GET it", Last: "status 503", Result: probe.Failure, Row: 3}})
			up()
			for _, want := range []string{"not ready: ", "liveness: GET it: status 503, 3 times in a row: CMD is restarted, as the kubelet would have done", "ended with " + tt.ended + ": starting it again"} {
				if line := <-said; !strings.Contains(line, want) {
					t.Errorf("it says %q, want %q", line, want)
				}
			}
			(<-pass)(os.Kill)
			if exit := new(child.ExitError); !errors.As(<-ended, &exit) || exit.Code != 137 {
				t.Errorf("the last one has ended with %v", exit)
			}
		})
	}
}

// Whoever ends bridge while CMD is restarted, or before, has it ended for good, and so do Ctrl-C and Ctrl-\ once it ends.
func TestProgramThatIsToEndIsNotStartedAgain(t *testing.T) {
	const slow = `trap "" TERM HUP INT QUIT USR1 USR2; echo up; while :; do sleep 0.02; done`
	for name, tt := range map[string]struct {
		script        string
		before, after []os.Signal // that it is asked to be restarted
		code          int
		again         bool
	}{
		"SIGTERM meanwhile":                 {script: slow, after: []os.Signal{syscall.SIGTERM}, code: 137},
		"SIGHUP meanwhile":                  {script: slow, after: []os.Signal{syscall.SIGHUP}, code: 137},
		"SIGINT meanwhile":                  {script: slow, after: []os.Signal{os.Interrupt}, code: 137},
		"SIGQUIT meanwhile":                 {script: slow, after: []os.Signal{syscall.SIGQUIT}, code: 137},
		"SIGTERM before":                    {script: slow, before: []os.Signal{syscall.SIGTERM}, code: 137},
		"SIGINT before, which it survives":  {script: slow, before: []os.Signal{os.Interrupt}, code: 137, again: true},
		"SIGQUIT before, which it survives": {script: slow, before: []os.Signal{syscall.SIGQUIT}, code: 137, again: true},
		"others meanwhile":                  {script: slow, after: []os.Signal{syscall.SIGCONT, syscall.SIGUSR1, syscall.SIGUSR2}, code: 137, again: true},
		"the terminal's Ctrl-C":             {script: `trap "exit 130" TERM; echo up; while :; do sleep 0.02; done`, code: 130},
		`the terminal's Ctrl-\`:             {script: `trap "exit 131" TERM; echo up; while :; do sleep 0.02; done`, code: 131},
	} {
		t.Run(name, func(t *testing.T) {
			out, in := io.Pipe()
			pass := make(chan func(os.Signal), 2)
			s := &Swap{Plan: &Plan{}, Program: &Program{Restart: true}, lines: &lines{}, Say: func(string) {}}
			s.init()
			c := connect.Program{Args: []string{"sh", "-c", tt.script}, Env: os.Environ(), Stdout: in, Outside: true, Grace: 200 * time.Millisecond, OnSignal: func(f func(os.Signal)) {
				if f != nil {
					pass <- f
				}
			}}
			ended := make(chan error, 1)
			go func() { ended <- s.keepProgram(t.Context(), t.Context(), &c) }()
			up := func() {
				if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
					t.Error(err)
				}
			}
			first := <-pass
			up()
			for _, sig := range tt.before {
				first(sig)
			}
			if asked := s.askRestart(); asked == slices.Contains(tt.before, os.Signal(syscall.SIGTERM)) {
				t.Errorf("a restart can be: %v", asked)
			}
			for _, sig := range tt.after {
				first(sig)
			}
			if tt.again {
				second := <-pass
				up()
				second(os.Kill)
			}
			if exit := new(child.ExitError); !errors.As(<-ended, &exit) || exit.Code != tt.code {
				t.Errorf("it has ended with %v, want %d", exit, tt.code)
			}
		})
	}
}

// A container has the time to end that its pod gives it, within bounds.
func TestGraceIsThePods(t *testing.T) {
	for seconds, want := range map[int64]time.Duration{-1: 30 * time.Second, 0: 2 * time.Second, 10: 10 * time.Second, 3600: 30 * time.Second} {
		pod := corev1.PodSpec{TerminationGracePeriodSeconds: &seconds}
		if seconds < 0 {
			pod.TerminationGracePeriodSeconds = nil
		}
		p := &Plan{}
		if p.probeLikeThePod(corev1.Container{}, pod, Options{}); p.grace != want {
			t.Errorf("%d: %v, want %v", seconds, p.grace, want)
		}
	}
}

// Without the flag a liveness that fails is said alone, and what fails while all is given back is nobody's affair.
func TestNothingIsRestartedUnasked(t *testing.T) {
	failure := probe.Change{State: probe.State{Kind: probe.Liveness, Result: probe.Failure, Row: 1}}
	var said []string
	s := &Swap{Plan: &Plan{}, Program: &Program{}, Say: func(line string) { said = append(said, line) }}
	s.init()
	s.restarts.pass = func(os.Signal) { t.Error("it would be restarted") }
	s.sayProbe(failure)
	s.Program.Restart = true
	s.ending.Store(true)
	s.sayProbe(failure)
	if len(said) != 1 || !strings.Contains(said[0], "(nothing is restarted here)") {
		t.Errorf("%q", said)
	}
}

// The first time that CMD is ready is no return to that; a process that bridge has found ready comes back from the first failure on.
func TestReadyAgainIsSaidOfWhatWasReady(t *testing.T) {
	readiness := func(r probe.Result) probe.Change {
		return probe.Change{State: probe.State{Kind: probe.Readiness, What: "GET it", Last: "status 200", Result: r, Row: 1}}
	}
	for want, program := range map[string]*Program{"ready: GET it: status 200": {}, "ready again: GET it: status 200": nil} {
		var said []string
		s := &Swap{Plan: &Plan{}, Program: program, Say: func(line string) { said = append(said, line) }}
		s.init()
		for _, r := range []probe.Result{probe.Success, probe.Failure, probe.Success} {
			s.sayProbe(readiness(r))
		}
		if len(said) != 3 || said[0] != want || said[2] != "ready again: GET it: status 200" {
			t.Errorf("%q", said)
		}
	}
}
