package swap

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/kube"
)

// The golden record is what a bridge of version 1 wrote. It must be readable for ever.
func TestUndoGolden(t *testing.T) {
	b, err := os.ReadFile("testdata/undo.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	u, err := ParseUndo(string(b))
	if err != nil {
		t.Fatal(err)
	}
	n, services := u.summary()
	if n != 3 || len(services) != 1 || services[0] != "orders" || u.Owner != "ada@laptop" || len(u.Created) != 3 {
		t.Errorf("read %+v", u)
	}
	again, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if again != strings.TrimSpace(string(b)) {
		t.Errorf("written again it differs:\n%s", again)
	}
}

func TestPlanWritesTheGoldenUndo(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	p, err := NewPlan(f, Options{Owner: "ada@laptop", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "undo.v1.json", s+"\n")
}

func TestParseUndoRefuses(t *testing.T) {
	b, err := os.ReadFile("testdata/undo.v1.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"a newer version", `"version":1`, `"version":2`, "version 2"},
		{"no version", `"version":1`, `"version":0`, "no version"},
		{"another namespace", `"namespace":"shop","name":"orders","uid":"0b7a`, `"namespace":"kube-system","name":"orders","uid":"0b7a`, "kube-system"},
		{"another field", `"path":"spec.selector"`, `"path":"spec.externalName"`, "not a change that bridge makes"},
		{"a number that is text", `"before":3`, `"before":"3"`, "cannot unmarshal"},
		{"no JSON", `{`, `[`, "undo record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(string(b), c.old) {
				t.Fatalf("the golden record has no %s", c.old)
			}
			_, err := ParseUndo(strings.Replace(string(b), c.old, c.new, 1))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzParseUndo: a record read from the cluster may be anything. What is accepted is written back
// with the same meaning.
func FuzzParseUndo(f *testing.F) {
	b, err := os.ReadFile("testdata/undo.v1.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(b))
	f.Add(`{"version":1}`)
	f.Add(`{"version":1,"target":{"kind":"Deployment","namespace":"a","name":"b","uid":"c"},"changes":[{"path":"spec.replicas"}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUndo(s)
		if err != nil {
			return
		}
		_ = Command(&kube.Client{}, u.Target)
		u.summary()
		again, err := u.Marshal()
		if err != nil {
			return // longer when written out
		}
		v, err := ParseUndo(again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, again)
		}
		third, err := v.Marshal()
		if err != nil || third != again {
			t.Errorf("%v\n%s\n%s", err, again, third)
		}
	})
}

func TestOwnershipGoesBack(t *testing.T) {
	before := []metav1.ManagedFieldsEntry{
		{Manager: "kubectl", Operation: "Apply", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:ports":{},"f:selector":{}}}`)},
		{Manager: "hpa", Operation: "Update", APIVersion: "v1", Subresource: "scale", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:replicas":{}}}`)},
	}
	owners := map[string][]FieldOwner{}
	for _, path := range []string{"spec.selector", "spec.replicas"} {
		o, err := ownersOf(before, path)
		if err != nil {
			t.Fatal(err)
		}
		owners[path] = o
	}
	// What the API server makes of it when bridge changes both fields.
	after := []metav1.ManagedFieldsEntry{
		{Manager: "kubectl", Operation: "Apply", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:ports":{}}}`)},
		{Manager: "bridge", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:selector":{}}}`)},
		{Manager: "bridge", Operation: "Update", APIVersion: "v1", Subresource: "scale", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{"f:replicas":{}}}`)},
	}
	got, err := giveBackOwnership(after, owners)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(got)
	b, _ := json.Marshal(before)
	if string(a) != string(b) {
		t.Errorf("got  %s\nwant %s", a, b)
	}

	// Somebody else took the field meanwhile: theirs.
	after[1].Manager = "argocd"
	if got, err = giveBackOwnership(after, owners); err != nil {
		t.Fatal(err)
	}
	o, err := ownersOf(got, "spec.selector")
	if err != nil || len(o) != 1 || o[0].Manager != "argocd" {
		t.Errorf("owners %+v, %v", o, err)
	}
}
