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
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"bridge/internal/diagnose"
	"bridge/internal/hint"
)

// Nodes that are not there, for what must not be done to a real one. No pod of others' goes to them.
const (
	brokenNode   = "bridge-test-broken"   // not ready
	cordonedNode = "bridge-test-cordoned" // ready
	pressedNode  = "bridge-test-pressed"  // ready, and short of memory
	strainedNode = "bridge-test-strained" // ready, and short of all else
)

// broken is a manifest of testdata in a namespace of its own. A document that begins with "# when" is applied when that holds.
type broken struct {
	name, docs string
	// wants are the findings there are to be, each with the ids of those it explains behind its own.
	wants      []string
	dialled    bool   // its ports are, which those of other tests' pods are not
	measured   bool   // what it uses is
	inside     bool   // a pod dials what it has beyond the pods, too
	alone      bool   // it is diagnosed so, until it is found once: what it finds is also about what others share, or comes and goes
	restricted bool   // the namespace's Pod Security level
	deleted    bool   // the pod is, once it is there
	ending     bool   // the namespace is
	status     string // what is to be said of the pod, whose node has no kubelet
	ns         string
	found      bool
}

// clusterWide are the kinds of the manifests that are in no namespace. They are named for the manifest's.
var clusterWide = []string{"StorageClass", "PersistentVolume", "RuntimeClass", "IngressClass", "ValidatingWebhookConfiguration", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}

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
			b.wants = append(b.wants, words[2:]...)
		case "behind":
			b.wants[len(b.wants)-1] += " " + strings.Join(words[2:], " ")
		case "dialled":
			b.dialled = true
		case "inside":
			b.dialled, b.inside = true, true
		case "measured":
			b.measured = true
		case "alone":
			b.alone = true
		case "in":
			b.restricted = true
		case "then":
			_, b.status, _ = strings.Cut(line, "status ")
			b.ending = words[len(words)-1] == "namespace"
			b.deleted = words[2] == "delete" && !b.ending
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
	text, err := b.text(t)
	if err != nil {
		return err
	}
	for doc := range strings.SplitSeq(text, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		if first, _, _ := strings.Cut(doc, "\n"); strings.HasPrefix(first, "# when ") {
			if err := b.await(t, strings.TrimPrefix(first, "# when ")); err != nil {
				return err
			}
		}
		r, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
		to := s.dynamic.Resource(r).Namespace(b.ns)
		if slices.Contains(clusterWide, o.GetKind()) {
			to = s.dynamic.Resource(r)
			t.Cleanup(func() { _ = to.Delete(context.Background(), o.GetName(), metav1.DeleteOptions{}) })
		}
		apply := func() error {
			_, err := to.Apply(t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "team"})
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
	pods := s.client.CoreV1().Pods(b.ns)
	switch {
	case b.status != "":
		_, err := pods.Patch(t.Context(), "it", types.MergePatchType, []byte(`{"status":`+b.status+`}`), metav1.PatchOptions{}, "status")
		return err
	case !b.deleted && !b.ending:
		return nil
	}
	t.Cleanup(func() {
		now := int64(0) // where no kubelet sees it end
		_ = pods.Delete(context.Background(), "it", metav1.DeleteOptions{GracePeriodSeconds: &now})
		_, _ = pods.Patch(context.Background(), "it", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	})
	if b.ending {
		return s.client.CoreV1().Namespaces().Delete(t.Context(), b.ns, metav1.DeleteOptions{})
	}
	return pods.Delete(t.Context(), "it", metav1.DeleteOptions{})
}

// text is the manifest, with what is known of the cluster in it.
func (b *broken) text(t *testing.T) (string, error) {
	api, err := s.client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	nodes, err := s.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	node := slices.IndexFunc(nodes.Items, func(n corev1.Node) bool {
		return n.Status.NodeInfo.KubeletVersion != "" && !n.Spec.Unschedulable
	})
	if node < 0 {
		return "", errors.New("no node has a kubelet")
	}
	address := ""
	for _, a := range nodes.Items[node].Status.Addresses {
		if a.Type == corev1.NodeInternalIP && address == "" {
			address = a.Address
		}
	}
	return strings.NewReplacer("IMAGE", s.image, "NAMESPACE", b.ns, "APISERVER", api.Spec.ClusterIP+":443", "APIADDRESS", api.Spec.ClusterIP,
		"NODENAME", nodes.Items[node].Name, "NODEADDRESS", address).Replace(b.docs), nil
}

// await waits until pods are made there, or ready, or refused.
func (b *broken) await(t *testing.T, what string) error {
	pods := s.client.CoreV1().Pods(b.ns)
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		if what == "refused" {
			try := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "try-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: s.image}}}}
			_, err := pods.Create(ctx, try, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			return err != nil && (strings.Contains(err.Error(), "failed calling webhook") || strings.Contains(err.Error(), "denied request")), nil
		}
		list, err := pods.List(ctx, metav1.ListOptions{})
		return err == nil && len(list.Items) > 0 && (what == "made" || !slices.ContainsFunc(list.Items, func(p corev1.Pod) bool { return !podReady(&p) })), nil
	})
	if err != nil {
		return fmt.Errorf("%s: waiting for its pods to be %s: %w", b.name, what, err)
	}
	return nil
}

// diagnosed is what bridge says.
func diagnosed(t *testing.T, args ...string) []diagnose.Finding {
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
	return r.Findings
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
	want := strings.Join(b.wants, "; ")
	if text := strings.Join(got, "; "); text != want {
		return fmt.Sprintf("%s (in %s): found %q, want %q", b.name, b.ns, text, want)
	}
	return ""
}

// Each cause on its own is found by its name, on a real cluster, and nothing beside it; of two faults the cause is told, and the other
// stands behind it; where nothing is wrong nothing is found. It is no parallel test: so many pods that crash and are made anew take the machine from the others.
func TestDiagnose(t *testing.T) {
	registry := readBroken(t, "testdata/registry.yaml")
	if err := registry.put(t); err != nil {
		t.Fatal(err)
	}
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}
	fakeNode(t, brokenNode, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady"})
	fakeNode(t, cordonedNode, ready)
	fakeNode(t, pressedNode, ready, corev1.NodeCondition{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionTrue, Reason: "KubeletHasInsufficientMemory"})
	fakeNode(t, strainedNode, ready, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, Reason: "KubeletHasDiskPressure"},
		corev1.NodeCondition{Type: corev1.NodePIDPressure, Status: corev1.ConditionTrue, Reason: "KubeletHasInsufficientPID"},
		corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"})
	healthy := readBroken(t, "testdata/healthy.yaml")
	beyond := readBroken(t, "testdata/beyond.yaml")
	all := []*broken{healthy, beyond}
	paths, err := filepath.Glob("testdata/broken/*.yaml")
	if err != nil || len(paths) < 40 {
		t.Fatalf("%d manifests, %v", len(paths), err)
	}
	for _, path := range paths {
		if b := readBroken(t, path); !b.measured {
			all = append(all, b)
		}
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
		found := map[string][]diagnose.Finding{}
		for _, f := range diagnosed(t, "-A", "--no-dial") {
			found[f.Object.Namespace] = append(found[f.Object.Namespace], f)
		}
		wrong = nil
		for _, b := range all {
			of := found[b.ns]
			switch {
			case b.found: // once; what takes a look of its own is not looked at for ever
				continue
			case b.dialled:
				args := []string{"-n", b.ns}
				if b.inside {
					args = append(args, "--inside", "--proxy-timeout", patience.String())
				}
				of = slices.DeleteFunc(diagnosed(t, args...), func(f diagnose.Finding) bool { return f.Object.Namespace != b.ns })
			case b.alone:
				of = diagnosed(t, "-n", b.ns, "--no-dial")
			}
			if d := b.differs(of); d != "" {
				wrong = append(wrong, d)
			}
			b.found = (b.alone || b.dialled) && b.differs(of) == ""
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
	p.says("note: dialled 3 ports of 3 pods in ")
	p = run(beyond, "--inside", "--proxy-timeout", patience.String())
	p.exits(0)
	p.says("note: dialled 2 addresses of Services without pods, from a pod")
	if left, err := s.client.CoordinationV1().Leases(beyond.ns).List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) > 0 {
		t.Errorf("--inside leaves %v, %v", left, err)
	}
	p = run(find("endpoint-not-answering"), "svc/db") // without a pod of ours nothing is known
	p.exits(0)
	p.says("note: not dialled: 1 address of Services without pods")
	p = run(healthy, "deployment/web", "--inside", "--proxy-timeout", patience.String()) // probes have shown that its port is open
	p.exits(0)
	p.says(" from a pod")
	p = run(find("port-loopback"), "--inside", "--proxy-timeout", patience.String())
	p.exits(int(hint.Problems))
	p.prints("pod/it port 8080 at its address, from a pod: connection refused")
	p = run(find("probe-status"), "--inside", "--proxy-timeout", patience.String())
	p.exits(int(hint.Problems))
	p.prints("readinessProbe of container app, run from a pod: failure: status 503")
	// Where else the program listens is found: at a usual port, and at one that it is started with.
	for name, words := range map[string]string{
		"port-closed":         "not used; something listens at 8080: ",
		"service-port-closed": "set targetPort to the port that the program listens on; something listens at 8123: ",
	} {
		p = run(find(name))
		p.exits(int(hint.Problems))
		p.prints(words)
	}
	// Without the right to pods/proxy, which finds a port on the loopback, the pod finds it.
	other := &world{t: t, ns: find("port-loopback").ns}
	p = start(t, s.bridge, []string{"KUBECONFIG=" + other.as("asks", deployed(t, "diagnose"), deployed(t, "connect"))}, "diagnose", "-n", other.ns, "--inside", "--proxy-timeout", patience.String())
	p.exits(int(hint.Problems))
	p.prints("problem port-loopback: pod/it")
	p.prints("at its address: not asked, or no answer, for your account may not use pods/proxy")
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
	kubeconfig := w.as("diagnose", deployed(t, "diagnose"))
	p = start(t, s.bridge, []string{"KUBECONFIG=" + kubeconfig}, "diagnose", "-n", w.ns)
	p.exits(0)
	p.says("not read: nodes, secrets, ingressclasses, pods/proxy (your account may not)")
	p = start(t, s.bridge, []string{"KUBECONFIG=" + kubeconfig}, "diagnose", "-n", w.ns, "--inside")
	p.exits(0)
	p.says("not read: what a pod in the cluster reaches (")
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

// A watch goes on while the API server is away, and takes nothing for well that it cannot read. Not parallel: it strikes every test.
func TestDiagnoseWatchOutlivesTheAPIServer(t *testing.T) {
	embedded(t)
	b := readBroken(t, "testdata/broken/two-configuration-service.yaml")
	if err := b.put(t); err != nil {
		t.Fatal(err)
	}
	p := start(t, s.bridge, []string{"KUBECONFIG=" + s.kubeconfig}, "diagnose", "-n", b.ns, "--watch")
	p.says("deployment/it: configmap-absent; waiting for deployment/it")
	if err := s.cluster(t.Context(), "restart", "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}}
	if _, err := s.client.CoreV1().ConfigMaps(b.ns).Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.exits(0) // once the pod runs, which it could not before
	p.says("nothing wrong found in namespace " + b.ns)
}

// Where the pod of --inside cannot be removed, that is the end, and what removes it is said; what was found is printed all the same.
func TestDiagnoseInsideThatStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	allow := w.refuse("no-removals", admissionregistrationv1.RuleWithOperations{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Delete},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
	}, "false", "deployments are not removed here", func() error {
		return s.client.AppsV1().Deployments(w.ns).Delete(t.Context(), "orders", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	})
	p := w.bridge("diagnose", "--inside")
	p.exits(int(hint.RestoreIncomplete))
	p.prints("warning probe-timing: deployment/orders") // which by itself is 10
	p.says("the proxy is not removed: ")
	remove := strings.Fields(strings.TrimPrefix(p.says("hint: finish with: bridge restore diagnose "), "  hint: finish with: bridge "))
	allow()
	w.bridge(remove...).exits(0)
	w.assertSnapshot(before)
}

// What keeps other pods from a port, and not the API server, a pod finds out: here it is in the network of the pod that listens.
func TestDiagnoseAPortThatPodsDoNotReach(t *testing.T) {
	t.Parallel()
	embedded(t)
	w := newWorld(t).withOrders()
	ids := processesIn(t, string(w.pods("app=orders")[0].UID), "serve")
	if len(ids) == 0 {
		t.Fatal("no process in the pod")
	}
	inPod := func(args ...string) string {
		out, err := exec.Command("nsenter", append([]string{"--net=/proc/" + ids[0] + "/ns/net"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	_, route, _ := strings.Cut(inPod("ip", "-4", "route", "show", "default"), " via ")
	node, _, _ := strings.Cut(route, " ") // its address on the pods' network
	before := w.snapshot()
	p := w.bridge("diagnose", "--inside")
	p.exits(int(hint.Warnings)) // of its probes' timing
	if out := strings.Join(p.stdout.all(), "\n"); strings.Contains(out, "port-not-reached") {
		t.Errorf("before anything keeps it away:\n%s", out)
	}
	inPod("iptables", "-w", "-A", "INPUT", "-p", "tcp", "--dport", "8080", "!", "-i", "lo", "!", "-s", node, "-j", "DROP")
	p = w.bridge("diagnose", "--inside")
	p.exits(int(hint.Warnings))
	p.prints("warning port-not-reached: deployment/orders, pod/orders-")
	p.prints("port 8080 at its address: something listens")
	p.prints("port 8080 at its address, from a pod: no answer")
	w.awaitSnapshot(before)
}

// What containers use is held against their limits, by what the cluster's metrics API says of it. It is no parallel test: a kubelet that has its hands
// full measures nothing.
func TestDiagnoseUse(t *testing.T) {
	if s.embedded {
		if err := s.cluster(t.Context(), "metrics"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.cluster(context.Background(), "metrics", "off") })
	} else if _, err := s.client.Discovery().ServerResourcesForGroupVersion("metrics.k8s.io/v1beta1"); err != nil {
		t.Skipf("the cluster has no metrics: %v", err)
	}
	all := []*broken{readBroken(t, "testdata/broken/memory-near-limit.yaml"), readBroken(t, "testdata/broken/cpu-at-limit.yaml")}
	for _, b := range all {
		if err := b.put(t); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range all {
		for until := time.Now().Add(patience); ; time.Sleep(time.Second) {
			found := diagnosed(t, "-n", b.ns, "--no-dial")
			d := b.differs(found)
			if d == "" {
				if says := fmt.Sprint(found[0].State); !strings.Contains(says, "metrics.k8s.io") {
					t.Errorf("%s: its evidence is %s", b.name, says)
				}
				break
			}
			if time.Now().After(until) {
				t.Fatal(d)
			}
		}
	}
	if !s.embedded { // nobody else's node is said to be short of memory
		return
	}
	over := readBroken(t, "testdata/broken/memory-over-request.yaml")
	if err := over.put(t); err != nil {
		t.Fatal(err)
	}
	if err := over.await(t, "ready"); err != nil {
		t.Fatal(err)
	}
	pod, err := s.client.CoreV1().Pods(over.ns).Get(t.Context(), "it", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node := pod.Spec.NodeName
	say := func(ctx context.Context, short corev1.ConditionStatus) {
		patch := fmt.Sprintf(`{"status":{"conditions":[{"type":"MemoryPressure","status":%q,"reason":"SaidByATest"}]}}`, short)
		if _, err := s.client.CoreV1().Nodes().Patch(ctx, node, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { // the next test finds the node as it was
		say(context.Background(), corev1.ConditionFalse)
		for begin := time.Now(); time.Since(begin) < patience; time.Sleep(time.Second) {
			n, err := s.client.CoreV1().Nodes().Get(context.Background(), node, metav1.GetOptions{})
			if err == nil && !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeMemoryPressure }) {
				return
			}
		}
		t.Error("the node is still said to be short of memory")
	})
	for until := time.Now().Add(patience); ; time.Sleep(time.Second) {
		say(t.Context(), corev1.ConditionTrue) // the kubelet says otherwise every ten seconds
		d := over.differs(diagnosed(t, "-n", over.ns, "--no-dial"))
		if d == "" {
			return
		}
		if time.Now().After(until) {
			t.Fatal(d)
		}
	}
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
	fastest, asked := time.Hour, []string(nil)
	for range rounds {
		requests()
		begin := time.Now()
		p := start(t, s.bridge, []string{"KUBECONFIG=" + kubeconfig}, "diagnose", "-n", w.ns)
		p.exits(int(hint.Problems))
		took := time.Since(begin)
		p.prints(" and 199 more")
		if all := requests(); took < fastest {
			fastest, asked = took, all // of a slower one the API server may have had some asked again
		}
	}
	if once := slices.Compact(slices.Sorted(slices.Values(asked))); len(asked) > lists || len(once) != len(asked) {
		t.Errorf("%d requests: %q", len(asked), asked)
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

// fakeNode adds a node whose kubelet is not there, and says in its place every few seconds that it is as these conditions have it.
func fakeNode(t *testing.T, name string, conditions ...corev1.NodeCondition) {
	t.Helper()
	nodes := s.client.CoreV1().Nodes()
	_, pool, _ := strings.Cut(name, "bridge-test-")
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"bridge.test/pool": pool}},
		Spec:       corev1.NodeSpec{Taints: []corev1.Taint{{Key: "pool", Value: pool, Effect: corev1.TaintEffectNoSchedule}}},
	}
	if name != brokenNode { // never the nearest to fitting, but for who tolerates both
		node.Spec.Unschedulable = name == cordonedNode
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: "bridge.test/fake", Effect: corev1.TaintEffectNoSchedule})
	}
	_ = nodes.Delete(t.Context(), name, metav1.DeleteOptions{}) // of a run that was killed
	if _, err := nodes.Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	since := metav1.Now()
	say := func(ctx context.Context) error {
		for i := range conditions {
			conditions[i].Message, conditions[i].LastTransitionTime, conditions[i].LastHeartbeatTime = "said by a test", since, metav1.Now()
		}
		status, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": conditions}})
		if err != nil {
			return err
		}
		_, err = nodes.Patch(ctx, name, types.StrategicMergePatchType, status, metav1.PatchOptions{}, "status")
		return err
	}
	if err := say(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Second) // of some 40 that the controllers wait for
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = say(ctx) // the next one may come through
			}
		}
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		_ = nodes.Delete(context.Background(), name, metav1.DeleteOptions{})
	})
}
