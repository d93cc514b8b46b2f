//go:build linux

package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"
)

// status is what `bridge status -o json` says of the one swap or connect in the namespace.
func (w *world) status() (e struct {
	State, Reason string
	StateSince    time.Time
}) {
	w.t.Helper()
	b := w.bridge("status", "-o", "json")
	b.exits(0)
	entries := []any{&e}
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &entries); err != nil || len(entries) != 1 {
		w.t.Fatalf("status: %d entries, %v", len(entries), err)
	}
	return e
}

// The tunnel's state is told, and not believed when nobody tells it any more.
func TestStatusTellsTheTunnelsState(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	w.await("ready", func() bool { return w.status().State == "ready" })
	if since := time.Since(w.status().StateSince); since < 0 || since > patience {
		t.Errorf("ready for %v", since)
	}
	b.signal(syscall.SIGSTOP)
	w.await("unknown", func() bool {
		e := w.status()
		return e.State == "unknown" && strings.Contains(e.Reason, "ready before")
	})
	w.await("left behind", func() bool { return w.status().State == "left behind" })
	b.signal(syscall.SIGCONT)
	w.await("ready again", func() bool { return w.status().State == "ready" })
	b.terminate()
}
