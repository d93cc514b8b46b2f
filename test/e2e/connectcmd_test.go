//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// namespaceOf is the network namespace of a process, "" when it is gone.
func namespaceOf(pid string) string {
	name, _ := os.Readlink("/proc/" + pid + "/ns/net")
	return name
}

// inNamespace counts the processes in a network namespace.
func inNamespace(name string) (n int) {
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		if namespaceOf(filepath.Base(p)) == name {
			n++
		}
	}
	return n
}

// runs has a bridge run something as cmd to its end, and returns what that wrote, without the last line's end.
func (w *world) runs(code int, cmd ...string) string {
	w.t.Helper()
	c := w.bridge(append([]string{"connect", "--"}, cmd...)...)
	c.exits(code)
	return strings.Join(c.stdout.all(), "\n")
}

// Programs of any make see the cluster, and the rest as before.
func TestConnectRunsAProgram(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := w.pods("app=orders")[0].Status.PodIP
	laptop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "on the laptop\n") }))
	defer laptop.Close()
	_, local, _ := strings.Cut(laptop.Listener.Addr().String(), ":")
	// One bridge for all: a shell that runs them, each with a line before.
	script := fmt.Sprintf(`get() { echo "$(curl -sS --max-time 20 "$@" 2>&1)"; }
get http://orders.%[1]s/
get http://orders
get http://orders.%[1]s.svc.cluster.local:80/
get http://%[2]s/
get http://%[3]s:8080/
%[4]s get --url http://orders.%[1]s
dig +short orders.%[1]s.svc.cluster.local
dig +short +tcp orders
getent ahostsv4 orders | awk 'NR == 1 {print $1}'
get http://host.bridge.internal:%[5]s/
get -k -o /dev/null -w '%%{http_version}\n' %[6]s/version
exit 9`, w.ns, svc.Spec.ClusterIP, pod, s.sample, local, s.config.Host)
	got := strings.Split(w.runs(9, "sh", "-c", script), "\n")
	want := []string{
		"original", "original", "original", "original", "original", "original",
		svc.Spec.ClusterIP, "orders.NS.svc.cluster.local.", svc.Spec.ClusterIP, svc.Spec.ClusterIP, "on the laptop", "2",
	}
	for i, line := range want {
		line = strings.ReplaceAll(line, "NS", w.ns)
		if i >= len(got) || got[i] != line {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	w.assertSnapshot(before)
}

// refuse has the API server refuse in the namespace what is not as expression wants, with message, from when try gets that until the test ends or allow is called.
func (w *world) refuse(name string, rule admissionregistrationv1.RuleWithOperations, expression, message string, try func() error) (allow func()) {
	w.t.Helper()
	admission := s.client.AdmissionregistrationV1()
	name += "-" + w.ns
	remove := func() {
		_ = admission.ValidatingAdmissionPolicyBindings().Delete(context.Background(), name, metav1.DeleteOptions{})
		_ = admission.ValidatingAdmissionPolicies().Delete(context.Background(), name, metav1.DeleteOptions{})
	}
	w.t.Cleanup(remove)
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: rule}}},
			Validations:      []admissionregistrationv1.Validation{{Expression: expression, Message: message}},
		},
	}
	if _, err := admission.ValidatingAdmissionPolicies().Create(w.t.Context(), policy, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
			MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: w.ns}}},
		},
	}
	if _, err := admission.ValidatingAdmissionPolicyBindings().Create(w.t.Context(), binding, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	refused := func() bool {
		err := try()
		return err != nil && strings.Contains(err.Error(), message)
	}
	w.await("the rule", refused)
	return func() {
		remove()
		w.await("the rule to be gone", func() bool { return !refused() })
	}
}

// A cluster that lets no pod have the sysctl for pings is connected to without it.
func TestConnectWhereASysctlIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	yes, no := true, false
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "it"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app", Image: s.image, SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}}},
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: &yes, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			Sysctls: []corev1.Sysctl{{Name: "net.ipv4.ping_group_range", Value: "0 0"}},
		},
	}}
	w.refuse("no-sysctls", admissionregistrationv1.RuleWithOperations{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
	}, "!has(object.spec.securityContext) || !has(object.spec.securityContext.sysctls)", "sysctls are not for you", func() error {
		_, err := s.client.CoreV1().Pods(w.ns).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	})
	c := w.bridge("connect", "--", s.sample, "get", "--url", "http://orders")
	c.says("note: without the sysctl net.ipv4.ping_group_range, ")
	c.exits(0)
	if got := strings.Join(c.stdout.all(), "\n"); got != "original" {
		t.Errorf("%q", got)
	}
	w.assertSnapshot(before)
}

// Thousands of a program's connections are open at once, beside one that nobody reads, and nothing is left of them.
func TestConnectProgramManyConnections(t *testing.T) {
	t.Parallel()
	const many = 5000
	w := newWorld(t).withOrders()
	before := w.snapshot()
	in, orders, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer orders.Close()
	// After each time it waits for a line, so that what bridge has can be counted.
	script := fmt.Sprintf(`check() { %s check --address orders:7000 --what "$@"; }
exec 3<>/dev/tcp/orders/7000 && echo download 100000000 >&3 && check download --bytes 20000000 && echo begun || exit 1
for time in once twice; do check many --connections %d && echo $time && read line || exit 1; done`, s.sample, many)
	c := w.bridgeWith(func(cmd *exec.Cmd) { cmd.Stdin = in }, s.kubeconfig, nil, "connect", "--", "bash", "-c", script)
	_ = in.Close()
	c.prints("begun")
	once := 0
	for _, line := range []string{"once", "twice"} {
		c.prints(line)
		w.await("the connections' descriptors to be closed", func() bool { return c.descriptors() < 100 })
		if once == 0 {
			once = c.memory()
		}
		c.assertMemory(once, 2*many)
		if _, err := io.WriteString(orders, "\n"); err != nil {
			t.Fatal(err)
		}
	}
	c.exits(0)
	w.assertSnapshot(before)
}

// CMD has the terminal: its size, also when that changes, its keys, and the signal that a key sends.
func TestConnectAtATerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	c := w.atTerminal("connect", "--", "bash", "-c", `trap 'echo "size $(stty size)"' WINCH; trap 'echo caught' INT; stty size; echo ready
until read -t 1 line; do :; done; echo "line $line"; until read -t 1 line; do :; done; exit $line`)
	c.shows("24 80")
	c.shows("ready")
	c.resize(132, 50)
	c.shows("size 50 132")
	c.types("hello\r")
	c.shows("line hello")
	c.types("\x03")
	c.shows("caught")
	c.types("7\r")
	c.exits(7)
}

// Where namespaces are forbidden that is said in a line, with what would allow them, and CMD has variables that name the proxy.
func TestConnectWithoutNamespaces(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	script := `echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"`
	c := start(t, "unshare", []string{"KUBECONFIG=" + s.kubeconfig, "GORACE=halt_on_error=1", "XDG_STATE_HOME=" + w.state},
		"--user", "--map-root-user", "sh", "-c", script, "sh", s.bridge, "connect", "-n", w.ns, "--", "sh", "-c", `curl -sS --max-time 20 http://orders; echo; exit 7`)
	c.says("not in a network of its own, but with proxy variables, which not every program heeds")
	c.says("what would allow it: sysctl -w user.max_user_namespaces=1000")
	c.prints("original")
	c.exits(7)
	w.assertSnapshot(before)
}

func TestConnectPassesSignalsToItsProgram(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=client", 1)
	before := w.snapshot()
	c := w.bridge("connect", "--", "sh", "-c", `trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done`)
	c.prints("ready")
	c.signal(syscall.SIGINT)
	c.prints("caught")
	c.exits(5)
	w.assertSnapshot(before)
}

// Killed, it leaves no process and no network, as root and as a user who has no right to anything.
func TestKilledConnectLeavesNoProgram(t *testing.T) {
	t.Parallel()
	for name, as := range map[string][]string{
		"root":   nil,
		"nobody": {"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t).withOrders()
			before := w.snapshot()
			path, env := forAnybody(t)
			args := append(append([]string{}, as...), path, "connect", "-n", w.ns, "--", "sh", "-c",
				`id -u; curl -sS --max-time 20 http://orders; setsid sleep 1000 & echo pid $$; read x; sleep 1000`)
			c := start(t, args[0], env, args[1:]...)
			pid := strings.TrimPrefix(c.prints("pid "), "pid ")
			if got := strings.Join(c.stdout.all(), " "); as != nil && !strings.HasPrefix(got, "65534 original") {
				t.Errorf("%q", got)
			}
			network := namespaceOf(pid)
			if network == "" || network == namespaceOf("self") {
				t.Fatalf("it is in %q", network)
			}
			// setpriv has become bridge.
			c.signal(syscall.SIGKILL)
			w.await("the program's end", func() bool { return inNamespace(network) == 0 })
			<-c.ended
			w.bridge("restore", "--all", "--held").exits(0)
			w.assertSnapshot(before)
		})
	}
}

// forAnybody is a bridge that every user may run, with the sample beside it, and an environment in which it finds the cluster.
func forAnybody(t *testing.T) (path string, env []string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bridge-anybody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "bridge")
	for from, to := range map[string]string{s.bridge: path, s.sample: filepath.Join(dir, "sample"), s.kubeconfig: filepath.Join(dir, "kubeconfig")} {
		if out, err := exec.Command("install", "-m", "755", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return path, []string{"KUBECONFIG=" + filepath.Join(dir, "kubeconfig"), "GORACE=halt_on_error=1", "HOME=" + dir, "XDG_STATE_HOME=" + filepath.Join(dir, "state")}
}
