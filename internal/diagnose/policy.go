package diagnose

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	const why = "what a policy does not allow is dropped in silence: it shows as a timeout; this holds where the cluster's network implements policies"
	for i := range s.Services {
		v := &s.Services[i]
		for _, p := range v.Spec.Ports {
			for _, pod := range s.selected(v.Namespace, v.Spec.Selector) {
				held := in[refOf("pod", pod)]
				port, protocol := s.targetOf(pod, p)
				if len(held) == 0 || pod.Spec.HostNetwork || slices.ContainsFunc(held, func(o *networkingv1.NetworkPolicy) bool { return letsIn(o, pod, port, protocol) }) {
					continue
				}
				f := Finding{ID: "networkpolicy-denies", Severity: Warning, Direction: Network, Object: refOf("service", v), Owner: s.owner(v), Why: why}
				f.Summary = fmt.Sprintf("nobody may reach %s on port %d/%s: %s hold for it, and none lets that in", cmp.Or(s.owner(pod), refOf("pod", pod)), port, protocol, policyNames(held))
				f.State = []Evidence{{From: "networkpolicy/" + held[0].Name + " spec.ingress", Says: fmt.Sprintf("%d rules", len(held[0].Spec.Ingress))}}
				f.Next = []string{fmt.Sprintf("add a policy that lets callers in on port %d: kubectl get networkpolicies%s", port, f.Object.in())}
				out = append(out, f)
				break
			}
		}
	}
	for i := range s.Pods {
		pod := &s.Pods[i]
		held := outward[refOf("pod", pod)]
		if len(held) == 0 || pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || slices.ContainsFunc(held, letsAskDNS) {
			continue
		}
		// Who may go nowhere at all is meant to.
		if !slices.ContainsFunc(held, func(o *networkingv1.NetworkPolicy) bool { return len(o.Spec.Egress) > 0 }) {
			continue
		}
		f := s.ofPod(pod, "networkpolicy-no-dns", Warning, Network)
		f.Summary = fmt.Sprintf("it may call others, and may not ask DNS for their addresses: %s hold for it, and none lets port 53 out", policyNames(held))
		f.Why = why
		f.State = []Evidence{{From: "networkpolicy/" + held[0].Name + " spec.egress", Says: fmt.Sprintf("%d rules, none for port 53", len(held[0].Spec.Egress))}}
		f.Next = []string{"let it ask: egress to port 53, UDP and TCP: kubectl edit networkpolicy " + held[0].Name + inOf(pod)}
		out = append(out, f)
	}
	return out
}

func policyNames(list []*networkingv1.NetworkPolicy) string {
	var out []string
	for _, p := range list {
		out = append(out, "networkpolicy/"+p.Name)
	}
	return few(out)
}

// targetOf is the port of the pod that a Service's port goes to.
func (s *Snapshot) targetOf(p *pod, port corev1.ServicePort) (int32, corev1.Protocol) {
	protocol := cmp.Or(port.Protocol, corev1.ProtocolTCP)
	if port.TargetPort.Type == intstr.String {
		for _, c := range containersOf(p) {
			for _, have := range c.Ports {
				if have.Name == port.TargetPort.StrVal {
					return have.ContainerPort, protocol
				}
			}
		}
	}
	return cmp.Or(port.TargetPort.IntVal, port.Port), protocol
}

func letsIn(o *networkingv1.NetworkPolicy, p *pod, port int32, protocol corev1.Protocol) bool {
	return slices.ContainsFunc(o.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool {
		return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(have networkingv1.NetworkPolicyPort) bool { return portMatches(have, p, port, protocol) })
	})
}

func letsAskDNS(o *networkingv1.NetworkPolicy) bool {
	const dns = 53
	return slices.ContainsFunc(o.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool {
		return len(r.Ports) == 0 || slices.ContainsFunc(r.Ports, func(have networkingv1.NetworkPolicyPort) bool {
			// A port by its name is another pod's, which may be 53.
			return have.Port != nil && have.Port.Type == intstr.String || portMatches(have, nil, dns, corev1.ProtocolUDP) || portMatches(have, nil, dns, corev1.ProtocolTCP)
		})
	})
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
