package swap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/forward"
	"bridge/internal/kube"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/internal/undo"
)

// Entry is one Lease of bridge's, as `bridge status` lists it.
type Entry struct {
	Namespace string    `json:"namespace"`
	Kind      string    `json:"kind"` // "swap", "connect", "forward" or "env"
	Target    string    `json:"target"`
	Owner     string    `json:"owner"`
	Since     time.Time `json:"since"`
	Heartbeat time.Time `json:"lastHeartbeat"`
	// Alive is whether the heartbeat is younger than the Lease's duration, by this machine's clock.
	Alive bool `json:"alive"`
	// State is the tunnel's, a tunnel.Phase's text, as the last heartbeat told. It is "unknown" when that heartbeat is too
	// old to be believed, "left behind" when Alive is false, and "restoring" while somebody gives back.
	State string `json:"state"`
	// StateSince is when a tunnel's state began; zero for the other three.
	StateSince time.Time `json:"stateSince,omitzero"`
	// Reason says more in words; may be empty.
	Reason string `json:"reason,omitempty"`
	// Probes are the target's that are run on the laptop, as the last heartbeat told; none when that is too old to be believed.
	Probes []probe.State `json:"probes,omitempty"`
	// Members are those who share a swap, and which requests are whose, where not all that can be taken are Owner's; Owner is all of them,
	// then, and the state is that of the first whose tunnel carries, or of the first.
	Members []Member `json:"members,omitempty"`
	// Notes are what a swap's proxies say, as the last heartbeat told; none when that is too old to be believed.
	Notes []string `json:"notes,omitempty"`
	// Forwards are what a forward has counted, as the last heartbeat told; none when it was left behind.
	Forwards []forward.Stat `json:"forwards,omitempty"`
	// Restore is the command that gives it back.
	Restore string `json:"restore"`
	// IfLost is what becomes of a swap without a heartbeat: "given back after 1m0s", or "stays swapped: " and why, in standby
	// behind "the original answers; "; "" but for
	// swap.
	IfLost string `json:"ifLost,omitempty"`
	// Mode is a swap's, "replace" or "standby"; "" but for swap.
	Mode Mode `json:"mode,omitempty"`
	// Over is whether nothing is swapped any more, and somebody was about to remove what is left of the record.
	Over bool `json:"over,omitempty"`
	// Replicas the target had before; 0 but for swap, and in mode standby.
	Replicas int32    `json:"replicas,omitempty"`
	Services []string `json:"services,omitempty"`

	lease *coordinationv1.Lease // nil when only a copy of the record is left
}

// Member is one of those who share a swap. Its fields are as the Entry's of the same names.
type Member struct {
	Owner string `json:"owner"`
	route.Choice
	Since     time.Time `json:"since"`
	Heartbeat time.Time `json:"lastHeartbeat"`
	// Alive is by the member's clock and this machine's.
	Alive      bool          `json:"alive"`
	State      string        `json:"state"`
	StateSince time.Time     `json:"stateSince,omitzero"`
	Reason     string        `json:"reason,omitempty"`
	Probes     []probe.State `json:"probes,omitempty"`
	Notes      []string      `json:"notes,omitempty"`
	Bridge     string        `json:"bridge,omitempty"` // its version
}

// List reads the swaps, connects and forwards of a namespace, all of them with "".
func List(ctx context.Context, k *kube.Client, namespace string) ([]Entry, error) {
	list, err := k.Clientset.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: proxypod.ManagedByLabel + "=" + proxypod.ManagedBy + "," + proxypod.KindLabel,
	})
	if err != nil {
		return nil, kube.Explain(err, "list leases "+in(namespace))
	}
	entries := []Entry{}
	for _, l := range list.Items {
		e := Entry{
			Namespace: l.Namespace, Kind: l.Labels[proxypod.KindLabel], Target: l.Annotations[proxypod.TargetAnnotation],
			Since: l.CreationTimestamp.Time, lease: &l,
		}
		if l.Spec.HolderIdentity != nil {
			e.Owner = *l.Spec.HolderIdentity
		}
		e.judge(&l, time.Now())
		e.Restore = fmt.Sprintf("bridge restore %s -n %s%s", strings.Replace(e.Target, "/", " ", 1), l.Namespace, k.Flags)
		if e.Kind != proxypod.KindSwap {
			e.Target = e.Kind + "/" + l.Name
			e.Restore = proxypod.RemoveCommand(k, e.Kind, l.Namespace, l.Name)
		}
		if json.Unmarshal([]byte(l.Annotations[proxypod.ForwardsAnnotation]), &e.Forwards) != nil {
			e.Forwards = nil // there are none
		}
		if !e.Alive {
			e.Forwards = nil
		}
		if e.Over = undo.Over(l.Annotations); e.Over {
			e.Reason = "nothing is swapped: what is left of a record is to be removed"
		} else if u, err := recordOf(&l); err == nil {
			e.Mode = modeOf(u)
			e.Replicas, e.Services = u.Summary()
			e.IfLost = ifLost(ctx, k, &l)
			if e.Mode == ModeStandby {
				e.IfLost = "the original answers; " + e.IfLost
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// ifLost is Entry's, by whether the keeper is Ready now.
func ifLost(ctx context.Context, k *kube.Client, l *coordinationv1.Lease) string {
	if why := noKeeper(ctx, k, l); why != "" {
		return "stays swapped: " + why
	}
	return fmt.Sprintf("given back after %v", proxypod.Duration(l))
}

// judge fills in the heartbeat and the state. What the Lease says of the tunnel was true at its last heartbeat.
func (e *Entry) judge(l *coordinationv1.Lease, now time.Time) {
	var renewed time.Time
	if l.Spec.RenewTime != nil {
		renewed = l.Spec.RenewTime.Time
	}
	all := said{renewed: renewed, tunnel: l.Annotations[proxypod.TunnelAnnotation], probes: l.Annotations[proxypod.ProbesAnnotation]}
	if json.Unmarshal([]byte(l.Annotations[proxypod.NotesAnnotation]), &all.notes) != nil {
		all.notes = nil
	}
	m := all.judge(l, now)
	list, err := membersOf(l)
	if strings.HasPrefix(holder(l), proxypod.RestoreBy) {
		list.Members = nil // nobody has a share any more
	}
	for _, one := range list.Members {
		j := said{one.Renewed, one.Tunnel, string(one.Probes), one.Notes}.judge(l, now)
		j.Owner, j.Choice, j.Since, j.Bridge = one.Owner, one.Choice, one.Since, one.Bridge
		e.Members = append(e.Members, j)
	}
	switch {
	case len(e.Members) > 0:
		alive := m.Alive
		m = e.Members[max(0, slices.IndexFunc(e.Members, func(m Member) bool { return m.State == "ready" || m.State == "degraded" }))]
		m.Alive = alive
	case err != nil && !errors.Is(err, errUnshared) && m.State == "unknown":
		m.Reason = err.Error()
	}
	e.Heartbeat, e.Alive, e.State, e.StateSince, e.Reason, e.Probes, e.Notes = renewed, m.Alive, m.State, m.StateSince, m.Reason, m.Probes, m.Notes
}

// restoring is the state while somebody gives back.
const restoring = "restoring"

// said is what a heartbeat has told.
type said struct {
	renewed        time.Time // zero: there was none
	tunnel, probes string
	notes          []string
}

// judge says what is to be believed of it.
func (s said) judge(l *coordinationv1.Lease, now time.Time) Member {
	m := Member{Heartbeat: s.renewed}
	silent := time.Duration(math.MaxInt64)
	if !s.renewed.IsZero() {
		silent = now.Sub(s.renewed)
	}
	m.Alive = silent < proxypod.Duration(l)
	told, ok := proxypod.ParseState(s.tunnel)
	switch {
	case !m.Alive:
		m.State = "left behind"
	case strings.HasPrefix(holder(l), proxypod.RestoreBy):
		m.State = restoring
	case !ok:
		m.State, m.Reason = "unknown", "the Lease does not say"
	case silent > proxypod.Stale(l):
		m.State, m.Reason = "unknown", fmt.Sprintf("no heartbeat for %v; %s before", silent.Round(time.Second), told.Phase)
	default:
		m.State, m.StateSince, m.Reason, m.Notes = told.Phase, told.Since, told.Reason, s.notes
		if json.Unmarshal([]byte(s.probes), &m.Probes) != nil {
			m.Probes = nil
		}
	}
	return m
}
