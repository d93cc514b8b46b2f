package swap

import (
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

// Of a forward that is no more nobody can say what is open.
func TestOnlyALivingForwardHasConnections(t *testing.T) {
	for silent, want := range map[time.Duration]int{0: 1, time.Hour: 0} {
		beat := metav1.NewMicroTime(time.Now().Add(-silent))
		l := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "a",
				Labels:      map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy, proxypod.KindLabel: proxypod.KindForward},
				Annotations: map[string]string{proxypod.ForwardsAnnotation: `[{"target":"db:5432","open":5}]`},
			},
			Spec: coordinationv1.LeaseSpec{RenewTime: &beat},
		}
		entries, err := List(t.Context(), &kube.Client{Clientset: fake.NewClientset(l)}, "shop")
		if err != nil || len(entries) != 1 || len(entries[0].Forwards) != want {
			t.Errorf("silent for %v: %+v, %v", silent, entries, err)
		}
	}
}

// What only removes the copies of an old record has swapped nothing.
func TestALeaseOfWhatIsOverIsNoSwap(t *testing.T) {
	l := ordersPlan(t).Lease.DeepCopy()
	l.Annotations[undo.OverAnnotation] = "true"
	entries, err := List(t.Context(), &kube.Client{Clientset: fake.NewClientset(l)}, l.Namespace)
	if err != nil || len(entries) != 1 || !entries[0].Over || entries[0].Mode != "" || entries[0].IfLost != "" || entries[0].Reason == "" {
		t.Errorf("%+v, %v", entries, err)
	}
}

// A status never says of a path what nobody has said of it lately.
func TestStateOfAnEntry(t *testing.T) {
	now := time.Date(2026, 11, 24, 6, 30, 0, 0, time.UTC)
	since := now.Add(-time.Hour)
	ready := proxypod.State{Phase: "ready", Since: since}.String()
	for _, tt := range []struct {
		name, owner, told string
		silent            time.Duration
		state, reason     string
		alive             bool
	}{
		{"ready", "ada@laptop", ready, 9 * time.Second, "ready", "", true},
		{"one late heartbeat", "ada@laptop", ready, 25 * time.Second, "ready", "", true},
		{"late", "ada@laptop", ready, 40 * time.Second, "unknown", "no heartbeat for 40s; ready before", true},
		{"dead", "ada@laptop", ready, time.Minute, "left behind", "", false},
		{"given back", "restore by bob@desk", ready, time.Second, "restoring", "", true},
		{"whoever gave it back is gone", "restore by bob@desk", ready, time.Minute, "left behind", "", false},
		{"degraded", "ada@laptop", "degraded since 2026-11-24T05:30:00Z: slow: 1s", time.Second, "degraded", "slow: 1s", true},
		{"another's", "ada@laptop", "", time.Second, "unknown", "the Lease does not say", true},
	} {
		beat := metav1.NewMicroTime(now.Add(-tt.silent))
		l := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{proxypod.TunnelAnnotation: tt.told}},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &tt.owner, RenewTime: &beat},
		}
		var e Entry
		e.judge(l, now)
		if e.State != tt.state || e.Reason != tt.reason || e.Alive != tt.alive {
			t.Errorf("%s: %q (%q), alive %v", tt.name, e.State, e.Reason, e.Alive)
		}
		if told := tt.state == "ready" || tt.state == "degraded"; told != e.StateSince.Equal(since) {
			t.Errorf("%s: since %v", tt.name, e.StateSince)
		}
	}
	var e Entry
	e.judge(&coordinationv1.Lease{}, now)
	if e.Alive || e.State != "left behind" {
		t.Errorf("without a heartbeat: %+v", e)
	}
}
