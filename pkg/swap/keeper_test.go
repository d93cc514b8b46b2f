package swap

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

// kept is a plan for a workload of that kind with a keeper of its own.
func kept(t *testing.T, kind kube.Kind) *Plan {
	t.Helper()
	f := facts(t, "orders.yaml")
	f.Source, f.Workload.Kind = carried, kind
	o := Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon}
	if kind == kube.Pod {
		f.Pods, f.Workload.Ready, o.Mode, o.Ports = nil, 1, ModeStandby, []string{"3000:http"}
	}
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	var sets []string
	if p.Undo.Target.Copied() {
		sets = []string{"orders-7d4b9c8f6"}
	}
	if err := p.add(newKeeper(p, sets, true)); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKeeperGolden(t *testing.T) {
	p := kept(t, kube.Deployment)
	d, err := p.DryRun(&kube.Client{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "keeper.golden.yaml", string(b))
	docs := strings.Split(string(b), "\n---\n")
	if len(docs) != 6 {
		t.Fatalf("%d documents, want the Lease, the proxy, and four of the keeper", len(docs))
	}
	for i, same := range []bool{
		equality.Semantic.DeepEqual(decode[corev1.ServiceAccount](t, docs[2]), p.Keeper.Account),
		equality.Semantic.DeepEqual(decode[rbacv1.Role](t, docs[3]), p.Keeper.Role),
		equality.Semantic.DeepEqual(decode[rbacv1.RoleBinding](t, docs[4]), p.Keeper.Binding),
		equality.Semantic.DeepEqual(decode[appsv1.Deployment](t, docs[5]), p.Keeper.Deployment),
	} {
		if !same {
			t.Errorf("not what the swap creates:\n%s", docs[2+i])
		}
	}
	if name := p.Keeper.Deployment.Name; p.Lease.Annotations[proxypod.KeeperAnnotation] != name || !strings.Contains(p.Lease.Annotations[proxypod.UndoAnnotation], name) {
		t.Errorf("the Lease does not say that there is %s: %v", name, p.Lease.Annotations)
	}
}

// What an admin prepares grants what the own Roles of keepers do, but for the names, which are not known then: of all kinds if the rules for Rollouts,
// which not every cluster has, and for bare pods, which is the right to change every pod, are no comment any more.
func TestPreparedRoleIsTheKeepersOwn(t *testing.T) {
	b, err := os.ReadFile("../../deploy/keeper.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var own, all []rbacv1.PolicyRule
	for _, kind := range kube.WorkloadKinds() {
		rules := kept(t, kind).Keeper.Role.Rules
		if all = append(all, rules...); kind != kube.Rollout && kind != kube.Pod {
			own = append(own, rules...)
		}
	}
	sorted := func(rules []rbacv1.PolicyRule) (list []string) {
		for _, rule := range rules {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					list = append(list, rights.Right{Group: rule.APIGroups[0], Resource: resource, Verb: verb}.String())
				}
			}
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	text := strings.Split(string(b), "\n---\n")[1]
	for text, own := range map[string][]rbacv1.PolicyRule{
		text: own,
		strings.NewReplacer("# - apiGroups", "- apiGroups", "#   resources", "  resources", "#   verbs", "  verbs").Replace(text): all,
	} {
		if have, want := sorted(decode[rbacv1.Role](t, text).Rules), sorted(own); !slices.Equal(have, want) {
			t.Errorf("deploy/keeper.yaml grants %q\na keeper's own Role %q", have, want)
		}
	}
}

// Every right of a keeper's Role is for named objects, those of one swap, but for the event that it tells, and for the ReplicaSets that somebody's
// rollout makes meanwhile.
func TestKeepersRoleNamesEverything(t *testing.T) {
	for _, kind := range kube.WorkloadKinds() {
		p := kept(t, kind)
		var unnamed []string
		for _, rule := range p.Keeper.Role.Rules {
			if len(rule.ResourceNames) == 0 {
				unnamed = append(unnamed, fmt.Sprint(rule.Resources, rule.Verbs))
			} else if slices.Contains(rule.Verbs, "list") || slices.Contains(rule.Verbs, "create") { // which names do not restrict
				t.Errorf("%s: %v", kind, rule)
			}
		}
		want := []string{"[events] [create]"}
		if p.Undo.Target.Copied() {
			want = []string{"[replicasets] [list patch]", "[events] [create]"}
		}
		if !slices.Equal(unnamed, want) {
			t.Errorf("%s: without names are %q", kind, unnamed)
		}
	}
}

// Who has the Role for swaps of a kind, and with it the rights for a keeper that it has in comments, has all that the keeper gets: the
// API server lets nobody give more than they have. That is the kind's scale, and no other.
func TestWhoMayMakeAKeeperHasItsRights(t *testing.T) {
	for _, kind := range kube.WorkloadKinds() {
		have := slices.Concat(rights.Swap.For(kind).Required(true), rights.Moving(), rights.Keeping(kind), rights.Telling())
		var scales []string
		for _, rule := range kept(t, kind).Keeper.Role.Rules {
			if strings.HasSuffix(rule.Resources[0], "/scale") {
				scales = append(scales, rule.Resources[0])
			}
			for _, verb := range rule.Verbs {
				if r := (rights.Right{Group: rule.APIGroups[0], Resource: rule.Resources[0], Verb: verb}); !slices.Contains(have, r) {
					t.Errorf("%s: %v is in a keeper's Role", kind, r)
				}
			}
		}
		want := []string{kind.Resource() + "/scale"}
		if kind == kube.Pod {
			want = nil
		}
		if !slices.Equal(scales, want) {
			t.Errorf("%s: the keeper scales %q", kind, scales)
		}
	}
}

// A keeper runs where the target may, which its image may depend on, and beside whatever pods.
func TestKeeperRunsOnTheTargetsNodes(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	pod := &f.Workload.Template.Spec
	pod.NodeSelector = map[string]string{"pool": "shop"}
	pod.Affinity.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "pull", Operator: corev1.NodeSelectorOpExists}}}},
	}}
	p, err := NewPlan(f, Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	keeper := newKeeper(p, nil, true).Deployment.Spec.Template.Spec
	if want := (&corev1.Affinity{NodeAffinity: pod.Affinity.NodeAffinity}); keeper.NodeSelector["pool"] != "shop" || !equality.Semantic.DeepEqual(keeper.Affinity, want) {
		t.Errorf("it runs on nodes %v, %v", keeper.NodeSelector, keeper.Affinity)
	}
}

// A keeper that does not come up ends a swap that is in mode replace for its sake; who asked for that mode is told.
func TestKeeperThatDoesNotComeUp(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	k := apiServer(t, map[string]any{
		"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":   authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}},
		"/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles": rbacv1.Role{},
		"/apis/apps/v1/namespaces/shop/replicasets":                appsv1.ReplicaSetList{},
	}, func(*http.Request) int { return http.StatusOK })
	for mode, ends := range map[Mode]bool{ModeAuto: true, "": true, ModeReplace: false} {
		p, err := MakePlan(t.Context(), k, f, Options{Mode: mode, Owner: "ada@laptop", Now: noon})
		if err != nil || p.Keeper == nil || !p.Undo.Replaces() {
			t.Fatalf("mode %q: %v", mode, err)
		}
		var said string
		s := &Swap{Kube: k, Plan: p, claim: &claim{kube: k, lease: p.Lease}, Say: func(line string) { said += line }}
		trouble := errors.New("it has no way to the API server")
		err = s.unkept(t.Context(), trouble)
		if ended := hint.CodeOf(err) == hint.ProxyNotReady && errors.Is(err, trouble) && strings.Contains(hint.Of(err), "--mode standby"); ended != ends || err != nil != ends {
			t.Errorf("mode %q: %v (%s)", mode, err, hint.Of(err))
		}
		if told := strings.Contains(said, "nobody gives it back when this machine is gone ("+trouble.Error()); told == ends {
			t.Errorf("mode %q: said %q", mode, said)
		}
	}
}
