package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// beyondTime is for all addresses that no pod stands behind, and beyondKnock for one: it may be far away.
	beyondTime, beyondKnock = 15 * time.Second, 3 * time.Second
	// nameAlone is a port for a name that is to be resolved and no more: of UDP, to which nothing is sent.
	nameAlone = "9"
)

// Beyond is how many addresses no pod stands behind: endpoints of Services without a selector, and names of ExternalName Services.
type Beyond struct {
	Dialled int `json:"dialled"`
	// Left were not: without a pod of ours none is.
	Left int `json:"left,omitempty"`

	asked bool // whether there was to be a pod
}

// String is a line: "dialled 2 addresses of Services without pods, from a pod".
func (b *Beyond) String() string {
	if !b.asked {
		return fmt.Sprintf("not dialled: %s of Services without pods, which only a pod can: --inside starts one", counted(b.Left, "address"))
	}
	text := fmt.Sprintf("dialled %s of Services without pods, from a pod", counted(b.Dialled, "address"))
	if b.Left > 0 {
		text += fmt.Sprintf(", and %d more not", b.Left)
	}
	return text
}

// beyond is such an address.
type beyond struct {
	service Ref
	from    string // the object that has it
	edit    string // what to edit where it is wrong, for kubectl; empty: the Service
	network string // udp where the name alone counts
	address string // "host:port", of an ExternalName by the Service's own name, as its callers write it

	failed reason // what dialling gave; empty: it answers, or that is not known
	text   string
	sure   bool // somebody has said so: it is no silence
}

// reason is in which way an address does not answer.
type reason string

const (
	unresolved  reason = "does not resolve"
	untold      reason = "the cluster's DNS could not tell"
	refused     reason = "connection refused"
	unreachable reason = "there is no way to it"
	mute        reason = "no answer"
)

// beyondPods are the addresses of the Services near that no pod stands behind; of all of them for nil.
func (s *Snapshot) beyondPods(near map[Ref]bool) (out []beyond) {
	for i := range s.Services {
		v := &s.Services[i]
		r := refOf("service", v)
		if near != nil && !near[r] || v.Name == "kubernetes" && v.Namespace == "default" {
			continue
		}
		switch {
		case v.Spec.Type == corev1.ServiceTypeExternalName:
			if _, wrong := s.externalName(v); !wrong {
				out = append(out, named(v)...)
			}
		case len(v.Spec.Selector) == 0:
			for _, e := range s.slicesOf(v) {
				out = append(out, listed(r, e)...)
			}
		}
	}
	return out
}

// named is where an ExternalName leads to, at the ports that the Service has, if any.
func named(v *corev1.Service) (out []beyond) {
	one := beyond{service: refOf("service", v), from: refOf("service", v).String() + " spec.externalName " + v.Spec.ExternalName}
	host := v.Name + "." + v.Namespace + ".svc"
	for _, p := range v.Spec.Ports {
		if cmp.Or(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			one.network, one.address = "tcp", net.JoinHostPort(host, strconv.Itoa(int(p.Port)))
			out = append(out, one)
		}
	}
	if len(out) == 0 {
		one.network, one.address = "udp", net.JoinHostPort(host, nameAlone)
		out = append(out, one)
	}
	return out
}

// mirrored is who manages the EndpointSlice of a hand-made Endpoints object.
const mirrored = "endpointslicemirroring-controller.k8s.io"

// listed are the ready endpoints of a slice that are no pods.
func listed(service Ref, e *discoveryv1.EndpointSlice) (out []beyond) {
	edit := "endpointslice " + e.Name
	if e.Labels[discoveryv1.LabelManagedBy] == mirrored {
		edit = "endpoints " + service.Name
	}
	for _, p := range e.Endpoints {
		if p.Conditions.Ready != nil && !*p.Conditions.Ready || p.TargetRef != nil && p.TargetRef.Kind == "Pod" {
			continue
		}
		for _, port := range e.Ports {
			if port.Port == nil || port.Protocol != nil && *port.Protocol != corev1.ProtocolTCP {
				continue
			}
			for _, a := range p.Addresses[:min(len(p.Addresses), 1)] { // the others are never used
				out = append(out, beyond{service: service, from: refOf("endpointslice", e).String(), edit: edit, network: "tcp", address: net.JoinHostPort(a, strconv.Itoa(int(*port.Port)))})
			}
		}
	}
	return out
}

// knock dials it; false where that tells nothing of it.
func (b *beyond) knock(ctx context.Context, dial Dial) (known bool) {
	b.failed, known = knock(ctx, dial, b.network, b.address)
	b.sure = b.failed == unresolved || b.failed == refused
	b.text = string(b.failed)
	if b.failed == mute {
		b.text += " in " + beyondKnock.String()
	}
	return known
}

// knock dials an address; failed is empty where it answers. It is not known where that tells nothing of it: the pod's proxy does not dial it, or the way to
// the pod is lost.
func knock(ctx context.Context, dial Dial, network, address string) (failed reason, known bool) {
	own, cancel := context.WithTimeout(ctx, beyondKnock)
	defer cancel()
	c, err := dial(own, network, address)
	if err == nil {
		_ = c.Close()
		return "", true
	}
	var dns *net.DNSError
	switch {
	case errors.Is(err, ErrNotDialled):
	case errors.As(err, &dns) && !dns.IsNotFound:
		failed = untold
	case errors.As(err, &dns):
		failed = unresolved
	case errors.Is(err, syscall.ECONNREFUSED):
		failed = refused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		failed = unreachable
	case errors.Is(err, syscall.ETIMEDOUT), own.Err() != nil && ctx.Err() == nil:
		failed = mute
	}
	return failed, failed != ""
}

// beyondFindings are about the addresses of a Service that have not answered.
func (s *Snapshot) beyondFindings(v *corev1.Service) []Finding {
	r := refOf("service", v)
	var of, bad []beyond
	for _, b := range s.beyond {
		if b.service == r {
			of = append(of, b)
			if b.failed != "" {
				bad = append(bad, b)
			}
		}
	}
	if len(bad) == 0 {
		return nil
	}
	external := v.Spec.Type == corev1.ServiceTypeExternalName
	f := s.ofService(v, "endpoint-not-answering", Problem)
	var names []string
	for _, b := range bad {
		f.State = append(f.State, Evidence{From: b.from + ", dialled from a pod as " + b.address, Says: b.text, At: s.Now})
		names = append(names, fmt.Sprintf("%s (%s)", b.address, b.text))
	}
	if external && (bad[0].failed == unresolved || bad[0].failed == untold) {
		const logs = "kubectl logs -n kube-system -l k8s-app=kube-dns"
		f.ID = "service-external-name"
		f.Summary = fmt.Sprintf("its externalName %s does not resolve in the cluster", v.Spec.ExternalName)
		f.State = []Evidence{{From: bad[0].from + ", asked from a pod", Says: bad[0].text, At: s.Now}}
		f.Next = []string{"correct the name: " + f.edit(), "if it is right, the cluster's DNS does not know it: " + logs}
		if bad[0].failed == untold {
			f.Severity = Warning
			f.Summary = fmt.Sprintf("whether its externalName %s resolves the cluster's DNS could not tell", v.Spec.ExternalName)
			f.Next = []string{"see why its DNS fails: " + logs}
		}
		s.heldBack(&f, bad)
		return []Finding{f}
	}
	f.Summary = fmt.Sprintf("%d of the %d addresses that it leads to do not answer: %s", len(bad), len(of), few(names))
	if len(of) == 1 {
		f.Summary = "the address that it leads to does not answer: " + names[0]
	}
	f.Why = "who calls it and is sent there is refused, or waits in vain"
	f.Next = []string{"see whether a program listens there, and a firewall lets the cluster's nodes in"}
	if external {
		f.Next = append(f.Next, "correct the name or the ports: "+f.edit())
	} else {
		f.Next = append(f.Next, "or correct the address: kubectl edit "+bad[0].edit+f.Object.in())
	}
	s.heldBack(&f, bad)
	return []Finding{f}
}

// heldBack has a finding be a warning where nothing is sure, and policies may have held back the pod that has dialled.
func (s *Snapshot) heldBack(f *Finding, bad []beyond) {
	if slices.ContainsFunc(bad, func(b beyond) bool { return b.sure }) {
		return
	}
	policies := s.holdsOurs()
	switch {
	case len(policies) > 0:
		f.Severity = Warning
		f.State = append(f.State, Evidence{From: policyNames(policies) + " in " + s.from.Namespace, Says: "hold for the pod that has dialled: it may not have been let out"})
	case slices.ContainsFunc(s.Unread, func(u Unread) bool { return u.Resource == "networkpolicies" }):
		f.Severity = Warning
		f.State = append(f.State, Evidence{From: "networkpolicies", Says: "not read: one may not have let out the pod that has dialled"})
	}
}
