//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
)

// withProbes is withOrders with other probes of the deployment, and as many pods.
func (w *world) withProbes(name, probes string, pods int) *world {
	w.t.Helper()
	const usual = "readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}"
	docs := fmt.Sprintf(ordersYAML, s.image)
	docs = strings.ReplaceAll(strings.Replace(docs, usual, probes, 1), "orders", name)
	w.apply(strings.Replace(docs, "replicas: 2", fmt.Sprintf("replicas: %d", pods), 1))
	w.awaitReady("app="+name, pods)
	return w
}

// healthy is the laptop's process for orders, which answers probes by a pattern.
type healthy struct {
	*process
	port string
}

func startHealthy(t *testing.T, port, pattern string) healthy {
	t.Helper()
	p := start(t, s.sample, nil, "serve", "--name", "laptop", "--http", "127.0.0.1:"+port, "--health", pattern)
	p.says("listens on")
	return healthy{p, port}
}

// swapFlags swap orders with it.
func (h healthy) swapFlags(more ...string) []string {
	return append([]string{"swap", "deployment", "orders", "--port", h.port + ":http"}, more...)
}

// answers gives its probes another pattern.
func (h healthy) answers(pattern string) {
	h.t.Helper()
	start(h.t, s.sample, nil, "put", "--url", "http://127.0.0.1:"+h.port+"/healthz", "--body", pattern).exits(0)
}

// readiness collects what a pod's Ready condition becomes, from now on.
func (w *world) readiness(pod string) *transitions {
	w.t.Helper()
	watch, err := s.client.CoreV1().Pods(w.ns).Watch(w.t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + pod})
	if err != nil {
		w.t.Fatal(err)
	}
	var tr transitions
	done := make(chan struct{})
	w.t.Cleanup(func() { watch.Stop(); <-done })
	go func() {
		defer close(done)
		last := corev1.ConditionTrue
		for event := range watch.ResultChan() {
			p, ok := event.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status != last {
					last = c.Status
					tr.add(last)
				}
			}
		}
	}()
	return &tr
}

type transitions struct {
	mu   sync.Mutex
	list []corev1.ConditionStatus
}

func (tr *transitions) add(s corev1.ConditionStatus) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.list = append(tr.list, s)
}

func (tr *transitions) all() []corev1.ConditionStatus {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return slices.Clone(tr.list)
}

// The same container with the same probe gives the same answers in a pod and on the laptop: the kubelet and bridge see the
// same changes in them.
func TestProbesBesideTheKubelet(t *testing.T) {
	t.Parallel()
	// Rows of two failures, of one success, and of a success that a failure breaks, change nothing.
	const pattern = "SSFFSSS" + "FFFFFFSFSSSS" + "SSFSFFSFFSSS" + "FFFFFFFSFFFSS" + "S"
	want := []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionTrue}
	for name, handler := range map[string]string{
		"httpGet": "httpGet: {path: /healthz, port: http}",
		"grpc":    "grpc: {port: 8080}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			probe := "readinessProbe: {" + handler + ", periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3, successThreshold: 2}"
			w := newWorld(t).withProbes("orders", probe, 1).withProbes("twin", probe, 1)
			local := startHealthy(t, freePort(t), "S")
			b := w.bridge(local.swapFlags()...)
			b.says(swapped)

			twin := w.pods("app=twin")[0].Name
			kubelet := w.readiness(twin)
			local.answers(pattern)
			if err := w.execIn(t.Context(), twin, "app", nil, newLines(), "put", "--url", "http://127.0.0.1:8080/healthz", "--body", pattern); err != nil {
				t.Fatal(err)
			}
			laptop := func() (list []corev1.ConditionStatus) {
				for _, line := range b.stderr.all() {
					switch {
					case strings.Contains(line, "not ready: "):
						list = append(list, corev1.ConditionFalse)
					case strings.Contains(line, "ready again: "):
						list = append(list, corev1.ConditionTrue)
					}
				}
				return list
			}
			w.await("all changes", func() bool { return len(kubelet.all()) >= len(want) && len(laptop()) >= len(want) })
			b.terminate()
			if k, l := kubelet.all(), laptop(); !slices.Equal(k, l) || !slices.Equal(k, want) {
				t.Errorf("ready became %v for the kubelet and %v for bridge, want %v", k, l, want)
			}
		})
	}
}

// Callers of a process that is not ready by the target's own probe are refused, as by a pod, until it is again: when the probe
// fails, when nothing answers (a breakpoint), and when the process is gone. None of it restarts anything.
func TestReadinessFollowsTheLaptop(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withProbes("orders", `readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, timeoutSeconds: 4}
        livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 4}
        startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1, timeoutSeconds: 4}`, 1)
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=client", 1)
	before := w.snapshot()
	local := startHealthy(t, freePort(t), "FFS")
	b := w.bridge(local.swapFlags()...)
	b.says("waiting for the local process: GET http://localhost:")
	b.says(swapped)
	running := w.running()
	get := func() (string, error) {
		out := newLines()
		err := w.exec(t.Context(), nil, out, "get", "--url", "http://orders")
		return strings.Join(out.all(), " "), err
	}
	// refused waits until callers are, after a line.
	refused := func(line string) {
		t.Helper()
		b.says(line)
		w.await("no ready endpoint", func() bool { return w.readyEndpoints("orders") == 0 })
		w.await("a refusal", func() bool {
			who, err := get()
			return err != nil && strings.Contains(err.Error(), "connection refused") && who == ""
		})
	}
	answered := func(n int) {
		t.Helper()
		w.await("ready again", func() bool { return strings.Count(strings.Join(b.stderr.all(), "\n"), "ready again: ") >= n })
		w.await("an answer by the laptop", func() bool { who, err := get(); return err == nil && who == "laptop" })
	}
	local.answers("F")
	refused(", 3 times in a row: callers are refused until it succeeds")
	w.await("the status", func() bool { return slices.Contains(w.probeResults(), "readiness failure") })
	local.answers("S")
	answered(1)

	local.signal(syscall.SIGSTOP)
	refused("no answer in time, 3 times in a row")
	local.signal(syscall.SIGCONT)
	answered(2)

	local.signal(syscall.SIGKILL)
	<-local.ended
	refused("your process is gone")
	startHealthy(t, local.port, "S")
	answered(3)
	w.await("the status", func() bool {
		return slices.Equal(w.probeResults(), []string{"startup success", "readiness success", "liveness success"})
	})
	if now := w.running(); !slices.Equal(now, running) {
		t.Errorf("the pods are %q, and were %q", now, running)
	}
	b.terminate()
	w.assertSnapshot(before)
}

// running are the containers of bridge's pods, each with how often it was restarted, in order.
func (w *world) running() (containers []string) {
	w.t.Helper()
	for _, p := range append(w.pods("bridge.internal/proxy"), w.pods("bridge.internal/keeper")...) {
		for _, c := range p.Status.ContainerStatuses {
			containers = append(containers, fmt.Sprintf("%s %s %s restarted %d times", p.UID, p.Name, c.Name, c.RestartCount))
		}
	}
	slices.Sort(containers)
	return containers
}

// readyEndpoints is how many a Service has.
func (w *world) readyEndpoints(service string) (n int) {
	w.t.Helper()
	list, err := s.client.DiscoveryV1().EndpointSlices(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready {
				n += len(e.Addresses)
			}
		}
	}
	return n
}

// probeResults are what bridge status tells of the one swap: "readiness failure".
func (w *world) probeResults() (results []string) {
	w.t.Helper()
	st := w.bridge("status", "-o", "json")
	st.exits(0)
	var entries []struct {
		Probes []struct{ Kind, Result string }
	}
	if err := json.Unmarshal([]byte(strings.Join(st.stdout.all(), "\n")), &entries); err != nil || len(entries) != 1 {
		w.t.Fatalf("status: %v, %+v", err, entries)
	}
	for _, p := range entries[0].Probes {
		results = append(results, p.Kind+" "+p.Result)
	}
	return results
}

// A program is ended and started again as the kubelet would do it, within the same swap.
func TestProgramIsRestartedOnLiveness(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withProbes("orders", "livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}\n        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}", 1)
	before := w.snapshot()
	port := freePort(t)
	b := w.bridge("swap", "deployment", "orders", "--port", port+":http", "--restart-on-liveness", "--", s.sample, "serve", "--name", "laptop", "--http", "127.0.0.1:"+port)
	b.says(swapped)
	proxy := w.proxy()
	reached := func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	w.await("its port", reached)
	healthy{b, port}.answers("F")
	b.says("3 times in a row: CMD is restarted, as the kubelet would have done")
	b.says("the program has ended with exit code 0: starting it again")
	b.says("ready again: GET http://localhost:" + port + "/: status 200")
	w.await("its port", reached)
	w.await("the status", func() bool {
		return slices.Equal(w.probeResults(), []string{"readiness success", "liveness success"})
	})
	if now := w.proxy(); now.UID != proxy.UID {
		t.Error("the proxy is another one")
	}
	b.signal(syscall.SIGTERM)
	b.exits(0)
	w.assertSnapshot(before)
}

// bridgeStatus is the table.
func (w *world) bridgeStatus(flags ...string) []string {
	w.t.Helper()
	st := w.bridge(append([]string{"status"}, flags...)...)
	st.exits(0)
	return st.stdout.all()
}

// Before anything is changed the process has to be ready; without the probes any process will do. Liveness is told, and
// restarts nothing.
func TestProbesOnAndOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withProbes("orders", "livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}\n        readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}", 1)
	before := w.snapshot()
	local := startHealthy(t, freePort(t), "F")
	b := w.bridge(local.swapFlags("--local-timeout", "1s")...)
	b.exits(int(hint.Other))
	b.says("the local process is not ready: GET http://localhost:")
	b.says("--probes off")
	w.assertSnapshot(before)

	b = w.bridge(local.swapFlags("--probes", "off")...)
	b.says(swapped)
	b.terminate()
	w.assertSnapshot(before)

	local.answers("S")
	b = w.bridge(local.swapFlags()...)
	b.says(swapped)
	local.answers("F")
	line := b.says("liveness: the kubelet would have restarted it at ")
	_, at, _ := strings.Cut(line, "restarted it at ")
	if _, err := time.Parse(time.TimeOnly, at[:len(time.TimeOnly)]); err != nil {
		t.Errorf("%q: %v", line, err)
	}
	w.await("the status", func() bool {
		return slices.ContainsFunc(w.bridgeStatus(), func(line string) bool { return strings.Contains(line, "(the kubelet would have restarted it at ") })
	})
	local.answers("S")
	b.says("liveness: good: ")
	b.terminate()
	w.assertSnapshot(before)

	// At a terminal there is a line that is rewritten in place, until another takes its row.
	c := w.atTerminal(local.swapFlags()...)
	c.shows(swapped)
	c.terminate()
	c.shows("readiness success at ")
	w.assertSnapshot(before)
}
