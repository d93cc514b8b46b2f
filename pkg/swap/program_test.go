//go:build unix

package swap

import (
	"errors"
	"io"
	"os"
	"strings"
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
			up()
			s.sayProbe(probe.Change{State: probe.State{Kind: probe.Readiness, Result: probe.Failure, Row: 3}}) // restarts nothing
			s.sayProbe(probe.Change{State: probe.State{Kind: probe.Liveness, What: "GET it", Last: "status 503", Result: probe.Failure, Row: 3}})
			up()
			for _, want := range []string{"not ready: ", "liveness: GET it: status 503, 3 times in a row: CMD is restarted, as the kubelet would have done", "ended with " + tt.ended + ": starting it again"} {
				if line := <-said; !strings.Contains(line, want) {
					t.Errorf("it says %q, want %q", line, want)
				}
			}
			<-pass
			(<-pass)(os.Kill)
			if exit := new(child.ExitError); !errors.As(<-ended, &exit) || exit.Code != 137 {
				t.Errorf("the last one has ended with %v", exit)
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
	s.sayProbe(failure)
	s.Program.Restart = true
	s.ending.Store(true)
	s.sayProbe(failure)
	select {
	case <-s.restarting:
		t.Error("it would be restarted")
	default:
	}
	if len(said) != 1 || !strings.Contains(said[0], "(nothing is restarted here)") {
		t.Errorf("%q", said)
	}
}
