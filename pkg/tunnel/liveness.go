package tunnel

import (
	"sync/atomic"
	"time"
)

// The times of SPEC.md section 5.
const (
	pingEvery  = 5 * time.Second
	deadAfter  = 15 * time.Second // without an answer
	freshAfter = 30 * time.Second // before the first answer: the other end may still be starting
	wakeSlack  = 2 * time.Second  // a timer this late means that we did not run
	wakeGrace  = 5 * time.Second  // and then the other end gets this long to answer
	clockEvery = time.Second      // how often the clocks are compared
)

// liveness decides whether a link is dead. It only compares times: the session reads the clock,
// pings, and tells it of answers.
type liveness struct {
	start    time.Time
	answered atomic.Int64 // nanoseconds after start of the last answer; 0: none
	grace    time.Time    // not dead before; set when we were not running
	asleep   time.Time    // when we woke from being suspended; an answer from before proves nothing
}

// answer notes that the other end answered. Safe for concurrent use with everything.
func (l *liveness) answer(now time.Time) { l.answered.Store(max(1, int64(now.Sub(l.start)))) }

// due is when the link will be dead if nothing is heard until then.
func (l *liveness) due() time.Time {
	due := l.start.Add(freshAfter)
	if a := l.answered.Load(); a > 0 {
		due = l.start.Add(time.Duration(a) + deadAfter)
	}
	if l.grace.After(due) || !l.asleep.IsZero() && l.last().Before(l.asleep) {
		return l.grace
	}
	return due
}

// check is called when a timer set for planned fires at now. Waking late, the time that we did not
// run says nothing about the other end: it gets a grace, and woke tells the caller to ping at once.
func (l *liveness) check(planned, now time.Time) (dead, woke bool) {
	if now.Before(l.due()) {
		return false, false
	}
	if now.Sub(planned) > wakeSlack {
		l.grace = now.Add(wakeGrace)
		return false, true
	}
	return true, false
}

// woke is told when clocks show that we were suspended: until now the other end had no chance to answer, and from
// now on it gets a grace, but no more, so that a path which did not survive is soon replaced.
func (l *liveness) woke(now time.Time) {
	if l.answered.Load() == 0 {
		l.answered.Store(1)
	}
	l.grace = now.Add(wakeGrace)
	l.asleep = now
}

// last is when the last answer came, or when the link began.
func (l *liveness) last() time.Time { return l.start.Add(time.Duration(l.answered.Load())) }

// clocks notices that the machine was suspended: timers and the monotonic clock stood still, and the time of
// day went on.
type clocks struct{ last time.Time }

// jumped says whether the time of day went on by more than we were running since the last call.
func (c *clocks) jumped(now time.Time) bool {
	last := c.last
	c.last = now
	if last.IsZero() {
		return false
	}
	return suspended(now.Sub(last), now.Round(0).Sub(last.Round(0)))
}

func suspended(ran, passed time.Duration) bool { return passed-ran > wakeSlack }
