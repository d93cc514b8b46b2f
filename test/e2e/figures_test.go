//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// figure is something that a swap costs, measured a few times.
type figure struct {
	what, unit string
	aim        float64 // at most; noAim where there is none
	is         []float64
}

const noAim = -1

// reached says in words whether it is what is aimed at. is is sorted.
func (g *figure) reached() string {
	switch n := len(g.is); {
	case g.aim == noAim:
		return ""
	case g.is[n-1] <= g.aim:
		return "reached"
	case g.is[n/2] <= g.aim:
		return "reached by half"
	}
	return "missed"
}

// figures keeps the order in which they came.
type figures struct{ list []*figure }

func (f *figures) add(what string, aim float64, unit string, value float64) {
	i := slices.IndexFunc(f.list, func(g *figure) bool { return g.what == what })
	if i < 0 {
		i = len(f.list)
		f.list = append(f.list, &figure{what: what, aim: aim, unit: unit})
	}
	f.list[i].is = append(f.list[i].is, value)
}

func (f *figures) String() string {
	var b strings.Builder
	b.WriteString("| | times | median | worst | aim, at most | |\n| --- | ---: | ---: | ---: | ---: | --- |\n")
	for _, g := range f.list {
		slices.Sort(g.is)
		n := len(g.is)
		with := func(value float64, digits int) string {
			return strings.TrimSpace(strconv.FormatFloat(value, 'f', digits, 64) + " " + g.unit)
		}
		aim := ""
		if g.aim != noAim {
			aim = with(g.aim, 0)
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s |\n", g.what, n, with(g.is[n/2], 1), with(g.is[n-1], 1), aim, g.reached())
	}
	return b.String()
}

// count ends the loads, and has what they counted. In the long form, which has the machine for itself, no request may fail where that is held.
func (f *figures) count(t *testing.T, when string, aim float64, held bool, loads map[string]*load) map[string]report {
	t.Helper()
	reports := map[string]report{}
	for _, name := range slices.Sorted(maps.Keys(loads)) {
		r := loads[name].end(t)
		reports[name] = r
		f.add("requests that failed "+when+", "+name, aim, "", float64(r.Failed))
		f.add("– the longest "+when+", "+name, noAim, "s", r.Worst.Seconds())
		t.Logf("%s, %s: %v", when, name, r)
		if r.Failed > 0 && held && soak(true, false) {
			t.Errorf("%s, %s: %v", when, name, r)
		}
	}
	return reports
}

const figuresText = `# What a swap costs

Written by ` + "`make soak`" + `, from a test with a real Kubernetes on one machine of two cores, which the laptop, the API server, the kubelet and
all pods share. The workload has two replicas and a readiness probe of a second's period; its image and the proxy's are on the node. 400 requests a
second come from another pod all the while, 200 of them each on a connection of its own, and 200 on kept ones. "By half" is of the times that it was measured.

`

// What a swap costs, in time, requests and memory. The long form is what docs/swap-figures.md has.
func TestSwapFigures(t *testing.T) {
	if soak(true, false) { // alone, and with bridge as it is built for users
		if out, err := exec.Command("make", "-C", s.root, "build").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		defer func(other string) { s.bridge = other }(s.bridge)
		s.bridge = filepath.Join(s.root, "bin", "bridge")
	} else {
		t.Parallel() // the figures are for nobody
	}
	var f figures
	for range soak(10, 1) {
		f.measureTimes(newWorld(t).withOrders())
	}
	for range soak(3, 1) {
		f.measureEviction(newWorld(t).withOrders(), "replace")
	}
	for range soak(3, 0) {
		f.measureEviction(newWorld(t).withOrders(), "standby")
	}
	for range soak(3, 0) {
		f.measureLoss(newWorld(t).withOrders(), "while the laptop is killed", func(w *world, b *process) bool {
			b.kill()
			w.answersSteadily("original")
			return false
		})
		f.measureLoss(newWorld(t).withOrders(), "while the laptop is frozen", func(w *world, b *process) bool {
			b.signal(syscall.SIGSTOP)
			w.answersSteadily("original")
			b.signal(syscall.SIGCONT)
			return true
		})
		f.measureLoss(newWorld(t).withOrders(), "while both proxies are deleted", func(w *world, _ *process) bool {
			old := w.proxies()
			w.deleteProxies(len(old))
			w.othersFor(len(old), old...)
			w.proxies()
			return true
		})
	}
	for range soak(3, 1) {
		f.measureMemory(newWorld(t).withOrders())
	}
	t.Log("\n" + f.String())
	if soak(true, false) {
		if err := os.WriteFile(filepath.Join(s.root, "docs", "swap-figures.md"), []byte(figuresText+f.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// step is a line of a swap's progress: when, and what.
var step = regexp.MustCompile(`^\s*([0-9.]+)s  (.*)$`)

func (f *figures) measureTimes(w *world) {
	w.t.Helper()
	before := w.snapshot()
	local := newLocal(w.t)
	loads := w.steady("/load")
	begin := time.Now()
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, local.flags...)...)
	f.add("from the command to the first request that is answered here, beyond the target's own probe", 2, "s", (local.first(w.t).Sub(begin) - local.probing()).Seconds())
	b.says(swapped)
	f.add("to \"swapped\": the original has ended", noAim, "s", time.Since(begin).Seconds())
	for _, line := range b.stderr.all() {
		if m := step.FindStringSubmatch(line); m != nil && !strings.Contains(m[2], swapped) {
			var at float64
			if _, err := fmt.Sscan(m[1], &at); err != nil {
				w.t.Fatal(err)
			}
			f.add("– "+strings.ReplaceAll(m[2], w.ns, "shop"), noAim, "s", at)
		}
	}

	var up, ready time.Time // when the original was started again, and was Ready
	end := time.Now()
	b.signal(syscall.SIGTERM)
	w.await("the original", func() bool {
		d, err := s.client.AppsV1().Deployments(w.ns).Get(context.WithoutCancel(w.t.Context()), "orders", metav1.GetOptions{})
		if err != nil {
			return false
		}
		if up.IsZero() && *d.Spec.Replicas == 2 {
			up = time.Now()
		}
		ready = time.Now()
		return !up.IsZero() && d.Status.ObservedGeneration == d.Generation && d.Status.ReadyReplicas == 2
	})
	b.exits(128 + int(syscall.SIGTERM))
	ended, start := time.Since(end), ready.Sub(up)
	r := f.count(w.t, "while it is swapped and given back", 0, true, loads)[newConnections]
	for _, turn := range r.Turns {
		if turn.By == "original" && turn.At.After(end) { // the same machine's clock
			f.add("giving back, until the original answers, beyond its own start", 1, "s", (turn.At.Sub(end) - start).Seconds())
			break
		}
	}
	f.add("giving back, until all is as before, beyond the original's own start", 1, "s", (ended - start).Seconds())
	if r.By["laptop"] == 0 || r.By["original"] == 0 {
		w.t.Errorf("answered by %v", r.By)
	}
	w.assertGivenBack(before)
}

// measureEviction has the proxy, or one of two, evicted. One alone is missed until the next one is there.
func (f *figures) measureEviction(w *world, mode string) {
	w.t.Helper()
	before := w.snapshot()
	b := w.bridge(slices.Concat([]string{"swap", "deployment", "orders", "--mode", mode}, newLocal(w.t).flags)...)
	b.says(swapped)
	w.answersSteadily("laptop")
	old := w.pods("bridge.internal/proxy")
	loads := w.steady("/load")
	if err := s.client.CoreV1().Pods(w.ns).EvictV1(w.t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: old[0].Name, Namespace: w.ns}}); err != nil {
		w.t.Fatal(err)
	}
	w.othersFor(len(old), old[0].Name)
	w.awaitReady("bridge.internal/proxy", len(old))
	w.answersSteadily("laptop")
	f.count(w.t, "while a proxy is evicted in mode "+mode, 0, mode == "standby", loads)
	b.terminate()
	w.assertGivenBack(before)
}

// measureLoss counts what a fault costs in mode standby. fault makes it, waits until it is over, and tells whether bridge lives.
func (f *figures) measureLoss(w *world, when string, fault func(*world, *process) (lives bool)) {
	w.t.Helper()
	before := w.snapshot()
	b := w.bridge(slices.Concat([]string{"swap", "deployment", "orders"}, newLocal(w.t).flags, standing)...)
	b.says(swapped)
	w.proxies()
	w.answersSteadily("laptop")
	loads := w.steady("/load")
	lives := fault(w, b)
	if lives {
		w.answersSteadily("laptop")
	}
	f.count(w.t, when+" in mode standby", noAim, false, loads)
	if lives {
		b.terminate()
	} else {
		w.bridge("restore", "deployment", "orders").exits(0)
	}
	w.assertGivenBack(before)
}

// othersFor waits until there are n proxies again, and none of the old ones.
func (w *world) othersFor(n int, old ...string) {
	w.t.Helper()
	w.await("other proxies", func() bool {
		now := w.pods("bridge.internal/proxy")
		return len(now) == n && !slices.ContainsFunc(now, func(p corev1.Pod) bool { return slices.Contains(old, p.Name) })
	})
}

func (f *figures) measureMemory(w *world) {
	w.t.Helper()
	local := newLocal(w.t)
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, local.flags...)...)
	b.says(swapped)
	proxy := w.proxy()
	f.add("memory of the proxy's pod, idle", 20, "MiB", memoryOf(w.t, string(proxy.UID), "--tunnel"))
	in, stop := io.Pipe()
	out, done := newLines(), make(chan error, 1)
	go func() {
		done <- w.exec(w.t.Context(), in, out, "check", "--what", "many", "--address", "orders:7000", "--connections", "1000", "--hold")
	}()
	out.await(w.t, "held")
	f.add("with 1,000 connections", 80, "MiB", memoryOf(w.t, string(proxy.UID), "--tunnel"))
	_ = stop.Close()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	if keepers := w.pods("bridge.internal/keeper"); len(keepers) == 1 {
		f.add("memory of the keeper's pod", noAim, "MiB", memoryOf(w.t, string(keepers[0].UID), "keep"))
	}
	b.terminate()
}

// memoryOf is what the kernel counts for a pod (cgroups(7): memory.current, or memory.usage_in_bytes), in MiB, its pause container and what
// the program itself takes, which is in memory where it is carried, among it. argument is one of its process's.
func memoryOf(t *testing.T, uid, argument string) float64 {
	t.Helper()
	embedded(t)
	ids := processesIn(t, uid, argument)
	if len(ids) == 0 {
		t.Fatalf("no process %s in the pod", argument)
	}
	groups, err := os.ReadFile("/proc/" + ids[0] + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // hierarchy:controllers:path
		root, file := "/sys/fs/cgroup", "memory.current"
		switch {
		case len(parts) != 3 || parts[1] != "" && parts[1] != "memory":
			continue
		case parts[1] == "memory":
			root, file = "/sys/fs/cgroup/memory", "memory.usage_in_bytes"
		}
		b, err := os.ReadFile(filepath.Join(root, filepath.Dir(parts[2]), file))
		if err != nil {
			continue // the other kind's
		}
		var bytes float64
		if _, err := fmt.Sscan(string(b), &bytes); err != nil {
			t.Fatal(err)
		}
		return bytes / (1 << 20)
	}
	t.Fatalf("nothing counts the pod's memory: %s", groups)
	return 0
}

// local is the laptop's side, in this process: of HTTP, and of "sample check" for TCP.
type local struct {
	flags []string
	once  sync.Once
	asked chan time.Time // when the first request of the load came

	mu           sync.Mutex
	came, probed time.Time // when bridge connected first, and when it had got an answer to the target's own probe
}

// probing is how long bridge has waited for the target's own probe.
func (l *local) probing() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.probed.Sub(l.came)
}

// note keeps the first time.
func (l *local) note(at *time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.IsZero() {
		*at = time.Now()
	}
}

func newLocal(t *testing.T) *local {
	t.Helper()
	l := &local{asked: make(chan time.Time, 1)}
	web, tcp := listen(t), listen(t)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/load" {
				l.once.Do(func() { l.asked <- time.Now() })
			}
			_, _ = io.WriteString(w, "laptop\n")
			if r.URL.Path == "/" {
				l.note(&l.probed)
			}
		}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				l.note(&l.came)
			}
		},
	}
	var group sync.WaitGroup
	group.Go(func() { _ = server.Serve(web) })
	group.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer func() { _ = c.Close() }()
				r := bufio.NewReader(c)
				if _, err := r.ReadString('\n'); err == nil { // "echo"
					_, _ = io.Copy(c, r)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		_ = tcp.Close()
		group.Wait()
	})
	for name, ln := range map[string]net.Listener{"http": web, "tcp": tcp} {
		l.flags = append(l.flags, "--port", fmt.Sprintf("%d:%s", ln.Addr().(*net.TCPAddr).Port, name))
	}
	return l
}

func (l *local) first(t *testing.T) time.Time {
	t.Helper()
	select {
	case at := <-l.asked:
		return at
	case <-time.After(patience):
		t.Fatal("no request comes")
		return time.Time{}
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}
