package kube

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
)

// A Rollout says of itself what others do; whether an update is under way, and which Services are its own, besides.
func TestRolloutAsAWorkload(t *testing.T) {
	w, err := rolloutOf([]byte(`{
		"metadata": {"name": "orders", "namespace": "shop", "uid": "u", "generation": 4},
		"spec": {"selector": {"matchLabels": {"app": "orders"}}, "template": {"metadata": {"name": "never-used", "labels": {"app": "orders"}}},
			"strategy": {"blueGreen": {"activeService": "orders", "previewService": "orders-next"}}},
		"status": {"readyReplicas": 2, "availableReplicas": 1, "observedGeneration": "4", "stableRS": "7d4b", "currentPodHash": "7d4b"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if w.Target() != (Target{Rollout, "orders"}) || w.Replicas != 1 || w.Ready != 1 || w.Observed != w.Generation || w.Updating || w.Hash != "7d4b" || w.Current != "7d4b" {
		t.Errorf("it is %+v", w)
	}
	if l := w.Template.Labels; w.Template.Name != "" || l["app"] != "orders" || l[RolloutHashLabel] != "7d4b" {
		t.Errorf("its template is %+v", w.Template)
	}
	if !slices.Equal(w.Owned, []string{"orders", "orders-next"}) {
		t.Errorf("its own Services are %q", w.Owned)
	}
	for status, want := range map[string]struct {
		updating bool
		observed int64
	}{
		`{"observedGeneration": "3", "stableRS": "7d4b", "currentPodHash": "9c1a"}`:        {true, 3},
		`{"observedGeneration": "6b5f7c9d", "stableRS": "7d4b", "currentPodHash": "7d4b"}`: {false, 0}, // a hash, as controllers before 1.0 write
		`{"observedGeneration": "4", "stableRS": "7d4b", "currentPodHash": "7d4b"}`:        {false, 4},
		`{"observedGeneration": "3", "stableRS": "7d4b", "currentPodHash": "7d4b"}`:        {true, 3}, // of the spec before
		`{}`: {true, 0},
	} {
		w, err := rolloutOf([]byte(`{"metadata": {"generation": 4}, "spec": {"replicas": 3, "strategy": {"canary": {"stableService": "s", "canaryService": "c", "pingPong": {"pingService": "i", "pongService": "o"}}}}, "status": ` + status + `}`))
		if err != nil || w.Updating != want.updating || w.Unseen != (want.observed == 3) || w.Observed != want.observed || w.Replicas != 3 || len(w.Owned) != 4 {
			t.Errorf("%s: %+v, %v", status, w, err)
		}
	}
	if _, err := rolloutOf([]byte(`{"spec": {"replicas": "3"}}`)); err == nil {
		t.Error("replicas that are text are read")
	}
}

// Who has just been scaled is no update under way: its controller is waited for.
func TestSettledWaitsForTheController(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = fmt.Fprintf(w, `{"metadata": {"name": "orders", "generation": 2}, "status": {"observedGeneration": "%d", "stableRS": "7d4b", "currentPodHash": "7d4b"}}`, min(asked, 2))
	}))
	t.Cleanup(server.Close)
	k, err := NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	if w, err := k.Workload(t.Context(), "shop", Target{Rollout, "orders"}); err != nil || !w.Unseen || !w.Updating {
		t.Fatalf("%+v, %v", w, err)
	}
	asked = 0
	if w, err := k.Settled(t.Context(), "shop", Target{Rollout, "orders"}); err != nil || w.Unseen || w.Updating || asked != 2 {
		t.Errorf("%+v, %v, asked %d times", w, err, asked)
	}
}

// answering is a client of an API server that answers these paths, and 404 to all others.
func answering(t *testing.T, answers map[string]string) *Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "there is no ` + r.URL.Path + `"}`
		}
		_, _ = w.Write([]byte(answer))
	}))
	t.Cleanup(server.Close)
	k, err := NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The template is another's where the Rollout says so, if bridge knows that kind; what the Rollout is for is known without it.
func TestRolloutWithAnothersTemplate(t *testing.T) {
	const api, group = "/apis/argoproj.io/v1alpha1", "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/"
	rollout := func(kind, name string) string {
		return `{"metadata": {"name": "` + name + `", "namespace": "shop"}, "spec": {"workloadRef": {"apiVersion": "apps/v1", "kind": "` + kind + `", "name": "` + name + `"}}, "status": {"stableRS": "7d4b", "currentPodHash": "7d4b"}}`
	}
	deployment := func(name, replicas string) string {
		return `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "` + name + `"}, "spec": {"replicas": ` + replicas + `, "selector": {"matchLabels": {"app": "` + name + `"}},
			"template": {"metadata": {"labels": {"app": "` + name + `"}}, "spec": {"containers": [{"name": "app"}]}}}}`
	}
	k := answering(t, map[string]string{
		api: `{}`, group + "idle": rollout("Deployment", "idle"), group + "busy": rollout("Deployment", "busy"),
		group + "odd": rollout("ReplicaSet", "odd"), group + "bad": rollout(`Re\u001b[31mplica`, "bad"), group + "lone": rollout("Deployment", "lone"),
		"/apis/apps/v1/namespaces/shop/deployments/idle": deployment("idle", "0"), "/apis/apps/v1/namespaces/shop/deployments/busy": deployment("busy", "2"),
	})
	for _, c := range []struct{ name, beside, want string }{
		{"idle", "", ""}, {"busy", "deployment/busy", ""},
		{"odd", "", "rollout/odd has its template from ReplicaSet odd (apps/v1), which bridge does not follow"},
		{"bad", "", "rollout/bad has its template from Re[31mplica bad (apps/v1), which bridge does not follow"},
		{"lone", "", "read deployment/lone, from which rollout/lone has its template"},
	} {
		w, err := k.Workload(t.Context(), "shop", Target{Rollout, c.name})
		if err != nil {
			t.Fatal(err)
		}
		err = k.Complete(t.Context(), w)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.name, err, c.want)
			}
			continue
		}
		if err != nil || w.Beside != c.beside || w.Selector.MatchLabels["app"] != c.name || len(w.Template.Spec.Containers) != 1 || w.Template.Labels[RolloutHashLabel] != "7d4b" {
			t.Errorf("%s: %+v, %v", c.name, w, err)
		}
	}
}

// A cluster without Argo Rollouts is told apart from one without that Rollout.
func TestNoRollouts(t *testing.T) {
	for want, answers := range map[string]map[string]string{
		"this cluster has no Argo Rollouts":   {},
		"argoproj.io/v1alpha1 has no rollout": {"/apis/argoproj.io/v1alpha1": `{"resources": [{"name": "applications"}]}`}, // Argo CD's
		"/rollouts/orders":                    {"/apis/argoproj.io/v1alpha1": `{"resources": [{"name": "rollouts"}]}`},
	} {
		_, err := answering(t, answers).Workload(context.Background(), "shop", Target{Rollout, "orders"})
		if err = Explain(err, "swap rollout/orders"); hint.CodeOf(err) != hint.NotFound || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if !apierrors.IsNotFound(err) { // whoever looks whether it is still there
			t.Errorf("%v is not the API server's", err)
		}
	}
	if _, err := answering(t, nil).Annotated(t.Context(), "", Rollout, "a"); err == nil {
		t.Error("they are listed")
	}
}

// Objects are read in pages, of which only those with the annotation are kept.
func TestAnnotatedReadsPages(t *testing.T) {
	var pages []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		limit, next := r.URL.Query().Get("limit"), r.URL.Query().Get("continue")
		pages = append(pages, limit+" "+next)
		w.Header().Set("Content-Type", "application/json")
		more := map[string]string{"": "two", "two": "three"}[next]
		_, _ = fmt.Fprintf(w, `{"metadata": {"continue": %q}, "items": [{"metadata": {"name": "pod-%s", "annotations": {"a": "1"}}}, {"metadata": {"name": "other"}}]}`, more, next)
	}))
	t.Cleanup(server.Close)
	k, err := NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	list, err := k.Annotated(t.Context(), "", Pod, "a")
	var names []string
	for _, o := range list {
		names = append(names, o.Name)
	}
	if err != nil || !slices.Equal(names, []string{"pod-", "pod-two", "pod-three"}) || !slices.Equal(pages, []string{"500 ", "500 two", "500 three"}) {
		t.Errorf("found %q by the pages %q: %v", names, pages, err)
	}
}
