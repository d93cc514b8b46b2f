package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/undo"
)

// orders is the record of a swap in mode replace.
const orders = `{"version":1,"target":{"apiVersion":"apps/v1","kind":"Deployment","namespace":"shop","name":"orders","uid":"d"},"changes":[` +
	`{"object":{"apiVersion":"v1","kind":"Service","namespace":"shop","name":"orders","uid":"s"},"path":"spec.selector","before":{"app":"orders"},"set":{"app":"orders","bridge.internal/proxy":"l"}},` +
	`{"object":{"apiVersion":"apps/v1","kind":"Deployment","namespace":"shop","name":"orders","uid":"d"},"path":"spec.replicas","before":3,"set":0}],` +
	`"created":[],"owner":"ada@laptop","since":"2026-11-24T06:30:00Z"}`

// apiServer has that swap, whose laptop is gone, and keeps what is written to it. It answers without a network, so that the clock is synctest's.
type apiServer struct {
	// refuses is the status that a request is answered with, or noAnswer; 0 takes it, and nil takes all.
	refuses func(method, path string) int
	// lost is whether the proxy's pods do not end.
	lost bool
	// readyAt is when the original's pods are Ready, availableAt when those of a Rollout are available, which are Ready.
	readyAt, availableAt time.Time
	// controller is called after each write.
	controller func()

	mu      sync.Mutex
	objects map[string]map[string]any // by path
	writes  []string                  // that it took, "METHOD PATH"
	told    []string                  // the events
}

// noAnswer has a request fail as if the API server were away.
const noAnswer = -1

func newAPIServer() *apiServer {
	a := &apiServer{objects: map[string]map[string]any{}}
	for path, text := range map[string]string{
		"leases/l":             fmt.Sprintf(`{"metadata":{"uid":"lease","annotations":{"bridge.internal/undo":%q}},"spec":{"holderIdentity":"ada@laptop","renewTime":"noon","leaseDurationSeconds":60}}`, orders),
		"services/orders":      `{"metadata":{"uid":"s","managedFields":[]},"spec":{"selector":{"app":"orders","bridge.internal/proxy":"l"}}}`,
		"deployments/orders":   fmt.Sprintf(`{"metadata":{"uid":"d","managedFields":[],"annotations":{"bridge.internal/undo":%q}},"spec":{"replicas":0,"selector":{"matchLabels":{"app":"orders"}}},"status":{}}`, orders),
		"rollouts/orders":      `{"metadata":{"uid":"d","generation":2},"spec":{"replicas":3,"selector":{"matchLabels":{"app":"orders"}}},"status":{"observedGeneration":"2"}}`,
		"deployments/l":        `{"metadata":{"uid":"p","ownerReferences":[{"uid":"lease"}]}}`,
		"replicasets/orders-1": replicaSet("orders-1", "d", true),
	} {
		a.objects[path] = parse(text)
	}
	return a
}

func parse(text string) (o map[string]any) {
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	return o
}

// replicaSet is one of the Deployment with the UID owner, with or without a copy of the record.
func replicaSet(name, owner string, marked bool) string {
	mark := ""
	if marked {
		mark = `"bridge.internal/undo":"{}"`
	}
	return fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"app":"orders"},"ownerReferences":[{"uid":%q}],"annotations":{%s}}}`, name, owner, mark)
}

// at is a field of an object, or of one that is not there, as JSON.
func (a *apiServer) at(path string, names ...string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var v any = a.objects[path]
	for _, name := range names {
		below, _ := v.(map[string]any)
		v = below[name]
	}
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// marked tells whether an object has a copy of the record.
func (a *apiServer) marked(path string) bool {
	return a.at(path, "metadata", "annotations", undo.Annotation) != "null"
}

func (a *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, path, _ := strings.Cut(r.URL.Path, "/namespaces/shop/")
	code := 0
	if a.refuses != nil {
		code = a.refuses(r.Method, path)
	}
	if code == noAnswer {
		return nil, errors.New("no answer")
	}
	answer := httptest.NewRecorder()
	var object any
	if code == 0 {
		code, object = a.do(r, path, body)
	}
	if answer.WriteHeader(code); code != http.StatusOK {
		object = map[string]any{"message": fmt.Sprintf("refused with %d", code)}
	}
	err := json.NewEncoder(answer).Encode(object)
	return answer.Result(), err
}

func (a *apiServer) do(r *http.Request, path string, body []byte) (code int, answer any) {
	at, scale := strings.CutSuffix(path, "/scale")
	o := a.objects[at]
	dry := r.URL.Query().Has("dryRun") || strings.Contains(string(body), `"dryRun"`)
	switch {
	case r.Method == http.MethodGet && path == "replicasets":
		return http.StatusOK, a.page(r.URL.Query())
	case r.Method == http.MethodPost:
		a.told = append(a.told, string(body))
	case o == nil:
		return http.StatusNotFound, nil
	case r.Method == http.MethodGet && at == "deployments/orders" && !scale:
		o["status"] = map[string]any{}
		if !time.Now().Before(a.readyAt) {
			o["status"] = map[string]any{"readyReplicas": o["spec"].(map[string]any)["replicas"]}
		}
	case r.Method == http.MethodGet && at == "rollouts/orders" && !time.Now().Before(a.availableAt):
		merge(o, parse(`{"status":{"availableReplicas":3}}`))
	case r.Method == http.MethodPatch && !dry:
		merge(o, parse(string(body)))
	case r.Method == http.MethodDelete && !dry && (!a.lost || !strings.Contains(string(body), foreground)):
		delete(a.objects, at)
	}
	if r.Method != http.MethodGet {
		if a.writes = append(a.writes, r.Method+" "+path); a.controller != nil {
			a.controller()
		}
	}
	return http.StatusOK, o
}

// page is one of the list of the ReplicaSets, each of one. Of selectors it knows labels that are equal.
func (a *apiServer) page(query url.Values) any {
	from, selector := query.Get("continue"), query.Get("labelSelector")
	matches := func(o map[string]any) bool {
		labels, _ := o["metadata"].(map[string]any)["labels"].(map[string]any)
		for _, term := range strings.FieldsFunc(selector, func(r rune) bool { return r == ',' }) {
			if key, value, _ := strings.Cut(term, "="); labels[key] != value {
				return false
			}
		}
		return true
	}
	var paths []string
	for path, o := range a.objects {
		if strings.HasPrefix(path, "replicasets/") && matches(o) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	if len(paths) == 0 {
		return map[string]any{}
	}
	i, next := max(0, slices.Index(paths, from)), ""
	if i+1 < len(paths) {
		next = paths[i+1]
	}
	return map[string]any{"metadata": map[string]any{"continue": next}, "items": []any{a.objects[paths[i]]}}
}

// merge is RFC 7396.
func merge(into, patch map[string]any) {
	for key, value := range patch {
		below, deep := value.(map[string]any)
		if is, ok := into[key].(map[string]any); ok && deep {
			merge(is, below)
		} else if into[key] = value; value == nil {
			delete(into, key)
		}
	}
}

// keeper is that swap's, which knows of one ReplicaSet.
func (a *apiServer) keeper() *Keeper {
	k := &Keeper{API: &API{URL: "https://cluster", Namespace: "shop"}, Lease: "l", Name: "k", ReplicaSets: []string{"orders-1"}, OnReady: func() {}, Log: slog.New(slog.DiscardHandler)}
	k.client = newClient(k.API)
	k.client.http.Transport = a
	return k
}

// reads is that swap's keeper, and what it makes of the Lease.
func (a *apiServer) reads(t *testing.T) (*Keeper, claim) {
	t.Helper()
	k := a.keeper()
	lease, err := k.ask(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.read(lease)
	if err != nil {
		t.Fatal(err)
	}
	return k, c
}

// giveBack is what a keeper does with that swap when it has taken it, or with dry tries to.
func (a *apiServer) giveBack(ctx context.Context, t *testing.T, dry bool) error {
	t.Helper()
	record, err := undo.Parse(orders)
	if err != nil {
		t.Fatal(err)
	}
	k := a.keeper()
	k.uid = "lease"
	c := k.client
	if dry {
		c = c.dryRun()
	} else {
		merge(a.objects["leases/l"], parse(`{"spec":{"holderIdentity":"restore by keeper k"}}`))
	}
	return k.giveBack(ctx, c, claim{version: "1", from: "ada@laptop", record: record})
}

// The original is started whatever keeps a Service from being written to; but a keeper that finds that before is not Ready.
func TestOriginalIsStartedThoughAServiceRefuses(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPIServer()
				a.refuses = func(method, path string) int {
					if method == http.MethodPatch && path == "services/orders" {
						return code
					}
					return 0
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*fenceTimeout)
				defer cancel()
				if err := a.giveBack(ctx, t, false); err == nil || !slices.Contains(a.writes, "PATCH deployments/orders/scale") {
					t.Errorf("gave back with %q: %v", a.writes, err)
				}
				if err := a.giveBack(t.Context(), t, true); !refusedWith(err, code) {
					t.Errorf("the dry run: %v", err)
				}
			})
		})
	}
}

// What somebody scales to 0 when it was given back stays at 0, and what a bridge that was still swapping has scaled so late does not.
func TestScaledToZeroMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		begins int    // the replicas
		when   string // after this write it is 0
		want   string
	}{
		"by somebody":      {0, "PATCH deployments/orders/scale", "0"},
		"by a late bridge": {3, "PATCH services/orders", "3"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPIServer()
				merge(a.objects["deployments/orders"], map[string]any{"spec": map[string]any{"replicas": c.begins}})
				a.controller = func() {
					if a.writes[len(a.writes)-1] == c.when {
						c.when = ""
						merge(a.objects["deployments/orders"], parse(`{"spec":{"replicas":0}}`))
					}
				}
				if err := a.giveBack(t.Context(), t, false); err != nil || a.at("deployments/orders", "spec", "replicas") != c.want || c.when != "" {
					t.Errorf("it wants %s replicas after %q: %v", a.at("deployments/orders", "spec", "replicas"), a.writes, err)
				}
			})
		})
	}
}

// What is given back is noted on the Lease before anything else goes: whoever goes on from there writes to nothing that would have to be undone again,
// for the Lease may be deleted then.
func TestWhatIsGivenBackIsNotFencedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.controller = func() {
			if a.writes[len(a.writes)-1] == "PATCH replicasets/orders-1" {
				a.refuses = func(string, string) int { return http.StatusForbidden } // as good as killed there
			}
		}
		if err := a.giveBack(t.Context(), t, false); err == nil {
			t.Fatal("it was not kept from going on")
		}
		a.refuses, a.controller, a.writes = nil, nil, nil
		k, c := a.reads(t)
		if err := k.giveBack(t.Context(), k.client, c); err != nil || a.objects["leases/l"] != nil || a.marked("replicasets/orders-1") {
			t.Errorf("went on with %q: %v", a.writes, err)
		}
		for _, w := range a.writes {
			if strings.Contains(w, "services/") || strings.Contains(w, "/scale") {
				t.Errorf("wrote %q", a.writes)
			}
		}
	})
}

// A bridge that could not be fenced, and moves callers when all is given back, is undone by whoever goes on; and the keeper notes that all is given back on
// its own Lease alone.
func TestOverIsNotBlind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		k, c := a.reads(t)
		c.over = true
		merge(a.objects["leases/l"], parse(`{"spec":{"holderIdentity":"restore by keeper k"}}`))
		if err := k.giveBack(t.Context(), k.client, c); err != nil || a.at("services/orders", "spec", "selector") != `{"app":"orders"}` {
			t.Errorf("the selector is %s: %v", a.at("services/orders", "spec", "selector"), err)
		}
		if a.at("services/orders", "metadata", "annotations") != "null" || slices.Contains(a.writes, "PATCH deployments/orders/scale") {
			t.Errorf("wrote %q", a.writes)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.controller = func() {
			if a.writes[len(a.writes)-1] == "PATCH services/orders" {
				merge(a.objects["leases/l"], parse(`{"spec":{"holderIdentity":"restore by eve@desk"}}`))
			}
		}
		if err := a.giveBack(t.Context(), t, false); !errors.Is(err, errTaken) || a.at("leases/l", "metadata", "annotations", undo.OverAnnotation) != "null" {
			t.Errorf("another's Lease has %s: %v", a.at("leases/l", "metadata", "annotations"), err)
		}
	})
}

// However often giving back begins anew, what somebody scales to 0 meanwhile stays.
func TestScaledToZeroBetweenTwoTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.refuses = func(method, path string) int {
			if method == http.MethodDelete && path == "deployments/l" {
				return http.StatusForbidden
			}
			return 0
		}
		record, err := undo.Parse(orders)
		if err != nil {
			t.Fatal(err)
		}
		k := a.keeper()
		k.uid = "lease"
		merge(a.objects["leases/l"], parse(`{"spec":{"holderIdentity":"restore by keeper k"}}`))
		for range 2 {
			if err := k.giveBack(t.Context(), k.client, claim{version: "1", from: "ada@laptop", record: record}); err == nil {
				t.Fatal("it was not kept from ending")
			}
			merge(a.objects["deployments/orders"], parse(`{"spec":{"replicas":0}}`))
		}
		a.refuses = nil
		if err := k.giveBack(t.Context(), k.client, claim{version: "1", from: "ada@laptop", record: record}); err != nil || a.at("deployments/orders", "spec", "replicas") != "0" {
			t.Errorf("it wants %s replicas: %v", a.at("deployments/orders", "spec", "replicas"), err)
		}
	})
}

// A pod of the proxy whose node is lost ends when the cluster gives the node up, if ever: all else is given back by then. While the keeper waits
// its heartbeat says that it is at work.
func TestProxyOnALostNodeIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.lost = true
		ctx, cancel := context.WithTimeout(t.Context(), 2*goneTimeout)
		defer cancel()
		if err := a.giveBack(ctx, t, false); err != nil || a.objects["deployments/l"] != nil || a.objects["leases/l"] != nil {
			t.Errorf("gave back with %q: %v", a.writes, err)
		}
		beats := 0
		for _, w := range a.writes {
			if w == "PATCH leases/l" {
				beats++
			}
		}
		if beats < 6 {
			t.Errorf("%d heartbeats in a minute: %q", beats, a.writes)
		}
	})
}

// The deployment controller copies the record to the ReplicaSet of a rollout that somebody makes while it is swapped, too. Others' are not written to.
func TestRecordGoesFromAReplicaSetOfARollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		for name, text := range map[string]string{"orders-2": replicaSet("orders-2", "d", true), "orders-3": replicaSet("orders-3", "d", false), "other-1": replicaSet("other-1", "e", true)} {
			a.objects["replicasets/"+name] = parse(text)
		}
		late := 2 // times that it has not seen yet that the target has none
		a.controller = func() {
			if a.writes[len(a.writes)-1] == "PATCH replicasets/orders-2" && late > 0 {
				late--
				a.objects["replicasets/orders-2"] = parse(replicaSet("orders-2", "d", true))
			}
		}
		if err := a.giveBack(t.Context(), t, true); err != nil || !slices.Contains(a.writes, "PATCH replicasets/orders-3") || slices.Contains(a.writes, "PATCH replicasets/other-1") {
			t.Errorf("the dry run: %v with %q", err, a.writes)
		}
		late, a.writes = 2, nil
		if err := a.giveBack(t.Context(), t, false); err != nil {
			t.Fatal(err)
		}
		if a.marked("replicasets/orders-1") || a.marked("replicasets/orders-2") || !a.marked("replicasets/other-1") || slices.Contains(a.writes, "PATCH replicasets/orders-3") {
			t.Errorf("gave back with %q", a.writes)
		}
	})
}

// What keeps the record there, whatever that is, does not keep the rest from being given back.
func TestRecordThatComesBackIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.controller = func() { a.objects["replicasets/orders-1"] = parse(replicaSet("orders-1", "d", true)) }
		begun := time.Now()
		if err := a.giveBack(t.Context(), t, false); err != nil || a.objects["leases/l"] != nil {
			t.Errorf("gave back with %q: %v", a.writes, err)
		}
		if took := time.Since(begun); took > 2*cleanLooks*cleanAfter+3*settle {
			t.Errorf("it took %v", took)
		}
	})
}

// A Role that was prepared before keepers listed ReplicaSets still does for those that are known by name; that it may be less than all is told.
func TestReplicaSetsThatMayNotBeListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		a.objects["replicasets/orders-2"] = parse(replicaSet("orders-2", "d", true))
		a.refuses = func(_, path string) int {
			if path == "replicasets" {
				return http.StatusForbidden
			}
			return 0
		}
		if err := a.giveBack(t.Context(), t, true); err != nil {
			t.Errorf("the dry run: %v", err)
		}
		if err := a.giveBack(t.Context(), t, false); err != nil || a.marked("replicasets/orders-1") || !a.marked("replicasets/orders-2") {
			t.Errorf("gave back with %q: %v", a.writes, err)
		}
		if len(a.told) != 1 || !strings.Contains(a.told[0], "not allowed to list replicasets") {
			t.Errorf("told %q", a.told)
		}
	})
}

// An original that is never Ready, as when its image is gone, is waited for two minutes; then all else is given back, and that is said.
func TestOriginalThatIsNeverReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		begun := time.Now()
		a.readyAt = begun.Add(time.Hour)
		var moved time.Duration
		a.controller = func() {
			if moved == 0 && a.writes[len(a.writes)-1] == "PATCH services/orders" && !strings.Contains(fmt.Sprint(a.objects["services/orders"]["spec"]), undo.ProxyLabel) {
				moved = time.Since(begun)
			}
		}
		log, _ := a.run(t, "", "", 0, 0)
		if to := a.come(); !slices.Equal(to, milestones) || !strings.Contains(log, "the original is not Ready; going on") {
			t.Errorf("came to %q:\n%s", to, log)
		}
		if lapsed := time.Minute; moved < lapsed+readyTimeout || moved > lapsed+readyTimeout+20*time.Second {
			t.Errorf("the callers went back after %v", moved)
		}
	})
}

// A Rollout says as text which generation its controller has seen.
func TestObservedGenerationOfEachKind(t *testing.T) {
	for text, want := range map[string]int64{`{"observedGeneration":4}`: 4, `{"observedGeneration":"4"}`: 4, `{"observedGeneration":"6b5f7c"}`: 0, `{}`: 0} {
		var o object
		if err := json.Unmarshal([]byte(`{"status":`+text+`}`), &o); err != nil || o.observed() != want {
			t.Errorf("%s: %d, %v", text, o.observed(), err)
		}
	}
}

// A Rollout's own Services reach its pods when these are available, and not when they are Ready.
func TestARolloutIsWaitedForUntilItsPodsAreAvailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		record, err := undo.Parse(strings.ReplaceAll(orders, `"apiVersion":"apps/v1","kind":"Deployment"`, `"apiVersion":"argoproj.io/v1alpha1","kind":"Rollout"`))
		if err != nil {
			t.Fatal(err)
		}
		a := newAPIServer()
		a.availableAt = time.Now().Add(readyTimeout / 2)
		k := a.keeper()
		if err := (giving{Keeper: k, api: k.client, claim: claim{version: "1", from: "ada@laptop", record: record}}).awaitReady(t.Context()); err != nil || time.Now().Before(a.availableAt) {
			t.Errorf("went on %v before they are: %v", time.Until(a.availableAt), err)
		}
	})
}

// One Service whose admission webhook is down, or that somebody writes to all the time, keeps no other's callers waiting, also of one that is tried again.
func TestOneServiceThatFailsKeepsNoOther(t *testing.T) {
	for _, code := range []int{http.StatusInternalServerError, http.StatusConflict, http.StatusForbidden, http.StatusUnprocessableEntity} {
		t.Run(fmt.Sprint(code), func(t *testing.T) { oneServiceFails(t, code) })
	}
}

func oneServiceFails(t *testing.T, code int) {
	synctest.Test(t, func(t *testing.T) {
		record, err := undo.Parse(strings.Replace(orders, `"changes":[`, `"changes":[{"object":{"apiVersion":"v1","kind":"Service","namespace":"shop","name":"first","uid":"f"},"path":"spec.selector","before":{"app":"orders"},"set":{"app":"orders","bridge.internal/proxy":"l"}},`, 1))
		if err != nil {
			t.Fatal(err)
		}
		a := newAPIServer()
		a.objects["services/first"] = parse(`{"metadata":{"uid":"f"},"spec":{"selector":{"app":"orders","bridge.internal/proxy":"l"}}}`)
		merge(a.objects["leases/l"], parse(`{"spec":{"holderIdentity":"restore by keeper k"}}`))
		late := 3
		a.refuses = func(method, path string) int {
			switch {
			case method == http.MethodPatch && path == "services/first":
				return code
			case method == http.MethodPatch && path == "services/orders" && late > 0:
				late--
				return http.StatusConflict
			}
			return 0
		}
		k := a.keeper()
		k.uid = "lease"
		ctx, cancel := context.WithTimeout(t.Context(), 10*retryPause)
		defer cancel()
		err = giving{Keeper: k, api: k.client, claim: claim{version: "1", from: "ada@laptop", record: record}}.undoAll(undo.Selector)(ctx)
		if !slices.Contains(a.writes, "PATCH services/orders") || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("service/first: refused with %d", code)) {
			t.Errorf("changed %q: %v", a.writes, err)
		}
	})
}

// A workload's selector is asked for in a list as the API server reads it.
func TestChosen(t *testing.T) {
	for selector, want := range map[string]string{
		``:                                  "",
		`{}`:                                "",
		`{"matchLabels":{"b":"2","a":"1"}}`: "a=1,b=2",
		`{"matchLabels":{"a":""}}`:          "a=",
		`{"matchExpressions":[{"key":"t","operator":"In","values":["x","y"]},{"key":"u","operator":"NotIn","values":["z"]},{"key":"v","operator":"Exists"},{"key":"w","operator":"DoesNotExist"}]}`: "t in (x,y),u notin (z),v,!w",
	} {
		if got, err := chosen(json.RawMessage(selector)); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", selector, got, err, want)
		}
	}
	if got, err := chosen(json.RawMessage(`{"matchExpressions":[{"key":"t","operator":"Like"}]}`)); err == nil {
		t.Errorf("an operator that is not known: %q", got)
	}
}

// What says by whom it is swapped goes where somebody has removed the record beside it, too.
func TestNoteWithoutARecordGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		for _, path := range []string{"deployments/orders", "replicasets/orders-1"} {
			merge(a.objects[path], parse(`{"metadata":{"annotations":{"bridge.internal/undo":null,"bridge.internal/swapped":"begun by ada@laptop at noon"}}}`))
		}
		err := a.giveBack(t.Context(), t, false)
		for _, path := range []string{"deployments/orders", "replicasets/orders-1"} {
			if is := a.at(path, "metadata", "annotations", undo.SwappedAnnotation); err != nil || is != "null" {
				t.Errorf("%s has %s: %v", path, is, err)
			}
		}
	})
}
