package swap

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/proxypod"
)

const (
	podPath   = "/api/v1/namespaces/shop/pods/"
	slicePath = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/"
)

// podNamed is a pod of orders, or with a Lease's name of its proxy.
func podNamed(name, lease string) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", Labels: map[string]string{"app": "orders", "track": "stable"}}}
	if lease != "" {
		p.Labels[proxypod.ProxyLabel] = proxypod.LabelValue(lease)
	}
	return p
}

// sliceOf has these pods as ready endpoints of the Service.
func sliceOf(service string, headless bool, pods ...string) discoveryv1.EndpointSlice {
	s := discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: service, Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	if headless {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	for _, name := range pods {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: name}})
	}
	return s
}

// moving is a swap of orders whose callers are about to move, in a cluster whose endpoints follow their Service unless it is stubborn.
func moving(t *testing.T, mode Mode, headless, stubborn bool) (s *Swap, x changer, said *[]string) {
	t.Helper()
	f := facts(t, "orders.yaml")
	f.Source = carried
	if headless {
		f.Services[0].Spec.ClusterIP = corev1.ClusterIPNone
	}
	o := Options{Owner: "ada@laptop", Now: noon, Mode: mode}
	if mode == ModeStandby {
		f.Workload.Ready = 3
		o.Ports = []string{"3000:http"}
	}
	p, err := NewPlan(f, o)
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{
		leasePath + p.Lease.Name: p.Lease, podPath + "original": podNamed("original", ""), podPath + "proxy": podNamed("proxy", p.Lease.Name),
		slicePath + "proxies": sliceOf(proxypod.ProxiesName(p.Lease.Name), false, "proxy"),
	}
	for _, v := range f.Services {
		objects[servicePath+v.Name] = v
		objects[slicePath+v.Name] = sliceOf(v.Name, v.Spec.ClusterIP == corev1.ClusterIPNone, "original", "proxy")
	}
	c, k := newCluster(t, objects)
	c.controller = func() {
		for _, name := range p.Services {
			if at := servicePath + name; !stubborn && strings.Contains(fmt.Sprint(c.objects[at].Object["spec"]), proxypod.ProxyLabel) {
				_, labelled := c.objects[slicePath+name].GetLabels()[corev1.IsHeadlessService]
				c.keep(slicePath+name, sliceOf(name, labelled, "proxy"))
			}
		}
	}
	said = new([]string)
	s = &Swap{Kube: k, Plan: p, claim: &claim{kube: k, lease: p.Lease}, Say: func(line string) { *said = append(*said, line) }}
	s.proxy = &proxypod.Proxy{Kube: k, Namespace: "shop", Lease: p.Lease.Name}
	return s, changer{kube: k, claim: s.claim}, said
}

// Who calls a headless Service goes by what DNS has told them, for longer than the cluster takes to know where to send others. In standby they may.
func TestCallersOfAHeadlessServiceAreWaitedFor(t *testing.T) {
	for _, c := range []struct {
		mode     Mode
		headless bool
		least    time.Duration
	}{
		{ModeReplace, false, settle},
		{ModeReplace, true, settle + dnsTTL},
		{ModeStandby, true, settle},
	} {
		t.Run(fmt.Sprintf("%s, headless %v", c.mode, c.headless), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, x, said := moving(t, c.mode, c.headless, false)
				begin := time.Now()
				if err := s.moveEndpoints(t.Context(), x); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took < c.least || took > c.least+2*time.Second {
					t.Errorf("took %v, want %v", took, c.least)
				}
				told := slices.ContainsFunc(*said, func(line string) bool { return strings.HasPrefix(line, "waiting for 33s") })
				if told != (c.least > settle) {
					t.Errorf("said %q", *said)
				}
				pod := s.Plan.Proxy.Spec.Template.Spec
				i := slices.IndexFunc(pod.Containers, func(c corev1.Container) bool { return c.Name == "app" })
				at := slices.Index(pod.Containers[i].Args, "--drain-delay")
				if lingers := at >= 0 && pod.Containers[i].Args[at+1] == "33s" && *pod.TerminationGracePeriodSeconds == 63; lingers != c.headless {
					t.Errorf("the proxy is run with %q, and has %ds to end", pod.Containers[i].Args, *pod.TerminationGracePeriodSeconds)
				}
			})
		})
	}
}
