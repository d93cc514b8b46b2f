package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

const (
	// dialPods is of how many pods of a workload ports are dialled: they run the same program. Those that are not ready come first.
	dialPods = 2
	// dialPorts is how many ports are dialled, dialAtOnce how many of them at a time: each is a connection to the API server.
	dialPorts, dialAtOnce = 128, 16
	// elsewherePorts is how many further ones are knocked at in pods of which one is closed.
	elsewherePorts = 64
	// dialTime is for all of them, and knockTime for one; answerTime is what a program may take for an answer to a request.
	dialTime, knockTime, answerTime = 5 * time.Second, 1500 * time.Millisecond, 3 * time.Second
)

// Dialled is how many ports were, by port-forward.
type Dialled struct {
	Ports int `json:"ports"`
	Pods  int `json:"pods"`
	// Left is how many ports more there would have been, of further pods of the same workloads too.
	Left    int     `json:"left,omitempty"`
	Seconds float64 `json:"seconds"`
	// Policed are ports that answer a request in their pod at once, and not at its address, where a NetworkPolicy keeps some callers out: the
	// API server may be one of them, and meant to be. "port 8080 of deployment/orders (networkpolicy/closed)".
	Policed []string `json:"policed,omitempty"`
	// Inside is how many ports a pod of ours has dialled, and Kept are those of them that it did not reach where a NetworkPolicy may keep it away.
	Inside int      `json:"inside,omitempty"`
	Kept   []string `json:"kept,omitempty"`
}

// String is a line: "dialled 5 ports of 2 pods in 0.2s, and 3 more not; 6 from a pod".
func (d *Dialled) String() string {
	text := fmt.Sprintf("dialled %s of %s in %.1fs", counted(d.Ports, "port"), counted(d.Pods, "pod"), d.Seconds)
	if d.Left > 0 {
		text += fmt.Sprintf(", and %d more not", d.Left)
	}
	switch {
	case d.Inside > 0 && d.Ports+d.Left == 0: // what probes have shown to be open is not asked again from outside
		text = fmt.Sprintf("dialled %s from a pod", counted(d.Inside, "port"))
	case d.Inside > 0:
		text += fmt.Sprintf("; %d from a pod", d.Inside)
	}
	if len(d.Policed) > 0 {
		text += "; the API server may be kept from " + few(d.Policed)
	}
	if len(d.Kept) > 0 {
		text += "; the pod may be kept from " + few(d.Kept)
	}
	return text
}

// place is a port of a pod.
type place struct {
	namespace, pod string
	port           int32
}

func placeOf(p *pod, port int32) place { return place{p.Namespace, p.Name, port} }

// podAt is the pod whose port it is, or nil.
func (s *Snapshot) podAt(at place) *pod {
	if i := slices.IndexFunc(s.podsIn[at.namespace], func(p *pod) bool { return p.Name == at.pod }); i >= 0 {
		return s.podsIn[at.namespace][i]
	}
	return nil
}

// reply is what dialling a port gave.
type reply int

const (
	unknown reply = iota // it was not dialled, or nothing is known of it
	open
	closed
	silent // it was asked by a request, and gave nothing in time
)

// answer is what a port was found to be.
type answer struct {
	// loopback is by a port-forward, which goes to the pod's loopback; address is from the API server to the pod's address, or what a
	// probe of the kubelet's has met there. An address may be silent too when what is sent to it does not arrive.
	loopback, address reply
	// inside is from a pod of ours to the pod's address.
	inside reply
	// mayNot is whether address is unknown for want of the right.
	mayNot bool
	// prompt is whether the loopback has answered a request in the time that its address had for one.
	prompt bool
	tls    bool // it speaks it; asked only where a tcpSocket probe is
}

// at is what its address has for others: it is open if one of those that were there found it so.
func (a answer) at() reply {
	for _, sure := range []reply{open, closed} {
		if a.address == sure || a.inside == sure {
			return sure
		}
	}
	return a.address
}

// listens tells whether something does, on the loopback or at the address.
func (a answer) listens() bool { return a.loopback == open || a.loopback == silent || a.at() == open }

// ask is a port to be dialled.
type ask struct {
	place
	ip string // its pod's
	// proved is whether a probe that succeeds asks it, which goes to the pod's address; refused whether one has been refused there for long.
	proved, refused bool
	// tls is whether to try a handshake, and http whether to ask on: it is said to speak HTTP, and no probe has had an answer of that kind.
	tls, http bool
}

// asks are the ports to be dialled, the more important first, and how many are left out. near are the objects it is about; nil for all.
func (s *Snapshot) asks(near map[Ref]bool) (out []ask, left int) {
	var list []*pod
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil && (near == nil || near[refOf("pod", p)]) {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(a, b *pod) int { return rank(a) - rank(b) })
	sent := s.sentTo()
	taken := map[Ref]int{}
	for _, p := range list {
		ports := s.portsToDial(p, sent[refOf("pod", p)])
		if owner := s.owner(p); owner != (Ref{}) && len(ports) > 0 {
			if taken[owner]++; taken[owner] > dialPods {
				left += len(ports)
				continue
			}
		}
		out = append(out, ports...)
	}
	return out, left
}

// rank has the pods first that are not ready.
func rank(p *pod) int {
	if ready(p) {
		return 1
	}
	return 0
}

// sending are the Services that send to a port, and whether one of them says that it speaks HTTP. There are none of the port of a headless
// Service that is another one in its pods: it is dialled, since callers of the Service's name may go there.
type sending struct {
	by   []Ref
	http bool
}

// sentTo are the TCP ports of each pod that Services send to.
func (s *Snapshot) sentTo() map[Ref]map[int32]sending {
	out := map[Ref]map[int32]sending{}
	for i := range s.Services {
		v := &s.Services[i]
		for _, p := range s.selected(v.Namespace, v.Spec.Selector) {
			r := refOf("pod", p)
			if out[r] == nil {
				out[r] = map[int32]sending{}
			}
			for _, sp := range v.Spec.Ports {
				n, found := targetOf(p, sp)
				if !found || cmp.Or(sp.Protocol, corev1.ProtocolTCP) != corev1.ProtocolTCP {
					continue
				}
				if v.Spec.ClusterIP == corev1.ClusterIPNone {
					if _, there := out[r][sp.Port]; !there {
						out[r][sp.Port] = sending{}
					}
				}
				to := out[r][n]
				out[r][n] = sending{append(to.by, refOf("service", v)), to.http || saysHTTP(sp.Name, sp.AppProtocol)}
			}
		}
	}
	return out
}

// targetOf is the number of the port of p that a Service's goes to; false for a name that no container has.
func targetOf(p *pod, sp corev1.ServicePort) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		return cmp.Or(sp.TargetPort.IntVal, sp.Port), true
	}
	for _, c := range containersOf(p) {
		for _, port := range c.Ports {
			if port.Name == sp.TargetPort.StrVal {
				return port.ContainerPort, true
			}
		}
	}
	return 0, false
}

// saysHTTP tells whether a port is said to speak HTTP, by its name or its application protocol.
func saysHTTP(name string, protocol *string) bool {
	if protocol != nil {
		return slices.Contains([]string{"http", "kubernetes.io/ws"}, strings.ToLower(*protocol))
	}
	first, _, _ := strings.Cut(name, "-")
	return first == "http" || first == "web"
}

// portsToDial are those that containers of p that run declare, that probes ask, and that Services send to.
func (s *Snapshot) portsToDial(p *pod, sent map[int32]sending) (out []ask) {
	at := func(port int32) *ask {
		if i := slices.IndexFunc(out, func(a ask) bool { return a.port == port }); i >= 0 {
			return &out[i]
		}
		out = append(out, ask{place: placeOf(p, port), ip: p.Status.PodIP, http: sent[port].http})
		return &out[len(out)-1]
	}
	running := 0
	var answered []int32 // to a probe that goes on, and wants more than a connection
	for _, c := range containersOf(p) {
		if c.status.State.Running == nil || c.init && !c.sidecar() {
			continue
		}
		running++
		for _, port := range c.Ports {
			if cmp.Or(port.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
				a := at(port.ContainerPort)
				a.http = a.http || saysHTTP(port.Name, nil)
			}
		}
		for _, probe := range c.probes() {
			if n, has := probe.numberIn(c); has {
				a := at(n)
				e := s.failure(p, c, probe)
				a.proved = a.proved || c.status.Ready && e == nil && s.hasRun(c, probe)
				a.refused = a.refused || e != nil && strings.Contains(e.Message, "connection refused") && !s.startingContainer(p, c)
				a.tls = a.tls || probe.TCPSocket != nil
				if probe.TCPSocket == nil && probe.kind != "startup" && c.status.Ready && e == nil && s.hasRun(c, probe) {
					answered = append(answered, n)
				}
			}
		}
	}
	if running == len(containersOf(p)) || running > 0 && ready(p) {
		for n := range sent {
			at(n)
		}
	}
	for i := range out {
		out[i].http = out[i].http && !slices.Contains(answered, out[i].port)
	}
	slices.SortFunc(out, func(a, b ask) int { return cmp.Compare(a.port, b.port) })
	return out
}

// dial fills in what the ports answer.
func (s *Snapshot) dial(ctx context.Context, k *kube.Client, near map[Ref]bool) {
	asks, left := s.asks(near)
	s.answers = map[place]answer{}
	asks = slices.DeleteFunc(asks, func(a ask) bool {
		if a.proved {
			s.answers[a.place] = answer{address: open}
		}
		return a.proved && !a.tls && !a.http
	})
	if len(asks) > dialPorts {
		left += len(asks) - dialPorts
		asks = asks[:dialPorts]
	}
	if len(asks) == 0 {
		return
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	answers := make([]answer, len(asks))
	var may mayDial
	// All are knocked at before one is asked on, for which programs that hang take their time.
	atOnce(dialAtOnce, len(asks), func(i int) { answers[i] = asks[i].knock(ctx, k, &may) })
	more := s.elsewhere(asks, answers)
	others := make([]answer, len(more))
	atOnce(dialAtOnce, len(asks)+len(more), func(i int) {
		if i < len(asks) {
			asks[i].askOn(ctx, k, &may, &answers[i])
		} else {
			others[i-len(asks)] = more[i-len(asks)].knockQuietly(ctx, k, &may)
		}
	})
	if may.notForward.Load() {
		s.Unread = append(s.Unread, Unread{Resource: "pods/portforward", Why: mayNot, Checks: []string{"ports"}})
	}
	if may.notProxy.Load() {
		s.Unread = append(s.Unread, Unread{Resource: "pods/proxy", Why: mayNot})
	}
	d := Dialled{Left: left, Seconds: time.Since(begin).Seconds()}
	seen := map[Ref]bool{}
	for i, a := range asks {
		if answers[i].loopback != unknown || answers[i].address != unknown {
			s.answers[a.place] = answers[i]
		}
		if answers[i].loopback == unknown && (answers[i].address == unknown || answers[i].address == silent) {
			d.Left++ // nothing was learnt of the program
			continue
		}
		d.policed(s, a.place, answers[i])
		d.Ports++
		seen[Ref{"pod", a.namespace, a.pod}] = true
	}
	for i, a := range more {
		if others[i].listens() {
			s.answers[a.place] = others[i]
		}
		if others[i] != (answer{}) {
			d.Ports++
		}
	}
	d.Pods = len(seen)
	s.Dialled = &d
}

// usualPorts are those at which programs listen that nobody has told where.
var usualPorts = []int32{80, 443, 3000, 4000, 5000, 8000, 8080, 8081, 8443, 8888, 9000, 9090}

// maxNumbers is how many of a pod's are tried.
const maxNumbers = 24

// elsewhere are the ports at which the program may listen in the pods in which something was found to be closed: those that the arguments
// and the environment of their containers have numbers of, and the usual ones.
func (s *Snapshot) elsewhere(asks []ask, answers []answer) (out []ask) {
	asked, of := map[place]bool{}, map[Ref]string{}
	for _, a := range asks {
		asked[a.place] = true
	}
	for i, a := range asks {
		p := s.podAt(a.place)
		if answers[i].listens() || answers[i].loopback != closed && answers[i].address != closed || p == nil {
			continue
		}
		owner := cmp.Or(s.owner(p), refOf("pod", p))
		if first, more := of[owner]; p.Spec.HostNetwork || more && first != p.Name { // then they are the node's; or another pod tells
			continue
		}
		of[owner] = p.Name
		for _, n := range append(numbersOf(p), usualPorts...) {
			to := placeOf(p, n)
			if _, known := s.answers[to]; known || asked[to] {
				continue
			}
			if asked[to] = true; len(out) < elsewherePorts {
				out = append(out, ask{place: to, ip: a.ip})
			}
		}
	}
	return out
}

// numbersOf are the numbers in what a pod's containers are started with that may be ports, in order.
func numbersOf(p *pod) (out []int32) {
	for _, c := range containersOf(p) {
		words := slices.Concat(c.Command, c.Args)
		for _, e := range c.Env {
			words = append(words, e.Value)
		}
		for _, w := range words {
			for part := range strings.FieldsFuncSeq(w, func(r rune) bool { return strings.ContainsRune(" \t\n:=,;/", r) }) {
				if n, err := strconv.ParseUint(part, 10, 16); err == nil && n >= 80 && len(out) < maxNumbers && !slices.Contains(out, int32(n)) {
					out = append(out, int32(n))
				}
			}
		}
	}
	return out
}

// policed notes a port that a policy seems to keep the API server from.
func (d *Dialled) policed(s *Snapshot, at place, a answer) {
	p := s.podAt(at)
	if p == nil || a.address != silent || !a.prompt {
		return
	}
	if by := s.keepsSome(p, at.port); len(by) > 0 {
		text := s.policedText(p, at.port, by)
		if !slices.Contains(d.Policed, text) {
			d.Policed = append(d.Policed, text)
		}
	}
}

// policedText names a port and the policies that hold for it.
func (s *Snapshot) policedText(p *pod, port int32, by []*networkingv1.NetworkPolicy) string {
	return fmt.Sprintf("port %d of %s (%s)", port, cmp.Or(s.owner(p), refOf("pod", p)), policyNames(by))
}

// mayDial is what was found out of the rights: once refused, a way is not tried again.
type mayDial struct{ notForward, notProxy atomic.Bool }

// try knocks at the port in one way; not is of that one.
func (a ask) try(ctx context.Context, not *atomic.Bool, how func(ctx context.Context, namespace, pod string, port int) error) reply {
	if not.Load() {
		return unknown
	}
	own, cancel := context.WithTimeout(ctx, knockTime)
	defer cancel()
	err := how(own, a.namespace, a.pod, int(a.port))
	switch {
	case err == nil:
		return open
	case errors.Is(err, syscall.ECONNREFUSED):
		return closed
	case hint.CodeOf(err) == hint.Forbidden:
		not.Store(true)
	case own.Err() != nil && ctx.Err() == nil && !kube.GaveUp(err):
		return silent
	}
	return unknown
}

// knockQuietly finds out whether something listens at a port of which nobody has said so: it gets a request at its address only if its loopback is open.
func (a ask) knockQuietly(ctx context.Context, k *kube.Client, may *mayDial) (out answer) {
	switch out.loopback = a.try(ctx, &may.notForward, k.Knock); out.loopback {
	case open:
		out.address = a.try(ctx, &may.notProxy, k.KnockAddress)
	case silent:
		out.loopback = unknown // it was not asked for an answer
	}
	return out
}

// knock finds out whether one port is open: at its address, unless a probe has done so, and where that gives nothing good on its loopback,
// unless askOn does that.
func (a ask) knock(ctx context.Context, k *kube.Client, may *mayDial) (out answer) {
	if a.proved {
		out.address = open
	} else if out.address = a.try(ctx, &may.notProxy, k.KnockAddress); out.address != open && out.address != closed {
		if out.mayNot = may.notProxy.Load(); a.refused {
			out.address = closed
		}
	}
	if out.address != open && (!a.http || out.address == closed) {
		if out.loopback = a.try(ctx, &may.notForward, k.Knock); out.loopback == silent {
			out.loopback = unknown // it was not asked for an answer
		}
	}
	return out
}

// askOn asks for more than that a port is open, and puts it into out: on the loopback for an answer to a request, if it is said to give one
// and its address neither refuses nor has given one, and for a TLS handshake.
func (a ask) askOn(ctx context.Context, k *kube.Client, may *mayDial, out *answer) {
	if a.http && (a.proved || out.address == silent || out.address == unknown) && !may.notForward.Load() {
		begin := time.Now()
		out.loopback = a.ask(ctx, k, may)
		out.prompt = out.loopback == open && time.Since(begin) < knockTime
	}
	// Who speaks TLS is not silent: it ends what it does not understand.
	if a.tls && out.loopback != closed && out.loopback != silent && !may.notForward.Load() {
		ctx, cancel := context.WithTimeout(ctx, knockTime)
		defer cancel()
		if out.tls = k.SpeaksTLS(ctx, a.namespace, a.pod, int(a.port)); out.tls {
			out.loopback = open
		}
	}
}

// ask has a port on its loopback answer a request.
func (a ask) ask(ctx context.Context, k *kube.Client, may *mayDial) reply {
	own, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answers, err := k.Ask(own, a.namespace, a.pod, int(a.port))
	switch {
	case answers:
		return open
	case errors.Is(err, syscall.ECONNREFUSED):
		return closed
	case err == nil && ctx.Err() == nil:
		return silent
	case hint.CodeOf(err) == hint.Forbidden:
		may.notForward.Store(true)
	}
	return unknown
}

// dialled is evidence of what a port answered.
func (f *Finding) dialled(pod Ref, port int32, a answer, at time.Time) {
	says := map[reply]string{open: "something listens", closed: "connection refused", silent: "a GET of / is not answered in time", unknown: "not asked, or no answer"}
	address := says[a.address]
	if a.mayNot {
		address += ", for your account may not use pods/proxy"
	}
	f.State = append(f.State,
		Evidence{From: fmt.Sprintf("%s port %d on its loopback", pod, port), Says: says[a.loopback], At: at},
		Evidence{From: fmt.Sprintf("%s port %d at its address", pod, port), Says: address, At: at})
	if a.inside != unknown {
		says[silent] = "no answer"
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s port %d at its address, from a pod", pod, port), Says: says[a.inside], At: at})
	}
}

// listens is evidence of the pod's other ports at which something does.
func (f *Finding) listens(others []string, at time.Time) {
	f.State = append(f.State, Evidence{From: f.Object.String() + " other ports", Says: "something listens at " + list(others), At: at})
}
