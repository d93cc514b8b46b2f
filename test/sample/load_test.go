package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// What fails and what is late is told apart, with when it was begun.
func TestLoadCountsWhatIsLate(t *testing.T) {
	const stall = 100 * time.Millisecond
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) {
		case 20:
			time.Sleep(2 * stall) // the fault itself
		case 30:
			panic(http.ErrAbortHandler)
		}
		_, _ = io.WriteString(w, "me")
	}))
	defer server.Close()
	in, stop := io.Pipe()
	out, report := io.Pipe()
	done := make(chan error, 1)
	begin := time.Now()
	go func() { done <- (&load{url: server.URL, rate: 200, stall: stall}).run(in, report) }()
	if _, err := out.Read(make([]byte, len("started\n"))); err != nil {
		t.Fatal(err)
	}
	for n.Load() < 200 {
		time.Sleep(time.Millisecond)
	}
	_ = stop.Close()
	var r Report
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if r.Failed != 1 || len(r.Errors) != 1 || r.Stalled < 1 || len(r.Harmed) != r.Failed+r.Stalled || r.By["me"] != r.Requests-1 {
		t.Errorf("%+v", r)
	}
	if r.Worst < 2*stall || r.P99 <= 0 || r.P99 > r.Worst+time.Millisecond {
		t.Errorf("worst %v, 99 %% within %v", r.Worst, r.P99)
	}
	for _, h := range r.Harmed {
		if h.Begun.Before(begin) || h.Begun.After(time.Now()) {
			t.Errorf("begun %v, the load %v", h.Begun, begin)
		}
	}
}

func TestTimes(t *testing.T) {
	var all times
	for i := range 100 {
		all.add(time.Duration(i) * time.Millisecond)
	}
	all.add(time.Hour)
	for _, c := range []struct {
		part float64
		want time.Duration
	}{{0, time.Millisecond}, {.5, 51 * time.Millisecond}, {.99, 100 * time.Millisecond}, {1, loadTime + time.Millisecond}} {
		if got := all.most(c.part, 101); got != c.want {
			t.Errorf("%v of them took %v, want %v", c.part, got, c.want)
		}
	}
	if got := new(times).most(.99, 0); got != 0 {
		t.Errorf("of none: %v", got)
	}
}
