package diagnose

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// unknownField reads the names of fields that the API server does not know:
//
//	strict decoding error: unknown field "spec.template.spec.containers[0].redinessProbe"
var unknownField = regexp.MustCompile(`unknown field "([^"]+)"`)

// wrongType reads the name of a field, and what is in it and should be:
//
//	json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32
var wrongType = regexp.MustCompile(`json: cannot unmarshal (.+?) into Go struct field [^. ]+\.(\S+) of type (\S+)`)

// manifestFindings are about objects of a file, as the API server took them in a trial. may are those that the user may not try.
func manifestFindings(tried []kube.Tried) (out []Finding, may []Unread) {
	for _, t := range tried {
		why := t.Untried
		if t.Err != nil && t.Refused() {
			why = mayNot
		}
		if why != "" {
			u := Unread{Resource: "a trial of " + cmp.Or(t.Resource, t.Kind), Why: why}
			if !slices.ContainsFunc(may, func(was Unread) bool { return was.Resource == u.Resource && was.Why == u.Why }) {
				may = append(may, u)
			}
			continue
		}
		if t.Err == nil {
			continue
		}
		f := Finding{ID: "manifest-refused", Severity: Problem, Direction: Admission, Object: Ref{Kind: t.Kind, Namespace: t.Namespace, Name: t.Name}}
		said := hint.Printable(strings.Join(strings.Fields(t.Err.Error()), " "))
		f.State = []Evidence{{From: t.File + ", tried on the API server", Says: said}}
		f.Summary, f.Why = "the API server would not take it: "+firstLine(said), "what is applied of it is not there, and what was there before goes on"
		f.Next = []string{"correct it, and look again: bridge diagnose -f " + t.File + f.Object.in()}
		var status apierrors.APIStatus
		switch fields := fieldsIn(said); {
		case len(fields) > 0:
			f.ID, f.Direction = "manifest-unknown-field", Configuration
			f.Summary = "it has fields that there are none of: " + few(fields)
			f.Why = "kubectl apply --validate=ignore, and who applies without validation, has them dropped in silence: what they are meant for is not done"
			f.Next = append(f.Next, fmt.Sprintf("kubectl explain %s --recursive shows how they are spelt", t.Kind))
		case t.Over:
			f.Severity = Warning
			f.Summary = "admission refuses what is there with the file's fields over it, though not the file's alone: " + firstLine(said)
			f.Why = "an update of it may be refused; or only what the file takes away, which is in that trial still"
			f.Next = []string{"kubectl apply --dry-run=server -f " + t.File + " tries it as kubectl applies it"}
		case errors.As(t.Err, &status) && status.Status().Details != nil && apierrors.IsInvalid(t.Err) && !t.Denied():
			f.ID, f.Direction = "manifest-invalid", Configuration
			var causes []string
			for _, c := range status.Status().Details.Causes {
				causes = append(causes, hint.Printable(c.Field+": "+c.Message))
			}
			f.Summary = "it is not valid: " + few(causes)
		case wrongType.MatchString(said):
			m := wrongType.FindStringSubmatch(said)
			f.ID, f.Direction = "manifest-invalid", Configuration
			f.Summary = fmt.Sprintf("it is not valid: %s has %s, where %s is wanted", m[2], m[1], m[3])
			f.Next = append(f.Next, fmt.Sprintf("kubectl explain %s.%s", t.Kind, m[2]))
		case t.Kind == "manifest":
			f.ID, f.Direction = "manifest-kind-unknown", Configuration
			f.Summary = "it has an object of a kind that the cluster does not have: " + firstLine(said)
			f.Next = append(f.Next, "kubectl api-resources lists the kinds there are")
		}
		out = append(out, f)
	}
	slices.SortFunc(out, compare)
	return out, may
}

func fieldsIn(text string) (out []string) {
	for _, m := range unknownField.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// NamespaceOf is the one that all objects of files are in, of those that are in any; namespace where there is none, or not one alone.
func NamespaceOf(tried []kube.Tried, namespace string) string {
	of := ""
	for _, t := range tried {
		if of != "" && t.Namespace != "" && t.Namespace != of {
			return namespace
		}
		of = cmp.Or(of, t.Namespace)
	}
	return cmp.Or(of, namespace)
}

// targetsOf are the objects of a file that the cluster has, and that can be looked at; in other namespaces are those that can be with another -n.
func targetsOf(tried []kube.Tried, namespace string) (out []Ref, elsewhere []Unread) {
	for _, t := range tried {
		r, err := ParseTarget(t.Kind+"/"+t.Name, t.Namespace)
		if err != nil || !t.There || t.Group != groupOf(r.Kind) {
			continue
		}
		if r.Namespace != "" && r.Namespace != namespace {
			elsewhere = append(elsewhere, Unread{Resource: r.String(), Why: "it is in another namespace: look with -n " + r.Namespace})
			continue
		}
		out = append(out, r)
	}
	return out, elsewhere
}

// groupOf is the API group of a kind that can be looked at.
func groupOf(kind string) string {
	switch kind {
	case "deployment", "statefulset", "daemonset", "replicaset":
		return "apps"
	case "job", "cronjob":
		return "batch"
	case "ingress", "networkpolicy":
		return "networking.k8s.io"
	case "horizontalpodautoscaler":
		return "autoscaling"
	case "poddisruptionbudget":
		return "policy"
	case rolloutKind:
		return kube.Rollout.Group()
	}
	return ""
}
