package keeper

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/undo"
)

// What giving back comes to, in order.
var milestones = []string{"taken", "scaled", "moved", "unrecorded", "ended", "clean", "released"}

// come is how far it has come, by what is there now.
func (a *apiServer) come() (to []string) {
	released := a.at("leases/l") == "null"
	for i, there := range []bool{
		released || a.at("leases/l", "spec", "holderIdentity") == `"restore by keeper k"`,
		a.at("deployments/orders", "spec", "replicas") == "3",
		a.at("services/orders", "spec", "selector") == `{"app":"orders"}`,
		!a.marked("deployments/orders"),
		a.at("deployments/l") == "null",
		!a.marked("replicasets/orders-1"),
		released,
	} {
		if there {
			to = append(to, milestones[i])
		}
	}
	return to
}

// requests are all that a keeper makes when it gives back, and what of milestones none of them being answered keeps it from; "" is nothing.
var requests = []struct{ method, path, keepsFrom string }{
	{http.MethodGet, "leases/l", "taken"},
	{http.MethodPatch, "leases/l", "taken"},
	{http.MethodGet, "deployments/orders/scale", "scaled"},
	{http.MethodPatch, "deployments/orders/scale", "scaled"},
	{http.MethodGet, "services/orders", "moved"},
	{http.MethodPatch, "services/orders", "moved"},
	{http.MethodGet, "deployments/orders", "unrecorded"},
	{http.MethodPatch, "deployments/orders", "unrecorded"},
	{http.MethodGet, "deployments/l", "ended"},
	{http.MethodDelete, "deployments/l", "ended"},
	{http.MethodGet, "replicasets", "clean"},
	{http.MethodPatch, "replicasets/orders-1", "clean"},
	{http.MethodPost, "events", ""},
	{http.MethodDelete, "leases/l", "released"},
}

// run has the swap's keeper at work for five minutes, in which the laptop is gone, and a request that is refused is answered with code,
// as often as that, from when the keeper is ready. It returns what the keeper has logged.
func (a *apiServer) run(t *testing.T, method, path string, code, times int) (log string, ready bool) {
	t.Helper()
	var out bytes.Buffer
	var began atomic.Bool
	a.refuses = func(m, p string) int {
		if !began.Load() || m != method || p != path || times == 0 {
			return 0
		}
		times--
		return code
	}
	k := a.keeper()
	k.OnReady, k.Log = func() { began.Store(true) }, slog.New(slog.NewTextHandler(&out, nil))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := k.Run(ctx); err != nil {
		t.Error(err)
	}
	return out.String(), began.Load()
}

// Whatever request is refused for a while, and however, all is given back in the end, and told once.
func TestRefusalsThatPass(t *testing.T) {
	for _, r := range requests {
		for _, code := range []int{http.StatusForbidden, http.StatusConflict, http.StatusInternalServerError, noAnswer} {
			t.Run(fmt.Sprintf("%s %s %d", r.method, r.path, code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPIServer()
					log, _ := a.run(t, r.method, r.path, code, 3)
					if to := a.come(); !slices.Equal(to, milestones) {
						t.Errorf("came to %q:\n%s", to, log)
					}
					if r.path != "events" && len(a.told) != 1 {
						t.Errorf("told %q", a.told)
					}
				})
			})
		}
	}
}

// A request that is refused for good stops what comes after it, so that whoever gives back later finds the record; the keeper says so, and that once for
// each time that it begins anew.
func TestRefusalsThatStay(t *testing.T) {
	for _, r := range requests {
		for _, code := range []int{http.StatusForbidden, http.StatusConflict, http.StatusInternalServerError, noAnswer} {
			t.Run(fmt.Sprintf("%s %s %d", r.method, r.path, code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPIServer()
					log, _ := a.run(t, r.method, r.path, code, -1)
					want := milestones
					switch i := slices.Index(milestones, r.keepsFrom); {
					case r.path == "replicasets" && code == http.StatusForbidden: // those that are named are clean
					case i >= 0:
						want = milestones[:i]
					}
					if to := a.come(); !slices.Equal(to, want) {
						t.Errorf("came to %q, want %q:\n%s", to, want, log)
					}
					said := "refused with"
					if code == noAnswer {
						said = "no answer"
					}
					if lines := strings.Count(log, said); r.keepsFrom != "" && (lines == 0 || lines > 60) {
						t.Errorf("%d times %q:\n%s", lines, said, log)
					}
					if len(a.told) > 1 {
						t.Errorf("told %d times", len(a.told))
					}
				})
			})
		}
	}
}

// Where one Service may not be changed back, the callers of the others are.
func TestOneServiceKeepsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPIServer()
		another := strings.Replace(orders, `"changes":[`, `"changes":[{"object":{"apiVersion":"v1","kind":"Service","namespace":"shop","name":"first","uid":"f"},"path":"spec.selector","before":{"app":"orders"},"set":{"bridge.internal/proxy":"l"}},`, 1)
		a.objects["leases/l"]["metadata"].(map[string]any)["annotations"] = map[string]any{undo.Annotation: another}
		a.objects["services/first"] = parse(`{"metadata":{"uid":"f","managedFields":[]},"spec":{"selector":{"bridge.internal/proxy":"l"}}}`)
		log, _ := a.run(t, http.MethodPatch, "services/first", http.StatusForbidden, -1)
		if to := a.come(); !slices.Equal(to, milestones[:3]) || strings.Contains(a.at("services/first", "spec", "selector"), "orders") {
			t.Errorf("came to %q:\n%s", to, log)
		}
	})
}

// Of what is not there any more nothing is given back, and all the rest is.
func TestWhatIsGoneIsPassedOver(t *testing.T) {
	for _, path := range []string{"deployments/orders", "services/orders", "deployments/l", "replicasets/orders-1", "leases/l"} {
		t.Run(path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAPIServer()
				time.AfterFunc(4*time.Second, func() { // the keeper is ready, and the Lease has not lapsed
					a.mu.Lock()
					defer a.mu.Unlock()
					delete(a.objects, path)
				})
				log, ready := a.run(t, "", "", 0, 0)
				want := map[string][]string{
					"deployments/orders": {"taken", "moved", "unrecorded", "ended", "clean", "released"},
					"services/orders":    {"taken", "scaled", "unrecorded", "ended", "clean", "released"},
					"leases/l":           {"taken", "released"}, // whoever has deleted it has the target's copy
				}[path]
				if want == nil {
					want = milestones
				}
				if to := a.come(); !ready || !slices.Equal(to, want) {
					t.Errorf("came to %q, want %q:\n%s", to, want, log)
				}
			})
		})
	}
}

// A keeper is not ready while it may not make one of these requests, or finds an API server that does not answer it.
func TestKeeperThatMayNotIsNotReady(t *testing.T) {
	for _, r := range requests {
		for _, code := range []int{http.StatusForbidden, http.StatusInternalServerError, noAnswer} {
			t.Run(fmt.Sprintf("%s %s %d", r.method, r.path, code), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAPIServer()
					a.refuses = func(method, path string) int {
						if method == r.method && path == r.path {
							return code
						}
						return 0
					}
					ready := false
					k := a.keeper()
					k.OnReady = func() { ready = true }
					ctx, cancel := context.WithTimeout(t.Context(), 2*proveTimeout)
					defer cancel()
					err := k.Run(ctx)
					// An event is a courtesy, and where ReplicaSets may not be listed those are cleaned that are named.
					if may := r.path == "events" || r.path == "replicasets" && code == http.StatusForbidden; ready != may {
						t.Errorf("ready %v: %v", ready, err)
					} else if told := refusedWith(err, code); !may && told != (code == http.StatusForbidden) {
						t.Errorf("ended with %v", err)
					}
				})
			})
		}
	}
}
