package swap

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// admission is what policies proxies take; nil: none.
type admission struct {
	toOriginals *networkingv1.NetworkPolicySpec // lets the proxies in
	ofProxies   *networkingv1.NetworkPolicySpec // lets in who may call the originals, and the proxies out to them
	// ofCallers let out to the proxies who may go out to the originals, by the labels of these.
	ofCallers []networkingv1.NetworkPolicySpec
	because   []string // the policies for whose sake, by name
	// opening are those that mean the proxies and not the original, for want of its labels, and by which others could call the proxies than
	// may call the original: no policy beside them takes that back.
	opening []string
}

// admitting are the policies that proxies with these labels need where those in list hold for the original's
// pods, for them or for callers. One that selects what nothing selects yet would close it to everybody else, so
// none is made without need.
func admitting(list []networkingv1.NetworkPolicy, original, proxy map[string]string, originals, proxies metav1.LabelSelector) (a admission) {
	from := networkingv1.NetworkPolicyPeer{PodSelector: &proxies}
	to := networkingv1.NetworkPolicyPeer{PodSelector: &originals}
	var (
		closed, shut     bool // the original's pods to callers; the proxies to callers
		confined         bool // the proxies in whom they call
		ingress          []networkingv1.NetworkPolicyIngressRule
		egress           []networkingv1.NetworkPolicyEgressRule
		originalConfined bool
		opening          []networkingv1.NetworkPolicy // the proxies, and not the original, to callers
		straying         []string                     // let callers out to the proxies, and not to the original
	)
	for _, p := range list {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			continue
		}
		in, out := slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress), slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		holds, mine := false, selector.Matches(labels.Set(original))
		if mine {
			if in {
				closed, holds = true, true
				ingress = append(ingress, p.Spec.Ingress...)
			}
			if out {
				originalConfined = true
				egress = append(egress, p.Spec.Egress...)
			}
		}
		if selector.Matches(labels.Set(proxy)) {
			shut, confined, holds = shut || in, confined || out, true
			if !mine && in {
				opening = append(opening, p)
			}
		}
		if out && strays(p, original, proxy) {
			straying = append(straying, p.Name)
		}
		if rules := towards(p.Spec.Egress, original, proxy, proxies); out && len(rules) > 0 {
			a.ofCallers = append(a.ofCallers, networkingv1.NetworkPolicySpec{
				PodSelector: p.Spec.PodSelector, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, Egress: rules,
			})
			holds = true
		}
		if holds {
			a.because = append(a.because, p.Name)
		}
	}
	slices.Sort(a.because)
	if closed { // else everybody may call the original
		for _, p := range opening {
			if slices.ContainsFunc(p.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return !letIn(r, ingress) }) {
				a.opening = append(a.opening, p.Name)
			}
		}
		a.toOriginals = &networkingv1.NetworkPolicySpec{
			PodSelector: originals, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{from}}},
		}
	}
	if !closed || len(ingress) > 0 { // else nobody is let in to the proxies
		a.opening = append(a.opening, straying...)
	}
	slices.Sort(a.opening)
	a.opening = slices.Compact(a.opening)
	if !closed && !shut && !confined {
		return a
	}
	// Who may call the original may call the proxies, and nobody else.
	if !closed {
		ingress = []networkingv1.NetworkPolicyIngressRule{{}}
	}
	a.ofProxies = &networkingv1.NetworkPolicySpec{
		PodSelector: proxies, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: ingress,
	}
	if confined {
		if !originalConfined {
			egress = []networkingv1.NetworkPolicyEgressRule{{}}
		}
		a.ofProxies.PolicyTypes = append(a.ofProxies.PolicyTypes, networkingv1.PolicyTypeEgress)
		a.ofProxies.Egress = append([]networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{to}}}, egress...)
	}
	return a
}

// letIn tells whether one of the original's rules lets those in whom rule lets in.
func letIn(rule networkingv1.NetworkPolicyIngressRule, ingress []networkingv1.NetworkPolicyIngressRule) bool {
	return slices.ContainsFunc(ingress, func(own networkingv1.NetworkPolicyIngressRule) bool {
		return covered(rule.From, own.From, peerWithin) && covered(rule.Ports, own.Ports, samePort)
	})
}

// covered tells whether all that a list in a rule names is within something that the list of another names. An empty one names everything.
func covered[T any](part, whole []T, within func(x, y T) bool) bool {
	return len(whole) == 0 || len(part) > 0 && !slices.ContainsFunc(part, func(x T) bool {
		return !slices.ContainsFunc(whole, func(y T) bool { return within(x, y) })
	})
}

func samePort(x, y networkingv1.NetworkPolicyPort) bool { return equality.Semantic.DeepEqual(x, y) }

// peerWithin tells whether all whom a peer means are meant by another for certain.
func peerWithin(x, y networkingv1.NetworkPolicyPeer) bool {
	if x.IPBlock != nil || y.IPBlock != nil {
		return equality.Semantic.DeepEqual(x, y)
	}
	return sameNamespaces(x, y) && (all(y.PodSelector) || equality.Semantic.DeepEqual(x.PodSelector, y.PodSelector))
}

// sameNamespaces tells whether the namespaces of x are those of y, or y's are all.
func sameNamespaces(x, y networkingv1.NetworkPolicyPeer) bool {
	return y.NamespaceSelector != nil && all(y.NamespaceSelector) || equality.Semantic.DeepEqual(x.NamespaceSelector, y.NamespaceSelector)
}

// all tells whether a peer's selector is for all; so is none, beside one for namespaces.
func all(s *metav1.LabelSelector) bool {
	return s == nil || len(s.MatchLabels)+len(s.MatchExpressions) == 0
}

// strays tells whether a policy lets pods go to the proxies that it does not let go to the original.
func strays(p networkingv1.NetworkPolicy, original, proxy map[string]string) bool {
	return slices.ContainsFunc(p.Spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
		return slices.ContainsFunc(rule.To, func(peer networkingv1.NetworkPolicyPeer) bool {
			return selects(peer, proxy) && !selects(peer, original) && !elsewhere(peer, p.Namespace) && !letOut(peer, rule.Ports, p.Spec.Egress, original)
		})
	})
}

// elsewhere tells whether a peer is in another namespace than ns, by its name.
func elsewhere(peer networkingv1.NetworkPolicyPeer, ns string) bool {
	if peer.NamespaceSelector == nil {
		return false
	}
	name, has := peer.NamespaceSelector.MatchLabels[corev1.LabelMetadataName]
	return has && name != ns
}

// letOut tells whether rules let pods go to the original, in the namespaces and at the ports at which they may go to peer.
func letOut(peer networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, egress []networkingv1.NetworkPolicyEgressRule, original map[string]string) bool {
	return slices.ContainsFunc(egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
		return covered(ports, rule.Ports, samePort) && (len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(to networkingv1.NetworkPolicyPeer) bool {
			return to.IPBlock == nil && (to.PodSelector == nil || selects(to, original)) && sameNamespaces(peer, to)
		}))
	})
}

// towards are the rules by which pods may go to the original for its labels, as rules for the proxies, which have others.
func towards(egress []networkingv1.NetworkPolicyEgressRule, original, proxy map[string]string, proxies metav1.LabelSelector) (rules []networkingv1.NetworkPolicyEgressRule) {
	for _, rule := range egress {
		var to []networkingv1.NetworkPolicyPeer
		for _, peer := range rule.To {
			if selects(peer, original) && !selects(peer, proxy) {
				to = append(to, networkingv1.NetworkPolicyPeer{PodSelector: &proxies, NamespaceSelector: peer.NamespaceSelector})
			}
		}
		if len(to) > 0 {
			rules = append(rules, networkingv1.NetworkPolicyEgressRule{Ports: rule.Ports, To: to})
		}
	}
	return rules
}

// selects tells whether a peer is pods with these labels; whole namespaces, or addresses, of which nobody knows whose they are, it is not.
func selects(peer networkingv1.NetworkPolicyPeer, of map[string]string) bool {
	if peer.PodSelector == nil {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(peer.PodSelector)
	return err == nil && selector.Matches(labels.Set(of))
}
