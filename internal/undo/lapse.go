package undo

import "time"

const (
	// minPeriod and defaultPeriod are of a Lease's duration: with less a late heartbeat or two would end a swap.
	minPeriod     = 6 * time.Second
	defaultPeriod = time.Minute
	// asksPerPeriod is how often the Lease is read in its period.
	asksPerPeriod = 12
)

// Period is how long a Lease with these leaseDurationSeconds, 0 without them, may say the same.
func Period(leaseDurationSeconds int) time.Duration {
	if leaseDurationSeconds <= 0 {
		return defaultPeriod
	}
	return max(minPeriod, time.Duration(leaseDurationSeconds)*time.Second)
}

// Lapse tells when a Lease has lapsed (SPEC.md): it says the same for its whole period, by this process's monotonic clock, while the
// API server answers. The clock of who renews it does not matter. A server that does not answer keeps the laptop's heartbeat
// out as well, so each silence, and each time in which nobody asked, begins the period anew. The zero value has seen nothing.
type Lapse struct {
	said  string    // by the last answer
	since time.Time // when the first of an unbroken row of answers came that said so; zero: there is none
	last  time.Time // when the last one came
}

// Answer takes note of what the Lease says, who holds it and when it was renewed, as asked and answered at these times, and
// tells whether it has lapsed. The period is counted from an answer to a question, so it is rather too long.
func (l *Lapse) Answer(asked, answered time.Time, said string, period time.Duration) bool {
	if l.since.IsZero() || said != l.said || answered.Sub(l.last) > maxGap(period) {
		l.said, l.since = said, answered
	}
	l.last = answered
	return asked.Sub(l.since) >= period
}

// Silence takes note of a question without an answer.
func (l *Lapse) Silence() { l.since = time.Time{} }

// Pause is between an answer and the next question.
func Pause(period time.Duration) time.Duration { return period / asksPerPeriod }

// maxGap is how long may be between two answers for the server to have answered all the while.
func maxGap(period time.Duration) time.Duration { return 4 * Pause(period) }
