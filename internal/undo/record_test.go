package undo

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

// golden is a record as a bridge of version 1 wrote it. It must be readable for ever.
func golden(t testing.TB) string { return goldenOf(t, "undo.v1.json") }

func goldenOf(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestGoldenRecordIsRead(t *testing.T) {
	r, err := Parse(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	n, services := r.Summary()
	if n != 3 || len(services) != 1 || services[0] != "orders" || r.Owner != "ada@laptop" || len(r.Created) != 3 {
		t.Errorf("read %+v", r)
	}
	again, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if again != golden(t) {
		t.Errorf("written again it differs:\n%s", again)
	}
}

// A StatefulSet's differs in its kind alone.
func TestGoldenRecordOfAStatefulSetIsRead(t *testing.T) {
	text := goldenOf(t, "undo.v1.statefulset.json")
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := r.Summary(); n != 2 || !r.Replaces() || r.Target.String() != "statefulset/db" || r.Target.Resource() != "statefulsets" {
		t.Errorf("read %+v", r)
	}
	if again, err := r.Marshal(); err != nil || again != text {
		t.Errorf("written again it differs: %v\n%s", err, again)
	}
}

// A Rollout's is of another API.
func TestGoldenRecordOfARolloutIsRead(t *testing.T) {
	text := goldenOf(t, "undo.v1.rollout.json")
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := r.Summary(); n != 2 || !r.Replaces() || !r.Target.Copied() {
		t.Errorf("read %+v", r)
	}
	if again, err := r.Marshal(); err != nil || again != text {
		t.Errorf("written again it differs: %v\n%s", err, again)
	}
	if _, err := Parse(strings.ReplaceAll(text, "argoproj.io/v1alpha1", "example.com/v1")); err == nil {
		t.Error("one of another API is read")
	}
}

// A bare Pod's has no replicas, which would be no change of bridge's.
func TestGoldenRecordOfAPodIsRead(t *testing.T) {
	text := goldenOf(t, "undo.v1.pod.json")
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if r.Replaces() || r.Target.Copied() || r.Target.Path() != "/api/v1/namespaces/shop/pods/web" {
		t.Errorf("read %+v, at %s", r, r.Target.Path())
	}
	if again, err := r.Marshal(); err != nil || again != text {
		t.Errorf("written again it differs: %v\n%s", err, again)
	}
	r.Changes = append(r.Changes, Change{Object: r.Target, Path: "spec.replicas", Before: json.RawMessage("1"), Set: json.RawMessage("0")})
	scaled, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(scaled); err == nil || !strings.Contains(err.Error(), "not a change that bridge makes") {
		t.Errorf("with replicas: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"a newer version", `"version":1`, `"version":2`, "version 2"},
		{"no version", `"version":1`, `"version":0`, "no version"},
		{"another namespace", `"namespace":"shop","name":"orders","uid":"0b7a`, `"namespace":"kube-system","name":"orders","uid":"0b7a`, "kube-system"},
		{"another field", `"path":"spec.selector"`, `"path":"spec.externalName"`, "not a change that bridge makes"},
		{"a number that is text", `"before":3`, `"before":"3"`, "cannot unmarshal"},
		{"a target of another kind", `"target":{"apiVersion":"apps/v1","kind":"Deployment"`, `"target":{"apiVersion":"apps/v1","kind":"../nodes"`, "of a kind that this bridge does not swap"},
		{"replicas of another kind", `"kind":"Deployment","namespace":"shop","name":"orders","uid":"6c1f0000-0000-0000-0000-000000000001"},"path"`,
			`"kind":"StatefulSet","namespace":"shop","name":"orders","uid":"6c1f0000-0000-0000-0000-000000000001"},"path"`, "is not the target"},
		{"a Service of another API", `"apiVersion":"v1","kind":"Service"`, `"apiVersion":"example.com/v1","kind":"Service"`, "not a change that bridge makes"},
		{"a name that a terminal would act on", `"namespace":"shop","name":"orders","uid":"0b7a`, `"namespace":"shop","name":"x\u001b]0;","uid":"0b7a`, "is no name"},
		{"a name that is a path", `"namespace":"shop","name":"orders","uid":"0b7a`, `"namespace":"shop","name":"../secrets/orders","uid":"0b7a`, "is no name"},
		{"no JSON", `{`, `[`, "undo record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !strings.Contains(golden(t), c.old) {
				t.Fatalf("the golden record has no %s", c.old)
			}
			_, err := Parse(strings.Replace(golden(t), c.old, c.new, 1))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzParse: a record read from the cluster may be anything. What is accepted is written back
// with the same meaning.
func FuzzParse(f *testing.F) {
	f.Add(golden(f))
	f.Add(goldenOf(f, "undo.v1.statefulset.json"))
	f.Add(goldenOf(f, "undo.v1.pod.json"))
	f.Add(goldenOf(f, "undo.v1.rollout.json"))
	f.Add(`{"version":1}`)
	f.Add(`{"version":1,"target":{"kind":"Deployment","namespace":"a","name":"b","uid":"c"},"changes":[{"path":"spec.replicas"}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		r.Summary()
		for _, c := range r.Changes {
			// What was set can be undone, and then there is nothing to undo.
			back, err := c.Undo(c.Set)
			if err != nil {
				t.Fatalf("%s: %v", c.Object, err)
			}
			if back == nil {
				back = c.Set
			}
			if again, err := c.Undo(back); again != nil || err != nil {
				t.Fatalf("%s: %s, %v after undoing", c.Object, again, err)
			}
		}
		again, err := r.Marshal()
		if err != nil {
			return // longer when written out
		}
		v, err := Parse(again)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, again)
		}
		third, err := v.Marshal()
		if err != nil || third != again {
			t.Errorf("%v\n%s\n%s", err, again, third)
		}
	})
}

func TestDoAndUndo(t *testing.T) {
	scale := Change{Object: Object{APIVersion: "apps/v1", Kind: "Deployment", Name: "orders"}, Path: "spec.replicas", Before: json.RawMessage(`3`), Set: json.RawMessage(`0`)}
	move := Change{Object: Object{APIVersion: "v1", Kind: "Service", Name: "orders"}, Path: "spec.selector",
		Before: json.RawMessage(`{"app":"orders"}`), Set: json.RawMessage(`{"app":"orders","bridge.internal/proxy":"b"}`)}
	replace := Change{Object: Object{APIVersion: "v1", Kind: "Service", Name: "orders"}, Path: "spec.selector",
		Before: json.RawMessage(`{"app":"orders","tier":"web"}`), Set: json.RawMessage(`{"bridge.internal/proxy":"b"}`)}
	for _, c := range []struct {
		name               string
		change             Change
		now, do, undo      string // "": nothing to write
		doMoved, undoMoved bool
	}{
		{"replicas as before", scale, `3`, `0`, ``, false, false},
		{"replicas as set", scale, `0`, ``, `3`, true, false},
		{"replicas of others", scale, `5`, ``, ``, true, true},
		{"a selector as before", move, `{"app":"orders"}`, string(move.Set), ``, false, false},
		{"a selector as set, in another order", move, `{"bridge.internal/proxy":"b","app":"orders"}`, ``, `{"app":"orders"}`, true, false},
		{"a selector of others", move, `{"app":"other"}`, ``, ``, true, true},
		{"a selector of others with our label", move, `{"bridge.internal/proxy":"b","app":"other"}`, ``, `{"app":"other"}`, true, false},
		{"a selector of others with another's label", move, `{"bridge.internal/proxy":"c","app":"other"}`, ``, ``, true, true},
		{"a selector that is gone", move, `null`, ``, ``, true, true},
		{"a replaced selector", replace, `{"bridge.internal/proxy":"b"}`, ``, `{"app":"orders","tier":"web"}`, true, false},
		{"a replaced selector, and the manifest applied again", replace, `{"app":"orders","bridge.internal/proxy":"b","tier":"web"}`, ``, `{"app":"orders","tier":"web"}`, true, false},
		{"a replaced selector, and others' value", replace, `{"app":"other","bridge.internal/proxy":"b"}`, ``, `{"app":"other","tier":"web"}`, true, false},
		{"a selector of others in place of a replaced one", replace, `{"app":"other"}`, ``, ``, true, true},
	} {
		do, err := c.change.Do(json.RawMessage(c.now))
		if string(do) != c.do || errors.Is(err, ErrMoved) != c.doMoved {
			t.Errorf("%s: Do gives %s, %v", c.name, do, err)
		}
		back, err := c.change.Undo(json.RawMessage(c.now))
		if string(back) != c.undo || errors.Is(err, ErrMoved) != c.undoMoved {
			t.Errorf("%s: Undo gives %s, %v", c.name, back, err)
		}
	}
	patch, err := move.Patch(move.Set, move.Before, "7")
	b, _ := json.Marshal(patch)
	if want := `{"metadata":{"resourceVersion":"7"},"spec":{"selector":{"app":"orders","bridge.internal/proxy":null}}}`; err != nil || string(b) != want {
		t.Errorf("the patch is %s, %v", b, err)
	}
}

func TestOwnershipGoesBack(t *testing.T) {
	const before = `[{"manager":"kubectl","operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:ports":{},"f:selector":{}}}},` +
		`{"manager":"hpa","operation":"Update","apiVersion":"v1","subresource":"scale","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:replicas":{}}}}]`
	changes := []Change{
		{Object: Object{APIVersion: "v1", Kind: "Service"}, Path: "spec.selector", Before: json.RawMessage(`{"a":"b"}`)},
		{Object: Object{APIVersion: "apps/v1", Kind: "Deployment"}, Path: "spec.replicas", Before: json.RawMessage("3")},
	}
	for i := range changes {
		var err error
		if changes[i].Owners, err = OwnersOf(json.RawMessage(before), changes[i].Path); err != nil || len(changes[i].Owners) != 1 {
			t.Fatalf("%+v, %v", changes[i], err)
		}
	}
	// What the API server makes of it when bridge changes both fields.
	after := `[{"manager":"kubectl","operation":"Apply","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:ports":{}}}},` +
		`{"manager":"bridge","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:selector":{}}}},` +
		`{"manager":"bridge","operation":"Update","apiVersion":"v1","subresource":"scale","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{"f:replicas":{}}}}]`
	if got := ownership(t, ownership(t, after, changes[0]), changes[1]); got != before {
		t.Errorf("got  %s\nwant %s", got, before)
	}
	// Another value than before was never theirs: who applies without the field would have it removed.
	for i, now := range []string{`{"a":"c"}`, "5"} {
		patch, err := OwnershipPatch(json.RawMessage(after), json.RawMessage(now), changes[i:i+1], "")
		if err != nil {
			t.Fatal(err)
		}
		if owners, err := OwnersOf(json.RawMessage(ownersIn(t, patch)), changes[i].Path); len(owners) > 0 || err != nil {
			t.Errorf("%s is given to %+v: %v", now, owners, err)
		}
	}
	// A selector that leads to a proxy is another swap's, and so is what is noted.
	if patch, err := OwnershipPatch(json.RawMessage(after), json.RawMessage(`{"a":"b","bridge.internal/proxy":"bridge-deployment-green"}`), changes[:1], ""); patch != nil || err != nil {
		t.Errorf("of another swap's: %v, %v", patch, err)
	}
	// Somebody else took the field meanwhile: theirs.
	after = strings.Replace(after, `"bridge"`, `"argocd"`, 1)
	owners, err := OwnersOf(json.RawMessage(ownership(t, after, changes[0])), "spec.selector")
	if err != nil || len(owners) != 1 || owners[0].Manager != "argocd" {
		t.Errorf("owners %+v, %v", owners, err)
	}
	if patch, err := OwnershipPatch(json.RawMessage(before), changes[0].Before, changes[:1], ""); patch != nil || err != nil {
		t.Errorf("with nothing to give back: %v, %v", patch, err)
	}
	// With nobody left, the list is emptied by what the API server takes for that.
	changes[0].Owners = nil
	if got := ownership(t, `[{"manager":"bridge","operation":"Update","apiVersion":"v1"}]`, changes[0]); got != `[{"manager":"","operation":"","apiVersion":""}]` {
		t.Errorf("an empty list: %s", got)
	}
}

// There is something to take back while a field is as the swap has made it, or in part; and where that cannot be told.
func TestHeld(t *testing.T) {
	r, err := Parse(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	replicas, selector := r.Of(Replicas)[0], r.Of(Selector)[0]
	for _, c := range []struct {
		change Change
		now    string
		held   bool
	}{
		{replicas, "0", true}, {replicas, string(replicas.Before), false}, {replicas, "5", false}, {replicas, "{", true},
		{selector, string(selector.Set), true}, {selector, string(selector.Before), false}, {selector, `{"app":"other"}`, false},
		{selector, `{"app":"other","bridge.internal/proxy":"bridge-deployment-orders"}`, true}, {selector, `null`, false},
	} {
		if got := c.change.Held(json.RawMessage(c.now)); got != c.held {
			t.Errorf("%s %s: %v", c.change.Path, c.now, got)
		}
	}
}

// The record on the target is removed by who gives that swap back; another one only when somebody else than bridge has put it there.
func TestRemoves(t *testing.T) {
	r, err := Parse(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(golden(t), "ada@laptop", "bob@desk", 1)
	by := func(managers ...string) string {
		var list []string
		for _, m := range managers {
			list = append(list, `{"manager":"`+m+`","operation":"Update","apiVersion":"apps/v1","fieldsType":"FieldsV1","fieldsV1":{"f:metadata":{"f:annotations":{"f:bridge.internal/undo":{}}}}}`)
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	for _, c := range []struct {
		name, record, managed string
		removes               bool
	}{
		{"its own", golden(t), by("bridge"), true},
		{"its own, brought back", golden(t), by("kubectl"), true},
		{"none", "", by(), false},
		{"another's", other, by("bridge"), false},
		{"another's, that somebody has applied as well", other, by("kubectl", "bridge"), false},
		{"another's, and nobody is noted", other, `null`, false},
		{"another's, and it is not known who", other, by("ancient-changes", "before-first-apply"), false},
		{"another's, brought back", other, by("kubectl"), true},
		{"one that cannot be read, brought back", "{", by("kubectl"), true},
		{"another's, with fields that cannot be read", other, `{}`, false},
	} {
		if got := r.Removes(c.record, json.RawMessage(c.managed)); got != c.removes {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// The target has the record, and beside it what of that concerns people; both go at once.
func TestMarks(t *testing.T) {
	r, err := Parse(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	patch, err := r.MarkPatch("7")
	if err != nil {
		t.Fatal(err)
	}
	record, err := json.Marshal(golden(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		patch map[string]any
		want  string
	}{
		{patch, `{"metadata":{"annotations":{"bridge.internal/swapped":"begun by ada@laptop at 2026-11-24T12:00:00Z","bridge.internal/undo":` + string(record) + `},"resourceVersion":"7"}}`},
		{UnmarkPatch(""), `{"metadata":{"annotations":{"bridge.internal/swapped":null,"bridge.internal/undo":null}}}`},
	} {
		if b, err := json.Marshal(c.patch); err != nil || string(b) != c.want {
			t.Errorf("%s, %v\nwant %s", b, err, c.want)
		}
	}
}

// A field is owned when it is a leaf of the set, or marked with "." beside what is below it.
func TestFieldSets(t *testing.T) {
	for _, c := range []struct {
		set    string
		has    bool
		insert string
	}{
		{`{}`, false, `{"f:spec":{"f:selector":{}}}`},
		{`{"f:spec":{"f:selector":{}}}`, true, `{"f:spec":{"f:selector":{}}}`},
		{`{"f:spec":{"f:selector":{"f:app":{}}}}`, false, `{"f:spec":{"f:selector":{".":{},"f:app":{}}}}`},
		{`{"f:spec":{"f:selector":{".":{},"f:app":{}}}}`, true, `{"f:spec":{"f:selector":{".":{},"f:app":{}}}}`},
		{`{"f:spec":{}}`, false, `{"f:spec":{".":{},"f:selector":{}}}`},
		{`{"f:spec":{"f:ports":{"k:{\"port\":80}":{".":{}}}}}`, false, `{"f:spec":{"f:ports":{"k:{\"port\":80}":{".":{}}},"f:selector":{}}}`},
	} {
		var f fields
		if err := json.Unmarshal([]byte(c.set), &f); err != nil {
			t.Fatal(err)
		}
		if got := f.has("spec", "selector"); got != c.has {
			t.Errorf("%s has it: %v", c.set, got)
		}
		f.insert("spec.selector")
		if b, _ := json.Marshal(f); string(b) != c.insert {
			t.Errorf("%s with it: %s", c.set, b)
		}
	}
}

// ownership is what giving back one change, whose field is as before, makes of managedFields.
func ownership(t *testing.T, managedFields string, c Change) string {
	t.Helper()
	patch, err := OwnershipPatch(json.RawMessage(managedFields), c.Before, []Change{c}, "")
	if err != nil {
		t.Fatal(err)
	}
	return ownersIn(t, patch)
}

func ownersIn(t *testing.T, patch map[string]any) string {
	t.Helper()
	b, err := json.Marshal(patch["metadata"].(map[string]any)["managedFields"])
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
