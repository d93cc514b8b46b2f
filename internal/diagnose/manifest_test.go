package diagnose

import (
	"errors"
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"bridge/internal/kube"
)

func TestManifests(t *testing.T) {
	page, err := os.ReadFile("../../docs/diagnose.md")
	if err != nil {
		t.Fatal(err)
	}
	resource := schema.GroupResource{Group: "apps", Resource: "deployments"}
	invalid := apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "it", field.ErrorList{field.Required(field.NewPath("spec", "selector"), "")})
	for name, c := range map[string]struct {
		err      error
		id, says string
	}{
		"taken":    {nil, "", ""},
		"created":  {apierrors.NewBadRequest(`Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.template.spec.containers[0].redinessProbe"`), "manifest-unknown-field", "containers[0].redinessProbe"},
		"applied":  {errors.New(`failed to create typed patch object (shop/it; apps/v1, Kind=Deployment): .spec.template.spec.containers[name="app"].redinessProbe: field not declared in schema`), "manifest-unknown-field", "redinessProbe"},
		"twice":    {apierrors.NewBadRequest(`strict decoding error: duplicate field "spec.replicas"`), "manifest-unknown-field", "spec.replicas"},
		"invalid":  {invalid, "manifest-invalid", "spec.selector"},
		"refused":  {apierrors.NewForbidden(resource, "it", errors.New("exceeded quota: small")), "manifest-refused", "exceeded quota"},
		"may not":  {apierrors.NewForbidden(resource, "it", errors.New(`User "ada" cannot create resource "deployments" in API group "apps" in the namespace "shop"`)), "", "a trial of deployments"},
		"\x1b[2Jx": {errors.New("\x1b[2Jx"), "manifest-refused", "[2Jx"},
	} {
		found, may := manifestFindings([]kube.Tried{{File: "it.yaml", Kind: "deployment", Namespace: "shop", Name: "it", Err: c.err}})
		if c.id == "" {
			if len(found) != 0 || (len(may) == 1) != (c.says != "") || len(may) == 1 && may[0].Resource != c.says {
				t.Errorf("%s: %+v, %+v", name, found, may)
			}
			continue
		}
		if len(found) != 1 || found[0].ID != c.id || !strings.Contains(found[0].Summary, c.says) || strings.Contains(found[0].Summary, "\x1b") || len(found[0].State) != 1 || found[0].Why == "" {
			t.Errorf("%s: %+v", name, found)
		}
		if !strings.Contains(string(page), "`"+c.id+"`") {
			t.Errorf("docs/diagnose.md does not have %s", c.id)
		}
	}
	targets := targetsOf([]kube.Tried{{Kind: "deployment", Name: "it", Namespace: "shop", There: true}, {Kind: "pod", Name: "other", Namespace: "shop"}, {Kind: "frob", Name: "x", There: true}})
	if len(targets) != 1 || targets[0] != (Ref{"deployment", "shop", "it"}) {
		t.Errorf("%v", targets)
	}
}
