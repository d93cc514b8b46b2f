//go:build linux

package e2e

import (
	"os/exec"
	"slices"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
)

// Somebody gives back while the swap is still being made: nothing stays half swapped.
func TestRestoreWhileSwapping(t *testing.T) {
	t.Parallel()
	for _, phase := range []string{"creating the proxy", "tunnel: ready", "moving callers to it"} {
		t.Run("after "+phase, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			b := w.beginSwap()
			b.says(phase)
			w.bridge("restore", "deployment", "orders").exits(0)
			b.exits(int(hint.Conflict))
			w.assertGivenBack(before)
		})
	}
}

// Two that give back at once both end well.
func TestTwoRestoresRace(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	b.signal(syscall.SIGKILL)
	<-b.ended
	x, y := w.bridge("restore", "deployment", "orders"), w.bridge("restore", "deployment", "orders")
	x.exits(0)
	y.exits(0)
	w.assertGivenBack(before)
}

// The record's copy outlives its Lease, and a new swap does not write over it.
func TestSwapOverAnOrphanedRecordIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	local := localOrders(t)
	b := w.bridge(append([]string{"swap", "deployment", "orders"}, local...)...)
	b.says(swapped)
	b.signal(syscall.SIGKILL)
	<-b.ended
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-deployment-orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	again := w.bridge(append([]string{"swap", "deployment", "orders"}, local...)...)
	again.exits(int(hint.Conflict))
	again.says("bridge restore deployment orders -n " + w.ns)
	w.bridge("restore", "deployment", "orders").exits(0)
	w.assertGivenBack(before)
}

// The Lease deleted by hand under a living swap: it gives back by its copy of the record.
func TestLeaseDeletedUnderALivingSwap(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-deployment-orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.says("its Lease is gone")
	b.exits(int(hint.Conflict))
	w.assertGivenBack(before)
}

// A proxy that somebody deletes ends the swap; it does not wait for ever beside a service without endpoints.
func TestProxyDeletedWhileSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	if err := s.client.AppsV1().Deployments(w.ns).Delete(t.Context(), "bridge-deployment-orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.exits(int(hint.ProxyNotReady))
	b.says("somebody has deleted the proxy")
	w.assertGivenBack(before)
}

// The proxy's pod evicted: another takes its place, and the swap goes on.
func TestProxyPodDeletedWhileSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	old := w.pods("bridge.internal/proxy")[0]
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), old.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("another pod in its place", func() bool {
		pods := w.pods("bridge.internal/proxy")
		return len(pods) == 1 && pods[0].UID != old.UID
	})
	w.await("an answer by the laptop", func() bool {
		out := newLines()
		return w.exec(t.Context(), nil, out, "get", "--url", "http://orders") == nil && slices.Contains(out.all(), "laptop")
	})
	b.terminate()
	w.assertGivenBack(before)
}

// A Service that is deleted during the swap holds nothing up.
func TestServiceDeletedWhileSwapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	b := w.swap()
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.terminate()
	b.says("service/orders is gone")
	w.awaitReady("app=orders", 2)
}

// restore connect removes what is a connect, and nothing else of that name.
func TestRestoreConnectLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	for _, name := range []string{"orders", "nosuch"} {
		b := w.bridge("restore", "connect", name)
		b.exits(int(hint.NotFound))
		b.says("there is no connect")
	}
	w.assertSnapshot(before)
}

// An API server that is away while giving back is waited for: the original runs again at the end.
func TestAPIServerAwayWhileGivingBack(t *testing.T) {
	if !s.embedded {
		t.Skip("packets are rejected in the embedded cluster's laptop only")
	}
	// Not parallel: it cuts every test's path to the API server.
	w := newWorld(t).withOrders()
	before := w.snapshot()
	b := w.swap()
	rule := func(op string) {
		t.Helper()
		if out, err := exec.Command("iptables", op, "OUTPUT", "-p", "tcp", "--dport", apiPort(t), "-j", "REJECT", "--reject-with", "tcp-reset").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	rule("-I")
	away := true
	defer func() {
		if away {
			rule("-D")
		}
	}()
	b.signal(syscall.SIGTERM)
	b.says("giving deployment/orders back")
	b.says("trying again") // the first change of giving back has met the refusal
	rule("-D")
	away = false
	b.exits(143)
	w.assertGivenBack(before)
}
