package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"bridge/internal/hint"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// distrustFor is how long a pod that could not be dialled is left out, if there are others: the
	// API server learns within it that a node or a pod is gone.
	distrustFor = 5 * time.Second
	// attemptTimeout bounds one dial of one pod, maxAttempts how many pods a connection tries.
	attemptTimeout = 10 * time.Second
	maxAttempts    = 3
	// dialsAtOnce is how many port-forwards are opened at the same time: of hundreds each would take longer than it may, and none would open.
	dialsAtOnce = 32
)

// Endpoint is a port of a pod, or for Reach of something else.
type Endpoint struct {
	Namespace, Pod string // empty: no pod
	UID            types.UID
	Host           string // an address, or a name; of a pod it may be empty while it has none
	Port           int
}

// Address is what reaches it from within the cluster.
func (e Endpoint) Address() string { return net.JoinHostPort(e.Host, strconv.Itoa(e.Port)) }

// Endpoints keeps the ready pods of a target current. Fill the fields, start Run, then Pick or Dial.
type Endpoints struct {
	Client    *Client
	Namespace string
	Target    Target
	// Wait is how long Pick waits for a pod to become ready. Zero means 1 minute, as for kubectl.
	Wait time.Duration
	Log  *slog.Logger // nil logs nothing

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at each change
	parts      map[string]*part
	service    *corev1.Service
	slices     []discoveryv1.EndpointSlice
	pods       []corev1.Pod
	byPods     bool // a Service whose EndpointSlices may not be read
	seen       bool // the pod was there once: it is waited for when it goes
	next       uint64
	dials      chan struct{} // one token per port-forward that is being opened
	distrusted map[types.UID]distrust
	only       types.UID // of the one pod that is taken; empty: any
}

// part is one list that is followed.
type part struct {
	synced bool
	err    error // of the last list, nil after a good one
}

// Run follows the cluster until ctx is done, through API server restarts and expired watches. What it
// last knew stays in use meanwhile. It returns ctx's cause.
func (e *Endpoints) Run(ctx context.Context) error {
	e.mu.Lock()
	e.init()
	e.mu.Unlock()
	var wg sync.WaitGroup
	cs, ns := e.Client.Clientset, e.Namespace
	byName := fields.OneTermEqualSelector("metadata.name", e.Target.Name).String()
	switch e.Target.Kind {
	case Service:
		wg.Go(func() {
			follow(ctx, e, "services", list{FieldSelector: byName, list: func(ctx context.Context, o metav1.ListOptions) (runtimeList, error) {
				return cs.CoreV1().Services(ns).List(ctx, o)
			}, watch: cs.CoreV1().Services(ns).Watch, get: func(ctx context.Context) (any, error) {
				return cs.CoreV1().Services(ns).Get(ctx, e.Target.Name, metav1.GetOptions{})
			}}, func(items []corev1.Service) {
				e.service = nil
				if len(items) > 0 {
					e.service = &items[0]
				}
			})
		})
		wg.Go(func() { e.followBackends(ctx) })
	case Pod:
		wg.Go(func() {
			follow(ctx, e, "pods", list{FieldSelector: byName, list: func(ctx context.Context, o metav1.ListOptions) (runtimeList, error) {
				return cs.CoreV1().Pods(ns).List(ctx, o)
			}, watch: cs.CoreV1().Pods(ns).Watch, get: func(ctx context.Context) (any, error) {
				return cs.CoreV1().Pods(ns).Get(ctx, e.Target.Name, metav1.GetOptions{})
			}}, e.setPods)
		})
	default:
		wg.Go(func() { e.followWorkload(ctx) })
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (e *Endpoints) init() {
	if e.changed == nil {
		e.changed = make(chan struct{})
		e.dials = make(chan struct{}, dialsAtOnce)
		e.parts = make(map[string]*part)
		e.distrusted = make(map[types.UID]distrust)
		for _, name := range e.needs() {
			e.parts[name] = &part{}
		}
	}
}

func (e *Endpoints) needs() []string {
	switch e.Target.Kind {
	case Service:
		return []string{"services", "endpointslices"}
	case Pod:
		return []string{"pods"}
	}
	return []string{"workload", "pods"}
}

func (e *Endpoints) setPods(items []corev1.Pod) {
	e.pods = items
	e.seen = e.seen || len(items) > 0
}

// followBackends follows a Service's EndpointSlices; whoever may not read those gets the pods that
// the selector names.
func (e *Endpoints) followBackends(ctx context.Context) {
	cs, ns := e.Client.Clientset, e.Namespace
	forbidden := follow(ctx, e, "endpointslices", list{
		LabelSelector: labels.Set{discoveryv1.LabelServiceName: e.Target.Name}.String(), stopForbidden: true,
		list: func(ctx context.Context, o metav1.ListOptions) (runtimeList, error) {
			return cs.DiscoveryV1().EndpointSlices(ns).List(ctx, o)
		}, watch: cs.DiscoveryV1().EndpointSlices(ns).Watch,
	}, func(items []discoveryv1.EndpointSlice) { e.slices = items })
	if !forbidden {
		return
	}
	e.log("endpointslices may not be read, following pods instead")
	e.update(func() {
		e.byPods = true
		delete(e.parts, "endpointslices")
		e.parts["pods"] = &part{}
	})
	var selector map[string]string
	for selector == nil {
		e.mu.Lock()
		svc, changed := e.service, e.changed
		e.mu.Unlock()
		if svc != nil {
			if len(svc.Spec.Selector) == 0 {
				e.update(func() { e.parts["pods"].synced = true }) // it has none
				return
			}
			selector = svc.Spec.Selector
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	e.followPods(ctx, labels.SelectorFromSet(selector).String())
}

func (e *Endpoints) followPods(ctx context.Context, selector string) {
	pods := e.Client.Clientset.CoreV1().Pods(e.Namespace)
	follow(ctx, e, "pods", list{LabelSelector: selector, list: func(ctx context.Context, o metav1.ListOptions) (runtimeList, error) {
		return pods.List(ctx, o)
	}, watch: pods.Watch}, e.setPods)
}

// followWorkload reads the workload's selector, which never changes while it lives, and follows the
// pods. The selector alone counts, not the owner: a swapped workload's pods are the proxy's.
func (e *Endpoints) followWorkload(ctx context.Context) {
	var selector string
	for wait := backoff(0); ; wait.sleep(ctx) {
		ls, err := e.Client.PodSelector(ctx, e.Namespace, e.Target)
		if ctx.Err() != nil {
			return
		}
		e.update(func() { e.parts["workload"].synced, e.parts["workload"].err = err == nil, err })
		if err == nil {
			selector = ls.String()
			break
		}
	}
	e.followPods(ctx, selector)
}

// PodSelector is the selector of the pods of a workload or a Service. A Service without one is an error.
func (c *Client) PodSelector(ctx context.Context, namespace string, t Target) (labels.Selector, error) {
	var ls *metav1.LabelSelector
	opt := metav1.GetOptions{}
	apps := c.Clientset.AppsV1()
	switch t.Kind {
	case Deployment:
		o, err := apps.Deployments(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		ls = o.Spec.Selector
	case StatefulSet:
		o, err := apps.StatefulSets(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		ls = o.Spec.Selector
	case ReplicaSet:
		o, err := apps.ReplicaSets(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		ls = o.Spec.Selector
	case Rollout:
		o, err := c.Workload(ctx, namespace, t)
		if err == nil {
			err = c.Complete(ctx, o)
		}
		if err != nil {
			return nil, err
		}
		ls = o.Selector
	case DaemonSet:
		o, err := apps.DaemonSets(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		ls = o.Spec.Selector
	case Job:
		o, err := c.Clientset.BatchV1().Jobs(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		ls = o.Spec.Selector
	case ReplicationController:
		o, err := c.Clientset.CoreV1().ReplicationControllers(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		return labels.SelectorFromSet(o.Spec.Selector), nil
	case Service:
		o, err := c.Clientset.CoreV1().Services(namespace).Get(ctx, t.Name, opt)
		if err != nil {
			return nil, err
		}
		if len(o.Spec.Selector) == 0 {
			return nil, fmt.Errorf("%s has no selector", t)
		}
		return labels.SelectorFromSet(o.Spec.Selector), nil
	default:
		return nil, fmt.Errorf("%s has no selector", t)
	}
	return metav1.LabelSelectorAsSelector(ls)
}

// update changes e under its lock and wakes whoever waits.
func (e *Endpoints) update(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
	clear(e.distrusted)
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *Endpoints) log(msg string, args ...any) {
	if e.Log != nil {
		e.Log.Debug(msg, append([]any{"target", e.Target.String()}, args...)...)
	}
}

// WaitSynced waits until the target has been read once. Its error is why it cannot be: not found,
// forbidden, unreachable.
func (e *Endpoints) WaitSynced(ctx context.Context) error {
	return e.until(ctx, func() bool { return true })
}

// until waits until all has been read and done, which is called with mu, says so. Its error is ctx's cause, or why it cannot be known.
func (e *Endpoints) until(ctx context.Context, done func() bool) error {
	for {
		e.mu.Lock()
		e.init()
		synced, err := e.state()
		over := synced && done()
		changed := e.changed
		e.mu.Unlock()
		if err != nil || over {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// state needs mu. Once everything has been read, errors of later lists do not count: what was known
// then is better than nothing.
func (e *Endpoints) state() (synced bool, err error) {
	synced = true
	for _, name := range e.needs() {
		p := e.parts[name]
		if p == nil {
			p = e.parts["pods"] // in place of endpointslices
		}
		if !p.synced && p.err != nil && err == nil {
			err = Explain(p.err, fmt.Sprintf("look up %s in %s", e.Target, e.Namespace))
		}
		synced = synced && p.synced
	}
	if err != nil {
		return false, err
	}
	if synced && e.Target.Kind == Service && e.service == nil {
		return true, e.notFound("services")
	}
	return synced, nil
}

func (e *Endpoints) notFound(resource string) error {
	err := apierrors.NewNotFound(corev1.Resource(resource), e.Target.Name)
	return Explain(err, fmt.Sprintf("look up %s in %s", e.Target, e.Namespace))
}

// Pick returns the next ready endpoint for port of network, "tcp" or "udp": for a Service its number or name, otherwise a number
// or the name of a container's port. When there is none it waits for Wait; its error then says why.
func (e *Endpoints) Pick(ctx context.Context, network, port string) (Endpoint, error) {
	return e.pick(ctx, wanted{network: network, port: port})
}

// Reach is Pick for what is dialled from within the cluster, at Address: it may be no pod.
func (e *Endpoints) Reach(ctx context.Context, network, port string) (Endpoint, error) {
	return e.pick(ctx, wanted{network: network, port: port, foreign: true})
}

// wanted is what is asked of a target.
type wanted struct {
	network, port string
	foreign       bool // what is no pod too, and only what has an address
}

func (e *Endpoints) pick(ctx context.Context, w wanted) (Endpoint, error) {
	wait := e.Wait
	if wait == 0 {
		wait = time.Minute
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		e.mu.Lock()
		ready, changed, err := e.ready(w)
		ep, retry := e.choose(ready)
		e.mu.Unlock()
		if err != nil {
			return Endpoint{}, err
		}
		if ep != (Endpoint{}) {
			return ep, nil
		}
		var again <-chan time.Time
		if retry > 0 {
			again = time.After(retry)
		}
		select {
		case <-changed:
		case <-again:
		case <-timeout.C:
			return Endpoint{}, e.whyNone(ctx, wait)
		case <-ctx.Done():
			return Endpoint{}, context.Cause(ctx)
		}
	}
}

// ready needs mu. It returns what is ready of w, none before all has been read, and what is closed when that changes.
func (e *Endpoints) ready(w wanted) (ready []Endpoint, changed <-chan struct{}, err error) {
	e.init()
	synced, err := e.state()
	if synced && err == nil {
		ready, err = e.resolve(w)
	}
	return ready, e.changed, err
}

// choose needs mu. It takes the next of ready that is trusted; if none is, it says how long to wait.
func (e *Endpoints) choose(ready []Endpoint) (ep Endpoint, retry time.Duration) {
	if len(ready) == 0 {
		return Endpoint{}, 0
	}
	e.next++
	now := time.Now()
	for i := range ready {
		ep := ready[(e.next+uint64(i))%uint64(len(ready))]
		left := e.distrusted[ep.UID].until.Sub(now)
		if left <= 0 {
			return ep, 0
		}
		if retry == 0 || left < retry {
			retry = left
		}
	}
	return Endpoint{}, retry
}

// Only has Pick and Dial take no other pod than ep's from now on.
func (e *Endpoints) Only(ep Endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.only = ep.UID
}

// WaitGone waits until the pod, which is e's target, has ended, is not there any more, or is another one than uid's. Its error is
// ctx's cause, or why it cannot be known.
func (e *Endpoints) WaitGone(ctx context.Context, uid types.UID) error {
	return e.until(ctx, func() bool {
		return !slices.ContainsFunc(e.pods, func(p corev1.Pod) bool { return p.UID == uid && !Ended(&p) })
	})
}

// Dial connects to a ready endpoint for port, TCP, by a port-forward. A pod that cannot be reached any more is passed over.
func (e *Endpoints) Dial(ctx context.Context, port string) (net.Conn, error) {
	return e.dial(ctx, wanted{network: "tcp", port: port}, func(ctx context.Context, ep Endpoint) (conn net.Conn, final bool, err error) {
		select {
		case e.dials <- struct{}{}:
			defer func() { <-e.dials }()
		case <-ctx.Done():
			return nil, true, context.Cause(ctx)
		}
		if err := e.distrusts(ep); err != nil { // others have found out meanwhile
			return nil, false, err
		}
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		conn, err = e.Client.DialEndpoint(ctx, ep)
		return conn, hint.CodeOf(err) == hint.Forbidden, err
	})
}

// distrust is of a pod that could not be dialled.
type distrust struct {
	until time.Time
	err   error
}

// passedOver is why a pod was not dialled: another caller has just met that.
type passedOver struct{ error }

// Unwrap returns it.
func (p *passedOver) Unwrap() error { return p.error }

// distrusts returns why ep could not be dialled just now, or nil.
func (e *Endpoints) distrusts(ep Endpoint) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d, ok := e.distrusted[ep.UID]; ok && time.Now().Before(d.until) {
		return &passedOver{d.err}
	}
	return nil
}

// DialBy connects to a ready endpoint for port by dial, which is given its address. A pod that is not at its address any more, of whose end nobody has
// told yet, is passed over. What UDP has no end of its own for, the connection has: it closes when others are ready and its pod is not, so that who goes on
// sending reaches those, as by kube-proxy.
func (e *Endpoints) DialBy(ctx context.Context, network, port string, dial func(ctx context.Context, address string) (net.Conn, error)) (net.Conn, error) {
	w := wanted{network: network, port: port, foreign: true}
	return e.dial(ctx, w, func(ctx context.Context, ep Endpoint) (conn net.Conn, final bool, err error) {
		conn, err = dial(ctx, ep.Address())
		if err == nil && network == "udp" && ep.UID != "" {
			conn = e.whileReady(conn, w, ep)
		}
		return conn, ep.UID == "" || !errors.Is(err, syscall.EHOSTUNREACH), err
	})
}

// readyConn closes when it is to, too.
type readyConn struct {
	net.Conn
	done  context.CancelFunc
	ended chan struct{} // whoever looks whether it is to
}

// Close closes it.
func (c *readyConn) Close() error {
	c.done()
	err := c.Conn.Close()
	<-c.ended
	return err
}

// whileReady is conn, closed when w has endpoints that are ready and ep is none of them.
func (e *Endpoints) whileReady(conn net.Conn, w wanted, ep Endpoint) net.Conn {
	ctx, cancel := context.WithCancel(context.Background())
	c := &readyConn{conn, cancel, make(chan struct{})}
	go func() {
		defer close(c.ended)
		for {
			e.mu.Lock()
			ready, changed, err := e.ready(w)
			e.mu.Unlock()
			if err == nil && len(ready) > 0 && !slices.Contains(ready, ep) {
				_ = conn.Close()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c
}

func (e *Endpoints) dial(ctx context.Context, w wanted, dial func(context.Context, Endpoint) (conn net.Conn, final bool, err error)) (net.Conn, error) {
	var last error
	for range maxAttempts {
		ep, err := e.pick(ctx, w)
		if err != nil {
			if last != nil && ctx.Err() == nil {
				return nil, last
			}
			return nil, err
		}
		conn, final, err := dial(ctx, ep)
		if err == nil {
			e.log("connected", "pod", ep.Pod, "port", ep.Port)
			return conn, nil
		}
		if final || ctx.Err() != nil {
			return nil, err
		}
		if over := (*passedOver)(nil); errors.As(err, &over) {
			last = over.error
			continue
		}
		e.log("pod cannot be dialled", "pod", ep.Pod, "error", err)
		last = err
		e.mu.Lock()
		e.distrusted[ep.UID] = distrust{time.Now().Add(distrustFor), err}
		e.mu.Unlock()
	}
	return nil, last
}

// Network is what port is, "tcp" or "udp", when asked is what the user wants, or "": a Service's port of both is TCP then, and a
// number of a pod's too. Call it when WaitSynced has succeeded; the error is that there is no such port.
func (e *Endpoints) Network(asked, port string) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.Target.Kind == Service {
		sp, err := e.servicePort(asked, port)
		if err != nil {
			return "", err
		}
		return networkOf(sp.Protocol), nil
	}
	if asked == "" {
		for i := range e.pods {
			if cp := namedPort(&e.pods[i], "", port); cp != nil {
				if cp.Protocol == corev1.ProtocolSCTP {
					return "", e.isSCTP(port)
				}
				return networkOf(cp.Protocol), nil
			}
		}
	}
	return cmp.Or(asked, "tcp"), nil
}

func (e *Endpoints) isSCTP(port string) error {
	return hint.Newf(hint.Usage, "forward carries TCP and UDP", "port %s of %s in %s is SCTP", port, e.Target, e.Namespace)
}

func networkOf(p corev1.Protocol) string {
	if p == "" {
		return "tcp"
	}
	return strings.ToLower(string(p))
}

// Beyond says why no port-forward to a pod reaches a port of network; empty when one does. Call it when WaitSynced has succeeded.
func (e *Endpoints) Beyond(network string) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case network == "udp":
		return "a port-forward carries no UDP"
	case e.Target.Kind != Service || e.service == nil:
		return ""
	case e.service.Spec.Type == corev1.ServiceTypeExternalName:
		return fmt.Sprintf("%s is the name %s", e.Target, e.service.Spec.ExternalName)
	case len(e.service.Spec.Selector) == 0 && e.toOthers():
		return fmt.Sprintf("the endpoints of %s are no pods", e.Target)
	}
	return ""
}

// toOthers needs mu. It is whether there are endpoints and none is a pod: where there are none for now, pods may come.
func (e *Endpoints) toOthers() (others bool) {
	for _, s := range e.slices {
		for _, x := range s.Endpoints {
			if x.TargetRef != nil && x.TargetRef.Kind == "Pod" {
				return false
			}
			others = true
		}
	}
	return others
}

// resolve needs mu. It returns the ready endpoints, sorted by name, or an error that waiting
// does not mend.
func (e *Endpoints) resolve(w wanted) ([]Endpoint, error) {
	var eps []Endpoint
	var err error
	switch {
	case e.Target.Kind != Service:
		eps, err = e.resolvePods(w.network, w.port)
	default:
		var sp *corev1.ServicePort
		if sp, err = e.servicePort(w.network, w.port); err != nil {
			return nil, err
		}
		if e.service.Spec.Type == corev1.ServiceTypeExternalName {
			if w.foreign {
				return []Endpoint{{Host: e.service.Spec.ExternalName, Port: int(sp.Port)}}, nil
			}
			return nil, hint.Newf(hint.Usage, "leave out --via pods", "%s in %s is the name %s outside the cluster", e.Target, e.Namespace, e.service.Spec.ExternalName)
		}
		if e.byPods {
			eps, err = e.resolveServicePods(sp, w.foreign)
		} else {
			eps, err = e.resolveSlices(sp, w.foreign)
		}
	}
	// A pod with two addresses is there twice: IPv4 first.
	slices.SortFunc(eps, func(a, b Endpoint) int {
		return cmp.Or(strings.Compare(a.Pod, b.Pod), cmp.Compare(strings.Count(a.Host, ":"), strings.Count(b.Host, ":")), strings.Compare(a.Host, b.Host))
	})
	eps = slices.CompactFunc(eps, func(a, b Endpoint) bool { return a == b || a.Pod != "" && a.UID == b.UID && a.Port == b.Port })
	eps = slices.DeleteFunc(eps, func(x Endpoint) bool { return w.foreign && x.Host == "" || e.only != "" && x.UID != e.only })
	return eps, err
}

func portList(svc *corev1.Service) string {
	var ports []string
	for _, p := range svc.Spec.Ports {
		s := strconv.Itoa(int(p.Port))
		if network := networkOf(p.Protocol); network != "tcp" {
			s += "/" + network
		}
		if p.Name != "" {
			s += " (" + p.Name + ")"
		}
		ports = append(ports, s)
	}
	if len(ports) == 0 {
		return "no ports"
	}
	return strings.Join(ports, ", ")
}

// servicePort needs mu. With no network it prefers TCP.
func (e *Endpoints) servicePort(network, port string) (*corev1.ServicePort, error) {
	if e.service == nil {
		return nil, e.notFound("services")
	}
	var found *corev1.ServicePort
	for i := range e.service.Spec.Ports {
		p := &e.service.Spec.Ports[i]
		if p.Name != port && strconv.Itoa(int(p.Port)) != port || network != "" && networkOf(p.Protocol) != network {
			continue
		}
		if found == nil || networkOf(p.Protocol) == "tcp" {
			found = p
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); found == nil && err == nil && n > 0 && e.service.Spec.Type == corev1.ServiceTypeExternalName {
		return &corev1.ServicePort{Port: int32(n), Protocol: corev1.Protocol(strings.ToUpper(cmp.Or(network, "tcp")))}, nil // a name has every port
	}
	switch {
	case found == nil && network == "udp":
		return nil, hint.Newf(hint.Usage, "it has: "+portList(e.service), "%s in %s has no UDP port %s", e.Target, e.Namespace, port)
	case found == nil:
		return nil, hint.Newf(hint.Usage, "it has: "+portList(e.service), "%s in %s has no port %s", e.Target, e.Namespace, port)
	case found.Protocol == corev1.ProtocolSCTP:
		return nil, e.isSCTP(port)
	}
	return found, nil
}

// resolveSlices takes the ready ones; if there are none, those that still serve while they terminate,
// as kube-proxy does.
func (e *Endpoints) resolveSlices(sp *corev1.ServicePort, all bool) (ready []Endpoint, err error) {
	var leaving []Endpoint
	foreign := 0
	for _, s := range e.slices {
		for _, p := range s.Ports {
			protocol := corev1.ProtocolTCP
			if p.Protocol != nil {
				protocol = *p.Protocol
			}
			if p.Port == nil || p.Name == nil && sp.Name != "" || p.Name != nil && *p.Name != sp.Name || networkOf(protocol) != networkOf(sp.Protocol) {
				continue
			}
			for _, x := range s.Endpoints {
				ep := Endpoint{Port: int(*p.Port)}
				if len(x.Addresses) > 0 {
					ep.Host = x.Addresses[0]
				}
				switch pod := x.TargetRef; {
				case pod != nil && pod.Kind == "Pod":
					ep.Namespace, ep.Pod, ep.UID = cmp.Or(pod.Namespace, e.Namespace), pod.Name, pod.UID
				case !all:
					foreign++
					continue
				}
				switch c := x.Conditions; {
				case c.Ready == nil || *c.Ready:
					ready = append(ready, ep)
				case c.Serving != nil && *c.Serving:
					leaving = append(leaving, ep)
				}
			}
		}
	}
	if len(ready) == 0 && len(leaving) == 0 && foreign > 0 {
		return nil, hint.Newf(hint.Other, "leave out --via pods", "the endpoints of %s in %s are addresses, not pods", e.Target, e.Namespace)
	}
	if len(ready) == 0 {
		return leaving, nil
	}
	return ready, nil
}

func (e *Endpoints) resolveServicePods(sp *corev1.ServicePort, all bool) (ready []Endpoint, err error) {
	target := sp.TargetPort
	if target == (intstr.IntOrString{}) {
		target = intstr.FromInt32(sp.Port)
	}
	if len(e.service.Spec.Selector) == 0 && all && e.service.Spec.ClusterIP != corev1.ClusterIPNone {
		return []Endpoint{{Host: e.service.Spec.ClusterIP, Port: int(sp.Port)}}, nil
	}
	for i := range e.pods {
		p := &e.pods[i]
		if port, ok := containerPort(p, networkOf(sp.Protocol), target.String()); ok && isReady(p) {
			ready = append(ready, Endpoint{p.Namespace, p.Name, p.UID, p.Status.PodIP, port})
		}
	}
	return ready, nil
}

// resolvePods takes ready pods. A pod that was asked for by name need only run: one may well want to
// look into a pod because it is not ready.
func (e *Endpoints) resolvePods(network, port string) (ready []Endpoint, err error) {
	unnamed := 0
	for i := range e.pods {
		p := &e.pods[i]
		if !isReady(p) && (e.Target.Kind != Pod || p.Status.Phase != corev1.PodRunning) {
			continue
		}
		number, ok := containerPort(p, network, port)
		if !ok {
			unnamed++
			continue
		}
		ready = append(ready, Endpoint{p.Namespace, p.Name, p.UID, p.Status.PodIP, number})
	}
	if len(ready) == 0 && unnamed > 0 {
		next := "use the number"
		if network == "tcp" {
			next += ", or " + port + "/udp when it is UDP"
		}
		return nil, hint.Newf(hint.Usage, next, "no container of %s in %s has a %s port named %q", e.Target, e.Namespace, strings.ToUpper(network), port)
	}
	if e.Target.Kind == Pod && !e.seen {
		return nil, e.notFound("pods")
	}
	return ready, nil
}

func containerPort(p *corev1.Pod, network, port string) (int, bool) {
	if n, err := strconv.Atoi(port); err == nil {
		return n, true
	}
	if cp := namedPort(p, network, port); cp != nil {
		return int(cp.ContainerPort), true
	}
	return 0, false
}

// namedPort is the container port of that name; with no network of any, TCP first.
func namedPort(p *corev1.Pod, network, name string) (found *corev1.ContainerPort) {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for i, cp := range c.Ports {
			if cp.Name != name || network != "" && networkOf(cp.Protocol) != network {
				continue
			}
			if found == nil || networkOf(cp.Protocol) == "tcp" {
				found = &c.Ports[i]
			}
		}
	}
	return found
}

func isReady(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// whyNone says why there is no endpoint: no pods, or pods that are not ready and what they say.
func (e *Endpoints) whyNone(ctx context.Context, waited time.Duration) error {
	e.mu.Lock()
	pods := slices.Clone(e.pods)
	var lastErr error
	for _, p := range e.parts {
		if p.err != nil {
			lastErr = p.err
		}
	}
	fromSlices := e.Target.Kind == Service && !e.byPods
	handMade := e.service != nil && len(e.service.Spec.Selector) == 0
	e.mu.Unlock()
	if handMade {
		return hint.Newf(hint.Other, fmt.Sprintf("kubectl get endpointslices -n %s%s -l %s=%s", e.Namespace, e.Client.Flags, discoveryv1.LabelServiceName, e.Target.Name),
			"%s in %s, which has no selector, has no ready endpoint after %s", e.Target, e.Namespace, waited)
	}
	base := fmt.Sprintf("%s in %s has no ready pod after %s", e.Target, e.Namespace, waited)
	if fromSlices {
		ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
		defer cancel()
		sel, err := e.Client.PodSelector(ctx, e.Namespace, e.Target)
		if err == nil {
			var l *corev1.PodList
			if l, err = e.Client.Clientset.CoreV1().Pods(e.Namespace).List(ctx, metav1.ListOptions{LabelSelector: sel.String()}); err == nil {
				pods = l.Items
			}
		}
		if err != nil {
			lastErr = err
		}
	}
	show := fmt.Sprintf("kubectl get pods -n %s%s", e.Namespace, e.Client.Flags)
	if lastErr != nil {
		return hint.New(0, hint.Worded(base+": "+lastErr.Error(), Explain(lastErr, "look up pods")), "")
	}
	if len(pods) == 0 && e.Target.Kind == Pod {
		return e.notFound("pods")
	}
	if len(pods) == 0 {
		return e.unhealthy(hint.Newf(hint.Other, "it may be scaled to 0, or its selector is wrong: "+show, "%s: no pod matches its selector", base))
	}
	var why []string
	for i := range pods {
		if len(why) == 3 {
			why = append(why, fmt.Sprintf("and %d more", len(pods)-i))
			break
		}
		why = append(why, pods[i].Name+": "+podReason(&pods[i]))
	}
	return e.unhealthy(hint.Newf(hint.Other, fmt.Sprintf("kubectl describe pod -n %s%s %s", e.Namespace, e.Client.Flags, pods[0].Name), "%s: %s", base, strings.Join(why, "; ")))
}

func (e *Endpoints) unhealthy(err error) error {
	return &Unhealthy{Target: e.Target, Namespace: e.Namespace, Err: err}
}

// podReason is what a person would find first in the pod's status.
func podReason(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "terminating"
	}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" {
			return w.Reason
		}
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("container %s exited with %d", c.Name, t.ExitCode)
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return "not scheduled: " + c.Message
		}
	}
	if p.Status.Phase == corev1.PodRunning {
		return "running but not ready"
	}
	return strings.ToLower(string(p.Status.Phase))
}

// PortNumber is the number of a port as the target knows it: a Service's own port for its name, for
// pods the container's. Call it when Pick has succeeded.
func (e *Endpoints) PortNumber(network, port string) (int, error) {
	if n, err := strconv.Atoi(port); err == nil {
		return n, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.Target.Kind == Service && e.service != nil {
		if sp, err := e.servicePort(network, port); err == nil {
			return int(sp.Port), nil
		}
	}
	for i := range e.pods {
		if n, ok := containerPort(&e.pods[i], network, port); ok {
			return n, nil
		}
	}
	return 0, hint.Newf(hint.Usage, "use the number", "%s in %s has no port named %q", e.Target, e.Namespace, port)
}
