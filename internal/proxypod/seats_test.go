package proxypod

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Each session has a pod of its own, keeps it while that stays, and takes the one that comes in its place.
func TestSeatsHaveAPodEach(t *testing.T) {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	pod := func(uid string, age time.Duration, going bool) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), CreationTimestamp: metav1.NewTime(at.Add(-age))}}
		if going {
			p.DeletionTimestamp = &metav1.Time{Time: at}
		}
		return p
	}
	s := &seats{of: make([]types.UID, 2)}
	for _, step := range []struct {
		seat int
		pods []corev1.Pod
		want string // "": none
	}{
		{0, nil, ""},
		{0, []corev1.Pod{pod("a", 10, false)}, "a"},
		{1, []corev1.Pod{pod("a", 10, false)}, ""},
		{1, []corev1.Pod{pod("a", 10, false), pod("b", 5, false)}, "b"},
		{0, []corev1.Pod{pod("a", 10, false), pod("b", 5, false)}, "a"},
		{0, []corev1.Pod{pod("a", 10, true), pod("b", 5, false)}, "a"},                     // it drains, and there is no other
		{0, []corev1.Pod{pod("a", 10, true), pod("b", 5, false), pod("c", 1, false)}, "c"}, // there is
		{1, []corev1.Pod{pod("a", 10, true), pod("b", 5, false), pod("c", 1, false)}, "b"}, // and it is not taken twice
		{1, []corev1.Pod{pod("c", 1, false)}, ""},                                          // b is lost, and nothing in its place yet
		{1, []corev1.Pod{pod("c", 1, false), pod("d", 0, false)}, "d"},
	} {
		got, ok := s.take(step.seat, step.pods)
		if ok != (step.want != "") || string(got.UID) != step.want {
			t.Errorf("seat %d of %d pods: %q, %v; want %q", step.seat, len(step.pods), got.UID, ok, step.want)
		}
	}
	if p := (&Proxy{Lease: "x"}); p.Seats(1)[0] != p {
		t.Error("a single session has seats")
	}
}
