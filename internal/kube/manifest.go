package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/cli-runtime/pkg/resource"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"bridge/internal/hint"
)

// Tried is what the API server says of one object of a manifest.
type Tried struct {
	File  string
	Group string // "" for the core group
	// Resource is the kind's plural as the API has it, "ingresses"; "" where the cluster does not say.
	Resource string
	// Kind is in lower case; Namespace is "" for what has none. Name is what its name begins with where the API server makes one.
	Kind, Namespace, Name string
	// There is whether the cluster has it already.
	There bool
	// Err is why it would not be taken, as the API server says it; nil when it would.
	Err error
	// Over is whether Err is of admission that has refused nothing but the object there with the file's fields over it. What applies the file may take more
	// away, and pass.
	Over bool
	// Untried is why nothing can be said of it; "" when it can.
	Untried string
}

// Refused tells whether Err is that the user may not do it, which says nothing of the object.
func (t *Tried) Refused() bool { return refusedUser(t.Err) }

// Denied tells whether a webhook or a policy of admission has made Err, whatever reason it gives.
func (t *Tried) Denied() bool { return deniedBy(t.Err) != "" }

func refusedUser(err error) bool { return apierrors.IsForbidden(err) && rbac.MatchString(err.Error()) }

// unknownKind stands for one that the cluster does not have; the object is then the file.
const unknownKind = "manifest"

// manifestManager is in whose name manifests are tried.
const manifestManager = "bridge-diagnose"

// TryManifests has the API server look at the objects of files, folders or URLs ("-" for stdin) as if they were applied, strictly: what it does not know is
// refused. Nothing is changed. The error is of a file that cannot be read, or of the connection; what is wrong with an object is in Tried. When ctx is done it
// leaves a read of a file behind, which a terminal or a pipe may keep for ever.
func TryManifests(ctx context.Context, k *Client, stdin io.Reader, files []string) ([]Tried, error) {
	type result struct {
		tried []Tried
		err   error
	}
	done := make(chan result, 1)
	go func() {
		tried, err := tryManifests(ctx, k, stdin, files)
		done <- result{tried, err}
	}()
	select {
	case r := <-done:
		return r.tried, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func tryManifests(ctx context.Context, k *Client, stdin io.Reader, files []string) (out []Tried, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	way, err := newManifestWay(ctx, k)
	if err != nil {
		return nil, err
	}
	if _, err := way.discovery.ServerGroups(); err != nil { // of which the builder would have the text alone
		return nil, Explain(err, "list the kinds of the cluster")
	}
	comes := map[string]bool{} // kinds that the files' own definitions make, as kindIn has them
	for _, file := range files {
		builder := resource.NewBuilder(way).Unstructured().NamespaceParam(k.Namespace).DefaultNamespace().ContinueOnError()
		if file == "-" {
			builder.Stream(stdin, "stdin")
		} else {
			builder.FilenameParam(false, &resource.FilenameOptions{Filenames: []string{file}})
		}
		err := builder.Flatten().Do().Visit(func(info *resource.Info, err error) error {
			if err == nil && ctx.Err() == nil {
				for _, kind := range defined(info) {
					comes[kind] = true
				}
				t := tryOne(info)
				if t.File = file; !Transient(t.Err) || byWebhook(t.Err) {
					out = append(out, t)
					return nil
				}
				err = Explain(t.Err, "try "+t.Kind+"/"+t.Name)
			}
			if Transient(err) { // the rest would wait as long, one after the other
				cancel(err)
			}
			return err
		})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for _, err := range parts(err) {
			kind := noMatch.FindStringSubmatch(err.Error())
			switch {
			case kind != nil && !way.answers(kind[2]):
				out = append(out, Tried{File: file, Kind: strings.ToLower(kind[1]), Untried: "the API of " + kind[2] + " does not answer"})
			case strings.Contains(err.Error(), "no matches for kind"):
				out = append(out, Tried{File: file, Kind: unknownKind, Name: filepath.Base(file), Err: err})
			case Transient(err):
				return nil, Explain(err, "read "+file)
			default:
				return nil, hint.New(hint.Usage, err, "name a file with objects of Kubernetes', in YAML or JSON")
			}
		}
	}
	if len(out) == 0 { // as of a template that gives nothing: a diagnosis of no objects would be one of them all
		return nil, hint.New(hint.Usage, fmt.Errorf("there is no object in %s", strings.Join(files, ", ")), "look at what makes it: it is empty, or has comments alone")
	}
	withoutNamespace(out)
	withoutKind(out, comes)
	return out, nil
}

// parts are the errors of a builder that goes on.
func parts(err error) []error {
	var all utilerrors.Aggregate
	switch {
	case err == nil:
		return nil
	case errors.As(err, &all):
		return utilerrors.Flatten(all).Errors()
	}
	return []error{err}
}

// noMatch reads the kind and its version from what a builder says of one that the cluster does not have, or whose API is away:
//
//	resource mapping not found for name: "it" namespace: "" from "STDIN": no matches for kind "Frob" in version "x.example/v1"
var noMatch = regexp.MustCompile(`no matches for kind "([^"]*)" in version "([^"]*)"`)

// hooked is in what the API server says of a webhook of admission or of conversion.
var hooked = regexp.MustCompile(`admission webhook |failed calling webhook |conversion webhook for `)

// byWebhook tells whether a webhook has made err, also where that is one of the server's inside: it is one kind's fault.
func byWebhook(err error) bool { return err != nil && hooked.MatchString(err.Error()) }

// denial is in what the API server says of what a webhook or a policy has refused, for whatever reason: policies say Invalid where nothing else is set.
var denial = regexp.MustCompile(`(admission webhook "[^"]*"|ValidatingAdmissionPolicy '[^']*')( with binding '[^']*')? denied `)

// deniedBy names the webhook or the policy that has refused; "" when it was none.
func deniedBy(err error) string {
	if err == nil {
		return ""
	}
	if m := denial.FindStringSubmatch(err.Error()); m != nil {
		return m[1]
	}
	return ""
}

// withoutNamespace has of objects whose namespace comes with the files only that they cannot be tried.
func withoutNamespace(all []Tried) {
	comes := map[string]bool{}
	for _, t := range all {
		if t.Group == "" && t.Kind == "namespace" && !t.There {
			comes[t.Name] = true
		}
	}
	for i := range all {
		if t := &all[i]; t.Namespace != "" && comes[t.Namespace] && apierrors.IsNotFound(t.Err) {
			t.Err, t.Untried = nil, "their namespace comes with them"
		}
	}
}

// kindIn is how a kind and its version are kept.
func kindIn(kind, version string) string { return kind + " in " + version }

// defined are the kinds that an object is the definition of.
func defined(info *resource.Info) (out []string) {
	object, ok := info.Object.(*unstructured.Unstructured)
	if !ok || info.Mapping.GroupVersionKind.GroupKind() != (schema.GroupKind{Group: "apiextensions.k8s.io", Kind: "CustomResourceDefinition"}) {
		return nil
	}
	group, _, _ := unstructured.NestedString(object.Object, "spec", "group")
	kind, _, _ := unstructured.NestedString(object.Object, "spec", "names", "kind")
	versions, _, _ := unstructured.NestedFieldNoCopy(object.Object, "spec", "versions")
	list, _ := versions.([]any)
	for _, v := range list {
		if version, ok := v.(map[string]any); ok {
			out = append(out, kindIn(kind, fmt.Sprintf("%s/%v", group, version["name"])))
		}
	}
	return out
}

// withoutKind has of objects whose kind comes with the files only that they cannot be tried.
func withoutKind(all []Tried, comes map[string]bool) {
	for i := range all {
		t := &all[i]
		if t.Kind != unknownKind {
			continue
		}
		if kind := noMatch.FindStringSubmatch(t.Err.Error()); kind != nil && comes[kindIn(kind[1], kind[2])] {
			t.Kind, t.Name, t.Err, t.Untried = strings.ToLower(kind[1]), "", nil, "their kind comes with them"
		}
	}
}

// tryOne tries an object: one that is not there as kubectl create does.
func tryOne(info *resource.Info) Tried {
	kind := info.Mapping.GroupVersionKind
	t := Tried{Group: kind.Group, Resource: info.Mapping.Resource.Resource, Kind: strings.ToLower(kind.Kind), Namespace: info.Namespace, Name: info.Name}
	object, ok := info.Object.(*unstructured.Unstructured)
	if !ok {
		t.Err = fmt.Errorf("%T is no single object", info.Object)
		return t
	}
	h := resource.NewHelper(info.Client, info.Mapping).DryRun(true).WithFieldManager(manifestManager).WithFieldValidation(metav1.FieldValidationStrict)
	err := error(nil)
	if t.Name == "" {
		t.Name = object.GetGenerateName()
	} else {
		_, err = h.Get(info.Namespace, info.Name)
		t.There = err == nil
	}
	switch {
	case t.There:
		t.Over, t.Err = tryChange(info, h, object)
	case err == nil || apierrors.IsNotFound(err):
		_, t.Err = h.Create(info.Namespace, true, object)
	default:
		t.Err = err
	}
	if t.Err != nil && strings.Contains(t.Err.Error(), "does not support dry run") {
		t.Err, t.Untried = nil, "an admission webhook takes no dry runs"
	}
	return t
}

// tryChange tries an object that is there. How a change is put together, of the object, what was applied before and who owns which field, is the trade of
// whoever applies it, and no two do it the same. So two trials are made, of which what both say, or one alone can know, is told: a new object of another name, which
// knows nothing of the old one (its fields, and what is valid); and the object over the old one, which leaves what it does not name (what may not change). over is whether the error
// is of admission that has refused the second alone.
func tryChange(info *resource.Info, strict *resource.Helper, object *unstructured.Unstructured) (over bool, err error) {
	fresh := object.DeepCopy()
	fresh.SetName("")
	fresh.SetGenerateName(info.Name + "-")
	fresh.SetUID("")
	if info.Mapping.GroupVersionKind.GroupKind() == (schema.GroupKind{Kind: "Service"}) {
		withoutHeld(fresh)
	}
	_, created := strict.Create(info.Namespace, true, fresh)
	if undecoded := apierrors.IsBadRequest(created) && !byWebhook(created); undecoded || refusedUser(created) || Transient(created) && !byWebhook(created) {
		return false, created
	}
	body, err := json.Marshal(object)
	if err != nil {
		return false, err
	}
	lenient := resource.NewHelper(info.Client, info.Mapping).DryRun(true).WithFieldManager(manifestManager).WithFieldValidation(metav1.FieldValidationIgnore)
	_, err = lenient.Patch(info.Namespace, info.Name, types.StrategicMergePatchType, body, nil)
	// Custom resources have no such patch; and of the old port and the new one in one Service the API server fails inside ("duplicate nodePort"). The other
	// patch puts the new list in the old one's place.
	if apierrors.IsUnsupportedMediaType(err) || apierrors.IsInternalError(err) && !byWebhook(err) {
		_, err = lenient.Patch(info.Namespace, info.Name, types.MergePatchType, body, nil)
	}
	if by := deniedBy(err); by != "" || !apierrors.IsInvalid(err) {
		return by != "" && by != deniedBy(created), err
	}
	return false, bothInvalid(created, err)
}

// withoutHeld takes from a Service what one alone can have, which is looked at before all else.
func withoutHeld(service *unstructured.Unstructured) {
	for _, field := range []string{"clusterIP", "clusterIPs", "healthCheckNodePort"} {
		unstructured.RemoveNestedField(service.Object, "spec", field)
	}
	ports, _, _ := unstructured.NestedFieldNoCopy(service.Object, "spec", "ports")
	list, _ := ports.([]any)
	for _, p := range list {
		if port, ok := p.(map[string]any); ok {
			delete(port, "nodePort")
		}
	}
}

// unchangeable is in what the API server says of a field that may not be changed.
var unchangeable = regexp.MustCompile(`(?i)immutable|updates? to |updates? may not|may not (be )?change|can ?not change|can ?not be (changed|less than|(de|in)creased)`)

// detail is what the API server says of a value, without the value: what is not valid in itself may have more in it where it is put over another.
func detail(message string) string {
	kind, rest, _ := strings.Cut(message, ": ")
	value := json.NewDecoder(strings.NewReader(rest))
	if value.Decode(new(any)) != nil {
		return message // it has none, or one that is not in JSON
	}
	return kind + rest[value.InputOffset():]
}

// bothInvalid is changed with those of its causes alone that created has too, wherever in a list and with whatever value, or that are of what may not change; nil
// when there are none.
func bothInvalid(created, changed error) error {
	index := regexp.MustCompile(`\[[^\]]*\]`)
	key := func(c metav1.StatusCause) string {
		return index.ReplaceAllString(c.Field, "[]") + ": " + detail(c.Message)
	}
	known := map[string]bool{}
	for _, c := range causes(created) {
		known[key(c)] = true
	}
	var kept []metav1.StatusCause
	var words []string
	for _, c := range causes(changed) {
		if known[key(c)] || unchangeable.MatchString(c.Message) {
			kept, words = append(kept, c), append(words, c.Field+": "+c.Message)
		}
	}
	var status *apierrors.StatusError
	if len(kept) == 0 || !errors.As(changed, &status) {
		return nil
	}
	said := status.ErrStatus.DeepCopy()
	said.Details.Causes = kept
	said.Message = fmt.Sprintf("%s %q is invalid: %s", said.Details.Kind, said.Details.Name, strings.Join(words, ", "))
	return &apierrors.StatusError{ErrStatus: *said}
}

// causes are those of an object that is not valid.
func causes(err error) []metav1.StatusCause {
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) || status.Status().Details == nil {
		return nil
	}
	return status.Status().Details.Causes
}

// manifestWay is how cli-runtime reaches the API server: as k does, and no longer than ctx, of which it has none.
type manifestWay struct {
	config    *rest.Config
	discovery discovery.CachedDiscoveryInterface
}

func newManifestWay(ctx context.Context, k *Client) (*manifestWay, error) {
	config := rest.CopyConfig(k.Config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return within{ctx, next} })
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, configError(err)
	}
	return &manifestWay{config, memory.NewMemCacheClient(d)}, nil
}

// answers tells whether the API server can say which kinds there are in a version of a group, if only that there are none: of one whose own server is away
// it cannot.
func (w *manifestWay) answers(version string) bool {
	_, err := w.discovery.ServerResourcesForGroupVersion(version)
	none := err != nil && strings.Contains(err.Error(), "received empty response") // an error of no type
	return err == nil || none || apierrors.IsNotFound(err) || errors.Is(err, memory.ErrCacheNotFound)
}

// ToRESTConfig is cli-runtime's.
func (w *manifestWay) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(w.config), nil }

// ToDiscoveryClient is cli-runtime's.
func (w *manifestWay) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return w.discovery, nil
}

// ToRESTMapper is cli-runtime's.
func (w *manifestWay) ToRESTMapper() (meta.RESTMapper, error) {
	return restmapper.NewDeferredDiscoveryRESTMapper(w.discovery), nil
}

// within makes requests that end with ctx.
type within struct {
	ctx  context.Context
	next http.RoundTripper
}

// WrappedRoundTripper lets client-go find the transport underneath.
func (t within) WrappedRoundTripper() http.RoundTripper { return t.next }

// RoundTrip is an http.RoundTripper's.
func (t within) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.next.RoundTrip(req.WithContext(t.ctx))
}
