//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	point "bridge/internal/fault"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

// webYAML is a pod that belongs to nothing, and its Service.
const webYAML = `
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
      - name: app
        image: %s
        args: [serve, --name, original, --tcp, ":7000"]
        env:
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        ports:
        - {name: http, containerPort: 8080}
        - {name: tcp, containerPort: 7000}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}` + restrictedYAML + `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp, port: 7000, targetPort: 7000}
`

// withWeb adds the pod, its Service and the client.
func (w *world) withWeb() *world {
	w.t.Helper()
	w.apply(fmt.Sprintf(webYAML, s.image))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=web", 1)
	w.awaitReady("app=client", 1)
	return w
}

// web is the pod's text as in a snapshot, which has no pods.
func (w *world) web() string {
	w.t.Helper()
	o, err := s.dynamic.Resource(pods).Namespace(w.ns).Get(w.t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.text(o)
}

// swapWeb is a swap of the pod, and what it is asked for with.
func swapWeb(t *testing.T, flags ...string) []string {
	return slices.Concat([]string{"swap", "pod", "web"}, localOrders(t), flags)
}

// A bare pod stands by: it answers at once when bridge is killed, and the keeper gives back. The pod itself goes on all the while.
func TestABarePodStandsBy(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withWeb()
	before, pod := w.snapshot(), w.web()
	load := w.load("--url", "http://web", "--rate", "50")
	b := w.bridge(swapWeb(t, soon...)...)
	b.says("mode standby, since nothing starts a pod again that is stopped: the pod goes on")
	b.says("keeper: ready")
	b.says("swapped: pod/web in " + w.ns)
	w.answersAt("http://web", "laptop")
	w.proxies()
	st := w.bridge("status")
	st.exits(0)
	st.prints("pod/web")
	again := w.elsewhere().bridge(swapWeb(t)...)
	again.exits(int(hint.Conflict))
	again.says("pod/web in " + w.ns + " is already swapped by")

	b.kill()
	w.answersAt("http://web", original)
	w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
	if r := load.end(t); r.By["laptop"] == 0 || r.By[original] == 0 || r.Failed > inFlight {
		t.Errorf("the load: %+v", r)
	}
	if now := w.web(); now != pod {
		t.Errorf("the pod is not as it was:\n%s\nbefore:\n%s", now, pod)
	}
	w.assertManifest(before, webYAML)
}

// Wherever bridge is killed the keeper gives back, and so does bridge restore from elsewhere.
func TestABarePodWhereverBridgeIsKilled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		at      point.Point
		restore bool
	}{{point.Recorded, false}, {point.Moved, false}, {point.Alone, false}, {point.Claimed, true}, {point.Moved, true}} {
		t.Run(fmt.Sprintf("%s, restored: %v", c.at, c.restore), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withWeb()
			before, pod := w.snapshot(), w.web()
			flags := soon
			if c.restore {
				flags = []string{"--self-restore", "never"}
			}
			b := w.faulty(c.at, "kill", swapWeb(t, flags...)...)
			b.dies(c.at)
			w.answersAt("http://web", original)
			if c.restore {
				w.elsewhere().bridge("restore", "pod", "web").exits(0)
			}
			w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before && w.web() == pod })
			w.answersAt("http://web", original)
			w.assertManifest(before, webYAML)
		})
	}
}

// The rights of its kind alone do; without its Lease it is found by its copy of the record.
func TestABarePodsRightsAndRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withWeb()
	may := rights.Swap.For(kube.Pod)
	who := w.as("ada", granting("swap", slices.Concat(may.Required(true), rights.Moving(), rights.Standing(), rights.Keeping(kube.Pod), rights.Telling())))
	other := w.as("bob", granting("restore", append(rights.Restore.For(kube.Pod).Required(false), rights.Moving()...)))
	before, pod := w.snapshot(), w.web()
	b := w.bridgeAs(who, nil, swapWeb(t, "--self-restore", "always")...)
	b.says("swapped: pod/web")
	w.answersAt("http://web", "laptop")
	w.elsewhere().bridgeAs(other, nil, "restore", "pod/web").exits(0)
	b.exits(int(hint.Conflict))
	w.await("the namespace as it was", func() bool { return w.snapshot() == before && w.web() == pod })

	b = w.bridge(swapWeb(t)...)
	b.says("swapped: pod/web")
	b.kill()
	if err := s.client.CoordinationV1().Leases(w.ns).Delete(t.Context(), "bridge-pod-web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r := w.elsewhere().bridge("restore", "--all")
	r.exits(0)
	r.says("pod/web in " + w.ns + " is given back")
	w.await("the namespace as it was", func() bool { return w.snapshot() == before && w.web() == pod }) // the garbage collector takes the keeper
	w.assertManifest(before, webYAML)
}

// A pod that is deleted while it is swapped ends the swap, and nothing is left, whether bridge is there or not.
func TestABarePodDeletedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("bridge killed: %v", killed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withWeb()
			before := w.snapshot()
			b := w.bridge(swapWeb(t, soon...)...)
			b.says("swapped: pod/web")
			if killed {
				b.kill()
			}
			if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if !killed {
				b.says("pod/web in " + w.ns + " was deleted")
				b.exits(0)
			}
			w.await("the namespace as it was", func() bool { return w.lease() == nil && w.snapshot() == before })
			w.await("the proxies' end", func() bool { return len(w.pods("bridge.internal/proxy"))+len(w.pods("bridge.internal/keeper")) == 0 })
			// The next one of that name is another pod, and has its Service.
			w.apply(fmt.Sprintf(webYAML, s.image))
			w.awaitReady("app=web", 1)
			w.answersAt("http://web", original)
		})
	}
}

// What cannot be done is said, and nothing is touched; env and files are as for a workload.
func TestABarePodRefusedAndSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withWeb()
	before := w.snapshot()
	b := w.bridge(swapWeb(t, "--mode", "replace")...)
	b.exits(int(hint.Usage))
	b.says("pod/web cannot be swapped in mode replace: it belongs to no workload, so once it is stopped nothing starts it again")
	b.says("--mode standby has it go on")
	b = w.bridge(swapWeb(t, "--dry-run=server")...)
	b.exits(0)
	b.prints("patch pod/web: a copy of the record")

	b = w.bridge("env", "pod/web", "--format", "json")
	b.exits(0)
	var env map[string]string
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &env); err != nil {
		t.Fatal(err)
	}
	if env["ME"] != "web" || env["HOSTNAME"] != "web" {
		t.Errorf("the pod's environment has ME=%q HOSTNAME=%q", env["ME"], env["HOSTNAME"])
	}
	w.bridge("files", "pod", "web", t.TempDir()).exits(0)

	// One more like it, which the Service has too: no proxy can tell whose callers are whose.
	second := strings.Replace(strings.Split(fmt.Sprintf(webYAML, s.image), "\n---\n")[0], "name: web", "name: web-2", 1)
	w.apply(second)
	w.awaitReady("app=web", 2)
	b = w.bridge(swapWeb(t)...)
	b.exits(int(hint.Usage))
	b.says("every Service that selects it selects others' pods too")
	w.await("the namespace as it was", func() bool { return w.snapshot() == before })
	if record, is := w.pods("app=web")[0].Annotations["bridge.internal/undo"]; is {
		t.Errorf("there is a record: %s", record)
	}
}
