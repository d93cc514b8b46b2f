package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"bridge/internal/hint"

	"golang.org/x/net/nettest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// listServices makes one real call to what answers at cfg.
func listServices(t *testing.T, cfg *rest.Config) error {
	t.Helper()
	c, err := NewForConfig(cfg, "shop")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err = c.Clientset.CoreV1().Services("shop").List(ctx, metav1.ListOptions{})
	return Explain(err, "list services in shop")
}

func TestExplainTellsWhatTheAPIServerMeans(t *testing.T) {
	status := `{"kind":"Status","apiVersion":"v1","status":"Failure","message":%q,"reason":%q,"details":{"kind":"services","name":"orders"},"code":%d}`
	for _, c := range []struct {
		http          int
		reason, said  string
		code          hint.Code
		message, next string
	}{
		{403, "Forbidden", `services is forbidden: User "jane" cannot list resource "services" in API group "" in the namespace "shop"`, hint.Forbidden,
			"list services in shop: jane may not list services in namespace shop", "kubectl auth can-i list services -n shop"},
		{403, "Forbidden", `deployments.apps "orders" is forbidden: User "jane" cannot patch resource "deployments/scale" in API group "apps" in the namespace "shop"`, hint.Forbidden,
			"list services in shop: jane may not patch deployments.apps/scale in namespace shop", "kubectl auth can-i patch deployments.apps/scale -n shop"},
		{403, "Forbidden", `nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope`, hint.Forbidden,
			"list services in shop: jane may not list nodes in the cluster", "kubectl auth can-i list nodes"},
		{403, "Forbidden", `pods "x" is forbidden: exceeded quota: small`, hint.Forbidden, "list services in shop: pods \"x\" is forbidden: exceeded quota: small", "admission"},
		{401, "Unauthorized", "Unauthorized", hint.Forbidden, "list services in shop: the API server does not accept your credentials", "log in"},
		{404, "NotFound", `services "orders" not found`, hint.NotFound, `list services in shop: services "orders" not found`, "kubectl get services"},
		{409, "AlreadyExists", `services "orders" already exists`, hint.Conflict, `list services in shop: services "orders" already exists`, "somebody else"},
		{409, "Conflict", "the object has been modified", hint.Conflict, "list services in shop: the object has been modified", "somebody else"},
		{504, "Timeout", "took too long", hint.Unreachable, "list services in shop: took too long", "/readyz"},
		{503, "ServiceUnavailable", "not yet", hint.Unreachable, "list services in shop: not yet", "/readyz"},
		{500, "InternalError", "failed calling webhook \"w\"", hint.Other, "list services in shop: failed calling webhook \"w\"", "webhooks"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(c.http)
			fmt.Fprintf(w, status, c.said, c.reason, c.http)
		}))
		err := listServices(t, &rest.Config{Host: srv.URL})
		srv.Close()
		check(t, err, c.code, c.message, c.next)
	}
}

func check(t *testing.T, err error, code hint.Code, message, next string) {
	t.Helper()
	if hint.CodeOf(err) != code || err.Error() != message || !strings.Contains(hint.Of(err), next) {
		t.Errorf("got  %d %q, hint %q\nwant %d %q, hint with %q", hint.CodeOf(err), err, hint.Of(err), code, message, next)
	}
}

func TestExplainTellsWhyTheAPIServerIsNotReached(t *testing.T) {
	ln, err := nettest.NewLocalListener("tcp")
	if err != nil {
		t.Fatal(err)
	}
	refusing := ln.Addr().String()
	_ = ln.Close()
	check(t, listServices(t, &rest.Config{Host: "https://" + refusing}), hint.Unreachable,
		"list services in shop: the API server https://"+refusing+" refused the connection", "kubectl config view")

	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = nil
	untrusted.StartTLS()
	defer untrusted.Close()
	check(t, listServices(t, &rest.Config{Host: untrusted.URL}), hint.Unreachable,
		"list services in shop: the API server "+untrusted.URL+" cannot be trusted: tls: failed to verify certificate: x509: certificate signed by unknown authority", "certificate-authority")

	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	https := "https" + plain.URL[len("http"):]
	check(t, listServices(t, &rest.Config{Host: https}), hint.Unreachable,
		"list services in shop: the API server "+https+" speaks HTTP, not HTTPS", "kubeconfig")

	gone := &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "api.example", IsNotFound: true}}
	check(t, Explain(fmt.Errorf("get: %w", gone), "do"), hint.Unreachable, "do: the API server: the name api.example does not resolve", "VPN")
	check(t, Explain(fmt.Errorf("get: %w", context.DeadlineExceeded), "do"), hint.Unreachable, "do: the API server does not answer (timed out)", "firewall")
	check(t, Explain(io.ErrUnexpectedEOF, "do"), hint.Unreachable, "do: unexpected EOF", "HTTPS_PROXY")
}

// What is not the API server's own word says nothing of what there is.
func TestAnswersOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		answer    http.HandlerFunc
		transient bool
		code      hint.Code
	}{
		"a load balancer's 404": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "default backend - 404", http.StatusNotFound)
		}, true, hint.Unreachable},
		"the API server's own 404 in plain text": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Audit-Id", "1d0d7f6e-3c2a-4f0a-9d55-7a4a3c1c9f11")
			http.Error(w, "404 page not found", http.StatusNotFound)
		}, false, hint.NotFound},
		"an answer that is cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"kind":`)
		}, true, hint.Unreachable},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.answer)
			defer srv.Close()
			if err := listServices(t, &rest.Config{Host: srv.URL}); Transient(err) != c.transient || hint.CodeOf(err) != c.code {
				t.Errorf("transient %v, code %d: %v", Transient(err), hint.CodeOf(err), err)
			}
		})
	}
}

func TestExplainLeavesAloneWhatIsDecidedElsewhere(t *testing.T) {
	if err := Explain(nil, "do"); err != nil {
		t.Error(err)
	}
	canceled := Explain(context.Canceled, "do")
	if !errors.Is(canceled, context.Canceled) || hint.Of(canceled) != "" {
		t.Errorf("%v, hint %q", canceled, hint.Of(canceled))
	}
	has := hint.Newf(hint.Conflict, "ask jane", "held")
	check(t, Explain(fmt.Errorf("claim: %w", has), "swap"), hint.Conflict, "swap: claim: held", "ask jane")
}

func TestTargetsAreReadAsKubectlReadsThem(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"svc/orders"}, "service/orders"}, {[]string{"deploy/x"}, "deployment/x"},
		{[]string{"deployments.apps/x"}, "deployment/x"}, {[]string{"deployment", "x"}, "deployment/x"},
		{[]string{"po/x"}, "pod/x"}, {[]string{"x-0"}, "pod/x-0"}, {[]string{"STS/x"}, "statefulset/x"},
		{[]string{"job/x"}, "job/x"}, {[]string{"rc/x"}, "replicationcontroller/x"},
	} {
		if got, err := ParseTarget(c.args...); err != nil || got.String() != c.want {
			t.Errorf("%q: %v, %v; want %s", c.args, got, err, c.want)
		}
	}
	for _, args := range [][]string{nil, {""}, {"svc/"}, {"/x"}, {"cronjob/x"}, {"svc/a/b"}, {"svc", "a", "b"}} {
		if got, err := ParseTarget(args...); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%q: %v, %v; want a usage error", args, got, err)
		}
	}
}
