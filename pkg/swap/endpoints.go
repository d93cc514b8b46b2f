package swap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
)

// settle is how long callers may still be sent to an endpoint after it left the EndpointSlices:
// kube-proxy syncs at most once a second (its minSyncPeriod), and a busy node takes its time. There
// is nothing to wait for in the API.
const settle = 3 * time.Second

// dnsTTL is how long callers of a headless Service may go by what DNS has told them: kubeadm, GKE and AKS have its records good for 30 s and a cache keep them so long,
// CoreDNS has 5 s where nobody says anything.
const dnsTTL = 30 * time.Second

// endpoints of one Service, by the pods behind them.
type endpoints struct {
	ready   []string // names of the pods that new connections go to
	proxies []string // those of the proxy: another pod may take the place of one at any time
	// headless is whether callers find the pods by DNS, and keep what that told them.
	headless bool
}

// awaitEndpoints returns when done holds for the ready endpoints of every Service.
func (x changer) awaitEndpoints(ctx context.Context, proxy *proxypod.Proxy, services []string, done func(endpoints) bool) error {
	for _, name := range services {
		var last endpoints
		err := wait.PollUntilContextCancel(ctx, proxypod.Poll, true, func(ctx context.Context) (bool, error) {
			// In this order: a pod that is an endpoint is known by then.
			e, err := x.endpoints(ctx, proxy.Namespace, name)
			if err != nil {
				return false, kube.IgnoreTransient(err)
			}
			pods, err := proxy.Pods(ctx)
			if err != nil {
				return false, kube.IgnoreTransient(err)
			}
			e.proxies = names(pods)
			last = e
			return done(e), nil
		})
		if errors.Is(err, context.DeadlineExceeded) {
			return hint.Newf(hint.Other, "look at it: kubectl describe endpointslices -n "+proxy.Namespace+x.kube.Flags,
				"the endpoints of service/%s did not follow in time: those that are ready are %q", name, last.ready)
		}
		if err != nil {
			return fmt.Errorf("wait for the endpoints of service/%s: %w", name, err)
		}
	}
	return nil
}

func (x changer) endpoints(ctx context.Context, namespace, service string) (endpoints, error) {
	list, err := x.kube.Clientset.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + service,
	})
	if err != nil {
		return endpoints{}, kube.Explain(err, "list endpointslices in "+namespace)
	}
	var e endpoints
	for _, slice := range list.Items {
		if _, ok := slice.Labels[corev1.IsHeadlessService]; ok {
			e.headless = true
		}
		for _, ep := range slice.Endpoints {
			// nil means ready (discovery/v1, EndpointConditions).
			if (ep.Conditions.Ready == nil || *ep.Conditions.Ready) && ep.TargetRef != nil {
				e.ready = append(e.ready, ep.TargetRef.Name)
			}
		}
	}
	return e, nil
}

func (e endpoints) isProxy(pod string) bool { return slices.Contains(e.proxies, pod) }

// reachProxy tells whether the proxy is a ready endpoint.
func (e endpoints) reachProxy() bool { return slices.ContainsFunc(e.ready, e.isProxy) }

// reachOriginal tells whether there is a ready endpoint that is not the proxy.
func (e endpoints) reachOriginal() bool {
	return slices.ContainsFunc(e.ready, func(pod string) bool { return !e.isProxy(pod) })
}

// reachProxyOnly tells whether there are ready endpoints, all of them the proxy.
func (e endpoints) reachProxyOnly() bool { return e.reachProxy() && !e.reachOriginal() }

func names(pods []corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return out
}

// sleep waits d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
