package swap

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"bridge/internal/kube"
)

// cluster is an API server without a network, so that the clock of those who ask it can be synctest's. It keeps what is written to it, and knows
// lists, the scale of a workload, versions, merge patches, and what goes with its owner. It checks nothing.
type cluster struct {
	// refuses is the status that a request is answered with; 0 takes it, and nil takes all.
	refuses func(method, path string) int
	// controller is called after each write.
	controller func()

	mu      sync.Mutex
	version int
	objects map[string]*unstructured.Unstructured // by path
	writes  []string                              // that it took, "METHOD PATH"
}

// newCluster has these objects, by their paths, and a client for its namespace shop.
func newCluster(t *testing.T, objects map[string]any) (*cluster, *kube.Client) {
	t.Helper()
	c := &cluster{objects: map[string]*unstructured.Unstructured{}}
	for path, o := range objects {
		c.keep(path, o)
	}
	k, err := kube.NewForConfig(&rest.Config{Host: "https://cluster", Transport: c, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c, k
}

// keep puts an object there. mu is held, as it is for controller, or nobody asks yet.
func (c *cluster) keep(path string, object any) *unstructured.Unstructured {
	text, err := json.Marshal(object)
	if err != nil {
		panic(err)
	}
	o := &unstructured.Unstructured{}
	if err := json.Unmarshal(text, &o.Object); err != nil {
		panic(err)
	}
	c.version++
	o.SetResourceVersion(strconv.Itoa(c.version))
	c.objects[path] = o
	return o
}

// at is the object, read as into.
func (c *cluster) at(path string, into any) (there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.objects[path]
	if o == nil {
		return false
	}
	text, err := json.Marshal(o.Object)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		panic(err)
	}
	return true
}

func (c *cluster) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	code := 0
	if c.refuses != nil {
		code = c.refuses(r.Method, r.URL.Path)
	}
	var answer any
	if code == 0 {
		if code, answer = c.do(r, body); code == http.StatusOK && r.Method != http.MethodGet {
			c.writes = append(c.writes, r.Method+" "+r.URL.Path)
			if c.controller != nil {
				c.controller()
			}
		}
	}
	if code != http.StatusOK {
		answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Message: fmt.Sprintf("%s %s: %d", r.Method, r.URL.Path, code)}
	}
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	err := json.NewEncoder(w).Encode(answer)
	return w.Result(), err
}

func (c *cluster) do(r *http.Request, body []byte) (code int, answer any) {
	at, scale := strings.CutSuffix(r.URL.Path, "/scale")
	o := c.objects[at]
	collection := path.Base(path.Dir(at)) == "shop"
	var sent map[string]any
	if r.Method != http.MethodGet && r.Method != http.MethodDelete {
		if err := json.Unmarshal(body, &sent); err != nil {
			panic(err)
		}
		is := unstructured.Unstructured{Object: sent}
		if v, uid := is.GetResourceVersion(), is.GetUID(); o != nil && (v != "" && v != o.GetResourceVersion() || uid != "" && uid != o.GetUID()) {
			return http.StatusConflict, nil
		}
	}
	switch {
	case path.Base(at) == "selfsubjectaccessreviews":
		return http.StatusOK, map[string]any{"status": map[string]any{"allowed": true}}
	case r.Method == http.MethodGet && collection:
		return http.StatusOK, c.list(at, r.URL.Query().Get("labelSelector"))
	case r.Method == http.MethodPost:
		name, _, _ := unstructured.NestedString(sent, "metadata", "name")
		if c.objects[at+"/"+name] != nil {
			return http.StatusConflict, nil
		}
		made := c.keep(at+"/"+name, sent)
		made.SetUID(types.UID(fmt.Sprint("made-", c.version)))
		return http.StatusOK, made.Object
	case o == nil:
		return http.StatusNotFound, nil
	case r.Method == http.MethodDelete:
		delete(c.objects, at)
		for path, other := range c.objects {
			if slices.ContainsFunc(other.GetOwnerReferences(), func(w metav1.OwnerReference) bool { return w.UID == o.GetUID() }) {
				delete(c.objects, path)
			}
		}
		return http.StatusOK, metav1.Status{Status: metav1.StatusSuccess}
	case r.Method == http.MethodGet && scale:
		return http.StatusOK, scaleOf(o)
	case r.Method == http.MethodPut && scale:
		replicas, _, _ := unstructured.NestedFieldNoCopy(sent, "spec", "replicas")
		if replicas == nil {
			replicas = 0.
		}
		now := o.DeepCopy()
		if err := unstructured.SetNestedField(now.Object, replicas, "spec", "replicas"); err != nil {
			panic(err)
		}
		return http.StatusOK, scaleOf(c.keep(at, now.Object))
	case r.Method == http.MethodPut:
		return http.StatusOK, c.keep(at, sent).Object
	case r.Method == http.MethodPatch:
		now := o.DeepCopy()
		merge(now.Object, sent)
		return http.StatusOK, c.keep(at, now.Object).Object
	}
	return http.StatusOK, o.Object
}

func (c *cluster) list(collection, selector string) any {
	items := []any{}
	chosen, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	for _, at := range slices.Sorted(maps.Keys(c.objects)) {
		if path.Dir(at) == collection && chosen.Matches(labels.Set(c.objects[at].GetLabels())) {
			items = append(items, c.objects[at].Object)
		}
	}
	return map[string]any{"items": items}
}

func scaleOf(o *unstructured.Unstructured) any {
	replicas, _, _ := unstructured.NestedFieldNoCopy(o.Object, "spec", "replicas")
	return map[string]any{
		"metadata": map[string]any{"name": o.GetName(), "namespace": o.GetNamespace(), "uid": o.GetUID(), "resourceVersion": o.GetResourceVersion()},
		"spec":     map[string]any{"replicas": replicas},
	}
}

// merge is RFC 7396.
func merge(into, patch map[string]any) {
	for key, value := range patch {
		below, deep := value.(map[string]any)
		switch {
		case value == nil:
			delete(into, key)
		case deep:
			next, ok := into[key].(map[string]any)
			if !ok {
				next = map[string]any{}
			}
			merge(next, below)
			into[key] = next
		default:
			into[key] = value
		}
	}
}
