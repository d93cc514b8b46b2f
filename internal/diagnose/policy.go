package diagnose

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// policed are the pods that a policy is about.
func (s *Snapshot) policed(p *networkingv1.NetworkPolicy) []*pod {
	selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil {
		return nil
	}
	return s.matching(p.Namespace, selector)
}

// dropped is why a policy that lets something not pass matters.
const dropped = "what a policy does not allow is dropped in silence: it shows as a timeout; this holds where the cluster's network implements policies"

// checkPolicies is about network policies that let nobody in to a Service's port, or no DNS question out. What is allowed to some
// is taken for meant so.
func checkPolicies(s *Snapshot) (out []Finding) {
	in, outward := map[Ref][]*networkingv1.NetworkPolicy{}, map[Ref][]*networkingv1.NetworkPolicy{}
	for i := range s.Policies {
		p := &s.Policies[i]
		for _, pod := range s.policed(p) {
			r := refOf("pod", pod)
			if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
				in[r] = append(in[r], p)
			}
			if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
				outward[r] = append(outward[r], p)
			}
		}
	}
	for i := range s.Services {
		v := &s.Services[i]
		for _, p := range v.Spec.Ports {
			for _, pod := range s.selected(v.Namespace, v.Spec.Selector) {
				held := in[refOf("pod", pod)]
				port, found := targetOf(pod, p)
				protocol := cmp.Or(p.Protocol, corev1.ProtocolTCP)
				if !found || len(held) == 0 || pod.Spec.HostNetwork || slices.ContainsFunc(held, func(o *networkingv1.NetworkPolicy) bool { return letsIn(o, pod, port, protocol) }) {
					continue
				}
				f := Finding{ID: "networkpolicy-denies", Severity: Warning, Direction: Network, Object: refOf("service", v), Owner: s.owner(v), Why: dropped}
				f.Summary = fmt.Sprintf("nobody may reach %s on port %d/%s, since none of the policies that hold for it lets that in: %s", cmp.Or(s.owner(pod), refOf("pod", pod)), port, protocol, policyNames(held))
				f.State = []Evidence{{From: "networkpolicy/" + held[0].Name + " spec.ingress", Says: counted(len(held[0].Spec.Ingress), "rule")}}
				if a, dialled := s.answers[placeOf(pod, port)]; dialled && protocol == corev1.ProtocolTCP {
					f.dialled(refOf("pod", pod), port, a, s.Now)
				}
				f.Next = []string{fmt.Sprintf("add a policy that lets callers in on port %d: kubectl get networkpolicies%s", port, f.Object.in())}
				if i := slices.IndexFunc(held, func(o *networkingv1.NetworkPolicy) bool { return namesPort(o, p.Port) }); i >= 0 && !s.usesPort(pod, p.Port) {
					f.Summary += fmt.Sprintf("; networkpolicy/%s lets in port %d, which is the Service's, and policies go by the pods'", held[i].Name, p.Port)
					f.Next = []string{fmt.Sprintf("write %d in its place: kubectl edit networkpolicy %s%s", port, held[i].Name, f.Object.in())}
				}
				out = append(out, f)
				break
			}
		}
	}
	out = append(out, s.withoutDNS(outward)...)
	for i := range s.Policies {
		if f, ok := s.misspeltPolicy(&s.Policies[i]); ok {
			out = append(out, f)
		}
	}
	return out
}

// withoutDNS are about pods that may call others, and may not ask DNS for them; policies are those that hold for what goes out of a pod.
func (s *Snapshot) withoutDNS(policies map[Ref][]*networkingv1.NetworkPolicy) (out []Finding) {
	offers, asks := map[*networkingv1.NetworkPolicy]bool{}, map[*networkingv1.NetworkPolicy]bool{}
	servers := s.dnsServers()
	for i := range s.Policies {
		o := &s.Policies[i]
		offers[o], asks[o] = slices.ContainsFunc(o.Spec.Egress, opensDNS), s.letsAskDNS(o, servers)
	}
	for i := range s.Pods {
		pod := &s.Pods[i]
		held := policies[refOf("pod", pod)]
		// Who may go nowhere at all is meant to.
		if over(pod) || pod.Spec.HostNetwork || asksItself(pod) || !slices.ContainsFunc(held, func(o *networkingv1.NetworkPolicy) bool { return len(o.Spec.Egress) > 0 }) {
			continue
		}
		may := asks
		if d := pod.Spec.DNSPolicy; d == corev1.DNSDefault || d == corev1.DNSNone { // where its servers are is not known
			may = offers
		}
		if slices.ContainsFunc(held, func(o *networkingv1.NetworkPolicy) bool { return may[o] }) {
			continue
		}
		f := s.ofPod(pod, "networkpolicy-no-dns", Warning, Network)
		o := held[0]
		f.Summary = "it may call others, and may not ask DNS for their addresses, since none of the policies that hold for it lets port 53/UDP out: " + policyNames(held)
		f.Why = dropped
		none, next := "for port 53/UDP", "let it ask: egress to port 53 (OpenShift: 5353), UDP and TCP"
		if i := slices.IndexFunc(held, func(o *networkingv1.NetworkPolicy) bool { return offers[o] }); i >= 0 {
			o = held[i]
			f.Summary = "it may call others, and may not ask DNS for their addresses, since what lets port 53/UDP out is for pods of its own namespace alone, none of which is a DNS server: " + policyNames(held)
			f.Why += "; a DNS server on each node (NodeLocal DNSCache) some networks let it ask all the same"
			none, next = "that lets port 53/UDP out to another namespace", "add an egress rule of its own, with to: [{namespaceSelector: {}}] and ports 53/UDP and 53/TCP (OpenShift: 5353)"
		}
		f.State = []Evidence{{From: "networkpolicy/" + o.Name + " spec.egress", Says: counted(len(o.Spec.Egress), "rule") + ", none " + none}}
		f.Next = []string{fmt.Sprintf("%s: kubectl edit networkpolicy %s%s", next, o.Name, inOf(pod))}
		out = append(out, f)
	}
	return out
}

// asksItself tells whether a pod's DNS servers are all in the pod. Whom those ask is not looked at.
func asksItself(p *pod) bool {
	return p.Spec.DNSPolicy == corev1.DNSNone && p.Spec.DNSConfig != nil && !slices.ContainsFunc(p.Spec.DNSConfig.Nameservers, func(server string) bool {
		a, err := netip.ParseAddr(server)
		return err != nil || !a.IsLoopback()
	})
}

// misspeltPolicy is about a policy with a selector of pods or of namespaces that selects none, and that is near to the labels of some.
func (s *Snapshot) misspeltPolicy(o *networkingv1.NetworkPolicy) (Finding, bool) {
	f := Finding{ID: "networkpolicy-selector-mismatch", Severity: Warning, Direction: Network, Object: refOf("networkpolicy", o), Owner: s.owner(o)}
	peers := func(field string, list []networkingv1.NetworkPolicyPeer) {
		for i, peer := range list {
			switch {
			case peer.NamespaceSelector != nil:
				s.missesNamespace(&f, fmt.Sprintf("%s[%d].namespaceSelector", field, i), peer.NamespaceSelector, list)
			case peer.PodSelector != nil:
				s.missesPods(&f, fmt.Sprintf("%s[%d].podSelector", field, i), o.Namespace, peer.PodSelector)
			}
		}
	}
	f.Why = "who is meant by it is not let in, or out"
	for i, r := range o.Spec.Ingress {
		peers(fmt.Sprintf("spec.ingress[%d].from", i), r.From)
	}
	for i, r := range o.Spec.Egress {
		peers(fmt.Sprintf("spec.egress[%d].to", i), r.To)
	}
	if f.Summary == "" && metav1.GetControllerOfNoCopy(o) == nil { // an operator's may be there before its pods
		f.Why = "it holds for nobody: what it is to keep away is let in, or out"
		s.missesPods(&f, "spec.podSelector", o.Namespace, &o.Spec.PodSelector)
	}
	return f, f.Summary != ""
}

// missesPods makes f about a selector of pods, in a field of its object, where it selects none and is likely meant for some.
func (s *Snapshot) missesPods(f *Finding, field, namespace string, selector *metav1.LabelSelector) {
	if p := s.meant(namespace, selector); p != nil {
		f.misses(field, "pod", selector, cmp.Or(s.owner(p), refOf("pod", p)), refOf("pod", p), p.Labels)
	}
}

// missesNamespace is the same of namespaces, where no other of the peers is that which is meant.
func (s *Snapshot) missesNamespace(f *Finding, field string, selector *metav1.LabelSelector, peers []networkingv1.NetworkPolicyPeer) {
	n := s.meantNamespace(selector)
	if n == nil || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		other, err := metav1.LabelSelectorAsSelector(p.NamespaceSelector)
		return p.NamespaceSelector != nil && err == nil && other.Matches(labels.Set(n.Labels))
	}) {
		return
	}
	first, r := f.Summary == "", Ref{Kind: "namespace", Name: n.Name}
	f.misses(field, "namespace", selector, r, r, n.Labels)
	for k, want := range selector.MatchLabels {
		if _, has := n.Labels[k]; first && !has && want == n.Name && len(selector.MatchLabels) == 1 {
			f.Next = []string{fmt.Sprintf("if %s is meant, select it by %s: %s, a label that each namespace has of itself: %s", r, corev1.LabelMetadataName, n.Name, f.edit())}
		}
	}
}

// misses makes f about a selector of kind that selects none. near is what is likely meant, and of has the labels. Of several such fields the
// first is told, and all are evidence.
func (f *Finding) misses(field, kind string, selector *metav1.LabelSelector, near, of Ref, have map[string]string) {
	if f.Summary == "" {
		f.Summary = fmt.Sprintf("its %s selects no %s; nearest is %s, whose labels differ: %s", field, kind, near, difference(selector.MatchLabels, have))
		f.Next = []string{fmt.Sprintf("if %s is meant, correct it: %s", near, f.edit())}
	}
	f.State = append(f.State,
		Evidence{From: fmt.Sprintf("%s %s", f.Object, field), Says: labels.FormatLabels(selector.MatchLabels)},
		Evidence{From: of.String() + " metadata.labels", Says: labels.FormatLabels(have)})
}

// selectsNamespaces tells whether a policy selects namespaces by their labels.
func selectsNamespaces(o networkingv1.NetworkPolicy) bool {
	some := func(p networkingv1.NetworkPolicyPeer) bool {
		return p.NamespaceSelector != nil && len(p.NamespaceSelector.MatchLabels) > 0
	}
	return slices.ContainsFunc(o.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return slices.ContainsFunc(r.From, some) }) ||
		slices.ContainsFunc(o.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return slices.ContainsFunc(r.To, some) })
}

// meantNamespace is the namespace that a selector is likely meant for which selects none: one whose labels are a typing error away, or whose
// name is asked for by a label that it does not have. Nil without one, and where namespaces may not be read.
func (s *Snapshot) meantNamespace(selector *metav1.LabelSelector) *metav1.PartialObjectMetadata {
	if len(selector.MatchLabels) == 0 || len(selector.MatchExpressions) > 0 {
		return nil
	}
	matches := labels.SelectorFromSet(selector.MatchLabels)
	var meant *metav1.PartialObjectMetadata
	for i := range s.Namespaces {
		n := &s.Namespaces[i]
		if matches.Matches(labels.Set(n.Labels)) {
			return nil
		}
		near := true
		for k, want := range selector.MatchLabels {
			have, has := n.Labels[k]
			near = near && (has && (have == want || misspelt(want, have)) || !has && want == n.Name)
		}
		if near && meant == nil {
			meant = n
		}
	}
	return meant
}

// meant is the pod that a selector is likely meant for which selects none, nor what a workload would make: one whose labels are a typing error away.
// Nil without one, and where not all makers may be read.
func (s *Snapshot) meant(namespace string, selector *metav1.LabelSelector) *pod {
	if selector == nil || len(selector.MatchLabels) == 0 || len(selector.MatchExpressions) > 0 || slices.ContainsFunc(makers, func(r plural) bool { return !s.has(r) }) {
		return nil
	}
	matches := labels.SelectorFromSet(selector.MatchLabels)
	if len(s.matching(namespace, matches)) > 0 || s.makes(namespace, matches) {
		return nil
	}
	for _, p := range s.podsIn[namespace] {
		near := !over(p)
		for k, want := range selector.MatchLabels {
			have, has := p.Labels[k]
			near = near && has && (have == want || misspelt(want, have))
		}
		if near {
			return p
		}
	}
	return nil
}

// makers are the kinds whose pods may be there later. CronJobs make Jobs, of which the last are there as a rule.
var makers = []plural{deployments, replicaSets, statefulSets, daemonSets, jobs}

// makes tells whether a workload would make pods with such labels, if it has none now.
func (s *Snapshot) makes(namespace string, selector labels.Selector) bool {
	has := func(o metav1.Object, template map[string]string) bool {
		return o.GetNamespace() == namespace && selector.Matches(labels.Set(template))
	}
	return slices.ContainsFunc(s.Deployments, func(o appsv1.Deployment) bool { return has(&o, o.Spec.Template.Labels) }) ||
		slices.ContainsFunc(s.ReplicaSets, func(o appsv1.ReplicaSet) bool { return has(&o, o.Spec.Template.Labels) }) || // of a Rollout, too
		slices.ContainsFunc(s.StatefulSets, func(o appsv1.StatefulSet) bool { return has(&o, o.Spec.Template.Labels) }) ||
		slices.ContainsFunc(s.DaemonSets, func(o appsv1.DaemonSet) bool { return has(&o, o.Spec.Template.Labels) }) ||
		slices.ContainsFunc(s.Controllers, func(o corev1.ReplicationController) bool {
			return o.Spec.Template != nil && has(&o, o.Spec.Template.Labels)
		}) ||
		slices.ContainsFunc(s.Jobs, func(o batchv1.Job) bool { return has(&o, o.Spec.Template.Labels) })
}

// keepsSome are the policies that hold for what comes in to p at a TCP port, if none of them lets everybody in there.
func (s *Snapshot) keepsSome(p *pod, port int32) (out []*networkingv1.NetworkPolicy) {
	if p.Spec.HostNetwork {
		return nil // they are not asked
	}
	for i := range s.Policies {
		o := &s.Policies[i]
		if !slices.Contains(o.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) || !slices.Contains(s.policed(o), p) {
			continue
		}
		if slices.ContainsFunc(o.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
			return len(r.From) == 0 && opens(r.Ports, p, port, corev1.ProtocolTCP)
		}) {
			return nil
		}
		out = append(out, o)
	}
	return out
}

// namesPort tells whether a policy lets in that very number.
func namesPort(o *networkingv1.NetworkPolicy, port int32) bool {
	return slices.ContainsFunc(o.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
		return slices.ContainsFunc(r.Ports, func(have networkingv1.NetworkPolicyPort) bool {
			return have.Port != nil && have.Port.Type == intstr.Int && have.Port.IntVal == port && have.EndPort == nil
		})
	})
}

// usesPort tells whether a container of p declares a port, or a Service sends to it.
func (s *Snapshot) usesPort(p *pod, port int32) bool {
	return declaresPort(p, port) || slices.ContainsFunc(s.Services, func(v corev1.Service) bool {
		return slices.Contains(s.selected(v.Namespace, v.Spec.Selector), p) && slices.ContainsFunc(v.Spec.Ports, func(o corev1.ServicePort) bool {
			n, has := targetOf(p, o)
			return has && n == port
		})
	})
}

func policyNames(list []*networkingv1.NetworkPolicy) string {
	var out []string
	for _, p := range list {
		out = append(out, "networkpolicy/"+p.Name)
	}
	return few(out)
}

func letsIn(o *networkingv1.NetworkPolicy, p *pod, port int32, protocol corev1.Protocol) bool {
	return slices.ContainsFunc(o.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return opens(r.Ports, p, port, protocol) })
}

// opens tells whether a rule with these ports is about that port of p, for whomever it lets in or out; p is nil where the pod is not known.
func opens(ports []networkingv1.NetworkPolicyPort, p *pod, port int32, protocol corev1.Protocol) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(have networkingv1.NetworkPolicyPort) bool { return portMatches(have, p, port, protocol) })
}

// letsAskDNS tells whether a policy lets pods ask a DNS server that is a pod. Where it is is not read: the servers of the own namespace are known,
// and everything else may be it.
func (s *Snapshot) letsAskDNS(o *networkingv1.NetworkPolicy, servers map[*pod][]int32) bool {
	return slices.ContainsFunc(o.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
		if len(r.To) == 0 {
			return opensDNS(r)
		}
		return slices.ContainsFunc(r.To, func(to networkingv1.NetworkPolicyPeer) bool {
			selector, err := metav1.LabelSelectorAsSelector(to.PodSelector)
			if to.PodSelector == nil || to.NamespaceSelector != nil || err != nil {
				return opensDNS(r)
			}
			return slices.ContainsFunc(s.matching(o.Namespace, selector), func(p *pod) bool {
				return slices.ContainsFunc(servers[p], func(port int32) bool { return opens(r.Ports, p, port, corev1.ProtocolUDP) })
			})
		})
	})
}

// dnsPorts are those of DNS's pods. OpenShift's have the second.
var dnsPorts = []int32{53, 5353}

// dnsServers are the pods that declare a port of DNS's, or that a Service of port 53 sends to, with the ports that they have for it.
func (s *Snapshot) dnsServers() map[*pod][]int32 {
	servers := map[*pod][]int32{}
	for i := range s.Pods {
		for _, port := range dnsPorts {
			if p := &s.Pods[i]; declaresPort(p, port) {
				servers[p] = append(servers[p], port)
			}
		}
	}
	for i := range s.Services {
		v := &s.Services[i]
		for _, port := range v.Spec.Ports {
			if port.Port != dnsPorts[0] {
				continue
			}
			for _, p := range s.selected(v.Namespace, v.Spec.Selector) {
				if n, found := targetOf(p, port); found {
					servers[p] = append(servers[p], n)
				}
			}
		}
	}
	return servers
}

// opensDNS tells whether a rule is about DNS's port, to whomever it lets out.
func opensDNS(r networkingv1.NetworkPolicyEgressRule) bool {
	byName := func(have networkingv1.NetworkPolicyPort) bool {
		return have.Port != nil && have.Port.Type == intstr.String
	}
	// A port by its name is another pod's, which may be one of them.
	return slices.ContainsFunc(r.Ports, byName) || slices.ContainsFunc(dnsPorts, func(port int32) bool { return opens(r.Ports, nil, port, corev1.ProtocolUDP) })
}

func portMatches(have networkingv1.NetworkPolicyPort, p *pod, port int32, protocol corev1.Protocol) bool {
	if have.Protocol != nil && *have.Protocol != protocol || have.Protocol == nil && protocol != corev1.ProtocolTCP {
		return false
	}
	switch {
	case have.Port == nil:
		return true
	case have.Port.Type == intstr.String:
		return p != nil && slices.ContainsFunc(containersOf(p), func(c container) bool {
			return slices.ContainsFunc(c.Ports, func(o corev1.ContainerPort) bool { return o.Name == have.Port.StrVal && o.ContainerPort == port })
		})
	case have.EndPort != nil:
		return port >= have.Port.IntVal && port <= *have.EndPort
	}
	return have.Port.IntVal == port
}
