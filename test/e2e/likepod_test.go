//go:build linux

package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// everySourceYAML is a workload that has its environment and files from everywhere that there is.
const everySourceYAML = `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  GREETING: "it's \"two\"\nlines $HOME"
  my.setting: dotted
  app.conf: "level = info\n"
  run.sh: "#!/bin/sh\n"
binaryData: {blob: %[3]s}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: large}
data: {text: "%[4]s"}
---
apiVersion: v1
kind: Secret
metadata: {name: passwords}
stringData: {PASSWORD: "s3cr3t$$(x)", key.pem: "-----KEY-----\n"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  replicas: 1
  selector: {matchLabels: {app: orders}}
  template:
    metadata:
      labels: {app: orders, tier: back.end_1}
      annotations: {team: "blue\nand green"}
    spec:
      terminationGracePeriodSeconds: 1
      securityContext: {fsGroup: 1000}
      containers:
      - name: app
        image: %[1]s
        args: [serve, --name, original]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}
        resources: {requests: {cpu: 20m, memory: 20Mi}, limits: {memory: 100Mi}}
        envFrom:
        - configMapRef: {name: settings}
        - {prefix: SECRET_, secretRef: {name: passwords}}
        - configMapRef: {name: missing, optional: true}
        env:
        - {name: LITERAL, value: "$(GREETING) and $$(NOT)"}
        - {name: TMPDIR, value: /cache}
        - {name: FROM_KEY, valueFrom: {secretKeyRef: {name: passwords, key: PASSWORD}}}
        - {name: FROM_MISSING, valueFrom: {configMapKeyRef: {name: missing, key: x, optional: true}}}
        - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
        - {name: ANNOTATION, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['team']"}}}
        - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
        - {name: ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
        - {name: CPU_ROUNDED, valueFrom: {resourceFieldRef: {resource: requests.cpu}}}
        - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
        - {name: MEMORY_MI, valueFrom: {resourceFieldRef: {containerName: app, resource: limits.memory, divisor: 1Mi}}}
        - {name: SIDECAR_MEMORY, valueFrom: {resourceFieldRef: {containerName: sidecar, resource: limits.memory}}}
        volumeMounts:
        - {name: settings, mountPath: /etc/orders}
        - {name: large, mountPath: /etc/large}
        - {name: settings, mountPath: /opt/single.conf, subPath: app.conf}
        - {name: passwords, mountPath: /etc/passwords}
        - {name: all, mountPath: /etc/all}
        - {name: pod, mountPath: /etc/pod}
        - {name: optional, mountPath: /etc/optional}
        - {name: scratch, mountPath: /scratch}%[2]s
      - name: sidecar
        image: %[1]s
        args: [wait]
        env: [{name: OF, value: sidecar}]
        resources: {limits: {memory: 50Mi}}%[2]s
      volumes:
      - {name: settings, configMap: {name: settings, defaultMode: 0555}}
      - {name: large, configMap: {name: large}}
      - {name: passwords, secret: {secretName: passwords, defaultMode: 0400}}
      - name: all
        projected:
          sources:
          - configMap: {name: settings, items: [{key: blob, path: deep/er/blob}]}
          - secret: {name: passwords, items: [{key: key.pem, path: key.pem}]}
          - downwardAPI: {items: [{path: memory, resourceFieldRef: {containerName: app, resource: limits.memory}}]}
          - serviceAccountToken: {path: vault, audience: vault}
          - configMap: {name: missing, optional: true}
      - name: pod
        downwardAPI:
          items:
          - {path: tier, fieldRef: {fieldPath: "metadata.labels['tier']"}}
          - {path: cpu, resourceFieldRef: {containerName: app, resource: requests.cpu, divisor: 1m}}
          - {path: sidecar, resourceFieldRef: {containerName: sidecar, resource: limits.memory, divisor: 1Mi}}
          - {path: team, fieldRef: {fieldPath: "metadata.annotations['team']"}}
      - {name: optional, secret: {secretName: missing, optional: true}}
      - {name: scratch, emptyDir: {}}
---
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: http}]
`

// lookAt are the paths of its volumes, and that of its ServiceAccount.
var lookAt = []string{"/etc/orders", "/etc/large", "/opt/single.conf", "/etc/passwords", "/etc/all", "/etc/pod", "/etc/optional", "/var/run/secrets/kubernetes.io/serviceaccount"}

// ofThePod are what differs from pod to pod, and so is the proxy's.
var ofThePod = []string{"POD", "IP", "HOSTNAME"}

// ofTheLaptop are what stays this machine's.
var ofTheLaptop = []string{"PATH", "HOME", "TMPDIR"}

func everySource() string {
	blob := make([]byte, 1000)
	for i := range blob {
		blob[i] = byte(i)
	}
	// With its name the ConfigMap fills the MiB that the API server allows.
	large := strings.Repeat("0123456789abcde ", 1<<20/16)[:1<<20-len("text")]
	return fmt.Sprintf(everySourceYAML, s.image, restrictedYAML, base64.StdEncoding.EncodeToString(blob), large)
}

func newLikepod(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.apply(everySource())
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=orders", 1)
	w.awaitReady("app=client", 1)
	return w
}

type seen struct{ Env, Files map[string]string }

// original is what a program in the workload's own pod sees.
func (w *world) original() (v seen) {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.execIn(w.t.Context(), w.pods("app=orders")[0].Name, "app", nil, &out, append([]string{"look"}, lookAt...)...); err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		w.t.Fatalf("%v in %q", err, out.String())
	}
	return v
}

// local is what the program sees that runs on the laptop, at a port.
func (w *world) local(port string) (v seen) {
	w.t.Helper()
	r, err := http.Get("http://127.0.0.1:" + port + "/look?" + url.Values{"path": lookAt}.Encode())
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
		w.t.Fatal(err)
	}
	return v
}

// through is the same, asked by way of the cluster.
func (w *world) through() (v seen) {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.exec(w.t.Context(), nil, &out, "get", "--url", "http://orders/look?"+url.Values{"path": lookAt}.Encode()); err != nil {
		w.t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &v); err != nil {
		w.t.Fatalf("%v in %q", err, out.String())
	}
	return v
}

// sameAs compares environments, and files but for those below the paths.
func sameAs(t *testing.T, got, want map[string]string, without ...string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if slices.ContainsFunc(without, func(w string) bool { return name == w || strings.HasPrefix(name, w+"/") }) {
			continue
		}
		if value, ok := got[name]; !ok || value != want[name] {
			t.Errorf("%s is %.100q (%v), in the pod it is %.100q", name, value, ok, want[name])
		}
	}
}

// A program that bridge starts sees what one in the pod does, answers for it, and when it ends all is given back. Its user has no right to
// anything on this machine.
func TestProgramLikeInThePod(t *testing.T) {
	t.Parallel()
	w := newLikepod(t)
	before, want := w.snapshot(), w.original()
	// The port is another's on this machine, and the files are looked for at their paths.
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_, port, _ := net.SplitHostPort(other.Addr().String())
	path, env := forAnybody(t)
	w.state = filepath.Join(filepath.Dir(path), "state")
	b := start(t, "setpriv", append(env, "ON_THE_LAPTOP=1", "TMPDIR="+filepath.Dir(path)), "--reuid", "1", "--regid", "1", "--clear-groups",
		path, "swap", "deployment", "orders", "-n", w.ns, "--port", port+":http", "--",
		"env", "-u", "BRIDGE_ROOT", filepath.Join(filepath.Dir(path), "sample"), "serve", "--name", "laptop", "--http", "127.0.0.1:"+port)
	b.says("in the cluster the container runs the entrypoint of its image, with 'serve' '--name' 'original'")
	b.says("not here: /scratch (an emptyDir of the pod's)")
	b.says("as on this machine, not as in the container: ")
	_, root, _ := strings.Cut(b.says("files of the container below "), "files of the container below ")
	b.says("it has a network of its own")
	b.says("from this machine CMD's port " + port + " is not reached: local address 127.0.0.1:" + port + " is in use")
	b.says(swapped)
	w.answeredBy("laptop")
	got := w.through()
	sameAs(t, got.Env, want.Env, slices.Concat(ofThePod, ofTheLaptop)...)
	sameAs(t, got.Files, want.Files, "/var/run/secrets/kubernetes.io/serviceaccount", "/etc/all/vault")
	for name := range got.Files {
		if _, ok := want.Files[name]; !ok && !strings.HasSuffix(name, "serviceaccount") {
			t.Errorf("%s is not in the pod", name)
		}
		if strings.Contains(name, "token") || strings.Contains(name, "vault") {
			t.Errorf("%s was handed out", name)
		}
	}
	if got.Env["POD"] != w.proxy().Name || got.Env["IP"] != w.proxy().Status.PodIP {
		t.Errorf("the pod is %s, %s", got.Env["POD"], got.Env["IP"])
	}
	if got.Env["ON_THE_LAPTOP"] != "1" || got.Env["PATH"] != os.Getenv("PATH") || got.Env["TMPDIR"] == "/cache" {
		t.Errorf("the laptop's own: %q, %q, %q", got.Env["ON_THE_LAPTOP"], got.Env["PATH"], got.Env["TMPDIR"])
	}
	if _, err := os.Stat("/etc/orders"); !os.IsNotExist(err) {
		t.Errorf("/etc/orders on this machine: %v", err)
	}
	if files := slices.DeleteFunc(w.kept(), func(p string) bool { return !strings.HasSuffix(p, ".json") }); len(files) != 2 {
		t.Errorf("kept: %q", files)
	}

	// What changes in the cluster arrives: as soon as the kubelet has it, which takes it a minute or so.
	settings, _, _ := strings.Cut(everySource(), "\n---\n")
	w.apply(strings.Replace(settings, `app.conf: "level = info\n"`, `app.conf: "level = debug\n"`+"\n  new.conf: new", 1))
	b.says("changed in the cluster: ")
	if text, err := os.ReadFile(filepath.Join(root, "etc/orders/app.conf")); err != nil || string(text) != "level = debug\n" {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := os.ReadFile(filepath.Join(root, "etc/orders/new.conf")); err != nil || string(text) != "new" {
		t.Errorf("%q, %v", text, err)
	}
	if now := w.through(); now.Files["/etc/orders/app.conf"] == got.Files["/etc/orders/app.conf"] || now.Files["/etc/orders/new.conf"] == "" ||
		now.Files["/opt/single.conf"] != got.Files["/opt/single.conf"] {
		t.Errorf("now %q, before %q", now.Files, got.Files)
	}
	for _, p := range w.pods("app=orders") {
		if p.Labels["bridge.internal/proxy"] == "" {
			t.Errorf("%s still runs", p.Name)
		}
	}
	w.apply(settings)

	b.signal(syscall.SIGINT) // the sample dies of it, as most programs do
	b.exits(128 + int(syscall.SIGINT))
	w.assertSnapshot(before)
	w.assertNothingKept()
}

// The program's end is bridge's: its exit code, whatever it is, after everything is given back.
func TestProgramEndsTheSwap(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	http, tcp := freePort(t), freePort(t)
	flags := []string{"swap", "deployment", "orders", "--port", http + ":http", "--port", tcp + ":tcp"}
	serve := fmt.Sprintf("%s serve --name laptop --http 127.0.0.1:%s --tcp 127.0.0.1:%s", s.sample, http, tcp)

	// It ends before it answers.
	b := w.bridge(append(flags, "--", "sh", "-c", "exit 42")...)
	b.says("the program has ended with exit code 42, before it answered on localhost:" + http)
	b.exits(42)
	w.assertSnapshot(before)
	b = w.bridge(append(flags, "--local-timeout", "1s", "--", "sleep", "1000")...)
	b.says("nothing listens on localhost:" + http)
	b.exits(1)
	w.assertSnapshot(before)

	// Nothing is begun for what cannot be started.
	b = w.bridge(append(flags, "--", "no-such-program")...)
	b.says("no-such-program")
	b.exits(2)
	w.assertSnapshot(before)

	// It ends by itself. Standard output is its own.
	b = w.bridge(append(flags, "--", "sh", "-c", "echo out; trap 'kill $!; exit 3' USR1; "+serve+" & echo $$ > "+filepath.Join(w.state, "pid")+"; while :; do sleep 0.1; done")...)
	b.prints("out")
	b.says(swapped)
	w.answeredBy("laptop")
	pid, err := os.ReadFile(filepath.Join(w.state, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-USR1", strings.TrimSpace(string(pid))).Run(); err != nil {
		t.Fatal(err)
	}
	b.exits(3)
	w.assertSnapshot(before)

	// Somebody else gives back: the program serves until that is done, and is ended then.
	b = w.bridge(append(flags, "--", "sh", "-c", "trap 'echo terminated; exit 0' TERM; "+serve+" & while :; do sleep 0.1; done")...)
	b.says(swapped)
	r := w.elsewhere().bridge("restore", "deployment", "orders")
	r.exits(0)
	b.prints("terminated")
	b.exits(6)
	w.assertSnapshot(before)
	w.assertNothingKept()
}

// After SIGKILL the program is gone, and the next command of bridge leaves no file of the container's behind; the same command takes
// the swap up with a new one.
func TestKilledWithAProgram(t *testing.T) {
	t.Parallel()
	w := newLikepod(t)
	before := w.snapshot()
	port := freePort(t)
	args := []string{"swap", "deployment", "orders", "--token", "--network", "host", "--port", port + ":http", "--", s.sample, "serve", "--name", "laptop", "--http", "127.0.0.1:" + port}
	b := w.bridge(args...)
	b.says(swapped)
	got := w.local(port)
	account := "/var/run/secrets/kubernetes.io/serviceaccount"
	root := got.Env["BRIDGE_ROOT"]
	for file, audience := range map[string]string{account + "/token": "", "/etc/all/vault": "vault"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		var claims struct {
			Sub, Iss string
			Aud      []string
			Exp, Iat int64
			Bound    struct{ Pod struct{ Name string } } `json:"kubernetes.io"`
		}
		part := strings.Split(string(text), ".")
		if len(part) != 3 {
			t.Fatalf("%s: %.40q", file, text)
		}
		b, err := base64.RawURLEncoding.DecodeString(part[1])
		if err != nil || json.Unmarshal(b, &claims) != nil {
			t.Fatalf("%v in %q", err, b)
		}
		if claims.Sub != "system:serviceaccount:"+w.ns+":default" || claims.Exp-claims.Iat > 3700 || claims.Bound.Pod.Name != w.proxy().Name ||
			audience != "" && !slices.Equal(claims.Aud, []string{audience}) {
			t.Errorf("%s: %s", file, b)
		}
	}
	if got.Files[account+"/ca.crt"] == "" || got.Files[account+"/namespace"] == "" {
		t.Errorf("beside the token: %v", got.Files)
	}
	err := filepath.WalkDir(filepath.Dir(root), func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	for _, name := range []string{"HTTP_PROXY", "ALL_PROXY", "NO_PROXY"} {
		if got.Env[name] != os.Getenv(name) {
			t.Errorf("%s is %q", name, got.Env[name])
		}
	}

	b.kill()
	if _, err := os.Stat(filepath.Join(root, account, "token")); err != nil {
		t.Fatalf("the test is worth nothing: %v", err)
	}
	w.await("the program's end", func() bool { _, err := http.Get("http://127.0.0.1:" + port); return err != nil })
	w.bridge("status").exits(0)
	if _, err := os.Stat(filepath.Dir(root)); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", root, err)
	}
	b = w.bridge(args...)
	b.says("taking up the swap")
	b.says(swapped)
	w.answeredBy("laptop")
	if again := w.local(port); again.Env["BRIDGE_ROOT"] == root || again.Env["GREETING"] != got.Env["GREETING"] {
		t.Errorf("%q, %q", again.Env["BRIDGE_ROOT"], again.Env["GREETING"])
	}
	b.signal(syscall.SIGTERM)
	b.exits(0) // the sample's own answer to SIGTERM
	w.assertSnapshot(before)
	w.assertNothingKept()
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// withSidecarYAML is a workload with a native sidecar and another container, which answer on the pod's loopback alone, and with a port below 1024, at
// which nobody answers: its own user may not.
const withSidecarYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  replicas: 1
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      initContainers:
      - name: sidecar
        restartPolicy: Always
        image: %[1]s
        args: [serve, --name, sidecar, --http, "127.0.0.1:9090"]%[2]s
      containers:
      - name: app
        image: %[1]s
        args: [serve, --name, original]
        ports: [{name: http, containerPort: 8080}, {name: low, containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 10}%[2]s
      - name: secret
        image: %[1]s
        args: [serve, --name, secret, --http, "127.0.0.1:9091"]%[2]s
---
apiVersion: v1
kind: Service
metadata: {name: orders}
spec:
  selector: {app: orders}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: low}
spec:
  selector: {app: orders}
  ports: [{name: low, port: 80, targetPort: low}]
`

// A program's network is the pod's: the cluster's names and addresses, the ports of the pod's other containers that are asked for, and of
// this machine's. Its port below 1024 is the pod's too. When bridge is killed it is gone, and the next bridge takes the swap up with a new one.
func TestProgramHasThePodsNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(withSidecarYAML, s.image, restrictedYAML))
	w.apply(fmt.Sprintf(clientYAML, s.image))
	w.awaitReady("app=orders", 1)
	w.awaitReady("app=client", 1)
	before := w.snapshot()
	laptop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "on the laptop\n") }))
	defer laptop.Close()
	_, local, _ := strings.Cut(laptop.Listener.Addr().String(), ":")
	script := fmt.Sprintf(`get() { echo "$(curl -sS --max-time 20 "$@" 2>&1)"; }
%[1]s serve --name laptop --http 127.0.0.1:8080 &
%[1]s serve --name "low on the laptop" --http 127.0.0.1:80 &
until curl -s -o /dev/null http://127.0.0.1:8080 && curl -s -o /dev/null http://127.0.0.1:80; do sleep 0.1; done
get http://localhost:9090/
%[1]s get --url http://127.0.0.1:9090/
get http://localhost:9091/
get http://localhost:%[2]s/
get http://host.bridge.internal:%[2]s/
until [ -e "$0" ]; do sleep 0.1; done
get http://orders
get http://low
%[1]s get --url http://orders.%[3]s
echo pid $$
wait`, s.sample, local, w.ns)
	goOn := filepath.Join(t.TempDir(), "go-on")
	swap := []string{"swap", "deployment", "orders", "--local-port", local, "--to-pod"}
	program := []string{"--", "sh", "-c", script, goOn}
	b := w.bridge(slices.Concat(swap, []string{"9092", "--to-pod", "9090"}, program)...)
	b.says(swapped)
	w.answeredBy("laptop")
	touch(t, goOn)
	pid := strings.TrimPrefix(b.prints("pid "), "pid ")
	got := b.stdout.all()
	want := []string{"sidecar", "sidecar", "curl: ", "on the laptop", "on the laptop", "laptop", "low on the laptop", "laptop"}
	for i, line := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], line) {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	network := namespaceOf(pid)
	if network == "" || network == namespaceOf("self") {
		t.Fatalf("it is in %q", network)
	}
	if r, err := http.Get("http://127.0.0.1:80/"); err != nil {
		t.Errorf("from this machine: %v", err)
	} else if text, _ := io.ReadAll(r.Body); !strings.HasPrefix(string(text), "low on the laptop") {
		t.Errorf("from this machine: %q", text)
	}
	b.kill()
	w.await("the program's end", func() bool { return inNamespace(network) == 0 })

	b = w.bridge("swap", "deployment", "orders", "--to-pod", "9091", "--", "true")
	b.says("with another --to-pod: 9092, 9090 and not 9091")
	b.exits(6)
	b = w.bridge(slices.Concat(swap, []string{"9090", "--to-pod", "9092,9090"}, program)...) // the same ones
	b.says("taking up the swap")
	b.says(swapped)
	w.answeredBy("laptop")
	b.signal(syscall.SIGTERM)
	b.exits(143)
	w.assertSnapshot(before)
	w.assertNothingKept()

	// In another container's place it has that one's port, which no container declares, and the first one answers beside the proxy.
	w.apply("apiVersion: v1\nkind: Service\nmetadata: {name: undeclared}\nspec: {selector: {app: orders}, ports: [{port: 80, targetPort: 9091}]}")
	before = w.snapshot()
	script = fmt.Sprintf(`get() { echo "$(curl -sS --max-time 20 "$@" 2>&1)"; }
%[1]s serve --name laptop --http 127.0.0.1:8091 &
until curl -s -o /dev/null http://127.0.0.1:8091; do sleep 0.1; done
get http://localhost:8080/
get http://localhost:9090/
get http://localhost:9091/
echo those
wait`, s.sample)
	b = w.bridge("swap", "deployment", "orders", "--container", "secret", "--port", "8091:9091", "--to-pod", "8080,9090", "--", "sh", "-c", script)
	b.says(swapped)
	b.prints("those")
	got = b.stdout.all()
	for i, line := range []string{original, "sidecar", "curl: "} {
		if i >= len(got) || !strings.HasPrefix(got[i], line) {
			t.Errorf("beside the proxy of container secret: %q", got)
		}
	}
	w.answersAt("http://undeclared", "laptop")
	w.answersAt("http://orders", original)
	if pods := w.pods("app=orders"); len(pods) != 1 || pods[0].Labels["bridge.internal/proxy"] == "" {
		t.Errorf("%d pods, not the proxy's alone", len(pods))
	}
	b.signal(syscall.SIGTERM)
	b.exits(143)
	w.assertSnapshot(before)

	for _, mode := range [][]string{{"--mode", "standby"}, {"--header", "x-user=ada"}} {
		w.bridge(append(append([]string{"swap", "deployment", "orders"}, mode...), "--to-pod", "9090", "--", "true")...).exits(2)
	}
	w.bridge("swap", "deployment", "orders", "--to-pod", "80", "--", "true").exits(2)
	w.bridge("swap", "deployment", "orders", "--local-port", "80", "--", "true").exits(2)
	b = w.bridge("swap", "deployment", "orders", "--port", "53:http", "--", "true")
	b.says("port 53 of CMD's own network is bridge's DNS server")
	b.exits(2)
	w.assertSnapshot(before)
}

// What CMD starts outside of its network, as docker run -p does, finds its port free, and bridge says that CMD itself does not answer.
func TestProgramThatServesElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	http, tcp := freePort(t), freePort(t)
	flags := []string{"swap", "deployment", "orders", "--port", http + ":http", "--port", tcp + ":tcp"}
	serve := []string{s.sample, "serve", "--name", "laptop", "--http", "127.0.0.1:" + http, "--tcp", "127.0.0.1:" + tcp}
	b := w.bridge(slices.Concat(flags, []string{"--", "sh", "-c", `exec nsenter --net=/proc/$PPID/ns/net "$@"`, "sh"}, serve)...)
	b.says("something outside of CMD's network has localhost:" + http)
	b.says("use --network host")
	b.signal(syscall.SIGINT)
	b.exits(130)
	w.assertSnapshot(before)

	// With this machine's network it is what callers reach.
	b = w.bridge(slices.Concat(flags, []string{"--network", "host", "--"}, serve)...)
	b.says(swapped)
	w.answeredBy("laptop")
	b.signal(syscall.SIGTERM)
	b.exits(0)
	w.assertSnapshot(before)
}

// Where the kernel forbids namespaces a program has the environment, the files in a folder, and a proxy; what takes a namespace is refused
// before anything is changed.
func TestProgramWithoutNamespaces(t *testing.T) {
	t.Parallel()
	w := newLikepod(t)
	before, want := w.snapshot(), w.original()
	port := freePort(t)
	bridge := func(flag ...string) *process {
		script := `echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; exec "$@"`
		args := slices.Concat([]string{"--user", "--map-root-user", "sh", "-c", script, "sh", s.bridge, "swap", "deployment", "orders", "-n", w.ns, "--port", port + ":http"},
			flag, []string{"--", s.sample, "serve", "--name", "laptop", "--http", "127.0.0.1:" + port})
		return start(t, "unshare", []string{"KUBECONFIG=" + s.kubeconfig, "GORACE=halt_on_error=1", "XDG_STATE_HOME=" + w.state}, args...)
	}
	b := bridge("--to-pod", "9090")
	b.says("--to-pod 9090 takes a network of CMD's own")
	b.says("sysctl -w user.max_user_namespaces=1000")
	b.exits(1)
	w.assertSnapshot(before)

	b = bridge()
	b.says("not in a network of its own, but with proxy variables, which not every program heeds")
	b.says("what would allow it: sysctl -w user.max_user_namespaces=1000")
	b.says(swapped)
	w.answeredBy("laptop")
	got := w.local(port)
	sameAs(t, got.Env, want.Env, slices.Concat(ofThePod, ofTheLaptop)...)
	sameAs(t, got.Files, want.Files, "/var/run/secrets/kubernetes.io/serviceaccount", "/etc/all/vault")
	proxy, err := url.Parse(got.Env["HTTP_PROXY"])
	if err != nil {
		t.Fatal(err)
	}
	through := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	r, err := through.Get("http://orders." + w.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if text, _ := io.ReadAll(r.Body); !strings.HasPrefix(string(text), "laptop") {
		t.Errorf("the cluster by way of the proxy: %q", text)
	}
	b.signal(syscall.SIGTERM)
	b.exits(0)
	w.assertSnapshot(before)
	w.assertNothingKept()
}

// Two proxies, one of which is deleted: the program's ports and the cluster's names are still there.
func TestProgramBehindTwoProxies(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	before := w.snapshot()
	script := fmt.Sprintf(`%s serve --name laptop --http 127.0.0.1:8080 --tcp 127.0.0.1:7000 &
for i in 1 2; do
	until [ -e "$0/$i" ]; do sleep 0.1; done
	echo "$i $(curl -sS --max-time 20 http://orders 2>&1)"
done; wait`, s.sample)
	dir := t.TempDir()
	b := w.bridge("swap", "deployment", "orders", "--mode", "standby", "--", "sh", "-c", script, dir)
	b.says(swapped)
	w.answeredBy("laptop")
	touch(t, filepath.Join(dir, "1"))
	b.prints("1 laptop")
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), w.pods("bridge.internal/proxy")[0].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.answeredBy("laptop")
	touch(t, filepath.Join(dir, "2"))
	b.prints("2 laptop")
	b.signal(syscall.SIGTERM)
	b.exits(143)
	w.assertSnapshot(before)
}

// env and files give the same, and leave the workload and its Services alone.
func TestEnvAndFiles(t *testing.T) {
	t.Parallel()
	w := newLikepod(t)
	before, want := w.snapshot(), w.original()
	watching := w.endpointsOf("orders")

	b := w.bridge("env", "deployment", "orders", "--format", "json")
	b.exits(0)
	var env map[string]string
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &env); err != nil {
		t.Fatal(err)
	}
	sameAs(t, env, want.Env, slices.Concat(ofThePod, ofTheLaptop)...)
	for _, name := range ofTheLaptop {
		if _, ok := env[name]; ok {
			t.Errorf("%s was printed", name)
		}
	}
	b = w.bridge("env", "deployment", "orders", "--container", "sidecar", "--format", "json")
	b.exits(0)
	var other map[string]string
	if err := json.Unmarshal([]byte(strings.Join(b.stdout.all(), "\n")), &other); err != nil {
		t.Fatal(err)
	}
	if other["OF"] != "sidecar" || other["LITERAL"] != "" || env["OF"] != "" {
		t.Errorf("of the other container: %q; of the first: OF=%q", other, env["OF"])
	}
	dir := filepath.Join(t.TempDir(), "pod")
	b = w.bridge("files", "deployment/orders", dir)
	b.exits(0)
	out, err := func() ([]byte, error) {
		cmd := exec.Command(s.sample, append([]string{"look"}, lookAt...)...)
		cmd.Env = []string{"BRIDGE_ROOT=" + dir}
		return cmd.Output()
	}()
	if err != nil {
		t.Fatal(err)
	}
	var got seen
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	sameAs(t, got.Files, want.Files, "/var/run/secrets/kubernetes.io/serviceaccount", "/etc/all/vault")
	if _, err := os.Stat(filepath.Join(dir, "var")); !os.IsNotExist(err) {
		t.Errorf("of the ServiceAccount something was handed out: %v", err)
	}
	b = w.bridge("files", "deployment", "orders", dir)
	b.says("is not empty")
	b.exits(2)

	// A shell has it, to the byte, by way of eval.
	sh := exec.Command("sh", "-c", `eval "$(`+s.bridge+` env deployment orders -n `+w.ns+` --format shell)"; printf %s "$GREETING"`)
	sh.Env = append(os.Environ(), "KUBECONFIG="+s.kubeconfig, "XDG_STATE_HOME="+w.state)
	if text, err := sh.Output(); err != nil || string(text) != want.Env["GREETING"] {
		t.Errorf("%q, %v", text, err)
	}
	w.assertSnapshot(before)

	// Killed on the way: it is listed, and can be removed.
	b = w.bridge("env", "deployment", "orders")
	b.says("tunnel: ready")
	b.kill()
	w.await("the status", func() bool {
		return strings.Contains(strings.Join(w.bridgeStatus(), "\n"), "env/bridge-env-")
	})
	leases, err := s.client.CoordinationV1().Leases(w.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(leases.Items) != 1 {
		t.Fatalf("%d leases, %v", len(leases.Items), err)
	}
	w.bridge("restore", "connect", leases.Items[0].Name).exits(5)
	w.bridge("restore", "env", leases.Items[0].Name).exits(0)
	w.await("the end of its pod", func() bool { return len(w.pods("bridge.internal/proxy")) == 0 })
	w.assertSnapshot(before)
	if now := w.endpointsOf("orders"); now != watching {
		t.Errorf("the Service has %s, had %s", now, watching)
	}
}

// endpointsOf are the addresses of a Service, and when each was made: whoever was one of them for a moment has made the slice's generation grow.
func (w *world) endpointsOf(service string) string {
	w.t.Helper()
	list, err := s.client.DiscoveryV1().EndpointSlices(w.ns).List(w.t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		for _, a := range e.Endpoints {
			out = append(out, fmt.Sprintf("%s %q", e.Name, a.Addresses))
		}
		out = append(out, fmt.Sprintf("generation %d", e.Generation))
	}
	return strings.Join(out, ", ")
}

// A file that the proxy, which is not root, may not read is named.
func TestFilesThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: sealed}
stringData: {key: s3cr3t}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: sealed}
spec:
  replicas: 0
  selector: {matchLabels: {app: sealed}}
  template:
    metadata: {labels: {app: sealed}}
    spec:
      containers:
      - name: app
        image: %s
        volumeMounts:
        - {name: sealed, mountPath: /etc/sealed}
        - {name: open, mountPath: /etc/open}
      volumes:
      - {name: sealed, secret: {secretName: sealed, defaultMode: 0400}}
      - {name: open, secret: {secretName: sealed}}
`, s.image))
	dir := filepath.Join(t.TempDir(), "pod")
	b := w.bridge("files", "deployment", "sealed", dir)
	b.exits(0)
	if line := b.says("(the proxy, which is not root, may not read it)"); !strings.Contains(line, "/etc/sealed/key") {
		t.Errorf("it says %q", line)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "etc", "open", "key")); err != nil || string(text) != "s3cr3t" {
		t.Errorf("beside it: %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc", "sealed", "key")); !os.IsNotExist(err) {
		t.Errorf("in its place: %v", err)
	}
}
