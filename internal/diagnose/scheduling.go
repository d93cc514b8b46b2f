package diagnose

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"bridge/internal/kube"
)

// checkScheduling is about pods that have no node.
func checkScheduling(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		c := unscheduled(p)
		if c == nil {
			if f, ok := s.unseen(p); ok {
				out = append(out, f)
			}
			continue
		}
		if s.Now.Sub(p.CreationTimestamp.Time) < startPatience && saidIn(c.Message, podSays) != nil {
			continue // its claim is made, or bound, in a moment
		}
		f := s.ofPod(p, "unschedulable", Problem, Scheduling)
		f.Why = "no container of a pod starts before the pod has a node"
		f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
		f.Events = told(s.eventsOf("pod", p, "FailedScheduling", "NotTriggerScaleUp"))
		f.because = append(claimsOf(p), f.Object)
		if c.Reason == "SchedulingGated" {
			var gates []string
			for _, g := range p.Spec.SchedulingGates {
				gates = append(gates, g.Name)
			}
			f.ID = "pod-gated"
			f.Summary = "it has scheduling gates, and who set them has not taken them away: " + list(gates)
			f.Next = []string{"look for the controller that the gate is named for; nothing else may take it away"}
			out = append(out, f)
			continue
		}
		s.explainUnscheduled(&f, p, c.Message)
		out = append(out, f)
	}
	return out
}

// unseen is about a pod that no scheduler has looked at: the one it names does not run.
func (s *Snapshot) unseen(p *pod) (Finding, bool) {
	if p.Status.Phase != corev1.PodPending || p.Spec.NodeName != "" || p.DeletionTimestamp != nil || condition(p, corev1.PodScheduled) != nil || s.Now.Sub(p.CreationTimestamp.Time) < startPatience {
		return Finding{}, false
	}
	name := cmp.Or(p.Spec.SchedulerName, corev1.DefaultSchedulerName)
	f := s.ofPod(p, "pod-no-scheduler", Problem, Scheduling)
	f.Summary = fmt.Sprintf("no scheduler has looked at it: is there one called %s", name)
	f.Why = "no container of a pod starts before the pod has a node"
	f.State = []Evidence{{From: f.Object.String() + " spec.schedulerName", Says: name}, {From: f.Object.String() + " condition PodScheduled", Says: "nobody has set it", At: p.CreationTimestamp.Time}}
	f.Events = told(s.eventsOf("pod", p))
	f.because = append(f.because, f.Object)
	if name == corev1.DefaultSchedulerName {
		f.Next = []string{"the cluster's scheduler does not run: kubectl get pods -n kube-system"}
	} else {
		f.Next = []string{fmt.Sprintf("leave schedulerName out, or write %s; or have %s started: %s", corev1.DefaultSchedulerName, name, f.edit())}
	}
	return f, true
}

// refusal is why one node does not take a pod.
type refusal struct {
	id     string // of a finding that has it as its cause
	what   string
	change string // the smallest that would mend it
	cost   float64
	// rule is whether it is for whom the node is meant, and not how it is for now.
	rule bool
}

// nodeFit is a node with its refusals.
type nodeFit struct {
	node     string
	refusals []refusal
}

// meant tells whether a node that does not take a pod is meant for such pods.
func (n nodeFit) meant() bool {
	return len(n.refusals) > 0 && !slices.ContainsFunc(n.refusals, func(r refusal) bool { return r.rule })
}

// says are the scheduler's words for a cause.
type says struct{ text, id, what, next string }

// The scheduler's words for causes that it alone knows: of the pod, whatever the nodes are like, and of nodes.
var (
	podSays = []says{
		{"unbound immediate PersistentVolumeClaims", "unschedulable-volume", "a volume claim of it is not bound", "kubectl get pvc%s"},
		{"persistentvolumeclaim \"", "unschedulable-volume", "a volume claim of it does not exist or is being deleted", "kubectl get pvc%s"},
		{"bound to non-existent pv(s)", "unschedulable-volume", "a volume claim of it is bound to a volume that does not exist", "kubectl get pvc%s"},
	}
	hiddenSays = []says{
		{"volume node affinity conflict", "unschedulable-volume", "its volume is on another node or in another zone", "kubectl describe pv; the pod has to go where its volume is"}, // of older schedulers
		{"match PersistentVolume's node affinity", "unschedulable-volume", "its volume is on another node or in another zone", "kubectl describe pv; the pod has to go where its volume is"},
		{"find available persistent volumes to bind", "unschedulable-volume", "no volume is there for a claim of it", "kubectl describe pvc%s"},
		{"not have enough free storage", "unschedulable-volume", "the nodes have not as much storage free as a claim of it wants", "have the claim ask for less, or free some: kubectl describe pvc%s"},
		{"exceed max volume count", "unschedulable-volume", "its nodes have as many volumes as they can", "use another node, or fewer volumes"},
		{keepsApart, "unschedulable-affinity", "its anti-affinity keeps it from pods that are on the nodes", "make it preferred rather than required, or add nodes: "},
		{"anti-affinity rules", "unschedulable-affinity", "anti-affinity keeps it from the nodes", "make it preferred rather than required, or add nodes: "},
		{besideOthers, "unschedulable-affinity", "no node has the pods its affinity wants beside it", "start those pods, or make the affinity preferred: "},
		{"(missing required label)", "unschedulable-spread", "no node has the label by which its topology spread constraints tell places apart, their topologyKey", "label the nodes with it, or use another topologyKey: "},
		{"topology spread constraints", "unschedulable-spread", "its topology spread constraints leave no node", "use whenUnsatisfiable: ScheduleAnyway, or a larger maxSkew: "},
	}
)

// The scheduler's words for what the nodes show, too: loadSays where the pods on them can be read, schedulerSays where they themselves can.
var (
	loadSays = []says{
		{"Insufficient ", "unschedulable-resources", "no node has as much free as it asks for", "ask for less, or add a node: "},
		{"Too many pods", "unschedulable-resources", "the nodes have as many pods as they may", "add a node, or remove pods"},
		{"free ports", "unschedulable-ports", "its host ports are taken on the nodes", "leave out hostPort: "},
	}
	schedulerSays = []says{
		{"untolerated taint", "unschedulable-taint", "the nodes have taints that it does not tolerate", "tolerate the taint, or take it away: "},
		{"didn't match Pod's node affinity/selector", "unschedulable-selector", "no node has the labels it wants", "correct nodeSelector or affinity: "},
		{"unschedulable", "unschedulable-cordoned", "the nodes are cordoned", "kubectl uncordon NODE"},
		{"no nodes available", "unschedulable-no-nodes", "the cluster has no node", "kubectl get nodes"},
	}
)

// saidIn is the first of those that is in message; nil for none.
func saidIn(message string, list []says) *says {
	if i := slices.IndexFunc(list, func(w says) bool { return strings.Contains(message, w.text) }); i >= 0 {
		return &list[i]
	}
	return nil
}

// advice is what to do.
func (w *says) advice(f *Finding, p *pod) string {
	if strings.HasSuffix(w.next, ": ") {
		return w.next + f.edit()
	}
	return strings.Replace(w.next, "%s", inOf(p), 1)
}

func (s *Snapshot) explainUnscheduled(f *Finding, p *pod, message string) {
	message, _, _ = strings.Cut(message, "preemption:")
	fits := s.fits(p) // the nearest of those first of which it is known why not
	known := len(fits) > 0 && len(fits[0].refusals) > 0
	// What stands in the way of all nodes alike comes first.
	w, hidden := saidIn(message, podSays), saidIn(message, hiddenSays)
	switch unseen := known && len(fits[len(fits)-1].refusals) == 0; {
	case w != nil:
	case !known:
		w = cmp.Or(hidden, saidIn(message, loadSays), saidIn(message, schedulerSays))
	case hidden != nil || unseen:
		// What the scheduler alone knows of some is the cause unless a node is meant for the pod and is full, cordoned or not well: it may be
		// the one where the pod's volume is.
		slices.SortStableFunc(fits, func(a, b nodeFit) int { return first(a.meant(), b.meant()) })
		if known = fits[0].meant(); !known {
			w = hidden
		}
		if w == nil && unseen && (s.partial() || !known) { // that node may be nearer, or have had less free when the scheduler looked
			w = saidIn(message, loadSays)
		}
	}
	switch {
	case w != nil:
		f.ID, f.Summary, f.Next = w.id, w.what, []string{w.advice(f, p)}
		if near := neighbours(s, p, w.text); len(near) > 0 {
			f.Summary += ": " + near[0].Says
			f.State = append(f.State, near...)
		}
		if w.id == "unschedulable-spread" {
			for _, t := range p.Spec.TopologySpreadConstraints {
				f.State = append(f.State, Evidence{From: refOf("pod", p).String() + " spec.topologySpreadConstraints", Says: fmt.Sprintf("topologyKey %s, maxSkew %d, %s", t.TopologyKey, t.MaxSkew, t.WhenUnsatisfiable)})
			}
		}
		if w.text == keepsApart && p.Spec.Affinity != nil && p.Spec.Affinity.PodAntiAffinity != nil {
			s.ownInTheWay(f, p, func(o *pod) bool {
				return slices.ContainsFunc(p.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, func(t corev1.PodAffinityTerm) bool {
					selector, err := metav1.LabelSelectorAsSelector(t.LabelSelector)
					return err == nil && selector.Matches(labels.Set(o.Labels))
				})
			})
		}
	case !known:
		f.Summary = "the scheduler finds no node for it: " + firstLine(message)
		f.Next = []string{"kubectl describe pod " + p.Name + inOf(p)}
	}
	if len(fits) == 0 {
		return
	}
	for i, n := range fits {
		const most = 5
		if rest := fits[i:]; i == most && len(rest) > 1 {
			says := fmt.Sprintf("%d more are farther from fitting", len(rest))
			if n := len(slices.DeleteFunc(slices.Clone(rest), func(n nodeFit) bool { return len(n.refusals) > 0 })); n > 0 {
				says = fmt.Sprintf("%d more, and of %d of them the scheduler alone knows why not", len(rest), n)
			}
			f.State = append(f.State, Evidence{From: "nodes", Says: says})
			break
		}
		var what []string
		for _, r := range n.refusals {
			what = append(what, r.what)
		}
		if len(what) == 0 && hidden != nil {
			what = []string{"as the scheduler says: " + hidden.what}
		}
		f.State = append(f.State, Evidence{From: "node/" + n.node, Says: cmp.Or(strings.Join(what, "; "), "nothing that can be seen here is against it")})
	}
	near := fits[0]
	if f.Summary != "" {
		return
	}
	f.ID = near.refusals[0].id
	if f.ID == "unschedulable-ports" {
		defer s.ownInTheWay(f, p, func(o *pod) bool {
			return slices.ContainsFunc(hostPorts(&o.Spec), func(have corev1.ContainerPort) bool {
				return slices.ContainsFunc(hostPorts(&p.Spec), func(want corev1.ContainerPort) bool { return want.HostPort == have.HostPort })
			})
		})
	}
	var what, changes []string
	for _, r := range near.refusals {
		what, changes = append(what, r.what), append(changes, r.change)
	}
	f.Summary = fmt.Sprintf("none of %d nodes takes it; nearest is %s: %s", len(fits), near.node, strings.Join(what, "; "))
	if len(fits) == 1 {
		f.Summary = fmt.Sprintf("the only node, %s, does not take it: %s", near.node, strings.Join(what, "; "))
	}
	f.Next = append(changes, "to change it: "+f.edit())
	if hidden != nil {
		f.Next = append(f.Next, fmt.Sprintf("if that does not help, of other nodes the scheduler says: %s; %s", hidden.what, hidden.advice(f, p)))
	}
}

const (
	besideOthers = "pod affinity rules"
	keepsApart   = "pod anti-affinity rules"
)

// neighbours are the pods that p has to be beside, or to keep apart from, as the scheduler's words have it, with how many of them are known to be
// on nodes: those first that are in its way by that.
func neighbours(s *Snapshot, p *pod, words string) (out []Evidence) {
	a, field, terms := p.Spec.Affinity, "", []corev1.PodAffinityTerm(nil)
	switch {
	case a != nil && a.PodAffinity != nil && words == besideOthers:
		field, terms = "podAffinity", a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	case a != nil && a.PodAntiAffinity != nil && words == keepsApart:
		field, terms = "podAntiAffinity", a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	for _, t := range terms {
		selector, err := metav1.LabelSelectorAsSelector(t.LabelSelector)
		if err != nil {
			continue
		}
		there, inTheWay := "", false
		if len(t.Namespaces) == 0 && t.NamespaceSelector == nil {
			onNodes := slices.DeleteFunc(s.matching(p.Namespace, selector), func(o *pod) bool { return over(o) || o.Spec.NodeName == "" })
			there = fmt.Sprintf(" (on nodes in %s: %s)", p.Namespace, counted(len(onNodes), "pod"))
			inTheWay = (len(onNodes) == 0) == (words == besideOthers)
		}
		which := "labels " + selector.String()
		if selector.Empty() {
			which = "any labels"
		}
		one := Evidence{From: fmt.Sprintf("%s spec.affinity.%s", refOf("pod", p), field), Says: fmt.Sprintf("%s%s, by %s", which, there, t.TopologyKey)}
		if inTheWay {
			out = append([]Evidence{one}, out...)
		} else {
			out = append(out, one)
		}
	}
	return out
}

// ownInTheWay adds that pods of the same Deployment may be in the way, of the version before: one waits for the other.
func (s *Snapshot) ownInTheWay(f *Finding, p *pod, inTheWay func(o *pod) bool) {
	d := s.deployed[f.Owner]
	if d == nil || d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return
	}
	by, _ := maker(p)
	for _, o := range s.podsIn[p.Namespace] {
		if of, made := maker(o); made && of != by && s.owner(o) == f.Owner && !over(o) && o.DeletionTimestamp == nil && o.Spec.NodeName != "" && inTheWay(o) {
			f.Next = append([]string{fmt.Sprintf("if its own %s, of the version before, is in the way: strategy type Recreate, or maxSurge: 0 and maxUnavailable: 1: %s", refOf("pod", o), f.edit())}, f.Next...)
			return
		}
	}
}

// fits are all nodes, the nearest to taking p first, and those last of which it is not known why they do not; none where nodes could not be read.
func (s *Snapshot) fits(p *pod) (out []nodeFit) {
	for i := range s.Nodes {
		n := &s.Nodes[i]
		fit := nodeFit{node: n.Name}
		fit.refusals = slices.Concat(cordoned(n), untolerated(p, n), unselected(p, n), s.tooSmall(p, n), s.portsTaken(p, n))
		slices.SortStableFunc(fit.refusals, func(a, b refusal) int { return cmp.Compare(b.cost, a.cost) })
		out = append(out, fit)
	}
	cost := func(n nodeFit) (sum float64) {
		for _, r := range n.refusals {
			sum += r.cost
		}
		return sum
	}
	slices.SortStableFunc(out, func(a, b nodeFit) int {
		return cmp.Or(first(len(a.refusals) > 0, len(b.refusals) > 0), cmp.Compare(cost(a), cost(b)))
	})
	return out
}

// first has what a is true of before what it is not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func cordoned(n *corev1.Node) []refusal {
	if !n.Spec.Unschedulable {
		return nil
	}
	return []refusal{{"unschedulable-cordoned", "it is cordoned", "kubectl uncordon " + n.Name, 1, false}}
}

func untolerated(p *pod, n *corev1.Node) (out []refusal) {
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectPreferNoSchedule || t.Key == corev1.TaintNodeUnschedulable && n.Spec.Unschedulable {
			continue
		}
		if slices.ContainsFunc(p.Spec.Tolerations, func(o corev1.Toleration) bool { return tolerates(o, t) }) {
			continue
		}
		r := refusal{"unschedulable-taint", "it has the taint " + t.ToString(),
			fmt.Sprintf("add to tolerations: {key: %s, operator: Equal, value: %q, effect: %s}", t.Key, t.Value, t.Effect), 2, true}
		if strings.HasPrefix(t.Key, "node.kubernetes.io/") {
			r.cost, r.rule = 4, false // the node is not well, and tolerating that helps nobody
			r.change = fmt.Sprintf("mend %s, which is %s: kubectl describe node %s", n.Name, strings.TrimPrefix(t.Key, "node.kubernetes.io/"), n.Name)
		}
		out = append(out, r)
	}
	return out
}

func tolerates(o corev1.Toleration, t corev1.Taint) bool {
	if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
		return false
	}
	return o.Operator == corev1.TolerationOpExists || (o.Operator == "" || o.Operator == corev1.TolerationOpEqual) && o.Value == t.Value
}

// unselected is whether the pod's nodeSelector and required node affinity leave this node out.
func unselected(p *pod, n *corev1.Node) (out []refusal) {
	var lacking []string
	for k, v := range p.Spec.NodeSelector {
		if have, has := n.Labels[k]; !has || have != v {
			lacking = append(lacking, k+"="+v)
		}
	}
	slices.Sort(lacking)
	if len(lacking) > 0 {
		out = append(out, refusal{"unschedulable-selector", "it has no label " + list(lacking) + ", which nodeSelector wants",
			fmt.Sprintf("correct nodeSelector, or: kubectl label node %s %s", n.Name, strings.Join(lacking, " ")), 2 * float64(len(lacking)), true})
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return out
	}
	terms := a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
	if slices.ContainsFunc(terms, func(t corev1.NodeSelectorTerm) bool { return termMatches(t, n) }) {
		return out
	}
	var wants []string
	for _, t := range terms {
		for _, e := range slices.Concat(t.MatchExpressions, t.MatchFields) {
			wants = append(wants, strings.TrimSpace(fmt.Sprintf("%s %s %s", e.Key, e.Operator, strings.Join(e.Values, ","))))
		}
	}
	return append(out, refusal{"unschedulable-affinity", "its labels are not what node affinity requires: " + strings.Join(wants, "; "), "correct nodeAffinity, or label the node " + n.Name, 2, true})
}

// termMatches is the scheduler's rule: all expressions of a term hold, and an empty term never does.
func termMatches(t corev1.NodeSelectorTerm, n *corev1.Node) bool {
	if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
		return false
	}
	holds := func(e corev1.NodeSelectorRequirement, set labels.Set) bool {
		operators := map[corev1.NodeSelectorOperator]selection.Operator{
			corev1.NodeSelectorOpIn: selection.In, corev1.NodeSelectorOpNotIn: selection.NotIn, corev1.NodeSelectorOpExists: selection.Exists,
			corev1.NodeSelectorOpDoesNotExist: selection.DoesNotExist, corev1.NodeSelectorOpGt: selection.GreaterThan, corev1.NodeSelectorOpLt: selection.LessThan,
		}
		r, err := labels.NewRequirement(e.Key, operators[e.Operator], e.Values)
		return err == nil && r.Matches(set)
	}
	for _, e := range t.MatchExpressions {
		if !holds(e, n.Labels) {
			return false
		}
	}
	for _, e := range t.MatchFields {
		if !holds(e, labels.Set{"metadata.name": n.Name}) {
			return false
		}
	}
	return true
}

// nodeLoad is what the pods of a node take.
type nodeLoad struct {
	pods      []*pod
	requested corev1.ResourceList
}

// loads sums it up once, for all pods that find no place.
func loads(all []corev1.Pod) map[string]*nodeLoad {
	out := map[string]*nodeLoad{}
	for i := range all {
		p := &all[i]
		if p.Spec.NodeName == "" || over(p) {
			continue
		}
		l := out[p.Spec.NodeName]
		if l == nil {
			l = &nodeLoad{requested: corev1.ResourceList{}}
			out[p.Spec.NodeName] = l
		}
		l.pods = append(l.pods, p)
		kube.Sum(l.requested, requests(&p.Spec))
	}
	return out
}

// tooSmall is what the node has not free. Where the pods of other namespaces could not be read, only what the whole node is too small for is known.
func (s *Snapshot) tooSmall(p *pod, n *corev1.Node) (out []refusal) {
	used, count, whole := corev1.ResourceList{}, int64(0), s.partial()
	if l := s.load[n.Name]; l != nil && !whole {
		used, count = l.requested, int64(len(l.pods))
	}
	wants := requests(&p.Spec)
	for _, name := range sortedNames(wants) {
		want, all := wants[name], n.Status.Allocatable[name]
		if want.IsZero() {
			continue
		}
		free := all.DeepCopy()
		free.Sub(used[name])
		if want.Cmp(free) <= 0 {
			continue
		}
		if free.Sign() < 0 {
			free = resource.Quantity{Format: want.Format}
		}
		missing := want.DeepCopy()
		missing.Sub(free)
		field := fmt.Sprintf("(resources.requests.%s)", name)
		if len(p.Spec.Containers)+len(p.Spec.InitContainers) > 1 {
			field = fmt.Sprintf("(resources.requests.%s, of its containers together)", name)
		}
		what := fmt.Sprintf("%s asked for, and of %s only %s free", amount(name, want), amount(name, all), figure(name, free))
		change := fmt.Sprintf("ask for %s at most %s, or free %s on %s", amount(name, free), field, amount(name, missing), n.Name)
		switch {
		case all.IsZero():
			what, change = fmt.Sprintf("it has no %s, of which %s is asked for", name, want.String()), fmt.Sprintf("leave %s out of resources, or add a node that has it", name)
		case want.Cmp(all) > 0: // nothing that ends there would help
			what, change = fmt.Sprintf("%s asked for, and it has %s in all", amount(name, want), figure(name, all)), fmt.Sprintf("ask for less %s, or add a node that has as much", field)
			if !whole && free.Sign() > 0 {
				change = fmt.Sprintf("ask for %s at most %s, or add a node that has as much", amount(name, free), field)
			}
		case free.IsZero():
			change = fmt.Sprintf("free %s on %s, or add a node", amount(name, missing), n.Name)
		}
		out = append(out, refusal{"unschedulable-resources", what, change, 1 + missing.AsApproximateFloat64()/want.AsApproximateFloat64(), all.IsZero()})
	}
	if most, limited := n.Status.Allocatable[corev1.ResourcePods]; limited && !whole && count+1 > most.Value() {
		out = append(out, refusal{"unschedulable-resources", fmt.Sprintf("it has %d pods of %d", count, most.Value()), "remove pods from it, or add a node", 1, false})
	}
	return out
}

// partial tells whether the pods of other namespaces, which share the nodes, were not read.
func (s *Snapshot) partial() bool { return s.Namespace != "" && !s.has(podsElsewhere) }

// amount is a quantity as people write it: "1500m cpu", "2Gi memory".
func amount(name corev1.ResourceName, q resource.Quantity) string {
	return figure(name, q) + " " + string(name)
}

func figure(name corev1.ResourceName, q resource.Quantity) string {
	text := q.String()
	switch v := q.Value(); {
	case name == corev1.ResourceCPU && q.MilliValue()%1000 == 0:
		text = fmt.Sprint(v)
	case name == corev1.ResourceCPU:
		text = fmt.Sprintf("%dm", q.MilliValue())
	case name == corev1.ResourceMemory && v >= 1<<20, name == corev1.ResourceEphemeralStorage && v >= 1<<20:
		text = resource.NewQuantity(v>>20<<20, resource.BinarySI).String()
	}
	return text
}

func sortedNames(l corev1.ResourceList) (out []corev1.ResourceName) {
	for name := range l {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// requests are what the scheduler counts for a pod.
func requests(p *corev1.PodSpec) corev1.ResourceList {
	out := kube.Together(p, func(r corev1.ResourceRequirements) corev1.ResourceList { return r.Requests })
	if p.Resources != nil {
		maps.Copy(out, p.Resources.Requests)
	}
	kube.Sum(out, p.Overhead)
	return out
}

func hostPorts(p *corev1.PodSpec) (out []corev1.ContainerPort) {
	for _, c := range slices.Concat(p.InitContainers, p.Containers) {
		for _, port := range c.Ports {
			if port.HostPort != 0 {
				out = append(out, port)
			}
		}
	}
	return out
}

func (s *Snapshot) portsTaken(p *pod, n *corev1.Node) (out []refusal) {
	wanted := hostPorts(&p.Spec)
	if len(wanted) == 0 {
		return nil
	}
	wildcard := func(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }
	l := s.load[n.Name]
	if l == nil {
		return nil
	}
	for _, o := range l.pods {
		for _, have := range hostPorts(&o.Spec) {
			for _, w := range wanted {
				if w.HostPort == have.HostPort && cmp.Or(w.Protocol, corev1.ProtocolTCP) == cmp.Or(have.Protocol, corev1.ProtocolTCP) && (wildcard(w.HostIP) || wildcard(have.HostIP) || w.HostIP == have.HostIP) {
					out = append(out, refusal{"unschedulable-ports", fmt.Sprintf("its port %d is taken by pod/%s in %s", w.HostPort, o.Name, o.Namespace), "leave out hostPort: a Service reaches pods without it", 2, false})
				}
			}
		}
	}
	return out
}
