package swap

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/route"
)

// StandbyFacts is what mode standby asks of the cluster beside Facts.
type StandbyFacts struct {
	// Lacking are the rights without which it cannot be.
	Lacking []rights.Right
	// Policies are the namespace's; PoliciesUnknown is whether they may not be read, and MayAdmit whether one may be created.
	Policies        []networkingv1.NetworkPolicy
	PoliciesUnknown bool
	MayAdmit        bool
}

// GatherStandby reads what mode standby is planned from, into f. It changes nothing.
func GatherStandby(ctx context.Context, k *kube.Client, f *Facts) error {
	lacking, err := rights.Missing(ctx, k, append(rights.Moving(), rights.Standing()...))
	if err != nil {
		return err
	}
	admit, err := rights.Missing(ctx, k, rights.Admitting())
	if err != nil {
		return err
	}
	f.Standby = StandbyFacts{Lacking: lacking, MayAdmit: len(admit) == 0}
	policies, err := k.Clientset.NetworkingV1().NetworkPolicies(k.Namespace).List(ctx, metav1.ListOptions{})
	switch {
	case err == nil:
		f.Standby.Policies = policies.Items
	case kube.Transient(err):
		return kube.Explain(err, "list networkpolicies in "+k.Namespace)
	default:
		f.Standby.PoliciesUnknown = true
	}
	return nil
}

// Standby is what proxies take that stand before the originals. All of it is the Lease's.
type Standby struct {
	// Originals is the Service by which the proxies find them, with the selector of the originals' pods.
	Originals *corev1.Service
	// Proxies is a Service that nobody calls: by its endpoints it is known when the cluster has the proxies for ready, before
	// callers are sent to them.
	Proxies *corev1.Service
	// Policies admit callers to the proxies, and these to the originals, where others keep them out.
	Policies []*networkingv1.NetworkPolicy

	// Members tells the proxies who has which requests; nil where nobody can share them.
	Members *corev1.ConfigMap

	pass []corev1.ContainerPort // ports that are the originals' alone
}

func (s *Standby) pods(choice route.Choice) *proxypod.Standby {
	if s == nil {
		return nil
	}
	return &proxypod.Standby{Pass: s.pass, Mirror: choice.Mirror, Members: shareable(choice)}
}

func (s *Standby) passed() (ports []int32) {
	if s != nil {
		for _, p := range s.pass {
			ports = append(ports, p.ContainerPort)
		}
	}
	return ports
}

// objects are those that it consists of, as they are created.
func (s *Standby) objects() (out []Object) {
	if s == nil {
		return nil
	}
	for _, v := range []*corev1.Service{s.Originals, s.Proxies} {
		out = append(out, Object{APIVersion: "v1", Kind: "Service", Namespace: v.Namespace, Name: v.Name})
	}
	for _, n := range s.Policies {
		out = append(out, Object{APIVersion: n.APIVersion, Kind: n.Kind, Namespace: n.Namespace, Name: n.Name})
	}
	if m := s.Members; m != nil {
		out = append(out, Object{APIVersion: m.APIVersion, Kind: m.Kind, Namespace: m.Namespace, Name: m.Name})
	}
	return out
}

// insist is the way out of mode standby.
func (p *Plan) insist() string {
	how := "--mode replace stops the original, and takes its place"
	if b := boundOf(p.target, p.flags); b != nil {
		how = b.way
	}
	if p.Choice.All() {
		return how
	}
	return "without " + p.Choice.String() + ": " + how
}

// standBy refuses what mode standby cannot do, and works out which ports are the originals' alone. services are those that select
// the target.
func (p *Plan) standBy(f Facts, o Options, services []corev1.Service) error {
	d := f.Workload
	refuse := func(next, format string, args ...any) error {
		return hint.Newf(hint.Usage, next, "%s cannot be swapped in mode standby: %w", d.Target(), fmt.Errorf(format, args...))
	}
	own := slices.ContainsFunc(f.Services, func(s corev1.Service) bool { return owns(d, s) })
	old, err := older(d, f.Pods)
	if err != nil {
		return err
	}
	switch {
	case len(f.Standby.Lacking) > 0:
		return hint.Newf(hint.Forbidden, "the built-in role edit has that; "+p.insist(),
			"%s cannot be swapped in mode standby: your account may not %s", d.Target(), rightList(f.Standby.Lacking))
	case len(services) == 0 && len(p.beside) > 0:
		return refuse(p.insist(), "no Service selects it but %s, whose callers want single pods, and which stays as it is", serviceList(p.beside))
	case len(services) == 0:
		return refuse(p.insist(), "no Service selects it, and callers of the pods' own addresses cannot be moved to a proxy")
	case d.Unseen && own:
		return refuse(unseenWay, "%s, and for an update it needs the Services that are its own (%s)", unseen, hint.Printable(serviceList(d.Owned)))
	case d.Updating && own:
		return refuse(boundOf(d, f.Flags).way, "an update is under way, for which its controller needs the Services that are its own (%s)", hint.Printable(serviceList(d.Owned)))
	case d.Subsets != "":
		return refuse(p.insist(), "a mesh finds its pods by the subsets of destinationrule %s, which select labels that proxies do not have in this mode", hint.Printable(d.Subsets))
	case own && len(old) > 0:
		return refuse("swap it when they have ended (scaleDownDelaySeconds); or "+p.insist(),
			"pods of an older version are left (%s): the proxies would pass callers on to them too, and nobody would stop them while it is swapped", strings.Join(old, ", "))
	case d.Ready == 0 && d.Kind == kube.Pod:
		return refuse(p.insist(), "it is not Ready to answer what this machine cannot take")
	case d.Ready == 0:
		return refuse(p.insist(), "none of its pods is Ready to answer what this machine cannot take")
	}
	for _, s := range services {
		for _, q := range s.Spec.Ports {
			if q.Protocol != "" && q.Protocol != corev1.ProtocolTCP {
				return refuse(p.insist(), "port %d/%s of service/%s would be lost: only TCP is passed on", q.Port, q.Protocol, s.Name)
			}
		}
	}
	if len(o.Ports) > 0 {
		if i := slices.IndexFunc(p.Ports, func(q Port) bool { return q.UDP }); i >= 0 {
			return refuse(p.insist()+"; or map the port of TCP alone", "port %s: only TCP comes to this machine", p.Ports[i].remote())
		}
	}
	p.Ports = slices.DeleteFunc(slices.Clone(p.Ports), func(q Port) bool { return q.UDP })
	if len(p.Ports) == 0 {
		return refuse(p.insist(), "it has no TCP port")
	}
	p.Standby = &Standby{}
	add := func(name string, port int32) {
		if !slices.ContainsFunc(p.Ports, func(q Port) bool { return q.Remote == port }) && !slices.Contains(p.Standby.passed(), port) {
			p.Standby.pass = append(p.Standby.pass, corev1.ContainerPort{Name: name, ContainerPort: port})
		}
	}
	for _, q := range p.have {
		if !q.UDP {
			add(q.Name, q.Remote)
		}
	}
	for _, c := range slices.Concat(d.Template.Spec.InitContainers, d.Template.Spec.Containers) {
		for _, q := range c.Ports {
			if c.Name != p.container && (q.Protocol == "" || q.Protocol == corev1.ProtocolTCP) {
				add(q.Name, q.ContainerPort)
			}
		}
	}
	return nil
}

// standBefore makes the objects, and says what moving these Services means.
func (p *Plan) standBefore(f Facts, moved []corev1.Service) error {
	d, lease := f.Workload, p.Proxy.Name
	if len(moved) == 0 {
		return hint.Newf(hint.Usage, p.insist(), "%s cannot be swapped in mode standby: every Service that selects it selects others' pods too", d.Target())
	}
	selector := maps.Clone(d.Selector.MatchLabels)
	if len(d.Selector.MatchExpressions) > 0 || len(selector) == 0 {
		// A Service knows no expressions. The template's labels are what its pods have, but for those of a rollout under way.
		selector = maps.Clone(d.Template.Labels)
		maps.DeleteFunc(selector, ofOne)
	}
	var ports []proxypod.OriginalsPort
	for _, q := range p.Ports {
		ports = append(ports, p.originalsPort(q.Name, q.Remote))
	}
	for _, q := range p.Standby.pass {
		ports = append(ports, p.originalsPort(q.Name, q.ContainerPort))
	}
	p.Standby.Originals = proxypod.Originals(lease, d.Namespace, selector, ports)
	p.Standby.Proxies = proxypod.Proxies(lease, d.Namespace)
	if shareable(p.Choice) {
		p.Standby.Members = proxypod.Members(lease, d.Namespace, nil) // firstMember says what it says
	}
	if err := p.admit(f); err != nil {
		return err
	}
	p.Notes = append(p.Notes, p.goesOn()...)
	p.Notes = append(p.Notes,
		"callers reach the original through the proxies: it sees their addresses and no longer the callers', and session affinity is lost",
		"connections that are open to the original now stay there until their callers open others")
	for _, s := range moved {
		switch {
		case s.Spec.ClusterIP == corev1.ClusterIPNone:
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s is headless: its callers come to the proxies when they look its name up again", s.Name))
		case s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
			s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal:
			p.Notes = append(p.Notes, fmt.Sprintf("service/%s keeps traffic to the node where it arrives (trafficPolicy Local): on nodes without a proxy it is refused", s.Name))
		}
	}
	return nil
}

// originalsPort is a port of the originals' Service: by its name, if one container alone has that, since pods of a rollout under way may have
// another number.
func (p *Plan) originalsPort(name string, number int32) proxypod.OriginalsPort {
	named := 0
	for _, c := range p.target.Template.Spec.Containers {
		for _, q := range c.Ports {
			if q.Name == name {
				named++
			}
		}
	}
	if name != "" && named == 1 {
		return proxypod.OriginalsPort{Port: number, Target: intstr.FromString(name)}
	}
	return proxypod.OriginalsPort{Port: number, Target: intstr.FromInt32(number)}
}

// admit adds network policies where there are some that hold for the originals, for callers by the originals' labels, or for the
// proxies, which have none of these.
func (p *Plan) admit(f Facts) error {
	if f.Standby.PoliciesUnknown {
		p.Notes = append(p.Notes, "your account may not read network policies: where they hold for the original, they keep the proxies from it, which are not Ready then; where they let callers out by its labels, they keep these from the proxies; where they mean pods without its labels, others may reach the original by the proxies")
		return nil
	}
	lease, ns := p.Proxy.Name, p.Proxy.Namespace
	a := admitting(f.Standby.Policies, f.Workload.Template.Labels, p.Proxy.Spec.Template.Labels,
		*f.Workload.Selector, proxypod.ProxySelector(lease))
	if len(a.opening) > 0 {
		return hint.Newf(hint.Usage, fmt.Sprintf("leave bridge's pods out of the selectors that mean such pods, with the expression {key: %s, operator: DoesNotExist}; or %s", proxypod.ProxyLabel, p.insist()),
			"%s cannot be swapped in mode standby: by network policies that mean pods without its labels, as the proxies are (%s), others could call it through the proxies than may call it now",
			f.Workload.Target(), hint.Printable(strings.Join(a.opening, ", ")))
	}
	if a.toOriginals != nil {
		p.Standby.Policies = append(p.Standby.Policies, proxypod.Policy(lease, ns, proxypod.OriginalsName(lease), *a.toOriginals))
	}
	if a.ofProxies != nil {
		p.Standby.Policies = append(p.Standby.Policies, proxypod.Policy(lease, ns, proxypod.ProxiesName(lease), *a.ofProxies))
	}
	for i, spec := range a.ofCallers {
		p.Standby.Policies = append(p.Standby.Policies, proxypod.Policy(lease, ns, proxypod.CallersName(lease, i), spec))
	}
	if len(f.Standby.Policies) > 0 {
		p.Notes = append(p.Notes, "network policies of other namespaces are not seen: where one lets callers out by the original's labels, it keeps them from the proxies")
	}
	switch names := strings.Join(a.because, ", "); {
	case len(p.Standby.Policies) == 0:
	case !f.Standby.MayAdmit:
		return hint.Newf(hint.Forbidden, "the built-in role edit has that; "+p.insist(),
			"%s cannot be swapped in mode standby: network policies (%s) keep callers from the proxies, or these from it, and your account may not %s",
			f.Workload.Target(), names, rightList(rights.Admitting()))
	default:
		p.Notes = append(p.Notes, fmt.Sprintf("network policies hold here (%s): bridge adds its own, which let the proxies take the original's callers and pass them on", names))
	}
	return nil
}

// create makes the objects, owned by the Lease, and returns the address of the originals' Service.
func (s *Standby) create(ctx context.Context, x changer) (address string, err error) {
	options := metav1.CreateOptions{FieldManager: proxypod.FieldManager}
	lease, set := x.claim.lease, x.kube.Clientset
	for _, n := range s.Policies {
		n := n.DeepCopy()
		n.OwnerReferences = proxypod.OwnedBy(lease)
		err := proxypod.Afresh(ctx, func() error {
			_, err := set.NetworkingV1().NetworkPolicies(n.Namespace).Create(ctx, n, options)
			return err
		})
		if err := fault.After(fault.Admitted, err); err != nil {
			return "", kube.Explain(err, "create networkpolicy "+n.Name+" in "+n.Namespace)
		}
	}
	for _, v := range []*corev1.Service{s.Proxies, s.Originals} {
		v := v.DeepCopy()
		v.OwnerReferences = proxypod.OwnedBy(lease)
		err := proxypod.Afresh(ctx, func() error {
			created, err := set.CoreV1().Services(v.Namespace).Create(ctx, v, options)
			if err == nil {
				address = created.Spec.ClusterIP
			}
			return err
		})
		if err := fault.After(fault.Serving, err); err != nil {
			return "", kube.Explain(err, "create service "+v.Name+" in "+v.Namespace)
		}
	}
	return address, nil
}

// steps are those of a dry run, in the order in which create makes them.
func (s *Standby) steps(k *kube.Client, create metav1.CreateOptions) (out []Step) {
	for _, n := range s.Policies {
		out = append(out, Step{
			Verb: "create", Name: "networkpolicy/" + n.Name, Object: n, Why: "so that the network lets the proxies do their work",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.NetworkingV1().NetworkPolicies(n.Namespace).Create(ctx, n, create)
				return err
			},
		})
	}
	service := func(v *corev1.Service, why string) Step {
		return Step{
			Verb: "create", Name: "service/" + v.Name, Object: v, Why: why,
			try: func(ctx context.Context) error {
				_, err := k.Clientset.CoreV1().Services(v.Namespace).Create(ctx, v, create)
				return err
			},
		}
	}
	if m := s.Members; m != nil {
		out = append(out, Step{
			Verb: "create", Name: "configmap/" + m.Name, Object: m, Why: "tells the proxies who has which requests",
			try: func(ctx context.Context) error {
				_, err := k.Clientset.CoreV1().ConfigMaps(m.Namespace).Create(ctx, m, create)
				return err
			},
		})
	}
	return append(out, service(s.Proxies, "by whose endpoints bridge sees when the proxies can take callers"), service(s.Originals, "by which the proxies find the originals"))
}

// awaitCollected waits until the garbage collector has taken the objects of a swap in mode standby, which the Lease owned, as far as this
// user can see.
func awaitCollected(ctx context.Context, k *kube.Client, u *Undo) {
	ctx, cancel := context.WithTimeout(ctx, keeperGoneTimeout)
	defer cancel()
	for _, o := range u.Created {
		var get func(context.Context) error
		switch o.Kind {
		case "Service":
			get = func(ctx context.Context) error {
				_, err := k.Clientset.CoreV1().Services(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
				return err
			}
		case "NetworkPolicy":
			get = func(ctx context.Context) error {
				_, err := k.Clientset.NetworkingV1().NetworkPolicies(o.Namespace).Get(ctx, o.Name, metav1.GetOptions{})
				return err
			}
		default:
			continue
		}
		awaitGone(ctx, get)
	}
}
