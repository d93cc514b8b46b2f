package swap

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// access is one right in a namespace.
type access struct {
	group, resource, subresource string
	verb                         string
}

func (a access) String() string {
	r := a.resource
	if a.subresource != "" {
		r += "/" + a.subresource
	}
	return a.verb + " " + r
}

// needed are the rights without which a swap cannot be made or given back. deploy/swap.yaml
// is the same list, and a test keeps it so.
func needed(carried bool) []access {
	list := []access{
		{"apps", "deployments", "", "get"},
		{"apps", "deployments", "", "create"},
		{"apps", "deployments", "", "patch"},
		{"apps", "deployments", "", "delete"},
		{"apps", "deployments", "scale", "get"},
		{"apps", "deployments", "scale", "update"},
		{"apps", "replicasets", "", "list"},
		{"apps", "replicasets", "", "patch"},
		{"", "services", "", "list"},
		{"", "pods", "", "list"},
		{"", "pods", "portforward", "get"},
		{"", "pods", "portforward", "create"},
		{"coordination.k8s.io", "leases", "", "get"},
		{"coordination.k8s.io", "leases", "", "create"},
		{"coordination.k8s.io", "leases", "", "update"},
		{"coordination.k8s.io", "leases", "", "delete"},
		{"", "configmaps", "", "list"},
		{"", "configmaps", "", "delete"},
	}
	if carried {
		list = append(list, access{"", "configmaps", "", "create"})
	}
	return list
}

// moving are the rights with which callers are moved before the original is stopped.
func moving() []access {
	return []access{
		{"", "services", "", "get"},
		{"", "services", "", "patch"},
		{"discovery.k8s.io", "endpointslices", "", "list"},
	}
}

// podProxy is the right for --carrier podproxy, whose request is a GET; it is in no Role unless that is wanted.
var podProxy = []access{{"", "pods", "proxy", "get"}}

// everything is what deploy/swap.yaml grants: swap, restore, also --all, and status.
func everything() []access {
	return slices.Concat(needed(true), moving(), []access{
		{"coordination.k8s.io", "leases", "", "list"}, {"apps", "deployments", "", "list"}, {"", "serviceaccounts", "", "get"},
	})
}

// missing asks the API server which of the rights the user lacks in the namespace.
func missing(ctx context.Context, k *kube.Client, namespace string, rights []access) ([]access, error) {
	denied := make([]bool, len(rights))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, a := range rights {
		group.Go(func() error {
			review, err := k.Clientset.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: namespace, Group: a.group, Resource: a.resource, Subresource: a.subresource, Verb: a.verb,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return kube.Explain(err, "ask for your rights in "+namespace)
			}
			denied[i] = !review.Status.Allowed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []access
	for i, a := range rights {
		if denied[i] {
			out = append(out, a)
		}
	}
	return out, nil
}

func accessList(list []access) string {
	var names []string
	for _, a := range list {
		names = append(names, a.String())
	}
	return strings.Join(names, ", ")
}

// errMissing names the missing rights, with a Role ready to apply as the hint: all of it, since
// applying a part over the Role in deploy/ would take the rest away.
func errMissing(target, namespace string, lacking []access) error {
	return hint.Newf(hint.Forbidden, "the built-in role edit has all of them; or ask for this:\n"+role(namespace, everything())+
		"and to be bound to it: kubectl create rolebinding NAME -n "+namespace+" --role bridge-swap --user YOU",
		"swap %s in %s: your account may not %s", target, namespace, accessList(lacking))
}

// role is a Role with these rights, as YAML.
func role(namespace string, rights []access) string {
	type key struct{ group, resource string }
	verbs := map[key][]string{}
	var keys []key
	for _, a := range rights {
		k := key{a.group, a.resource}
		if a.subresource != "" {
			k.resource += "/" + a.subresource
		}
		if verbs[k] == nil {
			keys = append(keys, k)
		}
		if !slices.Contains(verbs[k], a.verb) {
			verbs[k] = append(verbs[k], a.verb)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: bridge-swap, namespace: %s}\nrules:\n", namespace)
	for _, k := range keys {
		fmt.Fprintf(&b, "- {apiGroups: [%q], resources: [%s], verbs: [%s]}\n", k.group, k.resource, strings.Join(verbs[k], ", "))
	}
	return b.String()
}
