package rights

import (
	"fmt"
	"slices"
	"strings"
)

// RoleName is the name of c's Role: that for another kind is another one, and may be bound beside it.
func (c Command) RoleName() string { return "bridge-" + strings.ReplaceAll(string(c), " ", "-") }

// Role is c's Role as YAML, each rule with its purpose. Without a namespace it is for kubectl apply -n. What few want is a
// comment; withPodProxy makes a rule of the right for --carrier podproxy. It is "" for a command that there is no Role for.
func (c Command) Role(namespace string, withPodProxy bool) string {
	rules := c.rules()
	if len(rules) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What `bridge %s` needs in a namespace.\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: %s\n", c, c.RoleName())
	if namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", namespace)
	}
	b.WriteString("rules:\n")
	for _, r := range rules {
		if r.why != "" {
			b.WriteString("# " + strings.ReplaceAll(r.why, "\n", "\n# ") + "\n")
		}
		lead := ""
		if r.need == unusual && (!withPodProxy || !slices.Equal(r.rights(), PodProxy())) {
			lead = "# "
		}
		resources := quoted(r.resources)
		if resource, name, named := strings.Cut(r.resources[0], " "); named {
			resources = fmt.Sprintf("[%q]\n%s  resourceNames: [%q]", resource, lead, name)
		}
		fmt.Fprintf(&b, "%[1]s- apiGroups: [%[2]q]\n%[1]s  resources: %[3]s\n%[1]s  verbs: %[4]s\n", lead, r.group, resources, quoted(r.verbs))
	}
	return b.String()
}

func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// Subject is who gets a Role.
type Subject struct {
	Kind      string // "User", "Group" or "ServiceAccount"
	Namespace string // of a ServiceAccount
	Name      string
}

// Binding is the RoleBinding that gives s c's Role, as YAML. Each subject has one of its own, so that applying another takes
// nothing away.
func (c Command) Binding(namespace string, s Subject) string {
	// What a name in the API may not have.
	who := strings.NewReplacer("/", "-", "%", "-").Replace(strings.ToLower(s.Kind) + "-" + s.Name)
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata:\n  name: %q\n", c.RoleName()+"-"+who)
	if namespace != "" {
		fmt.Fprintf(&b, "  namespace: %s\n", namespace)
	}
	fmt.Fprintf(&b, "roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n  name: %s\nsubjects:\n- kind: %s\n  name: %q\n", c.RoleName(), s.Kind, s.Name)
	if s.Kind == "ServiceAccount" {
		fmt.Fprintf(&b, "  namespace: %q\n", s.Namespace)
	} else {
		b.WriteString("  apiGroup: rbac.authorization.k8s.io\n")
	}
	return b.String()
}
