//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
	"bridge/internal/probe"
)

// Each probe is run where its container is, and says what it gives, and what the kubelet would do.
func TestProbes(t *testing.T) {
	t.Parallel()
	b := readBroken(t, "testdata/probes.yaml")
	if err := b.put(t); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ns: b.ns}
	w.await("the pod's containers", func() bool {
		p, err := s.client.CoreV1().Pods(b.ns).Get(t.Context(), "it", metav1.GetOptions{})
		if err != nil || len(p.Status.ContainerStatuses) < 5 {
			return false
		}
		for _, c := range p.Status.ContainerStatuses {
			if c.State.Running == nil {
				return false
			}
		}
		return true
	})
	kubeconfig := "KUBECONFIG=" + s.kubeconfig
	type row struct {
		result       probe.Result
		answer, next string
	}
	want := map[string]row{
		"good readiness": {probe.Success, "status 200", ""}, "good liveness": {probe.Success, "connected", "it goes on"}, "good startup": {probe.Success, "serving", ""},
		"bad readiness": {probe.Failure, "status 503", "stays not ready"}, "bad liveness": {probe.Failure, "connection refused", "killed and restarted after 1000 failures in a row"},
		"command readiness": {probe.Success, "exit status 0", ""}, "command liveness": {probe.Failure, "exit status 1: sample: unknown command", "killed and restarted"},
		"slow readiness": {probe.Failure, "no answer in time", "stays not ready"}, "loopback readiness": {probe.Success, "status 200", ""},
	}
	gives := func(args ...string) {
		t.Helper()
		var wrong []string
		w.await("what the probes give", func() bool {
			p := start(t, s.bridge, []string{kubeconfig}, append([]string{"probes", "pod/it", "-n", b.ns, "-o", "json"}, args...)...)
			p.exits(int(hint.Problems))
			var r diagnose.LiveReport
			if err := json.Unmarshal([]byte(strings.Join(p.stdout.all(), "\n")), &r); err != nil {
				t.Fatal(err)
			}
			wrong = nil
			for _, l := range r.Probes {
				is, known := want[l.Container+" "+l.Kind]
				inside := len(args) > 0 && l.Container != "command"
				if !known || l.Result != is.result || !strings.HasPrefix(l.Answer, is.answer) || !strings.HasPrefix(l.Next, is.next) || l.Means == "" || l.Inside != inside || inside && l.Seconds == 0 {
					wrong = append(wrong, fmt.Sprintf("%s %s: %v %s, %s; from a pod: %v, in %vs", l.Container, l.Kind, l.Result, l.Answer, l.Next, l.Inside, l.Seconds))
				}
			}
			return len(r.Probes) == len(want) && len(wrong) == 0
		})
		if len(wrong) > 0 {
			t.Error(strings.Join(wrong, "\n"))
		}
	}
	gives()
	// From a pod, at the pod's address, as the kubelet; and nothing is left of it.
	before := w.snapshot()
	want["loopback readiness"] = row{probe.Failure, "connection refused", "stays not ready"}
	gives("--inside")
	w.assertSnapshot(before)

	// Without the right to run commands the others are run.
	p := start(t, s.bridge, []string{"KUBECONFIG=" + w.as("probes", deployed(t, "probes"))}, "probes", "pod/it", "-n", b.ns)
	p.exits(int(hint.Problems))
	p.prints("pod/it container good: running for ")
	p.prints("not ready 20s to 31s after it stops answering")
	p.prints("may not create pods/exec in namespace " + b.ns)

	p = start(t, s.bridge, []string{kubeconfig}, "probes", "pod/it", "-n", b.ns, "--watch")
	p.prints("POD ")
	p.prints("status 503")
	p.terminate()
	before = w.snapshot()
	p = start(t, s.bridge, []string{kubeconfig}, "probes", "pod/it", "-n", b.ns, "--inside", "--watch")
	p.prints("status 503")
	p.terminate()
	w.assertSnapshot(before)
	start(t, s.bridge, []string{kubeconfig}, "probes", "deployment/orders", "-n", b.ns, "--inside").exits(int(hint.NotFound))
}
