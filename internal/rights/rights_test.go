package rights

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"bridge/internal/kube"
)

var update = flag.Bool("update", false, "write the files in deploy/ anew")

// What an admin applies from deploy/ is what bridge rbac prints.
func TestDeployHasTheRoles(t *testing.T) {
	const dir = "../../deploy"
	var want []string
	for _, c := range Commands() {
		path := filepath.Join(dir, string(c)+".yaml")
		want = append(want, path)
		if *update {
			if err := os.WriteFile(path, []byte(c.Role("", false)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != c.Role("", false) {
			t.Errorf("%s differs from what bridge rbac %s prints (go test ./internal/rights -update writes it anew)", path, c)
		}
	}
	want = append(want, filepath.Join(dir, "keeper.yaml")) // no command's: pkg/swap holds it against the keeper
	have, err := filepath.Glob(dir + "/*.yaml")
	slices.Sort(want)
	if err != nil || !slices.Equal(have, want) {
		t.Errorf("deploy/ has %q (%v), want %q", have, err, want)
	}
}

// The Role grants what the command asks for, and every rule of it is of use to somebody.
func TestRoleGrantsWhatIsRequired(t *testing.T) {
	for _, c := range Commands() {
		have := granted(t, c.Role("shop", false))
		for _, r := range slices.Concat(c.Required(true), c.Required(false)) {
			if !slices.Contains(have, r) {
				t.Errorf("%s: %v is not granted", c, r)
			}
		}
		if slices.Contains(have, PodProxy()[0]) {
			t.Errorf("%s grants %v to all", c, PodProxy()[0])
		}
		with := granted(t, c.Role("shop", true))
		if says := slices.Contains(with, PodProxy()[0]); says != (c == Swap || c == Connect || c == Diagnose) {
			t.Errorf("%s with podproxy: %v", c, says)
		}
	}
	if r := (Right{Resource: "serviceaccounts", Verb: "get", Name: KeeperAccount}); !slices.Contains(granted(t, Swap.Role("", false)), r) {
		t.Errorf("swap does not grant %v %s, by which it finds a prepared keeper", r, r.Name)
	}
	for _, r := range Keeping(kube.Deployment) {
		if slices.Contains(granted(t, Swap.Role("", true)), r) {
			t.Errorf("swap grants %v to all", r)
		}
	}
	for _, r := range Moving() {
		for _, c := range []Command{Swap, Restore} {
			if !slices.Contains(granted(t, c.Role("", false)), r) {
				t.Errorf("%s does not grant %v, with which it moves callers", c, r)
			}
		}
	}
}

// granted reads a Role as the API server would, and nothing that it does not know.
func granted(t *testing.T, text string) []Right {
	t.Helper()
	var r rbacv1.Role
	if err := yaml.UnmarshalStrict([]byte(text), &r); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	var out []Right
	for _, p := range r.Rules {
		for _, g := range p.APIGroups {
			for _, res := range p.Resources {
				for _, v := range p.Verbs {
					r := Right{Group: g, Resource: res, Verb: v}
					if len(p.ResourceNames) == 0 {
						out = append(out, r)
					}
					for _, r.Name = range p.ResourceNames {
						out = append(out, r)
					}
				}
			}
		}
	}
	return out
}

func TestBinding(t *testing.T) {
	for _, s := range []Subject{
		{Kind: "User", Name: "https://login.example#ada"},
		{Kind: "Group", Name: `dev "core"`},
		{Kind: "ServiceAccount", Namespace: "ci", Name: "runner"},
	} {
		var b rbacv1.RoleBinding
		if err := yaml.UnmarshalStrict([]byte(Swap.Binding("shop", s)), &b); err != nil {
			t.Fatal(err)
		}
		if len(b.Subjects) != 1 || b.Subjects[0].Name != s.Name || b.Subjects[0].Namespace != s.Namespace || b.RoleRef.Name != "bridge-swap" {
			t.Errorf("%+v: %+v", s, b)
		}
		if strings.ContainsAny(b.Name, "/%") || b.Namespace != "shop" {
			t.Errorf("%+v: named %q in %q", s, b.Name, b.Namespace)
		}
	}
}
