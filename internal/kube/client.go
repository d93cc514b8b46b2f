// Package kube is bridge's way to the Kubernetes API: it reads the kubeconfig, turns API errors into
// exit codes and plain words, resolves targets such as "svc/orders" to ready pods and keeps them
// current, and dials a port of a pod as a net.Conn. The commands, pkg/swap and internal/proxypod use
// it; client-go's transports are used here alone.
package kube

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"bridge/internal/hint"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// A swap reads a few dozen objects at once; client-go's 5 a second would make it wait for itself.
	qps   = 50
	burst = 100

	// dialTimeout bounds reaching the API server's port, requestTimeout one whole request that is
	// not a watch, an upgrade, or a log with an end of its own: an API server that has not answered by then will not.
	dialTimeout    = 10 * time.Second
	requestTimeout = 30 * time.Second
)

// Client is the API server as one context of a kubeconfig describes it.
type Client struct {
	Config    *rest.Config
	Clientset kubernetes.Interface
	Namespace string // from -n or the context; "default" otherwise
	// Flags are those by which the user chose this cluster, " --context staging", for commands that a
	// message proposes; "" for the usual one.
	Flags string

	ways      ways
	requestID atomic.Int64
	requests  *requestConns
	sessions  tls.ClientSessionCache // of port-forwards' connections
	idle      idleSessions
}

// New reads the configuration that flags describe. userAgent is what the API server logs and audits. It does not talk to the cluster. Its errors carry
// hint.Usage: nothing but the configuration can be wrong here.
func New(flags *genericclioptions.ConfigFlags, userAgent string) (*Client, error) {
	loader := flags.ToRawKubeConfigLoader()
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, configError(err)
	}
	cfg, err := flags.ToRESTConfig()
	if err != nil {
		return nil, configError(err)
	}
	// With nothing configured cli-runtime falls back to http://localhost:8080, which helps nobody.
	named := flags.APIServer != nil && *flags.APIServer != "" || os.Getenv("KUBERNETES_MASTER") != ""
	if len(raw.Clusters) == 0 && !named && strings.Contains(cfg.Host, "localhost:8080") {
		if missing := missingFile(); missing != "" {
			return nil, hint.Newf(hint.Usage, "check KUBECONFIG", "no cluster is configured: %s, which KUBECONFIG names, does not exist", missing)
		}
		return nil, configError(clientcmd.ErrEmptyConfig)
	}
	namespace, err := Namespace(flags)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = userAgent
	c, err := NewForConfig(cfg, namespace)
	if err != nil {
		return nil, err
	}
	c.Flags = FlagsOf(flags)
	return c, nil
}

// Namespace is the one that -n or the kubeconfig's context names, else "default". It does not talk to the cluster, and with
// -n needs no kubeconfig.
func Namespace(flags *genericclioptions.ConfigFlags) (string, error) {
	namespace, _, err := flags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", configError(err)
	}
	return cmp.Or(namespace, "default"), nil
}

// FlagsOf are the flags that another command needs to reach the same cluster as the same user: all but what is secret.
func FlagsOf(flags *genericclioptions.ConfigFlags) string {
	var out strings.Builder
	add := func(name string, values ...string) {
		for _, v := range values {
			if v != "" {
				fmt.Fprintf(&out, " --%s %s", name, v)
			}
		}
	}
	for _, f := range []struct {
		name  string
		value *string
	}{
		{"kubeconfig", flags.KubeConfig}, {"context", flags.Context}, {"cluster", flags.ClusterName}, {"user", flags.AuthInfoName},
		{"server", flags.APIServer}, {"tls-server-name", flags.TLSServerName}, {"certificate-authority", flags.CAFile},
		{"as", flags.Impersonate}, {"as-uid", flags.ImpersonateUID},
	} {
		if f.value != nil {
			add(f.name, *f.value)
		}
	}
	if flags.ImpersonateGroup != nil {
		add("as-group", *flags.ImpersonateGroup...)
	}
	if flags.Insecure != nil && *flags.Insecure {
		out.WriteString(" --insecure-skip-tls-verify")
	}
	return out.String()
}

// In is the same cluster with another namespace.
func (c *Client) In(namespace string) *Client {
	return &Client{Config: c.Config, Clientset: c.Clientset, Namespace: namespace, Flags: c.Flags, requests: c.requests, sessions: c.sessions}
}

// NewForConfig makes a Client from a configuration that is there already. It copies cfg.
func NewForConfig(cfg *rest.Config, namespace string) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst = qps, burst
	if cfg.UserAgent == "" {
		cfg.UserAgent = "bridge"
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext
	}
	requests := new(requestConns)
	cfg.Dial = requests.dialer(cfg.Dial)
	noticeDeadConnections()
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return limitedTransport{rt} })
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, configError(err)
	}
	return &Client{Config: cfg, Clientset: cs, Namespace: namespace, requests: requests, sessions: tls.NewLRUClientSessionCache(0)}, nil
}

// noticeDeadConnections has client-go drop a connection that lies dead for 15 seconds, as the tunnel does its carrier. By
// its own settings, which it takes from the environment only, the request that looks for the pod of the next carrier
// would wait 45 seconds on the connection that died with the last. What the user has set stays.
func noticeDeadConnections() {
	for name, seconds := range map[string]string{"HTTP2_READ_IDLE_TIMEOUT_SECONDS": "5", "HTTP2_PING_TIMEOUT_SECONDS": "10"} {
		if _, set := os.LookupEnv(name); !set {
			_ = os.Setenv(name, seconds) // fails for impossible names only
		}
	}
}

// missingFile is the first file that KUBECONFIG names and that is not there: client-go passes over it in silence.
func missingFile() string {
	for _, name := range filepath.SplitList(os.Getenv(clientcmd.RecommendedConfigPathEnvVar)) {
		if _, err := os.Stat(name); name != "" && errors.Is(err, os.ErrNotExist) {
			return name
		}
	}
	return ""
}

func configError(err error) error {
	var pathErr *os.PathError
	switch {
	case clientcmd.IsEmptyConfig(err):
		return hint.Newf(hint.Usage,
			"set KUBECONFIG or use --kubeconfig FILE; bridge reads what kubectl reads",
			"no cluster is configured")
	case clientcmd.IsContextNotFound(err), strings.Contains(err.Error(), "context") && strings.Contains(err.Error(), "does not exist"):
		return hint.New(hint.Usage, err, "list the contexts there are: kubectl config get-contexts")
	case errors.As(err, &pathErr):
		return hint.New(hint.Usage, err, "check KUBECONFIG and --kubeconfig")
	default:
		return hint.New(hint.Usage, err, "check the kubeconfig: kubectl config view")
	}
}

// limitedTransport gives each plain request an end, where rest.Config.Timeout would end watches too.
type limitedTransport struct{ next http.RoundTripper }

// WrappedRoundTripper lets client-go find the transport underneath.
func (t limitedTransport) WrappedRoundTripper() http.RoundTripper { return t.next }

func (t limitedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	// A log is as long as its reader says.
	if _, limited := req.Context().Deadline(); isLong(req) || limited && path.Base(req.URL.Path) == "log" {
		return t.next.RoundTrip(req)
	}
	ctx, cancel := context.WithTimeout(req.Context(), requestTimeout)
	resp, err := t.next.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel()
		return nil, err
	}
	if err := strange(resp); err != nil {
		_ = resp.Body.Close()
		cancel()
		return nil, err
	}
	resp.Body = cancelBody{resp.Body, cancel}
	return resp, nil
}

// strange is an error for a 404 that somebody before the API server has given, a load balancer without a backend say: it tells nothing of
// what there is. The API server's own are a Status, or have an Audit-Id and how they were queued (apiserver/pkg/endpoints/filters/audit_init.go,
// pkg/server/filters/priority-and-fairness.go).
func strange(resp *http.Response) error {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Audit-Id") != "" || resp.Header.Get("X-Kubernetes-Pf-Flowschema-Uid") != "" || kind == "application/json" || kind == "application/vnd.kubernetes.protobuf" {
		return nil
	}
	return errors.New("something before the API server answers 404 in its place")
}

func isLong(req *http.Request) bool {
	q := req.URL.Query()
	if q.Has("watch") || q.Has("follow") || req.Header.Get("Upgrade") != "" {
		return true
	}
	switch path.Base(req.URL.Path) {
	case "portforward", "exec", "attach", "proxy":
		return true
	}
	return false
}

type cancelBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b cancelBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}
