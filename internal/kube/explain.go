package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"github.com/gorilla/websocket"

	"bridge/internal/hint"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Unhealthy is an error of something that has to be well and is not. internal/diagnose says why.
type Unhealthy struct {
	Target    Target
	Namespace string
	// Pods are the names of its pods, where they are known: who may list pods alone cannot tell whose they are.
	Pods []string
	// Goes is whether the command that ends over it removes it: what can be looked at later is for the others.
	Goes bool
	Err  error
}

func (u *Unhealthy) Error() string { return u.Err.Error() }

// Unwrap returns what is known so far.
func (u *Unhealthy) Unwrap() error { return u.Err }

// Explain wraps an error of an API call with what was being done ("list services in shop"), an exit
// code and the next step. A nil err gives nil. An error that has a hint already keeps it; a cancelled
// context is only prefixed, for then somebody else knows the reason.
func Explain(err error, doing string) error {
	if err == nil {
		return nil
	}
	code, msg, next := explain(err)
	if msg == "" {
		err = fmt.Errorf("%s: %w", doing, err)
	} else {
		err = hint.Worded(doing+": "+msg, err)
	}
	if next == "" && code == 0 {
		return err
	}
	return hint.New(code, err, next)
}

// explain returns the code, the words that replace err's own text ("" keeps them), and the next step.
func explain(err error) (code hint.Code, msg, next string) {
	var explained *hint.Error
	if errors.As(err, &explained) || errors.Is(err, context.Canceled) {
		return 0, "", ""
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return explainStatus(err, status.Status())
	}
	return explainNetwork(err)
}

// rbac reads the API server's refusal, e.g.
//
//	services is forbidden: User "jane" cannot list resource "services" in API group "" in the namespace "shop"
var rbac = regexp.MustCompile(`User "([^"]*)" cannot (\S+) resource "([^"]*)" in API group "([^"]*)"(?: (?:in the namespace "([^"]*)"|at the cluster scope))?`)

func explainStatus(err error, status metav1.Status) (code hint.Code, msg, next string) {
	switch {
	case apierrors.IsUnauthorized(err):
		return hint.Forbidden, "the API server does not accept your credentials",
			"log in to the cluster again (they may have expired); kubectl auth whoami shows who you are"
	case apierrors.IsForbidden(err):
		m := rbac.FindStringSubmatch(status.Message)
		if m == nil {
			return hint.Forbidden, "", "an admission rule of the cluster refused it, see the message"
		}
		user, verb, resource, group, namespace := m[1], m[2], m[3], m[4], m[5]
		if group != "" {
			base, sub, isSub := strings.Cut(resource, "/")
			resource = base + "." + group
			if isSub {
				resource += "/" + sub
			}
		}
		where, flag := "in the cluster", ""
		if namespace != "" {
			where, flag = "in namespace "+namespace, " -n "+namespace
		}
		return hint.Forbidden, fmt.Sprintf("%s may not %s %s %s", user, verb, resource, where),
			fmt.Sprintf("ask for a Role with verb %q on %q; test with: kubectl auth can-i %s %s%s", verb, resource, verb, resource, flag)
	case apierrors.IsNotFound(err):
		next = "check the name and the namespace (-n)"
		if d := status.Details; d != nil && d.Kind != "" && d.Kind != "namespaces" {
			next += "; list them with: kubectl get " + d.Kind
		}
		return hint.NotFound, "", next
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err):
		return hint.Conflict, "", "somebody else has changed it meanwhile; look at it and try again"
	case apierrors.IsTooManyRequests(err):
		return hint.Unreachable, "", "the API server is overloaded or limits you; try again in a moment"
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsServiceUnavailable(err),
		status.Code == 502, status.Code == 504:
		return hint.Unreachable, "", "the API server answers, but not in time; try again, and look at kubectl get --raw '/readyz?verbose'"
	case apierrors.IsInternalError(err):
		return hint.Other, "", "the API server or one of its webhooks failed; the message names it"
	}
	return 0, "", ""
}

func explainNetwork(err error) (code hint.Code, msg, next string) {
	server := "the API server"
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		if u, perr := url.Parse(urlErr.URL); perr == nil && u.Host != "" {
			server = "the API server " + u.Scheme + "://" + u.Host
		}
	}
	var dnsErr *net.DNSError
	var netErr net.Error
	var opErr *net.OpError
	var closed *websocket.CloseError // as client-go wraps it when a WebSocket ends that has not been closed
	text := err.Error()
	switch {
	case strings.Contains(text, "getting credentials"):
		return hint.Forbidden, "", "the login helper of your kubeconfig failed; log in to the cluster again"
	case isTLS(err):
		return hint.Unreachable, server + " cannot be trusted: " + reason(err),
			"check certificate-authority and server in the kubeconfig, the clock of this machine, and proxies that open TLS"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return hint.Unreachable, server + " speaks HTTP, not HTTPS", "check the server's URL in the kubeconfig"
	case errors.As(err, &dnsErr):
		return hint.Unreachable, fmt.Sprintf("%s: the name %s does not resolve", server, dnsErr.Name),
			"check the network or VPN, and the server in the kubeconfig: kubectl config view --minify"
	case isErrno(err, errnoRefused...):
		return hint.Unreachable, server + " refused the connection",
			"is the cluster running, and is this the right context? kubectl config view --minify"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return hint.Unreachable, server + " does not answer (timed out)",
			"check the network, VPN or firewall between this machine and the server"
	case strings.Contains(text, "when reading response body"), // so client-go says that the connection was lost in the middle of an answer
		errors.As(err, &opErr), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), urlErr != nil,
		errors.Is(err, syscall.ECONNRESET), errors.As(err, &closed) && closed.Code != websocket.CloseNormalClosure:
		return hint.Unreachable, "", "the connection to " + server + " failed; check the network, VPN and proxy settings (HTTPS_PROXY)"
	}
	return 0, "", ""
}

// explainPodProxy explains why the API server's proxy to a pod gave no connection. Where the API server itself says
// nothing of rights, somebody on the way has refused.
func explainPodProxy(err error, doing string) error {
	const (
		unreached = "a NetworkPolicy may keep the API server from the pod, or this cluster's API server has no way to pods"
		refused   = "a service mesh's sidecar in the pod, or a proxy before the API server, does not pass the upgrade"
	)
	status := apierrors.APIStatus(nil)
	switch {
	case errors.Is(err, context.Canceled), apierrors.IsNotFound(err), apierrors.IsUnauthorized(err),
		apierrors.IsForbidden(err) && rbac.MatchString(err.Error()):
		return Explain(err, doing)
	case errors.Is(err, context.DeadlineExceeded):
		return hint.New(hint.Unreachable, hint.Worded(doing+": no answer in time", err), unreached)
	case errors.As(err, &status) && status.Status().Code >= 500:
		return hint.New(hint.Unreachable, fmt.Errorf("%s: %w", doing, portError(err.Error())), unreached)
	case errors.As(err, &status):
		return hint.New(hint.Other, fmt.Errorf("%s: %w", doing, err), refused)
	}
	return Explain(err, doing)
}

func isTLS(err error) bool {
	var verify *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &invalid) ||
		errors.As(err, &host) || errors.As(err, &record) || errors.As(err, &alert)
}

func isErrno(err error, errnos ...syscall.Errno) bool {
	for _, e := range errnos {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// reason is the innermost text, without the URL and the operation before it.
func reason(err error) string {
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		return urlErr.Err.Error()
	}
	return err.Error()
}

// Transient tells whether trying again may help: the API server is away, busy, or failed inside
// ("etcdserver: leader changed"). A nil err is not.
func Transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) {
		return false
	}
	if apierrors.IsInternalError(err) || GaveUp(err) {
		return true
	}
	code, _, _ := explain(err)
	return code == hint.Unreachable || hint.CodeOf(err) == hint.Unreachable
}

// limiterGaveUp is in what client-go's rate limiter says, in no type of its own, of a request whose turn comes after its deadline
// (golang.org/x/time/rate).
const limiterGaveUp = "would exceed context deadline"

// GaveUp tells whether a request was not made, since its turn would have come after its deadline.
func GaveUp(err error) bool { return err != nil && strings.Contains(err.Error(), limiterGaveUp) }

// IgnoreTransient is err, or nil where trying again may help: for polls.
func IgnoreTransient(err error) error {
	if Transient(err) {
		return nil
	}
	return err
}
