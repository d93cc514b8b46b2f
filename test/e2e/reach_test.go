//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// forwarded is the local address in "Forwarding from 127.0.0.1:4711 -> 80".
func forwarded(line string) string { return strings.Fields(line)[2] }

// assertAnswers GETs from the laptop and compares who answered.
func (p *process) assertAnswers(address, want string) {
	p.t.Helper()
	out, err := exec.Command(s.sample, "get", "--url", "http://"+address).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != want {
		p.t.Errorf("GET %s: %q, %v, want %q; bridge said:\n%s", address, got, err, want, strings.Join(p.stderr.all(), "\n"))
	}
}

// The embedded cluster's laptop reaches the API server and nothing else, else this all proves nothing.
func TestLaptopReachesNoPodDirectly(t *testing.T) {
	if !s.embedded {
		t.Skip("only the embedded cluster has a laptop that is shut out")
	}
	t.Parallel()
	w := newWorld(t).withOrders()
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{svc.Spec.ClusterIP + ":80", w.pods("app=orders")[0].Status.PodIP + ":8080"} {
		if out, err := exec.Command("curl", "-sS", "--max-time", "2", "http://"+address).CombinedOutput(); err == nil {
			t.Errorf("%s answers the laptop: %s", address, out)
		}
	}
}

func TestForward(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	pod := w.pods("app=orders")[0].Name
	for _, c := range []struct{ target, port, first string }{
		{"svc/orders", ":80", `^Forwarding from 127\.0\.0\.1:\d+ -> 8080$`},
		{"service/orders", "0:http", `^Forwarding from 127\.0\.0\.1:\d+ -> 8080$`},
		{"pod/" + pod, ":8080", `^Forwarding from 127\.0\.0\.1:\d+ -> 8080$`},
		{pod, ":http", `^Forwarding from 127\.0\.0\.1:\d+ -> 8080$`},
		{"deployment/orders", ":8080", `^Forwarding from 127\.0\.0\.1:\d+ -> 8080$`},
	} {
		f := w.bridge("forward", c.target, c.port)
		line := f.prints("Forwarding from 127.0.0.1:")
		if !regexp.MustCompile(c.first).MatchString(line) {
			t.Errorf("%s %s: first line %q", c.target, c.port, line)
		}
		f.assertAnswers(forwarded(line), "original")
		f.signal(syscall.SIGINT)
		f.exits(130)
	}
	w.assertSnapshot(before)
}

// The port-forward of a connection that has ended carries the next one: the API server is asked for no other.
func TestForwardUsesAPortForwardAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	kubeconfig, requests := countedAPI(t)
	f := w.bridgeAs(kubeconfig, nil, "forward", "pod/"+w.pods("app=orders")[0].Name, ":8080")
	address := f.from("Forwarding from 127.")
	f.assertAnswers(address, "original")
	if paths := strings.Join(requests(), "\n"); strings.Count(paths, "/portforward") != 1 {
		t.Errorf("the first connection asks for\n%s", paths)
	}
	w.await("a connection without a port-forward of its own", func() bool { // the runtime takes a second over the end of one
		f.assertAnswers(address, "original")
		return !strings.Contains(strings.Join(requests(), "\n"), "/portforward")
	})
	f.terminate()
}

// Who says something and is gone has said it, little or much, and the next one does not wait for the runtime's end of that.
func TestForwardDoesNotWaitForWhoIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	pod := w.pods("app=orders")[0].Name
	kubeconfig, requests := countedAPI(t)
	f := w.bridgeAs(kubeconfig, nil, "forward", "pod/"+pod, ":7000")
	address := f.from("Forwarding from 127.")
	// says writes an order, reads its answer, if it has one, writes the rest, and is gone.
	says := func(order, answer, rest string) {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(c, order+"\n")
		if answer != "" {
			_, rerr := io.ReadFull(c, make([]byte, len(answer)+1))
			err = errors.Join(err, rerr)
		}
		_, werr := io.WriteString(c, rest+"\n")
		if err := errors.Join(err, werr, c.Close()); err != nil {
			t.Error(err)
		}
	}
	const many = 100
	for i := range many {
		says("log", "log", fmt.Sprintf("said-%d.", i))
		time.Sleep(20 * time.Millisecond) // less than the runtime takes, more than it takes to see that nobody is left
	}
	if made := strings.Count(strings.Join(requests(), "\n"), "/portforward"); made > many/5 {
		t.Errorf("%d port-forwards for %d connections", made, many)
	}

	for i := range many {
		says(fmt.Sprintf("order-%d.", i), "", "")
	}
	says("log", "log", "much"+strings.Repeat("x", 50<<10)+"end.")
	w.await("all that was said", func() bool {
		log, err := s.client.CoreV1().Pods(w.ns).GetLogs(pod, &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range many {
			if !strings.Contains(string(log), fmt.Sprintf("said-%d.", i)) || !strings.Contains(string(log), fmt.Sprintf("order-%d.", i)) {
				return false
			}
		}
		return strings.Contains(string(log), "xend.")
	})
	f.terminate()
}

// One forward outlives the pods behind it.
func TestForwardSurvivesPodReplacement(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	f := w.bridge("forward", "svc/orders", ":80")
	address := forwarded(f.prints("Forwarding from 127.0.0.1:"))
	f.assertAnswers(address, "original")
	old := map[string]bool{}
	for _, p := range w.pods("app=orders") {
		old[p.Name] = true
		if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w.await("new pods alone", func() bool {
		pods := w.pods("app=orders")
		for _, p := range pods {
			if old[p.Name] {
				return false
			}
		}
		return len(pods) == 2
	})
	w.awaitReady("app=orders", 2)
	f.assertAnswers(address, "original")
	f.terminate()
}

const jobYAML = `
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  template:
    metadata: {labels: {app: once}}
    spec:
      restartPolicy: Never
      containers:
      - name: app
        image: %s
        args: [serve, --name, once]` + restrictedYAML

// A rollout is followed at once: when it is done, a new pod has each connection. A Job's pod is reached, too.
func TestForwardFollowsARollout(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	ways := map[string]*process{}
	at := map[string]string{}
	for _, via := range []string{"pods", "proxy"} {
		ways[via] = w.bridge("forward", "svc/orders", ":80", "--via", via)
		at[via] = ways[via].from("Forwarding from 127.")
		ways[via].assertAnswers(at[via], "original")
	}
	w.apply(fmt.Sprintf(strings.Replace(ordersYAML, "original", "renewed", 1), s.image))
	w.await("the rollout", func() bool {
		d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 2 && d.Status.AvailableReplicas == 2 && d.Status.Replicas == 2
	})
	for via, f := range ways {
		w.await("a new pod's answer", func() bool { // the endpoints follow a moment later
			out, err := exec.Command(s.sample, "get", "--url", "http://"+at[via]).Output()
			return err == nil && strings.TrimSpace(string(out)) == "renewed"
		})
		for range 10 {
			f.assertAnswers(at[via], "renewed")
		}
		f.terminate()
	}

	w.apply(fmt.Sprintf(jobYAML, s.image))
	w.awaitReady("app=once", 1)
	f := w.bridge("forward", "job/once", ":8080")
	f.assertAnswers(f.from("Forwarding from 127."), "once")
	f.terminate()
	l := w.bridge("logs", "job/once")
	l.exits(0)
	l.prints("listens on")
}

func TestConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	c := w.bridge("connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0")
	socks := regexp.MustCompile(`ALL_PROXY=socks5h://(\S+)`).FindStringSubmatch(c.prints("export ALL_PROXY="))
	dns := regexp.MustCompile(`dig @127\.0\.0\.1 -p (\d+)`).FindStringSubmatch(c.prints("dig @127.0.0.1"))
	if socks == nil || dns == nil {
		t.Fatalf("it printed %q", c.stdout.all())
	}
	name := "orders." + w.ns
	for what, args := range map[string][]string{
		"SOCKS5 with a remote name": {"--socks5-hostname", socks[1], "http://" + name},
		"HTTP proxy":                {"-x", "http://" + socks[1], "http://" + name},
		"HTTP CONNECT":              {"-p", "-x", "http://" + socks[1], "http://" + name + ".svc.cluster.local"},
	} {
		out, err := exec.Command("curl", append([]string{"-sS", "--max-time", "20"}, args...)...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != "original" {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"+tcp"}} {
		out, err := exec.Command("dig", append([]string{"@127.0.0.1", "-p", dns[1], "+short", name + ".svc.cluster.local"}, args...)...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != svc.Spec.ClusterIP {
			t.Errorf("dig %v: %q, %v, want %s", args, got, err, svc.Spec.ClusterIP)
		}
	}
	c.terminate()
	w.assertSnapshot(before)
}

// A connect that was killed leaves what status names and restore removes.
func TestKilledConnectIsRemoved(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	c := w.bridge("connect", "--listen", "127.0.0.1:0", "--dns-listen", "127.0.0.1:0")
	c.prints("export ALL_PROXY=")
	c.signal(syscall.SIGKILL)
	<-c.ended
	st := w.bridge("status", "-o", "wide")
	st.exits(0)
	restore := regexp.MustCompile(`bridge (restore connect \S+)`).FindStringSubmatch(st.prints("bridge restore connect "))
	w.bridge(strings.Fields(restore[1])...).exits(0)
	w.assertSnapshot(before)
}

func apiPort(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`:(\d+)$`).FindStringSubmatch(s.config.Host)
	if m == nil {
		t.Fatal(fmt.Errorf("no port in %s", s.config.Host))
	}
	return m[1]
}
