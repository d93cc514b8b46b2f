//go:build unix

package swap

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/undo"
)

// Who may write a Lease, or annotate a deployment, in one namespace has nobody else change anything in another.
func TestRecordOfAnotherNamespaceIsRefused(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan := ordersPlan(t)
	uid := plan.target.UID
	lease := plan.Lease.DeepCopy()
	record := strings.ReplaceAll(lease.Annotations[proxypod.UndoAnnotation], `"namespace":"shop"`, `"namespace":"prod"`)
	lease.Annotations[proxypod.UndoAnnotation] = record
	annotated := map[string]string{proxypod.UndoAnnotation: record}
	controls := true
	other := map[string]string{proxypod.UndoAnnotation: strings.ReplaceAll(plan.Lease.Annotations[proxypod.UndoAnnotation], `"kind":"Deployment","namespace":"shop","name":"orders"`, `"kind":"Deployment","namespace":"shop","name":"victim"`)}
	for _, c := range []struct {
		name    string
		objects map[string]any
		code    hint.Code
	}{
		{"on the Lease", map[string]any{leasePath + lease.Name: lease}, hint.RestoreIncomplete},
		{"on the target", map[string]any{deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{UID: uid, Annotations: annotated})}, hint.NotFound},
		{"of another", map[string]any{deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{UID: uid, Annotations: other})}, hint.NotFound},
		{"on a ReplicaSet", map[string]any{
			deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{UID: uid}),
			"/apis/apps/v1/namespaces/shop/replicasets": appsv1.ReplicaSetList{Items: []appsv1.ReplicaSet{{ObjectMeta: metav1.ObjectMeta{
				Annotations: annotated, OwnerReferences: []metav1.OwnerReference{{UID: uid, Controller: &controls}},
			}}}},
		}, hint.NotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := apiServer(t, c.objects, noWrite(t))
			if err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), orders, "root@desk"); hint.CodeOf(err) != c.code {
				t.Errorf("%v, code %d, want %d", err, hint.CodeOf(err), c.code)
			}
		})
	}
	k := apiServer(t, map[string]any{leasePath + lease.Name: lease}, noWrite(t))
	s, _ := openSession(t, k)
	s.saved = savedSession{Version: sessionVersion, Target: plan.Undo.Target, Lease: lease.Name, Key: s.key}
	lease.Annotations[proxypod.ClientAnnotation] = s.Fingerprint().String()
	if _, err := s.TakeUp(t.Context(), orders, Options{}, proxypod.Source{}, func(string) {}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(err.Error(), "in prod") {
		t.Errorf("taking it up: %v", err)
	}
}

// An object that others write to all the time is no reason to stop giving back.
func TestConflictsAreTriedAgain(t *testing.T) {
	plan := ordersPlan(t)
	scale := plan.Undo.Of(undo.Replicas)[0]
	const conflicts = 5 // more than one try of the client's own
	writes := 0
	k := apiServer(t, map[string]any{
		leasePath + plan.Lease.Name:     plan.Lease,
		deploymentPath + "orders/scale": autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{UID: types.UID(scale.Object.UID)}},
	}, func(*http.Request) int {
		if writes++; writes <= conflicts {
			return http.StatusConflict
		}
		return http.StatusOK
	})
	r, c := &Restorer{Kube: k, Say: func(string) {}}, &claim{kube: k, lease: plan.Lease}
	back, err := r.undo(t.Context(), changer{kube: k, claim: c}, c, &plan.Undo, undo.Replicas, fault.ScaledBack, map[string]bool{})
	if err != nil || len(back) != 1 || writes != conflicts+1 {
		t.Errorf("after %d writes: %v, %v", writes, back, err)
	}
}

// A record without a Lease may be anybody's who may annotate the target: what it would have written is said before anything is.
func TestWhatARecordAloneChangesIsSaidFirst(t *testing.T) {
	plan := ordersPlan(t)
	record := strings.Replace(plan.Lease.Annotations[proxypod.UndoAnnotation], "ada@laptop", `eve\u001b[2J`, 1)
	var said []string
	k := apiServer(t, map[string]any{
		deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{UID: plan.target.UID, Annotations: map[string]string{proxypod.UndoAnnotation: record}}),
	}, func(*http.Request) int {
		if len(said) != 1 {
			t.Errorf("before the first write is said %q", said)
		}
		return http.StatusForbidden
	})
	if _, _, err := (&Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}).takeLease(t.Context(), orders, "root@desk", anySwap); hint.CodeOf(err) != hint.Forbidden {
		t.Error(err)
	}
	if want := "spec.replicas of deployment/orders (3)"; len(said) == 0 || !strings.Contains(said[0], want) || !strings.Contains(said[0], "spec.selector of service/orders (") || strings.Contains(said[0], "\x1b") {
		t.Errorf("said %q, want %q", said, want)
	}
}

// A pod that is gone may be one of a workload that is swapped.
func TestAPodThatIsGone(t *testing.T) {
	gone := kube.Target{Kind: kube.Pod, Name: "orders-x7k2m"}
	k := apiServer(t, map[string]any{}, noWrite(t))
	err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), gone, "root@desk")
	if hint.CodeOf(err) != hint.NotFound || !strings.Contains(hint.Of(err), "name the workload itself") {
		t.Errorf("restore: %v (%s)", err, hint.Of(err))
	}
	k = apiServer(t, map[string]any{
		"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews": authorizationv1.SelfSubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}},
	}, func(*http.Request) int { return http.StatusOK })
	_, err = Gather(t.Context(), k, gone, proxypod.Source{}, false)
	if hint.CodeOf(err) != hint.NotFound || !strings.Contains(hint.Of(err), "name the workload itself") {
		t.Errorf("swap: %v (%s)", err, hint.Of(err))
	}
}

// Where only copies of a record are left, or one that somebody has brought back, they go, and with them what is still bridge's; nobody is scaled, who
// may stand at 0 for a reason of their own. The record that bridge has left is another matter.
func TestCopiesOfARecordScaleNothing(t *testing.T) {
	plan := ordersPlan(t)
	record := plan.Lease.Annotations[proxypod.UndoAnnotation]
	controls := true
	set := func(name, owner, record string) appsv1.ReplicaSet {
		return appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "shop", UID: types.UID(name), Annotations: map[string]string{proxypod.UndoAnnotation: record},
			OwnerReferences: []metav1.OwnerReference{{UID: types.UID(owner), Controller: &controls}},
		}}
	}
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/"
	for _, c := range []struct {
		name, onTarget string
		managed        []metav1.ManagedFieldsEntry
		all            bool
		replicas       int32
	}{
		{"on a replicaset", "", nil, false, 0},
		{"on a replicaset, all", "", nil, true, 0},
		{"brought back", record, annotatedBy("kubectl"), false, 0},
		{"brought back, all", record, annotatedBy("kubectl"), true, 0},
		{"bridge's own", record, annotatedBy("bridge"), false, 3},
		{"bridge's own, all", record, annotatedBy("bridge"), true, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", t.TempDir())
			synctest.Test(t, func(t *testing.T) {
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID, ManagedFields: c.managed})
				if c.onTarget != "" {
					d.Annotations = map[string]string{proxypod.UndoAnnotation: c.onTarget}
				}
				none := int32(0)
				d.Spec.Replicas, d.Status.ReadyReplicas = &none, 3
				v := facts(t, "orders.yaml").Services[0] // one that is still as bridge has set it
				v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}
				cl, k := newCluster(t, map[string]any{
					deploymentPath + "orders": d, servicePath + v.Name: v,
					setPath + "one": set("one", "another", strings.Replace(record, "2026-11-24T12", "2026-11-24T11", 1)), setPath + "two": set("two", string(d.UID), record),
				})
				r := &Restorer{Kube: k, Say: func(line string) { t.Log(line) }}
				var err error
				if c.all {
					err = r.RestoreAll(t.Context(), "shop", "root@desk", false)
				} else {
					err = r.Restore(t.Context(), orders, "root@desk")
				}
				var now appsv1.Deployment
				var service corev1.Service
				if err != nil || !cl.at(deploymentPath+"orders", &now) || *now.Spec.Replicas != c.replicas || len(now.Annotations) > 0 {
					t.Errorf("%v; the deployment is %+v", err, now)
				}
				if !cl.at(servicePath+v.Name, &service) || len(service.Spec.Selector) != 1 || len(service.Annotations) > 0 || len(service.ManagedFields) != 1 {
					t.Errorf("the service is %+v", service)
				}
				for name, stays := range map[string]bool{"one": true, "two": false} {
					var rs appsv1.ReplicaSet
					if there := cl.at(setPath+name, &rs); !there || (rs.Annotations[proxypod.UndoAnnotation] != "") != stays {
						t.Errorf("replicaset %s is %+v", name, rs)
					}
				}
				if cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) {
					t.Error("the Lease is left")
				}
			})
		})
	}
}

// Where one Service may not be changed back the callers of the others are, and the record stays.
func TestOneServiceKeepsNoOther(t *testing.T) {
	f := facts(t, "orders.yaml")
	second := *f.Services[0].DeepCopy()
	second.Name, second.UID = "second", "second"
	f.Services = append(f.Services, second)
	plan, err := NewPlan(f, Options{Owner: "ada@laptop", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]any{leasePath + plan.Lease.Name: plan.Lease}
	for _, v := range f.Services {
		v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}
		objects[servicePath+v.Name] = v
	}
	synctest.Test(t, func(t *testing.T) {
		cl, k := newCluster(t, objects)
		cl.refuses = func(method, path string) int {
			if method == http.MethodPatch && path == servicePath+"orders" {
				return http.StatusForbidden
			}
			return 0
		}
		c := &claim{kube: k, lease: plan.Lease}
		back, err := (&Restorer{Kube: k, Say: func(string) {}}).undo(t.Context(), changer{kube: k, claim: c}, c, &plan.Undo, undo.Selector, fault.MovedBack, map[string]bool{})
		if !strings.Contains(fmt.Sprint(err), "service/orders: ") || len(back) == 0 || back[len(back)-1].Name != "second" {
			t.Errorf("back are %v: %v", back, err)
		}
	})
}
