package diagnose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
)

// backends are the Services that an Ingress sends to.
func backends(ing *networkingv1.Ingress) (out []networkingv1.IngressServiceBackend) {
	addBackend := func(b *networkingv1.IngressBackend) {
		// The AWS load balancer controller's actions stand in annotations, and are named as Services are.
		if b != nil && b.Service != nil && b.Service.Port.Name != "use-annotation" {
			out = append(out, *b.Service)
		}
	}
	addBackend(ing.Spec.DefaultBackend)
	for _, r := range ing.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for i := range r.HTTP.Paths {
			addBackend(&r.HTTP.Paths[i].Backend)
		}
	}
	return out
}

// checkIngresses is about Ingresses that lead to what is not there.
func checkIngresses(s *Snapshot) (out []Finding) {
	for i := range s.Ingresses {
		ing := &s.Ingresses[i]
		begin := func(id, says string) Finding {
			f := Finding{ID: id, Severity: Problem, Direction: Network, Object: refOf("ingress", ing), Owner: s.owner(ing), Why: "its controller answers such requests with an error, 503 as a rule"}
			f.State = []Evidence{{From: f.Object.String() + " backend", Says: says}}
			return f
		}
		var done []string
		for _, b := range backends(ing) {
			port := b.Port.Name
			if port == "" {
				port = fmt.Sprint(b.Port.Number)
			}
			says := b.Name + ":" + port
			if slices.Contains(done, says) {
				continue
			}
			done = append(done, says)
			j := slices.IndexFunc(s.Services, func(v corev1.Service) bool { return v.Name == b.Name && v.Namespace == ing.Namespace })
			if j < 0 {
				f := begin("ingress-service-absent", says)
				f.Summary = fmt.Sprintf("it sends to service/%s, which does not exist in %s", b.Name, ing.Namespace)
				var have []string
				for _, v := range s.Services {
					if v.Namespace == ing.Namespace {
						have = append(have, v.Name)
					}
				}
				if like := nearest(b.Name, have); like != "" {
					f.Next = append(f.Next, "if "+like+" is meant: "+f.edit())
				}
				f.Next = append(f.Next, "make the Service, or name another: "+f.edit())
				out = append(out, f)
				continue
			}
			v := &s.Services[j]
			var ports []string
			has := false
			for _, p := range v.Spec.Ports {
				ports = append(ports, strings.TrimPrefix(fmt.Sprintf("%s:%d", p.Name, p.Port), ":"))
				has = has || b.Port.Name != "" && p.Name == b.Port.Name || b.Port.Name == "" && p.Port == b.Port.Number
			}
			if !has {
				f := begin("ingress-port-absent", says)
				f.Summary = fmt.Sprintf("it sends to port %s of service/%s, which has only %s", port, b.Name, list(ports))
				f.State = append(f.State, Evidence{From: "service/" + v.Name + " spec.ports", Says: strings.Join(ports, ", ")})
				f.Next = []string{"name one of the Service's ports (not of its pods): " + f.edit()}
				out = append(out, f)
				continue
			}
			if all, ready := s.endpoints(v); ready == 0 && v.Spec.Type != corev1.ServiceTypeExternalName && s.has(endpointSlices) {
				f := begin("ingress-no-endpoints", says)
				f.Summary = fmt.Sprintf("it sends to service/%s, which has no endpoint that is ready, of %d", b.Name, all)
				f.because = append(f.because, refOf("service", v))
				for _, p := range s.selected(v.Namespace, v.Spec.Selector) {
					f.because = append(f.because, refOf("pod", p))
				}
				f.Next = []string{"bridge diagnose service/" + v.Name + f.Object.in()}
				out = append(out, f)
			}
		}
		if f, ok := s.absentClass(ing); ok {
			out = append(out, f)
		}
		for _, t := range ing.Spec.TLS {
			if t.SecretName == "" || !s.has(secrets) || s.named[Ref{"secret", ing.Namespace, t.SecretName}] {
				continue
			}
			f := begin("ingress-certificate-absent", "tls "+t.SecretName)
			f.Summary = fmt.Sprintf("secret/%s, which is to have its certificate, does not exist in %s", t.SecretName, ing.Namespace)
			f.Why = "its controller answers with a certificate of its own, which callers do not trust"
			f.Next = s.nextForMissing("certificate", t.SecretName, ing.Namespace, &f)
			out = append(out, f)
		}
	}
	return out
}

// nameless tells whether an Ingress names no class, and nobody has taken it up so far, as far as the Ingress has it.
func nameless(ing *networkingv1.Ingress) bool {
	const old = "kubernetes.io/ingress.class" // before there were IngressClasses
	return ing.Spec.IngressClassName == nil && ing.Annotations[old] == "" && len(ing.Finalizers) == 0 && len(ing.Status.LoadBalancer.Ingress) == 0
}

// absentClass is about an Ingress of a class that does not exist, or of none that nobody has taken up.
func (s *Snapshot) absentClass(ing *networkingv1.Ingress) (Finding, bool) {
	f := Finding{ID: "ingress-class-absent", Severity: Warning, Direction: Network, Object: refOf("ingress", ing), Owner: s.owner(ing)} // a few controllers go by the name alone, or take up what names none
	var have []string
	for _, c := range s.IngressClasses {
		have = append(have, c.Name)
	}
	class := ing.Spec.IngressClassName
	switch {
	case !s.has(ingressClasses):
		return f, false
	case class != nil && !slices.Contains(have, *class):
		f.Summary = fmt.Sprintf("its class %s does not exist", *class)
		f.State = []Evidence{{From: f.Object.String() + " spec.ingressClassName", Says: *class}}
		if like := nearest(*class, have); like != "" {
			f.Next = append(f.Next, "if "+like+" is meant: "+f.edit())
		}
		f.Next = append(f.Next, "name one that there is, or install its controller: kubectl get ingressclass")
	// Where there are no classes, as on GKE, a controller goes by other marks. Who has a word for it has taken it up.
	case len(have) > 0 && nameless(ing) && s.has(events) && len(s.eventsOf("ingress", ing)) == 0 && s.Now.Sub(ing.CreationTimestamp.Time) > slowPatience:
		f.Summary = "it names no class, and no controller has given it an address"
		f.State = []Evidence{{From: f.Object.String() + " spec.ingressClassName", Says: "none"}, {From: f.Object.String() + " status.loadBalancer", Says: "no address"}}
		f.Next = []string{"set spec.ingressClassName to one that there is: " + f.edit()}
	default:
		return f, false
	}
	f.Why = "as a rule no controller takes it up, and nobody answers at its hosts"
	f.State = append(f.State, Evidence{From: "ingressclasses", Says: cmp.Or(strings.Join(have, ", "), "none")})
	return f, true
}
