package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"bridge/internal/forward"
	"bridge/internal/proxypod"
	"bridge/pkg/swap"
)

func TestAListOnStdinCanBeInterrupted(t *testing.T) {
	in, out := io.Pipe() // nobody writes
	defer out.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("ended by a signal")
	time.AfterFunc(time.Millisecond, func() { cancel(why) })
	if _, err := newApp(in, io.Discard, io.Discard).forwardList(ctx, "-"); !errors.Is(err, why) {
		t.Error(err)
	}
}

func TestALeaseTellsOfAsManyLocalEndsAsItHasRoomFor(t *testing.T) {
	for _, n := range []int{0, 1, 3, 200} {
		stats := make([]forward.Stat, n)
		for i := range stats {
			stats[i] = forward.Stat{Target: "service/orders:80", LastError: strings.Repeat("\x01", 200)} // six bytes each, as JSON
			stats[i].Local = []string{"unix:/" + strings.Repeat("x", 100)}
		}
		text := forwardsAnnotation(stats)[proxypod.ForwardsAnnotation]
		var told []forward.Stat
		if err := json.Unmarshal([]byte(text), &told); err != nil || len(text) > maxTold {
			t.Fatalf("%d: %d bytes, %v", n, len(text), err)
		}
		if n <= 3 && len(told) != n || n > 3 && len(told) < 20 {
			t.Errorf("%d: %d are told", n, len(told))
		}
	}
}

func TestForwardsAreListedWithTheirNamespace(t *testing.T) {
	var out strings.Builder
	err := printStatus(&out, []swap.Entry{{Namespace: "shop", Target: "forward/a", Forwards: []forward.Stat{{Target: "db:5432", Open: 5}}}}, "")
	_, second, _ := strings.Cut(out.String(), "\n\n")
	if err != nil || !strings.HasPrefix(second, "NAMESPACE") || !strings.Contains(second, "\nshop ") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
