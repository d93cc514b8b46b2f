package swap

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"bridge/internal/proxypod"
)

// peer is somebody in the network: a pod, or an address outside of the cluster.
type peer struct {
	name      string
	namespace string // "" outside
	labels    map[string]string
	address   netip.Addr
	ports     map[string]int32 // by name
}

// network is who is there, and what holds for it, as the API's documentation has it: a pod that some policy of its namespace selects for a direction
// is closed in that but for what the rules of all of those allow; a connection has to be let out and in.
type network struct {
	namespaces map[string]map[string]string // labels of each
	policies   map[string][]networkingv1.NetworkPolicySpec
}

func (n network) allows(from, to peer, port int32) bool {
	return n.lets(networkingv1.PolicyTypeEgress, from, to, to, port) && n.lets(networkingv1.PolicyTypeIngress, to, from, to, port)
}

// lets is whether the policies that select at, for that direction, let it speak with other, at to's port.
func (n network) lets(typ networkingv1.PolicyType, at, other, to peer, port int32) bool {
	selected := false
	for _, p := range n.policies[at.namespace] {
		if !slices.Contains(p.PolicyTypes, typ) || !matches(&p.PodSelector, at.labels) {
			continue
		}
		selected = true
		if typ == networkingv1.PolicyTypeIngress {
			for _, r := range p.Ingress {
				if n.among(r.From, at.namespace, other) && onPort(r.Ports, to, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Egress {
			if n.among(r.To, at.namespace, other) && onPort(r.Ports, to, port) {
				return true
			}
		}
	}
	return !selected
}

// among is whether one of the peers of a rule, in a policy of that namespace, is p; without any, everybody is.
func (n network) among(peers []networkingv1.NetworkPolicyPeer, namespace string, p peer) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(q networkingv1.NetworkPolicyPeer) bool {
		if b := q.IPBlock; b != nil {
			in := func(cidr string) bool { return netip.MustParsePrefix(cidr).Contains(p.address) }
			return in(b.CIDR) && !slices.ContainsFunc(b.Except, in)
		}
		switch {
		case p.namespace == "":
			return false
		case q.NamespaceSelector == nil && p.namespace != namespace:
			return false
		case q.NamespaceSelector != nil && !matches(q.NamespaceSelector, n.namespaces[p.namespace]):
			return false
		}
		return q.PodSelector == nil || matches(q.PodSelector, p.labels)
	})
}

// onPort is whether one of the ports of a rule is that one of to's, for TCP; without any, all are.
func onPort(ports []networkingv1.NetworkPolicyPort, to peer, port int32) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(q networkingv1.NetworkPolicyPort) bool {
		switch {
		case q.Protocol != nil && *q.Protocol != corev1.ProtocolTCP:
			return false
		case q.Port == nil:
			return true
		case q.Port.Type == intstr.String:
			return to.ports[q.Port.StrVal] == port
		case q.EndPort != nil:
			return q.Port.IntVal <= port && port <= *q.EndPort
		}
		return q.Port.IntVal == port
	})
}

// matches is whether an object with these labels is selected. One without the key is what NotIn and DoesNotExist select.
func matches(s *metav1.LabelSelector, of map[string]string) bool {
	for key, value := range s.MatchLabels {
		if is, has := of[key]; !has || is != value {
			return false
		}
	}
	for _, r := range s.MatchExpressions {
		is, has := of[r.Key]
		among := has && slices.Contains(r.Values, is)
		switch {
		case r.Operator == metav1.LabelSelectorOpIn && !among,
			r.Operator == metav1.LabelSelectorOpNotIn && among,
			r.Operator == metav1.LabelSelectorOpExists && !has,
			r.Operator == metav1.LabelSelectorOpDoesNotExist && has:
			return false
		}
	}
	return true
}

// policyMaker makes policies at random, of few words, so that they often meet.
type policyMaker struct{ *rand.Rand }

func (m policyMaker) one(n int) bool { return m.IntN(n) == 0 }

func pick[T any](m policyMaker, from ...T) T { return from[m.IntN(len(from))] }

func (m policyMaker) selector() *metav1.LabelSelector {
	switch s := (&metav1.LabelSelector{}); m.IntN(6) {
	case 0:
		return s // all
	case 1:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"orders", pick(m, "web", "batch")}}}
		return s
	case 2:
		s.MatchExpressions = []metav1.LabelSelectorRequirement{pick(m,
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpExists},
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{pick(m, "orders", "web")}},
			metav1.LabelSelectorRequirement{Key: "tier", Operator: metav1.LabelSelectorOpDoesNotExist})}
		return s
	case 3:
		s.MatchLabels = map[string]string{"tier": pick(m, "front", "back")}
		return s
	default:
		s.MatchLabels = map[string]string{"app": pick(m, "orders", "orders", "web", "batch", "db")}
		return s
	}
}

func (m policyMaker) peers() (list []networkingv1.NetworkPolicyPeer) {
	for range m.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch m.IntN(6) {
		case 0:
			p.IPBlock = &networkingv1.IPBlock{CIDR: pick(m, "0.0.0.0/0", "10.244.0.0/16", "192.0.2.0/24")}
			if m.one(3) {
				p.IPBlock.Except = []string{"192.0.2.128/25"}
			}
		case 1:
			p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": pick(m, "shop", "store")}}
		case 2:
			p.NamespaceSelector = pick(m, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"team": "store"}})
			p.PodSelector = m.selector()
		default:
			p.PodSelector = m.selector()
		}
		list = append(list, p)
	}
	return list
}

func (m policyMaker) ports() (list []networkingv1.NetworkPolicyPort) {
	if m.one(2) {
		return nil
	}
	end := int32(9000)
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	for range 1 + m.IntN(2) {
		list = append(list, pick(m,
			networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: new(intstr.FromString("http"))},
			networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(7000))},
			networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: new(intstr.FromInt32(8000)), EndPort: &end},
			networkingv1.NetworkPolicyPort{Protocol: &tcp},
			networkingv1.NetworkPolicyPort{Protocol: &udp},
		))
	}
	return list
}

func (m policyMaker) policy(name string) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: *m.selector(),
		PolicyTypes: pick(m, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}),
	}}
	for range m.IntN(3) {
		if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(), Ports: m.ports()})
		}
		if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: m.peers(), Ports: m.ports()})
		}
	}
	return p
}

// TestAdmittingByTheProxies: whatever policies hold, who could reach the original before can reach it by the proxies, at the same ports, and nobody
// else, unless the swap is refused for that; and between all others nothing is changed.
func TestAdmittingByTheProxies(t *testing.T) {
	const lease = "b"
	ports := map[string]int32{"http": 8080, "tcp": 7000}
	pod := func(name, namespace string, address string, l map[string]string) peer {
		return peer{name, namespace, l, netip.MustParseAddr(address), ports}
	}
	original := pod("original", "shop", "10.244.0.10", map[string]string{"app": "orders", "tier": "back"})
	proxy := pod("proxy", "shop", "10.244.0.20", map[string]string{proxypod.ProxyLabel: proxypod.LabelValue(lease)})
	others := []peer{
		pod("web", "shop", "10.244.0.30", map[string]string{"app": "web", "tier": "front"}),
		pod("batch", "shop", "10.244.0.31", map[string]string{"app": "batch"}),
		pod("db", "shop", "10.244.0.32", map[string]string{"app": "db", "tier": "back"}),
		pod("plain", "shop", "10.244.0.33", nil),
		pod("another original", "shop", "10.244.0.34", original.labels),
		pod("store's web", "store", "10.244.1.30", map[string]string{"app": "web"}),
		pod("store's orders", "store", "10.244.1.31", map[string]string{"app": "orders"}),
		{name: "outside", address: netip.MustParseAddr("192.0.2.1")},
		{name: "outside too", address: netip.MustParseAddr("192.0.2.200")},
	}
	var reached, kept, refused, needless int
	for seed := range uint64(1000) {
		m := policyMaker{rand.New(rand.NewPCG(seed, 1))}
		var list []networkingv1.NetworkPolicy
		before := network{namespaces: map[string]map[string]string{"shop": {"team": "shop"}, "store": {"team": "store"}}, policies: map[string][]networkingv1.NetworkPolicySpec{}}
		for i := range m.IntN(5) {
			p := m.policy(fmt.Sprint(i))
			list = append(list, p)
			before.policies["shop"] = append(before.policies["shop"], p.Spec)
		}
		a := admitting(list, original.labels, proxy.labels, metav1.LabelSelector{MatchLabels: map[string]string{"app": "orders"}}, proxypod.ProxySelector(lease))
		after := network{namespaces: before.namespaces, policies: map[string][]networkingv1.NetworkPolicySpec{"shop": slices.Clone(before.policies["shop"])}}
		for _, spec := range []*networkingv1.NetworkPolicySpec{a.toOriginals, a.ofProxies} {
			if spec != nil {
				after.policies["shop"] = append(after.policies["shop"], *spec)
			}
		}
		after.policies["shop"] = append(after.policies["shop"], a.ofCallers...)
		gains := false
		for _, from := range others {
			for _, port := range ports {
				was := before.allows(from, original, port)
				is := after.allows(from, proxy, port) && after.allows(proxy, original, port)
				if was {
					reached++
				} else {
					kept++
				}
				gains = gains || is && !was
				if was && !is || !was && is && len(a.opening) == 0 {
					text, _ := yaml.Marshal(after.policies["shop"])
					t.Fatalf("seed %d: %s to port %d of the original: %v before; now to the proxy: %v, and from there: %v; the first %d of these were there:\n%s",
						seed, from.name, port, was, after.allows(from, proxy, port), after.allows(proxy, original, port), len(list), text)
				}
				for _, to := range append(others, original) {
					if before.allows(from, to, port) != after.allows(from, to, port) {
						t.Fatalf("seed %d: %s to %s: %v before, %v after", seed, from.name, to.name, before.allows(from, to, port), after.allows(from, to, port))
					}
				}
			}
		}
		if len(a.opening) > 0 {
			refused++
			if !gains {
				needless++
			}
		}
	}
	t.Logf("%d of %d would be refused with nobody here who gains", needless, refused)
	// Each rule is judged for itself: who is let in, or out, by several together is not seen.
	if reached < 1000 || kept < 1000 || refused > 90 || needless > 45 {
		t.Errorf("%d could reach the original, %d could not, and %d swaps would be refused, %d with nobody here who gains: this proves little", reached, kept, refused, needless)
	}
}

// A policy that means the proxies and not the original is in the way only if by it somebody gains, and not when it leaves bridge's pods out.
func TestOpening(t *testing.T) {
	app := map[string]string{"app": "db"}
	for name, tt := range map[string]struct {
		own, other string // the specs of a policy of the original's, and of another
		want       bool
	}{
		"others let in": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}", true},
		"with bridge's pods left out": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}, {key: bridge.internal/proxy, operator: DoesNotExist}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}", false},
		"the same let in": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}", false},
		"the same at other ports": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}", true},
		"some let in of whom all are": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: batch}}}, {podSelector: {matchLabels: {app: web}}}]}]}", false},
		"all let in of whom some are": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}", true},
		"addresses let in beside all pods": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}", true},
		"everybody let in already": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{}]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}", false},
		"nobody let in": {
			"{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
			"{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}, policyTypes: [Ingress]}", false},
		"others let out": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}", true},
		"let out, with bridge's pods left out": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}, {key: bridge.internal/proxy, operator: DoesNotExist}]}}]}]}", false},
		"let out to an original that lets nobody in": {"{podSelector: {}, policyTypes: [Ingress]}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}", false},
		"let out to the whole namespace too": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}, {namespaceSelector: {}}]}]}", false},
		"let out to another namespace": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}, podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}", false},
		"let out to this namespace by its name": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}, podSelector: {matchExpressions: [{key: app, operator: DoesNotExist}]}}]}]}", true},
		"let out to the original too": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}, {podSelector: {matchLabels: {app: db}}}]}]}", false},
		"let out to the original at another port": {"{policyTypes: []}",
			"{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}}]}, {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}]}", true},
	} {
		var list []networkingv1.NetworkPolicy
		for i, text := range []string{tt.own, tt.other} {
			p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i), Namespace: "shop"}}
			if err := yaml.UnmarshalStrict([]byte(text), &p.Spec); err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		a := admitting(list, app, map[string]string{proxypod.ProxyLabel: "b"}, metav1.LabelSelector{MatchLabels: app}, proxypod.ProxySelector("b"))
		if slices.Contains(a.opening, "1") != tt.want || len(a.opening) > 1 {
			t.Errorf("%s: refused for %q", name, a.opening)
		}
	}
}
