package tunnel

import (
	"fmt"
	"sync"
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

// What makes a link that answers a bad one. An echo is what a small request waits at least, so these are times at which a
// person notices.
const (
	slowEcho   = 500 * time.Millisecond // an echo that takes longer is slow,
	slowFactor = 4                      // if it also takes so many times the link's shortest: the path may be long
	slowAfter  = 2                      // so many slow ones in a row make the link degraded,
	fastAfter  = 3                      // and so many fast ones good again
	silentFor  = 3 * time.Second        // an echo that is late by this makes it degraded at once
)

// quality measures how long pings take to be answered: a queue, or packets that are lost and sent again, on the whole
// way to the other end. Like liveness it only compares times. Safe for concurrent use.
type quality struct {
	mu         sync.Mutex
	base       time.Time     // what an echo counts from
	start      time.Time     // of the link: earlier pings say nothing of it
	waiting    time.Time     // since when a ping waits for its answer; zero: none does
	last       time.Time     // when the last ping was sent
	looked     time.Time     // when look was called last
	best       time.Duration // the link's shortest; 0: none yet
	slow, fast int           // echoes in a row
	why        string        // what is wrong; "" for nothing
}

// begin forgets the link: another one begins.
func (q *quality) begin(now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.base.IsZero() {
		q.base = now
	}
	q.start, q.waiting, q.last, q.looked = now, time.Time{}, time.Time{}, now
	q.best, q.slow, q.fast, q.why = 0, 0, 0, ""
}

// ping notes that one is sent, and returns what it says.
func (q *quality) ping(now time.Time) (echo uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.waiting.IsZero() {
		q.waiting = now
	}
	q.last = now
	return uint64(now.Sub(q.base))
}

// pong notes the answer to the ping that said echo.
func (q *quality) pong(echo uint64, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sent := q.base.Add(time.Duration(echo))
	if sent.Before(q.start) || sent.After(q.last) { // of an earlier link, or none of ours
		return
	}
	q.waiting = time.Time{}
	if sent.Before(q.last) {
		q.waiting = q.last
	}
	took := max(now.Sub(sent), time.Microsecond)
	if q.best == 0 || took < q.best {
		q.best = took
	}
	if took <= min(silentFor, max(slowEcho, slowFactor*q.best)) {
		q.slow = 0
		if q.fast++; q.fast >= fastAfter {
			q.why = ""
		}
		return
	}
	q.fast = 0
	if q.slow++; q.slow >= slowAfter && q.why == "" {
		q.why = fmt.Sprintf("an answer takes %v, %v at best", took.Round(10*time.Millisecond), q.best.Round(time.Millisecond))
	}
}

// look says what is wrong with the link, "" for nothing. It is called every clockEvery: when it was not, we did not run,
// and that an answer is late says nothing.
func (q *quality) look(now time.Time) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.looked) > wakeSlack && !q.waiting.IsZero() {
		q.waiting = now
	}
	q.looked = now
	if late := now.Sub(q.waiting); !q.waiting.IsZero() && late > silentFor {
		q.fast = 0
		if q.why == "" {
			q.why = fmt.Sprintf("no answer for %v", late.Round(time.Second))
		}
	}
	return q.why
}

// late tells whether an answer is overdue so long that whoever can had better go elsewhere. Call it after look.
func (q *quality) late(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.waiting.IsZero() && now.Sub(q.waiting) > silentFor
}
