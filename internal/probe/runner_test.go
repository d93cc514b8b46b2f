package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// play is a probe whose runs give, one letter each, Success, Failure, Unknown or Absent; the last letter goes on. It keeps
// when it was run.
type play struct {
	Probe
	letters string
	tries   int // of the Unknown that is being given
	start   time.Time
	runs    []string
}

func (p *play) check(context.Context) Outcome {
	letter := p.letters[0]
	if p.tries++; letter == 'U' && p.tries < maxTries {
		return Outcome{} // it is tried again at once
	}
	p.tries = 0
	p.runs = append(p.runs, time.Since(p.start).String())
	if len(p.letters) > 1 {
		p.letters = p.letters[1:]
	}
	switch letter {
	case 'S':
		return Outcome{Result: Success, Why: "good"}
	case 'F':
		return Outcome{Result: Failure, Why: "bad"}
	case 'A':
		return Outcome{Result: Failure, Why: "connection refused", Absent: true}
	}
	return Outcome{}
}

// perform runs the probes for a minute and a half, and returns the changes, "readiness success 20s".
func perform(t *testing.T, plays ...*play) (changes []string, r *Runner) {
	t.Helper()
	start := time.Now()
	var probes []*Probe
	for _, p := range plays {
		p.start, p.Check = start, p.check
		p.Period, p.Timeout = cmp.Or(p.Period, 10*time.Second), time.Second
		p.SuccessThreshold, p.FailureThreshold = cmp.Or(p.SuccessThreshold, 1), cmp.Or(p.FailureThreshold, 3)
		probes = append(probes, &p.Probe)
	}
	r = NewRunner(probes)
	r.OnChange(func(c Change) {
		text := fmt.Sprintf("%s %v %v", c.Kind, c.Result, c.Time.Sub(start))
		if c.Absent {
			text += " absent"
		}
		if r.ready() {
			text += " ready"
		}
		changes = append(changes, text)
	})
	ctx, stop := context.WithTimeout(t.Context(), 95*time.Second)
	defer stop()
	r.Run(ctx)
	return changes, r
}

// What the kubelet would have done is told with its time, until another container has begun, and what the last run gave with its own.
func TestWhatTheKubeletWouldHaveDone(t *testing.T) {
	for name, tt := range map[string]struct {
		play
		want string // after the minute and a half
	}{
		"liveness, and it is good again": {play{Probe: Probe{Kind: Liveness}, letters: "SFFFS"}, "success, would have been restarted at 30s; success at 1m30s"},
		"liveness, twice":                {play{Probe: Probe{Kind: Liveness}, letters: "FFFSFFFS"}, "success, would have been restarted at 1m0s; success at 1m30s"},
		"startup":                        {play{Probe: Probe{Kind: Startup}, letters: strings.Repeat("F", 25) + "S"}, "success, would have been restarted at 20s; success at 25s"},
		"readiness restarts nothing":     {play{Probe: Probe{Kind: Readiness}, letters: "SFFFF"}, "failure; failure at 1m30s"},
		"not often enough":               {play{Probe: Probe{Kind: Liveness}, letters: "FFSFU"}, "success; unknown at 1m30s"},
		"it has ended, and is back":      {play{Probe: Probe{Kind: Liveness}, letters: "FFFAS"}, "success; success at 1m30.2s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, start := tt.play, time.Now()
				_, r := perform(t, &p)
				states, _, _ := r.Watch()
				s := states[0]
				got := s.Result.String()
				if !s.Restart.IsZero() {
					got += fmt.Sprintf(", would have been restarted at %v", s.Restart.Sub(start))
				}
				if got += fmt.Sprintf("; %v at %v", s.LastResult, s.LastAt.Sub(start)); got != tt.want {
					t.Errorf("%q, want %q", got, tt.want)
				}
			})
		})
	}
}

// A process that has been ended is nobody from then on, and what its probes have counted is nothing to the next one, also if that is there before
// anybody has looked.
func TestTheNextProcessBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		startup := &play{Probe: Probe{Kind: Startup}, letters: "S"}
		liveness := &play{Probe: Probe{Kind: Liveness, InitialDelay: 5 * time.Second}, letters: "F"}
		start := time.Now()
		var probes []*Probe
		for _, p := range []*play{startup, liveness} {
			p.start, p.Check, p.Period, p.Timeout, p.SuccessThreshold, p.FailureThreshold = start, p.check, 10*time.Second, time.Second, 1, 3
			probes = append(probes, &p.Probe)
		}
		r := NewRunner(probes)
		r.Ended("there was none")
		var changes []string
		r.OnChange(func(c Change) {
			changes = append(changes, fmt.Sprintf("%s %v %v %s", c.Kind, c.Result, c.Time.Sub(start), c.Last))
		})
		ctx, stop := context.WithTimeout(t.Context(), 70*time.Second)
		defer stop()
		time.AfterFunc(33*time.Second, func() { r.Ended("it is restarted") })
		r.Run(ctx)
		want := []string{
			"startup success 0s good", "liveness failure 25s bad",
			"startup unknown 33s it is restarted", "startup success 33s good", "liveness failure 58s bad",
		}
		if !slices.Equal(changes, want) {
			t.Errorf("%q, want %q", changes, want)
		}
	})
}

// What the kubelet's documentation and code say of one probe's thresholds, results and delays; times are of the runs that decide.
func TestThresholds(t *testing.T) {
	for name, tt := range map[string]struct {
		play
		want []string
	}{
		"readiness begins as failure, one success is enough": {play{letters: "S"}, []string{"readiness success 0s ready"}},
		"less than the threshold changes nothing":            {play{letters: "SFFSFFSFFS"}, []string{"readiness success 0s ready"}},
		"the threshold in a row does": {play{letters: "SFFSFFFFS"},
			[]string{"readiness success 0s ready", "readiness failure 1m0s", "readiness success 1m20s ready"}},
		"a threshold of one": {play{letters: "SFSF", Probe: Probe{FailureThreshold: 1}},
			[]string{"readiness success 0s ready", "readiness failure 10s", "readiness success 20s ready", "readiness failure 30s"}},
		"successes have a threshold too, and a failure breaks their row": {play{letters: "SSFFFSFSS", Probe: Probe{SuccessThreshold: 2}},
			// The second comes out of turn: a container that was never ready is not kept waiting.
			[]string{"readiness success 1s ready", "readiness failure 30s", "readiness success 1m10s ready"}},
		"unknown changes nothing, and does not break a row": {play{letters: "SUFUFUFUS"},
			[]string{"readiness success 0s ready", "readiness failure 1m0s", "readiness success 1m20s ready"}},
		"failures out of turn do not count": {play{letters: "FFFFFS"}, []string{"readiness success 5s ready"}},
		"a success before the initial delay counts": {play{letters: "FFS", Probe: Probe{InitialDelay: 30 * time.Second}},
			[]string{"readiness success 2s ready"}},

		"liveness begins as success": {play{Probe: Probe{Kind: Liveness}, letters: "S"}, nil},
		"liveness fails once, and is good again": {play{Probe: Probe{Kind: Liveness}, letters: "FFFFFFFS"},
			[]string{"liveness failure 20s ready", "liveness success 1m10s ready"}},
		"liveness counts anew after it was good": {play{Probe: Probe{Kind: Liveness}, letters: "FFFSFFFS"},
			[]string{"liveness failure 20s ready", "liveness success 30s ready", "liveness failure 1m0s ready", "liveness success 1m10s ready"}},
		"liveness does not count before its initial delay": {play{Probe: Probe{Kind: Liveness, InitialDelay: 15 * time.Second}, letters: "F"},
			[]string{"liveness failure 35s ready"}},

		"startup fails at its threshold, and goes on": {play{Probe: Probe{Kind: Startup}, letters: strings.Repeat("F", 25) + "S"},
			[]string{"startup failure 20s", "startup success 25s ready"}},

		"who is not there is no container, and its failures are none": {play{letters: "AAAAAS"}, []string{"readiness success 1s ready"}},
		"who goes is not ready at once": {play{letters: "SSAAAAAS"},
			[]string{"readiness success 0s ready", "readiness failure 20s absent", "readiness success 21s ready"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if tt.Kind == "" {
					tt.Kind = Readiness
				}
				p := tt.play
				if got, _ := perform(t, &p); !slices.Equal(got, tt.want) {
					t.Errorf("changes %q\nwant    %q\nruns at %v", got, tt.want, p.runs)
				}
			})
		})
	}
}

// Readiness and liveness wait for startup, which ends with its success; who comes back is a new container.
func TestStartupGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		startup := &play{Probe: Probe{Kind: Startup, Period: 5 * time.Second}, letters: "FFSFS"}
		readiness := &play{Probe: Probe{Kind: Readiness}, letters: "SSASSSSSSSS"}
		liveness := &play{Probe: Probe{Kind: Liveness, Period: 30 * time.Second}, letters: "S"}
		changes, _ := perform(t, startup, readiness, liveness)
		want := []string{
			"startup success 2s", "readiness success 2s ready",
			"readiness failure 22s absent", "startup success 23s", "readiness success 23s ready",
		}
		if !slices.Equal(changes, want) {
			t.Errorf("changes %q, want %q", changes, want)
		}
		for _, tt := range []struct {
			p    *play
			want []string
		}{
			{startup, []string{"0s", "1s", "2s", "22s", "23s"}},
			{readiness, []string{"2s", "12s", "22s", "23s", "33s", "43s", "53s", "1m3s", "1m13s", "1m23s", "1m33s"}},
			{liveness, []string{"2s", "23s", "53s", "1m23s"}},
		} {
			if !slices.Equal(tt.p.runs, tt.want) {
				t.Errorf("%s was run at %q, want %q", tt.p.Kind, tt.p.runs, tt.want)
			}
		}
	})
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{Probe: Probe{Kind: Readiness, What: "GET it", Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}, letters: "AAFFSFFFS", start: time.Now()}
		p.Check = p.check
		r := NewRunner([]*Probe{&p.Probe})
		var waits []string
		if err := r.Await(t.Context(), func(s State) { waits = append(waits, s.What+": "+s.Last) }); err != nil {
			t.Fatal(err)
		}
		if want := []string{"GET it: connection refused", "GET it: bad"}; !slices.Equal(waits, want) {
			t.Errorf("waited for %q, want %q", waits, want)
		}
		// Run goes on from there, with a run at once: of three failures two count.
		r.OnChange(func(c Change) { t.Errorf("a change: %+v", c) })
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		r.Run(ctx)
		if states, ready, _ := r.Watch(); !ready || len(states) != 1 || states[0].Result != Success || states[0].Row < 2 {
			t.Errorf("in the end ready is %v, %+v", ready, states)
		}
	})
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{Probe: Probe{Kind: Startup, Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}, letters: "F", start: time.Now()}
		p.Check = p.check
		ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
		defer stop()
		if err := NewRunner([]*Probe{&p.Probe}).Await(ctx, func(State) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err %v", err)
		}
		if err := NewRunner(nil).Await(ctx, func(State) {}); err != nil {
			t.Errorf("without a probe: %v", err)
		}
	})
}

// A caller that was refused does not wait for the next turn.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &play{Probe: Probe{Kind: Readiness, Period: time.Hour, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}, letters: "SAS", start: time.Now()}
		p.Check = p.check
		r := NewRunner([]*Probe{&p.Probe})
		absent := make(chan Change, 1)
		r.OnChange(func(c Change) {
			if c.Absent {
				absent <- c
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Run(ctx); close(ended) }()
		synctest.Wait()
		if _, ready, _ := r.Watch(); !ready {
			t.Error("not ready after a success")
		}
		r.Hurry()
		<-absent
		if took := time.Since(p.start); took != 0 {
			t.Errorf("it took %v", took)
		}
		stop()
		<-ended
	})
}

// What a command has printed is for this machine alone.
func TestStateForOthers(t *testing.T) {
	for prints, want := range map[bool]string{true: "exit status 1", false: "exit status 1: hunter2"} {
		s := State{Last: "exit status 1: hunter2", prints: prints}
		if got := s.ForOthers().Last; got != want {
			t.Errorf("prints %v: %q", prints, got)
		}
	}
}
