package diagnose

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// checkPorts is about what the pods' ports answer, where they were dialled.
func checkPorts(s *Snapshot) (out []Finding) {
	if len(s.answers) == 0 {
		return nil
	}
	sent := s.sentTo()
	for i := range s.Pods {
		p := &s.Pods[i]
		for _, c := range containersOf(p) {
			for _, u := range s.uses(p, c, sent[refOf("pod", p)]) {
				if f, ok := s.portAnswer(p, c, u); ok {
					out = append(out, f)
				}
			}
		}
	}
	return out
}

// use is a port that a container declares or that its probes ask.
type use struct {
	port     int32
	declared bool
	services []Ref // that send to it
	probes   []asking
}

func (u use) whose(c container) string {
	var who []string
	if u.declared {
		who = append(who, c.what()+" declares")
	}
	var kinds []string
	for _, p := range u.probes {
		kinds = append(kinds, p.kind)
	}
	switch len(kinds) {
	case 0:
	case 1:
		who = append(who, "its "+kinds[0]+" probe asks")
	default:
		who = append(who, "its "+list(kinds)+" probes ask")
	}
	var services []string
	for _, r := range u.services {
		services = append(services, r.String())
	}
	if len(services) > 0 {
		who = append(who, few(services)+" sends to")
	}
	return list(who)
}

func (s *Snapshot) uses(p *pod, c container, sent map[int32]sending) []use {
	at := map[int32]use{}
	if len(containersOf(p)) == 1 { // then what Services send to is its own, declared or not; that it is closed is said of the Service
		for n, to := range sent {
			if len(to.by) > 0 && s.answers[placeOf(p, n)].loopback == silent {
				at[n] = use{}
			}
		}
	}
	for _, port := range c.Ports {
		if cmp.Or(port.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			at[port.ContainerPort] = use{declared: true}
		}
	}
	for _, probe := range c.probes() {
		if n, has := probe.numberIn(c); has {
			u := at[n]
			u.probes = append(u.probes, probe)
			at[n] = u
		}
	}
	var out []use
	for _, n := range slices.Sorted(maps.Keys(at)) {
		if _, dialled := s.answers[placeOf(p, n)]; dialled {
			u := at[n]
			u.port, u.services = n, sent[n].by
			out = append(out, u)
		}
	}
	return out
}

// portAnswer is about one port of a container.
func (s *Snapshot) portAnswer(p *pod, c container, u use) (f Finding, ok bool) {
	a := s.answers[placeOf(p, u.port)]
	severity := Problem
	if len(u.services) == 0 && len(u.probes) == 0 {
		severity = Warning // nobody is known who needs it
	}
	begin := func(id string) {
		f = s.ofContainer(p, c, id, severity, Network)
		f.because = append(f.because, partOf(f.Object, c.Name))
		f.dialled(f.Object, u.port, a, s.Now)
		f.Why = "who calls it is refused"
	}
	switch {
	case a.loopback == open && a.at() == closed:
		begin("port-loopback")
		f.Summary = fmt.Sprintf("its program listens at port %d, which %s, on the pod's loopback alone", u.port, u.whose(c))
		f.Why = "nobody outside the pod reaches it: no Service, and no probe of the kubelet's"
		f.Next = []string{"have the program listen on 0.0.0.0 or [::], not on 127.0.0.1 or localhost: " + f.edit()}
		return f, true
	case a.loopback == closed && a.at() != open && (u.declared || len(u.services) > 0) && !slices.ContainsFunc(u.probes, func(probe asking) bool { return s.failure(p, c, probe) != nil }):
		begin("port-closed")
		f.Summary = fmt.Sprintf("nothing listens at port %d, which %s", u.port, u.whose(c))
		if a.at() != closed {
			f.Summary = fmt.Sprintf("nothing listens on the pod's loopback at port %d, which %s; what the pod's address answers is not known", u.port, u.whose(c))
			f.Severity = Warning
		}
		f.log = currentLog
		f.Next = []string{
			"the program's log may say where it listens: " + logsOf(p, c),
			"correct the port: " + f.edit(),
		}
		others := s.listening(p, u.port)
		if len(others) > 0 {
			f.listens(others, s.Now)
			f.Next[1] = fmt.Sprintf("correct the port, or take it out of ports if it is not used; something listens at %s: %s", list(others), f.edit())
		}
		s.mayOpen(&f, p, c, len(others) > 0)
		return f, true
	}
	if a.loopback == silent && !slices.ContainsFunc(u.probes, func(probe asking) bool { return s.failure(p, c, probe) != nil }) {
		severity = Warning // some answer a GET of / late, or never, and are well
		begin("port-silent")
		f.Summary = fmt.Sprintf("its program takes connections at port %d, which %s, and does not answer: it hangs, or something holds it up", u.port, u.whose(c))
		f.Why = "who calls it waits; a probe that only opens a connection succeeds"
		f.log = currentLog
		f.Next = []string{
			"its log may say what it waits for: " + logsOf(p, c),
			"have a livenessProbe with httpGet restart it when it hangs: " + f.edit(),
		}
		if s.startingContainer(p, c) {
			f.may()
		}
		return f, true
	}
	if f, ok := s.notReached(p, c, u); ok {
		return f, true
	}
	for _, probe := range u.probes {
		asksHTTPS := func(o asking) bool { return o.HTTPGet != nil && o.HTTPGet.Scheme == corev1.URISchemeHTTPS }
		if probe.TCPSocket == nil || !a.tls || slices.ContainsFunc(u.probes, asksHTTPS) {
			continue
		}
		begin("probe-tls")
		f.Severity, f.Direction = Warning, Probes
		f.State = []Evidence{
			{From: fmt.Sprintf("%s %sProbe of %s", f.Object, probe.kind, c.what()), Says: asked(probe.Probe)},
			{From: fmt.Sprintf("%s port %d, by port-forward", f.Object, u.port), Says: "answers a TLS handshake", At: s.Now},
		}
		f.Summary = fmt.Sprintf("the %s probe of %s only opens a connection to port %d, which speaks TLS", probe.kind, c.what(), u.port)
		f.Why = "it succeeds while the program has no certificate or answers nobody, and leaves a failed handshake in its log each time"
		f.Next = []string{"where it speaks HTTPS, probe with httpGet and scheme: HTTPS, which asks for no trusted certificate: " + f.edit()}
		return f, true
	}
	return f, false
}

// listening are the ports of p but one at which something was found to listen: "8080", or "8080 (on the pod's loopback alone)".
func (s *Snapshot) listening(p *pod, but int32) (out []string) {
	var ports []int32
	for at, a := range s.answers {
		if at.namespace == p.Namespace && at.pod == p.Name && at.port != but && a.listens() {
			ports = append(ports, at.port)
		}
	}
	slices.Sort(ports)
	for _, n := range ports {
		text := fmt.Sprint(n)
		if s.answers[placeOf(p, n)].at() == closed {
			text += " (on the pod's loopback alone)"
		}
		out = append(out, text)
	}
	return out
}

// declaresPort tells whether a container of p declares a port of that number.
func declaresPort(p *pod, port int32) bool {
	return slices.ContainsFunc(containersOf(p), func(c container) bool {
		return slices.ContainsFunc(c.Ports, func(o corev1.ContainerPort) bool { return o.ContainerPort == port })
	})
}

// listens tells whether a pod was found to listen at port.
func (s *Snapshot) listens(selected []*pod, port int32) bool {
	return slices.ContainsFunc(selected, func(p *pod) bool {
		return s.answers[placeOf(p, port)].listens() || slices.ContainsFunc(s.portsToDial(p, nil), func(a ask) bool { return a.port == port && a.proved })
	})
}

// nobodyListens tells whether pods were dialled at port and none listens. f gets the evidence of the first, and what to do.
func (s *Snapshot) nobodyListens(f *Finding, selected []*pod, port int32) bool {
	for _, p := range selected {
		if a := s.answers[placeOf(p, port)]; a.loopback == closed && a.at() == closed {
			f.dialled(refOf("pod", p), port, a, s.Now)
			f.Next = []string{"set targetPort to the port that the program listens on: " + f.edit()}
			if others := s.listening(p, port); len(others) > 0 {
				f.Next = []string{fmt.Sprintf("set targetPort to the port that the program listens on; something listens at %s: %s", list(others), f.edit())}
			}
			return true
		}
	}
	return false
}
