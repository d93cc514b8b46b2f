package swap

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
)

func TestWhatHasChangedSinceItWasListedIsLeft(t *testing.T) {
	lease := func(uid types.UID, holder string, second int) *coordinationv1.Lease {
		at := metav1.NewMicroTime(time.Date(2026, 1, 2, 3, 4, second, 0, time.UTC))
		return &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{UID: uid},
			Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &at},
		}
	}
	listed := lease("one", "ada@laptop", 5)
	for _, c := range []struct {
		name          string
		listed, now   *coordinationv1.Lease
		taken, ifHeld bool // without and with --held
	}{
		{"the same", listed, lease("one", "ada@laptop", 5), true, true},
		{"renewed", listed, lease("one", "ada@laptop", 6), false, true},
		{"taken by another", listed, lease("one", "restore by bob@laptop", 5), false, true},
		{"no heartbeat any more", listed, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{UID: "one"}}, false, true},
		{"swapped anew", listed, lease("two", "ada@laptop", 5), false, false},
		{"only the copy of the record is left", listed, nil, true, true},
		{"only the copy was there", nil, nil, true, true},
		{"only the copy was there, swapped anew", nil, lease("two", "ada@laptop", 5), false, false},
	} {
		e := Entry{lease: c.listed}
		for held, want := range map[bool]bool{false: c.taken, true: c.ifHeld} {
			err := e.unchanged(held)(c.now, nil)
			if (err == nil) != want {
				t.Errorf("%s, held %v: %v", c.name, held, err)
			}
			if err != nil && hint.CodeOf(err) != hint.NotFound {
				t.Errorf("%s: code %v", c.name, hint.CodeOf(err))
			}
		}
	}
}
