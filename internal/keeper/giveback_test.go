package keeper

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
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

	mu     sync.Mutex
	writes []string // that it took, "METHOD PATH"
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
	answer := httptest.NewRecorder()
	code, object := a.refuses(r.Method, path), objects[path]
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
	}
	_, _ = answer.WriteString(object)
	return answer.Result(), nil
}

// giveBack is what a keeper does with that swap, or with dry tries to.
func (a *apiServer) giveBack(ctx context.Context, t *testing.T, dry bool) error {
	t.Helper()
	record, err := undo.Parse(orders)
	if err != nil {
		t.Fatal(err)
	}
	k := &Keeper{API: &API{URL: "https://cluster", Namespace: "shop"}, Lease: "l", Name: "k", Log: slog.New(slog.DiscardHandler)}
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
		a := &apiServer{proxy: true, refuses: func(string, string) int { return 0 }}
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
		a := &apiServer{refuses: func(string, string) int { return 0 }, availableAt: time.Now().Add(readyTimeout / 2)}
		k := &Keeper{API: &API{URL: "https://cluster", Namespace: "shop"}, Lease: "l", Name: "k", Log: slog.New(slog.DiscardHandler)}
		c := newClient(k.API)
		c.http.Transport = a
		if err := (giving{k, c, claim{"1", "ada@laptop", record}}).awaitReady(t.Context()); err != nil || time.Now().Before(a.availableAt) {
			t.Errorf("went on %v before they are: %v", time.Until(a.availableAt), err)
		}
	})
}
