// Package fault has named points at which bridge kills or stops itself, or fails, when the environment asks for it: so a
// test can look at what every single step leaves behind. pkg/swap, internal/proxypod and internal/keeper have the points in them; unless one
// is asked for, a point costs a look at the environment.
package fault

import (
	"fmt"
	"os"
	"strings"
)

// Env is the environment variable, "POINT:ACTION". The actions are kill (SIGKILL to itself), stop (SIGSTOP to itself; it goes
// on with SIGCONT) and error (the step fails, each time).
const Env = "BRIDGE_FAULT"

// Point is a moment right after a step that has succeeded.
type Point string

// The points, in the order in which a swap comes to them.
const (
	PlanRead         Point = "plan.read"         // the cluster is read, nothing is changed
	SessionKept      Point = "session.kept"      // the laptop keeps the session
	Claimed          Point = "apply.claimed"     // the Lease is created
	MapCreated       Point = "create.configmap"  // each of the carried proxy's ConfigMaps
	ProxyCreated     Point = "create.deployment" // the proxy's
	ProxyReady       Point = "apply.ready"       // the proxy's pod is
	Checked          Point = "change.checked"    // before each change: the object is read, and the claim is ours
	Recorded         Point = "apply.recorded"    // the target has a copy of the record
	Reachable        Point = "apply.reachable"   // the proxy is an endpoint beside the original
	Moved            Point = "apply.moved"       // each Service's selector
	Alone            Point = "apply.alone"       // callers go to the proxy only
	Scaled           Point = "apply.scaled"      // the original, to 0
	Stopped          Point = "apply.stopped"     // the original's pods have ended
	SessionHeld      Point = "session.held"      // the laptop has noted that the swap is made
	Beat             Point = "run.beat"          // each heartbeat
	Watched          Point = "run.watched"       // each look at the target
	TakeUpRead       Point = "takeup.read"       // the swap is found to be this laptop's
	TakeUpReady      Point = "takeup.ready"      // the proxy has the new bridge
	SessionEnding    Point = "session.ending"    // the laptop has noted that it gives back
	RestoreTaken     Point = "restore.taken"     // the Lease, from whoever held it
	RestoreCreated   Point = "restore.created"   // the Lease, anew
	ScaledBack       Point = "restore.scaled"    // the original
	OriginalReady    Point = "restore.ready"     // or not in time
	MovedBack        Point = "restore.moved"     // each Service's selector
	Settled          Point = "restore.settled"   // callers are sent to the original
	RecordRemoved    Point = "restore.unrecorded"
	ProxyDeleted     Point = "delete.deployment" // its pods are ending
	ProxyGone        Point = "delete.pods"       // they have ended
	MapDeleted       Point = "delete.configmap"  // each
	UndoneAgain      Point = "restore.again"     // each change, once more
	OwnersBack       Point = "restore.owners"    // of each object's fields
	Closed           Point = "restore.closed"    // the Lease, for all is given back
	CopiesGone       Point = "restore.copies"    // of the record, on ReplicaSets
	Released         Point = "restore.released"  // the Lease is deleted
	SessionForgotten Point = "session.forgotten" // the laptop keeps nothing any more
)

// The keeper's, in the order in which it comes to them. The environment is its container's.
const (
	KeeperTaken      Point = "keeper.taken"      // the Lease, which has lapsed
	KeeperFenced     Point = "keeper.fenced"     // the Services, against a laptop that wakes up
	KeeperScaled     Point = "keeper.scaled"     // the original
	KeeperReady      Point = "keeper.ready"      // the original, or not in time
	KeeperMoved      Point = "keeper.moved"      // all Services' selectors
	KeeperSettled    Point = "keeper.settled"    // callers know the original
	KeeperUnrecorded Point = "keeper.unrecorded" // the target has no copy of the record
	KeeperEnded      Point = "keeper.ended"      // the proxy's pods have
	KeeperAgain      Point = "keeper.again"      // each change is undone once more
	KeeperOwners     Point = "keeper.owners"     // of the fields are as before
	KeeperCopies     Point = "keeper.copies"     // of the record are gone, the last ones
	KeeperTold       Point = "keeper.told"       // in an event
	KeeperReleased   Point = "keeper.released"   // the Lease is deleted
)

// Those of a swap with a choice of requests, which others may share.
const (
	Shared   Point = "apply.shared" // others may join
	Joined   Point = "join.joined"  // the Lease has this one's share of what others have swapped
	JoinTold Point = "join.told"    // the proxies' list has it
	Left     Point = "leave.left"   // the share is taken out of the Lease, since others go on
	LeftTold Point = "leave.told"   // and out of the proxies' list
)

// SharingPoints are all of these.
func SharingPoints() []Point { return []Point{Shared, Joined, JoinTold, Left, LeftTold} }

// Those of mode standby beside the others, after Claimed.
const (
	Admitted Point = "create.networkpolicy" // each of bridge's
	Serving  Point = "create.service"       // each of bridge's
)

// StandbyPoints are all of these.
func StandbyPoints() []Point { return []Point{Admitted, Serving} }

// KeeperPoints are all of the keeper's.
func KeeperPoints() []Point {
	return []Point{
		KeeperTaken, KeeperFenced, KeeperScaled, KeeperReady, KeeperMoved, KeeperSettled, KeeperUnrecorded, KeeperEnded, KeeperAgain,
		KeeperOwners, KeeperCopies, KeeperTold, KeeperReleased,
	}
}

// Points are all of bridge's, but for SharingPoints and StandbyPoints.
func Points() []Point {
	return []Point{
		PlanRead, SessionKept, Claimed, MapCreated, ProxyCreated, ProxyReady, Checked, Recorded, Reachable, Moved, Alone, Scaled, Stopped,
		SessionHeld, Beat, Watched, TakeUpRead, TakeUpReady, SessionEnding, RestoreTaken, RestoreCreated, ScaledBack, OriginalReady,
		MovedBack, Settled, RecordRemoved, ProxyDeleted, ProxyGone, MapDeleted, UndoneAgain, OwnersBack, Closed, CopiesGone, Released,
		SessionForgotten,
	}
}

// After is err, what the step before the point has returned. When that is nil and the environment asks for this point, it does
// what is asked; only the action error returns an error then.
func After(p Point, err error) error {
	asked := os.Getenv(Env)
	if err != nil || asked == "" {
		return err
	}
	name, action, _ := strings.Cut(asked, ":")
	if Point(name) != p {
		return nil
	}
	switch action {
	case "kill":
		return kill()
	case "stop":
		return stop()
	case "error":
		return fmt.Errorf("%s asks for an error at %s", Env, p)
	}
	return fmt.Errorf("%s=%s: there are POINT:kill, POINT:stop and POINT:error", Env, asked)
}

func kill() error {
	if os.Getpid() == 1 {
		os.Exit(137) // a container's first process is not killed from inside
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err == nil {
		select {} // another thread may be the one that the signal meets
	}
	return err
}
