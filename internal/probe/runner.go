package probe

import (
	"context"
	"strings"
	"sync"
	"time"
)

const (
	// absentPoll is how soon a port is asked again at which nobody listens.
	absentPoll = 200 * time.Millisecond
	// newPoll is how soon a container is asked again that was not ready yet.
	newPoll = time.Second
)

// Runner runs the probes of one container. NewRunner makes one.
type Runner struct {
	mu      sync.Mutex
	workers []*worker
	say     func(Change)
	running bool      // somebody listens
	since   time.Time // it is or it is not
	settled bool      // it has been ready, since
	changed chan struct{}
}

// worker is one probe, and what became of it. The Runner's mutex guards it.
type worker struct {
	*Probe
	result Result // as the kubelet has it
	since  time.Time
	last   Outcome
	gave   Result // last's own; last has the one of the row that it does not break
	at     time.Time
	killed time.Time // as State's Restart
	row    int       // how often in a row Result was last's
	due    time.Time // when a failure counts again
	kick   chan struct{}
}

// State is what the kubelet would know of a probe.
type State struct {
	Kind Kind   `json:"kind"`
	What string `json:"what"`
	// Result changes as the thresholds say. Before the first run it is failure for readiness, success for liveness, and unknown
	// for startup.
	Result Result    `json:"result"`
	Since  time.Time `json:"since,omitzero"`
	// Last is what the last run gave, in words; empty before it. Row is how often in a row its result came.
	Last string `json:"last,omitempty"`
	Row  int    `json:"inARow,omitempty"`
	// LastResult and LastAt are that run's.
	LastResult Result    `json:"lastResult,omitempty"`
	LastAt     time.Time `json:"lastAt,omitzero"`
	// Restart is when the kubelet would have restarted the container last, for this probe; zero if it would not have since that began.
	Restart time.Time `json:"kubeletRestart,omitzero"`

	prints bool // the Probe's
}

// ForOthers is the state without what a command has printed, which is for this machine alone.
func (s State) ForOthers() State {
	if s.prints {
		s.Last, _, _ = strings.Cut(s.Last, ": ")
	}
	return s
}

// Change is a probe whose Result is another now.
type Change struct {
	State
	Time time.Time
	// Absent is whether nobody listens any more: all probes begin anew.
	Absent bool
}

// NewRunner is to run these probes.
func NewRunner(probes []*Probe) *Runner {
	r := &Runner{changed: make(chan struct{})}
	for _, p := range probes {
		r.workers = append(r.workers, &worker{Probe: p, result: initial(p.Kind), kick: make(chan struct{}, 1)})
	}
	return r
}

// initial is a probe's result before the first run.
func initial(k Kind) Result {
	switch k {
	case Readiness:
		return Failure
	case Liveness:
		return Success
	}
	return Unknown
}

// OnChange has say called with every change from now on, one at a time and in order.
func (r *Runner) OnChange(say func(Change)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.say = say
}

// Has tells whether there is such a probe.
func (r *Runner) Has(k Kind) bool { return r.worker(k) != nil }

func (r *Runner) worker(k Kind) *worker {
	for _, w := range r.workers {
		if w.Kind == k {
			return w
		}
	}
	return nil
}

// Run runs the probes until ctx is done. When it is called again it goes on where it was.
func (r *Runner) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, w := range r.workers {
		wg.Go(func() { r.work(ctx, w) })
	}
	wg.Wait()
}

// Await runs the probes until the container is ready (nil) or ctx is done. waiting gets what is not yet so, each time that
// changes.
func (r *Runner) Await(ctx context.Context, waiting func(State)) error {
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { r.Run(running) })
	var said State
	for {
		states, ready, changed := r.Watch()
		if ready {
			return nil
		}
		for _, s := range states {
			if s.Kind == Liveness || s.Result == Success || s.Last == "" {
				continue
			}
			if s.Kind != said.Kind || s.Last != said.Last {
				said = s
				waiting(s)
			}
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Watch returns what is known, startup first, whether the container is ready, and a channel that is closed when there is news.
func (r *Runner) Watch() (states []State, ready bool, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		states = append(states, w.state())
	}
	return states, r.ready(), r.changed
}

func (w *worker) state() State {
	return State{Kind: w.Kind, What: w.What, Result: w.result, Since: w.since, Last: w.last.Why, Row: w.row,
		LastResult: w.gave, LastAt: w.at, Restart: w.killed, prints: w.prints}
}

// Hurry runs the readiness probe now: somebody has seen that the process does not answer.
func (r *Runner) Hurry() {
	if w := r.worker(Readiness); w != nil {
		w.hurry()
	}
}

func (w *worker) hurry() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// started and ready are the container's. mu is held.
func (r *Runner) started() bool {
	w := r.worker(Startup)
	return w == nil || w.result == Success
}

func (r *Runner) ready() bool {
	w := r.worker(Readiness)
	return len(r.workers) == 0 || r.running && r.started() && (w == nil || w.result == Success)
}

// held is whether w is not run before something else has happened: startup goes first, and is run until it succeeds.
func (r *Runner) held(w *worker) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started() == (w.Kind == Startup)
}

// work runs one probe until ctx is done.
func (r *Runner) work(ctx context.Context, w *worker) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.kick:
		}
		if r.held(w) {
			continue // a kick ends it
		}
		began := time.Now()
		out := w.run(ctx)
		if ctx.Err() != nil {
			return
		}
		timer.Reset(r.observe(w, began, out))
	}
}

// observe counts a run, and returns the time until the next one.
func (r *Runner) observe(w *worker, began time.Time, out Outcome) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if !began.Before(r.since) {
		w.gave, w.at = out.Result, now
	}
	switch {
	case began.Before(r.since):
		// It asked the process of before.
	case out.Absent:
		w.last = out
		r.absent(w)
	default:
		if !r.running {
			r.running, r.since = true, began
			for _, w := range r.workers {
				w.due = began.Add(w.InitialDelay)
			}
		}
		r.count(w, began, out)
	}
	switch {
	case !r.running:
		return absentPoll
	case !r.settled && w.Kind != Liveness:
		return min(newPoll, w.due.Sub(now))
	}
	return w.due.Sub(now)
}

// Ended tells that the process has been ended, why in a few words: whoever answers next is another container.
func (r *Runner) Ended(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.running {
		return
	}
	w := r.worker(Readiness)
	if w == nil {
		w = r.workers[0]
	}
	w.last, w.gave, w.at = Outcome{Result: Failure, Why: why, Absent: true}, Failure, time.Now()
	r.absent(w)
	w.hurry()
}

// absent is that nobody listens: until somebody does there is no container. mu is held.
func (r *Runner) absent(found *worker) {
	if !r.running {
		r.news()
		return
	}
	r.running, r.settled, r.since = false, false, time.Now()
	for _, w := range r.workers {
		w.result, w.since, w.row, w.killed = initial(w.Kind), r.since, 0, time.Time{}
		if w != found {
			w.hurry()
		}
	}
	r.tell(Change{State: found.state(), Time: r.since, Absent: true})
}

// count does what the kubelet does with a run's result. mu is held.
func (r *Runner) count(w *worker, began time.Time, out Outcome) {
	before, turn := w.last.Result, !began.Before(w.due)
	w.last = out
	if turn {
		w.due = began.Add(w.Period)
	}
	if out.Result == Unknown {
		w.last.Result = before // it does not break a row
		r.news()
		return
	}
	if out.Result != before {
		w.row = 0
	}
	if out.Result == Failure && !turn {
		r.news()
		return
	}
	w.row++
	if out.Result == Failure && w.row < w.FailureThreshold || out.Result == Success && w.row < w.SuccessThreshold || out.Result == w.result {
		r.news()
		return
	}
	w.result, w.since = out.Result, time.Now()
	if w.result == Failure && w.Kind != Readiness {
		w.killed = w.since
	}
	if w.Kind == Startup && w.result == Success {
		for _, other := range r.workers {
			other.hurry()
		}
	}
	r.settled = r.settled || r.ready()
	r.tell(Change{State: w.state(), Time: w.since})
}

func (r *Runner) tell(c Change) {
	if r.say != nil {
		r.say(c)
	}
	r.news()
}

func (r *Runner) news() {
	close(r.changed)
	r.changed = make(chan struct{})
}
