package diagnose

import (
	"fmt"
	"strings"
	"time"
)

// checkSwaps is about what bridge itself has left.
func checkSwaps(s *Snapshot) (out []Finding) {
	for _, w := range s.Swaps {
		if !w.Left {
			continue
		}
		kind, name, _ := strings.Cut(w.Target, "/")
		f := Finding{ID: "swap-left-behind", Severity: Problem, Direction: Bridge, Object: Ref{kind, w.Namespace, name}}
		f.Summary = fmt.Sprintf("%s has swapped it, and is gone", w.Owner)
		f.Why = "it is not what it was before"
		if w.IfLost != "" {
			f.Why += "; " + w.IfLost
		}
		since := "no heartbeat"
		if !w.Heartbeat.IsZero() {
			since = fmt.Sprintf("no heartbeat for %v", s.Now.Sub(w.Heartbeat).Round(time.Second))
		}
		f.State = []Evidence{{From: "the Lease of " + w.Owner, Says: since, At: w.Heartbeat}}
		f.Next = []string{w.Restore}
		out = append(out, f)
	}
	return out
}
