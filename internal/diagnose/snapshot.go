package diagnose

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/probe"
)

// plural is a kind of object as the API's paths have it.
type plural string

const (
	pods           plural = "pods"
	services       plural = "services"
	endpointSlices plural = "endpointslices"
	events         plural = "events"
	deployments    plural = "deployments"
	replicaSets    plural = "replicasets"
	statefulSets   plural = "statefulsets"
	daemonSets     plural = "daemonsets"
	jobs           plural = "jobs"
	cronJobs       plural = "cronjobs"
	controllers    plural = "replicationcontrollers"
	claims         plural = "persistentvolumeclaims"
	policies       plural = "networkpolicies"
	ingresses      plural = "ingresses"
	autoscalers    plural = "horizontalpodautoscalers"
	budgets        plural = "poddisruptionbudgets"
	argoRollouts   plural = "rollouts"
	nodes          plural = "nodes"
	configMaps     plural = "configmaps"
	secrets        plural = "secrets"
	storageClasses plural = "storageclasses"
	ingressClasses plural = "ingressclasses"
	namespaces     plural = "namespaces"
	allNamespaces  plural = "labels of namespaces"
	leases         plural = "leases"
	podsElsewhere  plural = "pods of other namespaces"
	metrics        plural = "pods." + metricsGroup
)

// Snapshot is what was read. The checks only look at it.
type Snapshot struct {
	Namespace string // "" for all
	Now       time.Time

	Pods           []corev1.Pod
	Services       []corev1.Service
	EndpointSlices []discoveryv1.EndpointSlice
	Events         []corev1.Event // newest first
	Deployments    []appsv1.Deployment
	ReplicaSets    []appsv1.ReplicaSet
	StatefulSets   []appsv1.StatefulSet
	DaemonSets     []appsv1.DaemonSet
	Jobs           []batchv1.Job
	Claims         []corev1.PersistentVolumeClaim
	Policies       []networkingv1.NetworkPolicy
	Ingresses      []networkingv1.Ingress
	Autoscalers    []autoscalingv2.HorizontalPodAutoscaler
	Budgets        []policyv1.PodDisruptionBudget
	Nodes          []corev1.Node
	// Space is the namespace itself; nil where all are looked at, or it may not be read.
	Space *corev1.Namespace

	// Rollouts are Argo's. They are read where ReplicaSets are theirs, or one is a target.
	Rollouts []argoRollout
	// CronJobs and ReplicationControllers are read where one is a target.
	CronJobs    []batchv1.CronJob
	Controllers []corev1.ReplicationController
	// These are read when something that was read before asks for them. Of ConfigMaps and Secrets it is the names alone, of namespaces the labels.
	ConfigMaps, Secrets []metav1.PartialObjectMetadata
	Namespaces          []metav1.PartialObjectMetadata
	StorageClasses      []storagev1.StorageClass
	IngressClasses      []networkingv1.IngressClass
	// AllPods are those of all namespaces, which share the nodes.
	AllPods     []corev1.Pod
	PullSecrets map[Ref]pullSecret
	// Strays are pods of other namespaces that have the labels which a Service selects, by the Service.
	Strays map[Ref]Ref
	// Metrics are what the pods use. They are read where it can be held against something.
	Metrics []podMetrics

	Swaps  []Swap
	Unread []Unread

	// Dialled is how many ports were; nil for none. answers are theirs.
	Dialled *Dialled
	answers map[place]answer
	// Beyond is how many addresses no pod stands behind; nil for none. beyond are those that the pod of ours, from, has dialled.
	Beyond *Beyond
	beyond []beyond
	from   From
	probed map[probing]probe.Outcome // probes that it has run

	// asked are the kinds that were to be read.
	asked map[plural]bool
	// The same objects, to be found: events by what they are about, ReplicaSets and Jobs by name, pods by namespace and workload.
	eventsAbout map[Ref][]*corev1.Event
	makers      map[Ref]metav1.Object
	made        map[Ref][]Ref // the pods and ReplicaSets of a workload, and the nodes of those that are not ready
	podsIn      map[string][]*corev1.Pod
	deployed    map[Ref]*appsv1.Deployment
	claimed     map[Ref]bool
	lastSuccess map[types.UID]time.Time // of a CronJob: when the last of its Jobs that are complete was made
	named       map[Ref]bool            // ConfigMaps and Secrets
	load        map[string]*nodeLoad    // of a node, of AllPods
	usages      map[Ref]usage           // of containers, of Metrics
}

// reading is how one kind is read into the snapshot.
type reading struct {
	resource plural
	read     func(ctx context.Context, k *kube.Client, s *Snapshot) error
}

// kept has the items of a list in to, unless it could not be read.
func kept[T any](to *[]T, items func() []T, err error) error {
	if err == nil {
		*to = items()
	}
	return err
}

// always are the kinds that are read each time: one list call each, all under way at once.
func always() []reading {
	all := metav1.ListOptions{}
	return []reading{
		{pods, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().Pods(s.Namespace).List(ctx, all)
			return kept(&s.Pods, func() []corev1.Pod { return l.Items }, err)
		}},
		{services, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().Services(s.Namespace).List(ctx, all)
			return kept(&s.Services, func() []corev1.Service { return l.Items }, err)
		}},
		{endpointSlices, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.DiscoveryV1().EndpointSlices(s.Namespace).List(ctx, all)
			return kept(&s.EndpointSlices, func() []discoveryv1.EndpointSlice { return l.Items }, err)
		}},
		{events, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().Events(s.Namespace).List(ctx, all)
			return kept(&s.Events, func() []corev1.Event { return l.Items }, err)
		}},
		{deployments, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.AppsV1().Deployments(s.Namespace).List(ctx, all)
			return kept(&s.Deployments, func() []appsv1.Deployment { return l.Items }, err)
		}},
		{replicaSets, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.AppsV1().ReplicaSets(s.Namespace).List(ctx, all)
			return kept(&s.ReplicaSets, func() []appsv1.ReplicaSet { return l.Items }, err)
		}},
		{statefulSets, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.AppsV1().StatefulSets(s.Namespace).List(ctx, all)
			return kept(&s.StatefulSets, func() []appsv1.StatefulSet { return l.Items }, err)
		}},
		{daemonSets, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.AppsV1().DaemonSets(s.Namespace).List(ctx, all)
			return kept(&s.DaemonSets, func() []appsv1.DaemonSet { return l.Items }, err)
		}},
		{jobs, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.BatchV1().Jobs(s.Namespace).List(ctx, all)
			return kept(&s.Jobs, func() []batchv1.Job { return l.Items }, err)
		}},
		{claims, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().PersistentVolumeClaims(s.Namespace).List(ctx, all)
			return kept(&s.Claims, func() []corev1.PersistentVolumeClaim { return l.Items }, err)
		}},
		{policies, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.NetworkingV1().NetworkPolicies(s.Namespace).List(ctx, all)
			return kept(&s.Policies, func() []networkingv1.NetworkPolicy { return l.Items }, err)
		}},
		{ingresses, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.NetworkingV1().Ingresses(s.Namespace).List(ctx, all)
			return kept(&s.Ingresses, func() []networkingv1.Ingress { return l.Items }, err)
		}},
		{autoscalers, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.AutoscalingV2().HorizontalPodAutoscalers(s.Namespace).List(ctx, all)
			return kept(&s.Autoscalers, func() []autoscalingv2.HorizontalPodAutoscaler { return l.Items }, err)
		}},
		{budgets, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.PolicyV1().PodDisruptionBudgets(s.Namespace).List(ctx, all)
			return kept(&s.Budgets, func() []policyv1.PodDisruptionBudget { return l.Items }, err)
		}},
		{nodes, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().Nodes().List(ctx, all)
			return kept(&s.Nodes, func() []corev1.Node { return l.Items }, err)
		}},
	}
}

// asNeeded are the kinds that what was read before asks for.
func (s *Snapshot) asNeeded(o Options) (out []reading) {
	some := slices.ContainsFunc(s.Pods, unready) || len(s.Ingresses) > 0
	if some || refer(s.Pods, "configmap") {
		out = append(out, reading{configMaps, func(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
			s.ConfigMaps, err = names(ctx, k, s.Namespace, configMaps, nil)
			return err
		}})
	}
	if some || refer(s.Pods, "secret") {
		out = append(out, reading{secrets, func(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
			s.Secrets, err = names(ctx, k, s.Namespace, secrets, nil)
			return err
		}})
	}
	named := func(kind string) bool {
		return slices.ContainsFunc(o.Targets, func(r Ref) bool { return r.Kind == kind })
	}
	if named("cronjob") && !o.known { // a file that has one suspended means it
		out = append(out, reading{cronJobs, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.BatchV1().CronJobs(s.Namespace).List(ctx, metav1.ListOptions{})
			return kept(&s.CronJobs, func() []batchv1.CronJob { return l.Items }, err)
		}})
	}
	if named(string(kube.ReplicationController)) {
		out = append(out, reading{controllers, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().ReplicationControllers(s.Namespace).List(ctx, metav1.ListOptions{})
			return kept(&s.Controllers, func() []corev1.ReplicationController { return l.Items }, err)
		}})
	}
	if named(rolloutKind) || slices.ContainsFunc(s.ReplicaSets, func(r appsv1.ReplicaSet) bool { by, _ := maker(&r); return by.Kind == rolloutKind }) {
		out = append(out, reading{argoRollouts, readRollouts})
	}
	if slices.ContainsFunc(s.Claims, func(c corev1.PersistentVolumeClaim) bool { return c.Status.Phase == corev1.ClaimPending }) {
		out = append(out, reading{storageClasses, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
			return kept(&s.StorageClasses, func() []storagev1.StorageClass { return l.Items }, err)
		}})
	}
	if slices.ContainsFunc(s.Ingresses, func(i networkingv1.Ingress) bool { return i.Spec.IngressClassName != nil || nameless(&i) }) {
		out = append(out, reading{ingressClasses, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.NetworkingV1().IngressClasses().List(ctx, metav1.ListOptions{})
			return kept(&s.IngressClasses, func() []networkingv1.IngressClass { return l.Items }, err)
		}})
	}
	if slices.ContainsFunc(s.Policies, selectsNamespaces) && !o.brief {
		out = append(out, reading{allNamespaces, func(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
			s.Namespaces, err = names(ctx, k, "", namespaces, nil)
			return err
		}})
	}
	if lonely := s.lonely(); len(lonely) > 0 && !o.brief {
		out = append(out, reading{"pods of lonely Services", func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			s.readStrays(ctx, k, lonely)
			return nil // who may not read them is told less
		}})
	}
	if s.Namespace != "" && slices.ContainsFunc(s.Pods, func(p corev1.Pod) bool { return unscheduled(&p) != nil }) {
		out = append(out, reading{podsElsewhere, func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			l, err := k.Clientset.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"})
			return kept(&s.AllPods, func() []corev1.Pod { return l.Items }, err)
		}})
	}
	if !o.brief && (slices.ContainsFunc(s.Pods, hasLimits) || slices.ContainsFunc(s.Nodes, shortOfMemory)) {
		out = append(out, reading{metrics, readMetrics})
	}
	if wanted := s.pullSecretsWanted(); len(wanted) > 0 {
		out = append(out, reading{"pull secrets", func(ctx context.Context, k *kube.Client, s *Snapshot) error {
			s.readPullSecrets(ctx, k, wanted)
			return nil
		}})
	}
	return out
}

// lonely are Services whose labels no pod of their namespace has, and no workload would give one, a few of them.
func (s *Snapshot) lonely() (out []*corev1.Service) {
	for i := range s.Services {
		v := &s.Services[i]
		selector := labels.SelectorFromSet(v.Spec.Selector)
		if len(v.Spec.Selector) == 0 || s.Namespace == "" || s.makes(v.Namespace, selector) {
			continue
		}
		if len(out) < aFew && !slices.ContainsFunc(s.Pods, func(p corev1.Pod) bool { return selector.Matches(labels.Set(p.Labels)) }) {
			out = append(out, v)
		}
	}
	return out
}

// readStrays asks for one pod of another namespace for each of these Services.
func (s *Snapshot) readStrays(ctx context.Context, k *kube.Client, lonely []*corev1.Service) {
	found := make([][]metav1.PartialObjectMetadata, len(lonely))
	atOnce(aFew, len(lonely), func(i int) {
		found[i], _ = names(ctx, k, "", pods, map[string]string{"limit": "1", "labelSelector": labels.FormatLabels(lonely[i].Spec.Selector), "fieldSelector": "status.phase=Running"})
	})
	s.Strays = map[Ref]Ref{}
	for i, v := range lonely {
		if len(found[i]) > 0 && found[i][0].Namespace != v.Namespace { // where one may have come meanwhile
			s.Strays[refOf("service", v)] = refOf("pod", &found[i][0])
		}
	}
}

// names reads what the objects of a kind are called, and nothing of what they hold.
func names(ctx context.Context, k *kube.Client, namespace string, r plural, params map[string]string) ([]metav1.PartialObjectMetadata, error) {
	list := k.Clientset.CoreV1().RESTClient().Get().Resource(string(r)).Namespace(namespace)
	for name, value := range params {
		list.Param(name, value)
	}
	b, err := list.
		SetHeader("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var l metav1.PartialObjectMetadataList
	err = json.Unmarshal(b, &l)
	return l.Items, err
}

// custom lists objects of which bridge links no types.
func custom[T any](ctx context.Context, k *kube.Client, version, namespace, resource string) ([]T, error) {
	r := k.Clientset.CoreV1().RESTClient().Get().AbsPath("/apis", version)
	if namespace != "" {
		r = r.Suffix("namespaces", namespace, resource)
	} else {
		r = r.Suffix(resource)
	}
	b, err := r.SetHeader("Accept", "application/json").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var l struct {
		Items []T `json:"items"`
	}
	err = json.Unmarshal(b, &l)
	return l.Items, err
}

// first are the kinds that are read at once, with the namespace itself, of which it may be that it is not there or goes: lists of it are empty then.
func (s *Snapshot) first(o Options) []reading {
	out := always()
	if o.Swaps != nil {
		out = append(out, reading{leases, func(ctx context.Context, _ *kube.Client, s *Snapshot) (err error) {
			s.Swaps, err = o.Swaps(ctx)
			return err
		}})
	}
	if s.Namespace == "" {
		return out
	}
	return append(out, reading{namespaces, func(ctx context.Context, k *kube.Client, s *Snapshot) (err error) {
		ns, err := k.Clientset.CoreV1().Namespaces().Get(ctx, s.Namespace, metav1.GetOptions{})
		if err == nil {
			s.Space = ns
		}
		return err
	}})
}

// read makes the snapshot. Only the pods have to be readable, and a namespace has to be there.
func read(ctx context.Context, k *kube.Client, namespace string, o Options) (*Snapshot, error) {
	s := &Snapshot{Namespace: namespace, Now: time.Now()}
	for _, round := range []func() []reading{func() []reading { return s.first(o) }, func() []reading { return s.asNeeded(o) }} {
		if err := s.readAll(ctx, k, round()); err != nil {
			return nil, err
		}
	}
	if namespace == "" {
		s.AllPods = s.Pods
	}
	s.index()
	return s, nil
}

func (s *Snapshot) readAll(ctx context.Context, k *kube.Client, round []reading) error {
	failed := make([]error, len(round))
	atOnce(aFew, len(round), func(i int) { failed[i] = round[i].read(ctx, k, s) })
	if s.asked == nil {
		s.asked = map[plural]bool{}
	}
	for i, r := range round {
		s.asked[r.resource] = true
		err := failed[i]
		if err == nil {
			continue
		}
		switch {
		case r.resource == pods:
			return kube.Explain(err, "list pods in "+within(s.Namespace))
		case r.resource == namespaces && apierrors.IsNotFound(err):
			return kube.Explain(err, "look into namespace "+s.Namespace)
		case apierrors.IsNotFound(err): // the cluster does not have this kind
			continue
		}
		why := mayNot
		switch {
		case apierrors.IsForbidden(err):
		case errors.As(err, new(*hint.Error)): // it is explained
			why = err.Error()
		default:
			why = kube.Explain(err, "list").Error()
		}
		// The metrics' own server may be away for good, and is not waited for.
		s.Unread = append(s.Unread, Unread{Resource: string(r.resource), Why: why, passing: r.resource != metrics && kube.Transient(err)})
	}
	return nil
}

func within(namespace string) string {
	if namespace == "" {
		return "all namespaces"
	}
	return namespace
}

// index has what was read found by name, so that a check of each pod does not go through all of the rest.
func (s *Snapshot) index() {
	slices.SortStableFunc(s.Events, func(a, b corev1.Event) int { return lastSeen(&b).Compare(lastSeen(&a)) })
	s.eventsAbout, s.makers, s.podsIn = map[Ref][]*corev1.Event{}, map[Ref]metav1.Object{}, map[string][]*corev1.Pod{}
	for i := range s.Events {
		o := s.Events[i].InvolvedObject
		r := Ref{strings.ToLower(o.Kind), o.Namespace, o.Name}
		s.eventsAbout[r] = append(s.eventsAbout[r], &s.Events[i])
	}
	for i := range s.ReplicaSets {
		s.makers[refOf("replicaset", &s.ReplicaSets[i])] = &s.ReplicaSets[i]
	}
	for i := range s.Jobs {
		s.makers[refOf("job", &s.Jobs[i])] = &s.Jobs[i]
	}
	s.claimed, s.named, s.lastSuccess = map[Ref]bool{}, map[Ref]bool{}, map[types.UID]time.Time{}
	for i := range s.Claims {
		s.claimed[refOf("persistentvolumeclaim", &s.Claims[i])] = true
	}
	for i := range s.ConfigMaps {
		s.named[refOf("configmap", &s.ConfigMaps[i])] = true
	}
	for i := range s.Secrets {
		s.named[refOf("secret", &s.Secrets[i])] = true
	}
	for i := range s.Jobs {
		j := &s.Jobs[i]
		if by := metav1.GetControllerOf(j); by != nil && is(j, batchv1.JobComplete) && j.CreationTimestamp.After(s.lastSuccess[by.UID]) {
			s.lastSuccess[by.UID] = j.CreationTimestamp.Time
		}
	}
	s.load, s.usages = loads(s.AllPods), map[Ref]usage{}
	for i := range s.Metrics {
		m := &s.Metrics[i]
		for _, c := range m.Containers {
			s.usages[partOf(refOf("pod", m), c.Name)] = usage{c.Usage, m.Timestamp.Time, m.Window.Duration}
		}
	}
	s.made, s.deployed = map[Ref][]Ref{}, map[Ref]*appsv1.Deployment{}
	for i := range s.Deployments {
		s.deployed[refOf("deployment", &s.Deployments[i])] = &s.Deployments[i]
	}
	add := func(kind string, o metav1.Object) {
		by := s.owner(o)
		s.made[by] = append(s.made[by], refOf(kind, o))
	}
	for i := range s.ReplicaSets {
		add("replicaset", &s.ReplicaSets[i])
	}
	for i := range s.Pods {
		s.podsIn[s.Pods[i].Namespace] = append(s.podsIn[s.Pods[i].Namespace], &s.Pods[i])
		add("pod", &s.Pods[i])
		if p := &s.Pods[i]; !ready(p) && p.Spec.NodeName != "" {
			if by := s.owner(p); !slices.Contains(s.made[by], nodeOf(p)) {
				s.made[by] = append(s.made[by], nodeOf(p))
			}
		}
	}
}

func (s *Snapshot) isUnread(r plural) bool {
	return slices.ContainsFunc(s.Unread, func(u Unread) bool { return u.Resource == string(r) })
}

// has tells whether r was read: what is not in it does not exist.
func (s *Snapshot) has(r plural) bool { return s.asked[r] && !s.isUnread(r) }

func (s *Snapshot) size() int {
	return len(s.Pods) + len(s.Services) + len(s.Deployments) + len(s.ReplicaSets) + len(s.StatefulSets) + len(s.DaemonSets) + len(s.Jobs) +
		len(s.Claims) + len(s.Policies) + len(s.Ingresses) + len(s.Autoscalers) + len(s.Budgets) + len(s.Rollouts) + len(s.CronJobs) + len(s.Controllers)
}

// refOf names an object of that kind.
func refOf(kind string, o metav1.Object) Ref {
	return Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// owner is the workload at the end of the chain that made o: a pod's Deployment, not its ReplicaSet. The zero value for none.
func (s *Snapshot) owner(o metav1.Object) Ref {
	r, _ := maker(o)
	for range longestChain {
		next := s.makers[r]
		if next == nil {
			break
		}
		up, made := maker(next)
		if !made {
			break
		}
		r = up
	}
	return r
}

// longestChain is how many makers an object may have, one above the other: a pod's Job and CronJob, and what made that. A chain that is
// longer goes in a circle.
const longestChain = 8

// maker is the controller of o; false without one. One of somebody else's kinds is named with its API group, since it may be called as one
// of Kubernetes' own is.
func maker(o metav1.Object) (Ref, bool) {
	c := metav1.GetControllerOf(o)
	if c == nil {
		return Ref{}, false
	}
	r := Ref{Kind: strings.ToLower(c.Kind), Namespace: o.GetNamespace(), Name: c.Name}
	if group, _, versioned := strings.Cut(c.APIVersion, "/"); versioned && strings.Contains(group, ".") && !strings.HasSuffix(group, ".k8s.io") {
		r.Kind += "." + group
	}
	if r.Kind == "node" { // which makes its static pods
		r.Namespace = ""
	}
	return r, true
}

// selected are the pods of a namespace that a set of labels selects. No labels select none.
func (s *Snapshot) selected(namespace string, selector map[string]string) (out []*corev1.Pod) {
	if len(selector) == 0 {
		return nil
	}
	return s.matching(namespace, labels.SelectorFromSet(selector))
}

func (s *Snapshot) matching(namespace string, selector labels.Selector) (out []*corev1.Pod) {
	for _, p := range s.podsIn[namespace] {
		if selector.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// lastSeen is when an event happened last.
func lastSeen(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// timesSeen is how often an event happened.
func timesSeen(e *corev1.Event) int32 {
	if e.Series != nil {
		return e.Series.Count
	}
	return max(e.Count, 1)
}

// firstSeen is when an event happened first.
func firstSeen(e *corev1.Event) time.Time {
	return cmp.Or(e.FirstTimestamp.Time, e.EventTime.Time, lastSeen(e))
}

// eventsOf are those of an object, newest first, and not those of one that had its name before. With reasons it is those alone.
func (s *Snapshot) eventsOf(kind string, o metav1.Object, reasons ...string) (out []*corev1.Event) {
	for _, e := range s.eventsAbout[refOf(kind, o)] {
		about := e.InvolvedObject
		if about.UID != "" && o.GetUID() != "" && about.UID != o.GetUID() {
			continue
		}
		if len(reasons) == 0 || slices.Contains(reasons, e.Reason) {
			out = append(out, e)
		}
	}
	return out
}

// told makes evidence of events, the last few of them; those that say the same are one.
func told(list []*corev1.Event) (out []Evidence) {
	const most = 3
	for _, e := range list {
		count := timesSeen(e)
		one := Evidence{From: fmt.Sprintf("%s/%s %s", strings.ToLower(e.InvolvedObject.Kind), e.InvolvedObject.Name, e.Reason), Says: strings.TrimSpace(e.Message), At: lastSeen(e), Count: count}
		if i := slices.IndexFunc(out, func(o Evidence) bool { return o.From == one.From && o.Says == one.Says }); i >= 0 {
			out[i].Count += count
		} else if len(out) < most {
			out = append(out, one)
		}
	}
	return out
}
