package diagnose

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// checkServices is about Services that lead nowhere.
func checkServices(s *Snapshot) (out []Finding) {
	out = s.namelessSets()
	for i := range s.Services {
		v := &s.Services[i]
		if f, ok := s.noAddress(v); ok {
			out = append(out, f)
		}
		switch {
		case v.Spec.Type == corev1.ServiceTypeExternalName:
			if f, ok := s.externalName(v); ok {
				out = append(out, f)
			}
			out = append(out, s.beyondFindings(v)...)
		case len(v.Spec.Selector) == 0:
			if f, ok := s.noSelector(v); ok {
				out = append(out, f)
			}
			out = append(out, s.beyondFindings(v)...)
		default:
			out = append(out, s.selectorFindings(v)...)
		}
	}
	return out
}

// addressPatience is how long a load balancer may take to be made: minutes, in clouds.
const addressPatience = 10 * time.Minute

// noAddress is about a Service that nobody has given a load balancer.
func (s *Snapshot) noAddress(v *corev1.Service) (Finding, bool) {
	if v.Spec.Type != corev1.ServiceTypeLoadBalancer || len(v.Status.LoadBalancer.Ingress)+len(v.Spec.ExternalIPs) > 0 || s.Now.Sub(v.CreationTimestamp.Time) < addressPatience {
		return Finding{}, false
	}
	if begun := s.eventsOf("service", v, "EnsuringLoadBalancer", "Type"); len(begun) > 0 && s.Now.Sub(firstSeen(begun[0])) < addressPatience {
		return Finding{}, false
	}
	f := s.ofService(v, "service-no-address", Warning)
	f.Summary = "it is of type LoadBalancer, and nobody has given it one: outside the cluster it has the nodes' ports at most"
	f.Why = "inside the cluster it works as any other"
	f.State = []Evidence{{From: f.Object.String() + " status.loadBalancer", Says: "none", At: v.CreationTimestamp.Time}}
	f.Events = told(s.eventsOf("service", v))
	f.Next = []string{"its events may say why; a cluster without load balancers needs a program that gives addresses, or type NodePort or ClusterIP: " + f.edit()}
	return f, true
}

// namelessSets are about StatefulSets whose pods have no names in DNS, since the Service that would give them does not exist.
func (s *Snapshot) namelessSets() (out []Finding) {
	for i := range s.StatefulSets {
		d := &s.StatefulSets[i]
		name := d.Spec.ServiceName
		var have []string
		for _, v := range s.Services {
			if v.Namespace == d.Namespace {
				have = append(have, v.Name)
			}
		}
		if name == "" || slices.Contains(have, name) {
			continue
		}
		f := Finding{ID: "statefulset-service-absent", Severity: Warning, Direction: Network, Object: refOf("statefulset", d), Owner: s.owner(d)}
		f.Summary = fmt.Sprintf("service/%s, which is to give its pods their names, does not exist in %s", name, d.Namespace)
		f.Why = fmt.Sprintf("%s-0.%s does not resolve, nor do the names of its other pods", d.Name, name)
		f.State = []Evidence{{From: f.Object.String() + " spec.serviceName", Says: name}}
		if like := nearest(name, have); like != "" {
			f.Next = append(f.Next, fmt.Sprintf("if service/%s is meant: make the statefulset anew with that, since its serviceName cannot be changed", like))
		}
		f.Next = append(f.Next, fmt.Sprintf("make a headless Service of that name, if somebody calls these names: kubectl apply%s -f FILE", f.Object.in()))
		out = append(out, f)
	}
	return out
}

func (s *Snapshot) ofService(v *corev1.Service, id string, severity Severity) Finding {
	return Finding{ID: id, Severity: severity, Direction: Network, Object: refOf("service", v), Owner: s.owner(v), Why: "who calls it is refused, or waits in vain"}
}

// slicesOf are a Service's EndpointSlices.
func (s *Snapshot) slicesOf(v *corev1.Service) (out []*discoveryv1.EndpointSlice) {
	for i := range s.EndpointSlices {
		if e := &s.EndpointSlices[i]; e.Namespace == v.Namespace && e.Labels[discoveryv1.LabelServiceName] == v.Name {
			out = append(out, e)
		}
	}
	return out
}

// endpoints counts a Service's, and those that are ready.
func (s *Snapshot) endpoints(v *corev1.Service) (all, ready int) {
	for _, e := range s.slicesOf(v) {
		for _, p := range e.Endpoints {
			all++
			if p.Conditions.Ready == nil || *p.Conditions.Ready {
				ready++
			}
		}
	}
	return all, ready
}

// externalName is about a name that is an address, or a Service here that does not exist.
func (s *Snapshot) externalName(v *corev1.Service) (Finding, bool) {
	f := s.ofService(v, "service-external-name", Problem)
	name := strings.TrimSuffix(v.Spec.ExternalName, ".")
	f.State = []Evidence{{From: f.Object.String() + " spec.externalName", Says: v.Spec.ExternalName}}
	if _, err := netip.ParseAddr(name); err == nil {
		f.Summary = fmt.Sprintf("its externalName %s is an address; DNS answers with it as a name, which does not resolve", name)
		f.Next = []string{"make it a Service without a selector, with an EndpointSlice that has the address"}
		return f, true
	}
	parts := strings.Split(name, ".")
	if len(parts) < 3 || parts[2] != "svc" || s.Namespace != "" && parts[1] != s.Namespace {
		return f, false
	}
	other := Ref{"service", parts[1], parts[0]}
	var have []string
	for i := range s.Services {
		if r := refOf("service", &s.Services[i]); r == other {
			return f, false
		} else if r.Namespace == other.Namespace {
			have = append(have, r.Name)
		}
	}
	f.Summary = fmt.Sprintf("its externalName %s names %s, which does not exist in %s", name, other, other.Namespace)
	if like := nearest(other.Name, slices.DeleteFunc(have, func(n string) bool { return n == v.Name })); like != "" {
		f.Next = append(f.Next, "if "+like+" is meant: "+f.edit())
	}
	f.Next = append(f.Next, "correct it, or make that Service: "+f.edit())
	return f, true
}

// noSelector is about a Service whose endpoints somebody has to give, and nobody did.
func (s *Snapshot) noSelector(v *corev1.Service) (Finding, bool) {
	switch all, _ := s.endpoints(v); {
	case !s.has(endpointSlices) || v.Name == "kubernetes" && v.Namespace == "default":
		return Finding{}, false
	case all > 0:
		return s.nameInSlices(v)
	}
	f := s.ofService(v, "service-no-selector", Problem)
	f.Summary = "it has no selector, and nobody has given it endpoints"
	if v.Spec.ClusterIP == corev1.ClusterIPNone {
		f.Severity = Warning // a name that a StatefulSet, or an operator, may want for itself
	}
	f.State = []Evidence{{From: f.Object.String() + " spec.selector", Says: "none"}, {From: "endpointslices of it", Says: "no endpoints"}}
	f.Next = []string{"give it the labels of its pods as selector: " + f.edit(), "or make an EndpointSlice with the label " + discoveryv1.LabelServiceName + ": " + v.Name}
	return f, true
}

// nameInSlices is about a port of v whose name its EndpointSlices do not have: by it each port of theirs is found.
func (s *Snapshot) nameInSlices(v *corev1.Service) (Finding, bool) {
	if v.Spec.ClusterIP == corev1.ClusterIPNone {
		return Finding{}, false // its name leads to the addresses, whatever the ports are called
	}
	var have []string
	for _, e := range s.slicesOf(v) {
		for _, p := range e.Ports {
			have = append(have, *cmp.Or(p.Name, new(string)))
		}
	}
	for _, p := range v.Spec.Ports {
		if len(have) == 0 || slices.Contains(have, p.Name) { // without any, all are meant
			continue
		}
		f := s.ofService(v, "service-port-name-absent", Problem)
		f.Summary = fmt.Sprintf("its port %d is called %q, and its EndpointSlices have no port of that name", p.Port, p.Name)
		f.State = []Evidence{{From: fmt.Sprintf("%s spec.ports[%d]", f.Object, p.Port), Says: fmt.Sprintf("name %q", p.Name)}, {From: "endpointslices of it", Says: fmt.Sprintf("ports %q", have)}}
		f.Next = []string{fmt.Sprintf("give the port the same name in both: %s, or kubectl edit endpointslice -l %s=%s%s", f.edit(), discoveryv1.LabelServiceName, v.Name, f.Object.in())}
		return f, true
	}
	return Finding{}, false
}

func (s *Snapshot) selectorFindings(v *corev1.Service) (out []Finding) {
	selected := slices.DeleteFunc(s.selected(v.Namespace, v.Spec.Selector), func(p *pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || p.DeletionTimestamp != nil
	})
	selector := Evidence{From: refOf("service", v).String() + " spec.selector", Says: labels.FormatLabels(v.Spec.Selector)}
	if len(selected) == 0 {
		f := s.nobodySelected(v)
		f.State = append([]Evidence{selector}, f.State...)
		return []Finding{f}
	}
	for _, p := range v.Spec.Ports {
		f, ok := s.portFinding(v, p, selected)
		if !ok {
			f, ok = s.headlessPort(v, p, selected)
		}
		if ok {
			out = append(out, f)
		}
	}
	var unready []string
	f := s.ofService(v, "service-pods-not-ready", Problem)
	f.State = []Evidence{selector}
	for _, p := range selected {
		if ready(p) {
			continue
		}
		unready = append(unready, refOf("pod", p).String())
		f.because = append(f.because, refOf("pod", p), nodeOf(p))
		if c := condition(p, corev1.PodReady); c != nil && len(unready) <= 3 {
			f.condition(refOf("pod", p), string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
		}
	}
	switch {
	case len(unready) == 0 || v.Spec.PublishNotReadyAddresses:
		return out
	case len(unready) < len(selected):
		f.Severity = Warning
		f.Summary = fmt.Sprintf("%d of its %d pods are not ready and get nothing: %s", len(unready), len(selected), few(unready))
		f.Why = "the others have all its traffic"
	case len(selected) == 1:
		f.Summary = "its only pod is not ready: " + unready[0]
	default:
		f.Summary = fmt.Sprintf("none of its %d pods is ready: %s", len(selected), few(unready))
	}
	// A pod that was made a moment ago is on its way.
	if len(unready) < len(selected) && !slices.ContainsFunc(selected, func(p *pod) bool { return !ready(p) && s.Now.Sub(p.CreationTimestamp.Time) > startPatience }) {
		return out
	}
	if len(unready) == len(selected) && !slices.ContainsFunc(selected, func(p *pod) bool { return !s.starting(p) }) {
		f.Severity, f.explains = Warning, true
	}
	f.Next = []string{"bridge diagnose " + unready[0] + f.Object.in()}
	return append(out, f)
}

// nobodySelected says why a selector selects no pod: its workload has none, or the labels differ.
func (s *Snapshot) nobodySelected(v *corev1.Service) Finding {
	f := s.ofService(v, "service-no-pods", Problem)
	selector := labels.SelectorFromSet(v.Spec.Selector)
	for i := range s.Deployments {
		d := &s.Deployments[i]
		if f, ok := s.scaledToZero(v, selector, refOf("deployment", d), d.Spec.Template.Labels, d.Spec.Replicas); ok {
			return f
		}
	}
	for i := range s.StatefulSets {
		d := &s.StatefulSets[i]
		if f, ok := s.scaledToZero(v, selector, refOf("statefulset", d), d.Spec.Template.Labels, d.Spec.Replicas); ok {
			return f
		}
	}
	for i := range s.DaemonSets {
		d := &s.DaemonSets[i]
		if f, ok := s.scaledToZero(v, selector, refOf("daemonset", d), d.Spec.Template.Labels, &d.Status.DesiredNumberScheduled); ok {
			return f
		}
	}
	f.Next = []string{"kubectl get pods --show-labels" + f.Object.in()}
	best, most := (*pod)(nil), -1
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Namespace != v.Namespace || over(p) || p.DeletionTimestamp != nil {
			continue
		}
		if n := likeness(v.Spec.Selector, p.Labels); n > most {
			best, most = p, n
		}
	}
	if best == nil || most <= 0 {
		f.Summary = "no pod in " + v.Namespace + " has the labels that it selects"
		var ended []string
		for _, p := range s.selected(v.Namespace, v.Spec.Selector) {
			if over(p) {
				ended = append(ended, refOf("pod", p).String())
			}
		}
		if len(ended) > 0 {
			f.Summary = "the only pods that it selects have ended: " + few(ended)
			return f
		}
		stray := s.Strays[f.Object]
		for i := range s.Pods {
			if o := &s.Pods[i]; s.Namespace == "" && o.Namespace != v.Namespace && !over(o) && o.DeletionTimestamp == nil && selector.Matches(labels.Set(o.Labels)) {
				stray = refOf("pod", o)
				break
			}
		}
		if stray.Name != "" {
			f.Summary += fmt.Sprintf("; %s in %s has them, and a Service selects in its own namespace", stray, stray.Namespace)
			f.State = append(f.State, Evidence{From: stray.String() + " metadata.namespace", Says: stray.Namespace})
			f.Next = append(f.Next, fmt.Sprintf("start its workload in %s; or, if the pods in %s are meant, call a Service there, as NAME.%s", v.Namespace, stray.Namespace, stray.Namespace))
		}
		return f
	}
	f.ID = "service-selector-mismatch"
	owner := cmp.Or(s.owner(best), refOf("pod", best))
	f.Summary = fmt.Sprintf("it selects no pod; nearest is %s, whose labels differ: %s", owner, difference(v.Spec.Selector, best.Labels))
	f.State = append(f.State, Evidence{From: refOf("pod", best).String() + " metadata.labels", Says: labels.FormatLabels(best.Labels)})
	f.Next = []string{fmt.Sprintf("if %s is meant, correct the selector: %s", owner, f.edit())}
	return f
}

// difference is what a selector wants and the labels have in its place: "-app=ti +app=it".
func difference(selector, have map[string]string) string {
	var diff []string
	for _, k := range slices.Sorted(maps.Keys(selector)) {
		want := selector[k]
		if value, has := have[k]; !has {
			diff = append(diff, fmt.Sprintf("-%s=%s", k, want))
			if like := nearest(k, slices.Collect(maps.Keys(have))); like != "" {
				diff = append(diff, fmt.Sprintf("+%s=%s", like, have[like]))
			}
		} else if value != want {
			diff = append(diff, fmt.Sprintf("-%s=%s", k, want), fmt.Sprintf("+%s=%s", k, value))
		}
	}
	return strings.Join(diff, " ")
}

func (s *Snapshot) scaledToZero(v *corev1.Service, selector labels.Selector, r Ref, template map[string]string, replicas *int32) (Finding, bool) {
	if r.Namespace != v.Namespace || !selector.Matches(labels.Set(template)) {
		return Finding{}, false
	}
	f := s.ofService(v, "service-scaled-to-zero", Warning)
	f.explains = true // what sends to it gets no answer, and that is meant so
	f.Summary = fmt.Sprintf("it has no pods, for %s is scaled to 0", r)
	f.State = []Evidence{{From: r.String() + " spec.replicas", Says: "0"}}
	f.Next = []string{fmt.Sprintf("kubectl scale %s --replicas 1%s", r, r.in())}
	if r.Kind == "daemonset" {
		f.Summary = fmt.Sprintf("it has no pods, for no node is one of %s", r)
		f.State[0].From = r.String() + " status.desiredNumberScheduled"
		f.Next = []string{fmt.Sprintf("compare its nodeSelector and tolerations with the nodes: kubectl describe %s%s", r, r.in())}
	}
	if replicas == nil || *replicas > 0 {
		f.ID, f.Severity = "service-no-pods", Problem
		f.Summary = fmt.Sprintf("it has no pods: those of %s are not there", r)
		f.State[0].Says = fmt.Sprint(*cmp.Or(replicas, new(int32)))
		f.because = append([]Ref{r}, s.made[r]...)
		f.Next = []string{"bridge diagnose " + r.String() + r.in()}
	}
	return f, true
}

// likeness is how near labels are to a selector: 0 or less for not at all, as when they share keys alone.
func likeness(selector, have map[string]string) (n int) {
	alike := false
	for k, want := range selector {
		switch v, has := have[k]; {
		case has && v == want:
			n, alike = n+3, true
		case has && nearest(want, []string{v}) != "":
			n, alike = n+2, true
		case has:
			n++
		case nearest(k, slices.Collect(maps.Keys(have))) != "":
			n++
			alike = alike || have[nearest(k, slices.Collect(maps.Keys(have)))] == want
		default:
			n--
		}
	}
	if !alike {
		return 0
	}
	return n
}

// headlessPort is about a TCP port of a Service whose name leads to its pods themselves, where nobody translates a port into another. That
// nothing listens at it has been found by dialling: a container may listen on what it does not declare.
func (s *Snapshot) headlessPort(v *corev1.Service, p corev1.ServicePort, selected []*pod) (Finding, bool) {
	target, known := targetOf(selected[0], p)
	if v.Spec.ClusterIP != corev1.ClusterIPNone || !known || target == p.Port || cmp.Or(p.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP || s.inIngress(v, p) {
		return Finding{}, false
	}
	refuses := slices.IndexFunc(selected, func(o *pod) bool {
		return s.answers[placeOf(o, p.Port)].at() == closed && (ready(o) || !s.starting(o))
	})
	if refuses < 0 || slices.ContainsFunc(selected, func(o *pod) bool { return s.answers[placeOf(o, p.Port)].at() == open }) {
		return Finding{}, false
	}
	f := s.ofService(v, "service-headless-port", Warning)
	f.State = []Evidence{
		{From: f.Object.String() + " spec.clusterIP", Says: v.Spec.ClusterIP},
		{From: fmt.Sprintf("%s spec.ports[%d]", f.Object, p.Port), Says: fmt.Sprintf("targetPort %s/TCP, which is %d", p.TargetPort.String(), target)},
	}
	f.dialled(refOf("pod", selected[refuses]), p.Port, s.answers[placeOf(selected[refuses], p.Port)], s.Now)
	f.Summary = fmt.Sprintf("it is headless, and its port %d/TCP is %d in its pods, which refuse %d: who calls its name at %d is not led to %d", p.Port, target, p.Port, p.Port, target)
	f.Why = "its name has the pods' own addresses, and no load balancer that would translate a port; only SRV records, and what reads its EndpointSlices, have the right one"
	f.Next = []string{fmt.Sprintf("set port: %d: %s; or make the Service anew without clusterIP: None", target, f.edit())}
	return f, true
}

// inIngress tells whether an Ingress sends to that port of v: its controller takes the right one from the EndpointSlices.
func (s *Snapshot) inIngress(v *corev1.Service, p corev1.ServicePort) bool {
	return slices.ContainsFunc(s.Ingresses, func(ing networkingv1.Ingress) bool {
		return ing.Namespace == v.Namespace && slices.ContainsFunc(backends(&ing), func(b networkingv1.IngressServiceBackend) bool {
			return b.Name == v.Name && (b.Port.Number == p.Port || b.Port.Name != "" && b.Port.Name == p.Name)
		})
	})
}

// nameInSome is about a named targetPort that some of the pods do not have: these get nothing.
func (s *Snapshot) nameInSome(v *corev1.Service, p corev1.ServicePort, selected []*pod) (Finding, bool) {
	if p.TargetPort.Type != intstr.String || v.Spec.ClusterIP == corev1.ClusterIPNone || slices.ContainsFunc(selected, s.progresses) { // a rollout may bring the name, or take it
		return Finding{}, false
	}
	var without []string
	for _, o := range selected {
		if _, has := targetOf(o, p); !has && ready(o) {
			without = append(without, refOf("pod", o).String())
		}
	}
	if len(without) == 0 {
		return Finding{}, false
	}
	f := s.ofService(v, "service-port-name-absent", Warning)
	f.Summary = fmt.Sprintf("its port %d goes to a port named %q, which %d of its %d pods do not have, and these get nothing: %s", p.Port, p.TargetPort.StrVal, len(without), len(selected), few(without))
	f.Why = "the others have all its traffic"
	f.State = []Evidence{{From: fmt.Sprintf("%s spec.ports[%d]", f.Object, p.Port), Says: "targetPort " + p.TargetPort.StrVal}}
	f.Next = []string{"name the port in the ports of all its pods, or have the selector leave these out: " + f.edit()}
	return f, true
}

// closedInSome is about a TCP port of a Service at which something listens in some of its pods, and nothing in others, which do not declare it: of those
// that do, the container is told.
func (s *Snapshot) closedInSome(v *corev1.Service, p corev1.ServicePort, selected []*pod) (Finding, bool) {
	if v.Spec.ClusterIP == corev1.ClusterIPNone || slices.ContainsFunc(selected, s.progresses) {
		return Finding{}, false // its name leads to the pods, whatever the port; those of a rollout may differ
	}
	var without []string
	f := s.ofService(v, "service-port-closed", Problem)
	for _, o := range selected {
		n, has := targetOf(o, p)
		a := s.answers[placeOf(o, n)]
		if !has || declaresPort(o, n) || !ready(o) || s.starting(o) || a.loopback != closed || a.at() != closed {
			continue
		}
		if without = append(without, refOf("pod", o).String()); len(without) > 1 {
			continue
		}
		f.State = []Evidence{{From: fmt.Sprintf("%s spec.ports[%d]", f.Object, p.Port), Says: fmt.Sprintf("targetPort %s/TCP, which is %d", p.TargetPort.String(), n)}}
		f.dialled(refOf("pod", o), n, a, s.Now)
		if others := s.listening(o, n); len(others) > 0 {
			f.listens(others, s.Now)
		}
	}
	if len(without) == 0 || cmp.Or(p.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP {
		return Finding{}, false
	}
	f.Summary = fmt.Sprintf("its port %d goes to %s, where nothing listens in %d of its %d pods at least: %s", p.Port, p.TargetPort.String(), len(without), len(selected), few(without))
	f.Why = "these refuse their part of its traffic"
	f.Next = []string{"have the selector leave these pods out, if they are another program's: " + f.edit(), "or have their program listen there"}
	return f, true
}

// portFinding is about a Service's port that no pod of its has.
func (s *Snapshot) portFinding(v *corev1.Service, p corev1.ServicePort, selected []*pod) (Finding, bool) {
	target := p.TargetPort
	if target.Type == intstr.Int && target.IntVal == 0 {
		target.IntVal = p.Port
	}
	protocol := cmp.Or(p.Protocol, corev1.ProtocolTCP)
	var declared, names []string
	var same []corev1.ContainerPort // by name or number
	for _, pod := range selected {
		for _, c := range containersOf(pod) {
			if c.init && !c.sidecar() {
				continue
			}
			for _, port := range c.Ports {
				text := fmt.Sprintf("%s:%d/%s", cmp.Or(port.Name, "-"), port.ContainerPort, cmp.Or(port.Protocol, corev1.ProtocolTCP))
				if !slices.Contains(declared, text) {
					declared, names = append(declared, text), append(names, port.Name)
				}
				if target.Type == intstr.String && port.Name == target.StrVal || target.Type == intstr.Int && port.ContainerPort == target.IntVal {
					same = append(same, port)
				}
			}
		}
	}
	f := s.ofService(v, "", Problem)
	f.State = []Evidence{
		{From: fmt.Sprintf("%s spec.ports[%d]", f.Object, p.Port), Says: fmt.Sprintf("targetPort %s/%s", target.String(), protocol)},
		{From: refOf("pod", selected[0]).String() + " ports", Says: cmp.Or(strings.Join(declared, ", "), "none declared")},
	}
	if slices.ContainsFunc(same, func(c corev1.ContainerPort) bool { return cmp.Or(c.Protocol, corev1.ProtocolTCP) == protocol }) {
		if f, ok := s.nameInSome(v, p, selected); ok {
			return f, true
		}
		return s.closedInSome(v, p, selected)
	}
	switch {
	case len(same) > 0:
		f.ID = "service-protocol"
		if target.Type == intstr.Int { // a container may listen on what it does not declare
			f.Severity = Warning
		}
		have := cmp.Or(same[0].Protocol, corev1.ProtocolTCP)
		f.Summary = fmt.Sprintf("its port %d is %s, and the container's port %s is %s", p.Port, protocol, target.String(), have)
		f.Next = []string{fmt.Sprintf("set protocol: %s: %s", have, f.edit())}
	case target.Type == intstr.String:
		f.ID = "service-port-name-absent"
		f.Summary = fmt.Sprintf("its port %d goes to a port named %q, which no container has", p.Port, target.StrVal)
		if like := nearest(target.StrVal, names); like != "" {
			f.Next = append(f.Next, fmt.Sprintf("set targetPort: %s: %s", like, f.edit()))
		}
		f.Next = append(f.Next, "name the port in the container's ports, or give targetPort a number: "+f.edit())
	case protocol == corev1.ProtocolTCP && s.listens(selected, target.IntVal):
		return s.closedInSome(v, p, selected) // declaring is for people
	case protocol == corev1.ProtocolTCP && s.nobodyListens(&f, selected, target.IntVal):
		f.ID = "service-port-closed"
		f.Summary = fmt.Sprintf("its port %d goes to %d/%s, where nothing listens in its pods", p.Port, target.IntVal, protocol)
		if len(declared) > 0 {
			f.Summary += "; the containers declare only " + list(declared)
		}
		if !slices.ContainsFunc(selected, func(p *pod) bool { return !s.starting(p) }) {
			f.may()
		}
	case len(declared) > 0:
		f.ID, f.Severity = "service-port-undeclared", Warning
		f.Summary = fmt.Sprintf("its port %d goes to %d/%s, and the containers declare only %s", p.Port, target.IntVal, protocol, list(declared))
		f.Why = "if the program does not listen there, callers are refused"
		f.Next = []string{"set targetPort to a declared port, if that is meant: " + f.edit()}
	default:
		return f, false
	}
	return f, true
}
