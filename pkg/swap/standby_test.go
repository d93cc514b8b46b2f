package swap

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/internal/route"
	"bridge/pkg/tunnel"
)

// standbyFacts are of a deployment that can stand by, with a policy that closes it.
func standbyFacts(t *testing.T) (Facts, Options) {
	t.Helper()
	f := facts(t, "orders.yaml")
	f.Source = carried
	f.Workload.Ready = 2
	f.Workload.Template.Spec.Containers[1].Ports = []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9102}}
	f.Standby.MayAdmit = true
	f.Standby.Policies = []networkingv1.NetworkPolicy{policy("web", map[string]string{"app": "orders"}, "web", networkingv1.PolicyTypeIngress), policy("web-out", map[string]string{"app": "web"}, "orders", networkingv1.PolicyTypeEgress)}
	return f, Options{Mode: ModeStandby, Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon, Ports: []string{"3000:http"}}
}

// policy admits pods with the label app=from to those that it selects.
func policy(name string, selects map[string]string, from string, types ...networkingv1.PolicyType) networkingv1.NetworkPolicy {
	p := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: selects}, PolicyTypes: types,
	}}
	if from != "" {
		peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}}
		for _, typ := range types {
			if typ == networkingv1.PolicyTypeIngress {
				p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
			} else {
				p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers}}
			}
		}
	}
	return p
}

func TestStandbyGolden(t *testing.T) {
	f, o := standbyFacts(t)
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	var parts []carry.Part
	for i := range f.Source.ConfigMaps {
		parts = append(parts, carry.Part{Name: strconv.Itoa(i), Files: map[string][]byte{"proxy": make([]byte, 1000+i)}})
	}
	d, err := p.DryRun(&kube.Client{}, parts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "standby.golden.yaml", string(b))
	for l := range p.Proxy.Spec.Template.Labels {
		if _, theirs := f.Workload.Template.Labels[l]; theirs {
			t.Errorf("the proxies have the target's label %s", l)
		}
	}
	if proxy := proxypod.WithOriginals(p.Proxy, "10.96.1.2"); !strings.Contains(strings.Join(proxy.Spec.Template.Spec.Containers[0].Args, " "), "--originals 10.96.1.2 ") {
		t.Errorf("the proxy's arguments are %q", proxy.Spec.Template.Spec.Containers[0].Args)
	}
}

func TestStandbyRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		code       hint.Code
		change     func(*Facts, *Options)
	}{
		{"no Service", "no Service selects it", hint.Usage, func(f *Facts, _ *Options) { f.Services = nil }},
		{"no original that answers", "none of its pods is Ready", hint.Usage, func(f *Facts, _ *Options) { f.Workload.Ready = 0 }},
		{"a Service of UDP", "port 53/UDP of service/orders would be lost", hint.Usage, func(f *Facts, _ *Options) {
			f.Services[0].Spec.Ports = append(f.Services[0].Spec.Ports, corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP})
		}},
		{"UDP asked for", "only TCP comes to this machine", hint.Usage, func(_ *Facts, o *Options) { o.Ports = []string{"1053:dns"} }},
		{"shared Services only", "selects others' pods too", hint.Usage, func(f *Facts, _ *Options) {
			f.Pods = append(f.Pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"app": "orders"}}})
		}},
		{"a right that is missing", "your account may not create services", hint.Forbidden, func(f *Facts, _ *Options) { f.Standby.Lacking = rights.Standing() }},
		{"a policy that opens the proxies", "mean pods without its labels, as the proxies are (plain), others could call it through the proxies", hint.Usage, func(f *Facts, _ *Options) {
			plain := policy("plain", nil, "batch", networkingv1.PolicyTypeIngress)
			plain.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpDoesNotExist}}
			f.Standby.Policies = append(f.Standby.Policies, plain)
		}},
		{"a policy that cannot be met", "network policies (web, web-out) keep callers from the proxies", hint.Forbidden, func(f *Facts, _ *Options) { f.Standby.MayAdmit = false }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, o := standbyFacts(t)
			c.change(&f, &o)
			_, err := NewPlan(f, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || hint.CodeOf(err) != c.code || !strings.Contains(hint.Of(err), "--mode replace") {
				t.Errorf("%v (%s), code %d; want %q", err, hint.Of(err), hint.CodeOf(err), c.want)
			}
		})
	}
}

// TestStandbyLeavesAlone what it need not touch.
func TestStandbyLeavesAlone(t *testing.T) {
	f, o := standbyFacts(t)
	f.Standby.Policies = []networkingv1.NetworkPolicy{policy("others", map[string]string{"app": "payments"}, "web", networkingv1.PolicyTypeIngress)}
	f.Workload.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpExists}}
	o.Ports = nil // UDP is not asked for, and stays
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Standby.Policies) > 0 {
		t.Errorf("policies without need: %+v", p.Standby.Policies)
	}
	if p.Undo.Replaces() || len(p.Undo.Changes) != 1 || string(p.Undo.Changes[0].Set) != `{"bridge.internal/proxy":"bridge-deployment-orders"}` {
		t.Errorf("changes %+v", p.Undo.Changes)
	}
	if s := p.Standby.Originals.Spec.Selector; s["track"] != "stable" || s["app"] != "orders" {
		t.Errorf("the originals are selected by %v", s)
	}
	for _, q := range p.Ports {
		if q.UDP {
			t.Errorf("port %v", q)
		}
	}
	for _, q := range p.Standby.Originals.Spec.Ports {
		if q.Port == 9090 && q.TargetPort != intstr.FromInt32(9090) || q.Port == 8080 && q.TargetPort != intstr.FromString("http") {
			t.Errorf("port %d of the originals is %v", q.Port, q.TargetPort)
		}
	}
}

func TestAdmitting(t *testing.T) {
	in, out := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	app := map[string]string{"app": "orders"}
	across := policy("a", map[string]string{"app": "web"}, "orders", out)
	across.Spec.Egress[0].Ports = []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("http"))}}
	across.Spec.Egress[0].To = append(across.Spec.Egress[0].To, networkingv1.NetworkPolicyPeer{PodSelector: across.Spec.Egress[0].To[0].PodSelector,
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "store"}},
	}, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8"}})
	originals := metav1.LabelSelector{MatchLabels: app}
	for _, c := range []struct {
		name string
		list []networkingv1.NetworkPolicy
		want string // the specs as YAML
	}{
		{"none", nil, "{}\n"},
		{"of others", []networkingv1.NetworkPolicy{policy("a", map[string]string{"app": "x"}, "web", in, out)}, "{}\n"},
		{"the original calls nobody", []networkingv1.NetworkPolicy{policy("a", app, "db", out)}, "{}\n"},
		{"callers are let out to all pods", []networkingv1.NetworkPolicy{{Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{out},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}},
		}}}, `
proxies:
  egress: [{to: [{podSelector: {matchLabels: {app: orders}}}]}, {to: [{podSelector: {}}]}]
  ingress: [{}]
  podSelector: {matchLabels: {bridge.internal/proxy: b}}
  policyTypes: [Ingress, Egress]
`},
		{"callers are let out by its labels", []networkingv1.NetworkPolicy{across, policy("b", map[string]string{"app": "batch"}, "orders", out), policy("c", nil, "orders", in)}, `
originals:
  ingress: [{from: [{podSelector: {matchLabels: {bridge.internal/proxy: b}}}]}]
  podSelector: {matchLabels: {app: orders}}
  policyTypes: [Ingress]
proxies:
  ingress: [{from: [{podSelector: {matchLabels: {app: orders}}}]}]
  podSelector: {matchLabels: {bridge.internal/proxy: b}}
  policyTypes: [Ingress]
callers 0:
  egress:
  - ports: [{port: http}]
    to: [{podSelector: {matchLabels: {bridge.internal/proxy: b}}}, {namespaceSelector: {matchLabels: {team: store}}, podSelector: {matchLabels: {bridge.internal/proxy: b}}}]
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
callers 1:
  egress: [{to: [{podSelector: {matchLabels: {bridge.internal/proxy: b}}}]}]
  podSelector: {matchLabels: {app: batch}}
  policyTypes: [Egress]
`},
		{"callers are let in", []networkingv1.NetworkPolicy{policy("a", app, "web", in)}, `
originals:
  ingress: [{from: [{podSelector: {matchLabels: {bridge.internal/proxy: b}}}]}]
  podSelector: {matchLabels: {app: orders}}
  policyTypes: [Ingress]
proxies:
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
  podSelector: {matchLabels: {bridge.internal/proxy: b}}
  policyTypes: [Ingress]
`},
		{"all is denied, and callers are let in", []networkingv1.NetworkPolicy{policy("deny", nil, "", in, out), policy("a", app, "web", in), policy("b", app, "db", out)}, `
originals:
  ingress: [{from: [{podSelector: {matchLabels: {bridge.internal/proxy: b}}}]}]
  podSelector: {matchLabels: {app: orders}}
  policyTypes: [Ingress]
proxies:
  egress: [{to: [{podSelector: {matchLabels: {app: orders}}}]}, {to: [{podSelector: {matchLabels: {app: db}}}]}]
  ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]
  podSelector: {matchLabels: {bridge.internal/proxy: b}}
  policyTypes: [Ingress, Egress]
`},
	} {
		got := admitting(c.list, app, map[string]string{"bridge.internal/proxy": "b"}, originals, proxypod.ProxySelector("b"))
		specs := map[string]*networkingv1.NetworkPolicySpec{}
		if got.toOriginals != nil {
			specs["originals"] = got.toOriginals
		}
		if got.ofProxies != nil {
			specs["proxies"] = got.ofProxies
		}
		for i := range got.ofCallers {
			specs["callers "+strconv.Itoa(i)] = &got.ofCallers[i]
		}
		var want map[string]networkingv1.NetworkPolicySpec
		if err := yaml.UnmarshalStrict([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		a, _ := yaml.Marshal(specs)
		b, _ := yaml.Marshal(want)
		if string(a) != string(b) {
			t.Errorf("%s:\n%swant\n%s", c.name, a, b)
		}
		if len(got.opening) > 0 {
			t.Errorf("%s: refused for %q", c.name, got.opening)
		}
	}
}

func TestStateOfSeveralTunnels(t *testing.T) {
	cause := errors.New("cut")
	for _, c := range []struct {
		a, b, want tunnel.Phase
	}{
		{tunnel.Ready, tunnel.Ready, tunnel.Ready},
		{tunnel.Ready, tunnel.Degraded, tunnel.Degraded},
		{tunnel.Ready, tunnel.Reconnecting, tunnel.Degraded},
		{tunnel.Connecting, tunnel.Ready, tunnel.Degraded},
		{tunnel.Connecting, tunnel.Reconnecting, tunnel.Reconnecting},
		{tunnel.Connecting, tunnel.Connecting, tunnel.Connecting},
	} {
		got := together([]tunnel.State{{Phase: c.a}, {Phase: c.b, Err: cause}})
		if got.Phase != c.want || c.b == tunnel.Reconnecting && !errors.Is(got.Err, cause) {
			t.Errorf("%v and %v: %v (%v)", c.a, c.b, got.Phase, got.Err)
		}
	}
}

// What a choice of requests adds to a plan.
func TestChoiceGolden(t *testing.T) {
	var out strings.Builder
	for _, flags := range [][]string{{"X-User=$(USER)", "baggage:user=ada"}, nil} {
		f, o := standbyFacts(t)
		var err error
		if o.Choice, err = route.ParseChoice(flags, strings.Repeat("/api", len(flags)/2), flags == nil); err != nil {
			t.Fatal(err)
		}
		p, err := NewPlan(f, o)
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.DryRun(&kube.Client{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range d.Notes {
			out.WriteString(n + "\n")
		}
		out.WriteString(p.Lease.Annotations[proxypod.MembersAnnotation] + "\n")
		for _, a := range p.Proxy.Spec.Template.Spec.Containers[0].Args {
			out.WriteString("  " + a + "\n")
		}
		all, err := d.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(all), "bridge.internal/members: '{") {
			t.Errorf("a dry run without the choice:\n%s", all)
		}
		got, err := membersOf(p.Lease)
		if err != nil || len(got.Members) != 1 || got.Members[0].Owner != "ada@laptop" || !got.Members[0].Equal(o.Choice) || got.Made {
			t.Errorf("the Lease has %+v, %v", got, err)
		}
		if m := p.Standby.Members; (m == nil) != o.Choice.Mirror || m != nil && !strings.Contains(m.Data["shares"], "X-User") && !strings.Contains(m.Data["shares"], "x-user") {
			t.Errorf("the proxies read %+v", m)
		}
	}
	golden(t, "choice.golden.txt", out.String())
}

// A choice of requests takes an original that goes on.
func TestChoiceTakesStandby(t *testing.T) {
	choice, err := route.ParseChoice([]string{"x-user=ada"}, "", false)
	if err != nil {
		t.Fatal(err)
	}
	err = Options{Mode: ModeReplace, Choice: choice}.Check()
	if hint.CodeOf(err) != hint.Usage || !strings.Contains(hint.Of(err), "--mode standby") {
		t.Errorf("mode replace: %v (%s)", err, hint.Of(err))
	}
	for _, mode := range []Mode{"", ModeAuto, ModeStandby} {
		if err := (Options{Mode: mode, Choice: choice}).Check(); err != nil {
			t.Errorf("mode %s: %v", mode, err)
		}
	}
	f, o := standbyFacts(t)
	f.Services, o.Choice = nil, choice
	if _, err := NewPlan(f, o); hint.Of(err) != "without --header x-user=ada: --mode replace stops the original, and takes its place" {
		t.Errorf("%v (%s)", err, hint.Of(err))
	}
}

// A note is said when it is new, and is for people alone.
func TestNotesAreSaidOnce(t *testing.T) {
	l := &lines{notes: make([][]string, 2), said: make([][]string, 2)}
	var said []string
	say := func(line string) { said = append(said, line) }
	l.noted(0, "a\nb", false, say)
	l.noted(1, "a\x1b[2J\n", false, say)
	l.noted(0, "b\nc", false, say)
	if got := strings.Join(said, ","); got != "a,b,a[2J,c" {
		t.Errorf("said %q", got)
	}
	if got := strings.Join(l.noteList(), ","); got != "proxy 1: b,proxy 1: c,proxy 2: a[2J" {
		t.Errorf("for the Lease: %q", got)
	}
	l.noted(0, "", true, say)
	l.noted(1, "", true, say)
	if got := l.noteList(); got != nil || len(said) != 4 {
		t.Errorf("%q, said %q", got, said)
	}
	l.noted(0, "b\nd", false, say) // in another session
	if got := strings.Join(said, ","); got != "a,b,a[2J,c,d" {
		t.Errorf("said %q", got)
	}
	l.noted(0, "", false, say) // taken back
	l.noted(0, "b", false, say)
	if got := strings.Join(said, ","); got != "a,b,a[2J,c,d,b" {
		t.Errorf("said %q", got)
	}
}

// That nobody stands by is said when it begins and when it ends, and noted in between.
func TestNoOriginalIsNoted(t *testing.T) {
	var said []string
	s := &Swap{lines: &lines{}, Say: func(line string) { said = append(said, line) }}
	for _, ready := range []bool{true, false, false, true, true} {
		s.originalStands(ready)
		if noted := slices.Contains(s.notes(), noOriginal); noted == ready {
			t.Errorf("Ready is %v, and noted %v", ready, noted)
		}
	}
	if want := []string{noOriginal, "the original has a Ready pod again"}; !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
}
