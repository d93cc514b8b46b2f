//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tunResolver is a resolver file that is not to be changed by a byte.
const tunResolver = "# of this laptop\nsearch example.com\nnameserver %s\noptions timeout:1\n\n"

// wholeLaptop is the laptop as bridge connect --tun may change it: its network is all tests', so only one has it at a time, and resolver file and
// state are files of the test's, in folders that are mounted over the machine's own for what it runs: a mount on /etc/resolv.conf itself would follow a link of the
// machine's, and bridge change that.
type wholeLaptop struct {
	*world
	etc      string // the folder that is at /etc
	resolver string // in it
	state    string // the folder that is at /var/lib
	config   string // the kubeconfig
	before   string // in resolver
}

func newWholeLaptop(w *world) *wholeLaptop {
	w.t.Helper()
	if !s.embedded {
		w.t.Skip("takes a laptop of the test's own")
	}
	dir := w.t.TempDir()
	l := &wholeLaptop{
		world: w, etc: filepath.Join(dir, "etc"), resolver: filepath.Join(dir, "etc", "resolv.conf"), state: filepath.Join(dir, "state"), config: filepath.Join(dir, "kubeconfig"),
		before: fmt.Sprintf(tunResolver, "127.0.0.1"),
	}
	config, err := os.ReadFile(s.kubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "/etc", l.etc).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	for _, err := range []error{
		os.Remove(l.resolver), os.Mkdir(l.state, 0o755), os.WriteFile(l.resolver, []byte(l.before), 0o644), os.WriteFile(l.config, config, 0o600),
	} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return l
}

// start runs a program of the laptop's with its files.
func (l *wholeLaptop) start(env []string, args ...string) *process {
	l.t.Helper()
	return l.startWith(nil, env, args...)
}

// startWith is start of a command that prepare changes; nil changes nothing.
func (l *wholeLaptop) startWith(prepare func(*exec.Cmd), env []string, args ...string) *process {
	l.t.Helper()
	script := `mount --make-rprivate / && mount --bind "$1" /etc && mount --bind "$2" /var/lib && mount -t tmpfs none /run && shift 2 && exec "$@"`
	args = append([]string{"--mount", "sh", "-c", script, "sh", l.etc, l.state}, args...)
	return startWith(l.t, prepare, "unshare", append([]string{"KUBECONFIG=" + l.config, "GORACE=halt_on_error=1", "XDG_STATE_HOME=" + l.world.state}, env...), args...)
}

// tun starts a bridge connect --tun.
func (l *wholeLaptop) tun(flags ...string) *process {
	l.t.Helper()
	return l.start(nil, append([]string{s.bridge, "connect", "--tun", "-n", l.ns}, flags...)...)
}

// gets is what a program of the laptop's writes, without the last line's end.
func (l *wholeLaptop) gets(args ...string) string {
	l.t.Helper()
	p := l.start(nil, args...)
	<-p.ended
	return strings.Join(append(p.stdout.all(), p.stderr.all()...), "\n")
}

// assertUntouched holds the laptop against how it was.
func (l *wholeLaptop) assertUntouched() {
	l.t.Helper()
	if b, err := os.ReadFile(l.resolver); err != nil || string(b) != l.before {
		l.t.Errorf("the resolver file is %q, %v", b, err)
	}
	if left, err := os.ReadDir(l.state); err != nil || len(left) > 0 {
		l.t.Errorf("left in /var/lib: %v, %v", left, err)
	}
	if out, err := exec.Command("ip", "link", "show", "tun-bridge").CombinedOutput(); err == nil {
		l.t.Errorf("the device is there: %s", out)
	}
}

const tunReady = "this machine is connected"

// Any program of the laptop's sees the cluster: by names, ClusterIPs and pods' addresses, over TCP and UDP; and the laptop is as before then.
func TestTheWholeMachineSeesTheCluster(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	before := w.snapshot()
	svc, err := s.client.CoreV1().Services(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dns, err := s.client.CoreV1().Services("kube-system").Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod := w.pods("app=orders")[0].Status.PodIP
	b := l.tun("--allow-cidr", "203.0.113.200/32") // as a metadata service's
	b.says("to be routed to the cluster")
	b.says("/etc/resolv.conf names bridge's DNS server")
	b.says(tunReady)
	full := "orders." + w.ns + ".svc.cluster.local"
	for _, c := range []struct {
		want string
		args []string
	}{
		{"original", []string{"curl", "-sS", "--max-time", "20", "http://orders." + w.ns + "/"}},
		{"original", []string{"curl", "-sS", "--max-time", "20", "http://orders/"}},
		{"original", []string{"curl", "-sS", "--max-time", "20", "http://" + full + ":80/"}},
		{"original", []string{"curl", "-sS", "--max-time", "20", "http://" + svc.Spec.ClusterIP + "/"}},
		{"original", []string{"curl", "-sS", "--max-time", "20", "http://" + pod + ":8080/"}},
		{svc.Spec.ClusterIP, []string{"dig", "+short", full}},
		{svc.Spec.ClusterIP, []string{"dig", "+short", "@" + dns.Spec.ClusterIP, full}},
		{svc.Spec.ClusterIP, []string{"dig", "+short", "+tcp", "@" + dns.Spec.ClusterIP, full}},
		{"answered", []string{"sh", "-c", "ping -n -c 1 -W 60 " + pod + " >/dev/null && echo answered"}},
		{"tun-bridge", []string{"sh", "-c", "ip -o route get 203.0.113.200 | sed 's/.* dev \\([^ ]*\\) .*/\\1/'"}},
	} {
		if got := l.gets(c.args...); got != c.want {
			t.Errorf("%q: %q, want %q", c.args, got, c.want)
		}
	}
	// A port of a pod's that nobody has: refused, and not made and then ended.
	if c, err := net.Dial("tcp", net.JoinHostPort(pod, "9")); err == nil {
		_ = c.Close()
		t.Error("a port that nobody has was connected to")
	} else if !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
	for _, what := range [][]string{{"half-close"}, {"reset"}, {"send-reset"}, {"upload", "--bytes", "20000000"}, {"download", "--bytes", "20000000"}, {"many", "--connections", "200"}} {
		l.start(nil, append([]string{s.sample, "check", "--address", "orders:7000", "--what"}, what...)...).exits(0)
	}
	b.terminate()
	l.assertUntouched()
	w.assertSnapshot(before)
}

// Killed, it leaves a resolver file that names nobody who answers: --undo, or the next one, brings back the one before, to the byte.
func TestAKilledTunIsUndone(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	var ours []byte
	kill := func() {
		t.Helper()
		b := l.tun()
		b.says(tunReady)
		b.signal(syscall.SIGKILL) // sh and unshare have become bridge
		<-b.ended
		var err error
		if ours, err = os.ReadFile(l.resolver); err != nil || !strings.Contains(string(ours), "bridge connect --undo") {
			t.Fatalf("%q, %v", ours, err)
		}
	}
	kill()
	undo := l.start(nil, s.bridge, "connect", "--undo")
	undo.says("it was killed")
	undo.exits(0)
	l.assertUntouched()

	kill()
	b := l.tun()
	b.says("it was killed")
	b.says(tunReady)
	if got := l.gets("curl", "-sS", "--max-time", "20", "http://orders/"); got != "original" {
		t.Errorf("%q", got)
	}
	b.terminate()
	l.assertUntouched()

	// What somebody has written since is theirs.
	kill()
	const theirs = "nameserver 192.0.2.77\n"
	if err := os.WriteFile(l.resolver, []byte(theirs), 0o644); err != nil {
		t.Fatal(err)
	}
	undo = l.start(nil, s.bridge, "connect", "--undo")
	undo.says("changed by somebody else")
	undo.exits(0)
	if got, err := os.ReadFile(l.resolver); err != nil || string(got) != theirs {
		t.Errorf("%q, %v", got, err)
	}
	// They bring back what they had found there.
	if err := os.WriteFile(l.resolver, ours, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, says := range []string{"is as it was", "nothing to undo"} {
		undo = l.start(nil, s.bridge, "connect", "--undo")
		undo.says(says)
		undo.exits(0)
		l.assertUntouched()
	}
	w.bridge("restore", "--all", "--held").exits(0)
}

// Somebody else who writes the resolver file meanwhile is noticed, and whoever brings back bridge's; at the end what is there stays theirs.
func TestAResolverFileThatOthersWriteIsSaid(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	before := w.snapshot()
	b := l.tun()
	b.says(tunReady)
	ours, err := os.ReadFile(l.resolver)
	if err != nil {
		t.Fatal(err)
	}
	const theirs = "nameserver 192.0.2.77\n"
	for _, c := range []struct{ text, says string }{
		{theirs, `somebody else has written /etc/resolv.conf, which names ["192.0.2.77"]`}, {string(ours), "/etc/resolv.conf names bridge's DNS server again"},
	} {
		if err := os.WriteFile(l.resolver, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		b.says(c.says)
	}
	if got := l.gets("curl", "-sS", "--max-time", "20", "http://orders/"); got != "original" {
		t.Errorf("%q", got)
	}
	b.terminate()
	l.assertUntouched()
	w.assertSnapshot(before)
}

// That the resolver could not be brought back is said, with the code for it, also when the user has ended it; the pod goes all the same.
func TestARestoreThatFailsIsSaid(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	before := w.snapshot()
	b := l.tun()
	b.says(tunReady)
	ours, err := os.ReadFile(l.resolver)
	if err := errors.Join(err, os.Remove(l.resolver), os.Mkdir(l.resolver, 0o755)); err != nil {
		t.Fatal(err)
	}
	b.signal(syscall.SIGTERM)
	b.says("bring back /etc/resolv.conf")
	b.says("hint: when that is mended: bridge connect --undo")
	b.exits(9)
	w.assertSnapshot(before)
	if err := errors.Join(os.Remove(l.resolver), os.WriteFile(l.resolver, ours, 0o644)); err != nil {
		t.Fatal(err)
	}
	l.start(nil, s.bridge, "connect", "--undo").exits(0)
	l.assertUntouched()
}

// Whoever reads what it says may go: it goes on, and changes everything back at the end.
func TestABrokenPipeIsNoEnd(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	before := w.snapshot()
	code := filepath.Join(t.TempDir(), "code")
	group := func(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
	b := l.startWith(group, nil, "sh", "-c", `code=$1; shift; { "$@"; echo $? >$code; } 2>&1 | head -n 1`, "sh", code, s.bridge, "connect", "--tun", "-n", l.ns)
	t.Cleanup(func() {
		select {
		case <-b.ended:
		default:
			_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL) // bridge too, which is the shell's, and has the laptop's device
		}
	})
	w.await("a resolver file of bridge's", func() bool {
		got, err := os.ReadFile(l.resolver)
		return err == nil && string(got) != l.before
	})
	var journal struct{ PID int }
	text, err := os.ReadFile(filepath.Join(l.state, "bridge", "machine.json"))
	if err == nil {
		err = json.Unmarshal(text, &journal)
	}
	if err != nil || journal.PID <= 0 {
		t.Fatalf("%s, %v", text, err)
	}
	if err := syscall.Kill(journal.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	b.exits(0) // head's
	if got, err := os.ReadFile(code); err != nil || strings.TrimSpace(string(got)) != "143" {
		t.Errorf("it exits with %q, %v", got, err)
	}
	l.assertUntouched()
	w.assertSnapshot(before)
}

// Nothing is changed, here or in the cluster, where it is refused.
func TestTunIsRefused(t *testing.T) {
	w := newWorld(t).withOrders()
	l := newWholeLaptop(w)
	before := w.snapshot()
	api, _, err := net.SplitHostPort(strings.TrimPrefix(s.config.Host, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	wide := netPrefix(t, api)
	for _, c := range []struct {
		says string
		code int
		env  []string
		args []string
	}{
		{"would swallow the API server, " + api, 1, nil, []string{"--cidr", wide}},
		{"would swallow where your SSH session comes from, 10.77.0.9", 1, []string{"SSH_CONNECTION=10.77.0.9 50000 10.77.0.1 22"}, []string{"--cidr", "10.77.0.0/16"}},
		{"far more than a cluster has", 1, nil, []string{"--cidr", "0.0.0.0/0"}},
		{"write it as 10.96.0.0/12", 2, nil, []string{"--cidr", "10.96.0.0"}},
	} {
		b := l.start(c.env, append([]string{s.bridge, "connect", "--tun", "-n", w.ns}, c.args...)...)
		b.says(c.says)
		b.exits(c.code)
		l.assertUntouched()
	}
	// A DNS server in use.
	l.before = fmt.Sprintf(tunResolver, "10.78.0.53")
	if err := os.WriteFile(l.resolver, []byte(l.before), 0o644); err != nil {
		t.Fatal(err)
	}
	b := l.tun("--cidr", "10.78.0.0/16")
	b.says("would swallow a DNS server in use, 10.78.0.53")
	b.exits(1)
	l.assertUntouched()
	// Somebody else than root.
	path, env := forAnybody(t)
	b = start(t, "setpriv", env, "--reuid", "65534", "--regid", "65534", "--clear-groups", path, "connect", "--tun", "-n", w.ns)
	b.says("root's to change")
	b.exits(1)
	// A second one.
	first := l.tun("--cidr", "10.96.0.0/16")
	first.says(tunReady)
	for _, flag := range []string{"--tun", "--undo"} {
		b = l.start(nil, s.bridge, "connect", flag, "-n", w.ns)
		b.says("runs already, as process " + strconv.Itoa(first.cmd.Process.Pid))
		b.exits(6)
	}
	first.terminate()
	l.assertUntouched()
	w.assertSnapshot(before)
}

// netPrefix is a range that has the address and is no network of the laptop's.
func netPrefix(t *testing.T, address string) string {
	t.Helper()
	ip := net.ParseIP(address).To4()
	if ip == nil {
		t.Skip("the API server has no IPv4 address")
	}
	return fmt.Sprintf("%d.%d.0.0/15", ip[0], ip[1]&^1)
}
