package lookout

import (
	"context"
	"fmt"
	"strings"

	"bridge/internal/kube"
)

// argoCD reads what Argo CD writes on what it manages: the annotation, or the label of older versions. (Its usual label,
// app.kubernetes.io/instance, is Helm's and many others' too.)
func argoCD(_ context.Context, _ *kube.Client, s *Subject) ([]string, error) {
	app, _, _ := strings.Cut(s.Target.Annotations["argocd.argoproj.io/tracking-id"], ":")
	if app == "" {
		app = s.Target.Labels["argocd.argoproj.io/instance"]
	}
	if app == "" {
		return nil, nil
	}
	return []string{fmt.Sprintf("Argo CD's application %s manages this %s: with self-heal it scales the original up again, and the swap ends; "+
		"pause it (argocd app set %s --sync-policy none) or have it ignore %s", app, s.Target.Kind, app, changes(s))}, nil
}

// changes are the fields that a swap changes.
func changes(s *Subject) string {
	text := "its spec.replicas"
	if len(s.Services) > 0 {
		text += " and spec.selector of " + names("service", "services", s.Services)
	}
	return text
}
