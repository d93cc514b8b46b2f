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
	return []string{fmt.Sprintf("Argo CD's application %s manages this %s: with self-heal it %s, and the swap ends; "+
		"pause it (argocd app set %s --sync-policy none) or have it ignore %s", app, s.Target.Kind, setsBack(s), app, changes(s))}, nil
}

// setsBack is what one that keeps manifests does to a swap. In standby it is the Services' manifests that count, and nobody says here who
// keeps those.
func setsBack(s *Subject) string {
	if !s.Standby {
		return "scales the original up again"
	}
	return "sets back the " + selectors(s) + " where it manages that too (callers may be refused until bridge sees it, within 5 seconds)"
}

// changes are the fields that a swap changes.
func changes(s *Subject) string {
	var fields []string
	if !s.Standby {
		fields = append(fields, "its spec.replicas")
	}
	if len(s.Services) > 0 {
		fields = append(fields, "spec."+selectors(s))
	}
	return strings.Join(fields, " and ")
}

func selectors(s *Subject) string { return "selector of " + names("service", "services", s.Services) }
