package swap

import (
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

// Entry is one Lease of bridge's, as `bridge status` lists it.
type Entry struct {
	Namespace string    `json:"namespace"`
	Kind      string    `json:"kind"` // "swap" or "connect"
	Target    string    `json:"target"`
	Owner     string    `json:"owner"`
	Since     time.Time `json:"since"`
	Heartbeat time.Time `json:"lastHeartbeat"`
	// Alive is whether the heartbeat is younger than the Lease's duration, by this machine's clock.
	Alive bool `json:"alive"`
	// Restore is the command that gives it back.
	Restore string `json:"restore"`
	// Replicas the target had before; 0 for connect.
	Replicas int32    `json:"replicas,omitempty"`
	Services []string `json:"services,omitempty"`
}

// List reads the swaps and connects of a namespace, all of them with "".
func List(ctx context.Context, k *kube.Client, namespace string) ([]Entry, error) {
	list, err := k.Clientset.CoordinationV1().Leases(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: proxypod.ManagedByLabel + "=" + proxypod.ManagedBy + "," + proxypod.KindLabel,
	})
	where := "in " + namespace
	if namespace == "" {
		where = "in all namespaces"
	}
	if err != nil {
		return nil, kube.Explain(err, "list leases "+where)
	}
	entries := []Entry{}
	for _, l := range list.Items {
		e := Entry{
			Namespace: l.Namespace, Kind: l.Labels[proxypod.KindLabel], Target: l.Annotations[proxypod.TargetAnnotation],
			Since: l.CreationTimestamp.Time,
		}
		if l.Spec.HolderIdentity != nil {
			e.Owner = *l.Spec.HolderIdentity
		}
		if l.Spec.RenewTime != nil {
			e.Heartbeat = l.Spec.RenewTime.Time
			e.Alive = time.Since(e.Heartbeat) < proxypod.LeaseSeconds*time.Second
		}
		e.Restore = fmt.Sprintf("bridge restore %s -n %s%s", strings.Replace(e.Target, "/", " ", 1), l.Namespace, k.Flags)
		if e.Kind == proxypod.KindConnect {
			e.Target = "connect/" + l.Name
			e.Restore = fmt.Sprintf("bridge restore connect %s -n %s%s", l.Name, l.Namespace, k.Flags)
		}
		if u, err := ParseUndo(l.Annotations[proxypod.UndoAnnotation]); err == nil {
			e.Replicas, e.Services = u.summary()
		}
		entries = append(entries, e)
	}
	return entries, nil
}
