package kube

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"

	"bridge/internal/hint"
)

// Tried is what the API server says of one object of a manifest.
type Tried struct {
	File                  string
	Kind, Namespace, Name string // Kind in lower case; Namespace is "" for what has none
	// There is whether the cluster has it already.
	There bool
	// Err is why it would not be taken, as the API server says it; nil when it would.
	Err error
}

// Refused tells whether Err is that the user may not do it, which says nothing of the object.
func (t *Tried) Refused() bool {
	return apierrors.IsForbidden(t.Err) && rbac.MatchString(t.Err.Error())
}

// manifestManager is in whose name manifests are tried.
const manifestManager = "bridge-diagnose"

// TryManifests has the API server look at the objects of files, folders or URLs ("-" for the standard input) as if they were applied, strictly: what it
// does not know is refused. Nothing is changed. The error is of a file that cannot be read, or of the connection; what is wrong with an object is in Tried.
func TryManifests(ctx context.Context, flags *genericclioptions.ConfigFlags, namespace string, files []string) (out []Tried, err error) {
	// Each by itself: of a kind that there is none of the builder tells no more than the error.
	for _, file := range files {
		result := resource.NewBuilder(flags).Unstructured().NamespaceParam(namespace).DefaultNamespace().ContinueOnError().
			FilenameParam(false, &resource.FilenameOptions{Filenames: []string{file}}).Flatten().Do()
		err := result.Visit(func(info *resource.Info, err error) error {
			if err != nil {
				return err
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			t := tryOne(info)
			// A field that there is none of is an internal error where the object is there.
			if t.File = file; Transient(t.Err) && !apierrors.IsInternalError(t.Err) {
				return Explain(t.Err, "try "+t.Kind+"/"+t.Name)
			}
			out = append(out, t)
			return nil
		})
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case strings.Contains(err.Error(), "no matches for kind"), strings.Contains(err.Error(), "Object 'Kind' is missing"):
			out = append(out, Tried{File: file, Kind: "manifest", Name: filepath.Base(file), Err: err})
		case Transient(err):
			return nil, Explain(err, "read "+file)
		default:
			return nil, hint.New(hint.Usage, err, "name a file with objects of Kubernetes', in YAML or JSON")
		}
	}
	return out, nil
}

func tryOne(info *resource.Info) Tried {
	t := Tried{Kind: strings.ToLower(info.Mapping.GroupVersionKind.Kind), Namespace: info.Namespace, Name: info.Name}
	h := resource.NewHelper(info.Client, info.Mapping).DryRun(true).WithFieldManager(manifestManager).WithFieldValidation(metav1.FieldValidationStrict)
	body, err := json.Marshal(info.Object)
	if err != nil {
		t.Err = err
		return t
	}
	_, err = h.Get(info.Namespace, info.Name)
	switch {
	case err == nil:
		t.There = true
		force := true
		_, t.Err = h.Patch(info.Namespace, info.Name, types.ApplyPatchType, body, &metav1.PatchOptions{Force: &force})
	case apierrors.IsNotFound(err):
		_, t.Err = h.Create(info.Namespace, true, info.Object)
	default:
		t.Err = err
	}
	return t
}
