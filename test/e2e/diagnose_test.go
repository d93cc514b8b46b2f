//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
)

// brokenNode is a node that is not there, for what must not be done to a real one. No pod of others' goes to it.
const brokenNode = "bridge-test-broken"

// broken is a manifest of testdata in a namespace of its own.
type broken struct {
	name, docs string
	// finds is the one finding there is to be, "" for none; behind are those it explains.
	finds      string
	behind     []string
	dialled    bool // its ports are, which those of other tests' pods are not
	restricted bool // the namespace's Pod Security level
	deleted    bool // the pod is, once it is there
	ns         string
}

// readBroken reads a manifest and what its first comments say.
func readBroken(t *testing.T, path string) *broken {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b := &broken{name: strings.TrimSuffix(filepath.Base(path), ".yaml"), docs: string(text)}
	for line := range strings.Lines(b.docs) {
		words := strings.Fields(line)
		if words[0] != "#" {
			break
		}
		switch words[1] {
		case "finds":
			b.finds = strings.Join(words[2:], " ")
		case "behind":
			b.behind = words[2:]
		case "dialled":
			b.dialled = true
		case "in":
			b.restricted = true
		case "then":
			b.deleted = true
		}
	}
	return b
}

// namespace makes one, which goes with the test.
func namespace(t *testing.T, labels map[string]string) (string, error) {
	ns, err := s.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bridge-test-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	t.Cleanup(func() {
		_ = s.client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
	})
	return ns.Name, nil
}

// put makes what the manifest has, in a namespace of its own.
func (b *broken) put(t *testing.T) (err error) {
	labels := map[string]string{}
	if b.restricted {
		labels["pod-security.kubernetes.io/enforce"] = "restricted"
	}
	if b.ns, err = namespace(t, labels); err != nil {
		return err
	}
	text := strings.NewReplacer("IMAGE", s.image, "NAMESPACE", b.ns).Replace(b.docs)
	for doc := range strings.SplitSeq(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		r, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		apply := func() error {
			_, err := s.dynamic.Resource(r).Namespace(b.ns).Apply(t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "team"})
			return err
		}
		err := apply()
		for begin := time.Now(); err != nil && strings.Contains(err.Error(), "serviceaccount") && time.Since(begin) < patience; err = apply() {
			time.Sleep(50 * time.Millisecond) // a namespace gets its account in a moment
		}
		if err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
	}
	if !b.deleted {
		return nil
	}
	t.Cleanup(func() {
		_, _ = s.client.CoreV1().Pods(b.ns).Patch(context.Background(), "it", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	})
	return s.client.CoreV1().Pods(b.ns).Delete(t.Context(), "it", metav1.DeleteOptions{})
}

// diagnosed is what bridge says, by namespace, and for nodes by their names.
func diagnosed(t *testing.T, args ...string) map[string][]diagnose.Finding {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.bridge, append([]string{"diagnose", "-o", "json"}, args...)...)
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+s.kubeconfig)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != int(hint.Problems) && exit.ExitCode() != int(hint.Warnings)) {
		t.Fatalf("bridge diagnose %q: %v", args, err)
	}
	var r diagnose.Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Unread) > 0 {
		t.Fatalf("an admin may not read %+v", r.Unread)
	}
	found := map[string][]diagnose.Finding{}
	for _, f := range r.Findings {
		key := f.Object.Namespace
		if f.Object.Kind == "node" {
			key = f.Object.Name
		}
		found[key] = append(found[key], f)
	}
	return found
}

// differs says how what was found is not what was to be found; "" when it is.
func (b *broken) differs(found []diagnose.Finding) string {
	var got []string
	for _, f := range found {
		text := f.ID
		var behind []string
		for _, s := range f.Symptoms {
			behind = append(behind, s.ID)
		}
		slices.Sort(behind)
		for _, s := range behind {
			text += " " + s
		}
		got = append(got, text)
	}
	want := strings.Join(append([]string{b.finds}, b.behind...), " ")
	if text := strings.Join(got, "; "); text != want {
		return fmt.Sprintf("%s (in %s): found %q, want %q", b.name, b.ns, text, want)
	}
	return ""
}

// Each cause on its own is found by its name, on a real cluster, and nothing beside it; of two faults the cause is told, and the other
// stands behind it; where nothing is wrong nothing is found.
func TestDiagnose(t *testing.T) {
	t.Parallel()
	registry := readBroken(t, "testdata/registry.yaml")
	if err := registry.put(t); err != nil {
		t.Fatal(err)
	}
	breakNode(t)
	healthy := readBroken(t, "testdata/healthy.yaml")
	all := []*broken{healthy}
	paths, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d manifests, %v", len(paths), err)
	}
	for _, path := range paths {
		all = append(all, readBroken(t, path))
	}
	begin := time.Now()
	var group errgroup.Group
	group.SetLimit(8)
	for _, b := range all {
		group.Go(func() error { return b.put(t) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	// Until all of it is there at once: some take the kubelet or a controller seconds to find out.
	var wrong []string
	for until := time.Now().Add(patience); ; time.Sleep(time.Second) {
		found := diagnosed(t, "-A", "--no-dial")
		wrong = nil
		for _, b := range all {
			of := found[b.ns]
			if b.dialled {
				of = diagnosed(t, "-n", b.ns)[b.ns]
			}
			if strings.HasPrefix(b.finds, "node-") {
				of = append(of, found[brokenNode]...)
			}
			if d := b.differs(of); d != "" {
				wrong = append(wrong, d)
			}
		}
		if len(wrong) == 0 || time.Now().After(until) {
			break
		}
	}
	t.Logf("%d manifests were diagnosed in %v", len(all), time.Since(begin).Round(time.Second))
	if len(wrong) > 0 {
		t.Fatalf("%d of %d:\n%s", len(wrong), len(all), strings.Join(wrong, "\n"))
	}

	find := func(name string) *broken {
		return all[slices.IndexFunc(all, func(b *broken) bool { return b.name == name })]
	}
	run := func(b *broken, args ...string) *process {
		return start(t, s.bridge, []string{"KUBECONFIG=" + s.kubeconfig}, append([]string{"diagnose", "-n", b.ns}, args...)...)
	}
	p := run(healthy)
	p.exits(0)
	p.says("nothing wrong found in namespace " + healthy.ns)
	p.says("note: dialled 2 ports of 2 pods in ")
	run(healthy, "deployment/web", "svc/web").exits(0)
	run(find("service-port-undeclared"), "--no-dial").exits(int(hint.Warnings))
	run(healthy, "deployment/orders").exits(int(hint.NotFound))

	p = run(find("two-program-service"), "service/it")
	p.exits(int(hint.Problems))
	for _, words := range []string{"problem program-exits: deployment/it, pod/it-", "  state ", "exit code 1", "  direction  program", "  events ", `  log        sample: unknown command "dance"`, "  next ", "  explains   service/it: its only pod is not ready: pod/it-"} {
		p.prints(words)
	}

	// With the Role of deploy/, which grants nothing of the cluster's own.
	w := &world{t: t, ns: healthy.ns}
	p = start(t, s.bridge, []string{"KUBECONFIG=" + w.as("diagnose", deployed(t, "diagnose"))}, "diagnose", "-n", w.ns)
	p.exits(0)
	p.says("not read: nodes, secrets (your account may not)")
}

// A watch goes on while something is wrong or on its way, and ends when all is well, or when its time is over.
func TestDiagnoseWatch(t *testing.T) {
	t.Parallel()
	b := readBroken(t, "testdata/broken/two-configuration-service.yaml")
	if err := b.put(t); err != nil {
		t.Fatal(err)
	}
	env := []string{"KUBECONFIG=" + s.kubeconfig}
	p := start(t, s.bridge, env, "diagnose", "-n", b.ns, "--watch")
	p.says("deployment/it: configmap-absent; waiting for deployment/it")
	late := start(t, s.bridge, env, "diagnose", "-n", b.ns, "deployment/it", "--watch", "--timeout", "15s")
	late.exits(int(hint.Problems))
	late.prints("problem configmap-absent: ")
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}}
	if _, err := s.client.CoreV1().ConfigMaps(b.ns).Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.exits(0)
	p.says("nothing wrong found in namespace " + b.ns)
	p.says("note: dialled 1 port of 1 pod in ")
}

// manyYAML is a workload of many pods that no node has to run.
const manyYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 200
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      schedulingGates: [{name: example.test/wait}]
      containers:
      - name: app
        image: %s
        args: [serve]` + restrictedYAML

// A namespace of 200 pods takes less than 3 s and a list call for each kind of object. It is no parallel test: what it measures is bridge.
func TestDiagnoseALargeNamespace(t *testing.T) {
	w := newWorld(t)
	w.apply(fmt.Sprintf(manyYAML, s.image))
	w.await("200 pods", func() bool {
		n := 0
		for _, p := range w.pods("app=many") {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
					n++
				}
			}
		}
		return n == 200
	})
	kubeconfig, requests := countedAPI(t)
	const rounds, limit, lists = 3, 3 * time.Second, 22
	fastest := time.Hour
	for range rounds {
		requests()
		begin := time.Now()
		p := start(t, s.bridge, []string{"KUBECONFIG=" + kubeconfig}, "diagnose", "-n", w.ns)
		p.exits(int(hint.Problems))
		fastest = min(fastest, time.Since(begin))
		p.prints(" and 199 more")
		all := requests()
		if once := slices.Compact(slices.Sorted(slices.Values(all))); len(all) > lists || len(once) != len(all) {
			t.Errorf("%d requests: %q", len(all), all)
		}
	}
	t.Logf("200 pods are diagnosed in %v", fastest.Round(time.Millisecond))
	if fastest > limit {
		t.Errorf("200 pods take %v", fastest)
	}
}

// countedAPI is a way to the API server that counts: requests are the paths asked for since it was called last.
func countedAPI(t *testing.T) (kubeconfig string, requests func() []string) {
	t.Helper()
	to, err := url.Parse(s.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := rest.TransportFor(s.config)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var paths []string
	proxy := &httputil.ReverseProxy{Transport: transport, Rewrite: func(r *httputil.ProxyRequest) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, r.In.URL.Path)
		r.SetURL(to)
	}}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: server.URL}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c"}
	config.CurrentContext = "x"
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	return kubeconfig, func() []string {
		mu.Lock()
		defer mu.Unlock()
		all := paths
		paths = nil
		return all
	}
}

// breakNode adds a node whose kubelet is not there.
func breakNode(t *testing.T) {
	t.Helper()
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: brokenNode, Labels: map[string]string{"bridge.test/pool": "broken"}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "pool", Value: "broken", Effect: corev1.TaintEffectNoSchedule}}},
	}
	_ = s.client.CoreV1().Nodes().Delete(t.Context(), brokenNode, metav1.DeleteOptions{}) // of a run that was killed
	if _, err := s.client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.client.CoreV1().Nodes().Delete(context.Background(), brokenNode, metav1.DeleteOptions{})
	})
	status, err := json.Marshal(map[string]any{"status": corev1.NodeStatus{Conditions: []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady", Message: "said by a test", LastTransitionTime: metav1.Now()},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.CoreV1().Nodes().Patch(t.Context(), brokenNode, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}
