package witness

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

const (
	// maxNamespaces is how many are watched at a time beside the own one: two streams each on a connection of their own, of which an API
	// server usually takes 100.
	maxNamespaces = 32

	// idleTime is after how long without a question a namespace is not watched any more, and idleCheck how often that is looked for.
	idleTime  = 5 * time.Minute
	idleCheck = time.Minute

	// maxChanged is how many changed Services of a namespace are told apart: some 400 KiB.
	maxChanged = 4096

	// firstPause and maxPause are between a watch that has ended, or was refused, and the next: an API server that has just begun may refuse
	// what it will not refuse later. After a watch that was lasting it is the first again.
	firstPause = time.Second
	maxPause   = 10 * time.Minute
	lasting    = time.Minute
)

// kinds are what the names of Services are made of.
var kinds = [...]schema.GroupVersionResource{
	{Version: "v1", Resource: "services"},
	{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"},
}

// Witness is what is known of some namespaces. Make it with New.
type Witness struct {
	client metadata.Interface
	own    string
	log    *slog.Logger
	wanted chan string // namespaces to be watched

	mu     sync.Mutex
	spaces map[string]*space
}

// space is one namespace. The Witness's mu guards it.
type space struct {
	stop    context.CancelFunc
	used    time.Time
	open    int       // watches
	since   time.Time // when the last of them was opened
	changed map[string]time.Time
}

// New makes one for which own is a namespace in any case. Nothing is watched before somebody asks, and before Run.
func New(config *rest.Config, own string, log *slog.Logger) (*Witness, error) {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Witness{client: client, own: own, log: log, wanted: make(chan string, 1), spaces: map[string]*space{}}, nil
}

// Unchanged is a dns.Unchanged. A namespace that is not watched will be, if it may, when exists is set: any name of the internet could
// be one's.
func (w *Witness) Unchanged(namespace, service string, exists bool) (since time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.spaces[namespace]
	if s == nil {
		if exists || namespace == w.own {
			select {
			case w.wanted <- namespace:
			default: // the next question will ask again
			}
		}
		return time.Time{}, false
	}
	s.used = time.Now()
	if since = s.since; s.changed[service].After(since) {
		since = s.changed[service]
	}
	return since, s.open == len(kinds)
}

// Run watches until ctx is done, and returns when all has ended.
func (w *Witness) Run(ctx context.Context) {
	var watches sync.WaitGroup
	defer watches.Wait()
	tick := time.NewTicker(idleCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.leave()
		case namespace := <-w.wanted:
			w.begin(ctx, &watches, namespace)
		}
	}
}

// leave ends what nobody has asked for lately.
func (w *Witness) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for namespace, s := range w.spaces {
		if time.Since(s.used) > idleTime {
			s.stop()
			delete(w.spaces, namespace)
		}
	}
}

// begin watches a namespace, if there is one of that name and room for it.
func (w *Witness) begin(ctx context.Context, watches *sync.WaitGroup, namespace string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spaces[namespace] != nil || len(w.spaces) >= maxNamespaces && namespace != w.own || len(validation.IsDNS1123Label(namespace)) > 0 {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	s := &space{stop: stop, used: time.Now(), changed: map[string]time.Time{}}
	w.spaces[namespace] = s
	for _, kind := range kinds {
		watches.Go(func() { w.follow(ctx, s, namespace, kind) })
	}
}

// follow watches one kind, again and again, until ctx is done.
func (w *Witness) follow(ctx context.Context, s *space, namespace string, kind schema.GroupVersionResource) {
	pause := firstPause
	for {
		began := time.Now()
		err := w.watch(ctx, s, namespace, kind)
		if ctx.Err() != nil {
			return
		}
		if apierrors.IsForbidden(err) {
			err = fmt.Errorf("%w; the rights that are needed: bridge rbac connect -n %s", err, namespace)
		}
		w.log.Debug("names: the cluster is asked for each, as what they are made of is not watched", "kind", kind.Resource, "namespace", namespace, "error", err)
		if time.Since(began) > lasting {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)): // many bridges do not come back together
		}
		pause = min(2*pause, maxPause)
	}
}

// watch follows what changes from now on, until that ends.
func (w *Witness) watch(ctx context.Context, s *space, namespace string, kind schema.GroupVersionResource) error {
	objects := w.client.Resource(kind).Namespace(namespace)
	now, err := objects.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return err
	}
	events, err := objects.Watch(ctx, metav1.ListOptions{ResourceVersion: now.ResourceVersion})
	if err != nil {
		return err
	}
	defer events.Stop()
	w.opened(s, 1)
	defer w.opened(s, -1)
	for e := range events.ResultChan() {
		if e.Type == watch.Error {
			return apierrors.FromObject(e.Object)
		}
		if o, ok := e.Object.(*metav1.PartialObjectMetadata); ok {
			w.note(s, serviceOf(kind, o))
		}
	}
	return nil
}

// opened counts watches. What happened while one of them was not open is not known.
func (w *Witness) opened(s *space, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.open += n
	s.since = time.Now()
	clear(s.changed)
}

// note remembers that something of a Service has changed; of any, when that is "".
func (w *Witness) note(s *space, service string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.changed[service] = time.Now(); service == "" || len(s.changed) > maxChanged {
		s.since = s.changed[service]
		clear(s.changed)
	}
}

// serviceOf is the Service that an object is, or an EndpointSlice of; "" if that may have been another's before. A label can be changed,
// but where it says what the owner is, as on all slices that Kubernetes makes, it was not.
func serviceOf(kind schema.GroupVersionResource, o *metav1.PartialObjectMetadata) string {
	if kind == kinds[0] {
		return o.Name
	}
	service := o.Labels[discoveryv1.LabelServiceName]
	if !slices.ContainsFunc(o.OwnerReferences, func(r metav1.OwnerReference) bool { return r.Name == service }) {
		return ""
	}
	return service
}
