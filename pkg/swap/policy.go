package swap

import (
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
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
	// opening are those that hold for the proxies alone, for want of the original's labels, and by which others could call them than may
	// call the original: no policy beside them takes that back.
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
		open             []string // to the proxies, and not to the original
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
			if !mine && in && len(p.Spec.Ingress) > 0 {
				open = append(open, p.Name)
			}
		}
		if out && strays(p.Spec.Egress, original, proxy) {
			a.opening = append(a.opening, p.Name)
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
		a.opening = append(a.opening, open...)
		a.toOriginals = &networkingv1.NetworkPolicySpec{
			PodSelector: originals, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{from}}},
		}
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

// strays tells whether rules let pods go to the proxies that do not let them go to the original.
func strays(egress []networkingv1.NetworkPolicyEgressRule, original, proxy map[string]string) bool {
	return slices.ContainsFunc(egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
		return slices.ContainsFunc(rule.To, func(peer networkingv1.NetworkPolicyPeer) bool {
			return selects(peer, proxy) && !selects(peer, original)
		})
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
