package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
)

const kindsOfCore = `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"configmaps","kind":"ConfigMap","namespaced":true,"verbs":["get","create","patch"]},{"name":"namespaces","kind":"Namespace","namespaced":false,"verbs":["get"]}]}`

// manifestServer has core's kinds, and groups of others beside; what is asked of objects gets answer.
func manifestServer(t *testing.T, answer http.HandlerFunc, groups ...string) *Client {
	t.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/api":
			_, _ = io.WriteString(w, `{"kind":"APIVersions","versions":["v1"]}`)
		case "/apis":
			_, _ = io.WriteString(w, `{"kind":"APIGroupList","groups":[`+strings.Join(groups, ",")+`]}`)
		case "/api/v1":
			_, _ = io.WriteString(w, kindsOfCore)
		default:
			answer(w, r)
		}
	}))
	t.Cleanup(h.Close)
	k, err := NewForConfig(&rest.Config{Host: h.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func says(w http.ResponseWriter, code int, reason, message, details string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q,"details":{%s}}`, code, reason, message, details)
}

// A trial ends with its context, whatever keeps it: an API server that is silent, or a pipe.
func TestTryManifestsEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "it.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: it}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	over := errors.New("over")
	ctx, end := context.WithCancelCause(t.Context())
	k := manifestServer(t, func(_ http.ResponseWriter, r *http.Request) {
		end(over)
		<-r.Context().Done() // it never answers
	})
	if _, err := TryManifests(ctx, k, nil, []string{file}); !errors.Is(err, over) {
		t.Errorf("a silent server: %v", err)
	}
	in, out := io.Pipe()
	defer out.Close()
	ctx, end = context.WithCancelCause(t.Context())
	go func() {
		_, _ = out.Write([]byte("a")) // it is being read
		end(over)
	}()
	if _, err := TryManifests(ctx, k, in, []string{"-"}); !errors.Is(err, over) {
		t.Errorf("an open pipe: %v", err)
	}
}

// No objects are an error, not a trial of nothing.
func TestTryManifestsOfNothing(t *testing.T) {
	k := manifestServer(t, http.NotFound)
	for _, text := range []string{"", "# nothing\n", "---\n", "apiVersion: v1\nkind: List\nitems: []\n"} {
		if tried, err := TryManifests(t.Context(), k, strings.NewReader(text), []string{"-"}); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%q: %+v, %v", text, tried, err)
		}
	}
}

// One object that gets no answer ends it: the others would wait as long. A webhook that fails, of admission or conversion, is no such.
func TestTryManifestsStopsAtAnOutage(t *testing.T) {
	const two = "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: a-}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: b-}\n"
	var mu sync.Mutex
	var asked []string
	message := "the server is away"
	k := manifestServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.URL.Query().Get("dryRun")+" "+r.URL.Query().Get("fieldValidation"))
		says(w, 500, "InternalError", message, "")
	})
	_, err := TryManifests(t.Context(), k, strings.NewReader(two), []string{"-"})
	if err == nil || hint.CodeOf(err) == hint.Usage || len(asked) != 1 || asked[0] != "POST All Strict" {
		t.Errorf("%v, asked %q", err, asked)
	}
	for _, message = range []string{
		`Internal error occurred: failed calling webhook "w.example": no endpoints`,
		`conversion webhook for x.example/v1, Kind=Frob failed: Post "https://x.shop.svc:443/convert": no endpoints`,
	} {
		tried, err := TryManifests(t.Context(), k, strings.NewReader(two), []string{"-"})
		if err != nil || len(tried) != 2 || tried[0].Name != "a-" || tried[0].Err == nil {
			t.Errorf("%s: %+v, %v", message, tried, err)
		}
	}
}

// A kind whose own API server is away is not one that the cluster does not have.
func TestTryManifestsOfAnAPIThatIsAway(t *testing.T) {
	for name, c := range map[string]struct {
		groups  string
		answer  http.HandlerFunc
		untried bool
	}{
		"away": {`{"name":"x.example","versions":[{"groupVersion":"x.example/v1","version":"v1"}]}`, func(w http.ResponseWriter, _ *http.Request) {
			says(w, 503, "ServiceUnavailable", "the server is currently unable to handle the request", "")
		}, true},
		"none": {"", nil, false},
		"other": {`{"name":"x.example","versions":[{"groupVersion":"x.example/v1","version":"v1"}]}`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Replace(kindsOfCore, `"groupVersion":"v1"`, `"groupVersion":"x.example/v1"`, 1))
		}, false},
		"empty": {`{"name":"x.example","versions":[{"groupVersion":"x.example/v1","version":"v1"}]}`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"x.example/v1","resources":[]}`)
		}, false},
	} {
		k := manifestServer(t, func(w http.ResponseWriter, r *http.Request) {
			if c.answer == nil {
				t.Errorf("%s: asked %s", name, r.URL)
				return
			}
			c.answer(w, r)
		}, c.groups)
		tried, err := TryManifests(t.Context(), k, strings.NewReader("apiVersion: x.example/v1\nkind: Frob\nmetadata: {name: it}\n"), []string{"-"})
		if err != nil || len(tried) != 1 || (tried[0].Untried != "") != c.untried || (tried[0].Err != nil) == c.untried {
			t.Errorf("%s: %+v, %v", name, tried, err)
		}
	}
}

// Of objects whose namespace is in the file it is not said that they are refused.
func TestTryManifestsWithTheirNamespace(t *testing.T) {
	k := manifestServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/namespaces"):
			_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"new"}}`)
		case r.Method == http.MethodPost:
			says(w, 404, "NotFound", `namespaces "new" not found`, `"kind":"namespaces","name":"new"`)
		default:
			says(w, 404, "NotFound", "not found", "")
		}
	})
	tried, err := TryManifests(t.Context(), k, strings.NewReader("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: it, namespace: new}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: new}\n"), []string{"-"})
	if err != nil || len(tried) != 2 || tried[0].Err != nil || tried[0].Untried == "" || tried[1].Err != nil {
		t.Errorf("%+v, %v", tried, err)
	}
}

// Of objects whose kind is in the files it is not said that the cluster does not have it, in whatever order, but for a version that is not there either.
func TestTryManifestsWithTheirKind(t *testing.T) {
	const definition = `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"frobs.x.example"},"spec":{"group":"x.example","names":{"kind":"Frob","plural":"frobs"},"versions":[{"name":"v1"},{"name":"v2"}]}}`
	k := manifestServer(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/apis/apiextensions.k8s.io/v1":
			_, _ = io.WriteString(w, `{"kind":"APIResourceList","groupVersion":"apiextensions.k8s.io/v1","resources":[{"name":"customresourcedefinitions","kind":"CustomResourceDefinition","namespaced":false,"verbs":["get","create"]}]}`)
		case r.Method == http.MethodPost:
			_, _ = io.WriteString(w, definition)
		default:
			says(w, 404, "NotFound", "not found", "")
		}
	}, `{"name":"apiextensions.k8s.io","versions":[{"groupVersion":"apiextensions.k8s.io/v1","version":"v1"}]}`)
	object := func(version string) string {
		return "\n---\napiVersion: x.example/" + version + "\nkind: Frob\nmetadata: {name: it}\n"
	}
	for version, untried := range map[string]bool{"v1": true, "v2": true, "v3": false} {
		for _, text := range []string{definition + object(version), object(version) + "---\n" + definition} {
			tried, err := TryManifests(t.Context(), k, strings.NewReader(text), []string{"-"})
			if err != nil || len(tried) != 2 {
				t.Fatalf("%s: %+v, %v", version, tried, err)
			}
			for _, one := range tried {
				if is := one.Kind == "frob" && one.Untried != "" && one.Err == nil; one.Kind != "customresourcedefinition" && is != untried {
					t.Errorf("%s: %+v", version, one)
				}
			}
		}
	}
}

// What admission refuses of a change is told, whatever reason it gives, and whether that is of the file's object too.
func TestTryManifestsThatAdmissionRefuses(t *testing.T) {
	const (
		webhook = `admission webhook "w.example" denied the request: no debug`
		policy  = `configmaps "it" is forbidden: ValidatingAdmissionPolicy 'p.example' with binding 'b' denied request: may not shrink`
	)
	for name, c := range map[string]struct {
		created, changed string // what is said of each; "" takes it
		reason           string
		refused, over    bool
	}{
		"a webhook, of the change":      {"", webhook, "Forbidden", true, true},
		"... as what is invalid":        {"", webhook, "Invalid", true, true},
		"a webhook, of both":            {webhook, webhook, "Invalid", true, false},
		"a policy, of the change":       {"", policy, "Invalid", true, true},
		"a policy, of both":             {policy, policy, "Invalid", true, false},
		"one of each":                   {webhook, policy, "Invalid", true, true},
		"of the new one alone":          {policy, "", "Invalid", false, false},
		"a webhook that does not work":  {"", `failed calling webhook "w.example": no endpoints`, "InternalError", true, false},
		"a webhook that takes no trial": {"", `admission webhook "w.example" does not support dry run`, "BadRequest", false, false},
	} {
		const it = `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"it","namespace":"shop"}}`
		k := manifestServer(t, func(w http.ResponseWriter, r *http.Request) {
			said := map[string]string{http.MethodPost: c.created, http.MethodPatch: c.changed}[r.Method]
			if said == "" {
				_, _ = io.WriteString(w, it)
				return
			}
			code := map[string]int{"Forbidden": 403, "Invalid": 422, "InternalError": 500, "BadRequest": 400}[c.reason]
			says(w, code, c.reason, said, fmt.Sprintf(`"causes":[{"message":%q}]`, said))
		})
		tried, err := TryManifests(t.Context(), k, strings.NewReader(it), []string{"-"})
		if err != nil || len(tried) != 1 || tried[0].Resource != "configmaps" || (tried[0].Err != nil) != c.refused || tried[0].Over != c.over || c.over && !tried[0].Denied() {
			t.Errorf("%s: %+v, %v", name, tried, err)
		}
	}
}

// Of an object that is there, what the two trials have in common is told, wherever in a list, and what may not change.
func TestBothInvalid(t *testing.T) {
	list := field.NewPath("spec", "list")
	invalid := func(all ...*field.Error) error {
		return apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "it", all)
	}
	wrong := func(at int) *field.Error { return field.Required(list.Index(at), "needed") }
	taken := field.Invalid(field.NewPath("spec", "nodePort"), 30000, "provided port is already allocated") // by the old one
	both := field.Forbidden(list.Index(1), "may not have both")                                            // the old one's beside the new one's
	fixed := field.Invalid(field.NewPath("spec", "selector"), "x", "field is immutable")
	labels := func(all map[string]string) *field.Error {
		return field.Invalid(field.NewPath("labels"), all, "`selector` does not match template `labels`")
	}
	number := func(n int32) *field.Error {
		return field.Invalid(field.NewPath("port"), n, "must be between 1 and 65535, inclusive")
	}
	for name, c := range map[string]struct {
		created, changed error
		want             string
	}{
		"over more":       {invalid(labels(map[string]string{"app": "ti"})), invalid(labels(map[string]string{"app": "ti", "of": "it"})), "Pod \"it\" is invalid: labels: Invalid value: {\"app\":\"ti\",\"of\":\"it\"}: `selector` does not match template `labels`"},
		"another number":  {invalid(number(0)), invalid(number(80800)), `Pod "it" is invalid: port: Invalid value: 80800: must be between 1 and 65535, inclusive`},
		"another text":    {invalid(field.NotSupported(list, "a: b", []string{"x"})), invalid(field.NotSupported(list, `c: "d"`, []string{"x"})), `Pod "it" is invalid: spec.list: Unsupported value: "c: \"d\"": supported values: "x"`},
		"another reason":  {invalid(field.Invalid(list, "x", "too short")), invalid(field.Invalid(list, "x", "too long")), ""},
		"a merge alone":   {nil, invalid(both), ""},
		"the name's":      {invalid(taken), invalid(both), ""},
		"its own":         {invalid(wrong(0), taken), invalid(both, wrong(2)), `Pod "it" is invalid: spec.list[2]: Required value: needed`},
		"may not change":  {nil, invalid(both, fixed), `Pod "it" is invalid: spec.selector: Invalid value: "x": field is immutable`},
		"a role":          {nil, invalid(field.Invalid(field.NewPath("roleRef"), "x", "cannot change roleRef")), `Pod "it" is invalid: roleRef: Invalid value: "x": cannot change roleRef`},
		"a smaller claim": {nil, invalid(field.Forbidden(field.NewPath("spec"), "field can not be less than status.capacity")), `Pod "it" is invalid: spec: Forbidden: field can not be less than status.capacity`},
		"not of validity": {errors.New("quota"), invalid(both), ""},
	} {
		got := ""
		if err := bothInvalid(c.created, c.changed); err != nil {
			if got = err.Error(); !apierrors.IsInvalid(err) {
				t.Errorf("%s: it is no longer of validity", name)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}
