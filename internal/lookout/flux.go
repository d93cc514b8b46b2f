package lookout

import (
	"context"
	"fmt"

	"bridge/internal/kube"
)

// flux reads the labels that Flux's two controllers put on what they manage.
func flux(_ context.Context, _ *kube.Client, s *Subject) (notes []string, _ error) {
	l := s.Target.Labels
	if name := l["kustomize.toolkit.fluxcd.io/name"]; name != "" {
		if s.Target.Annotations["kustomize.toolkit.fluxcd.io/reconcile"] == "disabled" {
			return []string{fmt.Sprintf("Flux's kustomization %s manages this %s, and is told to leave it alone", name, s.Target.Kind)}, nil
		}
		notes = append(notes, fluxNote(s, "kustomization", name, l["kustomize.toolkit.fluxcd.io/namespace"], "at its next reconciliation"))
	}
	if name := l["helm.toolkit.fluxcd.io/name"]; name != "" {
		notes = append(notes, fluxNote(s, "helmrelease", name, l["helm.toolkit.fluxcd.io/namespace"], "with drift detection, and with the next release,"))
	}
	return notes, nil
}

func fluxNote(s *Subject, kind, name, namespace, when string) string {
	return fmt.Sprintf("Flux's %[1]s %[2]s manages this %[5]s: %[4]s it %[6]s, and the swap ends; pause it with: flux suspend %[1]s %[2]s -n %[3]s", kind, name, namespace, when, s.Target.Kind, setsBack(s))
}
