//go:build linux

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"bridge/internal/hint"
)

// mountedYAML is a workload with mounts, of which one is a part of a volume.
const mountedYAML = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {a.conf: "a is set\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: app
        image: %[1]s
        args: [serve, --name, original]
        env: [{name: ITS, value: own}]
        ports: [{name: http, containerPort: 8080}]
        volumeMounts:
        - {name: settings, mountPath: /etc/settings}
        - {name: settings, mountPath: /etc/part.conf, subPath: a.conf}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}` + restrictedYAML + `      volumes:
      - {name: settings, configMap: {name: settings}}
---
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  selector: {app: orders}
  ports: [{port: 80, targetPort: http}]
`

// toolsImage gives the cluster the proxy's image, and is its name.
func toolsImage(t *testing.T) string {
	t.Helper()
	if !s.embedded {
		t.Skip("a registry of your own is needed: bridge image push")
	}
	archive := filepath.Join(t.TempDir(), "proxy.tar")
	const name = "bridge-proxy:debug"
	start(t, s.bridge, nil, "image", "save", "-o", archive, "--name", name).exits(0)
	if err := s.cluster(t.Context(), "load", archive); err != nil {
		t.Fatal(err)
	}
	return name
}

func (w *world) ephemeral(pod string) []corev1.EphemeralContainer {
	w.t.Helper()
	p, err := s.client.CoreV1().Pods(w.ns).Get(w.t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return p.Spec.EphemeralContainers
}

// A container beside another, in a namespace that is restricted, sees that one's processes, files, environment, sockets and volumes.
func TestDebugBeside(t *testing.T) {
	t.Parallel()
	image := toolsImage(t)
	w := newWorld(t)
	w.apply(fmt.Sprintf(mountedYAML, s.image))
	w.awaitReady("app=orders", 1)
	pod := w.pods("app=orders")[0].Name
	user := w.as("ada", deployed(t, "debug"))
	debug := func(args ...string) *process {
		return w.bridgeAs(user, nil, append([]string{"debug", "deployment/orders", "--proxy-image", image}, args...)...)
	}

	p := debug("--", "env", "1")
	p.exits(0)
	p.prints("ITS=own")
	p.says("/etc/part.conf")
	name := regexp.MustCompile(`^container (bridge-debug-\S+) beside`).FindStringSubmatch(p.says("beside container app"))[1]
	for _, c := range []struct{ args, words string }{
		{"ps", "/sample serve --name original"},
		{"ls /proc/1/root", "sample"},
		{"cat /etc/settings/a.conf", "a is set"},
		{"cat /proc/1/root/etc/part.conf", "a is set"},
		{"ss -l", "/sample"},
		{"curl -i http://localhost:8080", "original"},
		{"dig +search orders", "orders." + w.ns + ".svc.cluster.local."},
		{"http-probe http://orders/", "status 200"},
	} {
		p := debug(append([]string{"--"}, strings.Fields(c.args)...)...)
		p.exits(0)
		p.prints(c.words)
		p.says("container " + name + " is there already")
	}
	p = debug("--", "http-probe", "http://localhost:1/")
	p.exits(1)
	p.prints("refused")
	debug("--", "ls", "-q").exits(2)
	if n := len(w.ephemeral(pod)); n != 1 {
		t.Errorf("%d containers were added", n)
	}

	// The prompt, at a terminal; Ctrl-C ends what runs there, and no more.
	c := w.atTerminal("debug", "pod/"+pod, "--proxy-image", image)
	c.shows("below /proc/1/root")
	c.types("nc -l 4000\r")
	c.shows("nc -l 4000")
	w.await("the listener", func() bool {
		p := debug("--", "ss", "-l")
		p.exits(0)
		return strings.Contains(strings.Join(p.stdout.all(), "\n"), ":4000 ")
	})
	c.types("\x03")
	c.types("cat /proc/1/comm\r")
	c.shows("sample")
	c.types("exit 6\r")
	c.exits(6)
}

// shellImage gives the cluster an image with a shell and little else, and is its name.
func shellImage(t *testing.T) string {
	t.Helper()
	if !s.embedded {
		t.Skip("a registry of your own is needed")
	}
	const name = "bridge-shell:e2e"
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	files := tar.NewWriter(&layer)
	put := func(to *tar.Writer, h tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := to.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	put(files, tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	put(files, tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	put(files, tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, busybox)
	for _, tool := range strings.Fields("sh cat chmod head mkdir mv rm sleep tail uname wc") {
		put(files, tar.Header{Name: "bin/" + tool, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	if err := files.Close(); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	image := tar.NewWriter(&archive)
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, runtime.GOARCH, sha256.Sum256(layer.Bytes()))
	put(image, tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg, Mode: 0o644}, []byte(`[{"Config":"config.json","RepoTags":["`+name+`"],"Layers":["layer.tar"]}]`))
	put(image, tar.Header{Name: "config.json", Typeflag: tar.TypeReg, Mode: 0o644}, []byte(config))
	put(image, tar.Header{Name: "layer.tar", Typeflag: tar.TypeReg, Mode: 0o644}, layer.Bytes())
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "shell.tar")
	if err := os.WriteFile(file, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster(t.Context(), "load", file); err != nil {
		t.Fatal(err)
	}
	return name
}

// Without an image of ours the tools are carried into a running pod by a shell: its own image's, or that of another one on the node.
func TestDebugBesideByAShell(t *testing.T) {
	t.Parallel()
	image := shellImage(t)
	w := newWorld(t)
	w.apply(fmt.Sprintf(mountedYAML, s.image))
	w.awaitReady("app=orders", 1)
	pod := w.pods("app=orders")[0].Name
	user := w.as("ada", deployed(t, "debug"), deployed(t, "capture"))

	p := w.bridgeAs(user, nil, "debug", "deployment/orders", "--", "ps")
	p.exits(int(hint.Usage))
	p.says("none of the images that run in pod " + w.ns + "/" + pod + " or beside it on its node has one")
	p.says("--copy-to NAME")
	if n := len(w.ephemeral(pod)); n != 0 {
		t.Errorf("%d containers were added", n)
	}

	w.apply(`
apiVersion: v1
kind: Pod
metadata: {name: shell, labels: {app: shell}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: sh
    image: ` + image + `
    command: [sh, -c, "trap exit TERM; while :; do sleep 60 & wait; done"]
    env: [{name: ITS, value: shell}]
    volumeMounts: [{name: own, mountPath: /tmp/own}]
` + strings.ReplaceAll(restrictedYAML, "        ", "    ")[1:] + `  volumes: [{name: own, emptyDir: {}}]
`)
	w.awaitReady("app=shell", 1)
	p = w.bridgeAs(user, nil, "debug", "deployment/orders", "--", "env", "1")
	p.exits(0)
	p.prints("ITS=own")
	p.says("on the image of container sh of pod/shell")
	for _, c := range []struct{ args, words string }{
		{"ls /proc/1/root", "sample"},
		{"cat /etc/settings/a.conf", "a is set"},
		{"ss -l", "/sample"},
		{"curl -i http://localhost:8080", "original"},
	} {
		p := w.bridgeAs(user, nil, append([]string{"debug", "deployment/orders", "--"}, strings.Fields(c.args)...)...)
		p.exits(0)
		p.prints(c.words)
		p.says("is there already")
	}
	if n := len(w.ephemeral(pod)); n != 1 {
		t.Errorf("%d containers were added", n)
	}

	// Its own comes first.
	c := w.atTerminal("debug", "pod/shell")
	c.shows("on the image of container sh;")
	c.shows("tools: cat, curl")
	c.types("env 1\r")
	c.shows("ITS=shell")
	c.types("exit 3\r")
	c.exits(3)

	// So is what sees packets.
	w.level("baseline")
	file := filepath.Join(t.TempDir(), "orders.pcapng")
	p = w.bridgeAs(user, nil, "capture", "deployment/orders", "--port", "http", "-w", file)
	p.says("capturing port 8080")
	if err := w.execIn(t.Context(), pod, "app", nil, io.Discard, "get", "--url", "http://127.0.0.1:8080/over-loopback"); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGINT)
	p.exits(128 + int(syscall.SIGINT))
	if text := readCapture(t, file); !strings.Contains(text, "GET /over-loopback") {
		t.Errorf("not in\n%s", text)
	}
}

func TestDebugWithAnImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(mountedYAML, s.image))
	w.awaitReady("app=orders", 1)
	pod := w.pods("app=orders")[0].Name
	user := w.as("ada", deployed(t, "debug"))

	p := w.bridgeAs(user, nil, "debug", pod, "--image", s.image, "--", "/sample", "look", "/etc/settings")
	p.exits(0)
	p.prints("/etc/settings/a.conf")
	w.bridgeAs(user, nil, "debug", pod, "--image", s.image, "--", "/sample", "get", "--none").exits(2)

	p = w.bridgeWith(reads(strings.NewReader("hello\nexit 5\n")), user, nil, "debug", pod, "--image", s.image, "-i", "--", "/sample", "talk")
	p.exits(5)
	p.prints("talk") // which it prints before there is anybody to read it
	p.prints(`line "hello"`)
	p = w.bridgeWith(reads(strings.NewReader("")), user, nil, "debug", pod, "--image", s.image, "-i", "--", "/sample", "get", "--none")
	p.exits(2)
	p.prints("flag provided but not defined")

	// Who loses a program with a terminal finds it again, and that one alone.
	c := w.atTerminal("debug", pod, "--image", s.image, "-it", "--", "/sample", "talk")
	c.shows("press Enter")
	c.types("one\r")
	c.shows(`line "one"`)
	c.resize(132, 50)
	c.shows("size 132x50")
	n := len(w.ephemeral(pod))
	c.signal(syscall.SIGTERM)
	c.exits(128 + int(syscall.SIGTERM))
	c = w.atTerminal("debug", pod, "--image", s.image, "-it", "--", "/sample", "talk")
	c.shows("is there already")
	c.types("two\r")
	c.shows(`line "two"`)
	c.types("exit 4\r")
	c.exits(4)
	if now := len(w.ephemeral(pod)); now != n {
		t.Errorf("%d containers, and there were %d", now, n)
	}

	p = w.bridgeAs(user, nil, "debug", pod, "--image", "localhost:1/none:1", "--", "true")
	p.exits(int(hint.ProxyNotReady))
	p.says("localhost:1/none:1")
	p.says("kubectl describe pod " + pod)
	p = w.bridgeAs(user, nil, "debug", pod, "--image", s.image, "--", "none")
	p.exits(int(hint.ProxyNotReady)) // 128 is the runtime's, not the program's
}

// The role edit lacks the right to add a container: that is said, with the rule, and a copy works with it.
func TestDebugWithoutTheRight(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	edit, err := s.client.RbacV1().ClusterRoles().Get(t.Context(), "edit", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	user := w.as("ada", rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "edit"}, Rules: edit.Rules})
	p := w.bridgeAs(user, nil, "debug", "deployment/orders", "--image", s.image)
	p.exits(int(hint.Forbidden))
	p.says("patch pods/ephemeralcontainers")
	p.says("with --copy-to NAME it debugs a copy")
	p.says(`resources: ["pods/ephemeralcontainers"]`)
	if n := len(w.ephemeral(w.pods("app=orders")[0].Name)); n != 0 {
		t.Errorf("%d containers were added", n)
	}
	before := w.snapshot()
	p = w.bridgeAs(user, nil, "debug", "deployment/orders", "--copy-to", "look", "--", "ps")
	p.exits(0)
	p.prints("loader tool hold")
	w.awaitNoPod("look")
	w.awaitSnapshot(before)
}

func (w *world) awaitNoPod(name string) {
	w.t.Helper()
	w.await("the end of pod "+name, func() bool {
		_, err := s.client.CoreV1().Pods(w.ns).Get(w.t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

// Of a container that ends at once there is a copy that does not: its own files, environment and program are there, and it goes again.
func TestDebugACopyOfWhatCrashes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(mountedYAML, s.image))
	w.awaitReady("app=orders", 1)
	patch := `{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null},"template":{"spec":{"containers":[{"name":"app","args":["dance"],"resources":{"limits":{"memory":"20Mi"}}}]}}}}`
	if _, err := s.client.AppsV1().Deployments(w.ns).Patch(t.Context(), "orders", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("the crash", func() bool {
		pods := w.pods("app=orders")
		return len(pods) == 1 && len(pods[0].Status.ContainerStatuses) == 1 && pods[0].Status.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	before := w.snapshot()

	c := w.atTerminal("debug", "deployment/orders", "--copy-to", "look")
	c.shows("does not run the entrypoint of its image, with 'dance'")
	c.shows("memory limit is 128Mi in the copy")
	c.shows("tools: cat, curl")
	c.types("cat /etc/part.conf\r")
	c.shows("a is set")
	c.types("env 1\r")
	c.shows("ITS=own")
	c.types("/sample dance\r") // its program, as often as one likes
	c.shows(`unknown command "dance"`)

	// Nobody else takes it for one of theirs, and its name is taken.
	if n := len(w.pods("app=orders")); n != 1 {
		t.Errorf("the deployment has %d pods", n)
	}
	p := w.bridge("debug", "deployment/orders", "--copy-to", "look", "--", "ps")
	p.exits(int(hint.Conflict))
	p.says("kubectl delete pod look")
	c.types("exit 8\r")
	c.exits(8)
	w.awaitNoPod("look")
	w.awaitSnapshot(before)

	// A signal in the middle removes it too; --keep leaves it, and who removes it then leaves nothing.
	c = w.atTerminal("debug", "deployment/orders", "--copy-to", "look")
	c.shows("tools: cat, curl")
	c.signal(syscall.SIGTERM)
	c.exits(128 + int(syscall.SIGTERM))
	w.awaitNoPod("look")
	p = w.bridge("debug", "deployment/orders", "--copy-to", "look", "--keep", "--", "/sample", "dance")
	p.exits(1)
	again := p.says("Into it again: bridge exec -it pod/look")
	words := strings.Fields(again[strings.Index(again, " -- ")+4:])
	words[len(words)-1] = "ps"
	p = w.bridge(append([]string{"exec", "look", "--"}, words...)...)
	p.exits(0)
	p.prints("tool ps")
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), "look", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.awaitNoPod("look")
	w.awaitSnapshot(before)

	// Beside what does not run nothing can be put.
	p = w.bridge("debug", w.pods("app=orders")[0].Name, "--image", s.image)
	p.exits(int(hint.Other))
	p.says("--copy-to NAME")
}
