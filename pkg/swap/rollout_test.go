package swap

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

// rolloutFacts are of a Rollout whose own Service is named, if any; another one is not its own.
func rolloutFacts(own ...string) (Facts, Options) {
	const hash = kube.RolloutHashLabel
	service := func(name string, selector map[string]string) corev1.Service {
		return corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "0b7a0000-0000-0000-0000-000000000031"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.31", Selector: selector, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
		}
	}
	f := Facts{
		MayPatchServices: true, Source: proxypod.Source{Arch: "amd64", ConfigMaps: []string{"bridge-rollout-orders-0"}},
		Workload: &kube.Workload{
			Kind: kube.Rollout, ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: "6c1f0000-0000-0000-0000-000000000031"},
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "orders"}}, Replicas: 2, Ready: 2, Hash: "7d4b", Current: "7d4b", Owned: own,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "orders", hash: "7d4b"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "orders:1", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
			},
		},
		Services: []corev1.Service{service("all", map[string]string{"app": "orders"})},
	}
	for _, name := range own {
		f.Services = append(f.Services, service(name, map[string]string{"app": "orders", hash: "7d4b"}))
	}
	return f, Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon, Ports: []string{"3000:http"}}
}

// What a Rollout's controller writes is left alone while it is to scale, and the proxies have the label by which it selects; in standby the selector keeps
// what it writes.
func TestARolloutsOwnServices(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     Mode
		own      []string
		moved    string
		beside   string
		selector string // of the last that is moved
		label    string // on the proxies
	}{
		{"none, replace", ModeReplace, nil, "all", "", `{"app":"orders","bridge.internal/proxy":"bridge-rollout-orders"}`, "7d4b"},
		{"none, standby", ModeStandby, nil, "all", "", `{"bridge.internal/proxy":"bridge-rollout-orders"}`, "7d4b"},
		{"own, replace", ModeReplace, []string{"active"}, "all", "active", `{"app":"orders","bridge.internal/proxy":"bridge-rollout-orders"}`, "7d4b"},
		{"own, standby", ModeStandby, []string{"active"}, "all active", "", `{"bridge.internal/proxy":"bridge-rollout-orders","rollouts-pod-template-hash":"7d4b"}`, "7d4b"},
	} {
		f, o := rolloutFacts(c.own...)
		o.Mode = c.mode
		p, err := NewPlan(f, o)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := strings.Join(p.Services, " "); got != c.moved || strings.Join(p.beside, " ") != c.beside || strings.Join(p.joined, " ") != c.beside {
			t.Errorf("%s: moves %q, beside it %q, of which %q are waited for", c.name, got, p.beside, p.joined)
		}
		moves := p.Undo.Of(undo.Selector)
		if got := string(moves[len(moves)-1].Set); got != c.selector {
			t.Errorf("%s: the selector is %s", c.name, got)
		}
		labels := p.Proxy.Spec.Template.Labels
		if labels[kube.RolloutHashLabel] != c.label || (labels["app"] == "orders") != (c.mode == ModeReplace) {
			t.Errorf("%s: the proxies are labelled %v", c.name, labels)
		}
		if note := strings.Contains(strings.Join(p.Notes, "\n"), "service/active is the rollout's own"); note != (len(c.own) > 0) {
			t.Errorf("%s: the notes are %q", c.name, p.Notes)
		}
	}
}

// A Rollout's own Service may be without the hash, as after kubectl replace: its controller puts it there when the rollout is next written to, and
// is to find the proxies with it.
func TestARolloutsOwnServiceWithoutTheHash(t *testing.T) {
	f, o := rolloutFacts("active")
	delete(f.Services[len(f.Services)-1].Spec.Selector, kube.RolloutHashLabel)
	o.Mode = ModeReplace
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	if l := p.Proxy.Spec.Template.Labels; l[kube.RolloutHashLabel] != "7d4b" || strings.Join(p.joined, " ") != "active" {
		t.Errorf("the proxy is labelled %v; waited for are %q", l, p.joined)
	}
}

// Pods of an older version, which a Rollout has still for a while after its update, are none that the proxies pass callers on to.
func TestARolloutsOlderPods(t *testing.T) {
	const hash = kube.RolloutHashLabel
	now := metav1.Now()
	pod := func(name string, podLabels map[string]string, going *metav1.Time) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: podLabels, DeletionTimestamp: going}}
	}
	serving, old := pod("orders-7d4b-1", map[string]string{"app": "orders", hash: "7d4b"}, nil), pod("orders-5c2e-1", map[string]string{"app": "orders", hash: "5c2e"}, nil)
	for _, c := range []struct {
		name    string
		own     []string
		mode    Mode
		pods    []corev1.Pod
		refused bool
	}{
		{"one is left", []string{"active"}, ModeStandby, []corev1.Pod{serving, old}, true},
		{"none is left", []string{"active"}, ModeStandby, []corev1.Pod{serving}, false},
		{"it ends", []string{"active"}, ModeStandby, []corev1.Pod{serving, pod("orders-5c2e-1", old.Labels, &now)}, false},
		{"another's", []string{"active"}, ModeStandby, []corev1.Pod{serving, pod("cart-5c2e-1", map[string]string{"app": "cart", hash: "5c2e"}, nil)}, false},
		{"replace", []string{"active"}, ModeReplace, []corev1.Pod{serving, old}, false},
		{"without Services of its own", nil, ModeStandby, []corev1.Pod{serving, old}, false},
	} {
		f, o := rolloutFacts(c.own...)
		f.Pods, o.Mode = c.pods, c.mode
		_, err := NewPlan(f, o)
		if (err != nil) != c.refused {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.refused && (hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "pods of an older version are left (orders-5c2e-1)") || !strings.Contains(hint.Of(err), "scaleDownDelaySeconds")) {
			t.Errorf("%s: %v (%s)", c.name, err, hint.Of(err))
		}
	}
}

// An update that begins between the plan and the moment when the first of the Rollout's own Services is moved would stand still in the middle.
func TestARolloutIsLookedAtBeforeItsOwnServicesMove(t *testing.T) {
	const path = "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/orders"
	for _, c := range []struct {
		name, status string
		own          []string
		refused      bool
	}{
		{"as it was", `{"observedGeneration": "4", "stableRS": "7d4b", "currentPodHash": "7d4b"}`, []string{"active"}, false},
		{"an update", `{"observedGeneration": "4", "stableRS": "7d4b", "currentPodHash": "9c1a"}`, []string{"active"}, true},
		{"an update that its controller has not seen", `{"observedGeneration": "3", "stableRS": "7d4b", "currentPodHash": "7d4b"}`, []string{"active"}, true},
		{"updated", `{"observedGeneration": "4", "stableRS": "9c1a", "currentPodHash": "9c1a"}`, []string{"active"}, true},
		{"an update, without Services of its own", `{"observedGeneration": "4", "stableRS": "7d4b", "currentPodHash": "9c1a"}`, nil, false},
	} {
		f, o := rolloutFacts(c.own...)
		o.Mode = ModeStandby
		p, err := NewPlan(f, o)
		if err != nil {
			t.Fatal(err)
		}
		k := apiServer(t, map[string]any{path: json.RawMessage(`{"metadata": {"name": "orders", "namespace": "shop", "uid": "` + string(f.Workload.UID) + `", "generation": 4}, "status": ` + c.status + `}`)}, noWrite(t))
		err = changer{kube: k, claim: &claim{kube: k, lease: p.Lease}}.unchanged(t.Context(), p)
		if (err != nil) != c.refused || err != nil && hint.CodeOf(err) != hint.Conflict {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// What a Rollout says in its own words does not reach the terminal as it is.
func TestARolloutsOwnWordsArePrintable(t *testing.T) {
	f, o := rolloutFacts("active")
	f.Workload.Owned = append(f.Workload.Owned, "prev\x1b[2Jiew")
	f.Workload.Updating, o.Mode = true, ModeStandby
	if _, err := NewPlan(f, o); err == nil || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), "prev[2Jiew") {
		t.Errorf("%q", err)
	}
}

// A Rollout's record is a Deployment's but for the API, and its controller copies it as theirs does.
func TestARolloutsRecordGolden(t *testing.T) {
	f, o := rolloutFacts()
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.add(newKeeper(p, []string{"orders-7d4b"}, true)); err != nil {
		t.Fatal(err)
	}
	record, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../internal/undo/testdata/undo.v1.rollout.json", record+"\n")
	if !p.Undo.Target.Copied() || p.Undo.Target.Path() != "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/orders" {
		t.Errorf("the target is at %s", p.Undo.Target.Path())
	}
}

func TestRolloutRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		own    []string
		change func(*Facts, *Options)
		want   string // "": it is no refusal
		next   string
	}{
		{"an update, replace", nil, func(f *Facts, _ *Options) { f.Workload.Updating = true }, "rollout/orders cannot be swapped in mode replace: an update is under way", "kubectl argo rollouts promote orders -n shop" + staging + " (if it was aborted: retry rollout orders), or undo orders"},
		{"an update, standby", nil, func(f *Facts, o *Options) { f.Workload.Updating, o.Mode = true, ModeStandby }, "", ""},
		{"an update, standby, with Services of its own", []string{"active"}, func(f *Facts, o *Options) { f.Workload.Updating, o.Mode = true, ModeStandby },
			"an update is under way, for which its controller needs the Services that are its own (service active)", "promote orders"},
		{"its controller is away, replace", nil, func(f *Facts, _ *Options) { f.Workload.Updating, f.Workload.Unseen = true, true }, "its controller has not seen its last change", "see that the controller of Argo Rollouts runs"},
		{"its controller is away, standby", []string{"active"}, func(f *Facts, o *Options) {
			f.Workload.Updating, f.Workload.Unseen, o.Mode = true, true, ModeStandby
		}, "its controller has not seen its last change, and for an update it needs the Services that are its own (service active)", "see that the controller of Argo Rollouts runs"},
		{"subsets of a mesh", nil, func(f *Facts, _ *Options) { f.Workload.Subsets = "orders" }, "", ""},
		{"subsets of a mesh, standby", nil, func(f *Facts, o *Options) { f.Workload.Subsets, o.Mode = "orders", ModeStandby }, "by the subsets of destinationrule orders", ""},
		{"the template's own pods", nil, func(f *Facts, _ *Options) { f.Workload.Beside = "deployment/tpl" }, "deployment/tpl, from which it has its template, runs pods too", "scale deployment/tpl to 0 first"},
	} {
		f, o := rolloutFacts(c.own...)
		c.change(&f, &o)
		f.Flags = staging
		_, err := NewPlan(f, o)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || hint.CodeOf(err) != hint.Usage || !strings.Contains(hint.Of(err), c.next)):
			t.Errorf("%s: %v (%s), want %q", c.name, err, hint.Of(err), c.want)
		}
	}
}

// The swap of a Rollout that was updated at 0 replicas ends when one of its own Services selects the update's pods, and so leaves the proxy out.
func TestARolloutThatIsUpdated(t *testing.T) {
	for _, c := range []struct {
		name    string
		own     []string
		hash    string // in the selector of its own Service
		current string // of the template as it is
		ends    bool
	}{
		{"as it was", []string{"active"}, "7d4b", "7d4b", false},
		{"updated", []string{"active"}, "9c1a", "9c1a", true},
		{"an update that has not come to its Service", []string{"active"}, "7d4b", "9c1a", false},
		{"that of ping and pong which the last update has left", []string{"active"}, "5c2e", "7d4b", false},
		{"its controller has not said yet", []string{"active"}, "9c1a", "", false},
		{"a Service that is gone", []string{"gone"}, "9c1a", "9c1a", false},
		{"without Services of its own", nil, "9c1a", "9c1a", false},
	} {
		f, o := rolloutFacts(c.own...)
		p, err := NewPlan(f, o)
		if err != nil {
			t.Fatal(err)
		}
		f.Workload.Current = c.current
		// Services may be listed, and none be read: get is no right that a swap asks for.
		k := apiServer(t, map[string]any{deploymentPath + "bridge-rollout-orders": p.Proxy, strings.TrimSuffix(servicePath, "/"): corev1.ServiceList{Items: []corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Name: "active"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "orders", kube.RolloutHashLabel: c.hash}},
		}}}}, noWrite(t))
		s := &Swap{Kube: k, Plan: p, claim: &claim{kube: k, lease: p.Lease}}
		if err := s.updated(t.Context(), f.Workload); (err != nil) != c.ends || err != nil && hint.CodeOf(err) != hint.Conflict {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
