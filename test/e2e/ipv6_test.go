//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
)

// ipv6Env has the embedded cluster have IPv6 beside IPv4. All other tests run on the usual one.
const ipv6Env = "BRIDGE_E2E_IPV6"

// Services of orders and echo, of IPv6 alone and of both.
const ipv6YAML = `
apiVersion: v1
kind: Service
metadata: {name: six}
spec:
  ipFamilies: [IPv6]
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: echo6}
spec:
  ipFamilies: [IPv6]
  selector: {app: echo}
  ports: [{name: echo, port: 7000, targetPort: echo, protocol: UDP}]
`

const headless6YAML = `
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  ipFamilies: [IPv6]
  selector: {app: orders}
  ports: [{name: http, port: 8080}]
`

// withIPv6 is withOrders, echo, and Services of IPv6. It says where six, a pod of orders' and echo6 are.
func (w *world) withIPv6() (six, pod, echo string) {
	w.t.Helper()
	for doc := range strings.SplitSeq(ipv6YAML, "\n---\n") {
		if err := w.tryApply(doc); apierrors.IsInvalid(err) && os.Getenv(ipv6Env) == "" {
			w.t.Skip("the cluster has no IPv6")
		} else if err != nil {
			w.t.Fatal(err)
		}
	}
	w.withOrders().apply(fmt.Sprintf(echoYAML, s.image))
	w.awaitReady("app=echo", 1)
	for _, service := range []string{"six", "both"} {
		w.answersAt("http://"+service, "original")
	}
	address := func(service string) string {
		svc, err := s.client.CoreV1().Services(w.ns).Get(w.t.Context(), service, metav1.GetOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		return svc.Spec.ClusterIP
	}
	ips := w.pods("app=orders")[0].Status.PodIPs
	return address("six"), ips[slices.IndexFunc(ips, func(ip corev1.PodIP) bool { return strings.Contains(ip.IP, ":") })].IP, address("echo6")
}

func TestIPv6Reached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	six, pod, echo := w.withIPv6()
	w.apply(headless6YAML)
	w.answersAt("http://headless:8080", "original")
	before := w.snapshot()
	script := fmt.Sprintf(`get() { echo "$(curl -sS --max-time 20 "$@" 2>&1)"; }
get http://six
get -6 http://both
get -4 http://both
get http://headless:8080
get http://[%[1]s]/
get http://[%[2]s]:8080/
%[4]s get --url http://six
dig +short AAAA six.%[5]s.svc.cluster.local
dig +short -x %[1]s
getent ahostsv6 six | awk 'NR == 1 {print $1}'
ping -c 1 -W 10 %[2]s | grep -o '1 received'
%[4]s check --what datagrams --address [%[3]s]:7000 --name original
%[4]s check --what datagrams --address echo6:7000 --name original
exit 9`, six, pod, echo, s.sample, w.ns)
	got := w.runs(9, "sh", "-c", script)
	want := strings.Join([]string{
		"original", "original", "original", "original", "original", "original", "original",
		six, "six." + w.ns + ".svc.cluster.local.", six, "1 received", "datagrams ok", "datagrams ok",
	}, "\n")
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}

	c := w.connect(s.kubeconfig, nil)
	proxy := c.socks()
	for _, by := range []string{"socks5h://" + proxy, "http://" + proxy} {
		for _, url := range []string{"http://six", "http://[" + six + "]", "http://[" + pod + "]:8080"} {
			out, err := exec.Command("curl", "-sS", "--max-time", "20", "--proxy", by, url).CombinedOutput()
			if string(out) != "original\n" || err != nil {
				t.Errorf("%s by %s: %q, %v", url, by, out, err)
			}
		}
	}
	c.terminate()

	for _, args := range [][]string{{"svc/six", ":80"}, {"[" + six + "]:80"}} {
		f := w.bridge(append([]string{"forward"}, args...)...)
		f.assertAnswers(f.from("Forwarding from 127.0.0.1:"), "original")
		f.terminate()
	}
	f := w.bridge("forward", "svc/echo6", ":7000")
	f.checks(f.from("Forwarding from 127.0.0.1:"), "datagrams", "--name", "original")
	f.terminate()
	w.assertSnapshot(before)
}

func TestIPv6Swapped(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, _, echo := w.withIPv6()
	before := w.snapshot()
	everywhere := func(name string) {
		t.Helper()
		for _, service := range []string{"six", "both", "orders"} {
			w.answersAt("http://"+service, name)
		}
	}
	b := w.swap()
	everywhere("laptop")
	b.terminate()
	everywhere("original")
	w.assertSnapshot(before)

	local := localOrders(t)
	b = w.bridge(append(append([]string{"swap", "deployment", "orders"}, local...), standing...)...)
	b.says(swapped)
	everywhere("laptop")
	b.signal(syscall.SIGSTOP) // nobody is there: the original answers, over IPv6 too
	everywhere("original")
	b.signal(syscall.SIGCONT)
	b.terminate()
	everywhere("original")
	w.assertSnapshot(before)

	http, udp := freePort(t), freePort(t)
	start(t, s.sample, nil, "serve", "--name", "laptop", "--http", "127.0.0.1:"+http, "--udp", "127.0.0.1:"+udp).says("listens on")
	b = w.bridge("swap", "deployment", "echo", "--port", http+":http", "--port", udp+":echo")
	b.says(swapped)
	w.check("--what", "datagrams", "--address", "["+echo+"]:7000", "--name", "laptop")
	b.terminate()
	w.check("--what", "datagrams", "--address", "["+echo+"]:7000", "--name", "original")
	w.assertSnapshot(before)
}

// Nothing is wrong with a second family, and what is wrong over it is found.
func TestIPv6Diagnosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.withIPv6()
	healthy := w.bridge("diagnose")
	healthy.exits(int(hint.Warnings))
	healthy.says("0 problems, 1 warning") // of orders' timings
	w.apply(strings.Replace(strings.Split(ipv6YAML, "\n---\n")[0], "targetPort: http", "targetPort: 9", 1))
	d := w.bridge("diagnose", "svc/six")
	d.exits(int(hint.Warnings)) // and no problem yet: the pods are young
	d.prints("service-port-closed: service/six")
}
