//go:build unix

package swap

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
			k.Flags = staging
			err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), orders, "root@desk")
			if hint.CodeOf(err) != c.code {
				t.Errorf("%v, code %d, want %d", err, hint.CodeOf(err), c.code)
			}
			allForStaging(t, hint.Of(err))
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
	back, err := r.undo(t.Context(), changer{kube: k, claim: c}, c, plan.Undo.Of(undo.Replicas), fault.ScaledBack, undone{map[string]bool{}, map[Object]bool{}})
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
	if _, _, err := (&Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}).takeLease(t.Context(), orders, "root@desk", nil, anySwap); hint.CodeOf(err) != hint.Forbidden {
		t.Error(err)
	}
	if want := "spec.replicas of deployment/orders (3)"; len(said) == 0 || !strings.Contains(said[0], want) || !strings.Contains(said[0], "spec.selector of service/orders (") || strings.Contains(said[0], "\x1b") {
		t.Errorf("said %q, want %q", said, want)
	}
}

// Who may not move callers back leaves the swap to whoever holds it.
func TestWhatCouldNotEndIsNotBegun(t *testing.T) {
	plan := ordersPlan(t)
	k := apiServer(t, map[string]any{
		leasePath + plan.Lease.Name: plan.Lease,
		reviewPath:                  map[string]any{"status": map[string]any{"allowed": false}},
	}, noWrite(t))
	err := (&Restorer{Kube: k, Say: func(line string) { t.Errorf("said %q", line) }}).Restore(t.Context(), orders, "eve@pc")
	if hint.CodeOf(err) != hint.Forbidden || !strings.Contains(err.Error(), "patch services") {
		t.Error(err)
	}
}

// With its target and its Lease deleted, the record in hand is all that is left to say where the Services' callers were.
func TestRecordInHandOfADeletedTarget(t *testing.T) {
	plan := ordersPlan(t)
	c := plan.Undo.Of(undo.Selector)[0]
	moved := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: c.Object.Name, UID: types.UID(c.Object.UID)}}
	if err := json.Unmarshal(c.Set, &moved.Spec.Selector); err != nil {
		t.Fatal(err)
	}
	r := &Restorer{Kube: apiServer(t, map[string]any{servicePath + c.Object.Name: moved}, noWrite(t)), Say: func(string) {}}
	if u, over, err := r.withoutLease(t.Context(), orders, &plan.Undo); u == nil || over || err != nil {
		t.Errorf("%v, over %v, %v", u, over, err)
	}
	if _, _, err := r.withoutLease(t.Context(), orders, nil); hint.CodeOf(err) != hint.NotFound {
		t.Errorf("without a record: %v", err)
	}
	r.Kube = apiServer(t, nil, noWrite(t)) // somebody has given it back, or deleted all
	if _, _, err := r.withoutLease(t.Context(), orders, &plan.Undo); hint.CodeOf(err) != hint.NotFound {
		t.Errorf("with nothing left: %v", err)
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
	_, err = Gather(t.Context(), k, gone, proxypod.Source{}, Options{})
	if hint.CodeOf(err) != hint.NotFound || !strings.Contains(hint.Of(err), "name the workload itself") {
		t.Errorf("swap: %v (%s)", err, hint.Of(err))
	}
}

// Without a Lease a swap that is not given back is never taken for one that is: what it has changed goes back, by whatever copy is left, or by the record in
// hand. Where nothing but 0 replicas is left of it, and nobody is noted, nobody can tell: then nothing is changed. What is over goes.
func TestWithoutALease(t *testing.T) {
	plan := ordersPlan(t)
	record := plan.Lease.Annotations[proxypod.UndoAnnotation]
	older := strings.NewReplacer("2026-11-24T12", "2026-11-24T11", `"before":3`, `"before":5`).Replace(record)
	controls := true
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/"
	kept := managed("bridge", metav1.ManagedFieldsOperationUpdate, "replicas")
	for _, c := range []struct {
		name            string
		onTarget, onSet string
		managed         []metav1.ManagedFieldsEntry
		now             int32
		moved           bool // the Service's selector is bridge's
		mine            bool // the laptop is alive
		want            hint.Code
		replicas        int32
	}{
		{"bridge's own", record, "", annotatedBy("bridge"), 0, true, false, 0, 3},
		{"bridge's own, no Service", record, "", annotatedBy("bridge"), 0, false, false, 0, 3},
		{"nobody is noted", record, "", nil, 0, false, false, 0, 3},
		{"undone during the swap", "", record, nil, 0, true, false, 0, 3},
		{"undone during the swap, bridge is noted", "", record, kept, 0, false, false, 0, 3},
		{"undone during the swap, or long after", "", record, nil, 0, false, false, hint.RestoreIncomplete, 0},
		{"undone during the swap, the laptop is alive", "", record, nil, 0, false, true, 0, 3},
		{"undone twice", record, record, annotatedBy("kubectl"), 0, true, false, 0, 3},
		{"undone twice, bridge is noted", record, "", append(annotatedBy("kubectl"), kept...), 0, false, false, 0, 3},
		{"undone twice, or long after", record, record, annotatedBy("kubectl"), 0, false, false, hint.RestoreIncomplete, 0},
		{"undone twice, the laptop is alive", record, "", annotatedBy("kubectl"), 0, false, true, 0, 3},
		{"undone to an older swap's", older, record, annotatedBy("kubectl"), 0, true, false, hint.RestoreIncomplete, 0},
		{"undone to an older swap's, the laptop is alive", older, record, annotatedBy("kubectl"), 0, true, true, 0, 3},
		{"one is a newer bridge's", "", `{"version":2}`, nil, 0, true, false, hint.RestoreIncomplete, 0},
		{"no copy is left, the laptop is alive", "", "", nil, 0, true, true, 0, 3},
		{"no copy is left, bridge is noted, the laptop is alive", "", "", kept, 0, false, true, 0, 3},
		{"given back, and stopped since", "", "", nil, 0, false, true, hint.NotFound, 0},
		{"swapped anew since", older, "", annotatedBy("bridge"), 0, true, true, hint.NotFound, 0},
		{"long after, it runs", record, record, annotatedBy("kubectl"), 2, false, false, 0, 2},
		{"long after, it runs, on the ReplicaSet", "", record, nil, 2, false, false, 0, 2},
	} {
		for _, all := range []bool{false, true} {
			if all && (c.mine || c.onSet != "" && c.onSet != record) {
				continue // a record that cannot be read says of no workload that it is swapped
			}
			t.Run(fmt.Sprintf("%s, all %v", c.name, all), func(t *testing.T) {
				t.Setenv("XDG_STATE_HOME", t.TempDir())
				synctest.Test(t, func(t *testing.T) {
					d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID, ManagedFields: c.managed})
					d.Spec.Replicas, d.Status.ReadyReplicas = &c.now, 3
					v := facts(t, "orders.yaml").Services[0]
					v.Spec.Selector = map[string]string{"app": "orders"}
					if c.moved {
						v.Spec.Selector[proxypod.ProxyLabel] = plan.Lease.Name
					}
					sets := func(name, owner, record string) appsv1.ReplicaSet {
						return appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
							Name: name, Namespace: "shop", UID: types.UID(name), Annotations: map[string]string{proxypod.UndoAnnotation: record},
							OwnerReferences: []metav1.OwnerReference{{UID: types.UID(owner), Controller: &controls}},
						}}
					}
					objects := map[string]any{setPath + "another": sets("another", "another", record), servicePath + v.Name: v}
					if c.onTarget != "" {
						d.Annotations = map[string]string{proxypod.UndoAnnotation: c.onTarget}
					}
					if c.onSet != "" {
						objects[setPath+"one"] = sets("one", string(d.UID), c.onSet)
					}
					objects[deploymentPath+"orders"] = d
					cl, k := newCluster(t, objects)
					k.Flags = staging
					var said []string
					r := &Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}
					var err error
					switch {
					case all:
						err = r.RestoreAll(t.Context(), "shop", "root@desk", false)
					case c.mine:
						err = r.restore(t.Context(), orders, "root@desk", &plan.Undo, swapOf(&plan.Undo))
					default:
						err = r.Restore(t.Context(), orders, "root@desk")
					}
					var now appsv1.Deployment
					if there := cl.at(deploymentPath+"orders", &now); hint.CodeOf(err) != c.want || !there || *now.Spec.Replicas != c.replicas {
						t.Errorf("%v (%s); it has %d replicas; said %q", err, hint.Of(err), *now.Spec.Replicas, said)
					}
					allForStaging(t, hint.Of(err))
					if own := slices.ContainsFunc(said, func(line string) bool { return strings.Contains(line, "by this machine's own record") }); c.want == 0 && own != c.mine {
						t.Errorf("said %q", said)
					}
					if c.want != 0 {
						if changed := slices.DeleteFunc(cl.writes, func(w string) bool { return strings.HasSuffix(w, "selfsubjectaccessreviews") }); len(changed) > 0 {
							t.Errorf("changed %q", changed)
						}
						return
					}
					var service corev1.Service
					if !cl.at(servicePath+v.Name, &service) || len(service.Spec.Selector) != 1 || len(now.Annotations) > 0 {
						t.Errorf("the service is %+v, the deployment %+v", service, now)
					}
					for name, stays := range map[string]bool{"another": true, "one": false} {
						var rs appsv1.ReplicaSet
						if there := cl.at(setPath+name, &rs); there && (rs.Annotations[proxypod.UndoAnnotation] != "") != stays {
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
}

// What is over goes, and nothing else with it: whatever state the original is in is nobody's to wait for or to tell of, and whoever had its fields before
// that swap has them no more, but those that were bridge's still. So it is when the Lease that was made for it has a new holder, and when that is deleted meanwhile.
func TestCopiesOfWhatIsOverGoAlone(t *testing.T) {
	plan := ordersPlan(t)
	u := plan.Undo
	for i := range u.Changes {
		u.Changes[i].Owners = []undo.Owner{{Manager: "kubectl", Operation: "Apply", APIVersion: "v1", Time: &noon}}
	}
	record, err := u.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	for _, c := range []struct {
		name     string
		once     int           // how the first write to the ReplicaSet is answered
		service  int           // how each to the Service is
		unleased bool          // the Lease is deleted when the Service is written to
		applied  time.Duration // when the workload was after the record: later it has dropped the replicas
		want     hint.Code
	}{
		{name: "at once", applied: time.Hour},
		{name: "not applied since"},
		{name: "the Service may not be patched", service: http.StatusForbidden},
		{name: "another goes on", once: http.StatusForbidden, want: hint.RestoreIncomplete},
		{name: "the Lease is deleted", unleased: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", t.TempDir())
			synctest.Test(t, func(t *testing.T) {
				marks := map[string]string{undo.Annotation: record, undo.SwappedAnnotation: "begun by ada@laptop at noon"}
				applied := managed("kubectl", metav1.ManagedFieldsOperationApply, "template")
				applied[0].Time = &metav1.Time{Time: noon.Add(c.applied)}
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID, Annotations: marks, ManagedFields: append(annotatedBy("kubectl"), applied...)})
				replicas := int32(3) // as before, and none is Ready
				d.Spec.Replicas = &replicas
				v := facts(t, "orders.yaml").Services[0]
				v.Spec.Selector = map[string]string{"app": "orders"}
				v.ManagedFields = managed("bridge", metav1.ManagedFieldsOperationUpdate, "selector")
				set := setOf(plan.target, "one", record)
				set.Annotations = marks
				cl, k := newCluster(t, map[string]any{
					deploymentPath + "orders": d, servicePath + v.Name: v,
					setPath: set,
				})
				cl.refuses = func(method, path string) int {
					if method == http.MethodPatch && path == setPath {
						defer func() { c.once = 0 }()
						return c.once
					}
					if method == http.MethodPatch && path == servicePath+v.Name {
						return c.service
					}
					return 0
				}
				cl.controller = func() {
					if last := cl.writes[len(cl.writes)-1]; c.unleased && last == "PATCH "+servicePath+v.Name {
						c.unleased = false
						delete(cl.objects, leasePath+plan.Lease.Name)
					}
				}
				begin := time.Now()
				r := &Restorer{Kube: k, Say: func(string) {}}
				if err := r.Restore(t.Context(), orders, "root@desk"); hint.CodeOf(err) != c.want {
					t.Errorf("%v, code %d", err, hint.CodeOf(err))
				}
				if c.want != 0 {
					if err := r.Restore(t.Context(), orders, "root@desk"); err != nil {
						t.Error(err)
					}
				}
				if took := time.Since(begin); took > readyTimeout/2 {
					t.Errorf("took %v", took)
				}
				for _, w := range cl.writes {
					if strings.Contains(w, "events") || strings.HasSuffix(w, "/scale") {
						t.Errorf("wrote %q", cl.writes)
					}
				}
				for _, path := range []string{deploymentPath + "orders", servicePath + v.Name, setPath} {
					var o metav1.PartialObjectMetadata
					if !cl.at(path, &o) || len(o.Annotations) > 0 {
						t.Errorf("%s has %v", path, o.Annotations)
					}
					for _, field := range []string{"spec.replicas", "spec.selector"} {
						if c.service != 0 && path == servicePath+v.Name {
							continue // as it was
						}
						again := path == servicePath+v.Name && field == "spec.selector" || // it was bridge's still
							path == deploymentPath+"orders" && field == "spec.replicas" && c.applied == 0 // it was nobody's
						if owners, err := ownersOf(o.ManagedFields, field); (len(owners) == 1 && owners[0].Manager == "kubectl") != again || err != nil {
							t.Errorf("%s is of %v: %v", path, owners, err)
						}
					}
				}
				if cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) {
					t.Error("the Lease is left")
				}
			})
		})
	}
}

// A record that somebody applies with the target's manifest, so that the deployment controller copies it again and again, keeps nobody for ever: what can be
// done is done, and that is said.
func TestARecordThatComesBackIsSaid(t *testing.T) {
	plan := ordersPlan(t)
	record, err := plan.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	synctest.Test(t, func(t *testing.T) {
		t.Setenv("XDG_STATE_HOME", t.TempDir())
		d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID})
		d.Spec.Replicas = &plan.Replicas
		set := setOf(plan.target, "one", record)
		cl, k := newCluster(t, map[string]any{deploymentPath + "orders": d, servicePath + "orders": facts(t, "orders.yaml").Services[0], setPath: set})
		cl.controller = func() {
			if cl.writes[len(cl.writes)-1] == "PATCH "+setPath {
				cl.keep(setPath, set)
			}
		}
		var said []string
		r := &Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}
		if err := r.Restore(t.Context(), orders, "root@desk"); err != nil {
			t.Error(err)
		}
		if !strings.Contains(strings.Join(said, "\n"), "the record comes back on the replicasets of deployment/orders") {
			t.Errorf("said %q", said)
		}
		if cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) {
			t.Error("the Lease is left")
		}
	})
}

// A swap that ends before it has changed the workload, because the proxy does not come up say, is not kept by an original that was not Ready before. One that
// others have scaled since, after kubectl rollout undo took the record's copy away, is: its callers have nobody else.
func TestAnOriginalThatIsAsItWasIsNotWaitedFor(t *testing.T) {
	plan := ordersPlan(t)
	record, err := plan.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		copied string                      // a ReplicaSet's copy
		noted  []metav1.ManagedFieldsEntry // of the deployment
		want   hint.Code
	}{
		"as it was":               {},
		"a ReplicaSet has a copy": {copied: record, want: hint.RestoreIncomplete},
		"bridge's mark is on it":  {noted: managed("bridge", metav1.ManagedFieldsOperationUpdate, "replicas"), want: hint.RestoreIncomplete},
		"another's is on it":      {noted: managed("kubectl", metav1.ManagedFieldsOperationUpdate, "replicas")},
		"a copy cannot be read":   {copied: "{", want: hint.RestoreIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID, ManagedFields: c.noted})
				d.Spec.Replicas = &plan.Replicas
				objects := map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, servicePath + "orders": facts(t, "orders.yaml").Services[0]}
				if c.copied != "" {
					objects["/apis/apps/v1/namespaces/shop/replicasets/one"] = setOf(plan.target, "one", c.copied)
				}
				cl, k := newCluster(t, objects)
				begin := time.Now()
				err := (&Restorer{Kube: k, Say: func(string) {}}).giveBack(t.Context(), &plan.Undo, &claim{kube: k, lease: plan.Lease})
				if took := time.Since(begin); hint.CodeOf(err) != c.want || took >= readyTimeout != (c.want != 0) {
					t.Errorf("%v after %v", err, took)
				}
				if cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) {
					t.Error("the Lease is left")
				}
			})
		})
	}
}

// What somebody scales to 0 when it was given back stays at 0, and what a bridge that was still swapping has scaled so late does not.
func TestScaledToZeroMeanwhile(t *testing.T) {
	plan := ordersPlan(t)
	record, err := plan.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		begins int32  // the replicas
		when   string // after this write it is 0
		want   int32
	}{
		"by somebody":      {0, "PUT " + deploymentPath + "orders/scale", 0},
		"by a late bridge": {plan.Replicas, "PATCH " + servicePath + "orders", plan.Replicas},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", UID: plan.target.UID, Annotations: map[string]string{undo.Annotation: record}})
				d.Spec.Replicas, d.Status.ReadyReplicas = &c.begins, plan.Replicas
				v := facts(t, "orders.yaml").Services[0]
				v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}
				cl, k := newCluster(t, map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, servicePath + "orders": v})
				cl.controller = func() {
					if cl.writes[len(cl.writes)-1] == c.when {
						c.when = ""
						none := int32(0)
						d.Annotations, d.Spec.Replicas = cl.objects[deploymentPath+"orders"].GetAnnotations(), &none
						cl.keep(deploymentPath+"orders", d)
					}
				}
				if err := (&Restorer{Kube: k, Say: func(string) {}}).giveBack(t.Context(), &plan.Undo, &claim{kube: k, lease: plan.Lease}); err != nil {
					t.Error(err)
				}
				var now appsv1.Deployment
				if cl.at(deploymentPath+"orders", &now); c.when != "" || now.Spec.Replicas == nil || *now.Spec.Replicas != c.want {
					t.Errorf("it wants %v replicas after %q", now.Spec.Replicas, cl.writes)
				}
			})
		})
	}
}

// Who goes on when another was killed at the end writes to nothing that would have to be undone again, for the Lease may be deleted then.
func TestWhatIsGivenBackIsNotFencedAgain(t *testing.T) {
	plan := ordersPlan(t)
	record, err := plan.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		t.Setenv("XDG_STATE_HOME", t.TempDir())
		d := deploymentWith(metav1.ObjectMeta{Name: "orders", UID: plan.target.UID, Annotations: map[string]string{undo.Annotation: record}})
		none := int32(0)
		d.Spec.Replicas, d.Status.ReadyReplicas = &none, plan.Replicas
		v := facts(t, "orders.yaml").Services[0]
		v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}
		cl, k := newCluster(t, map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, servicePath + "orders": v})
		cl.refuses = func(method, path string) int {
			if method == http.MethodDelete && path == leasePath+plan.Lease.Name {
				return http.StatusForbidden // as good as killed there
			}
			return 0
		}
		r := &Restorer{Kube: k, Say: func(string) {}}
		if err := r.Restore(t.Context(), orders, "root@desk"); hint.CodeOf(err) != hint.RestoreIncomplete {
			t.Fatal(err)
		}
		cl.refuses, cl.writes = nil, nil
		if err := r.Restore(t.Context(), orders, "root@desk"); err != nil || cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) {
			t.Errorf("went on with %q: %v", cl.writes, err)
		}
		for _, w := range cl.writes {
			if !strings.Contains(w, "/leases/") {
				t.Errorf("wrote %q", cl.writes)
			}
		}
	})
}

// Callers of a headless Service may have been told of a proxy that was Ready before anything was changed.
func TestAHeadlessServiceIsLeftBeforeAnythingWasChanged(t *testing.T) {
	plan := ordersPlan(t)
	for _, headless := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			d := deploymentWith(metav1.ObjectMeta{Name: "orders", UID: plan.target.UID})
			d.Spec.Replicas = &plan.Replicas
			made := deploymentWith(metav1.ObjectMeta{Name: plan.Lease.Name, UID: "made", OwnerReferences: []metav1.OwnerReference{{UID: plan.Lease.UID}}})
			proxy := corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "shop", UID: "p", OwnerReferences: []metav1.OwnerReference{{UID: "made"}}, Labels: map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}},
				Status:     corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
			}
			slice := discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "orders-1", Namespace: "shop", Labels: map[string]string{discoveryv1.LabelServiceName: "orders"}}}
			if headless {
				slice.Labels[corev1.IsHeadlessService] = ""
			}
			cl, k := newCluster(t, map[string]any{
				leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, servicePath + "orders": facts(t, "orders.yaml").Services[0],
				podPath + "p": proxy, deploymentPath + plan.Lease.Name: made, slicePath + "orders-1": slice,
			})
			left, told := time.Time{}, false
			cl.controller = func() {
				if cl.writes[len(cl.writes)-1] == "PATCH "+podPath+"p" {
					left = time.Now()
					told = cl.objects[podPath+"p"].GetLabels()["app"] != ""
				}
			}
			if err := (&Restorer{Kube: k, Say: func(string) {}}).giveBack(t.Context(), &plan.Undo, &claim{kube: k, lease: plan.Lease}); err != nil {
				t.Error(err)
			}
			if !left.IsZero() != headless || told || headless && time.Since(left) < settle+dnsTTL {
				t.Errorf("headless %v: has left %v ago, in DNS %v: %q", headless, time.Since(left), told, cl.writes)
			}
		})
	}
}

// Who may not see whether a Service is headless gives back all the same, and is told.
func TestAServiceThatMayBeHeadlessKeepsNobody(t *testing.T) {
	plan := ordersPlan(t)
	synctest.Test(t, func(t *testing.T) {
		d := deploymentWith(metav1.ObjectMeta{Name: "orders", UID: plan.target.UID})
		d.Spec.Replicas = &plan.Replicas
		cl, k := newCluster(t, map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, servicePath + "orders": facts(t, "orders.yaml").Services[0]})
		cl.refuses = func(_, path string) int {
			if strings.HasSuffix(path, "/endpointslices") {
				return http.StatusForbidden
			}
			return 0
		}
		var said []string
		r := &Restorer{Kube: k, Say: func(line string) { said = append(said, line) }}
		err := r.giveBack(t.Context(), &plan.Undo, &claim{kube: k, lease: plan.Lease})
		if err != nil || !strings.Contains(strings.Join(said, "\n"), "note: callers of service/orders may be refused for 30s") {
			t.Errorf("%v; said %q", err, said)
		}
	})
}

// Of what is noted as over nothing is undone but callers that a bridge has moved since: one that could not be fenced.
func TestOverIsNotBlind(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan := ordersPlan(t)
	synctest.Test(t, func(t *testing.T) {
		none := int32(0)
		d := deploymentWith(metav1.ObjectMeta{Name: "orders", UID: plan.target.UID})
		d.Spec.Replicas = &none
		v := facts(t, "orders.yaml").Services[0]
		v.Spec.Selector = map[string]string{"app": "orders", proxypod.ProxyLabel: plan.Lease.Name}
		lease := plan.Lease.DeepCopy()
		lease.Annotations[undo.OverAnnotation] = "true"
		cl, k := newCluster(t, map[string]any{leasePath + lease.Name: lease, deploymentPath + "orders": d, servicePath + "orders": v})
		err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), orders, "root@desk")
		var service corev1.Service
		if there := cl.at(servicePath+"orders", &service); err != nil || !there || len(service.Spec.Selector) != 1 {
			t.Errorf("the selector is %v: %v", service.Spec.Selector, err)
		}
		if slices.Contains(cl.writes, "PUT "+deploymentPath+"orders/scale") || cl.at(leasePath+lease.Name, &coordinationv1.Lease{}) {
			t.Errorf("wrote %q", cl.writes)
		}
	})
}

// Of a target whose record's copy is removed last, a write is needed before its field is looked at the last time: whoever has read it before may be about
// to write.
func TestWhatIsFenced(t *testing.T) {
	for kind, fenced := range map[string]bool{"Deployment": false, "StatefulSet": true} {
		plan := ordersPlan(t)
		o := plan.Undo.Target
		o.Kind = kind
		path := strings.ReplaceAll(deploymentPath, "deployments", strings.ToLower(kind)+"s") + o.Name
		cl, k := newCluster(t, map[string]any{path: deploymentWith(metav1.ObjectMeta{UID: plan.target.UID})})
		err := changer{kube: k, claim: &claim{kube: k, lease: plan.Lease}}.fence(t.Context(), o)
		if err != nil || slices.Contains(cl.writes, "PATCH "+path) != fenced {
			t.Errorf("%s: wrote %q: %v", kind, cl.writes, err)
		}
	}
}

// Of many reasons for trying again each is said once.
func TestEachReasonForTryingAgainIsSaid(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "services"}, "orders", errors.New("changed"))
	away := apierrors.NewServiceUnavailable("away")
	var said []string
	again := retries{say: func(line string) { said = append(said, line) }}
	for _, err := range []error{conflict, conflict, away, away, conflict} {
		again.because(err)
	}
	if len(said) != 2 || !strings.Contains(said[1], "away") {
		t.Errorf("said %q", said)
	}
}

// Where one Service may not be changed back, or somebody writes to it all the time, the callers of the others are, also of one that is tried again; and the
// record stays.
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
	for _, code := range []int{http.StatusForbidden, http.StatusConflict, http.StatusUnprocessableEntity, http.StatusInternalServerError} {
		synctest.Test(t, func(t *testing.T) {
			cl, k := newCluster(t, objects)
			late := 10 // more conflicts than one try of the client's own
			cl.refuses = func(method, path string) int {
				switch {
				case method == http.MethodPatch && path == servicePath+"orders":
					return code
				case method == http.MethodPatch && path == servicePath+"second" && late > 0:
					late--
					return http.StatusConflict
				}
				return 0
			}
			c := &claim{kube: k, lease: plan.Lease}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			back, err := (&Restorer{Kube: k, Say: func(string) {}}).undo(ctx, changer{kube: k, claim: c}, c, plan.Undo.Of(undo.Selector), fault.MovedBack, undone{map[string]bool{}, map[Object]bool{}})
			if !strings.Contains(fmt.Sprint(err), "service/orders: ") || strings.Contains(fmt.Sprint(err), "service/second") || len(back) != 1 || back[0].Name != "second" {
				t.Errorf("%d: back are %v: %v", code, back, err)
			}
			var second corev1.Service
			if !cl.at(servicePath+"second", &second) || len(second.Spec.Selector) != 1 || err == nil {
				t.Errorf("%d: its selector is %v: %v", code, second.Spec.Selector, err)
			}
		})
	}
}

// A copy that cannot be read names the object that has it, and what leads out: after that the workload is not swapped.
func TestCopyThatCannotBeReadLeadsOut(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	plan := ordersPlan(t)
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	for _, on := range []string{"deployment/orders", "replicaset/one"} {
		d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID})
		objects, at := map[string]any{deploymentPath + "orders": d}, setPath
		if on == "replicaset/one" {
			objects[at] = setOf(plan.target, "one", "{")
		} else {
			at = deploymentPath + "orders"
			d.Annotations = map[string]string{proxypod.UndoAnnotation: "{"}
			objects[at] = d
		}
		cl, k := newCluster(t, objects)
		r := &Restorer{Kube: k, Say: func(string) {}}
		err := r.Restore(t.Context(), orders, "root@desk")
		if hint.CodeOf(err) != hint.RestoreIncomplete || !strings.Contains(fmt.Sprint(err), "the record of a swap on "+on+" in shop: ") {
			t.Errorf("%v, code %d", err, hint.CodeOf(err))
		}
		for _, next := range []string{
			"kubectl get " + on + " -n shop -o yaml", "kubectl annotate " + on + " -n shop bridge.internal/undo- bridge.internal/swapped-", "bridge restore deployment orders -n shop",
		} {
			if !strings.Contains(hint.Of(err), next) {
				t.Errorf("%s: the next step is %q, want %q", on, hint.Of(err), next)
			}
		}
		cl.objects[at].SetAnnotations(nil)
		if err := r.Restore(t.Context(), orders, "root@desk"); hint.CodeOf(err) != hint.NotFound || len(cl.writes) > 0 {
			t.Errorf("%s, removed: %v, wrote %q", on, err, cl.writes)
		}
	}
}

// Where a Service may not be read, or not be written to, what may be given back is, also without a Lease, and the Service is named. Where it alone would
// tell whether there is anything to give back, nothing is changed.
func TestServiceThatMayNotBeGivenBackIsNamed(t *testing.T) {
	f := facts(t, "orders.yaml")
	second := *f.Services[0].DeepCopy()
	second.Name, second.UID = "second", "second"
	f.Services = append(f.Services, second)
	plan, err := NewPlan(f, Options{Owner: "ada@laptop", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	noted := managed("bridge", metav1.ManagedFieldsOperationUpdate, "replicas")
	for _, c := range []struct {
		name     string
		method   string // that is refused for the first Service
		onTarget bool   // the copy, else it is on a ReplicaSet
		managed  []metav1.ManagedFieldsEntry
		now      int32
		moved    bool // the second Service's selector is bridge's
		goes     bool
	}{
		{"not read, the target's copy", http.MethodGet, true, annotatedBy("bridge"), 0, true, true},
		{"not written, the target's copy", http.MethodPatch, true, annotatedBy("bridge"), 0, true, true},
		{"not read, a ReplicaSet's copy, bridge is noted", http.MethodGet, false, noted, 0, false, true},
		{"not read, a ReplicaSet's copy, the other is bridge's", http.MethodGet, false, nil, 0, true, true},
		{"not read, a ReplicaSet's copy", http.MethodGet, false, nil, 0, false, false},
		{"not read, a ReplicaSet's copy, it runs", http.MethodGet, false, nil, 2, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("XDG_STATE_HOME", t.TempDir())
			synctest.Test(t, func(t *testing.T) {
				d := deploymentWith(metav1.ObjectMeta{Name: "orders", Namespace: "shop", UID: plan.target.UID, ManagedFields: c.managed})
				d.Spec.Replicas, d.Status.ReadyReplicas = &c.now, 3
				objects := map[string]any{deploymentPath + "orders": d}
				if record := plan.Lease.Annotations[proxypod.UndoAnnotation]; c.onTarget {
					d.Annotations = map[string]string{proxypod.UndoAnnotation: record}
					objects[deploymentPath+"orders"] = d
				} else {
					objects[setPath] = setOf(plan.target, "one", record)
				}
				for _, v := range f.Services {
					if v.Spec.Selector = map[string]string{"app": "orders"}; c.moved || v.Name == "orders" {
						v.Spec.Selector[proxypod.ProxyLabel] = plan.Lease.Name
					}
					objects[servicePath+v.Name] = v
				}
				cl, k := newCluster(t, objects)
				cl.refuses = func(method, path string) int {
					if path == servicePath+"orders" && method == c.method {
						return http.StatusForbidden
					}
					return 0
				}
				err := (&Restorer{Kube: k, Say: func(string) {}}).Restore(t.Context(), orders, "root@desk")
				if hint.CodeOf(err) != hint.RestoreIncomplete || !strings.Contains(fmt.Sprint(err), "service/orders") || strings.Contains(fmt.Sprint(err), "service/second") {
					t.Errorf("%v, code %d", err, hint.CodeOf(err))
				}
				if of := hint.Of(err); !strings.Contains(of, "see the message; ") || !strings.Contains(of, "bridge restore deployment orders -n shop") {
					t.Errorf("the next step is %q", of)
				}
				var now appsv1.Deployment
				var second corev1.Service
				if !cl.at(deploymentPath+"orders", &now) || !cl.at(servicePath+"second", &second) {
					t.Fatal("gone")
				}
				want := c.now
				if c.goes {
					want = 3
				}
				if *now.Spec.Replicas != want || len(second.Spec.Selector) != 1 || cl.at(leasePath+plan.Lease.Name, &coordinationv1.Lease{}) != c.goes {
					t.Errorf("%d replicas, %v; wrote %q", *now.Spec.Replicas, second.Spec.Selector, cl.writes)
				}
				if !c.goes && len(cl.writes) > 0 {
					t.Errorf("wrote %q", cl.writes)
				}
			})
		})
	}
}

// What says by whom it is swapped goes where somebody has removed the record beside it, too.
func TestNoteWithoutARecordGoes(t *testing.T) {
	plan := ordersPlan(t)
	controls, note := true, map[string]string{undo.SwappedAnnotation: "begun by ada@laptop at noon"}
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	synctest.Test(t, func(t *testing.T) {
		cl, k := newCluster(t, map[string]any{
			leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": deploymentWith(metav1.ObjectMeta{UID: plan.target.UID, Annotations: note}),
			setPath: appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "one", Namespace: "shop", UID: "one", Annotations: note, OwnerReferences: []metav1.OwnerReference{{UID: plan.target.UID, Controller: &controls}}}},
		})
		x := changer{kube: k, claim: &claim{kube: k, lease: plan.Lease}}
		if err := errors.Join(x.unrecord(t.Context(), &plan.Undo), x.cleanReplicaSets(t.Context(), plan.Undo.Target)); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{deploymentPath + "orders", setPath} {
			var o appsv1.ReplicaSet
			if !cl.at(path, &o) || len(o.Annotations) > 0 {
				t.Errorf("%s has %v", path, o.Annotations)
			}
		}
	})
}

// Of the ReplicaSets' older records those go that the plan has found to be over, in whatever state a controller has the ReplicaSet since, and while the
// swap is its own; what has come since then stays.
func TestOlderRecordsGo(t *testing.T) {
	plan := ordersPlan(t)
	record, err := plan.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	older := strings.Replace(record, "2026-11-24T12", "2026-11-24T11", 1)
	const setPath = "/apis/apps/v1/namespaces/shop/replicasets/one"
	now := map[string]string{"meanwhile": record}
	for name, stays := range map[string]bool{"in force": false, "written to meanwhile": false, "meanwhile": true, "taken": true} {
		t.Run(name, func(t *testing.T) {
			set := setOf(plan.target, "one", older)
			plan.copies = []appsv1.ReplicaSet{set}
			set.Annotations = map[string]string{undo.Annotation: cmp.Or(now[name], older)}
			d := deploymentWith(metav1.ObjectMeta{UID: plan.target.UID})
			cl, k := newCluster(t, map[string]any{leasePath + plan.Lease.Name: plan.Lease, deploymentPath + "orders": d, setPath: set})
			asked := false
			cl.refuses = func(_, path string) int {
				if path != leasePath+plan.Lease.Name || asked {
					return 0
				}
				switch asked = true; name {
				case "written to meanwhile":
					cl.keep(setPath, set)
				case "taken":
					theirs := plan.Lease.DeepCopy()
					by := proxypod.RestoreBy + "eve@desk"
					theirs.Spec.HolderIdentity = &by
					cl.keep(path, theirs)
				}
				return 0
			}
			err := changer{kube: k, claim: &claim{kube: k, lease: plan.Lease}}.removeOlder(t.Context(), plan)
			taken := new(proxypod.TakenError)
			var rs appsv1.ReplicaSet
			if there := cl.at(setPath, &rs); !there || (rs.Annotations[undo.Annotation] != "") != stays || errors.As(err, &taken) != (name == "taken") || !asked {
				t.Errorf("it has %q: %v", rs.Annotations, err)
			}
		})
	}
}
