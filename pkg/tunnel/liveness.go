package tunnel

import (
	"sync/atomic"
	"time"
)

// The times of SPEC.md section 3.
const (
	pingEvery  = 5 * time.Second
	deadAfter  = 15 * time.Second // without an answer
	freshAfter = 30 * time.Second // before the first answer: the other end may still be starting
	wakeSlack  = 2 * time.Second  // a timer this late means that we did not run
	wakeGrace  = 5 * time.Second  // and then the other end gets this long to answer
)

// liveness decides whether a session is dead. It only compares times: the session reads the clock,
// pings, and tells it of answers.
type liveness struct {
	start    time.Time
	answered atomic.Int64 // nanoseconds after start of the last answer; 0: none
	grace    time.Time    // not dead before; set when we were not running
}

// answer notes that the other end answered. Safe for concurrent use with everything.
func (l *liveness) answer(now time.Time) { l.answered.Store(max(1, int64(now.Sub(l.start)))) }

// due is when the session will be dead if nothing is heard until then.
func (l *liveness) due() time.Time {
	due := l.start.Add(freshAfter)
	if a := l.answered.Load(); a > 0 {
		due = l.start.Add(time.Duration(a) + deadAfter)
	}
	if l.grace.After(due) {
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

// last is when the last answer came, or when the session started.
func (l *liveness) last() time.Time { return l.start.Add(time.Duration(l.answered.Load())) }
