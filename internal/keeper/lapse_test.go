package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/undo"
)

// cluster is a Lease at each moment, by the seconds since it began. The test's clock is synctest's.
type cluster struct {
	start time.Time
	// heartbeats are in each ten seconds until then; 0: for ever. Those that the server does not answer count for nothing.
	heartbeatsUntil int
	// silent are the times in which the server does not answer, from and to.
	silent [][2]int
	// frozen has the question that is asked then answered that much later, as if this process had slept.
	frozen [2]int
	holder func(at int) string
	stamp  func(beat int) string
}

const ada = "ada@laptop"

func (c *cluster) at() int { return int(time.Since(c.start) / time.Second) }

func (c *cluster) answers(at int) bool {
	for _, s := range c.silent {
		if at >= s[0] && at < s[1] {
			return false
		}
	}
	return true
}

func (c *cluster) ask(ctx context.Context) (object, error) {
	if d := c.frozen[1]; d > 0 && c.at() >= c.frozen[0] {
		c.frozen[1] = 0
		if err := sleep(ctx, time.Duration(d)*time.Second); err != nil {
			return object{}, err
		}
	}
	at := c.at()
	if !c.answers(at) {
		return object{}, errors.New("connection refused")
	}
	beat := 0
	for b := 0; b <= at; b += 10 {
		if c.answers(b) && (c.heartbeatsUntil == 0 || b < c.heartbeatsUntil) {
			beat = b
		}
	}
	var l object
	l.Spec.HolderIdentity, l.Spec.Seconds, l.Spec.RenewTime = ada, 60, fmt.Sprint(beat)
	if c.holder != nil {
		l.Spec.HolderIdentity = c.holder(at)
	}
	if c.stamp != nil {
		l.Spec.RenewTime = c.stamp(beat)
	}
	return l, nil
}

func TestLapse(t *testing.T) {
	const never = -1
	for _, c := range []struct {
		name string
		cluster
		lapses int // about when, in seconds
	}{
		{"a living laptop", cluster{}, never},
		{"a dead laptop: a period after its last heartbeat", cluster{heartbeatsUntil: 101}, 100 + 60},
		{"a laptop whose clock is decades behind, and stands still but for the order of beats", cluster{stamp: func(b int) string { return fmt.Sprintf("1970-01-01T00:00:00.%06dZ", b) }}, never},
		{"the same, dead", cluster{heartbeatsUntil: 101, stamp: func(b int) string { return fmt.Sprintf("2100-01-01T00:00:00.%06dZ", b) }}, 160},
		{"a laptop whose clock jumps back and forth", cluster{stamp: func(b int) string { return fmt.Sprint((b * 7919) % 1000) }}, never},
		{"the API server away for longer than the period, a living laptop", cluster{silent: [][2]int{{100, 190}}}, never},
		{"the API server away for hours, a living laptop", cluster{silent: [][2]int{{100, 7300}}}, never},
		{"the API server away again and again, a living laptop", cluster{silent: [][2]int{{95, 155}, {165, 225}, {235, 295}}}, never},
		{"the API server away, and the laptop does not come back: a whole period from then", cluster{heartbeatsUntil: 95, silent: [][2]int{{100, 190}}}, 190 + 60},
		{"a dead laptop, and one question without an answer", cluster{heartbeatsUntil: 95, silent: [][2]int{{120, 121}}}, 125 + 60},
		{"this process frozen, a living laptop", cluster{frozen: [2]int{100, 600}}, never},
		{"this process frozen, a dead laptop: what nobody saw does not count", cluster{heartbeatsUntil: 95, frozen: [2]int{120, 600}}, 720 + 60},
		{"another takes the lease: a period of its own", cluster{heartbeatsUntil: 95, holder: func(at int) string {
			if at >= 130 {
				return "restore by bob@desk"
			}
			return ada
		}}, 130 + 60},
		{"held by this keeper from before", cluster{holder: func(int) string { return "restore by keeper k" }}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c.start = time.Now()
				const limit = 4 * time.Hour
				ctx, cancel := context.WithTimeout(t.Context(), limit)
				defer cancel()
				_, err := lapsed(ctx, "restore by keeper k", slog.New(slog.DiscardHandler), c.ask)
				took := time.Since(c.start)
				if c.lapses == never {
					if !errors.Is(err, context.DeadlineExceeded) {
						t.Fatalf("lapsed after %v: %v", took, err)
					}
					return
				}
				// It is found by the question after, and counted from the answer after.
				earliest := time.Duration(c.lapses) * time.Second
				if latest := earliest + 3*undo.Pause(time.Minute); err != nil || took < earliest || took > latest {
					t.Errorf("lapsed after %v, %v, want %v to %v", took, err, earliest, latest)
				}
			})
		})
	}
}

func TestNothingLapsesWithoutALease(t *testing.T) {
	gone := func(context.Context) (object, error) { return object{}, &refusal{http.StatusNotFound, "no such lease"} }
	if _, err := lapsed(t.Context(), "k", slog.New(slog.DiscardHandler), gone); !isNotFound(err) {
		t.Errorf("without a lease: %v", err)
	}
}
