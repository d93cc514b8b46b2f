package swap

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

const (
	podPath      = "/api/v1/namespaces/shop/pods/"
	policiesPath = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies"
	slicePath    = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/"
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
			})
		})
	}
}

// When it is given back the proxy leaves the endpoints, and goes on as long as DNS may have told callers of it; one that has no laptop is in no answer of DNS.
func TestProxyOfAHeadlessServiceIsKept(t *testing.T) {
	for _, c := range []struct {
		name            string
		mode            Mode
		headless, ready bool
		refuses         string
		least           time.Duration
		said            string
	}{
		{"headless", ModeReplace, true, true, "", settle + dnsTTL, "waiting for 33s"},
		{"standby, whose proxies leave with the selector", ModeStandby, true, true, policiesPath, settle + dnsTTL, "waiting for 33s"},
		{"without a laptop", ModeReplace, true, false, "", 0, ""},
		{"not headless", ModeReplace, false, true, "", 0, ""},
		{"pods may not be patched", ModeReplace, true, true, podPath + "proxy", 0, "note: callers of a headless service may be refused for 30s"},
		{"network policies may not be listed", ModeReplace, true, true, policiesPath, 0, "note: callers of a headless service may be refused for 30s"},
		{"pods may not be patched for a moment", ModeReplace, true, true, podPath + "proxy", settle + dnsTTL, "waiting for 33s"},
		{"network policies are not listed for a moment", ModeReplace, true, true, policiesPath, settle + dnsTTL, "waiting for 33s"},
		{"pods are not listed for a moment", ModeReplace, true, true, strings.TrimSuffix(podPath, "/"), settle + dnsTTL, "waiting for 33s"},
		{"network policies may count its labels", ModeReplace, true, true, "", 0, "note: callers of a headless service may be refused for 30s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, x, said := moving(t, c.mode, c.headless, true)
				cl := s.Kube.Config.Transport.(*cluster)
				if c.ready {
					p := podNamed("proxy", s.Plan.Lease.Name)
					if c.mode == ModeStandby {
						p.Labels = map[string]string{proxypod.ProxyLabel: p.Labels[proxypod.ProxyLabel]}
					}
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
					cl.keep(podPath+"proxy", p)
				}
				failures := 3
				cl.refuses = func(method, path string) int {
					switch {
					case path != c.refuses || method == http.MethodDelete:
					case !strings.Contains(c.name, "for a moment"):
						return http.StatusForbidden
					case failures > 0:
						failures--
						return http.StatusInternalServerError
					}
					return 0
				}
				if strings.Contains(c.name, "may count") {
					cl.keep(policiesPath+"/all", networkingv1.NetworkPolicy{})
				}
				r := &Restorer{Kube: s.Kube, Say: s.Say}
				begin := time.Now()
				if err := r.moveBack(t.Context(), x, s.proxy, &s.Plan.Undo, []Object{s.Plan.Undo.Of(undo.Selector)[0].Object}); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took < c.least || took > c.least+5*time.Second {
					t.Errorf("took %v, want %v", took, c.least)
				}
				if told := slices.ContainsFunc(*said, func(line string) bool { return c.said != "" && strings.HasPrefix(line, c.said) }); told != (c.said != "") {
					t.Errorf("said %q", *said)
				}
				var p corev1.Pod
				if there := cl.at(podPath+"proxy", &p); !there || (p.Labels["app"] == "") != (c.least > 0) || p.Labels[proxypod.ProxyLabel] == "" {
					t.Errorf("its labels are %v", p.Labels)
				}
			})
		})
	}
}

// Endpoints that do not follow, since nobody sees to them, end a swap while the original still answers.
func TestEndpointsThatDoNotFollowEndASwap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, x, _ := moving(t, ModeReplace, false, true)
		s.Kube.Flags = staging
		begin := time.Now()
		err := s.moveEndpoints(t.Context(), x)
		if want := `did not follow in time: those that are ready are ["original" "proxy"]`; !strings.Contains(fmt.Sprint(err), want) || !strings.Contains(hint.Of(err), "kubectl describe endpointslices -n shop"+staging) {
			t.Errorf("%v (%s)", err, hint.Of(err))
		}
		if took := time.Since(begin); took < endpointsTimeout || took > endpointsTimeout+2*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// Pods that take their time to end, with what they are asked, are named and not waited for.
func TestOriginalsThatDoNotEndAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, said := moving(t, ModeReplace, false, false)
		begin := time.Now()
		if err := s.awaitStopped(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < stopTimeout || took > stopTimeout+time.Second {
			t.Errorf("took %v", took)
		}
		if want := []string{"still ending, and answering those who are connected to them: original"}; !slices.Equal(*said, want) {
			t.Errorf("said %q", *said)
		}
	})
}

// What does not come back keeps nothing else from being given back: an original that is never Ready, which is an error in the end, and endpoints that do
// not follow.
func TestGivingBackGoesOnWithoutWhatDoesNotCome(t *testing.T) {
	for _, c := range []struct {
		name       string
		ready      bool
		least      time.Duration
		says, errs string
	}{
		{name: "an original that is never Ready", least: readyTimeout, says: "waiting for deployment/orders: 0 of 3 pods are Ready", errs: "0 of 3 pods are Ready after 2m0s"},
		{name: "endpoints that do not follow", ready: true, least: endpointsTimeout, says: `the endpoints of service/orders did not follow in time: those that are ready are ["proxy"]`},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := ordersPlan(t)
				record, lease := p.Lease.Annotations[proxypod.UndoAnnotation], p.Lease.DeepCopy()
				lease.UID = "lease"
				none := int32(0)
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: p.target.UID, Annotations: map[string]string{proxypod.UndoAnnotation: record}})
				if d.Spec.Replicas = &none; c.ready {
					d.Status.ReadyReplicas = 3
				}
				v := facts(t, "orders.yaml").Services[0]
				v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: lease.Name}
				pod := podNamed("proxy", lease.Name)
				pod.OwnerReferences = []metav1.OwnerReference{{UID: "proxies"}}
				cl, k := newCluster(t, map[string]any{
					leasePath + lease.Name: lease, deploymentPath + "orders": d, servicePath + v.Name: v, podPath + pod.Name: pod,
					deploymentPath + lease.Name: deploymentWith(metav1.ObjectMeta{Name: lease.Name, Namespace: "shop", UID: "proxies", OwnerReferences: proxypod.OwnedBy(lease)}),
					slicePath + v.Name:          sliceOf(v.Name, false, pod.Name),
				})
				var said []string
				begin := time.Now()
				err := (&Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}).giveBack(t.Context(), &p.Undo, &claim{kube: k, lease: lease})
				if took := time.Since(begin); took < c.least || took > c.least+10*time.Second {
					t.Errorf("took %v, want %v", took, c.least)
				}
				if (err != nil) != (c.errs != "") || !strings.Contains(fmt.Sprint(err), c.errs) || err != nil && hint.CodeOf(err) != hint.RestoreIncomplete {
					t.Errorf("%v, code %d", err, hint.CodeOf(err))
				}
				if !slices.ContainsFunc(said, func(line string) bool { return strings.HasPrefix(line, c.says) }) {
					t.Errorf("said %q", said)
				}
				var now appsv1.Deployment
				var service corev1.Service
				if !cl.at(deploymentPath+"orders", &now) || *now.Spec.Replicas != 3 || len(now.Annotations) > 0 || !cl.at(servicePath+v.Name, &service) || len(service.Spec.Selector) != 1 {
					t.Errorf("is %+v and %+v", now, service)
				}
				for _, gone := range []string{leasePath + lease.Name, deploymentPath + lease.Name, podPath + pod.Name} {
					if cl.at(gone, &metav1.PartialObjectMetadata{}) {
						t.Errorf("%s is left", gone)
					}
				}
			})
		})
	}
}
