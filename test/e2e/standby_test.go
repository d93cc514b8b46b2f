//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
)

// standing is what a swap in mode standby is asked for with.
var standing = []string{"--mode", "standby"}

// proxies awaits two, on whatever nodes there are.
func (w *world) proxies() (names []string) {
	w.t.Helper()
	w.awaitReady("bridge.internal/proxy", 2)
	for _, p := range w.pods("bridge.internal/proxy") {
		names = append(names, p.Name)
	}
	return names
}

// A steady load loses nothing, with new connections and with kept ones; the original is not touched, and all is as before.
func TestStandbyLosesNoRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	originals := w.pods("app=orders")
	fresh := w.load("--url", "http://orders", "--rate", "50")
	pooled := w.load("--url", "http://orders", "--rate", "50", "--pooled")

	b := w.beginSwap(standing...)
	b.says("mode standby: the deployment goes on, and answers what this machine cannot take")
	b.says(swapped)
	w.proxies()
	while := w.load("--url", "http://orders", "--rate", "50")
	for _, what := range []string{"half-close", "reset", "send-reset", "upload"} {
		w.check("--what", what, "--address", "orders:7000")
	}
	// On a machine so busy that a request waits a second for its answer the next ones go to the original, for a while.
	if r := while.end(t); r.Failed > 0 || r.By["laptop"] < r.Requests/2 {
		t.Errorf("while swapped: %+v, want all by the laptop", r)
	}
	st := w.bridge("status")
	st.exits(0)
	st.prints("standby")
	for i, p := range w.pods("app=orders") {
		if p.UID != originals[i].UID {
			t.Errorf("%s is not the original's pod of before", p.Name)
		}
	}
	b.terminate()

	for name, l := range map[string]*load{newConnections: fresh, keptConnections: pooled} {
		r := l.end(t)
		t.Logf("%s: %+v", name, r)
		if r.Failed > 0 {
			t.Errorf("%s: %d of %d requests failed: %q", name, r.Failed, r.Requests, r.Errors)
		}
		// Connections that are open to the original stay there.
		if r.By["original"] == 0 || r.By["laptop"] == 0 && name == newConnections {
			t.Errorf("%s: answered by %v of %d", name, r.By, r.Requests)
		}
	}
	w.assertGivenBack(before)
}

// inFlight bounds what may fail of a load of 200 requests a second: what is under way at any moment, which is ten where a request takes
// 50 ms, with threefold slack. Beside other tests a request takes up to three times as long.
var inFlight = soak(30, 30*slack)

// The names of the two loads of steady.
const (
	newConnections  = "new connections"
	keptConnections = "kept connections"
)

// steady are two loads of 200 requests a second each on a path of orders.
func (w *world) steady(path string) map[string]*load {
	w.t.Helper()
	begin := func(more ...string) *load {
		return w.load(append([]string{"--url", "http://orders" + path, "--rate", "200"}, more...)...)
	}
	return map[string]*load{newConnections: begin(), keptConnections: begin("--pooled")}
}

// unharmed: of the requests that were begun in that time none has failed or stalled.
func (r report) unharmed(t *testing.T, what string, from, to time.Time) {
	t.Helper()
	if !s.embedded {
		return // the cluster's clock is another
	}
	if n := r.harmedIn(from, to); n > 0 || r.Failed+r.Stalled > len(r.Harmed) {
		t.Errorf("%s: %d of those begun from %s to %s are among them that failed or stalled: %v", what, n, from.Format(time.TimeOnly), to.Format(time.TimeOnly), r)
	}
}

// What happens to the laptop, its process and the proxies costs the callers no more than the requests that are under way then. Where no proxy
// ends, or one that drains, nobody fails who comes after that.
func TestStandbyFaults(t *testing.T) {
	t.Parallel()
	type when func(fault, healed time.Time) time.Time
	after := func(d time.Duration) when { return func(fault, _ time.Time) time.Time { return fault.Add(d) } }
	ever := func(time.Time, time.Time) time.Time { return time.Time{} }
	healed := func(_, healed time.Time) time.Time { return healed }
	// Beside other tests the cluster itself may take longer than a proxy drains, and a lost packet costs seconds.
	atOnce, none := soak(after(time.Second), after(slack*time.Second)), soak(when(ever), healed)
	for _, c := range []struct {
		name string
		// fault makes the fault and returns what heals it; nil: another bridge does. during is who answers in between.
		fault  func(w *world, b *process) (heal func())
		during string
		// From when on nobody fails or stalls, with new connections, and with kept ones, of which some go to the laptop until a proxy has noticed.
		fresh, kept when
		// sudden is whether a proxy ends without draining: until the cluster has noticed that it refuses connections.
		sudden bool
	}{
		{"bridge killed", func(_ *world, b *process) func() {
			b.kill()
			return nil
		}, "original", atOnce, after(slack * time.Second), false},
		{"bridge frozen", func(_ *world, b *process) func() {
			b.signal(syscall.SIGSTOP)
			return func() { b.signal(syscall.SIGCONT) }
		}, "original", atOnce, after(slack * time.Second), false},
		{"a proxy deleted", func(w *world, _ *process) func() {
			w.deleteProxies(1)
			return func() {}
		}, "laptop", none, none, false},
		{"a proxy killed", func(w *world, _ *process) func() {
			p := w.pods("bridge.internal/proxy")[0]
			if w.killIn(string(p.UID)) == 0 {
				w.t.Fatal("it does not run")
			}
			return func() {
				w.await("its restart", func() bool {
					return slices.ContainsFunc(w.pods("bridge.internal/proxy"), func(now corev1.Pod) bool {
						return now.UID == p.UID && len(now.Status.ContainerStatuses) > 0 && now.Status.ContainerStatuses[0].RestartCount > 0
					})
				})
			}
		}, "laptop", healed, healed, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.sudden {
				embedded(t)
			}
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			args := slices.Concat([]string{"swap", "deployment", "orders"}, localOrders(t), standing, []string{"--self-restore", "never"})
			b := w.bridge(args...)
			b.says(swapped)
			w.proxies()
			w.answeredBy("laptop")
			loads := w.steady("/")
			heal := c.fault(w, b)
			fault := time.Now()
			w.answeredBy(c.during)
			if !c.sudden {
				w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
			}
			if heal == nil {
				b = w.bridge(args...)
				b.says("taking up the swap")
				b.says(swapped)
			} else {
				heal()
			}
			w.answeredBy("laptop")
			w.proxies()
			healed := time.Now()
			w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
			for name, l := range loads {
				r := l.end(t)
				t.Logf("%s: %v", name, r)
				if r.Failed > inFlight && !c.sudden || r.By["laptop"] == 0 || r.By["original"] == 0 && c.during == "original" {
					t.Errorf("%s: %v", name, r)
				}
				from := c.fresh
				if name == keptConnections {
					from = c.kept
				}
				r.unharmed(t, name, from(fault, healed), time.Now())
			}
			b.terminate()
			w.assertGivenBack(before)
		})
	}
}

// A bridge that is started again while no original is there answers by itself: the proxies become Ready by it.
func TestStandbyTakenUpWithoutOriginals(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	args := slices.Concat([]string{"swap", "deployment", "orders"}, localOrders(t), standing, []string{"--self-restore", "never"})
	b := w.bridge(args...)
	b.says(swapped)
	w.proxies()
	b.kill()
	scale := func(replicas int32) {
		if _, err := s.client.AppsV1().Deployments(w.ns).UpdateScale(t.Context(), "orders", &autoscalingv1.Scale{
			ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: w.ns}, Spec: autoscalingv1.ScaleSpec{Replicas: replicas},
		}, metav1.UpdateOptions{FieldManager: "somebody"}); err != nil {
			t.Fatal(err)
		}
	}
	scale(0)
	w.awaitReady("app=orders", 0)
	w.await("the proxies to be not Ready", func() bool {
		return !slices.ContainsFunc(w.pods("bridge.internal/proxy"), func(p corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
		})
	})
	b = w.bridge(args...)
	b.says("taking up the swap")
	b.says(swapped)
	w.answeredBy("laptop")
	b.says("none of the original's pods is Ready")
	w.await("status to say so", func() bool {
		return strings.Contains(strings.Join(w.bridgeStatus("-o", "wide"), "\n"), "none of the original's pods is Ready")
	})
	scale(1)
	w.awaitReady("app=orders", 1)
	b.says("the original has a Ready pod again")
	b.terminate()
	w.answeredBy("original")
}

// deleteProxies deletes so many of the proxy's pods, as an eviction does.
func (w *world) deleteProxies(n int) {
	w.t.Helper()
	for _, name := range w.proxies()[:n] {
		if err := s.client.CoreV1().Pods(w.ns).Delete(w.t.Context(), name, metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
}

// The local process is not ready by the target's own probe, or is stopped, and comes back: the original answers in between.
func TestStandbyProcessRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withProbes("orders", "readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, timeoutSeconds: 10}", 2)
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=client", 1)
	before := w.snapshot()
	local := startHealthy(t, freePort(t), "S")
	b := w.bridge(local.swapFlags(standing...)...)
	b.says("port 7000 (tcp) goes to the originals: no --port maps it")
	b.says(swapped)
	w.answeredBy("laptop")
	for _, what := range []string{"half-close", "reset", "send-reset", "upload"} {
		w.check("--what", what, "--address", "orders:7000")
	}
	loads := w.steady("/")
	local.answers("F")
	b.says("status 503: callers go to the original until it succeeds")
	w.answersSteadily(original)
	during := w.load("--url", "http://orders", "--rate", "100")
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	if r := during.end(t); r.Failed > 0 || r.By["laptop"] > 0 {                  // although it answers those who ask it
		t.Errorf("while it is not ready: %v", r)
	}
	local.answers("S")
	b.says("ready again: ")
	w.answeredBy("laptop")
	for name, l := range loads {
		r := l.end(t)
		t.Logf("%s: %v", name, r)
		if r.Failed > 0 || r.Stalled > 0 || r.By["laptop"] == 0 || r.By["original"] == 0 {
			t.Errorf("%s: %v", name, r)
		}
	}

	l := w.load("--url", "http://orders", "--rate", "200")
	local.signal(syscall.SIGKILL)
	<-local.ended
	gone := time.Now()
	w.answeredBy("original")
	b.saysTimes("go to the original until", 2)
	startHealthy(t, local.port, "S")
	w.answeredBy("laptop")
	r := l.end(t)
	t.Logf("%v", r)
	if r.Failed > inFlight || r.Stalled > 0 || r.By["laptop"] == 0 || r.By["original"] == 0 {
		t.Errorf("%v", r)
	}
	r.unharmed(t, "a process that is not there", gone, time.Now())
	b.terminate()
	w.assertGivenBack(before)
}

// Both proxies go at once: callers are refused from when these have drained until others are there, and then the laptop answers again.
func TestStandbyBothProxiesDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap(standing...)
	old := w.proxies()
	loads := w.steady("/")
	fault := time.Now()
	w.deleteProxies(2)
	w.othersFor(len(old), old...)
	w.proxies()
	w.answeredBy("laptop")
	healed := time.Now()
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	for name, l := range loads {
		r := l.end(t)
		t.Logf("%s, which may fail for %v: %v", name, healed.Sub(fault).Round(time.Second), r)
		r.unharmed(t, name+" before", time.Time{}, fault)
		r.unharmed(t, name+" afterwards", healed, time.Now())
	}
	b.terminate()
	w.assertGivenBack(before)
}

// The node of one of two proxies is lost: until the cluster knows that, those fail whom it sends there, and nobody from then on.
func TestStandbyNodeLostUnderLoad(t *testing.T) {
	// Not parallel: other tests' pods would come to the node.
	cordon, lose := twoNodes(t)
	w := newWorld(t).withOrders()
	cordon("node2", false)
	b := w.swap(standing...)
	w.proxies()
	on := func(node string) (n int) {
		for _, p := range w.pods("bridge.internal/proxy") {
			if p.Spec.NodeName == node {
				n++
			}
		}
		return n
	}
	if on("node1") != 1 || on("node2") != 1 {
		t.Fatalf("%d proxies are on one node, %d on the other", on("node1"), on("node2"))
	}
	loads := w.steady("/")
	fault := time.Now()
	lose(true)
	w.await("a proxy in its place", func() bool { return on("node1") == 2 })
	w.answersSteadily("laptop")
	noticed := time.Now()
	w.check("--what", "many", "--address", "orders:7000", "--connections", "50") // some time, by doing something
	for name, l := range loads {
		r := l.end(t)
		t.Logf("%s, which may fail for %v: %v", name, noticed.Sub(fault).Round(time.Second), r)
		if name == newConnections { // of one that is kept to the lost proxy nobody tells the caller
			r.unharmed(t, name+" afterwards", noticed, time.Now())
		}
		if r.By["laptop"] == 0 {
			t.Errorf("%s: %v", name, r)
		}
	}
	b.terminate()
	w.answersSteadily(original)
	lose(false)
	w.await("the lost pod's end", func() bool { return len(w.pods("bridge.internal/proxy")) == 0 })
}

// Who may not have a keeper gets mode standby by default; a killed bridge leaves the original answering, and a keeper, where there is one,
// gives the Services back.
func TestStandbyIsGivenBack(t *testing.T) {
	t.Parallel()
	t.Run("by restore", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t).withOrders()
		who := w.editor()
		before := w.snapshot()
		b := w.bridgeAs(who, nil, append([]string{"swap", "deployment", "orders"}, localOrders(t)...)...)
		b.says("mode standby, since nobody could start the original again when this machine is gone")
		b.says("nobody gives it back when this machine is gone (your account may not create roles")
		b.says(swapped)
		b.kill()
		for range 5 { // by one proxy or the other, which may learn of it a little later
			w.answeredBy("original")
		}
		l := w.load("--url", "http://orders", "--rate", "100")
		w.elsewhere().bridgeAs(who, nil, "restore", "deployment", "orders").exits(0)
		if r := l.end(t); r.Failed > 0 {
			t.Errorf("%+v", r)
		}
		w.assertGivenBack(before)
	})
	t.Run("by the keeper", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t).withOrders()
		before := w.snapshot()
		b := w.swap(slices.Concat(standing, soon)...)
		l := w.load("--url", "http://orders", "--rate", "100")
		b.kill()
		w.awaitGivenBack(before)
		r := l.end(t)
		t.Logf("%+v", r)
		if r.Failed > inFlight {
			t.Errorf("%+v", r)
		}
	})
	for _, phase := range []string{"creating the proxy", "moving callers to it"} {
		t.Run("after "+phase, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.beginSwap(standing...)
			b.says(phase)
			b.signal(syscall.SIGTERM)
			b.exits(128 + int(syscall.SIGTERM))
			w.assertGivenBack(before)
		})
	}
}

// A manifest that is applied as kubectl does it adds to the replaced selector, which then selects nobody: that ends the swap, and the selector
// is what the manifest says.
func TestStandbyManifestAppliedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap(standing...)
	_, err := s.client.CoreV1().Services(w.ns).Patch(t.Context(), "orders", types.MergePatchType, []byte(`{"spec":{"selector":{"app":"orders"}}}`), metav1.PatchOptions{FieldManager: "kubectl-client-side-apply"})
	if err != nil {
		t.Fatal(err)
	}
	b.says("selects nobody now")
	b.exits(int(hint.Conflict))
	v, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil || len(v.Spec.Selector) != 1 || v.Spec.Selector["app"] != "orders" {
		t.Errorf("the selector is %v (%v)", v.Spec.Selector, err)
	}
	w.answeredBy("original")
}
