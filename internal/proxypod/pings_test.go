package proxypod

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// A pod that is refused for the sysctl that pings take is made without it, whoever refuses it; one that is refused for another reason is not made again.
func TestAPodThatMayHaveNoSysctlIsMadeWithout(t *testing.T) {
	deployments := schema.GroupResource{Group: "apps", Resource: "deployments"}
	for name, c := range map[string]struct {
		pings    bool
		create   error  // of a Deployment that has the sysctl, or of any
		replicas string // why the Deployment has no pod
		pod      corev1.PodStatus
		event    string // of the pod's sandbox
		forbid   bool   // events may not be read
		any      bool   // the refusal is of pods without it too
		again    bool
		allow    string // is noted
	}{
		"the kubelet": {
			pings: true, pod: corev1.PodStatus{Phase: corev1.PodFailed, Reason: sysctlForbidden, Message: `Pod was rejected: forbidden sysctl: "net.ipv4.ping_group_range" not allowlisted`},
			again: true, allow: "--allowed-unsafe-sysctls net.ipv4.ping_group_range",
		},
		"admission of the Deployment": {
			pings: true, create: apierrors.NewForbidden(deployments, "x", errors.New("spec.template.spec.securityContext.Sysctls: not here")), again: true, allow: "the rule has to except it",
		},
		"admission of the pod": {
			pings: true, replicas: "pods \"x\" is forbidden: sysctl net.ipv4.ping_group_range is not allowed", again: true, allow: "the rule has to except it",
		},
		"the runtime, in runc's words": {
			pings: true, pod: corev1.PodStatus{Phase: corev1.PodPending}, event: "Failed to create pod sandbox: rpc error: runc create failed: write sysctl key net.ipv4.ping_group_range: invalid argument",
			again: true, allow: "kernel and container runtime",
		},
		"the runtime, in a kernel's words": {
			pings: true, pod: corev1.PodStatus{Phase: corev1.PodPending}, event: "Failed to create pod sandbox: open /proc/sys/net/ipv4/ping_group_range: no such file or directory",
			again: true, allow: "kernel and container runtime",
		},
		"the runtime, for another reason": {pings: true, pod: corev1.PodStatus{Phase: corev1.PodPending}, event: "Failed to create pod sandbox: no IP addresses available"},
		"the runtime, without the right to read events": {
			pings: true, pod: corev1.PodStatus{Phase: corev1.PodPending}, event: "ping_group_range", forbid: true,
		},
		"for another reason": {pings: true, any: true, create: apierrors.NewForbidden(deployments, "x", errors.New("not here"))},
		"without having it":  {any: true, replicas: "sysctls have to be set"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				set := fake.NewClientset()
				there, has := false, false // a Deployment, the sysctl
				var made []bool
				set.PrependReactor("create", "deployments", func(a clienttesting.Action) (bool, runtime.Object, error) {
					d := a.(clienttesting.CreateAction).GetObject().(*appsv1.Deployment)
					has = len(d.Spec.Template.Spec.SecurityContext.Sysctls) > 0
					made = append(made, has)
					if there = c.create == nil || !has && !c.any; !there {
						return true, nil, c.create
					}
					if c.replicas != "" && (has || c.any) {
						d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: c.replicas}}
					}
					return false, nil, nil
				})
				set.PrependReactor("delete", "deployments", func(clienttesting.Action) (bool, runtime.Object, error) {
					there = false
					return false, nil, nil
				})
				set.PrependReactor("list", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
					list := &corev1.PodList{}
					if !there {
						return true, list, nil
					}
					status := corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"} // whatever else there is, this is the end of it
					if has {
						status = c.pod
					}
					if status.Phase != "" {
						label, value, _ := strings.Cut(a.(clienttesting.ListAction).GetListRestrictions().Labels.String(), "=")
						labels := map[string]string{label: value}
						created := metav1.NewTime(time.Now().Add(-time.Second))
						list.Items = []corev1.Pod{
							{ObjectMeta: metav1.ObjectMeta{Name: "first", UID: "first", Labels: labels, CreationTimestamp: created}, Status: status},
							{ObjectMeta: metav1.ObjectMeta{Name: "next", UID: "next", Labels: labels, CreationTimestamp: metav1.Now()}, Spec: corev1.PodSpec{NodeName: "node"}, Status: corev1.PodStatus{Phase: corev1.PodPending}},
						}
						if !has {
							list.Items = list.Items[:1]
						}
					}
					return true, list, nil
				})
				set.PrependReactor("list", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
					if c.forbid {
						return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("not you"))
					}
					of := func(uid types.UID, reason, message string) corev1.Event {
						return corev1.Event{InvolvedObject: corev1.ObjectReference{UID: uid}, Reason: reason, Message: message}
					}
					return true, &corev1.EventList{Items: []corev1.Event{of("another", "FailedCreatePodSandBox", pingSysctl), of("next", "Scheduled", pingSysctl), of("next", "FailedCreatePodSandBox", c.event)}}, nil
				})
				k, err := kube.NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
				if err != nil {
					t.Fatal(err)
				}
				k.Clientset = set
				var said []string
				o := &Own{
					Kube: k, Kind: KindConnect, Image: "bridge-proxy:1", Owner: "ada@laptop", ReadyTimeout: time.Minute, Pings: c.pings,
					Say: func(line string) { said = append(said, line) },
				}
				began := time.Now()
				err = o.Run(t.Context(), func(context.Context, *Proxy, *tunnel.Client) error {
					t.Error("there is a tunnel")
					return nil
				})
				want := []bool{c.pings}
				if c.again {
					want = append(want, false)
				}
				if !slices.Equal(made, want) || err == nil || c.again && !strings.Contains(err.Error(), "Evicted") || c.event != "" && (time.Since(began) < time.Minute) != c.again {
					t.Errorf("made with the sysctl: %v, want %v; %v", made, want, err)
				}
				notes := 0
				for _, line := range said {
					if strings.HasPrefix(line, "note: without the sysctl") && strings.Contains(line, c.allow) && strings.Count(line, "\n") == 0 {
						notes++
					}
				}
				if (notes == 1) != c.again {
					t.Errorf("it said %q", said)
				}
				leases, failed := set.CoordinationV1().Leases("shop").List(t.Context(), metav1.ListOptions{})
				if failed != nil || len(leases.Items) > 0 || there {
					t.Errorf("something is left: %v, %v", failed, err)
				}
			})
		})
	}
}
