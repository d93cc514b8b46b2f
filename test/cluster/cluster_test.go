//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tests run the real program on clusters of their own, never on the default one.
const (
	testName  = "bridge-selftest"
	otherName = "bridge-selftest-2"
)

// program is the built command under test; "" when the tests cannot run here, and why says the reason.
var program, why = "", ""

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			why = "needs root"
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "cluster-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "cluster")
		if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		// Others may read and run it: a test does so as another user.
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		if out, err := exec.Command(program, "build").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("%v: %s", err, out))
		}
		// A test run that was killed leaves clusters.
		for _, name := range []string{testName, otherName} {
			exec.Command(program, "down", "--name", name).Run() //nolint:errcheck // the tests will say
		}
		return m.Run()
	}())
}

// commandTimeout is far more than any command takes when everything is built. TestMain builds.
const commandTimeout = 4 * time.Minute

// runProgram runs the program to its end and returns what it said and its exit code.
func runProgram(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	if program == "" {
		t.Skip(why)
	}
	var o, e bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// must is runProgram for a command that must succeed.
func must(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := runProgram(t, args...)
	if code != 0 {
		t.Fatalf("cluster %s: exit code %d\n%s%s", strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// traces lists everything on this machine that a cluster of ours could have left: processes, mounts,
// namespaces, control groups, links, rules and folders. Lines of other clusters and of other work on the
// machine are left out, so that before and after may be compared.
func traces(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	mine := func(s string) bool { return strings.Contains(s, testName) }
	add := func(kind, s string) { fmt.Fprintf(&b, "%s: %s\n", kind, s) }
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		args, _ := os.ReadFile(p + "/cmdline")  //nolint:errcheck // it may end meanwhile
		groups, _ := os.ReadFile(p + "/cgroup") //nolint:errcheck // as above
		if len(args) == 0 {
			continue // a zombie: dead, and its parent's to bury
		}
		if p != fmt.Sprintf("/proc/%d", os.Getpid()) && (mine(string(args)) || mine(string(groups))) {
			add("process", strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if mine(line) {
			add("mount", line)
		}
	}
	for _, pattern := range []string{
		"/run/netns/*", "/etc/netns/*", stateRoot + "*/*", "/sys/fs/cgroup/*/bridge-cluster/*", "/sys/fs/cgroup/bridge-cluster/*",
		"/run/containerd*", "/run/cni*", "/run/bridge-*", "/var/lib/kubelet*", "/var/lib/containerd*", "/var/lib/cni*", "/var/lib/bridge-cluster-check-*",
		"/var/log/pods*", "/var/log/containers*", "/etc/cni*", "/opt/cni*", "/usr/libexec/kubernetes*", "/run/xtables.lock", "/usr/sbin/policy-rc.d",
	} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			shared := strings.HasPrefix(f, "/run/netns/") || strings.HasPrefix(f, "/etc/netns/") || strings.HasPrefix(f, stateRoot) || strings.Contains(f, "/cgroup/")
			if !shared || mine(f) {
				add("file", f)
			}
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		add("link", l.Name)
	}
	for _, kind := range []string{"iptables-save", "ip6tables-save"} {
		rules, _ := exec.Command(kind).Output() //nolint:errcheck // no IPv6, no rules
		for line := range strings.Lines(string(rules)) {
			if strings.HasPrefix(line, "-A") {
				add(kind, line)
			}
		}
	}
	return b.String()
}

// reachable says whether address answers within a second to somebody in a network namespace.
func reachable(ns, address string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := dialIn(ctx, nsFile(ns), "tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func TestCluster(t *testing.T) {
	before := traces(t)
	use := must(t, "up", "--name", testName)
	t.Cleanup(func() {
		runProgram(t, "down", "--name", testName)
		runProgram(t, "down", "--name", otherName)
	})
	c, err := running(testName)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("PrintsHowToUseIt", func(t *testing.T) {
		for _, want := range []string{"export KUBECONFIG=" + c.kubeconfig(), "nsenter --net=/run/netns/" + testName + "-laptop"} {
			if !strings.Contains(use, want) {
				t.Errorf("%q is not in:\n%s", want, use)
			}
		}
		info, err := os.Stat(c.kubeconfig())
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("kubeconfig: mode %v, error %v; others could use it", info.Mode(), err)
		}
	})

	t.Run("SecondUpIsNoOp", func(t *testing.T) {
		if again := must(t, "up", "--name", testName); again != use {
			t.Errorf("printed another thing:\n%s", again)
		}
		now, err := running(testName)
		if err != nil || !slices.Equal(now.Processes, c.Processes) {
			t.Errorf("the processes changed: %v, %v to %v", err, c.Processes, now.Processes)
		}
	})

	t.Run("LaptopReachesOnlyTheAPIServer", func(t *testing.T) {
		if got := must(t, "kubectl", "--name", testName, "get", "--raw", "/readyz"); got != "ok" {
			t.Errorf("/readyz: %q", got)
		}
		dns := strings.TrimSpace(must(t, "kubectl", "--name", testName, "-n", "kube-system", "get", "pod", "-l", "k8s-app=kube-dns",
			"-o", "jsonpath={.items[0].status.podIP}"))
		must(t, "kubectl", "--name", testName, "-n", "kube-system", "patch", "service", "kube-dns", "--type=merge",
			"-p", `{"spec":{"type":"NodePort","ports":[{"name":"dns-tcp","port":53,"protocol":"TCP","nodePort":30053}]}}`)
		bridge := strings.TrimSuffix(c.podRange(1), "0/24") + "1"
		for what, address := range map[string]string{
			"a pod":                             dns + ":53",
			"a Service":                         c.serviceAddress(10) + ":53",
			"the Service kubernetes":            c.serviceAddress(1) + ":443",
			"a NodePort":                        c.apiAddress() + ":30053",
			"the kubelet":                       c.apiAddress() + ":10250",
			"the API server by another address": fmt.Sprintf("%s:%d", bridge, apiPort),
		} {
			// It must answer somewhere, else this proves nothing.
			answers := func() error {
				if !reachable(c.nodeNS(1), address) {
					return fmt.Errorf("%s does not answer in the node", address)
				}
				return nil
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			if err := c.until(ctx, what, answers); err != nil {
				t.Error(err)
			}
			cancel()
			if reachable(c.laptopNS(), address) {
				t.Errorf("%s, %s, answers in the laptop", what, address)
			}
		}
		if address := fmt.Sprintf("%s:%d", c.apiAddress(), apiPort); !reachable(c.laptopNS(), address) {
			t.Errorf("the API server, %s, does not answer in the laptop", address)
		}
		// Nor does the cluster reach the laptop: it is behind somebody's router.
		if err := command("nsenter", inNetNS(c.nodeNS(1), "ping", "-c1", "-W1", "-I", bridge, c.laptopAddress())...); err == nil {
			t.Logf("the node itself reaches the laptop, as a router does")
		}
	})

	t.Run("KubectlPassesItsExitCode", func(t *testing.T) {
		_, stderr, code := runProgram(t, "kubectl", "--name", testName, "get", "pod", "no-such-pod")
		if code != 1 || !strings.Contains(stderr, "NotFound") {
			t.Errorf("exit code %d, %q; want 1 and NotFound", code, stderr)
		}
	})

	t.Run("PodsRunLoadedImages", func(t *testing.T) {
		archive := filepath.Join(t.TempDir(), "sample.tar")
		if err := writeImage(archive, "example.test/sample:1", "pause", c.Programs.Pause); err != nil {
			t.Fatal(err)
		}
		must(t, "load", "--name", testName, archive)
		// A restricted pod, with the one sysctl that lets it bind low ports as nobody.
		manifest := filepath.Join(t.TempDir(), "pod.yaml")
		if err := os.WriteFile(manifest, []byte(samplePod), 0o644); err != nil {
			t.Fatal(err)
		}
		must(t, "kubectl", "--name", testName, "label", "namespace", "default", "pod-security.kubernetes.io/enforce=restricted")
		must(t, "kubectl", "--name", testName, "apply", "-f", manifest)
		must(t, "kubectl", "--name", testName, "wait", "--for=condition=Ready", "pod/sample", "--timeout=60s")
	})

	t.Run("RestartedComponentsGoOn", func(t *testing.T) {
		for _, component := range []string{"kube-apiserver", "kubelet-node1", "containerd-node1"} {
			must(t, "restart", "--name", testName, component)
		}
		before := c.Processes
		if c, err = running(testName); err != nil {
			t.Fatal(err)
		}
		again := 0
		for _, p := range c.Processes {
			if !slices.Contains(before, p) {
				again++
			}
		}
		if again != 3 || len(c.Processes) != len(before) {
			t.Errorf("the processes were %v, and are %v; want three new ones", before, c.Processes)
		}
		// exec goes through all three; the container is the one from before.
		_, stderr, _ := runProgram(t, "kubectl", "--name", testName, "exec", "sample", "--", "/no-such-program")
		if !strings.Contains(stderr, "no such file") {
			t.Errorf("exec came back with %q", stderr)
		}
		if got := must(t, "kubectl", "--name", testName, "get", "pod", "sample", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
			t.Errorf("the container was started again %s times", got)
		}
		if _, stderr, code := runProgram(t, "restart", "--name", testName, "kubelet"); code != 2 || !strings.Contains(stderr, "status") {
			t.Errorf("a wrong name: exit code %d, %q", code, stderr)
		}
	})

	t.Run("NetemSlowsBothDirections", func(t *testing.T) {
		quick := roundTrip(t, c)
		must(t, "netem", "--name", testName, "delay=40ms")
		if slow := roundTrip(t, c); slow < 80*time.Millisecond {
			t.Errorf("a round trip takes %v with a delay of 40 ms, %v without; want 80 ms more", slow, quick)
		}
		if _, _, code := runProgram(t, "netem", "--name", testName, "delay=soon"); code != 2 {
			t.Errorf("a wrong delay: exit code %d, want 2", code)
		}
		must(t, "netem", "--name", testName, "loss=100%")
		if reachable(c.laptopNS(), fmt.Sprintf("%s:%d", c.apiAddress(), apiPort)) {
			t.Error("the API server answers while every packet is lost")
		}
		must(t, "netem", "--name", testName, "off")
		must(t, "netem", "--name", testName, "off")
		if fast := roundTrip(t, c); fast > 40*time.Millisecond {
			t.Errorf("a round trip takes %v after netem off, %v before", fast, quick)
		}
	})

	t.Run("SecondNodeJoins", func(t *testing.T) {
		must(t, "up", "--name", testName, "--nodes", "2")
		if c, err = running(testName); err != nil {
			t.Fatal(err)
		}
		must(t, "kubectl", "--name", testName, "run", "there", "--image=example.test/sample:1", "--image-pull-policy=Never",
			"-n", "kube-system", "--overrides", `{"spec":{"nodeName":"node2"}}`)
		must(t, "load", "--name", testName, sampleArchive(t, c))
		must(t, "kubectl", "--name", testName, "-n", "kube-system", "wait", "--for=condition=Ready", "pod/there", "--timeout=60s")
		ip := strings.TrimSpace(must(t, "kubectl", "--name", testName, "-n", "kube-system", "get", "pod", "there", "-o", "jsonpath={.status.podIP}"))
		if !strings.HasPrefix(ip, strings.TrimSuffix(c.podRange(2), "0/24")) {
			t.Errorf("pod address %s is not in node2's range %s", ip, c.podRange(2))
		}
		if err := command("nsenter", inNetNS(c.nodeNS(1), "ping", "-c1", "-W2", ip)...); err != nil {
			t.Errorf("node1 does not reach a pod on node2: %v", err)
		}
		if address := c.serviceAddress(10) + ":53"; !reachable(c.nodeNS(2), address) {
			t.Errorf("node2 does not reach the DNS Service on node1")
		}
		// exec goes through the API server, the second node's kubelet and its containerd.
		_, stderr, _ := runProgram(t, "kubectl", "--name", testName, "-n", "kube-system", "exec", "there", "--", "/no-such-program")
		if !strings.Contains(stderr, "no such file") {
			t.Errorf("exec on node2 came back with %q", stderr)
		}
	})

	t.Run("TwoNamesLiveSideBySide", func(t *testing.T) {
		must(t, "up", "--name", otherName)
		other, err := running(otherName)
		if err != nil {
			t.Fatal(err)
		}
		if other.Index == c.Index {
			t.Errorf("both have address range %d", c.Index)
		}
		must(t, "down", "--name", otherName)
		if _, err := running(testName); err != nil {
			t.Errorf("down of another cluster: %v", err)
		}
		if got := must(t, "kubectl", "--name", testName, "get", "--raw", "/readyz"); got != "ok" {
			t.Errorf("/readyz after down of another cluster: %q", got)
		}
	})

	t.Run("LostProcessIsSeenAndMended", func(t *testing.T) {
		for _, p := range c.Processes {
			if p.Name == "kube-scheduler" {
				syscall.Kill(p.PID, syscall.SIGKILL) //nolint:errcheck // the loop shows it
				for p.alive() {
					time.Sleep(time.Millisecond)
				}
			}
		}
		if _, stderr, code := runProgram(t, "status", "--name", testName); code != 1 || !strings.Contains(stderr, "not whole") {
			t.Errorf("status: exit code %d, %q", code, stderr)
		}
		must(t, "up", "--name", testName)
		if got := must(t, "kubectl", "--name", testName, "get", "--raw", "/readyz"); got != "ok" {
			t.Errorf("/readyz: %q", got)
		}
	})

	must(t, "down", "--name", testName)
	if after := traces(t); after != before {
		t.Errorf("down left something.\nbefore:\n%s\nafter:\n%s", before, after)
	}
	must(t, "down", "--name", testName) // nothing to do is no error
}

const samplePod = `
apiVersion: v1
kind: Pod
metadata: {name: sample, namespace: default}
spec:
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    seccompProfile: {type: RuntimeDefault}
    sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "0"}]
  containers:
  - name: sample
    image: example.test/sample:1
    imagePullPolicy: Never
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`

func sampleArchive(t *testing.T, c *cluster) string {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "sample.tar")
	if err := writeImage(archive, "example.test/sample:1", "pause", c.Programs.Pause); err != nil {
		t.Fatal(err)
	}
	return archive
}

// roundTrip is the shortest of five, from the laptop to node1 and back.
func roundTrip(t *testing.T, c *cluster) time.Duration {
	t.Helper()
	out, err := exec.Command("nsenter", inNetNS(c.laptopNS(), "ping", "-U", "-c5", "-i0.2", c.apiAddress())...).Output()
	if err != nil {
		t.Fatalf("ping: %v\n%s", err, out)
	}
	m := regexp.MustCompile(`= ([0-9.]+)/`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("ping said:\n%s", out)
	}
	ms, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ms * float64(time.Millisecond))
}

// TestKilledUp kills up with SIGKILL at several points; down, or another up, must cope with each.
func TestKilledUp(t *testing.T) {
	if program == "" {
		t.Skip(why)
	}
	before := traces(t)
	t.Cleanup(func() { runProgram(t, "down", "--name", testName) })
	for _, point := range []string{"", "etcd", "containerd-node1", "kubelet-node1"} {
		killUpAt(t, point)
		must(t, "down", "--name", testName)
		if after := traces(t); after != before {
			t.Errorf("down left something of an up killed after %q.\nbefore:\n%s\nafter:\n%s", point, before, after)
		}
	}
	killUpAt(t, "kubelet-node1")
	if _, stderr, code := runProgram(t, "kubectl", "--name", testName, "get", "nodes"); code != 1 || !strings.Contains(stderr, "not whole") {
		t.Errorf("kubectl on half a cluster: exit code %d, %q", code, stderr)
	}
	must(t, "up", "--name", testName)
	must(t, "down", "--name", testName)
	if after := traces(t); after != before {
		t.Errorf("down left something.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// killUpAt starts up and kills it once it has recorded a process of that name; with no name, once it has
// recorded itself.
func killUpAt(t *testing.T, point string) {
	t.Helper()
	cmd := exec.Command(program, "up", "--name", testName)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // it was killed
	defer cmd.Process.Kill()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		c, err := load(testName)
		if err == nil && (point == "" || slices.ContainsFunc(c.Processes, func(p process) bool { return p.Name == point })) {
			return
		}
	}
	t.Errorf("up never came to %q", point)
}

// TestInterruptedUpUndoesItself: Ctrl-C is not SIGKILL.
func TestInterruptedUpUndoesItself(t *testing.T) {
	if program == "" {
		t.Skip(why)
	}
	before := traces(t)
	cmd := exec.Command(program, "up", "--name", testName)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		if c, err := load(testName); err == nil && len(c.Processes) > 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cmd.Process.Signal(os.Interrupt) //nolint:errcheck // Wait says
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted up says it succeeded")
	}
	if after := traces(t); after != before {
		t.Errorf("an interrupted up left something.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestUpRefusesAndLeavesNothing(t *testing.T) {
	before := traces(t)
	for _, test := range []struct {
		what, want string
		prepare    func()
		args       []string
		uid        uint32
		env        string
		code       int
	}{
		{what: "not root", want: "needs root", args: []string{"up", "--name", testName}, uid: 65534, code: 1},
		{what: "a namespace of somebody else's", want: "not recorded", args: []string{"up", "--name", otherName}, code: 1},
		{what: "a wrong name", want: "--name", args: []string{"up", "--name", "No_Name"}, code: 2},
		{what: "a wrong version", want: "1.35.4", args: []string{"up", "--kubernetes", "1.2.3"}, code: 2},
		{what: "three nodes", want: "--nodes", args: []string{"up", "--nodes", "3"}, code: 2},
		{what: "an argument", want: "no argument", args: []string{"up", "now"}, code: 2},
		{what: "an unknown command", want: "Usage", args: []string{"upp"}, code: 2},
		{what: "kubectl without a cluster", want: "up --name " + testName, args: []string{"kubectl", "--name", testName, "get", "pods"}, code: 1},
		{what: "load without a cluster", want: "up --name " + testName, args: []string{"load", "--name", testName, "x.tar"}, code: 1},
	} {
		t.Run(test.what, func(t *testing.T) {
			if program == "" {
				t.Skip(why)
			}
			if test.what == "a namespace of somebody else's" {
				ns := otherName + "-laptop"
				if err := command("ip", "netns", "add", ns); err != nil {
					t.Fatal(err)
				}
				defer command("ip", "netns", "delete", ns) //nolint:errcheck // traces says
			}
			cmd := exec.Command(program, test.args...)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}
			out, _ := cmd.CombinedOutput() //nolint:errcheck // the exit code says it
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(string(out), test.want) {
				t.Errorf("exit code %d, want %d; want %q in:\n%s", code, test.code, test.want, out)
			}
		})
	}
	if after := traces(t); after != before {
		t.Errorf("something was left.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

// TestStopSparesRecycledIDs: a recorded id that now is another process's must not be killed.
func TestStopSparesRecycledIDs(t *testing.T) {
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleeper.Wait() //nolint:errcheck // it is killed
	defer sleeper.Process.Kill()
	c := &cluster{Name: testName, Processes: []process{{Name: "etcd", PID: sleeper.Process.Pid, Born: "1"}}}
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	if born(sleeper.Process.Pid) == "" {
		t.Error("stop killed a process that only has a recorded process's id")
	}
}

// TestMessagesNameTheFeature: what the kernel lacks is said in the words of its configuration.
func TestMessagesNameTheFeature(t *testing.T) {
	if program == "" {
		t.Skip(why)
	}
	saved := kernelTrials
	t.Cleanup(func() { kernelTrials = saved })
	kernelTrials = []kernelTrial{{"flying (CONFIG_WINGS)", "echo no wings >&2; exit 1"}}
	err := checkKernel(false)
	if err == nil || !strings.Contains(err.Error(), "flying (CONFIG_WINGS)") || !strings.Contains(err.Error(), "no wings") {
		t.Errorf("said: %v", err)
	}
	if left, _ := filepath.Glob("/var/lib/bridge-cluster-check-*"); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestParseImpairment(t *testing.T) {
	got, err := parseImpairment([]string{"delay=20ms", "jitter=5ms", "loss=1%", "rate=1gbit"})
	want := impairment{delay: 20 * time.Millisecond, jitter: 5 * time.Millisecond, loss: 0.01, rate: 1e9}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, wrong := range []string{"", "delay", "delay=-1ms", "loss=101%", "loss=x", "rate=1", "rate=0mbit", "speed=1"} {
		if _, err := parseImpairment([]string{wrong}); err == nil {
			t.Errorf("%q was accepted", wrong)
		}
	}
}

// TestStateFileIsWholeOrAbsent: down reads what a killed up was just writing.
func TestStateFileIsWholeOrAbsent(t *testing.T) {
	c := &cluster{Name: "x", Index: 3, Processes: []process{{"etcd", 7, "9"}}}
	content, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	got := &cluster{}
	if err := json.Unmarshal(content, got); err != nil || got.Index != 3 || !slices.Equal(got.Processes, c.Processes) {
		t.Errorf("%s came back as %+v, %v", content, got, err)
	}
	if _, err := load("never-there"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load of no cluster: %v", err)
	}
}
