package swap

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"

	"bridge/internal/kube"
)

// Where objects are, for apiServer.
const (
	leasePath      = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/"
	deploymentPath = "/apis/apps/v1/namespaces/shop/deployments/"
	servicePath    = "/api/v1/namespaces/shop/services/"
	reviewPath     = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
)

// staging is a Client's Flags.
const staging = " --context staging"

// allForStaging holds that each command in a hint goes to that cluster.
func allForStaging(t *testing.T, next string) {
	t.Helper()
	if commands := strings.Count(next, "kubectl ") + strings.Count(next, "bridge "); strings.Count(next, staging) != commands {
		t.Errorf("not all of %d commands have%s: %s", commands, staging, next)
	}
}

// apiServer is a client, for the namespace shop, of an API server that has these objects, by their paths. write is the status that
// another request than GET is answered with; it keeps nothing of it. Of a list's items it gives those that the request selects by their labels.
// Every right is there, if no object at reviewPath says otherwise.
func apiServer(t *testing.T, objects map[string]any, write func(*http.Request) int) *kube.Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, answer := http.StatusOK, objects[r.URL.Path]
		if answer == nil {
			code = http.StatusNotFound
		}
		switch {
		case r.URL.Path == reviewPath:
			code, answer = http.StatusOK, cmp.Or(answer, any(map[string]any{"status": map[string]any{"allowed": true}}))
		case r.Method != http.MethodGet:
			code = write(r)
		}
		if code != http.StatusOK {
			answer = metav1.Status{Status: metav1.StatusFailure, Code: int32(code)}
		}
		if selector := r.URL.Query().Get("labelSelector"); selector != "" && code == http.StatusOK {
			answer = selected(t, answer, selector)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// selected is a list with those of its items that the labelSelector selects.
func selected(t *testing.T, list any, selector string) any {
	t.Helper()
	chosen, err := labels.Parse(selector)
	if err != nil {
		t.Error(err)
		return list
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Error(err)
	}
	var u unstructured.UnstructuredList
	if err := json.Unmarshal(text, &u.Object); err != nil {
		t.Error(err)
	}
	items, _, err := unstructured.NestedSlice(u.Object, "items")
	if err != nil {
		t.Error(err)
	}
	u.Object["items"] = slices.DeleteFunc(items, func(item any) bool {
		o := unstructured.Unstructured{Object: item.(map[string]any)}
		return !chosen.Matches(labels.Set(o.GetLabels()))
	})
	return u.Object
}

// noWrite is for an apiServer that nobody is to write to.
func noWrite(t *testing.T) func(*http.Request) int {
	return func(r *http.Request) int {
		t.Errorf("%s %s", r.Method, r.URL)
		return http.StatusForbidden
	}
}

// deploymentWith is a Deployment as the API server answers with it.
func deploymentWith(m metav1.ObjectMeta) appsv1.Deployment {
	m.Name, m.Namespace = cmp.Or(m.Name, "orders"), cmp.Or(m.Namespace, "shop")
	return appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: m}
}
