//go:build linux

package connect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/child"
	"bridge/internal/hint"
	"bridge/internal/netns"
	"bridge/internal/ping"
	"bridge/internal/servertest"
	"bridge/pkg/tunnel"
)

// program is one that gets urls, and what it and bridge say.
func program(urls string) (p *Program, out *bytes.Buffer, said *[]string) {
	out, said = new(bytes.Buffer), new([]string)
	return &Program{
		Args: []string{os.Args[0]}, Env: append(os.Environ(), getEnv+"="+urls), Stdout: out, Stderr: out,
		OnSignal: func(func(os.Signal)) {}, Say: func(line string) { *said = append(*said, line) },
		Entrance: Options{Listen: "127.0.0.1:0", DNSListen: "127.0.0.1:0", System: func() ([]string, error) { return nil, errors.New("none") }},
	}, out, said
}

// withAddresses is cluster, that also knows the address of orders, as every name has it, and one that no name has.
func withAddresses(t *testing.T) (tunnel.Info, func(context.Context, string, string) (net.Conn, error)) {
	info, dial := cluster(t)
	return info, func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "10.96.0.7:80" || address == "198.51.100.3:80" {
			address = "orders.shop:80"
		}
		return dial(ctx, network, address)
	}
}

// echo sends back what it gets by UDP, with name before it, until the test ends.
func echo(t *testing.T, name string) (address string) {
	return servertest.UDP(t, "127.0.0.1", func(b []byte, _ net.Addr) []byte { return append([]byte(name+" "), b...) })
}

// By UDP and by ping, over both versions: to the cluster, to this machine, and to what the pod or this machine does not reach.
func TestDatagramsOfAProgram(t *testing.T) {
	pings := true
	if c, err := ping.Dial(t.Context(), "127.0.0.1:0"); errors.Is(err, syscall.EACCES) {
		t.Log("without ping: this machine lets its users send no echo requests")
		pings = false
	} else if err == nil {
		_ = c.Close()
	}
	far, near := echo(t, "cluster"), echo(t, "laptop")
	info, clusterDial := cluster(t)
	pod := startPod(t, info, func(ctx context.Context, network, address string) (net.Conn, error) {
		switch {
		case network == "udp" && (address == "10.96.0.7:123" || address == "[fd77::7]:123"):
			var d net.Dialer
			return d.DialContext(ctx, network, far)
		case network == "icmp" && (address == "10.96.0.7:0" || address == "[fd77::7]:0"):
			return ping.Dial(ctx, "127.0.0.1:0")
		case network == "icmp":
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EACCES}
		}
		return clusterDial(ctx, network, address)
	})
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(near)
	rows := []struct{ url, want string }{
		{"udp://orders:123", "cluster hello"}, {"udp://" + HostName + ":" + port, "laptop hello"}, {"udp://[fd77::7]:123", "cluster hello"},
		{"ping://orders", "pong"}, {"ping://" + HostName, "pong"}, {"ping://fd77::7", "pong"}, {"ping://localhost", "pong"},
		{"ping://fd77::8", "permission denied"}, {"ping://198.51.100.9", "no route to host"}, // prohibited, which to a program of IPv4 is that
	}
	if !pings {
		rows = slices.DeleteFunc(rows, func(r struct{ url, want string }) bool { return strings.HasPrefix(r.url, "ping:") })
	}
	var urls []string
	for _, row := range rows {
		urls = append(urls, row.url)
	}
	for without, way := range map[netns.Feature]string{
		0:                          "",
		netns.NFTables:             "a TUN device takes its place",
		netns.TProxy:               "a TUN device takes its place for all but TCP",
		netns.NFTables | netns.TUN: "a veth pair takes its place",
		netns.TProxy | netns.TUN:   "a veth pair takes its place for all but TCP",
	} {
		if syscall.Access("/dev/net/tun", 6) != nil { // this user may not open it
			way = strings.Replace(way, "a TUN device", "a veth pair", 1)
		}
		p, out, said := program(strings.Join(urls, " "))
		p.lacks = without
		p.Ranges = []netip.Prefix{netip.MustParsePrefix("fd77::/64"), netip.MustParsePrefix("198.51.100.0/24")}
		if err := p.Run(t.Context(), pod.tunnel); exitCode(err) != 7 {
			t.Errorf("%v", err)
		}
		if notes := strings.Join(*said, "\n"); !strings.HasSuffix(notes, way) || way == "" && notes != "" {
			t.Errorf("%q: it said %q", way, notes)
		}
		lines := strings.Split(out.String(), "\n")
		for i, row := range rows {
			if i >= len(lines) || !strings.HasSuffix(lines[i], row.want) {
				t.Errorf("%q: %s: want %q of %q", way, row.url, row.want, lines)
			}
		}
	}
}

// A device that is gone while the program runs ends it, and is said; one that goes with the namespace is no error.
func TestTheDeviceOfAProgramIsLost(t *testing.T) {
	for _, ends := range []bool{false, true} {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		device := os.NewFile(uintptr(fds[0]), "device")
		defer device.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		g := &gate{log: slog.New(slog.DiscardHandler)}
		done := make(chan error, 1)
		go func() { done <- g.packets(ctx, device, nil) }()
		if err := syscall.Close(fds[1]); err != nil {
			t.Fatal(err)
		}
		if ends {
			cancel()
		}
		if err := <-done; (err == nil) != ends {
			t.Errorf("the namespace ends: %v: %v", ends, err)
		}
	}
}

func exitCode(err error) int {
	var exit *child.ExitError
	if !errors.As(err, &exit) {
		return -1
	}
	return exit.Code
}

// A program that is linked statically, and knows no proxy.
func TestAProgramSeesTheClusterAndThisMachine(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	laptop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "this machine") }))
	defer laptop.Close()
	port := laptop.Listener.Addr().(*net.TCPAddr).Port
	for _, without := range []netns.Feature{0, netns.NFTables, netns.NFTables | netns.TUN} {
		device := without != 0
		p, out, said := program(fmt.Sprintf("http://orders/ http://orders.shop.svc.cluster.local/ http://198.51.100.3/ http://%s:%d/ http://127.0.0.1:%d/ http://orders:81/",
			HostName, port, port))
		p.lacks = without
		p.Ranges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		p.LocalPorts = []uint16{uint16(port)}
		err := p.Run(t.Context(), pod.tunnel)
		if exitCode(err) != 7 || len(*said) > 0 && !device {
			t.Errorf("%v, %q", err, *said)
		}
		lines := strings.Split(out.String(), "\n")
		want := []string{"orders <nil>", "orders.shop.svc.cluster.local <nil>", "198.51.100.3 <nil>", "this machine <nil>", "this machine <nil>"}
		for i, line := range want {
			if i >= len(lines) || lines[i] != line {
				t.Fatalf("by a device: %v: %q, want %q", device, lines, want)
			}
		}
		refused := lines[len(want)]
		if device && !strings.Contains(refused, "connection refused") || !device && !strings.Contains(refused, "connection reset by peer") && !strings.Contains(refused, "EOF") {
			t.Errorf("by a device: %v: what refuses: %q", device, refused)
		}
	}
}

// The pod's own ports are asked of the pod, by its loopback; whoever has them on this machine is not met.
func TestPortsOfThePod(t *testing.T) {
	info, clusterDial := cluster(t)
	pod := startPod(t, info, func(ctx context.Context, network, address string) (net.Conn, error) {
		if address == "127.0.0.1:9090" {
			address = "orders.shop:80"
		}
		return clusterDial(ctx, network, address)
	})
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, out, _ := program("http://127.0.0.1:9090/ http://127.0.0.1:9091/")
	p.PodPorts = []uint16{9090}
	inside := false
	p.Started = func(_ Dial, in, _ bool) { inside = in }
	err := p.Run(t.Context(), pod.tunnel)
	lines := strings.Split(out.String(), "\n")
	if exitCode(err) != 7 || !inside || lines[0] != "127.0.0.1:9090 <nil>" || !strings.Contains(lines[1], "connection refused") {
		t.Errorf("%v, %v, %q", err, inside, lines)
	}
}

// A port that is published is this machine's once the program listens there, and not before; nobody but who wants to comes to it.
func TestPublishedPorts(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dialled := make(chan error, 1)
	laptop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		l, err := net.Listen("tcp", address)
		if err == nil {
			l.Close()
		}
		fmt.Fprint(w, "free ", err)
		go func() { // until it listens
			for {
				c, err := net.Dial("tcp", address)
				if errors.Is(err, syscall.ECONNREFUSED) {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				if err == nil {
					_, err = io.WriteString(c, "hello")
					err = errors.Join(err, c.Close())
				}
				dialled <- err
				return
			}
		}()
	}))
	defer laptop.Close()
	p, out, said := program(fmt.Sprintf("http://%s:%d/ listen://%s", HostName, laptop.Listener.Addr().(*net.TCPAddr).Port, address))
	p.Publish = []uint16{netip.MustParseAddrPort(address).Port(), netip.MustParseAddrPort(taken.Addr().String()).Port()}
	p.Env[len(p.Env)-1] += " listen://" + taken.Addr().String()
	var has sync.Map
	p.Published = func(port uint16, yes bool) { has.Store(port, yes) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.Say = func(line string) { // that what this machine has stays this machine's, which is the end of it
		*said = append(*said, line)
		cancel()
	}
	if err := p.Run(ctx, pod.tunnel); exitCode(err) != 128+int(syscall.SIGTERM) || out.String() != "free <nil> <nil>\nhello <nil>\n" {
		t.Errorf("%v, %q", err, out)
	}
	if len(*said) != 1 || !strings.Contains((*said)[0], taken.Addr().String()+" is in use") {
		t.Errorf("it said %q", *said)
	}
	for i, want := range []bool{true, false} {
		if got, told := has.Load(p.Publish[i]); !told || got != want {
			t.Errorf("it is told of port %d: %v, %v", p.Publish[i], got, told)
		}
	}
	if err := <-dialled; err != nil {
		t.Error(err)
	}
}

// That files are at their paths is said of all of them, or of none; of which it is not so is said.
func TestFilesOfAProgram(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	there, root := t.TempDir(), t.TempDir()
	for _, path := range []string{there, "/proc/bridge-\x1btest"} {
		if err := os.MkdirAll(filepath.Join(root, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, there, "file"), []byte("of the pod"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		paths []string
		all   bool
		said  int
	}{{nil, false, 0}, {[]string{there}, true, 0}, {[]string{there, "/proc/bridge-\x1btest"}, false, 1}} {
		p, out, said := program("")
		p.Args = []string{"sh", "-c", "cat " + there + "/file; exit 7"}
		p.Files = netns.Files{Root: root, Paths: tt.paths}
		all := false
		p.Started = func(_ Dial, _, placed bool) { all = placed }
		if err := p.Run(t.Context(), pod.tunnel); exitCode(err) != 7 || all != tt.all || len(*said) != tt.said || (out.String() == "of the pod") != (tt.paths != nil) {
			t.Errorf("%q: %v, %v, %q, %q", tt.paths, err, all, *said, out)
		}
		if tt.said > 0 && !strings.HasPrefix((*said)[0], "not at its path: /proc/bridge-test: ") {
			t.Errorf("it said %q", *said)
		}
	}
}

func TestSignalsAndTheEndOfBridge(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(pass func(os.Signal), cancel func()){
		"signal":  func(pass func(os.Signal), _ func()) { pass(syscall.SIGTERM) },
		"context": func(_ func(os.Signal), cancel func()) { cancel() },
	} {
		p, _, _ := program("")
		ctx, cancel := context.WithCancel(t.Context())
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p.Args, p.Stdout = []string{"sh", "-c", "echo ready; read x; sleep 1000"}, w
		var pass func(os.Signal)
		p.OnSignal = func(f func(os.Signal)) {
			if f != nil {
				pass = f
			}
		}
		p.Stdin, err = os.Open("/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx, pod.tunnel) }()
		b := make([]byte, 5)
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		end(pass, cancel)
		if code := exitCode(<-done); code != 128+int(syscall.SIGTERM) {
			t.Errorf("%s: exit code %d", name, code)
		}
		cancel()
		_, _, _ = r.Close(), w.Close(), p.Stdin.(*os.File).Close()
	}
}

// Where there is no namespace it has the proxy: with Program's own test again, on a machine that allows none.
func TestAProgramWithoutNamespaces(t *testing.T) {
	const inside = "BRIDGE_TEST_NO_NAMESPACES"
	if os.Getenv(inside) == "" {
		script := `echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; exec "$0" -test.run '^TestAProgramWithoutNamespaces$' -test.v`
		cmd := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", script, os.Args[0])
		cmd.Env = append(os.Environ(), inside+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	// It is known before, and said once; a machine that forbids it in between is as good.
	for _, checked := range []bool{true, false} {
		p, out, said := program("http://orders.shop/")
		if checked {
			if err := p.Check(t.Context()); err != nil || len(*said) != 1 || p.Inside() {
				t.Errorf("%v, it said %q", err, *said)
			}
		}
		if err := p.Run(t.Context(), pod.tunnel); exitCode(err) != 7 || out.String() != "orders.shop <nil>\n" {
			t.Errorf("%v, %q", err, out)
		}
		if len(*said) != 1 || !strings.HasSuffix((*said)[0], "what would allow it: sysctl -w user.max_user_namespaces=1000") {
			t.Errorf("it said %q", *said)
		}
	}
	// The pod's ports are nowhere then.
	p, out, _ := program("http://orders.shop/")
	p.PodPorts = []uint16{9090}
	for _, err := range []error{p.Check(t.Context()), p.Run(t.Context(), pod.tunnel)} {
		var of *hint.Error
		if !errors.As(err, &of) || !strings.Contains(err.Error(), "--to-pod 9090") || !strings.Contains(of.Hint, "sysctl -w user.max_user_namespaces=1000") || out.Len() > 0 {
			t.Errorf("%v, %q", err, out)
		}
	}
}

// What keeps files from their paths does not keep the program from its network.
func TestAProgramWhoseFilesCannotBeInPlace(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	root, gone := t.TempDir(), t.TempDir()+"/gone"
	if err := errors.Join(os.MkdirAll(root+"/etc/bridge-test", 0o700), os.Mkdir(gone, 0o700)); err != nil {
		t.Fatal(err)
	}
	p, out, said := program("http://orders.shop/")
	p.Files = netns.Files{Root: root, Paths: []string{"/etc/bridge-test"}}
	t.Chdir(gone)
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.Context(), pod.tunnel); exitCode(err) != 7 || out.String() != "orders.shop <nil>\n" {
		t.Errorf("%v, %q", err, out)
	}
	if len(*said) != 1 || !strings.HasPrefix((*said)[0], "none of the files is at its path: ") {
		t.Errorf("it said %q", *said)
	}
}

// Outside it is a program as any other: of this machine's network, and nobody tells it of a proxy.
func TestAProgramOutside(t *testing.T) {
	p, out, said := program("")
	p.Args, p.Env, p.Outside = []string{"sh", "-c", "readlink /proc/$$/ns/net; env; exit 7"}, []string{"PATH=" + os.Getenv("PATH")}, true
	inside := true
	p.Started = func(_ Dial, in, _ bool) { inside = in }
	if err := p.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := p.Run(t.Context(), func() *tunnel.Client { panic("it needs no tunnel") })
	here, _ := os.Readlink("/proc/self/ns/net")
	if exitCode(err) != 7 || inside || len(*said) > 0 || !strings.HasPrefix(out.String(), here+"\n") || strings.Contains(strings.ToLower(out.String()), "proxy") {
		t.Errorf("%v, %v, %q, %q", err, inside, out, *said)
	}
}

// A program that nobody can come to any more is ended, and that is an error.
func TestTheMakerOfSocketsIsLost(t *testing.T) {
	info, dial := withAddresses(t)
	pod := startPod(t, info, dial)
	if err := pod.client.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, _, _ := program("")
	p.Args = []string{"sleep", "1000"}
	p.Started = func(Dial, bool, bool) {
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range all {
			text, _ := os.ReadFile(path)
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if parent, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status")); string(text) == "bridge-namespace-maker\x00" && bytes.Contains(parent, fmt.Appendf(nil, "\nPPid:\t%d\n", os.Getpid())) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	if err := p.Run(t.Context(), pod.tunnel); err == nil || !strings.Contains(err.Error(), "sockets in the program's network") {
		t.Errorf("%v", err)
	}
}

func TestKnownForgetsTheOldest(t *testing.T) {
	var k known
	first := netip.MustParseAddr("10.0.0.0")
	a := first
	for range maxKnown + 1 {
		k.add(a)
		k.add(a)
		a = a.Next()
	}
	if k.has(first) || !k.has(first.Next()) || len(k.all) != maxKnown {
		t.Errorf("%v, %v, %d", k.has(first), k.has(first.Next()), len(k.all))
	}
}
