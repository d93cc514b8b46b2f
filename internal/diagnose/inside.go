package diagnose

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"bridge/internal/hint"
	"bridge/internal/probe"
)

// Dial connects from within the cluster.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// ErrNotDialled is Dial's error where the fault is the way to the pod.
var ErrNotDialled = errors.New("not dialled")

// From is a pod of ours, as others in the cluster see it.
type From struct {
	Namespace string
	// Labels are those by which policies select it.
	Labels map[string]string
	Dial   Dial
}

// Inside has a pod in the cluster dial for as long as use runs.
type Inside func(ctx context.Context, use func(ctx context.Context, from From) error) error

// probing is one of a container's probes.
type probing struct {
	container Ref // partOf its pod
	kind      string
}

func (r liveRun) probing() probing {
	return probing{partOf(refOf("pod", r.pod), r.c.Name), r.probe.kind}
}

// dialInside has a pod dial what others in the cluster call: the pods' ports at their addresses, and what no pod stands behind; and run there the
// probes that ask a port. Without inside it only counts what is beyond the pods.
func (s *Snapshot) dialInside(ctx context.Context, inside Inside, near map[Ref]bool) {
	far := s.beyondPods(near)
	if len(far) > 0 {
		s.Beyond = &Beyond{Left: len(far), asked: inside != nil}
	}
	ports, _ := s.asks(near)
	ports = slices.DeleteFunc(ports, func(a ask) bool { return a.ip == "" })
	if inside == nil || len(far)+len(ports) == 0 {
		return
	}
	far, ports = far[:min(len(far), dialPorts)], ports[:min(len(ports), dialPorts)]
	runs := s.probesAt(ports)
	known, replies, outcomes := make([]bool, len(far)), make([]reply, len(ports)), make([]probe.Outcome, len(runs))
	err := inside(ctx, func(ctx context.Context, from From) error {
		s.from = from
		ctx, cancel := context.WithTimeout(ctx, beyondTime)
		defer cancel()
		var todo []func()
		for i := range ports {
			todo = append(todo, func() { replies[i] = ports[i].from(ctx, from.Dial) })
		}
		for i := range far {
			todo = append(todo, func() { known[i] = far[i].knock(ctx, from.Dial) })
		}
		for i := range runs {
			todo = append(todo, func() { outcomes[i], _, _ = runs[i].run(ctx, nil, &from) })
		}
		atOnce(dialAtOnce, len(todo), func(i int) { todo[i]() })
		return nil
	})
	if err != nil {
		why := err.Error()
		if next := hint.Of(err); next != "" {
			why += "; " + next
		}
		s.Unread = append(s.Unread, Unread{Resource: "what a pod in the cluster reaches", Why: oneLine(why)})
	}
	for i, b := range far {
		if known[i] {
			s.Beyond.Dialled, s.Beyond.Left = s.Beyond.Dialled+1, s.Beyond.Left-1
			s.beyond = append(s.beyond, b)
		}
	}
	for i, a := range ports {
		if replies[i] != unknown {
			s.reached(a.place, replies[i])
		}
	}
	s.probed = map[probing]probe.Outcome{}
	for i, o := range outcomes {
		if o.Result != probe.Unknown {
			s.probed[runs[i].probing()] = o
		}
	}
}

// oneLine has a list of lines, as of rights that are missing, in one.
func oneLine(text string) string {
	return strings.NewReplacer(":\n  ", ": ", "\n  ", "; ", "\n", "; ").Replace(text)
}

// probesAt are the probes of running containers that ask these ports.
func (s *Snapshot) probesAt(ports []ask) (out []liveRun) {
	for i := range s.Pods {
		p := &s.Pods[i]
		for _, c := range containersOf(p) {
			if c.status.State.Running == nil {
				continue
			}
			for _, probe := range c.probes() {
				n, has := probe.numberIn(c)
				if has && slices.ContainsFunc(ports, func(a ask) bool { return a.place == placeOf(p, n) }) {
					out = append(out, liveRun{p, c, probe})
				}
			}
		}
	}
	return out
}

// from dials a port at its address.
func (a ask) from(ctx context.Context, dial Dial) reply {
	switch failed, known := knock(ctx, dial, "tcp", net.JoinHostPort(a.ip, strconv.Itoa(int(a.port)))); {
	case !known:
		return unknown
	case failed == "":
		return open
	case failed == refused:
		return closed
	}
	return silent
}

// reached notes what a pod of ours has met at a port.
func (s *Snapshot) reached(at place, r reply) {
	a := s.answers[at]
	a.inside = r
	s.answers[at] = a
	if s.Dialled == nil {
		s.Dialled = &Dialled{}
	}
	s.Dialled.Inside++
	if p := s.podAt(at); p != nil && a.kept() {
		if by := s.keepsOurs(p, at.port); len(by) > 0 {
			if text := s.policedText(p, at.port, by); !slices.Contains(s.Dialled.Kept, text) {
				s.Dialled.Kept = append(s.Dialled.Kept, text)
			}
		}
	}
}

// kept tells whether something keeps our pod from a port at which something listens.
func (a answer) kept() bool {
	return a.inside == silent && (a.address == open || a.loopback == open) || a.inside == closed && a.address == open
}

// keepsOurs are the policies that may keep our pod from a TCP port of p: those that do not let everybody in there, and those that hold for what it
// sends itself.
func (s *Snapshot) keepsOurs(p *pod, port int32) []*networkingv1.NetworkPolicy {
	return append(s.keepsSome(p, port), s.holdsOurs()...)
}

// holdsOurs are the policies that hold for what our pod sends.
func (s *Snapshot) holdsOurs() (out []*networkingv1.NetworkPolicy) {
	for i := range s.Policies {
		p := &s.Policies[i]
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err == nil && p.Namespace == s.from.Namespace && slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) && selector.Matches(labels.Set(s.from.Labels)) {
			out = append(out, p)
		}
	}
	return out
}

// notReached is about a port that our pod does not reach, where something listens and no policy is known to keep it away.
func (s *Snapshot) notReached(p *pod, c container, u use) (Finding, bool) {
	a := s.answers[placeOf(p, u.port)]
	if !a.kept() || s.isUnread(policies) || len(s.keepsOurs(p, u.port)) > 0 {
		return Finding{}, false
	}
	f := s.ofContainer(p, c, "port-not-reached", Warning, Network)
	f.because = append(f.because, partOf(f.Object, c.Name))
	f.dialled(f.Object, u.port, a, s.Now)
	f.Summary = fmt.Sprintf("something listens at port %d, which %s, and a pod in %s does not reach it", u.port, u.whose(c), s.from.Namespace)
	f.Why = "who calls it from another pod may wait in vain, too"
	f.Next = []string{
		"no NetworkPolicy holds it back: see whether the network plugin has policies of its own, and whether pods of other nodes reach " + p.Spec.NodeName + ": kubectl get pods -A -o wide --field-selector spec.nodeName=" + p.Spec.NodeName,
	}
	return f, true
}
