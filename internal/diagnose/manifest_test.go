package diagnose

import (
	"errors"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"bridge/internal/kube"
)

func TestManifests(t *testing.T) {
	known := graves()
	resource := schema.GroupResource{Group: "apps", Resource: "deployments"}
	invalid := apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "it", field.ErrorList{field.Required(field.NewPath("spec", "selector"), "")})
	for name, c := range map[string]struct {
		err      error
		id, says string
	}{
		"taken":    {nil, "", ""},
		"created":  {apierrors.NewBadRequest(`Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: unknown field "spec.template.spec.containers[0].redinessProbe"`), "manifest-unknown-field", "containers[0].redinessProbe"},
		"invalid":  {invalid, "manifest-invalid", "spec.selector"},
		"type":     {apierrors.NewBadRequest(`Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`), "manifest-invalid", "spec.replicas has string, where int32 is wanted"},
		"number":   {apierrors.NewBadRequest(`Service in version "v1" cannot be handled as a Service: json: cannot unmarshal number 1.5 into Go struct field ServicePort.spec.ports.port of type int32`), "manifest-invalid", "spec.ports.port has number 1.5, where int32 is wanted"},
		"refused":  {apierrors.NewForbidden(resource, "it", errors.New("exceeded quota: small")), "manifest-refused", "exceeded quota"},
		"may not":  {apierrors.NewForbidden(resource, "it", errors.New(`User "ada" cannot create resource "deployments" in API group "apps" in the namespace "shop"`)), "", "a trial of deployments"},
		"\x1b[2Jx": {errors.New("\x1b[2Jx"), "manifest-refused", "[2Jx"},
	} {
		found, may := manifestFindings([]kube.Tried{{File: "it.yaml", Resource: "deployments", Kind: "deployment", Namespace: "shop", Name: "it", Err: c.err}})
		if c.id == "" {
			if len(found) != 0 || (len(may) == 1) != (c.says != "") || len(may) == 1 && may[0].Resource != c.says {
				t.Errorf("%s: %+v, %+v", name, found, may)
			}
			continue
		}
		if len(found) != 1 || found[0].ID != c.id || !strings.Contains(found[0].Summary, c.says) || strings.Contains(found[0].Summary, "\x1b") || len(found[0].State) != 1 || found[0].Why == "" {
			t.Errorf("%s: %+v", name, found)
		}
		if len(found) == 1 && !slices.Contains(known[c.id], found[0].Severity) {
			t.Errorf("%s is a %s, and may be %q", c.id, found[0].Severity, known[c.id])
		}
	}
	// What admission refuses is no rule of the kind's, whatever reason it gives; and not sure where it has judged what the change takes away.
	denied := apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "it", field.ErrorList{field.Invalid(nil, 1, `ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no`)})
	for over, severity := range map[bool]Severity{false: Problem, true: Warning} {
		found, _ := manifestFindings([]kube.Tried{{File: "it.yaml", Kind: "deployment", Namespace: "shop", Name: "it", There: true, Err: denied, Over: over}})
		if len(found) != 1 || found[0].ID != "manifest-refused" || found[0].Severity != severity || !strings.Contains(found[0].Summary, "denied request") {
			t.Errorf("over %v: %+v", over, found)
		}
	}
	if _, may := manifestFindings([]kube.Tried{{Resource: "ingresses", Kind: "ingress", Untried: "x"}}); len(may) != 1 || may[0].Resource != "a trial of ingresses" {
		t.Errorf("%+v", may)
	}
	found, may := manifestFindings([]kube.Tried{{Kind: "pod", Untried: "their namespace comes with them"}, {Kind: "pod", Untried: "their namespace comes with them"}})
	if len(found) != 0 || len(may) != 1 || may[0].Why != "their namespace comes with them" {
		t.Errorf("%v, %v", found, may)
	}
}

// What is looked at is what the cluster has, in the namespace, and of the kinds that are known: another group's may be called the same.
func TestManifestTargets(t *testing.T) {
	tried := []kube.Tried{
		{Group: "apps", Kind: "deployment", Name: "it", Namespace: "shop", There: true}, {Kind: "pod", Name: "other", Namespace: "shop"}, {Kind: "frob", Name: "x", There: true},
		{Group: "serving.knative.dev", Kind: "service", Name: "knative", Namespace: "shop", There: true}, {Kind: "node", Name: "node1", There: true},
		{Group: "apps", Kind: "deployment", Name: "it", Namespace: "elsewhere", There: true}, {Group: "argoproj.io", Kind: "rollout", Name: "it", Namespace: "shop", There: true},
	}
	targets, elsewhere := targetsOf(tried, "shop")
	if want := []Ref{{"deployment", "shop", "it"}, {"node", "", "node1"}, {rolloutKind, "shop", "it"}}; !slices.Equal(targets, want) {
		t.Errorf("%v", targets)
	}
	if len(elsewhere) != 1 || !strings.HasSuffix(elsewhere[0].Why, "-n elsewhere") {
		t.Errorf("%v", elsewhere)
	}
	if all, one := NamespaceOf(tried, "default"), NamespaceOf(tried[:5], "default"); all != "default" || one != "shop" || NamespaceOf(nil, "default") != "default" {
		t.Errorf("looked at in %q, and in %q where all are in shop", all, one)
	}
	r := Report{Namespace: "default", Findings: []Finding{{Object: Ref{"pod", "shop", "it"}, Severity: Problem}, {Object: Ref{Kind: "node", Name: "node1"}}}}
	if got, want := r.Summary(), "1 problem, 1 warning in namespaces default and shop, of 0 objects"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	// What has gone meanwhile is no error.
	k, _ := apiServer(t, nil)
	if r, err := Run(t.Context(), k, Options{Tried: tried, NoDial: true}); err != nil || len(r.Findings) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
