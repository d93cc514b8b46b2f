package swap

import (
	"fmt"
	"strings"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// bound is why a workload, if it were stopped, would not come back as it was.
type bound struct {
	what string // in full
	why  string // in short, for the headline of mode standby
	way  string // what would make it another one; "" when nothing does for now
}

// boundOf is nil for a workload that may be stopped. flags are the Client's.
func boundOf(w *kube.Workload, flags string) *bound {
	switch {
	case w.Kind == kube.Pod:
		return &bound{
			what: "it belongs to no workload, so once it is stopped nothing starts it again",
			why:  "nothing starts a pod again that is stopped",
			way:  "give it a deployment with this template, and swap that",
		}
	case w.Unseen:
		return &bound{
			what: unseen + ", and steps of an update would go on at 0 replicas, with no pod to judge it by",
			why:  unseen + ", and may be updating it",
			way:  unseenWay,
		}
	case w.Updating:
		return &bound{
			what: "an update is under way, and its steps would go on at 0 replicas, with no pod to judge it by",
			why:  "its update under way would go on at 0 replicas, with no pod to judge it by",
			way:  fmt.Sprintf("finish the update or take it back first: kubectl argo rollouts promote %[1]s -n %[2]s%[3]s (if it was aborted: retry rollout %[1]s), or undo %[1]s", w.Name, w.Namespace, flags),
		}
	case w.Beside != "":
		return &bound{
			what: fmt.Sprintf("%s, from which it has its template, runs pods too, which would go on", w.Beside),
			why:  w.Beside + ", from which it has its template, runs pods that would go on",
			way:  "scale " + w.Beside + " to 0 first",
		}
	case len(w.Dropped) > 0:
		return &bound{
			what: fmt.Sprintf("at 0 replicas the cluster deletes its volume claims (%s) and the data in them, as persistentVolumeClaimRetentionPolicy.whenScaled: Delete says", strings.Join(w.Dropped, ", ")),
			why:  "scaling it to 0 would delete its volumes",
			way:  "set whenScaled to Retain for as long as it is swapped",
		}
	}
	return nil
}

// stoppable refuses mode replace for a workload that would not come back as it was.
func stoppable(w *kube.Workload, flags string) error {
	b := boundOf(w, flags)
	if b == nil {
		return nil
	}
	return hint.Newf(hint.Usage, "--mode standby has it go on; or "+b.way, "%s cannot be swapped in mode replace: %s", w.Target(), b.what)
}
