package swap

import (
	"os"
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// deploy/swap.yaml is what an admin grants: it has what the commands ask for, and nothing more.
func TestDeployedRoleIsWhatIsNeeded(t *testing.T) {
	b, err := os.ReadFile("../../deploy/swap.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, a := range granted(t, string(b)) {
		have = append(have, a.group+" "+a.String())
	}
	var want []string
	for _, a := range everything() {
		want = append(want, a.group+" "+a.String())
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("deploy/swap.yaml grants %q\nneeded is %q", have, want)
	}
}

// The Role that is printed when rights are missing can be applied, and grants them.
func TestPrintedRoleCanBeApplied(t *testing.T) {
	lacking := everything()
	have := granted(t, role("shop", lacking))
	if len(have) != len(lacking) {
		t.Fatalf("grants %v", have)
	}
	for _, a := range lacking {
		if !slices.Contains(have, a) {
			t.Errorf("%v is not granted", a)
		}
	}
}

func granted(t *testing.T, text string) []access {
	t.Helper()
	var r rbacv1.Role
	if err := yaml.UnmarshalStrict([]byte(text), &r); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	var out []access
	for _, rule := range r.Rules {
		for _, g := range rule.APIGroups {
			for _, res := range rule.Resources {
				for _, v := range rule.Verbs {
					a := access{group: g, resource: res, verb: v}
					for i := range res {
						if res[i] == '/' {
							a.resource, a.subresource = res[:i], res[i+1:]
						}
					}
					out = append(out, a)
				}
			}
		}
	}
	return out
}
