package swap

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/undo"
)

// Without a Lease a swap is found by the copy of its record, on each kind, and a copy that came with somebody's manifest is not one.
func TestOrphansOfEachKind(t *testing.T) {
	objects := map[string]any{}
	for i, kind := range kube.WorkloadKinds() {
		uid := fmt.Sprintf("6c1f0000-0000-0000-0000-00000000000%d", i)
		u := undo.New(Object{APIVersion: kind.APIVersion(), Kind: kind.Object(), Namespace: "shop", Name: "orders", UID: uid}, "ada@laptop", noon)
		record, err := u.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		meta := func(name string, uid types.UID) metav1.PartialObjectMetadata {
			return metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: uid, Annotations: map[string]string{undo.Annotation: record}}}
		}
		root := "/apis/"
		if kind == kube.Pod {
			root = "/api/"
		}
		items := []metav1.PartialObjectMetadata{meta("orders", types.UID(uid)), meta("copied", "another")}
		if kind == kube.Pod { // one of a workload is never swapped: it is annotated by somebody else
			controls, u := true, undo.New(Object{APIVersion: "v1", Kind: "Pod", Namespace: "shop", Name: "orders-x7k2m", UID: "owned"}, "eve@laptop", noon)
			forged := meta("orders-x7k2m", "owned")
			if record, err = u.Marshal(); err != nil {
				t.Fatal(err)
			}
			forged.Annotations[undo.Annotation], forged.OwnerReferences = record, []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "orders", Controller: &controls}}
			items = append(items, forged)
		}
		objects[root+kind.APIVersion()+"/namespaces/shop/"+kind.Resource()] = metav1.PartialObjectMetadataList{Items: items}
	}
	for _, none := range []bool{false, true} {
		want := kube.WorkloadKinds()
		if none {
			delete(objects, "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts")
			want = slices.DeleteFunc(want, func(k kube.Kind) bool { return k == kube.Rollout })
		}
		r := &Restorer{Kube: apiServer(t, objects, noWrite(t)), Say: func(line string) { t.Error(line) }}
		found, err := r.orphans(t.Context(), "shop", nil)
		if err != nil {
			t.Fatal(err)
		}
		var kinds []kube.Kind
		for _, e := range found {
			target, err := kube.ParseTarget(e.Target)
			if err != nil || target.Name != "orders" {
				t.Errorf("found %+v: %v", e, err)
			}
			kinds = append(kinds, target.Kind)
		}
		if !slices.Equal(kinds, want) {
			t.Errorf("found %q, want %q", kinds, want)
		}
	}
}

// Of Rollouts that the cluster does not have nobody has the rights; another of Argo's programs may be there.
func TestOrphansBesideAnotherOfArgos(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/apis/argoproj.io/v1alpha1":
			_, _ = io.WriteString(w, `{"resources":[{"name":"applications"}]}`)
		case strings.HasSuffix(r.URL.Path, "/rollouts"):
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
		default:
			_, _ = io.WriteString(w, `{}`)
		}
	}))
	t.Cleanup(server.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	r := &Restorer{Kube: k, Say: func(line string) { t.Error(line) }}
	if found, err := r.orphans(t.Context(), "shop", nil); err != nil || len(found) > 0 {
		t.Errorf("found %v: %v", found, err)
	}
}

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
