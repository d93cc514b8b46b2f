package keeper

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"bridge/internal/undo"
)

const (
	// accountDir is where a pod finds its ServiceAccount's token, namespace and the cluster's CA.
	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
	// requestTimeout bounds a request: the API server's own limit for what is asked here is 60 s, and it mostly takes milliseconds.
	requestTimeout = 10 * time.Second
	// maxAnswer bounds an answer's size: etcd's limit for an object is 1.5 MiB.
	maxAnswer = 4 << 20
	// pageSize is how many objects' metadata are asked for at once: the annotations of one may have 256 KiB.
	pageSize = 10
)

// API is the API server, as the pod's ServiceAccount sees it, and the namespace that this is for.
type API struct {
	URL       string // https://HOST:PORT
	Namespace string
	// Token is a file, read for each request: the kubelet writes it anew within the hour. "" sends none.
	Token string
	Trust *x509.CertPool
}

// InPod is the API server of the pod in which this runs.
func InPod() (*API, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this runs in a pod")
	}
	namespace, err := os.ReadFile(filepath.Join(accountDir, "namespace"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(accountDir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	a := &API{
		URL: "https://" + net.JoinHostPort(host, port), Namespace: strings.TrimSpace(string(namespace)),
		Token: filepath.Join(accountDir, "token"), Trust: x509.NewCertPool(),
	}
	if !a.Trust.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("no certificate in %s", filepath.Join(accountDir, "ca.crt"))
	}
	return a, nil
}

// client sends requests to the API server.
type client struct {
	*API
	http *http.Client
	dry  bool // changes are tried only (dryRun=All)
}

// newClient speaks HTTP/1.1: a connection that died is noticed by the request on it, and not shared with the next.
func newClient(a *API) *client {
	return &client{API: a, http: &http.Client{
		Timeout: requestTimeout,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: a.Trust}, IdleConnTimeout: time.Minute, MaxIdleConns: 2,
		},
	}}
}

// dryRun is the same client, for trying what it may do.
func (c *client) dryRun() *client {
	d := *c
	d.dry = true
	return &d
}

// object is what is read of an object, of whatever kind.
type object struct {
	Metadata struct {
		Name            string            `json:"name"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Generation      int64             `json:"generation"`
		Annotations     map[string]string `json:"annotations"`
		ManagedFields   json.RawMessage   `json:"managedFields"`
		OwnerReferences []struct {
			UID string `json:"uid"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Replicas json.RawMessage `json:"replicas"`
		Selector json.RawMessage `json:"selector"`

		HolderIdentity string `json:"holderIdentity"` // this and the rest are a Lease's
		RenewTime      string `json:"renewTime"`
		Seconds        int    `json:"leaseDurationSeconds"`
	} `json:"spec"`
	Status struct {
		// ObservedGeneration is a number, which a Rollout has as text.
		ObservedGeneration json.RawMessage `json:"observedGeneration"`
		ReadyReplicas      int64           `json:"readyReplicas"`
		AvailableReplicas  int64           `json:"availableReplicas"`
	} `json:"status"`
}

// page is a part of a list, with no more of the objects than their metadata.
type page struct {
	Metadata struct {
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []object `json:"items"`
}

// observed is the generation that its controller has seen; 0 when it has said none.
func (o object) observed() (n int64) {
	_ = json.Unmarshal(bytes.Trim(o.Status.ObservedGeneration, `"`), &n)
	return n
}

// chosen is a workload's spec.selector as a list's labelSelector; "", which is all, where there is none.
func chosen(selector json.RawMessage) (string, error) {
	var s struct {
		MatchLabels      map[string]string `json:"matchLabels"`
		MatchExpressions []struct {
			Key      string   `json:"key"`
			Operator string   `json:"operator"`
			Values   []string `json:"values"`
		} `json:"matchExpressions"`
	}
	if len(selector) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(selector, &s); err != nil {
		return "", fmt.Errorf("spec.selector: %w", err)
	}
	var terms []string
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		terms = append(terms, key+"="+s.MatchLabels[key])
	}
	for _, e := range s.MatchExpressions {
		switch e.Operator {
		case "In", "NotIn":
			terms = append(terms, fmt.Sprintf("%s %s (%s)", e.Key, strings.ToLower(e.Operator), strings.Join(e.Values, ",")))
		case "Exists":
			terms = append(terms, e.Key)
		case "DoesNotExist":
			terms = append(terms, "!"+e.Key)
		default:
			return "", fmt.Errorf("spec.selector: unknown operator %q", e.Operator)
		}
	}
	return strings.Join(terms, ","), nil
}

// Where objects are, for path.
const (
	leases      = "apis/coordination.k8s.io/v1/%s/leases"
	apps        = "apis/apps/v1/%s/"
	deployments = apps + "deployments"
	replicaSets = apps + "replicasets"
	events      = "api/v1/%s/events"
)

func (c *client) path(resource string, name ...string) string {
	p := c.URL + "/" + fmt.Sprintf(resource, "namespaces/"+url.PathEscape(c.Namespace))
	for _, n := range name {
		p += "/" + url.PathEscape(n)
	}
	return p
}

// pathOf is a record's object's.
func (c *client) pathOf(o undo.Object) string { return c.URL + o.Path() }

func (c *client) get(ctx context.Context, path string) (o object, err error) {
	err = c.do(ctx, http.MethodGet, path, nil, &o)
	return o, err
}

// list reads the metadata of the objects of a resource in the namespace that the selector chooses, and gives take each.
func (c *client) list(ctx context.Context, resource, selector string, take func(object)) error {
	for next := ""; ; {
		query := url.Values{"limit": {strconv.Itoa(pageSize)}, "continue": {next}, "labelSelector": {selector}}
		var p page
		if err := c.do(ctx, http.MethodGet, c.path(resource)+"?"+query.Encode(), nil, &p); err != nil {
			return err
		}
		for _, o := range p.Items {
			take(o)
		}
		if next = p.Metadata.Continue; next == "" {
			return nil
		}
	}
}

// patch sends a JSON merge patch in bridge's name.
func (c *client) patch(ctx context.Context, path string, body map[string]any) error {
	path += "?fieldManager=" + undo.FieldManager
	if c.dry {
		path += "&dryRun=All"
	}
	return c.do(ctx, http.MethodPatch, path, body, nil)
}

// create makes an object, of which name is no more than the beginning when it is the API server's to say (generateName).
func (c *client) create(ctx context.Context, path string, body map[string]any) error {
	return c.do(ctx, http.MethodPost, path, body, nil)
}

// How remove deletes what an object owns, by the API's names.
const (
	foreground = "Foreground" // before the object itself goes
	background = "Background" // after that; also of an object that is being deleted in the foreground
)

// remove deletes an object if it has the UID.
func (c *client) remove(ctx context.Context, path, uid, propagation string) error {
	options := map[string]any{"preconditions": map[string]any{"uid": uid}, "propagationPolicy": propagation}
	if c.dry {
		options["dryRun"] = []string{"All"} // in the query it would count for nothing beside a body
	}
	return c.do(ctx, http.MethodDelete, path, options, nil)
}

func (c *client) do(ctx context.Context, method, url string, body map[string]any, into any) error {
	var send io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		send = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, send)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	if _, list := into.(*page); list {
		r.Header.Set("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")
	}
	r.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		r.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if c.Token != "" {
		token, err := os.ReadFile(c.Token)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		refused := &refusal{code: answer.StatusCode, message: answer.Status}
		var status struct {
			Message string `json:"message"`
		}
		if json.Unmarshal(text, &status) == nil && status.Message != "" {
			refused.message = status.Message
		}
		return refused
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// refusal is an answer of the API server that is not what was asked for.
type refusal struct {
	code    int
	message string
}

func (r *refusal) Error() string { return r.message }

func refusedWith(err error, codes ...int) bool {
	var r *refusal
	if !errors.As(err, &r) {
		return false
	}
	for _, c := range codes {
		if r.code == c {
			return true
		}
	}
	return false
}

func isNotFound(err error) bool { return refusedWith(err, http.StatusNotFound) }
func isConflict(err error) bool { return refusedWith(err, http.StatusConflict) }
func isForbidden(err error) bool {
	return refusedWith(err, http.StatusForbidden, http.StatusUnauthorized)
}

// transient tells whether the same may work in a moment: there was no answer, or a "not now", or something has changed
// between reading and writing.
func transient(err error) bool {
	var r *refusal
	return !errors.As(err, &r) || r.code == http.StatusConflict || r.code == http.StatusTooManyRequests || r.code >= 500
}
