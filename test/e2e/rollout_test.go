//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

// rollouts are Argo's, which the cluster has once a test has asked for them (serveRollouts).
var rollouts = schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts"}

var serveRollouts = sync.OnceValue(func() error {
	if s.embedded {
		return s.cluster(context.Background(), "rollouts")
	}
	_, err := s.client.Discovery().ServerResourcesForGroupVersion(rollouts.GroupVersion().String())
	return err
})

// Strategies of a Rollout: with no Services of its own, and with some.
const (
	basic     = "canary: {steps: [{setWeight: 50}, {pause: {}}]}"
	canary    = "canary: {stableService: orders, canaryService: orders-next, steps: [{setWeight: 50}, {pause: {}}]}"
	blueGreen = "blueGreen: {activeService: orders, previewService: orders-next}"
)

// rolloutYAML is the manifest of orders as a Rollout, with a second Service.
func rolloutYAML(strategy string) string {
	return strings.NewReplacer("apiVersion: apps/v1\nkind: Deployment", "apiVersion: argoproj.io/v1alpha1\nkind: Rollout", "  replicas: 2\n", "  replicas: 2\n  strategy: {"+strategy+"}\n").Replace(ordersYAML) + `---
apiVersion: v1
kind: Service
metadata: {name: orders-next}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: http}]
`
}

// applied is the part of the manifest that whoever has applied it can apply again: the selectors of a Rollout's own Services are its controller's.
func applied(strategy string) string {
	if strategy == basic {
		return rolloutYAML(strategy)
	}
	first, _, _ := strings.Cut(rolloutYAML(strategy), "\n---\n")
	return first
}

// withRollout adds it and the client, and waits until its controller has nothing left to do.
func (w *world) withRollout(strategy string) *world {
	w.t.Helper()
	if err := serveRollouts(); err != nil {
		if s.embedded {
			w.t.Fatal(err)
		}
		w.t.Skipf("the cluster has no Argo Rollouts: %v", err)
	}
	w.apply(fmt.Sprintf(rolloutYAML(strategy), s.image))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=orders", 2)
	w.awaitReady("app=client", 1)
	w.awaitPhase("Healthy")
	for _, name := range []string{"orders", "orders-next"} {
		w.await("the rollout's own service "+name, func() bool {
			return !strings.Contains(strategy, "Service: "+name) || w.selector(name)[kube.RolloutHashLabel] != ""
		})
	}
	return w
}

func (w *world) rollout() *unstructured.Unstructured {
	w.t.Helper()
	o, err := s.dynamic.Resource(rollouts).Namespace(w.ns).Get(w.t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// awaitPhase waits until the controller says so of the rollout as it is.
func (w *world) awaitPhase(phase string) {
	w.t.Helper()
	w.await("phase "+phase, func() bool {
		o := w.rollout()
		is, _, _ := unstructured.NestedString(o.Object, "status", "phase")
		seen, _, _ := unstructured.NestedString(o.Object, "status", "observedGeneration")
		return is == phase && seen == fmt.Sprint(o.GetGeneration())
	})
}

// update has the pods say another name: what a rollout is for.
func (w *world) update(name string) {
	w.t.Helper()
	patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/template/spec/containers/0/args/2","value":%q}]`, name)
	if _, err := s.dynamic.Resource(rollouts).Namespace(w.ns).Patch(w.t.Context(), "orders", types.JSONPatchType, []byte(patch), metav1.PatchOptions{FieldManager: "team"}); err != nil {
		w.t.Fatal(err)
	}
}

func swapRollout(t *testing.T, flags ...string) []string {
	return slices.Concat([]string{"swap", "rollout", "orders"}, localOrders(t), flags)
}

func (w *world) selector(service string) map[string]string {
	w.t.Helper()
	v, err := s.client.CoreV1().Services(w.ns).Get(w.t.Context(), service, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return v.Spec.Selector
}

// A Rollout of each strategy is stopped by its own controller; when bridge is killed the keeper has it started again, and all is as before.
func TestARolloutIsReplaced(t *testing.T) {
	t.Parallel()
	for name, strategy := range map[string]string{"basic": basic, "canary": canary, "blueGreen": blueGreen} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withRollout(strategy)
			before := w.snapshot()
			load := w.load("--url", "http://orders", "--rate", "50")
			b := w.bridge(swapRollout(t, soon...)...)
			b.says("mode replace, since a keeper can start the original again: the rollout is scaled to 0")
			b.says("keeper: ready")
			if strategy != basic {
				b.says("service/orders is the rollout's own, and stays as it is")
			}
			b.says("swapped: rollout/orders in " + w.ns)
			w.await("the originals' end", func() bool { return len(w.pods("app=orders,!bridge.internal/proxy")) == 0 })
			w.answersAt("http://orders", "laptop")
			w.answersAt("http://orders-next", "laptop")
			w.noPodIsAdopted()
			r := load.end(t)
			t.Logf("the load: %+v", r)
			// What stands beside the proxy is stopped with what it has not answered yet, and is asked until the node knows.
			if r.Failed > 0 && strategy == basic || r.Failed > r.Requests/4 || r.By["laptop"] == 0 {
				t.Errorf("the load: %+v", r)
			}
			b.kill()
			w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
			w.awaitPhase("Healthy")
			w.answersAt("http://orders", original)
			w.answersAt("http://orders-next", original)
			w.assertManifest(before, applied(strategy))
		})
	}
}

// noPodIsAdopted: the proxy's pod belongs to bridge's own ReplicaSet, and the rollout's have none.
func (w *world) noPodIsAdopted() {
	w.t.Helper()
	for _, p := range w.pods("bridge.internal/proxy") {
		owner := metav1.GetControllerOf(&p)
		if owner == nil || !strings.HasPrefix(owner.Name, "bridge-rollout-orders-") {
			w.t.Errorf("%s belongs to %+v", p.Name, owner)
		}
	}
	sets, err := s.client.AppsV1().ReplicaSets(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: kube.RolloutHashLabel})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, rs := range sets.Items {
		if owner := metav1.GetControllerOf(&rs); owner.Kind == "Rollout" && (rs.Status.Replicas != 0 || *rs.Spec.Replicas != 0) {
			w.t.Errorf("%s has %d of %d pods", rs.Name, rs.Status.Replicas, *rs.Spec.Replicas)
		}
	}
}

// A Rollout that stands by goes on; its controller, which the selectors of its own Services concern, does not set them back, and has nothing to
// complain of afterwards.
func TestARolloutStandsBy(t *testing.T) {
	t.Parallel()
	for name, strategy := range map[string]string{"basic": basic, "canary": canary, "blueGreen": blueGreen} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withRollout(strategy)
			before, originals := w.snapshot(), w.pods("app=orders")
			b := w.bridge(swapRollout(t, append(soon, standing...)...)...)
			b.says("mode standby: the rollout goes on")
			if strategy != basic {
				b.says("service/orders is the rollout's own: until it is given back")
			}
			b.says("swapped: rollout/orders in " + w.ns)
			w.proxies()
			w.answersAt("http://orders", "laptop")
			if strategy != basic {
				w.awaitPhase("Degraded") // as was said
			}
			w.answersAt("http://orders", "laptop")
			b.kill()
			w.answersAt("http://orders", original)
			w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
			w.awaitPhase("Healthy")
			w.answersAt("http://orders", original)
			for i, p := range w.pods("app=orders") {
				if p.UID != originals[i].UID {
					t.Errorf("%s is not the original's pod of before", p.Name)
				}
			}
			w.assertManifest(before, applied(strategy))
		})
	}
}

// While an update is under way a Rollout is not stopped; without Services of its own it stands by, and the update waits where it was.
func TestARolloutInTheMiddleOfAnUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout(basic)
	w.update("updated")
	w.awaitPhase("Paused")
	w.awaitReady("app=orders", 2)
	before := w.snapshot()
	b := w.bridge(swapRollout(t, "--mode", "replace")...)
	b.exits(int(hint.Usage))
	b.says("rollout/orders cannot be swapped in mode replace: an update is under way")
	b.says("kubectl argo rollouts promote orders")
	w.assertSnapshot(before)
	b = w.bridge(swapRollout(t)...)
	b.says("mode standby, since its update under way would go on at 0 replicas")
	b.says("swapped: rollout/orders")
	w.answersAt("http://orders", "laptop")
	b.terminate()
	w.assertSnapshot(before)
	w.awaitPhase("Paused")

	v := newWorld(t).withRollout(canary)
	v.update("updated")
	v.awaitPhase("Paused")
	before = v.snapshot()
	b = v.bridge(swapRollout(t)...)
	b.exits(int(hint.Usage))
	b.says("an update is under way, for which its controller needs the Services that are its own (services orders, orders-next)")
	v.assertSnapshot(before)
}

// An update that somebody begins while a Rollout is at 0 replicas is theirs, and survives. Where the Rollout has Services of its own these select the update's
// pods then, so the swap ends.
func TestARolloutUpdatedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout(blueGreen)
	b := w.bridge(swapRollout(t)...)
	b.says("swapped: rollout/orders")
	w.answersAt("http://orders", "laptop")
	w.update("updated")
	b.exits(int(hint.Conflict))
	b.says("rollout/orders was updated, and service/orders")
	w.answersAt("http://orders", "updated")
	w.awaitPhase("Healthy")
	if l := w.lease(); l != nil {
		t.Errorf("the Lease is left: %v", l)
	}
	if sel := w.selector("orders"); sel["app"] != "orders" || len(sel) != 2 {
		t.Errorf("the active Service selects %v", sel)
	}

	v := newWorld(t).withRollout("canary: {}")
	b = v.bridge(swapRollout(t)...)
	b.says("swapped: rollout/orders")
	v.update("updated")
	v.awaitPhase("Healthy")
	v.answersAt("http://orders", "laptop")
	b.terminate()
	v.answersAt("http://orders", "updated")
}

// The rights of its kind alone do, its pods and ReplicaSets stand for it, it is given back from elsewhere, and found without its Lease.
func TestARolloutsRightsAndRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout(blueGreen)
	may := rights.Swap.For(kube.Rollout)
	who := w.as("ada", granting("swap", slices.Concat(may.Required(true), rights.Moving(), rights.Keeping(kube.Rollout), rights.Telling(),
		[]rights.Right{{Resource: "pods", Verb: "get"}, {Group: "apps", Resource: "replicasets", Verb: "get"}})))
	other := w.as("bob", granting("restore", append(rights.Restore.For(kube.Rollout).Required(false), rights.Moving()...)))
	before := w.snapshot()
	pod := w.pods("app=orders")[0]
	b := w.bridgeAs(who, nil, slices.Concat([]string{"swap", "pod", pod.Name, "--self-restore", "always"}, localOrders(t))...)
	b.says("pod/" + pod.Name + " belongs to rollout/orders: that one it is")
	b.says("swapped: rollout/orders")
	w.answersAt("http://orders", "laptop")
	w.elsewhere().bridgeAs(other, nil, "restore", "rollout/orders").exits(0)
	b.exits(int(hint.Conflict))
	w.await("the namespace as it was", func() bool { return w.snapshot() == before })

	b = w.bridge(append([]string{"swap", "rs", pod.OwnerReferences[0].Name}, localOrders(t)...)...)
	b.says("swapped: rollout/orders")
	b.kill()
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-rollout-orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r := w.elsewhere().bridge("restore", "--all")
	r.exits(0)
	r.says("rollout/orders in " + w.ns + " is given back")
	w.await("the namespace as it was", func() bool { return w.snapshot() == before })
	w.awaitPhase("Healthy")
	w.assertManifest(before, applied(blueGreen))

	e := w.bridge("env", "rollout", "orders", "--format", "json")
	e.exits(0)
	if env := map[string]string{}; json.Unmarshal([]byte(strings.Join(e.stdout.all(), "\n")), &env) != nil || env["ORDERS_SERVICE_HOST"] == "" {
		t.Errorf("its environment is %q", e.stdout.all())
	}
	w.bridge("probes", "rollout/orders").exits(0)
}

// A Rollout may have its template from a Deployment, which has no pods of its own.
func TestARolloutWithADeploymentsTemplate(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout(basic)
	docs := strings.Split(fmt.Sprintf(strings.NewReplacer("name: orders}", "name: bills}", "app: orders", "app: bills").Replace(ordersYAML), s.image), "\n---\n")
	idle := strings.Replace(docs[0], "replicas: 2", "replicas: 0", 1)
	w.apply(idle)
	w.apply(docs[1])
	w.apply(`
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: bills}
spec:
  replicas: 1
  workloadRef: {apiVersion: apps/v1, kind: Deployment, name: bills}
  strategy: {canary: {}}
`)
	w.awaitReady("app=bills", 1)
	before := w.snapshot()
	args := append([]string{"swap", "rollout/bills"}, localOrders(t)...)
	b := w.bridge(args...)
	b.says("swapped: rollout/bills")
	w.answersAt("http://bills", "laptop")
	b.terminate()
	w.answersAt("http://bills", original)
	w.await("the namespace as it was", func() bool { return w.snapshot() == before })

	w.apply(docs[0])
	w.awaitReady("app=bills", 3)
	b = w.bridge(append(args, "--mode", "replace")...)
	b.exits(int(hint.Usage))
	b.says("deployment/bills, from which it has its template, runs pods too")
	if _, is := w.pods("app=bills")[0].Annotations["bridge.internal/undo"]; is {
		t.Error("there is a record")
	}
}

// After an update the pods of the version before stay for a while, and would get callers from proxies that stand before the Rollout.
func TestARolloutWithOlderPodsDoesNotStandBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout("blueGreen: {activeService: orders, scaleDownDelaySeconds: 600}")
	w.update("updated")
	w.awaitPhase("Healthy")
	w.answersAt("http://orders", "updated")
	w.awaitReady("app=orders", 4)
	before := w.snapshot()
	b := w.bridge(swapRollout(t, "--mode", "standby")...)
	b.exits(int(hint.Usage))
	b.says("pods of an older version are left (orders-")
	w.assertSnapshot(before)
	b = w.bridge(swapRollout(t)...)
	b.says("mode replace")
	b.says("swapped: rollout/orders")
	w.answersAt("http://orders", "laptop")
	b.terminate()
	w.answersAt("http://orders", "updated")
}

// A Rollout whose update does not come through stands behind what its pods fail of; one whose update was given up is told by itself.
func TestDiagnoseARollout(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withRollout(basic)
	finds := func(wants ...string) {
		t.Helper()
		b := &broken{name: "rollout/orders", wants: wants, ns: w.ns}
		differs := ""
		for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(time.Second) {
			found := slices.DeleteFunc(diagnosed(t, "-n", w.ns, "rollout/orders", "--no-dial"), func(f diagnose.Finding) bool {
				return f.ID == "probe-timing" // the test's own workload, whose probe is quick and patient
			})
			if differs = b.differs(found); differs == "" {
				return
			}
		}
		t.Fatal(differs)
	}
	finds()
	patch := `[{"op":"add","path":"/spec/progressDeadlineSeconds","value":5},{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"localhost:1/nowhere/orders:1"}]`
	if _, err := s.dynamic.Resource(rollouts).Namespace(w.ns).Patch(t.Context(), "orders", types.JSONPatchType, []byte(patch), metav1.PatchOptions{FieldManager: "team"}); err != nil {
		t.Fatal(err)
	}
	finds("registry-unreachable rollout-degraded service-pods-not-ready service-pods-not-ready")
	if _, err := s.dynamic.Resource(rollouts).Namespace(w.ns).Patch(t.Context(), "orders", types.MergePatchType, []byte(`{"status":{"abort":true}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	finds("rollout-aborted")
}
