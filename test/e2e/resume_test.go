//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/tunnel"
)

// status is what `bridge status -o json` says of the one swap or connect in the namespace.
func (w *world) status() (e struct {
	State, Reason, IfLost string
	StateSince            time.Time
}) {
	w.t.Helper()
	b := w.bridge("status", "-o", "json")
	b.exits(0)
	entries := []any{&e}
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &entries); err != nil || len(entries) != 1 {
		w.t.Fatalf("status: %d entries, %v", len(entries), err)
	}
	return e
}

// The tunnel's state is told, and not believed when nobody tells it any more.
func TestStatusTellsTheTunnelsState(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap("--self-restore", "never")
	w.await("ready", func() bool { return w.status().State == "ready" })
	if since := time.Since(w.status().StateSince); since < 0 || since > patience {
		t.Errorf("ready for %v", since)
	}
	b.signal(syscall.SIGSTOP)
	w.await("unknown", func() bool {
		e := w.status()
		return e.State == "unknown" && strings.Contains(e.Reason, "ready before")
	})
	w.await("left behind", func() bool { return w.status().State == "left behind" })
	b.signal(syscall.SIGCONT)
	w.await("ready again", func() bool { return w.status().State == "ready" })
	b.terminate()
}

// kept are the files that bridge keeps on this laptop.
func (w *world) kept() []string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.state, "bridge", "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return files
}

// assertNothingKept is that no file of bridge's is left.
func (w *world) assertNothingKept() {
	w.t.Helper()
	if files := w.kept(); len(files) > 0 {
		w.t.Errorf("left on the laptop: %q", files)
	}
}

// kill is SIGKILL.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// proxy is the proxy's one pod.
func (w *world) proxy() corev1.Pod {
	w.t.Helper()
	pods := w.pods("bridge.internal/proxy")
	if len(pods) != 1 {
		w.t.Fatalf("%d pods of the proxy", len(pods))
	}
	return pods[0]
}

// answeredBy waits for an answer of that name.
func (w *world) answeredBy(name string) {
	w.t.Helper()
	w.await("an answer by "+name, func() bool {
		out := newLines()
		return w.exec(w.t.Context(), nil, out, "get", "--url", "http://orders") == nil && slices.Contains(out.all(), name)
	})
}

// withoutHeartbeat is a snapshot in which the Lease's heartbeat does not count.
func (w *world) withoutHeartbeat() string {
	return regexp.MustCompile(`(?m)^\s*(renewTime|bridge.internal/tunnel): .*$|bridge.internal/probes: '[^']*'`).ReplaceAllString(w.snapshot(), "")
}

// A bridge that is killed under traffic and started again takes its swap up: the same proxy pod, and nothing in the
// cluster changes but the heartbeat. Its end leaves nothing, in the cluster and on the laptop.
func TestKilledBridgeTakesItsSwapUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	b := w.bridge(args...)
	b.says(swapped)
	w.await("ready", func() bool { return w.status().State == "ready" })
	while, proxy := w.withoutHeartbeat(), w.proxy()
	if files := w.kept(); len(files) != 1 {
		t.Fatalf("kept: %q", files)
	} else if info, err := os.Stat(files[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s: %v, %v", files[0], info.Mode(), err)
	}
	for range 3 {
		l := w.load("--url", "http://orders", "--rate", "50", "--pooled")
		w.await("a good half-close", func() bool { // the Service may lag behind
			return w.exec(t.Context(), nil, io.Discard, "check", "--what", "half-close", "--address", "orders:7000") == nil
		})
		b.kill()
		b = w.bridge(args...)
		b.says("taking up the swap that an earlier bridge of yours made")
		b.says(swapped)
		w.answeredBy("laptop")
		w.await("a good half-close", func() bool { // the Service may lag behind
			return w.exec(t.Context(), nil, io.Discard, "check", "--what", "half-close", "--address", "orders:7000") == nil
		})
		r := l.end(t)
		t.Logf("%d of %d requests failed while bridge was killed and started again", r.Failed, r.Requests)
		if r.By["laptop"] == 0 || r.By["original"] > 0 {
			t.Errorf("answered by %v", r.By)
		}
		if again := w.proxy(); again.UID != proxy.UID || again.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("the proxy's pod is %s, was %s", again.UID, proxy.UID)
		}
		if now := w.withoutHeartbeat(); now != while {
			t.Errorf("the cluster is not as it was while swapped:\n%s\nwas\n%s", now, while)
		}
	}
	b.terminate()
	w.assertGivenBack(before)
	w.assertNothingKept()
}

// What of the options is the laptop's own affair may be another after a kill; the rest may not.
func TestTakeUpWithOtherOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, localOrders(t)...)...)
	b.says(swapped)
	b.kill()
	for flag, args := range map[string][]string{
		"--port":        localOrders(t)[:2],
		"--proxy-image": append(localOrders(t), "--proxy-image", "example.test/other"),
		"--arch":        append(localOrders(t), "--arch", "arm64"),
		"--carrier":     append(localOrders(t), "--carrier", "podproxy"),
		"--mode":        append(localOrders(t), "--header", "x-user=ada"),
		"--init":        append(localOrders(t), "--init"),
	} {
		b := w.bridge(append([]string{"swap", "deployment", "orders"}, args...)...)
		b.exits(int(hint.Conflict))
		b.says("with another " + flag + ": ")
		b.says("bridge restore deployment orders -n " + w.ns)
	}
	serve := freePort(t)
	start(t, s.sample, nil, "serve", "--name", "other port", "--http", "127.0.0.1:"+serve).says("listens on")
	tcp := localOrders(t)[2:]
	b = w.bridge(append([]string{"swap", "deployment", "orders", "--resume-window", "0", "--port", serve + ":http"}, tcp...)...)
	b.says(swapped)
	w.answeredBy("other port")
	b.terminate()
	w.assertGivenBack(before)
}

// One bridge of a laptop has a swap at a time. What a copy of its file can do: it takes over, and the one before ends
// without giving back.
func TestTwoBridgesWithOneSwap(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	first := w.bridge(args...)
	first.says(swapped)
	second := w.bridge(args...)
	second.exits(int(hint.Conflict))
	second.says(fmt.Sprintf("is already swapped by a bridge on this machine, process %d", first.cmd.Process.Pid))

	copied := w.elsewhere()
	if err := os.CopyFS(copied.state, os.DirFS(w.state)); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(copied.kept(), filepath.Join(copied.state, "bridge")) {
		if err := os.Chmod(name, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	refused := copied.bridge(args...)
	refused.exits(int(hint.Other))
	refused.says("is open to others")
	if err := errors.Join(os.Chmod(filepath.Join(copied.state, "bridge"), 0o700), os.Chmod(copied.kept()[0], 0o640)); err != nil {
		t.Fatal(err)
	}
	refused = copied.bridge(args...)
	refused.exits(int(hint.Other))
	refused.says("may be known to others")
	if err := os.Chmod(copied.kept()[0], 0o600); err != nil {
		t.Fatal(err)
	}
	third := copied.bridge(args...)
	third.says(swapped)
	first.exits(int(hint.TunnelLost))
	first.says("another bridge command has taken this session over")
	w.answeredBy("laptop")
	third.terminate()
	w.assertGivenBack(before)
}

// After a restore from elsewhere the key that this laptop keeps opens nothing, and goes.
func TestOldKeyAfterRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	args := append([]string{"swap", "deployment", "orders"}, localOrders(t)...)
	b := w.bridge(args...)
	b.says(swapped)
	b.kill()
	other := w.elsewhere()
	other.bridge("restore", "deployment", "orders").exits(0)
	holder := other.bridge(args...)
	holder.says(swapped)

	var kept struct {
		Key        tunnel.Key
		ProxyPorts struct{ Tunnel int }
	}
	text, err := os.ReadFile(w.kept()[0])
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		t.Fatal(err)
	}
	k, err := kube.NewForConfig(s.config, w.ns)
	if err != nil {
		t.Fatal(err)
	}
	c := &tunnel.Client{Key: kept.Key, Carrier: func(ctx context.Context) (net.Conn, string, error) {
		conn, err := k.DialPod(ctx, w.ns, w.proxy().Name, kept.ProxyPorts.Tunnel)
		return conn, "pod", err
	}}
	if err := c.Run(t.Context()); !errors.Is(err, tunnel.ErrKeyRefused) {
		t.Errorf("the old key: %v", err)
	}

	again := w.bridge(args...)
	again.exits(int(hint.Conflict))
	again.says("is already swapped by ")
	w.assertNothingKept()
	w.answeredBy("laptop")
	holder.terminate()
	w.assertGivenBack(before)
}

// restore on the same laptop removes what is kept there; a swap goes on without it where nothing can be kept.
func TestRestoreForgetsTheSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	b.kill()
	w.bridge("restore", "deployment", "orders").exits(0)
	w.assertNothingKept()
	nowhere := &world{t: t, ns: w.ns, state: filepath.Join("/proc", strconv.Itoa(os.Getpid()))}
	b = nowhere.swap()
	b.says("after a kill this swap can be given back, but not taken up again")
	b.terminate()
	w.assertGivenBack(before)
}
