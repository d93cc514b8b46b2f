package swap

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

// kept is a plan with a keeper of its own.
func kept(t *testing.T) *Plan {
	t.Helper()
	f := facts(t, "orders.yaml")
	f.Source = carried
	p, err := NewPlan(f, Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.add(newKeeper(p, []string{"orders-7d4b9c8f6"})); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestKeeperGolden(t *testing.T) {
	p := kept(t)
	b, err := yaml.Marshal(p.Keeper)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "keeper.golden.yaml", string(b))
	if name := p.Keeper.Deployment.Name; p.Lease.Annotations[proxypod.KeeperAnnotation] != name || !strings.Contains(p.Lease.Annotations[proxypod.UndoAnnotation], name) {
		t.Errorf("the Lease does not say that there is %s: %v", name, p.Lease.Annotations)
	}
}

// What an admin prepares grants what a keeper's own Role does, but for the names, which are not known then.
func TestPreparedRoleIsTheKeepersOwn(t *testing.T) {
	b, err := os.ReadFile("../../deploy/keeper.yaml")
	if err != nil {
		t.Fatal(err)
	}
	own, err := yaml.Marshal(kept(t).Keeper.Role)
	if err != nil {
		t.Fatal(err)
	}
	sorted := func(role string) (list []string) {
		for _, a := range granted(t, role) {
			list = append(list, a.group+" "+a.String())
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	prepared := strings.Split(string(b), "\n---\n")[1]
	if have, want := sorted(prepared), sorted(string(own)); !slices.Equal(have, want) {
		t.Errorf("deploy/keeper.yaml grants %q\na keeper's own Role %q", have, want)
	}
}

// Every right of a keeper's Role is for named objects: those of one swap.
func TestKeepersRoleNamesEverything(t *testing.T) {
	for _, rule := range kept(t).Keeper.Role.Rules {
		if len(rule.ResourceNames) == 0 || slices.Contains(rule.Verbs, "list") || slices.Contains(rule.Verbs, "create") {
			t.Errorf("%v", rule)
		}
	}
}
