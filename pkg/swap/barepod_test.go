package swap

import (
	"net/http"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// webFacts are of a bare pod beside which there is another one like it; alone tells whether that one is left out.
func webFacts(t *testing.T, alone bool) Facts {
	t.Helper()
	f := facts(t, "web.yaml")
	f.Source = proxypod.Source{Arch: "amd64", ConfigMaps: []string{"bridge-pod-web-0"}}
	if alone {
		f.Pods = f.Pods[:1]
	}
	return f
}

func webOptions() Options {
	return Options{Mode: ModeStandby, Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon, Ports: []string{"3000:http"}}
}

// A bare pod stands by, and the proxies are as it was made: without what the cluster has added to it.
func TestBarePodGolden(t *testing.T) {
	p, err := NewPlan(webFacts(t, true), webOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.add(newKeeper(p, nil, true)); err != nil {
		t.Fatal(err)
	}
	d, err := p.DryRun(&kube.Client{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "pod.golden.yaml", string(b))
	record, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../internal/undo/testdata/undo.v1.pod.json", record+"\n")
}

// What cannot be done with a bare pod is said, and no way out is proposed that there is not.
func TestBarePodRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Facts, *Options)
		want   string
	}{
		{"replace", func(_ *Facts, o *Options) { o.Mode = ModeReplace }, "pod/web cannot be swapped in mode replace: it belongs to no workload, so once it is stopped nothing starts it again"},
		{"not Ready", func(f *Facts, _ *Options) { f.Workload.Ready = 0 }, "pod/web cannot be swapped in mode standby: it is not Ready"},
		{"no labels", func(f *Facts, _ *Options) { f.Workload.Template.Labels = nil }, "no Service selects it"},
		{"another pod of the same labels", func(f *Facts, _ *Options) { f.Pods = webFacts(t, false).Pods }, "every Service that selects it selects others' pods too"},
	} {
		f, o := webFacts(t, true), webOptions()
		c.change(&f, &o)
		_, err := NewPlan(f, o)
		if err == nil || !strings.Contains(err.Error(), c.want) || hint.CodeOf(err) != hint.Usage {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if next := hint.Of(err); !strings.Contains(next, "give it a deployment with this template") || strings.Contains(next, "--mode replace") {
			t.Errorf("%s: the next step is %q", c.name, next)
		}
	}
}

// auto takes mode standby, and says why.
func TestBarePodStandsByItself(t *testing.T) {
	k := apiServer(t, map[string]any{
		"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":     authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}},
		"/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles":   rbacv1.Role{},
		"/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies": networkingv1.NetworkPolicyList{},
	}, func(*http.Request) int { return http.StatusOK })
	o := webOptions()
	o.Mode = ModeAuto
	p, err := MakePlan(t.Context(), k, webFacts(t, true), o)
	if err != nil {
		t.Fatal(err)
	}
	if line := p.Headline(k); !strings.HasPrefix(line, "mode standby, since nothing starts a pod again that is stopped: the pod goes on") || p.Undo.Replaces() {
		t.Errorf("it says %q", line)
	}
}
