//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

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
