package swap

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
	"bridge/internal/probe"
	"bridge/internal/proxypod"
)

// Entry is one Lease of bridge's, as `bridge status` lists it.
type Entry struct {
	Namespace string    `json:"namespace"`
	Kind      string    `json:"kind"` // "swap", "connect" or "env"
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
	// Shares say which requests are whose, where not all that can be taken are Owner's.
	Shares []Share `json:"shares,omitempty"`
	// Notes are what a swap's proxies say, as the last heartbeat told; none when that is too old to be believed.
	Notes []string `json:"notes,omitempty"`
	// Restore is the command that gives it back.
	Restore string `json:"restore"`
	// IfLost is what becomes of a swap without a heartbeat: "given back after 1m0s", or "stays swapped: " and why, in standby
	// behind "the original answers; "; "" but for
	// swap.
	IfLost string `json:"ifLost,omitempty"`
	// Mode is a swap's, "replace" or "standby"; "" but for swap.
	Mode Mode `json:"mode,omitempty"`
	// Replicas the target had before; 0 but for swap, and in mode standby.
	Replicas int32    `json:"replicas,omitempty"`
	Services []string `json:"services,omitempty"`

	lease *coordinationv1.Lease // nil when only a copy of the record is left
}

// List reads the swaps and connects of a namespace, all of them with "".
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
		e.Shares = sharesOf(&l)
		if u, err := recordOf(&l); err == nil {
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
	silent := time.Duration(math.MaxInt64)
	if l.Spec.RenewTime != nil {
		e.Heartbeat = l.Spec.RenewTime.Time
		silent = now.Sub(e.Heartbeat)
	}
	e.Alive = silent < proxypod.Duration(l)
	told, ok := proxypod.ParseState(l.Annotations[proxypod.TunnelAnnotation])
	switch {
	case strings.HasPrefix(e.Owner, proxypod.RestoreBy):
		e.State = "restoring"
	case !e.Alive:
		e.State = "left behind"
	case !ok:
		e.State, e.Reason = "unknown", "the Lease does not say"
	case silent > proxypod.Stale(l):
		e.State, e.Reason = "unknown", fmt.Sprintf("no heartbeat for %v; %s before", silent.Round(time.Second), told.Phase)
	default:
		e.State, e.StateSince, e.Reason = told.Phase, told.Since, told.Reason
		if json.Unmarshal([]byte(l.Annotations[proxypod.ProbesAnnotation]), &e.Probes) != nil {
			e.Probes = nil
		}
		if json.Unmarshal([]byte(l.Annotations[proxypod.NotesAnnotation]), &e.Notes) != nil {
			e.Notes = nil
		}
	}
}
