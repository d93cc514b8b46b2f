package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
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

// apiServer has that swap, which is the keeper's to give back. It answers without a network, so that the clock is synctest's.
type apiServer struct {
	// refuses is the status that a request gets; 0 takes it.
	refuses func(method, path string) int
	// proxy is whether the proxy's Deployment is there.
	proxy bool
	// availableAt is when the Rollout's pods, which are Ready, are available.
	availableAt time.Time
	// sets are the namespace's ReplicaSets, by name.
	sets map[string]*replicaSet
	// controller is called after each write to one of them.
	controller func()

	mu     sync.Mutex
	writes []string // that it took, "METHOD PATH"
	told   string   // the last event
}

// replicaSet is one of the Deployment with the UID owner, with or without a copy of the record.
type replicaSet struct {
	owner  string
	marked bool
}

// page is one of the list of the ReplicaSets, each of one.
func (a *apiServer) page(from string) string {
	names := slices.Sorted(maps.Keys(a.sets))
	i := max(0, slices.Index(names, from))
	if len(names) == 0 {
		return `{"items":[]}`
	}
	next, annotations := "", "{}"
	if i+1 < len(names) {
		next = names[i+1]
	}
	if a.sets[names[i]].marked {
		annotations = `{"bridge.internal/undo":"{}"}`
	}
	return fmt.Sprintf(`{"metadata":{"continue":%q},"items":[{"metadata":{"name":%q,"ownerReferences":[{"uid":%q}],"annotations":%s}}]}`,
		next, names[i], a.sets[names[i]].owner, annotations)
}

func (a *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, path, _ := strings.Cut(r.URL.Path, "/namespaces/shop/")
	objects := map[string]string{
		"leases/l":                 `{"metadata":{"uid":"lease"},"spec":{"holderIdentity":"restore by keeper k"}}`,
		"services/orders":          `{"metadata":{"uid":"s","managedFields":[]},"spec":{"selector":{"app":"orders","bridge.internal/proxy":"l"}}}`,
		"deployments/orders":       `{"metadata":{"uid":"d","managedFields":[]},"spec":{"replicas":3},"status":{"readyReplicas":3}}`,
		"deployments/orders/scale": `{"metadata":{"uid":"d"},"spec":{}}`,
	}
	available := 0
	if !time.Now().Before(a.availableAt) {
		available = 3
	}
	objects["rollouts/orders"] = fmt.Sprintf(`{"metadata":{"uid":"d","generation":2},"spec":{"replicas":3},"status":{"observedGeneration":"2","readyReplicas":3,"availableReplicas":%d}}`, available)
	if a.proxy {
		objects["deployments/l"] = `{"metadata":{"uid":"p","ownerReferences":[{"uid":"lease"}]}}`
	}
	objects["replicasets"] = a.page(r.URL.Query().Get("continue"))
	name, _ := strings.CutPrefix(path, "replicasets/")
	set := a.sets[name]
	if set != nil {
		objects[path] = "{}"
	}
	if r.Method == http.MethodPost {
		objects[path] = "{}" // it makes what is not there
	}
	answer := httptest.NewRecorder()
	var code int
	if a.refuses != nil {
		code = a.refuses(r.Method, path)
	}
	object := objects[path]
	if path == "deployments/l" && strings.Contains(string(body), `"propagationPolicy":"Background"`) {
		a.proxy = false // else its pods stay, and it with them
	}
	switch {
	case code != 0:
		answer.WriteHeader(code)
		object = fmt.Sprintf(`{"message":"refused with %d"}`, code)
	case object == "":
		answer.WriteHeader(http.StatusNotFound)
	case r.Method != http.MethodGet:
		a.writes = append(a.writes, r.Method+" "+path)
		if path == "events" {
			a.told = string(body)
		}
		if set != nil && r.URL.Query().Get("dryRun") == "" {
			if set.marked = false; a.controller != nil {
				a.controller()
			}
		}
	}
	_, _ = answer.WriteString(object)
	return answer.Result(), nil
}

// giveBack is what a keeper does with that swap, or with dry tries to; it knows of one ReplicaSet.
func (a *apiServer) giveBack(ctx context.Context, t *testing.T, dry bool) error {
	t.Helper()
	record, err := undo.Parse(orders)
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{API: &API{URL: "https://cluster", Namespace: "shop"}, Lease: "l", Name: "k", ReplicaSets: []string{"orders-1"}, Log: slog.New(slog.DiscardHandler)}
	k.client, k.uid = newClient(k.API), "lease"
	k.client.http.Transport = a
	c := k.client
	if dry {
		c = c.dryRun()
	}
	return k.giveBack(ctx, c, claim{"1", "ada@laptop", record})
}

// The original is started whatever keeps a Service from being written to; but a keeper that finds that before is not Ready.
func TestOriginalIsStartedThoughAServiceRefuses(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusInternalServerError} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &apiServer{refuses: func(method, path string) int {
					if method == http.MethodPatch && path == "services/orders" {
						return code
					}
					return 0
				}}
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

// A pod of the proxy whose node is lost ends when the cluster gives the node up, if ever: all else is given back by then. While the keeper waits
// its heartbeat says that it is at work.
func TestProxyOnALostNodeIsNotWaitedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &apiServer{proxy: true}
		ctx, cancel := context.WithTimeout(t.Context(), 2*goneTimeout)
		defer cancel()
		if err := a.giveBack(ctx, t, false); err != nil || a.proxy || !slices.Contains(a.writes, "DELETE leases/l") {
			t.Errorf("gave back with %q, the proxy there still: %v: %v", a.writes, a.proxy, err)
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
		sets := map[string]*replicaSet{"orders-1": {"d", true}, "orders-2": {"d", true}, "orders-3": {"d", false}, "other-1": {"e", true}}
		a := &apiServer{sets: sets}
		late := 2 // times that it has not seen yet that the target has none
		a.controller = func() {
			if late--; late >= 0 {
				sets["orders-2"].marked = true
			}
		}
		if err := a.giveBack(t.Context(), t, false); err != nil {
			t.Fatal(err)
		}
		if sets["orders-1"].marked || sets["orders-2"].marked || !sets["other-1"].marked || slices.Contains(a.writes, "PATCH replicasets/orders-3") {
			t.Errorf("the record is on orders-1: %v, orders-2: %v; gave back with %q", sets["orders-1"].marked, sets["orders-2"].marked, a.writes)
		}
		a.writes = nil
		if err := a.giveBack(t.Context(), t, true); err != nil || !slices.Contains(a.writes, "PATCH replicasets/orders-3") || slices.Contains(a.writes, "PATCH replicasets/other-1") {
			t.Errorf("the dry run: %v with %q", err, a.writes)
		}
	})
}

// What keeps the record there, whatever that is, does not keep the rest from being given back.
func TestRecordThatComesBackIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sets := map[string]*replicaSet{"orders-1": {"d", true}}
		a := &apiServer{sets: sets, controller: func() { sets["orders-1"].marked = true }}
		begun := time.Now()
		if err := a.giveBack(t.Context(), t, false); err != nil || !slices.Contains(a.writes, "DELETE leases/l") {
			t.Errorf("gave back with %q: %v", a.writes, err)
		}
		if took := time.Since(begun); took > cleanTimeout+2*settle {
			t.Errorf("it took %v", took)
		}
	})
}

// A Role that was prepared before keepers listed ReplicaSets still does for those that are known by name; that it may be less than all is told.
func TestReplicaSetsThatMayNotBeListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sets := map[string]*replicaSet{"orders-1": {"d", true}, "orders-2": {"d", true}}
		a := &apiServer{sets: sets, refuses: func(_, path string) int {
			if path == "replicasets" {
				return http.StatusForbidden
			}
			return 0
		}}
		if err := a.giveBack(t.Context(), t, true); err != nil {
			t.Errorf("the dry run: %v", err)
		}
		if err := a.giveBack(t.Context(), t, false); err != nil || sets["orders-1"].marked || !sets["orders-2"].marked {
			t.Errorf("gave back with %q: %v", a.writes, err)
		}
		if !strings.Contains(a.told, "not allowed to list replicasets") {
			t.Errorf("told %s", a.told)
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
		a := &apiServer{availableAt: time.Now().Add(readyTimeout / 2)}
		k := &Keeper{API: &API{URL: "https://cluster", Namespace: "shop"}, Lease: "l", Name: "k", Log: slog.New(slog.DiscardHandler)}
		c := newClient(k.API)
		c.http.Transport = a
		if err := (giving{k, c, claim{"1", "ada@laptop", record}}).awaitReady(t.Context()); err != nil || time.Now().Before(a.availableAt) {
			t.Errorf("went on %v before they are: %v", time.Until(a.availableAt), err)
		}
	})
}
