//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	point "bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

// as is the manifest of orders for a workload of another kind and name.
func as(kind, name string) string {
	return strings.NewReplacer("kind: Deployment", "kind: "+kind, "orders", name).Replace(ordersYAML)
}

// db is a StatefulSet, with the Service that gives its pods their names beside the usual one, and variables with what its pods are called.
func db() string {
	return strings.NewReplacer("  replicas: 2\n", "  replicas: 2\n  serviceName: db-all\n", "        ports:\n        - {name: http, c", `        env:
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: INDEX, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}
        ports:
        - {name: http, c`).Replace(as("StatefulSet", "db")) + `---
apiVersion: v1
kind: Service
metadata: {name: db-all}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: http, port: 8080, targetPort: http}]
`
}

// withKind adds a workload of another kind, its Services and the client.
func (w *world) withKind(manifest, app string) *world {
	w.t.Helper()
	w.apply(fmt.Sprintf(manifest, s.image))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app="+app, 2)
	w.awaitReady("app=client", 1)
	return w
}

// All pods of a StatefulSet are taken, and the keeper gives all of them back.
func TestStatefulSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withKind(db(), "db")
	before := w.snapshot()
	args := append(append([]string{"swap", "statefulset", "db"}, localOrders(t)...), soon...)
	b := w.bridge(args...)
	b.says("mode replace, since a keeper can start the original again: the statefulset is scaled to 0")
	b.says("one proxy stands in for all 2 pods of statefulset/db, with the host name db-0")
	b.says("swapped: statefulset/db in " + w.ns)
	w.await("the originals' end", func() bool { return len(w.pods("app=db,!bridge.internal/proxy")) == 0 })
	for _, url := range []string{"http://db", "http://db-all:8080", "http://db-0.db-all:8080"} {
		w.answersAt(url, "laptop")
	}
	st := w.bridge("status")
	st.exits(0)
	st.prints("statefulset/db")
	if l := w.lease(); l == nil || l.Name != "bridge-statefulset-db" {
		t.Errorf("the Lease is %v", l)
	}
	w.seesTheFirstPod()
	b.kill()
	w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
	w.answersAt("http://db", original)
	w.answersAt("http://db-1.db-all:8080", original)
	w.assertManifest(before, db())
}

// What can be scaled can be swapped, with the rights of its kind alone, and given back from elsewhere.
func TestRestoreOfEachKind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind           kube.Kind
		name, manifest string
	}{{kube.StatefulSet, "db", db()}, {kube.ReplicaSet, "bare", as("ReplicaSet", "bare")}} {
		t.Run(string(c.kind), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withKind(c.manifest, c.name)
			may := rights.Swap.For(c.kind)
			who := w.as("ada", granting("swap", slices.Concat(may.Required(true), rights.Moving(), rights.Keeping(c.kind), rights.Telling())))
			other := w.as("bob", granting("restore", append(rights.Restore.For(c.kind).Required(false), rights.Moving()...)))
			before := w.snapshot()
			b := w.bridgeAs(who, nil, append([]string{"swap", string(c.kind), c.name, "--self-restore", "always"}, localOrders(t)...)...)
			b.says("swapped: " + string(c.kind) + "/" + c.name)
			w.answersAt("http://"+c.name, "laptop")
			w.elsewhere().bridgeAs(other, nil, "restore", string(c.kind), c.name).exits(0)
			b.exits(int(hint.Conflict))
			w.answersAt("http://"+c.name, original)
			w.assertManifest(before, c.manifest)
		})
	}
}

// While the original stands by, the Service that gives its pods their names is not touched.
func TestStatefulSetStandsBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withKind(db(), "db")
	before := w.snapshot()
	b := w.bridge(append(append([]string{"swap", "sts/db"}, localOrders(t)...), standing...)...)
	b.says("service/db-all, which gives the pods their names, stays as it is")
	b.says("swapped: statefulset/db")
	w.answersAt("http://db", "laptop")
	for _, url := range []string{"http://db-all:8080", "http://db-0.db-all:8080", "http://db-1.db-all:8080"} {
		w.answersAt(url, original)
	}
	b.kill()
	w.answersAt("http://db", original)

	// Also without the Lease it is found.
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-statefulset-db", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r := w.elsewhere().bridge("restore", "--all")
	r.exits(0)
	r.says("statefulset/db in " + w.ns + " is given back")
	w.answersAt("http://db", original)
	w.await("the namespace as it was", func() bool { return w.snapshot() == before }) // the garbage collector takes the keeper
	w.assertManifest(before, db())
}

// seesTheFirstPod: who asks for the container's environment gets the first pod's.
func (w *world) seesTheFirstPod() {
	w.t.Helper()
	b := w.bridge("env", "statefulset", "db", "--format", "json")
	b.exits(0)
	var env map[string]string
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &env); err != nil {
		w.t.Fatal(err)
	}
	if env["ME"] != "db-0" || env["INDEX"] != "0" || env["HOSTNAME"] != "db-0" {
		w.t.Errorf("the first pod's environment has ME=%q INDEX=%q HOSTNAME=%q", env["ME"], env["INDEX"], env["HOSTNAME"])
	}
}

// A StatefulSet whose claims go when it is scaled down is not scaled down, also when that is decided after the plan was made.
func TestClaimsAreNotDropped(t *testing.T) {
	embedded(t)
	t.Parallel()
	w := newWorld(t)
	for _, claim := range []string{"data-db-0", "data-db-1"} {
		w.volume(claim)
	}
	keeping := strings.Replace(fmt.Sprintf(db(), s.image), "  selector: {matchLabels: {app: db}}\n", `  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenScaled: Retain, whenDeleted: Retain}
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: "", resources: {requests: {storage: 1Mi}}}
`, 1)
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.apply(keeping)
	keeping, _, _ = strings.Cut(keeping, "\n---\n") // the Services are not this one's to change
	dropping := strings.Replace(keeping, "whenScaled: Retain", "whenScaled: Delete", 1)
	w.apply(dropping)
	w.awaitReady("app=db", 2)
	w.awaitReady("app=client", 1)
	before, pods := w.snapshot(), w.pods("app=db")
	args := append([]string{"swap", "statefulset", "db"}, localOrders(t)...)
	const refused = "statefulset/db cannot be swapped in mode replace: at 0 replicas the cluster deletes its volume claims (data)"
	b := w.bridge(append(args, "--mode", "replace")...)
	b.exits(int(hint.Usage))
	b.says(refused)
	b.says("--mode standby")
	w.assertSnapshot(before)
	b = w.bridge(append(args, "--dry-run")...)
	b.exits(0)
	b.prints("mode standby, since scaling it to 0 would delete its volumes: the statefulset goes on")

	w.apply(keeping)
	b = w.faulty(point.Alone, "stop", append(args, "--mode", "replace")...)
	b.stops(point.Alone)
	w.apply(dropping)
	b.signal(syscall.SIGCONT)
	b.exits(int(hint.Usage))
	b.says(refused)
	w.answersAt("http://db", original)
	w.assertSnapshot(before)
	for i, p := range w.pods("app=db") {
		if p.UID != pods[i].UID {
			t.Errorf("%s is not the pod of before", p.Name)
		}
	}
}

// volume is one on the node that the claim gets.
func (w *world) volume(claim string) {
	w.t.Helper()
	volumes := s.client.CoreV1().PersistentVolumes()
	v, err := volumes.Create(w.t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "bridge-test-"},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1Mi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:                      &corev1.ObjectReference{Namespace: w.ns, Name: claim},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: w.t.TempDir()}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = volumes.Delete(context.Background(), v.Name, metav1.DeleteOptions{}) })
}

// A pod and a ReplicaSet stand for the workload that they belong to.
func TestOwnedByADeployment(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	pod := w.pods("app=orders")[0]
	set := pod.OwnerReferences[0].Name
	for _, c := range []struct{ kind, name string }{{"pod", pod.Name}, {"replicaset", set}} {
		b := w.bridge(append([]string{"swap", c.kind + "/" + c.name, "--dry-run"}, localOrders(t)...)...)
		b.exits(0)
		b.says(c.kind + "/" + c.name + " belongs to deployment/orders: that one it is")
		b.prints("# What a swap of deployment/orders in " + w.ns)
	}
	b := w.bridge(append([]string{"swap", "pod", pod.Name}, localOrders(t)...)...)
	b.says(swapped)
	w.answersAt("http://orders", "laptop")
	b.terminate()
	w.assertGivenBack(before)
}
