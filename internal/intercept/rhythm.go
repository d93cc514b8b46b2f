package intercept

import (
	"math"
	"slices"
	"sync"
	"time"
)

// rhythm is when bytes moved on a connection and which way: enough to find a moment at which it can be
// ended and no request is lost. That is a moment when the last bytes went to the caller and its next
// are not due for a while. Set at to the connection's start.
type rhythm struct {
	mu      sync.Mutex
	at      time.Time // bytes moved last
	way     way
	writing bool // bytes are on their way to the caller
	half    bool // one direction is at its end: the other ends by itself
	http    exchange

	gaps   [gapsKept]time.Duration // the last silences before the caller spoke again
	pauses [gapsKept]time.Duration // the longest silence within what it was told before each of them
	gapsN  int                     // how many there were
	pause  time.Duration           // as in pauses, of what the caller is being told now
}

type way int

const (
	neither way = iota
	from        // the caller
	to          // the caller
)

const (
	// gapsKept is how many of the caller's silences are looked at: enough to see a regular one, few enough
	// to follow a change.
	gapsKept = 8
	// A moment is quiet only in the first gapShare of the caller's usual silence: then our end is with
	// the caller well before it would speak again.
	gapShare = 0.5
	// quietShort is the least silence: more than the wake-up of the goroutine that reads the caller.
	quietShort = 2 * time.Millisecond
	// quietLong is a silence that needs no other reason: longer than the pauses of most answers.
	quietLong = 512 * time.Millisecond
	// quietFresh is that of a connection which nothing has come through yet: its first request is
	// likely under way, on a busy node for seconds, and no client repeats that one by itself.
	quietFresh = 3 * time.Second
)

func (r *rhythm) fromCaller(now time.Time, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.way == to {
		r.gaps[r.gapsN%gapsKept], r.pauses[r.gapsN%gapsKept] = now.Sub(r.at), r.pause
		r.gapsN++
		r.pause = 0
	}
	r.at, r.way = now, from
	r.http.fromCaller(p)
}

func (r *rhythm) toCaller(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.way == to {
		r.pause = max(r.pause, now.Sub(r.at))
	}
	r.at, r.way, r.writing = now, to, true
}

// told returns whether the caller has had all answers that it is to have.
func (r *rhythm) told(now time.Time, p []byte) (answered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.writing = now, false
	r.http.toCaller(p)
	return r.http.answered()
}

// answered says whether the caller has had all answers that it is to have.
func (r *rhythm) answered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.http.answered() && !r.writing
}

func (r *rhythm) halfClosed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.half = true
}

// quiet says whether this is the moment. elapsed is the part of the drain that is over, 0 to 1: the later,
// the less careful, since what is left at 1 is reset.
func (r *rhythm) quiet(now time.Time, elapsed float64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	silent := now.Sub(r.at)
	switch {
	case r.half || r.writing || r.way == from:
		return false
	case r.way == neither:
		return silent >= quietFresh
	case r.http.known() && !r.http.answered():
		return false
	case silent >= quietLong:
		return true
	case r.gapsN == 0 && elapsed < 0.8:
		return false
	}
	gaps := slices.Clone(r.gaps[:min(r.gapsN, gapsKept)])
	slices.Sort(gaps)
	pause := max(r.pause, slices.Max(r.pauses[:]))
	least := max(quietShort, 2*pause)
	if r.http.answered() {
		pause, least = 0, 0
	}
	usual := time.Duration(math.MaxInt64)
	switch {
	case elapsed < 0.25:
		usual = gaps[0]
	case elapsed < 0.5:
		usual = gaps[len(gaps)/2]
	case elapsed < 0.8:
		usual = gaps[len(gaps)-1]
	default:
		least = min(least, max(quietShort, pause))
	}
	return least <= silent && silent < time.Duration(gapShare*float64(usual))
}
