package main

import (
	"testing"
	"time"

	"bridge/internal/probe"
	"bridge/pkg/swap"
)

// The status says what the kubelet would have done, also when the probe is good again.
func TestProbesInTheStatus(t *testing.T) {
	long := time.Date(2026, 11, 24, 12, 3, 41, 0, time.Local)
	m := swap.Member{Probes: []probe.State{
		{Kind: probe.Readiness, Result: probe.Failure, Since: time.Now().Add(-12 * time.Second)},
		{Kind: probe.Liveness, Result: probe.Success, Restart: long},
	}}
	if got, want := probes(m), "readiness failure for 12s, liveness success (the kubelet would have restarted it at 12:03:41 on 24 Nov)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if now := time.Now(); clock(now) != now.Format(time.TimeOnly) {
		t.Errorf("today: %q", clock(now))
	}
}
