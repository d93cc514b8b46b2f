//go:build linux

package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/forward"
	"bridge/internal/hint"
)

// from waits for the line of a local end on 127.0.0.1, or of one that contains text, and returns where it is.
func (p *process) from(text string) string {
	p.t.Helper()
	return forwarded(p.prints(text))
}

// memory is what the process has resident, in KiB.
func (p *process) memory() (kib int) {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err == nil {
		_, after, _ := strings.Cut(string(b), "VmRSS:")
		_, err = fmt.Sscan(after, &kib)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return kib
}

// descriptors is how many the process has open.
func (p *process) descriptors() int {
	p.t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

// assertMemory wants it to have no more, but for what varies, than once, after half of the connections.
func (p *process) assertMemory(once, connections int) {
	p.t.Helper()
	if now := p.memory(); now > once+once/4 {
		p.t.Errorf("it has %d KiB after %d connections, and had %d KiB after half of them", now, connections, once)
	}
}

// checks runs one of the sample's checks on the laptop.
func (p *process) checks(address, what string, more ...string) {
	p.t.Helper()
	out, err := exec.Command(s.sample, append([]string{"check", "--address", address, "--what", what}, more...)...).CombinedOutput()
	if err != nil {
		p.t.Errorf("%s at %s: %v: %s; bridge said:\n%s", what, address, err, out, strings.Join(p.stderr.all(), "\n"))
	}
}

// entry is what bridge status -o json says of a forward.
type entry struct {
	Kind, State string
	Forwards    []forward.Stat
}

func (w *world) forwards() (list []entry) {
	w.t.Helper()
	st := w.bridge("status", "-o", "json")
	st.exits(0)
	if err := json.Unmarshal([]byte(strings.Join(st.stdout.all(), "\n")), &list); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// Half-close is exact through the proxy pod, a Service and a workload are reached, status tells of it, and nothing is left.
func TestForwardThroughTheProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	f := w.bridge("forward", "svc/orders", ":80", ":tcp", "--via", "proxy")
	http, tcp := "", ""
	f.prints("-> 7000")
	for _, line := range f.stdout.all() {
		switch {
		case strings.HasPrefix(line, "Forwarding from 127") && strings.HasSuffix(line, "-> 8080"):
			http = forwarded(line)
		case strings.HasPrefix(line, "Forwarding from 127") && strings.HasSuffix(line, "-> 7000"):
			tcp = forwarded(line)
		}
	}
	f.assertAnswers(http, "original")
	for _, what := range []string{"half-close", "reset", "send-reset"} {
		f.checks(tcp, what)
	}
	f.checks(tcp, "upload", "--bytes", "20000000")
	f.checks(tcp, "download", "--bytes", "20000000")
	w.await("status to tell of what went through", func() bool {
		list := w.forwards()
		return len(list) == 1 && list[0].Kind == "forward" && list[0].State == "ready" && len(list[0].Forwards) == 2 &&
			list[0].Forwards[0].Target == "service/orders:80" && list[0].Forwards[0].Total > 0 &&
			list[0].Forwards[1].Sent > 20_000_000 && list[0].Forwards[1].Received > 20_000_000
	})
	st := w.bridge("status")
	st.exits(0)
	st.prints("service/orders:tcp")
	f.terminate()

	// What the last connection met is in the status, too.
	f = w.bridge("forward", "deployment/orders", ":9", "--via", "proxy")
	resets(t, f.from("Forwarding from 127."))
	w.await("status to tell of the refusal", func() bool {
		list := w.forwards()
		return len(list) == 1 && len(list[0].Forwards) == 1 && strings.Contains(list[0].Forwards[0].LastError, "connection refused")
	})
	f.terminate()
	w.assertSnapshot(before)
}

// A port that is UDP by its Service, by what stands behind it, or by --udp.
func TestForwardDatagrams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(echoYAML, s.image))
	w.awaitReady("app=echo", 1)
	before := w.snapshot()
	for _, args := range [][]string{
		{"svc/echo", ":7000"}, {"deployment/echo", ":echo"}, {"deployment/echo", ":7000/udp"}, {"svc/echo", ":7000", "--udp"}, {":echo:7000/udp"},
	} {
		f := w.bridge(append([]string{"forward"}, args...)...)
		f.checks(f.from("Forwarding from 127."), "datagrams", "--name", "original")
		f.terminate()
	}
	f := w.bridge("forward", "svc/echo", "80", "--udp")
	f.exits(int(hint.Usage))
	f.says("service/echo in " + w.ns + " has no UDP port 80")
	f = w.bridge("forward", "svc/echo", ":7000", "--via", "pods")
	f.exits(int(hint.Usage))
	f.says("a port-forward carries no UDP")
	w.assertSnapshot(before)
}

// Who goes on sending from one socket has answers again when the pod is another.
func TestForwardDatagramsFollowTheirPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(echoYAML, s.image))
	w.awaitReady("app=echo", 1)
	f := w.bridge("forward", "svc/echo", ":7000")
	c, err := net.Dial("udp", f.from("Forwarding from 127."))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 64)
	answered := func(by string) func() bool {
		return func() bool {
			_, _ = c.Write([]byte("hello"))
			_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			n, _ := c.Read(buf)
			return string(buf[:n]) == by+"hello"
		}
	}
	w.await("an answer", answered("original"))
	w.apply(fmt.Sprintf(strings.Replace(echoYAML, "original", "renewed", 1), s.image))
	w.await("the next pod's answer", answered("renewed"))
	f.terminate()
}

const elsewhereYAML = `
apiVersion: v1
kind: Service
metadata: {name: named}
spec: {type: ExternalName, externalName: orders.%[1]s.svc.cluster.local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: orders}, ports: [{port: 8080}]}
`

// Hosts as the cluster knows them, and Services that are no pods. What the pod refuses it says.
func TestForwardToHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	w.apply(strings.TrimSpace(fmt.Sprintf(elsewhereYAML, w.ns)))
	tcp, port := corev1.ProtocolTCP, int32(8080)
	if _, err := s.client.DiscoveryV1().EndpointSlices(w.ns).Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "by-hand-1", Labels: map[string]string{discoveryv1.LabelServiceName: "by-hand"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{w.pods("app=orders")[0].Status.PodIP}}},
		Ports:       []discoveryv1.EndpointPort{{Port: &port, Protocol: &tcp}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	before := w.snapshot()
	list := filepath.Join(t.TempDir(), "list")
	lines := `# as the cluster sees them
:orders:80
:orders.` + w.ns + `.svc.cluster.local:80
:` + w.pods("app=orders")[0].Status.PodIP + `:8080
svc/named :80
svc/by-hand :80   # made by hand
svc/headless :8080
svc/payments :80
:` + dashed(w.pods("app=orders")[1].Status.PodIP) + `.headless:8080
:127.0.0.1:80
:169.254.169.254:80
:nobody.` + w.ns + `.svc.cluster.local:80
`
	if err := os.WriteFile(list, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	f := w.bridge("forward", "-f", list, "--address", "127.0.0.1")
	f.says(list + ":8: service/payments: look up service/payments")
	const ends = 10
	w.await("all local ends", func() bool { return len(f.stdout.all()) == ends })
	answers := 0
	for _, line := range f.stdout.all() {
		address, to := forwarded(line), strings.Fields(line)[4]
		var words string
		switch {
		case strings.HasPrefix(to, "127.0.0.1:"):
			words = "loopback addresses are not reachable through the proxy"
		case strings.HasPrefix(to, "169.254.169.254:"):
			words = "link-local addresses are not reachable through the proxy"
		case strings.HasPrefix(to, "nobody."):
			words = "no such host"
		default:
			f.assertAnswers(address, "original")
			answers++
			continue
		}
		resets(t, address)
		if said := f.says(": " + to + ": "); !strings.HasPrefix(said, "connection to "+list) || !strings.Contains(said, words) {
			t.Errorf("%s: %q", to, said)
		}
	}
	if answers != ends-3 {
		t.Errorf("%d targets answer: %q", answers, f.stdout.all())
	}
	f.terminate()
	w.assertSnapshot(before)
}

// A Service is what it is at each connection: pods, and a name outside of them.
func TestForwardFollowsWhatAServiceBecomes(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	w.apply(turnsYAML)
	f := w.bridge("forward", "svc/turns", ":80")
	address := f.from("Forwarding from 127.")
	f.assertAnswers(address, "original")
	services := s.client.CoreV1().Services(w.ns)
	change := func(do func(*corev1.ServiceSpec)) {
		t.Helper()
		svc, err := services.Get(t.Context(), "turns", metav1.GetOptions{})
		if err == nil {
			do(&svc.Spec)
			_, err = services.Update(t.Context(), svc, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(spec *corev1.ServiceSpec) {
		*spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "orders." + w.ns + ".svc.cluster.local", Ports: []corev1.ServicePort{{Port: 80}}}
	})
	w.await("an answer through a proxy pod", func() bool {
		f.assertAnswers(address, "original")
		return f.said("goes through a proxy pod now, because service/turns is the name orders.") == 1
	})
	change(func(spec *corev1.ServiceSpec) {
		*spec = corev1.ServiceSpec{Selector: map[string]string{"app": "orders"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}
	})
	w.await("endpoints", func() bool {
		list, err := s.client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=turns"})
		return err == nil && len(list.Items) > 0 && len(list.Items[0].Endpoints) == 2
	})
	f.assertAnswers(address, "original")
	f.terminate()
	if err := services.Delete(t.Context(), "turns", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.assertSnapshot(before)
}

const turnsYAML = `
apiVersion: v1
kind: Service
metadata: {name: turns}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: 8080}]}
`

// resets connects and wants to be reset.
func resets(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %v, want a reset", address, err)
	}
}

// Who may not make a pod forwards TCP to pods, and learns which rights the rest takes.
func TestForwardWithoutTheRightToMakePods(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	ada, both := w.as("ada", deployed(t, "forward")), w.as("bob", deployed(t, "connect"))
	before := w.snapshot()
	for _, args := range [][]string{{"svc/orders", "0:80", "--via", "proxy"}, {"0:orders:80"}} {
		f := w.bridgeAs(ada, nil, append([]string{"forward"}, args...)...)
		f.exits(int(hint.Forbidden))
		f.says("needs a proxy pod, because ")
		f.says("create")
		f.says("kind: Role")
	}
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("svc/orders 0:80\n0:orders:80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := w.bridgeAs(ada, nil, "forward", "-f", list)
	f.assertAnswers(f.from("Forwarding from 127."), "original")
	f.says("these need a proxy pod, and are left out: " + list + ":2: orders:80")
	f.terminate()
	// With the Role of connect hosts are reached.
	f = w.bridgeAs(both, nil, "forward", "0:orders:80")
	f.assertAnswers(f.from("Forwarding from 127."), "original")
	f.terminate()
	w.assertSnapshot(before)
}

// A forward that was killed leaves what status names and restore removes, and a unix socket that the next one replaces.
func TestKilledForwardIsRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	socket := filepath.Join(t.TempDir(), "s")
	f := w.bridge("forward", "svc/orders", "unix:"+socket+":80", "--via", "proxy")
	f.prints("Forwarding from unix:" + socket + " -> 8080")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	again := w.bridge("forward", "svc/orders", "unix:"+socket+":80")
	again.exits(int(hint.Other))
	again.says("local socket " + socket + " is in use")
	f.signal(syscall.SIGKILL)
	<-f.ended
	st := w.bridge("status", "-o", "wide")
	st.exits(0)
	restore := regexp.MustCompile(`bridge (restore forward \S+)`).FindStringSubmatch(st.prints("bridge restore forward "))
	w.bridge(strings.Fields(restore[1])...).exits(0)
	w.assertSnapshot(before)

	f = w.bridge("forward", "svc/orders", "unix:"+socket+":80")
	f.prints("Forwarding from unix:" + socket + " -> 8080")
	out, err := exec.Command("curl", "-sS", "--max-time", "20", "--unix-socket", socket, "http://orders/").CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "original" {
		t.Errorf("%q, %v", got, err)
	}
	f.terminate()
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is left")
	}
}

const brokenYAML = `
apiVersion: v1
kind: Service
metadata: {name: broken, labels: {tier: test}}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
`

// Every Service has an address and its real ports; one without pods resets its callers, and says why.
func TestForwardAllServices(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	w.apply(fmt.Sprintf(echoYAML, s.image))
	w.awaitReady("app=echo", 1)
	before := w.snapshot()
	w.apply(strings.TrimSpace(brokenYAML))
	f := w.bridge("forward", "--all", "--pod-running-timeout", "1s")
	at := map[string]string{}
	row := regexp.MustCompile(`^(\S+) +(127\.\S+:\d+) +-> (\S+)$`)
	w.await("all five ports", func() bool { return len(f.stdout.all()) == 5 })
	for _, line := range f.stdout.all() {
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("%q", line)
		}
		at[m[3]] = m[2]
	}
	f.assertAnswers(at["service/orders:80"], "original")
	f.assertAnswers(at["service/echo:80"], "original")
	f.checks(at["service/orders:7000"], "download", "--bytes", "1000000")
	f.checks(at["service/echo:7000/udp"], "datagrams", "--name", "original")
	if _, port, _ := net.SplitHostPort(at["service/orders:7000"]); port != "7000" {
		t.Errorf("the real port is %s", port)
	}
	resets(t, at["service/broken:80"])
	f.says("connection to service/broken:80: service/broken in " + w.ns + " has no ready pod after 1s: no pod matches its selector")
	f.says("bridge diagnose service/broken") // and what that would say, before it

	// One that comes is added, and one that goes ends.
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "broken", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.says("service/broken is gone")
	w.await("its port to be closed", func() bool {
		c, err := net.Dial("tcp", at["service/broken:80"])
		if err == nil {
			_ = c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	w.apply(strings.TrimSpace(strings.Replace(brokenYAML, "app: nobody", "app: echo", 1) + "    \n"))
	w.await("the Service to be back", func() bool { return len(f.stdout.all()) == 6 })
	f.terminate()

	f = w.bridge("forward", "-l", "tier=test")
	if got := row.FindStringSubmatch(f.prints("service/broken:80")); got == nil || got[2] != at["service/broken:80"] {
		t.Errorf("%q, and among all at %s", got, at["service/broken:80"])
	}
	f.terminate()
	f = w.bridge("forward", "-l", "tier=none")
	f.exits(int(hint.NotFound))
	if err := s.client.CoreV1().Services(w.ns).Delete(t.Context(), "broken", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.assertSnapshot(before)
}

// Where the kernel keeps the ports below 1024 for root, a Service has another there, and its own above.
func TestForwardAllServicesWithoutTheirRealPorts(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	path, env := forAnybody(t)
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	if first := strings.TrimSpace(string(b)); first != "1024" {
		t.Skip("anybody may listen from port", first)
	}
	f := start(t, "setpriv", env, "--reuid", "65534", "--regid", "65534", "--clear-groups", path, "forward", "--all", "-n", w.ns)
	local := func(target string) (address, port string) {
		address = strings.Fields(f.prints("-> service/orders:" + target))[1]
		_, port, _ = net.SplitHostPort(address)
		return address, port
	}
	at, port := local("80")
	if port == "80" {
		t.Error("it has port 80")
	}
	f.says("has another port here")
	f.assertAnswers(at, "original")
	if _, port := local("7000"); port != "7000" {
		t.Errorf("the real port is %s", port)
	}
	f.signal(syscall.SIGINT)
	f.exits(130)
}

// The proxy pod is deleted in mid-transfer: that transfer is reset, and the next goes by the pod that comes.
func TestForwardOutlivesItsProxyPod(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	f := w.bridge("forward", "svc/orders", ":7000", "--via", "proxy", "--dial-timeout", patience.String())
	address := f.from("Forwarding from 127.")
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "echo\nhello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	bulk, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer bulk.Close()
	if _, err := io.WriteString(bulk, "download 1000000000000\n"); err != nil {
		t.Fatal(err)
	}
	cut := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, bulk)
		cut <- err
	}()
	zero := int64(0)
	for _, p := range w.pods("bridge.internal/proxy") {
		if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the open connection: %v, want a reset", err)
	}
	_ = bulk.SetDeadline(time.Now().Add(patience))
	if err := <-cut; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the transfer: %v, want a reset: an end would be all there was", err)
	}
	f.checks(address, "download", "--bytes", "1000000")
	f.terminate()

	// Without any a connection waits for as long as it may, and is reset.
	f = w.bridge("forward", "svc/orders", ":7000", "--via", "proxy", "--dial-timeout", "2s", "--resume-window", "0")
	address = f.from("Forwarding from 127.")
	w.scaleProxy(0)
	f.says("tunnel: reconnecting")
	resets(t, address)
	f.says("no answer within --dial-timeout 2s")
	w.scaleProxy(1)
	f.says("tunnel: ready, ")
	f.checks(address, "download", "--bytes", "1000000")
	f.terminate()
	w.assertSnapshot(before)
}

// scaleProxy sets how many pods a forward's proxy has.
func (w *world) scaleProxy(replicas int32) {
	w.t.Helper()
	list, err := s.client.AppsV1().Deployments(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=bridge"})
	if err != nil || len(list.Items) != 1 {
		w.t.Fatalf("%d proxies, %v", len(list.Items), err)
	}
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas) // whatever its controller writes meanwhile
	if _, err := s.client.AppsV1().Deployments(w.ns).Patch(w.t.Context(), list.Items[0].Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// As kubectl: it ends with its pod.
func TestForwardThatDoesNotReconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	f := w.bridge("forward", "svc/orders", ":80", ":7000", "--reconnect=never")
	address := f.from("Forwarding from 127.")
	f.assertAnswers(address, "original")
	for _, p := range w.pods("app=orders") {
		if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f.exits(int(hint.Other))
	f.says("lost connection to pod: orders-")
	f = w.bridge("forward", ":orders:80", "--reconnect=never")
	f.exits(int(hint.Usage))
}

// A port that is taken is somebody's.
func TestForwardSaysWhoHasThePort(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	f := w.bridge("forward", "svc/orders", ":80")
	_, port, err := net.SplitHostPort(f.from("Forwarding from 127."))
	if err != nil {
		t.Fatal(err)
	}
	again := w.bridge("forward", "svc/orders", port+":80", "--via", "proxy")
	again.exits(int(hint.Other))
	again.says(fmt.Sprintf("local address 127.0.0.1:%s is in use by bridge-race (process %d)", port, f.cmd.Process.Pid))
	f.terminate()
	w.assertSnapshot(before)
}

// Straight to pods a port where nobody listens refuses its callers, says so, and takes nothing from the others; a hundred at once beside one that
// nobody reads are answered, and nothing is left of them.
func TestForwardStraightToPods(t *testing.T) {
	t.Parallel()
	const many = 100
	w := newWorld(t).withOrders()
	f := w.bridge("forward", "deployment/orders", ":7000", ":9")
	address, closed := f.from("-> 7000"), f.from("-> 9")
	open := lineTo(t, address)
	before := f.descriptors()
	resets(t, closed)
	f.says("nothing listens on pod/" + w.ns + "/orders-")
	open.lives()
	slow, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "download 100000000\n"); err != nil { // and reads nothing
		t.Fatal(err)
	}
	f.checks(address, "many", "--connections", fmt.Sprint(many))
	f.checks(address, "download", "--bytes", "20000000")
	open.lives()
	_ = slow.Close()
	const own = 10 // questions to the API server
	w.await("the connections' descriptors to be closed", func() bool { return f.descriptors() <= before+own })
	f.terminate()
}

// Thousands of connections at once, a slow reader among them, and nothing is left of them.
func TestForwardManyConnections(t *testing.T) {
	t.Parallel()
	const many = 5000
	w := newWorld(t).withOrders()
	f := w.bridge("forward", "svc/orders", ":7000", "--via", "proxy", "--dial-timeout", patience.String()) // the machine is busy, too
	address := f.from("Forwarding from 127.")
	slow, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := io.WriteString(slow, "download 100000000\n"); err != nil { // and reads nothing
		t.Fatal(err)
	}
	f.checks(address, "download", "--bytes", "20000000")
	f.checks(address, "many", "--connections", fmt.Sprint(many))
	f.checks(address, "download", "--bytes", "20000000")
	// What so many take is taken again by as many more, and nothing is added.
	once := f.memory()
	f.checks(address, "many", "--connections", fmt.Sprint(many))
	f.assertMemory(once, 2*many)
	_ = slow.Close()
	w.await("the connections' descriptors to be closed", func() bool { return f.descriptors() < 100 })
	w.await("status to count them", func() bool {
		list := w.forwards()
		return len(list) == 1 && len(list[0].Forwards) == 1 && list[0].Forwards[0].Total >= 2*many && list[0].Forwards[0].Open == 0
	})
	f.terminate()
}
