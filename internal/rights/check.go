package rights

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

// atOnce is how many questions are under way: all of a command's take two round trips or three.
const atOnce = 8

// Check asks for the rights that c needs in k's namespace. When some are missing the error (code Forbidden) names each, and
// its hint ends with the Role. doing is what it is for, "swap deployment/orders".
func (c Command) Check(ctx context.Context, k *kube.Client, doing string, carried bool) error {
	lacking, err := Missing(ctx, k, c.Required(carried))
	if err != nil {
		return err
	}
	return c.refuse(k.Namespace, doing, lacking)
}

// CheckMoving is Check for what giving back takes beside, where the swap has moved callers.
func CheckMoving(ctx context.Context, k *kube.Client, t kube.Target) error {
	lacking, err := Missing(ctx, k, MovingBack())
	if err != nil {
		return err
	}
	return Restore.For(t.Kind).refuse(k.Namespace, "restore "+t.String()+", whose callers are moved,", lacking)
}

// CheckForward is Check for bridge forward, which needs less than its Role has: it depends on the target, and on whether its first pod is
// to be the only one, whose end is seen at the pod itself.
func CheckForward(ctx context.Context, k *kube.Client, t kube.Target, once bool) error {
	var ask []Right
	for _, r := range Forward.Required(false) {
		switch {
		case r.Resource == "pods/portforward":
		case r.Verb == "get":
			if r.Resource != string(t.Kind)+"s" {
				continue
			}
			r.Name = t.Name
		case r.Verb == "list": // pods, of a workload
			if t.Kind == kube.Service || t.Kind == kube.Pod {
				continue
			}
		}
		ask = append(ask, r)
	}
	// One of the two is enough for a Service.
	follow := []Right{
		{Group: "discovery.k8s.io", Resource: "endpointslices", Verb: "list"},
		{Resource: "pods", Verb: "list"},
	}
	if t.Kind == kube.Service {
		ask = append(ask, follow...)
	}
	lacking, err := Missing(ctx, k, ask)
	var unseen []Right
	if err == nil && once && slices.Contains(lacking, follow[1]) {
		unseen, err = Missing(ctx, k, []Right{{Resource: "pods", Verb: "get"}})
	}
	if err != nil {
		return err
	}
	if t.Kind == kube.Service && slices.Contains(lacking, follow[0]) != slices.Contains(lacking, follow[1]) {
		lacking = slices.DeleteFunc(lacking, func(r Right) bool { return slices.Contains(follow, r) })
	}
	lacking = append(lacking, unseen...)
	return Forward.refuse(k.Namespace, "forward "+t.String(), lacking)
}

// CheckDebug is Check for bridge debug, by what it is to do.
func CheckDebug(ctx context.Context, k *kube.Client, t kube.Target, image, copies bool) error {
	ask := findingOf(t)
	if copies {
		ask = append(ask, rightsOf(copying())...)
	} else {
		ask = append(ask, rightsOf(ephemeral())...)
	}
	if image {
		ask = append(ask, rightsOf(attaching())...)
	} else {
		ask = append(ask, running().rights()...)
	}
	lacking, err := Missing(ctx, k, ask)
	if err != nil {
		return err
	}
	return Debug.refuse(k.Namespace, "debug "+t.String(), lacking)
}

// CheckCapture is Check for bridge capture.
func CheckCapture(ctx context.Context, k *kube.Client, t kube.Target) error {
	lacking, err := Missing(ctx, k, slices.Concat(findingOf(t), rightsOf(ephemeral()), running().rights()))
	if err != nil {
		return err
	}
	return Capture.refuse(k.Namespace, "capture at "+t.String(), lacking)
}

// findingOf is what finding a pod of t takes.
func findingOf(t kube.Target) []Right {
	ask := []Right{{Resource: "pods", Verb: "get"}}
	if t.Kind != kube.Pod {
		group := t.Kind.Group()
		ask = append(ask, Right{Resource: "pods", Verb: "list"}, Right{Group: group, Resource: t.Kind.Resource(), Verb: "get"})
	}
	return ask
}

// CheckTokens is Check for --token.
func CheckTokens(ctx context.Context, k *kube.Client) error {
	ask := tokens().rights()
	lacking, err := Missing(ctx, k, ask)
	if err == nil && len(lacking) > 0 {
		err = hint.Newf(hint.Forbidden, "the built-in role edit has that; or leave out --token", "--token: your account may not %s in %s", ask[0], k.Namespace)
	}
	return err
}

// Missing asks the API server which of the rights the user lacks in k's namespace.
func Missing(ctx context.Context, k *kube.Client, ask []Right) ([]Right, error) {
	denied := make([]bool, len(ask))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, r := range ask {
		group.Go(func() error {
			resource, sub, _ := strings.Cut(r.Resource, "/")
			review, err := k.Clientset.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Namespace: k.Namespace, Group: r.Group, Resource: resource, Subresource: sub, Verb: r.Verb, Name: r.Name,
				}},
			}, metav1.CreateOptions{})
			if err != nil {
				return kube.Explain(err, "ask for your rights in "+k.Namespace)
			}
			denied[i] = !review.Status.Allowed
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []Right
	for i, r := range ask {
		if denied[i] {
			out = append(out, r)
		}
	}
	return out, nil
}

// refuse names what is lacking, a line for each kind of object; nil when nothing is. The Role is the whole of it: applying a
// part over the one that is there would take the rest away.
func (c Command) refuse(namespace, doing string, lacking []Right) error {
	if len(lacking) == 0 {
		return nil
	}
	var lines []string
	verbs := map[string][]string{}
	for _, r := range lacking {
		if verbs[r.kind()] == nil {
			lines = append(lines, r.kind())
		}
		verbs[r.kind()] = append(verbs[r.kind()], r.Verb)
	}
	for i, kind := range lines {
		lines[i] = strings.Join(verbs[kind], ", ") + " " + kind
	}
	first := "the built-in role edit has all of it"
	if _, kind := c.target(); kind == kube.Rollout {
		first += " where Argo Rollouts' own cluster roles are installed"
	}
	switch needsEphemeral := slices.ContainsFunc(lacking, func(r Right) bool { return slices.Contains(rightsOf(ephemeral()), r) }); {
	case needsEphemeral && c == Capture:
		first = "neither of the built-in roles edit and admin has the right to add a container to a pod that runs"
	case needsEphemeral:
		first = "with --copy-to NAME it debugs a copy of the pod, for which the built-in role edit is enough"
	}
	how := "Or have this applied, and be bound to it"
	switch {
	case c == Debug && slices.ContainsFunc(lacking, func(r Right) bool { return slices.Contains(rightsOf(copying()), r) }):
		how = "Or have this applied, without the # before its rules for --copy-to, and be bound to it"
	case c == Capture:
		how = "Have this applied, and be bound to it"
	}
	return hint.Newf(hint.Forbidden,
		fmt.Sprintf("%s. %s\n(bridge rbac %s -n %s --user YOU prints both):\n%s", first, how, c, namespace, strings.TrimSpace(c.Role(namespace, false))),
		"%s in %s: your account may not do this:\n  %s", doing, namespace, strings.Join(lines, "\n  "))
}

// Needed is err, and where it is of a right that is missing, with where c's Role is.
func (c Command) Needed(k *kube.Client, err error) error {
	if hint.CodeOf(err) != hint.Forbidden || !strings.Contains(err.Error(), " may not ") { // admission's refusals are no lack of rights
		return err
	}
	return hint.New(0, err, strings.TrimSpace(fmt.Sprintf("bridge rbac %s -n %s --user YOU prints the Role with all that it takes\n%s", c, k.Namespace, hint.Of(err))))
}

// CheckRemove is Check for removing a connect, a forward or an env, kind, which have changed nothing of others.
func CheckRemove(ctx context.Context, k *kube.Client, kind, name string) error {
	own := Connect.Required(false)
	ask := slices.DeleteFunc(Restore.Required(false), func(r Right) bool { return !slices.Contains(own, r) })
	lacking, err := Missing(ctx, k, ask)
	if err != nil {
		return err
	}
	return Restore.refuse(k.Namespace, "restore "+kind+" "+name, lacking)
}
