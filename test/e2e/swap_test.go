//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
)

// swapped is the line a swap says when the laptop has all the traffic.
const swapped = "swapped: deployment/"

// A steady load loses nothing: neither new connections nor kept ones, neither by swapping nor by
// giving back, with an original that ends at once on SIGTERM.
func TestSwapLosesNoRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	fresh := w.load("--url", "http://orders", "--rate", "50")
	pooled := w.load("--url", "http://orders", "--rate", "50", "--pooled")

	b := w.swap()
	w.await("the original's pods to be gone", func() bool { return len(w.pods("app=orders,!bridge.internal/proxy")) == 0 })
	while := w.load("--url", "http://orders", "--rate", "50")
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	r := while.end(t)
	if r.Failed > 0 || r.By["laptop"] != r.Requests {
		t.Errorf("while swapped: %+v, want all by the laptop", r)
	}
	b.terminate()
	if b.said("has scaled") > 0 {
		t.Error("what giving back does is told as somebody else's")
	}

	for name, l := range map[string]*load{newConnections: fresh, keptConnections: pooled} {
		r := l.end(t)
		t.Logf("%s: %+v", name, r)
		if r.Failed > 0 || len(r.Errors) > 0 {
			t.Errorf("%s: %d of %d requests failed: %q", name, r.Failed, r.Requests, r.Errors)
		}
		if r.By["laptop"] == 0 || r.By["original"] == 0 || r.By["laptop"]+r.By["original"] != r.Requests {
			t.Errorf("%s: answered by %v of %d, want original and laptop, and no other", name, r.By, r.Requests)
		}
	}
	w.assertGivenBack(before)
}

// Callers of a headless Service have the addresses from DNS, whose answers are good for a while; each of theirs goes to one, as it comes.
func TestSwapLosesNoRequestOfAHeadlessService(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	const headless = `---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, selector: {app: orders}, ports: [{name: http, port: 8080, targetPort: http}]}
`
	w.apply(strings.TrimPrefix(headless, "---\n"))
	before := w.snapshot()
	l := w.load("--url", "http://each:8080", "--rate", "50", "--first")
	b := w.bridge(swapArgs(localOrders(t))...)
	b.says("moving callers to it: services each, orders")
	b.says("so long callers of a headless service may go to the original")
	b.says(swapped)
	w.await("the original's pods to be gone", func() bool { return len(w.pods("app=orders,!bridge.internal/proxy")) == 0 })
	while := w.load("--url", "http://each:8080", "--rate", "50", "--first")
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	if r := while.end(t); r.Failed > 0 || r.By["laptop"] != r.Requests {
		t.Errorf("while swapped: %+v, want all by the laptop", r)
	}
	b.terminate()
	b.says("so long callers of a headless service may come to the proxy")
	w.answersAt("http://each:8080", original)
	r := l.end(t)
	t.Logf("%+v", r)
	if r.Failed > 0 || r.By["laptop"] == 0 || r.By[original] == 0 {
		t.Errorf("%d of %d requests failed: %q; answered by %v", r.Failed, r.Requests, r.Errors, r.By)
	}
	w.assertManifest(before, ordersYAML+headless)
}

// assertGivenBack: the objects are as before, the previous manager's apply with other replicas works
// without force, and the service answers.
func (w *world) assertGivenBack(before string) {
	w.t.Helper()
	w.assertManifest(before, ordersYAML)
}

func (w *world) assertManifest(before, manifest string) {
	w.t.Helper()
	w.assertSnapshot(before)
	changed := strings.Replace(fmt.Sprintf(manifest, s.image), "replicas: 2", "replicas: 1", 1)
	for doc := range strings.SplitSeq(changed, "\n---\n") {
		if err := w.tryApply(doc); err != nil {
			w.t.Errorf("the manager that had applied it can do so no more: %v", err)
		}
	}
}

// phases are moments of a swap, by the line it says when it gets there.
var phases = []string{"creating the proxy", "tunnel: ready", "moving callers to it", "scaling ", swapped}

func TestSignalInEachPhaseGivesAllBack(t *testing.T) {
	t.Parallel()
	signals := []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
	for i, phase := range phases {
		sig := signals[i%len(signals)]
		t.Run(fmt.Sprintf("%v after %s", sig, phase), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.beginSwap()
			b.says(phase)
			b.signal(sig)
			b.exits(128 + int(sig))
			w.assertGivenBack(before)
		})
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	b.signal(syscall.SIGINT)
	b.says("giving deployment/orders back")
	b.signal(syscall.SIGINT)
	b.exits(130)
	b.says("bridge restore deployment orders -n " + w.ns)
	w.bridge("restore", "deployment", "orders").exits(0)
	w.assertGivenBack(before)
}

// Of two that swap at once, one wins; the other learns who did.
func TestTwoSwapsRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	a, b := w.bridge(args...), w.elsewhere().bridge(args...)
	winner, loser := a, b
	select {
	case <-a.ended:
		winner, loser = b, a
	case <-b.ended:
	}
	loser.exits(int(hint.Conflict))
	loser.says("already swapped by ")
	loser.says("bridge restore deployment orders")
	winner.says(swapped)
	winner.terminate()
	w.assertGivenBack(before)
}

// Somebody else gives back while the swap is alive: the holder stands back and ends.
func TestRestoreByAnotherWhileHeld(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	l := w.load("--url", "http://orders")
	b := w.swap()
	w.bridge("restore", "deployment", "orders").exits(0)
	b.exits(int(hint.Conflict))
	b.says(" gives it back")
	if r := l.end(t); r.Failed > 0 {
		t.Errorf("%d of %d requests failed: %q", r.Failed, r.Requests, r.Errors)
	}
	w.assertGivenBack(before)
}

// What others changed during the swap is theirs.
func TestEditDuringSwapSurvives(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	doc, _, _ := strings.Cut(strings.Replace(fmt.Sprintf(ordersYAML, s.image), "containers:", "terminationGracePeriodSeconds: 7\n      containers:", 1), "\n---\n")
	doc = strings.Replace(doc, "  replicas: 2\n", "", 1)
	if err := w.tryApply(doc); err != nil {
		t.Fatal(err)
	}
	b.terminate()
	d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if g := d.Spec.Template.Spec.TerminationGracePeriodSeconds; g == nil || *g != 7 {
		t.Errorf("the edit made during the swap is gone: grace period %v", g)
	}
	if d.Annotations["bridge.internal/undo"] != "" {
		t.Error("the undo record is still on the target")
	}
}

func TestTargetDeletedWhileSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	if err := s.client.AppsV1().Deployments(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.exits(0)
	b.says("was deleted")
	after := w.snapshot()
	if strings.Contains(after, "bridge") && strings.Contains(after, "bridge.internal") {
		t.Errorf("something of ours is left:\n%s", after)
	}
}

// A connection through a swap keeps what TCP promises.
func TestSwapCarriesTCPExactly(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	for _, what := range []string{"half-close", "reset", "send-reset", "upload", "download", "many"} {
		w.check("--what", what, "--address", "orders:7000")
	}
	b.terminate()
}

// A local process that is gone looks to callers like a crashed pod: refused or reset at once, and
// it comes back without the swap being made anew.
func TestLocalProcessRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	port := freePort(t)
	serve := []string{"serve", "--name", "laptop", "--http", "127.0.0.1:" + port}
	local := start(t, s.sample, nil, serve...)
	local.says("listens on")
	b := w.bridge("swap", "deployment", "orders", "--port", port+":http")
	b.says(swapped)
	local.signal(syscall.SIGKILL)
	<-local.ended
	out := newLines()
	if err := w.exec(t.Context(), nil, out, "get", "--url", "http://orders"); err == nil {
		t.Errorf("a request was answered by %q, with nobody there", out.all())
	}
	start(t, s.sample, nil, serve...).says("listens on")
	w.await("an answer by the laptop", func() bool {
		out := newLines()
		return w.exec(t.Context(), nil, out, "get", "--url", "http://orders") == nil && slices.Contains(out.all(), "laptop")
	})
	b.terminate()
}

func TestStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.bridge("status")
	b.exits(0)
	b.says("no swap, connect or forward")
	sw := w.swap()
	st := w.bridge("status", "-o", "json")
	st.exits(0)
	var entries []struct {
		Namespace, Target, Owner, Restore, LastHeartbeat string
		Alive                                            bool
	}
	if err := json.Unmarshal([]byte(strings.Join(st.stdout.all(), "\n")), &entries); err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Target != "deployment/orders" || entries[0].Namespace != w.ns || !entries[0].Alive || !strings.Contains(entries[0].Owner, "@") {
		t.Errorf("status: %+v", entries)
	}
	for _, format := range []string{"wide", "yaml"} {
		st := w.bridge("status", "-o", format)
		st.exits(0)
		st.prints("bridge restore deployment orders -n " + w.ns)
	}
	sw.terminate()
}

// The proxy's own image works as the carried one does.
func TestSwapWithAnImage(t *testing.T) {
	if !s.embedded {
		t.Skip("a registry of your own is needed: bridge image push")
	}
	t.Parallel()
	archive := filepath.Join(t.TempDir(), "proxy.tar")
	const name = "bridge-proxy:e2e"
	p := start(t, s.bridge, nil, "image", "save", "-o", archive, "--name", name)
	p.exits(0)
	if err := s.cluster(t.Context(), "load", archive); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.bridge(append([]string{"swap", "deployment", "orders", "--proxy-image", name}, localOrders(t)...)...)
	b.says(swapped)
	for _, p := range w.pods("bridge.internal/proxy") {
		if p.Spec.Containers[0].Image != name || hasVolume(p, "bridge-proxy") {
			t.Errorf("the proxy runs %s", p.Spec.Containers[0].Image)
		}
	}
	w.check("--what", "half-close", "--address", "orders:7000")
	b.terminate()
	w.assertGivenBack(before)
}

func hasVolume(p corev1.Pod, name string) bool {
	for _, v := range p.Spec.Volumes {
		if v.Name == name {
			return true
		}
	}
	return false
}
