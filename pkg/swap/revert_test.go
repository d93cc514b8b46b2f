package swap

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

// managed is an entry of managedFields for one field.
func managed(manager string, op metav1.ManagedFieldsOperationType, field string) []metav1.ManagedFieldsEntry {
	return []metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: op, APIVersion: "v1", FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:` + field + `":{}}}`),
	}}
}

func guarded(t *testing.T) (s *Swap, scale, selector Change, said *[]string) {
	t.Helper()
	f := facts(t, "orders.yaml")
	f.Source = carried
	p, err := NewPlan(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	said = new([]string)
	s = &Swap{Plan: p, Kube: &kube.Client{}, Say: func(line string) { *said = append(*said, line) }}
	return s, p.Undo.Changes[1], p.Undo.Changes[0], said
}

// A person who scales up once is told, and gets his way; a controller does so again, and ends the swap.
func TestWhoScalesUp(t *testing.T) {
	const update, apply = metav1.ManagedFieldsOperationUpdate, metav1.ManagedFieldsOperationApply
	for _, c := range []struct {
		manager string
		op      metav1.ManagedFieldsOperationType
		ends    bool
	}{
		{"kubectl", update, false},
		{"kubectl-edit", update, false},
		{"kubectl", apply, false},
		{"helm", apply, false},
		{"some-operator", update, false},
		{proxypod.FieldManager, update, false}, // somebody gives it back
		{"argocd-controller", apply, true},
		{"argocd-controller", update, true},
		{"kustomize-controller", apply, true},
		{"helm-controller", update, true},
		{"", update, false},
		{"our-own-sync", apply, true},
	} {
		s, scale, _, said := guarded(t)
		look := func(n int32) error {
			d := &kube.Workload{Replicas: n}
			d.ManagedFields = managed(c.manager, c.op, "replicas")
			_, err := s.scaledBy(d, scale)
			return err
		}
		if err := look(0); err != nil {
			t.Errorf("%s: at 0: %v", c.manager, err)
		}
		err := look(3)
		if ended := hint.CodeOf(err) == hint.Conflict; ended != c.ends {
			t.Errorf("%s, %s: %v, want an end: %v", c.manager, c.op, err, c.ends)
		}
		if c.ends {
			if h := hint.Of(err); strings.Count(h, "\n- ") != 3 || !strings.Contains(h, "spec.selector of service orders") {
				t.Errorf("%s: the remedies are %q", c.manager, h)
			}
			continue
		}
		_ = look(3)
		if n := len(*said); n != 1 && c.manager != proxypod.FieldManager || n > 1 {
			t.Errorf("%s: said %q, want one line", c.manager, *said)
		}
		_ = look(0)
		if err := look(3); (hint.CodeOf(err) == hint.Conflict) != (c.manager != proxypod.FieldManager) {
			t.Errorf("%s: the second time: %v", c.manager, err)
		}
	}
}

func TestWhoSetsASelectorBack(t *testing.T) {
	_, _, change, _ := guarded(t)
	v := &corev1.Service{}
	for _, c := range []struct {
		selector map[string]string
		manager  string
		want     string
	}{
		{map[string]string{"app": "orders", proxypod.ProxyLabel: "bridge-deployment-orders"}, proxypod.FieldManager, ""},
		{map[string]string{"app": "other"}, "team", ""}, // theirs, and no way back
		{map[string]string{"app": "orders"}, "team", "team"},
		{map[string]string{"app": "orders"}, proxypod.FieldManager, ""},
	} {
		v.Spec.Selector = c.selector
		v.ManagedFields = managed(c.manager, metav1.ManagedFieldsOperationUpdate, "selector")
		by, err := reselectedBy(v, change)
		if err != nil || by.Manager != c.want {
			t.Errorf("%v by %s: %q, %v; want %q", c.selector, c.manager, by.Manager, err, c.want)
		}
	}
}

// In standby a Service that a person sets back is theirs: the swap goes on with the others, and ends with the last.
func TestStandbyGoesOnWithTheServicesThatAreLeft(t *testing.T) {
	f, o := standbyFacts(t)
	f.Services = append(f.Services, *f.Services[0].DeepCopy())
	second := &f.Services[len(f.Services)-1]
	second.Name, second.UID = "orders-too", "another"
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{}
	for _, c := range p.Undo.Changes {
		objects[servicePath+c.Object.Name] = corev1.Service{
			ObjectMeta: metav1.ObjectMeta{UID: types.UID(c.Object.UID), ManagedFields: managed("kubectl-edit", metav1.ManagedFieldsOperationUpdate, "selector")},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{proxypod.ProxyLabel: "bridge-deployment-orders"}},
		}
	}
	var said []string
	s := &Swap{Plan: p, Kube: apiServer(t, objects, noWrite(t)), Say: func(line string) { said = append(said, line) }}
	s.guard.changed(p.Undo.Changes...)
	for i, c := range p.Undo.Changes {
		if err := s.lookAtOthers(t.Context()); err != nil || len(said) != i {
			t.Fatalf("with %d of %d set back: %v, said %q", i, len(p.Undo.Changes), err, said)
		}
		v := objects[servicePath+c.Object.Name].(corev1.Service)
		v.Spec.Selector = f.Services[0].Spec.Selector
		objects[servicePath+c.Object.Name] = v
		_ = s.lookAtOthers(t.Context()) // again is said nothing
	}
	if err := s.lookAtOthers(t.Context()); len(p.Undo.Changes) < 2 || hint.CodeOf(err) != hint.Conflict {
		t.Errorf("with all of %d set back: %v", len(p.Undo.Changes), err)
	}
}

// Something more in a selector that has only bridge's label selects nobody; something less selects the proxies still, and is said in other words.
func TestASelectorOfAStandbyIsAddedToOrLessened(t *testing.T) {
	const label, hash = proxypod.ProxyLabel, kube.RolloutHashLabel
	c := undo.Change{Set: []byte(`{"` + label + `":"l","` + hash + `":"7d4b"}`)}
	for _, w := range []struct {
		name            string
		selector        map[string]string
		mixed, lessened bool
	}{
		{"as it was set", map[string]string{label: "l", hash: "7d4b"}, false, false},
		{"one more", map[string]string{label: "l", hash: "7d4b", "app": "orders"}, true, false},
		{"another hash", map[string]string{label: "l", hash: "9c1a"}, true, false},
		{"without the hash, as for a Service that the rollout does not name any more", map[string]string{label: "l"}, false, true},
		{"without bridge's label", map[string]string{hash: "7d4b"}, false, false},
	} {
		v := &corev1.Service{Spec: corev1.ServiceSpec{Selector: w.selector}}
		if mixed(v, c) != w.mixed || lessened(v, c) != w.lessened {
			t.Errorf("%s: mixed %v, lessened %v", w.name, mixed(v, c), lessened(v, c))
		}
	}
}
