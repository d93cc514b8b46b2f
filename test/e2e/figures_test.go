//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// figure is something that a swap costs, measured a few times.
type figure struct {
	what, aim, unit string
	is              []float64
}

// figures keeps the order in which they came.
type figures struct{ list []*figure }

func (f *figures) add(what, aim, unit string, value float64) {
	i := slices.IndexFunc(f.list, func(g *figure) bool { return g.what == what })
	if i < 0 {
		i = len(f.list)
		f.list = append(f.list, &figure{what: what, aim: aim, unit: unit})
	}
	f.list[i].is = append(f.list[i].is, value)
}

func (f *figures) String() string {
	var b strings.Builder
	b.WriteString("| | times | median | worst | aim |\n| --- | ---: | ---: | ---: | ---: |\n")
	for _, g := range f.list {
		slices.Sort(g.is)
		n := len(g.is)
		fmt.Fprintf(&b, "| %s | %d | %.1f %s | %.1f %s | %s |\n", g.what, n, g.is[n/2], g.unit, g.is[n-1], g.unit, g.aim)
	}
	return b.String()
}

const figuresText = `# What a swap costs

Written by ` + "`make soak`" + `, from a test with a real Kubernetes on one machine of two cores, which the laptop, the API server, the kubelet and
all pods share. The workload has two replicas and a readiness probe of a second's period; its image and the proxy's are on the node. 200 requests a
second, each on a connection of its own, come from another pod all the while.

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
		f.measureMemory(newWorld(t).withOrders())
	}
	t.Log("\n" + f.String())
	if soak(true, false) && !t.Failed() {
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
	l := w.load("--url", "http://orders/load", "--rate", "200")
	begin := time.Now()
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, local.flags...)...)
	f.add("from the command to the first request that is answered here", "under 2 s", "s", local.first(w.t).Sub(begin).Seconds())
	b.says(swapped)
	f.add("to \"swapped\": the original has ended", "", "s", time.Since(begin).Seconds())
	for _, line := range b.stderr.all() {
		if m := step.FindStringSubmatch(line); m != nil && !strings.Contains(m[2], swapped) {
			var at float64
			if _, err := fmt.Sscan(m[1], &at); err != nil {
				w.t.Fatal(err)
			}
			f.add("– "+strings.ReplaceAll(m[2], w.ns, "shop"), "", "s", at)
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
	r := l.end(w.t)
	for _, turn := range r.Turns {
		if turn.By == "original" && turn.At.After(end) { // the same machine's clock
			f.add("giving back, until the original answers, beyond its own start", "under 1 s", "s", (turn.At.Sub(end) - start).Seconds())
			break
		}
	}
	f.add("giving back, until all is as before, beyond the original's own start", "under 1 s", "s", (ended - start).Seconds())
	f.add("requests that failed", "0", "", float64(r.Failed))
	if r.By["laptop"] == 0 || r.By["original"] == 0 {
		w.t.Errorf("answered by %v", r.By)
	}
	w.assertGivenBack(before)
}

func (f *figures) measureMemory(w *world) {
	w.t.Helper()
	local := newLocal(w.t)
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, local.flags...)...)
	b.says(swapped)
	proxy := w.proxy()
	f.add("memory of the proxy, idle", "under 20 MiB", "MiB", residentOf(w.t, string(proxy.UID), "--tunnel"))
	in, stop := io.Pipe()
	out, done := newLines(), make(chan error, 1)
	go func() {
		done <- w.exec(w.t.Context(), in, out, "check", "--what", "many", "--address", "orders:7000", "--connections", "1000", "--hold")
	}()
	out.await(w.t, "held")
	f.add("with 1,000 connections", "under 80 MiB", "MiB", residentOf(w.t, string(proxy.UID), "--tunnel"))
	_ = stop.Close()
	if err := <-done; err != nil {
		w.t.Error(err)
	}
	if keepers := w.pods("bridge.internal/keeper"); len(keepers) == 1 {
		f.add("memory of the keeper", "", "MiB", residentOf(w.t, string(keepers[0].UID), "keep"))
	}
	b.terminate()
}

// residentOf is VmRSS (proc_pid_status(5)), in MiB, of the process in a pod that has this argument.
func residentOf(t *testing.T, uid, argument string) float64 {
	t.Helper()
	embedded(t)
	ids := processesIn(t, uid, argument)
	if len(ids) == 0 {
		t.Fatalf("no process %s in the pod", argument)
	}
	b, err := os.ReadFile("/proc/" + ids[0] + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "VmRSS:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil || !ok {
		t.Fatalf("no VmRSS in %s", b)
	}
	return kib / 1024
}

// local is the laptop's side, in this process: of HTTP, and of "sample check" for TCP.
type local struct {
	flags []string
	once  sync.Once
	asked chan time.Time // when the first request of the load came
}

func newLocal(t *testing.T) *local {
	t.Helper()
	l := &local{asked: make(chan time.Time, 1)}
	web, tcp := listen(t), listen(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/load" {
			l.once.Do(func() { l.asked <- time.Now() })
		}
		_, _ = io.WriteString(w, "laptop\n")
	})}
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
