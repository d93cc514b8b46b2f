//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/yaml"
)

// patience bounds every wait of a test for something that has to happen. It says nothing of how fast
// that is.
const patience = 2 * time.Minute

// world is a namespace of its own with a deployment "orders" (two pods that say "original" and exit
// at once on SIGTERM), its Service, and a pod "client". Its Pod Security level is restricted.
type world struct {
	t     *testing.T
	ns    string
	state string // the laptop's XDG_STATE_HOME
}

func newWorld(t *testing.T) *world {
	t.Helper()
	ns, err := s.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "bridge-test-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, ns: ns.Name, state: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			w.report()
		}
		zero := int64(0)
		_ = s.client.CoreV1().Namespaces().Delete(context.Background(), w.ns, metav1.DeleteOptions{GracePeriodSeconds: &zero})
	})
	w.await("default ServiceAccount", func() bool {
		_, err := s.client.CoreV1().ServiceAccounts(w.ns).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil
	})
	return w
}

// withOrders adds the workload, its Service and the client, and waits until all are Ready.
func (w *world) withOrders() *world {
	w.t.Helper()
	w.apply(fmt.Sprintf(ordersYAML, s.image))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=orders", 2)
	w.awaitReady("app=client", 1)
	return w
}

const restrictedYAML = `
        imagePullPolicy: IfNotPresent
        securityContext:
          runAsNonRoot: true
          runAsUser: 1000
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          seccompProfile: {type: RuntimeDefault}
`

const ordersYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  replicas: 2
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      containers:
      - name: app
        image: %s
        args: [serve, --name, original, --tcp, ":7000"]
        ports:
        - {name: http, containerPort: 8080}
        - {name: tcp, containerPort: 7000}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}` + restrictedYAML + `---
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  selector: {app: orders}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: tcp, port: 7000, targetPort: 7000}
`

const clientYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: client
        image: %s
        args: [wait]` + restrictedYAML

// resources are what a namespace is compared by.
var resources = []schema.GroupVersionResource{
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Group: "apps", Version: "v1", Resource: "replicasets"},
	{Group: "apps", Version: "v1", Resource: "statefulsets"},
	{Group: "batch", Version: "v1", Resource: "jobs"},
	{Version: "v1", Resource: "services"},
	{Version: "v1", Resource: "configmaps"},
	{Version: "v1", Resource: "persistentvolumeclaims"},
	{Version: "v1", Resource: "secrets"},
	{Version: "v1", Resource: "serviceaccounts"},
	{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
}

// pods are no part of a snapshot: most come and go.
var pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

func resource(kind string) schema.GroupVersionResource {
	for _, r := range append(resources, pods, rollouts) {
		if r.Resource == strings.ToLower(kind)+"s" {
			return r
		}
	}
	panic("no resource for " + kind)
}

// apply is a server-side apply in the name "team", without force.
func (w *world) apply(docs string) {
	w.t.Helper()
	for doc := range strings.SplitSeq(docs, "\n---\n") {
		if err := w.tryApply(doc); err != nil {
			w.t.Fatalf("apply: %v\n%s", err, doc)
		}
	}
}

func (w *world) tryApply(doc string) error {
	o := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
		return err
	}
	_, err := s.dynamic.Resource(resource(o.GetKind())).Namespace(w.ns).Apply(w.t.Context(), o.GetName(), o, metav1.ApplyOptions{FieldManager: "team"})
	return err
}

// await polls until done holds, for as long as patience allows.
func (w *world) await(what string, done func() bool) {
	w.t.Helper()
	err := wait.PollUntilContextTimeout(w.t.Context(), 100*time.Millisecond, patience, true, func(context.Context) (bool, error) { return done(), nil })
	if err != nil {
		w.t.Fatalf("waiting for %s: %v", what, err)
	}
}

func (w *world) pods(selector string) []corev1.Pod {
	w.t.Helper()
	list, err := s.client.CoreV1().Pods(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

func (w *world) awaitReady(selector string, n int) {
	w.t.Helper()
	w.await(fmt.Sprintf("%d pods with %s", n, selector), func() bool {
		ready := 0
		pods := w.pods(selector)
		for _, p := range pods {
			for _, c := range p.Status.Conditions {
				if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		return ready == n && len(pods) == n
	})
}

// snapshot is every object of the namespace, without what changes by itself: status, generation,
// versions and times.
func (w *world) snapshot() string {
	w.t.Helper()
	var b strings.Builder
	for _, r := range append(resources, rollouts) {
		list, err := s.dynamic.Resource(r).Namespace(w.ns).List(w.t.Context(), metav1.ListOptions{})
		if r == rollouts && apierrors.IsNotFound(err) {
			continue // no test has asked for them yet
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for _, o := range list.Items {
			fmt.Fprintf(&b, "--- %s\n%s", r.Resource, w.text(&o))
		}
	}
	return b.String()
}

// text is an object's part of a snapshot.
func (w *world) text(o *unstructured.Unstructured) string {
	w.t.Helper()
	unstructured.RemoveNestedField(o.Object, "status")
	for _, f := range []string{"generation", "resourceVersion"} {
		unstructured.RemoveNestedField(o.Object, "metadata", f)
	}
	managed := o.GetManagedFields()
	kept := managed[:0]
	for _, m := range managed {
		if m.Subresource != "status" {
			m.Time = nil
			kept = append(kept, m)
		}
	}
	o.SetManagedFields(kept)
	out, err := yaml.Marshal(o.Object)
	if err != nil {
		w.t.Fatal(err)
	}
	lines := strings.Split(string(out), "\n")
	// Argo's controller notes that it has copied an annotation to a ReplicaSet as if that were a revision, and keeps the note.
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, "rollout.argoproj.io/revision-history") }), "\n")
}

// awaitSnapshot waits until the namespace is as it was, which the garbage collector does last, and what holds too.
func (w *world) awaitSnapshot(before string, too ...func() bool) {
	w.t.Helper()
	err := wait.PollUntilContextTimeout(w.t.Context(), time.Second, patience, true, func(context.Context) (bool, error) { // each look is a dozen lists
		return !slices.ContainsFunc(too, func(holds func() bool) bool { return !holds() }) && w.snapshot() == before, nil
	})
	if err != nil {
		w.assertSnapshot(before)
		w.t.Fatalf("waiting for the namespace as it was: %v", err)
	}
}

// assertSnapshot compares the namespace with how it was.
func (w *world) assertSnapshot(before string) {
	w.t.Helper()
	after := w.snapshot()
	if after == before {
		return
	}
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	var diff []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			diff = append(diff, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			diff = append(diff, "+ "+l)
		}
	}
	w.t.Errorf("the namespace is not as it was:\n%s", strings.Join(diff, "\n"))
}

// report prints what helps to see why a test failed.
func (w *world) report() {
	ctx := context.Background()
	if events, err := s.client.CoreV1().Events(w.ns).List(ctx, metav1.ListOptions{}); err == nil {
		for _, e := range events.Items {
			w.t.Logf("event %s %s/%s: %s %s", e.LastTimestamp.Format(time.TimeOnly), e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
	pods, err := s.client.CoreV1().Pods(w.ns).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for _, p := range pods.Items {
		if p.Labels["bridge.internal/proxy"]+p.Labels["bridge.internal/keeper"] == "" {
			continue
		}
		if log, err := s.client.CoreV1().Pods(w.ns).GetLogs(p.Name, &corev1.PodLogOptions{}).DoRaw(ctx); err == nil {
			w.t.Logf("log of %s:\n%s", p.Name, log)
		}
	}
}

// exec runs the sample program in the client's pod, until it ends or input does.
func (w *world) exec(ctx context.Context, stdin io.Reader, stdout io.Writer, args ...string) error {
	pods := w.pods("app=client")
	if len(pods) != 1 {
		return fmt.Errorf("%d pods of the client", len(pods))
	}
	return w.execIn(ctx, pods[0].Name, "client", stdin, stdout, args...)
}

func (w *world) execIn(ctx context.Context, pod, container string, stdin io.Reader, stdout io.Writer, args ...string) error {
	req := s.client.CoreV1().RESTClient().Post().Namespace(w.ns).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: append([]string{"/sample"}, args...), Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	e, err := remotecommand.NewWebSocketExecutor(s.config, "GET", req.URL().String())
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: stdout, Stderr: &stderr}); err != nil {
		if ctx.Err() != nil {
			return err // it may still write to stderr
		}
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// check runs one of the sample's checks in the client's pod.
func (w *world) check(args ...string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*patience)
	defer cancel()
	var out bytes.Buffer
	if err := w.exec(ctx, nil, &out, append([]string{"check"}, args...)...); err != nil {
		w.t.Errorf("%q from the cluster: %v", args, err)
	}
}

// report as test/sample prints it.
type report struct {
	Requests, Failed, Stalled int
	Errors                    []string
	By                        map[string]int
	Worst, P99                time.Duration
	Turns                     []struct { // when somebody else answered than before
		At time.Time
		By string
	}
	Harmed []struct { // the requests that failed or stalled
		Begun time.Time
		Took  time.Duration
	}
}

func (r report) String() string {
	return fmt.Sprintf("%d requests, answered by %v within %v, 99 %% of them within %v; %d have failed, %d were late: %q",
		r.Requests, r.By, r.Worst.Round(time.Millisecond), r.P99, r.Failed, r.Stalled, r.Errors)
}

// harmedIn is how many requests failed or stalled of those that were begun then, by this machine's clock, which is the cluster's
// too where that is embedded.
func (r report) harmedIn(from, to time.Time) (n int) {
	for _, h := range r.Harmed {
		if !h.Begun.Before(from) && h.Begun.Before(to) {
			n++
		}
	}
	return n
}

// load is a steady load from the client's pod.
type load struct {
	stop   io.Closer
	done   chan error
	out    *lines
	cancel context.CancelFunc
}

func (w *world) load(args ...string) *load {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	in, stop := io.Pipe()
	l := &load{stop: stop, done: make(chan error, 1), out: newLines(), cancel: cancel}
	w.t.Cleanup(cancel)
	go func() { l.done <- w.exec(ctx, in, l.out, append([]string{"load"}, args...)...) }()
	l.out.await(w.t, "started")
	return l
}

// end stops the load and returns what it counted.
func (l *load) end(t *testing.T) report {
	t.Helper()
	defer l.cancel()
	_ = l.stop.Close()
	select {
	case err := <-l.done:
		if err != nil {
			t.Fatalf("load: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the load does not end")
	}
	var r report
	last := l.out.all()
	if err := json.Unmarshal([]byte(last[len(last)-1]), &r); err != nil {
		t.Fatalf("load: %v in %q", err, last)
	}
	return r
}

// lines collects output and wakes those who wait for a line.
type lines struct {
	mu      sync.Mutex
	partial string
	list    []string
	changed chan struct{}
}

func newLines() *lines { return &lines{changed: make(chan struct{})} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.Split(l.partial+string(p), "\n")
	l.partial = text[len(text)-1]
	l.list = append(l.list, text[:len(text)-1]...)
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.list...)
}

// await returns the first line that contains text.
func (l *lines) await(t *testing.T, text string) string {
	t.Helper()
	line, err := l.awaitOr(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

var errEnded = errors.New("it ended")

// awaitOr gives up when ended is closed.
func (l *lines) awaitOr(text string, ended <-chan struct{}) (string, error) {
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		changed := l.changed
		for _, line := range l.list {
			if strings.Contains(line, text) {
				l.mu.Unlock()
				return line, nil
			}
		}
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ended:
			// The last lines may have come with the end: look once more.
			l.mu.Lock()
			for _, line := range l.list {
				if strings.Contains(line, text) {
					l.mu.Unlock()
					return line, nil
				}
			}
			l.mu.Unlock()
			return "", fmt.Errorf("%w without %q; it said:\n%s", errEnded, text, strings.Join(l.all(), "\n"))
		case <-timeout:
			return "", fmt.Errorf("no %q in time; it said:\n%s", text, strings.Join(l.all(), "\n"))
		}
	}
}

// process is a program on the laptop.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr *lines
	ended          chan struct{}
}

// start runs a program until the test ends.
func start(t *testing.T, path string, env []string, args ...string) *process {
	t.Helper()
	return startWith(t, nil, path, env, args...)
}

// startWith is start of a command that prepare changes; nil changes nothing.
func startWith(t *testing.T, prepare func(*exec.Cmd), path string, env []string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path, args...), stdout: newLines(), stderr: newLines(), ended: make(chan struct{})}
	p.cmd.Env = append(p.cmd.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	if prepare != nil {
		prepare(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("%s %q said:\n%s\n%s", path, args, strings.Join(p.stdout.all(), "\n"), strings.Join(p.stderr.all(), "\n"))
		}
	})
	return p
}

// bridge starts the real bridge in the world's namespace.
func (w *world) bridge(args ...string) *process {
	w.t.Helper()
	return w.bridgeAs(s.kubeconfig, nil, args...)
}

// elsewhere is the same world seen from another laptop: it has the kubeconfig, and nothing that bridge keeps.
func (w *world) elsewhere() *world { return &world{t: w.t, ns: w.ns, state: w.t.TempDir()} }

// beginSwap swaps orders with a process of the laptop's; swap waits until that has all the traffic.
func (w *world) beginSwap(flags ...string) *process {
	w.t.Helper()
	return w.bridge(append(append([]string{"swap", "deployment", "orders"}, localOrders(w.t)...), flags...)...)
}

func (w *world) swap(flags ...string) *process {
	w.t.Helper()
	b := w.beginSwap(flags...)
	b.says(swapped)
	return b
}

// terminate ends it as init would, and waits for the exit code that says so.
func (p *process) terminate() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.exits(128 + int(syscall.SIGTERM))
}

// says waits for a line on stderr.
func (p *process) says(text string) string {
	p.t.Helper()
	line, err := p.stderr.awaitOr(text, p.ended)
	if err != nil {
		p.t.Fatal(err)
	}
	return line
}

// prints waits for a line on stdout.
func (p *process) prints(text string) string {
	p.t.Helper()
	line, err := p.stdout.awaitOr(text, p.ended)
	if err != nil {
		p.t.Fatalf("%v\nand on stderr:\n%s", err, strings.Join(p.stderr.all(), "\n"))
	}
	return line
}

func (p *process) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// exits waits for the end and compares the exit code.
func (p *process) exits(code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("it does not end; it said:\n%s", strings.Join(p.stderr.all(), "\n"))
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("exit code %d, want %d; it said:\n%s\n%s", got, code, strings.Join(p.stdout.all(), "\n"), strings.Join(p.stderr.all(), "\n"))
	}
}

// localOrders is the laptop's process for orders, and the flags that map it.
func localOrders(t *testing.T) (flags []string) {
	t.Helper()
	http, tcp := freePort(t), freePort(t)
	p := start(t, s.sample, nil, "serve", "--name", "laptop", "--http", "127.0.0.1:"+http, "--tcp", "127.0.0.1:"+tcp)
	p.says("listens on")
	return []string{"--port", http + ":http", "--port", tcp + ":tcp"}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}
