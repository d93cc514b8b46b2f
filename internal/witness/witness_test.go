package witness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// api is an API server with objects in every namespace, of which it shows metadata alone, and one at a time.
type api struct {
	t *testing.T

	mu      sync.Mutex
	codes   map[string]int // by "NAMESPACE/KIND"
	refused map[string]int
	lists   map[string]int
	watches map[string]*io.PipeWriter
}

func (a *api) RoundTrip(req *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	parts := strings.Split(req.URL.Path, "/")
	key, q := strings.Join(parts[len(parts)-2:], "/"), req.URL.Query()
	if !strings.Contains(req.Header.Get("Accept"), "as=PartialObjectMetadata") {
		a.t.Errorf("%s asks for whole objects: %s", req.URL, req.Header.Get("Accept"))
	}
	reply := func(code int, body io.ReadCloser) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: body, Request: req}, nil
	}
	if code := a.codes[key]; code != 0 {
		a.refused[key]++
		return reply(code, io.NopCloser(strings.NewReader(fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d}`, code))))
	}
	if !q.Has("watch") {
		a.lists[key]++
		if q.Get("limit") != "1" {
			a.t.Errorf("%s lists many", req.URL)
		}
		return reply(200, io.NopCloser(strings.NewReader(`{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"7"}}`)))
	}
	if q.Get("resourceVersion") != "7" {
		a.t.Errorf("%s does not begin where the list was made", req.URL)
	}
	r, w := io.Pipe()
	a.watches[key] = w
	context.AfterFunc(req.Context(), func() { _ = w.CloseWithError(req.Context().Err()) })
	return reply(200, r)
}

// refuse has a code answer for key; 0 is none.
func (a *api) refuse(key string, code int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.codes[key] = code
}

// tries is how often key was refused since the last call.
func (a *api) tries(key string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	n, a.refused[key] = a.refused[key], 0
	return n
}

// event is one of a watch.
func (a *api) event(key, metadata string) {
	a.mu.Lock()
	w := a.watches[key]
	a.mu.Unlock()
	fmt.Fprintf(w, `{"type":"MODIFIED","object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":%s}}`, metadata)
	synctest.Wait()
}

// asked are the lists there have been since the last call, each of which begins a watch.
func (a *api) asked() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for _, key := range slices.Sorted(maps.Keys(a.lists)) {
		all = append(all, fmt.Sprintf("%s %d", key, a.lists[key]))
	}
	clear(a.lists)
	return strings.Join(all, ", ")
}

// run runs f with a Witness of namespace shop, and returns what that has logged.
func run(t *testing.T, f func(t *testing.T, w *Witness, a *api)) string {
	var log bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		a := &api{t: t, codes: map[string]int{}, refused: map[string]int{}, lists: map[string]int{}, watches: map[string]*io.PipeWriter{}}
		w, err := New(&rest.Config{Host: "http://api", Transport: a, QPS: -1}, "shop", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { w.Run(ctx) })
		f(t, w, a)
		cancel()
		running.Wait()
	})
	return log.String()
}

// known is what is told of a Service now, after it had been asked for.
func known(w *Witness, service string) (since time.Time, ok bool) {
	w.Unchanged("shop", service, false)
	synctest.Wait()
	return w.Unchanged("shop", service, false)
}

func TestWhatChangesIsSeen(t *testing.T) {
	run(t, func(t *testing.T, w *Witness, a *api) {
		time.Sleep(time.Hour)
		if asked := a.asked(); asked != "" {
			t.Errorf("before the first question: %s", asked)
		}
		began := time.Now()
		if since, ok := known(w, "orders"); !ok || !since.Equal(began) {
			t.Fatalf("%v, %v", since, ok)
		}
		if got, want := a.asked(), "shop/endpointslices 1, shop/services 1"; got != want {
			t.Errorf("asked for %s, want %s", got, want)
		}
		const services, endpoints = "shop/services", "shop/endpointslices"
		slice := func(service, owner string) string {
			return fmt.Sprintf(`{"name":"s-x1","labels":{"kubernetes.io/service-name":%q},"ownerReferences":[{"name":%q}]}`, service, owner)
		}
		for _, tt := range []struct {
			kind, metadata string
			changed        []string // of orders and db
		}{
			{services, `{"name":"orders"}`, []string{"orders"}},
			{services, `{"name":"db","labels":{"kubernetes.io/service-name":"orders"}}`, []string{"db"}},
			{services, `{"name":"other"}`, nil},
			{endpoints, slice("orders", "orders"), []string{"orders"}},
			{endpoints, slice("other", "other"), nil},
			{endpoints, slice("orders", "other"), []string{"orders", "db"}}, // it may have been db's
			{endpoints, `{"name":"x","labels":{"kubernetes.io/service-name":"orders"}}`, []string{"orders", "db"}},
			{endpoints, `{"name":"x"}`, []string{"orders", "db"}},
		} {
			time.Sleep(time.Minute)
			a.event(tt.kind, tt.metadata)
			for _, service := range []string{"orders", "db"} {
				since, ok := known(w, service)
				changed := since.Equal(time.Now())
				if want := slices.Contains(tt.changed, service); !ok || changed != want {
					t.Errorf("%s %s: of %s changed %v, known %v", tt.kind, tt.metadata, service, changed, ok)
				}
			}
		}
		for i := range maxChanged + 1 {
			a.event(services, fmt.Sprintf(`{"name":"s%d"}`, i))
		}
		if since, ok := known(w, "orders"); !ok || !since.Equal(time.Now()) || len(w.spaces["shop"].changed) > maxChanged {
			t.Errorf("after many changes: %v, %v", since, ok)
		}
	})
}

// A watch that has ended begins anew, and what was before is not known.
func TestWatchesEnd(t *testing.T) {
	log := run(t, func(t *testing.T, w *Witness, a *api) {
		known(w, "orders")
		a.asked()
		time.Sleep(idleTime - time.Minute)
		known(w, "orders")
		_ = a.watches["shop/services"].Close()
		synctest.Wait()
		if _, ok := known(w, "orders"); ok {
			t.Error("known without a watch")
		}
		time.Sleep(firstPause)
		if since, ok := known(w, "orders"); !ok || time.Since(since) > firstPause {
			t.Errorf("%v, %v", since, ok)
		}
		if got, want := a.asked(), "shop/services 1"; got != want {
			t.Errorf("asked for %s, want %s", got, want)
		}
		// An error event, and a server that cannot: less and less often.
		a.refuse("shop/services", http.StatusServiceUnavailable)
		fmt.Fprint(a.watches["shop/services"], `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","code":410,"reason":"Expired"}}`)
		time.Sleep(lasting)
		a.refuse("shop/services", 0)
		time.Sleep(2 * lasting)
		if _, ok := known(w, "orders"); !ok {
			t.Error("not known when the server is back")
		}
	})
	if n := strings.Count(log, "is not watched"); n < 4 || n > 10 {
		t.Errorf("%d watches in three minutes:\n%s", n, log)
	}
}

// What is refused is tried again, as an API server that has just begun may refuse what it does not later; but soon not often.
func TestRefusalsAreTriedAgain(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusNotFound} {
		for _, kind := range kinds {
			key := "shop/" + kind.Resource
			log := run(t, func(t *testing.T, w *Witness, a *api) {
				known(w, "orders")
				a.refuse(key, code)
				_ = a.watches[key].Close()
				time.Sleep(10 * firstPause)
				a.refuse(key, 0)
				time.Sleep(20 * firstPause) // longer than the pause that has begun
				if _, ok := known(w, "orders"); !ok {
					t.Errorf("%d, %s: not known when it is allowed again", code, kind.Resource)
				}

				a.refuse(key, code)
				_ = a.watches[key].Close()
				a.tries(key)
				for range 100 {
					time.Sleep(time.Minute)
					if _, ok := known(w, "orders"); ok {
						t.Fatal("known")
					}
				}
				if n := a.tries(key); n < 12 || n > 40 {
					t.Errorf("%d, %s: tried %d times in 100 minutes", code, kind.Resource, n)
				}
			})
			const next = "bridge rbac connect -n shop"
			if strings.Contains(log, next) != (code == http.StatusForbidden) {
				t.Errorf("%d, %s: the log says\n%s", code, kind.Resource, log)
			}
		}
	}
}

// Only namespaces that are in use are watched, and only so many.
func TestNamespacesInUseAreWatched(t *testing.T) {
	run(t, func(t *testing.T, w *Witness, a *api) {
		for _, no := range []string{"com", "x.y", "../secrets", ""} {
			w.Unchanged(no, "example", no != "com")
			synctest.Wait()
		}
		if asked := a.asked(); asked != "" {
			t.Errorf("asked for %s", asked)
		}
		for i := range maxNamespaces + 10 {
			w.Unchanged(fmt.Sprintf("ns%d", i), "db", true)
			synctest.Wait()
		}
		if n := strings.Count(a.asked(), "endpointslices 1"); n != maxNamespaces {
			t.Errorf("%d namespaces are watched", n)
		}
		if _, ok := known(w, "orders"); !ok {
			t.Error("no room for the own one")
		}
		for range 10 {
			time.Sleep(time.Minute)
			w.Unchanged("ns3", "db", false)
		}
		w.mu.Lock()
		if n := len(w.spaces); n != 1 || w.spaces["ns3"] == nil {
			t.Errorf("%d are left", n)
		}
		w.mu.Unlock()
		w.Unchanged("ns40", "db", true)
		synctest.Wait()
		if _, ok := w.Unchanged("ns40", "db", true); !ok {
			t.Error("no room for another one")
		}
	})
}
