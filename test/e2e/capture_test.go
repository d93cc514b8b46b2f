//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
)

// level sets the namespace's Pod Security level.
func (w *world) level(level string) {
	w.t.Helper()
	patch := `{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"` + level + `"}}}`
	if _, err := s.client.CoreV1().Namespaces().Patch(w.t.Context(), w.ns, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// rightToPackets tells whether a container of pod's has asked for it.
func (w *world) rightToPackets(pod string) bool {
	w.t.Helper()
	for _, c := range w.ephemeral(pod) {
		if sc := c.SecurityContext; sc != nil && sc.Capabilities != nil && len(sc.Capabilities.Add) > 0 {
			return true
		}
	}
	return false
}

// read is what tcpdump reads in a capture.
func readCapture(t *testing.T, file string) string {
	t.Helper()
	var wrong bytes.Buffer
	c := exec.Command("tcpdump", "-n", "-A", "-r", file)
	c.Stderr = &wrong
	out, err := c.Output()
	if err != nil {
		t.Fatalf("tcpdump: %v\n%s%s", err, wrong.String(), out)
	}
	return string(out)
}

// What passes on a pod's port, over its network and its loopback, is read by tcpdump; what that takes depends on the namespace's Pod Security level.
func TestCapture(t *testing.T) {
	t.Parallel()
	image := toolsImage(t)
	w := newWorld(t).withOrders()
	pod := w.pods("app=orders")[0]
	user := w.as("ada", deployed(t, "capture"))
	file := filepath.Join(t.TempDir(), "orders.pcapng")
	gone := func() {
		t.Helper()
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a capture that was refused leaves a file: %v", err)
		}
	}

	// Restricted: there is no way, and it is said what there would be to do.
	p := w.bridgeAs(user, nil, "capture", "svc/orders", "--port", "80", "--proxy-image", image, "-w", file)
	p.exits(int(hint.Forbidden))
	p.says("port 80 of service/orders is port http of its pods")
	p.says("CAP_NET_RAW")
	p.says(`violates PodSecurity "restricted`)
	p.says("enforce=baseline")
	if n := len(w.ephemeral(pod.Name)); n != 0 {
		t.Errorf("%d containers were added", n)
	}
	p = w.bridgeAs(user, nil, "capture", "pod/"+pod.Name, "--port", "none", "--proxy-image", image, "-w", file)
	p.exits(int(hint.Usage))
	p.says("it declares 8080")
	gone()

	for _, level := range []string{"baseline", "privileged"} {
		w.level(level)
		file = filepath.Join(t.TempDir(), level+".pcapng")
		if level == "privileged" { // the container of before is in the other pod
			if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			w.await("another pod", func() bool {
				for _, now := range w.pods("app=orders") {
					if now.Name != pod.Name && now.DeletionTimestamp == nil && podReady(&now) {
						pod = now
						return true
					}
				}
				return false
			})
		}
		p = w.bridgeAs(user, nil, "capture", "pod/"+pod.Name, "--port", "http", "--proxy-image", image, "-w", file)
		p.says("capturing port 8080")
		var out bytes.Buffer
		if err := w.exec(t.Context(), nil, &out, "get", "--url", "http://"+pod.Status.PodIP+":8080/seen-in-"+level); err != nil {
			t.Fatal(err)
		}
		if err := w.execIn(t.Context(), pod.Name, "app", nil, &out, "get", "--url", "http://127.0.0.1:8080/over-loopback"); err != nil {
			t.Fatal(err)
		}
		p.signal(syscall.SIGINT)
		p.exits(128 + int(syscall.SIGINT))
		p.says(" 0 dropped")
		text := readCapture(t, file)
		for _, want := range []string{"GET /seen-in-" + level, "GET /over-loopback", "HTTP/1.1 200", "127.0.0.1.8080"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in\n%s", level, want, text)
			}
		}
		if strings.Count(text, "> 127.0.0.1.8080: Flags [P.]") != 1 {
			t.Errorf("%s: what goes over loopback is there more than once:\n%s", level, text)
		}
		if asked := w.rightToPackets(pod.Name); asked != (level == "privileged") {
			t.Errorf("%s: the right is asked for: %v", level, asked)
		}
	}

	// An earlier capture is not written over.
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p = w.bridgeAs(user, nil, "capture", "pod/"+pod.Name, "--port", "http", "--proxy-image", image, "-w", file)
	p.exits(int(hint.Usage))
	p.says("is there already")
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("an earlier capture of %d bytes has %d, %v", len(before), len(after), err)
	}

	// Killed in the middle, the file is whole blocks; and the program in the pod ends.
	file = filepath.Join(t.TempDir(), "killed.pcapng")
	p = w.bridgeAs(user, nil, "capture", "pod/"+pod.Name, "--port", "http", "--proxy-image", image, "-w", file)
	p.says("is there already")
	p.says("capturing port 8080")
	if err := w.exec(t.Context(), nil, io.Discard, "get", "--url", "http://"+pod.Status.PodIP+":8080/before-the-end"); err != nil {
		t.Fatal(err)
	}
	w.await("the request in the file", func() bool {
		b, err := os.ReadFile(file)
		return err == nil && bytes.Contains(b, []byte("GET /before-the-end"))
	})
	p.kill()
	if text := readCapture(t, file); !strings.Contains(text, "GET /before-the-end") {
		t.Errorf("not in\n%s", text)
	}
	name := w.ephemeral(pod.Name)[0].Name
	w.await("the end of the program in the pod", func() bool {
		p := w.bridge("exec", "pod/"+pod.Name, "-c", name, "--", "/proxy", "tool", "ps")
		p.exits(0)
		return !strings.Contains(strings.Join(p.stdout.all(), "\n"), "tool capture")
	})

	// It ends with the pod, and says so.
	p = w.bridgeAs(user, nil, "capture", "pod/"+pod.Name, "--port", "http", "--proxy-image", image, "-w", filepath.Join(t.TempDir(), "gone.pcapng"))
	p.says("capturing port 8080")
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.exits(int(hint.Other))
	p.says("has the pod ended? bridge diagnose pod/" + pod.Name)
}

func podReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
