//go:build linux

package netns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// Environment of the test binary that is the program in the namespace, or a bridge that is killed.
const (
	doEnv     = "BRIDGE_TEST_DO"     // dial ADDRESS, stay
	bridgeEnv = "BRIDGE_TEST_BRIDGE" // a script
)

func TestMain(m *testing.M) {
	Main()
	if do := os.Getenv(doEnv); do != "" {
		program(strings.Fields(do))
	}
	if script := os.Getenv(bridgeEnv); script != "" {
		n, cmd, err := begin(Options{}, "sh", "-c", script)
		if err == nil {
			_, err = n.Open(context.Background())
		}
		if err == nil {
			err = n.Run(context.Background())
		}
		if err == nil {
			err = cmd.Wait()
		}
		fmt.Println(err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// program is what the namespace is for, linked by Go alone.
func program(do []string) {
	switch do[0] {
	case "say": // connects and says what the other end says
		c, err := net.DialTimeout(do[1], do[2], 5*time.Second)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 1000)
		n, err := c.Read(b)
		fmt.Printf("%s %v\n", b[:n], err)
	case "answer": // says hello to whoever comes to one of the addresses
		for _, address := range do[1:] {
			network := "tcp"
			if udp, ok := strings.CutPrefix(address, "udp:"); ok {
				network, address = "udp", udp
			}
			if err := hello(network, address); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
		time.Sleep(time.Minute)
	case "user":
		caps, _ := os.ReadFile("/proc/self/status")
		_, after, _ := strings.Cut(string(caps), "CapEff:\t")
		fmt.Println(os.Getuid(), os.Getgid(), after[:16])
		fmt.Println(os.WriteFile(do[1], nil, 0o600))
	case "hide": // lets nobody look at it, says in its folder that it is there, and that nobody has ended it
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		_ = os.WriteFile("hidden", nil, 0o600)
		time.Sleep(3 * (guardGrace + guardPatience))
		_ = os.WriteFile("outlived", nil, 0o600)
	}
	os.Exit(0)
}

// hello answers at an address, for as long as the process is there.
func hello(network, address string) error {
	if network == "udp" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		go func() {
			b := make([]byte, 100)
			for {
				if _, from, err := c.ReadFrom(b); err == nil {
					_, _ = c.WriteTo([]byte("hello "+network), from)
				}
			}
		}()
		return nil
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte("hello " + network))
				_ = c.Close()
			}
		}
	}()
	return nil
}

// begin starts args up to where the sockets are open.
func begin(o Options, args ...string) (*Namespace, *exec.Cmd, error) {
	n, err := New(o)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	n.Enter(cmd)
	return n, cmd, n.Explain(cmd.Start())
}

// space is a namespace with a program in it.
type space struct {
	*Namespace
	*Sockets
	cmd *exec.Cmd
	out *bytes.Buffer
}

// start starts a program, this one with do if that is not empty.
func start(t *testing.T, o Options, do string, args ...string) *space {
	t.Helper()
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s := &space{Namespace: n, out: new(bytes.Buffer)}
	if do != "" {
		args = []string{os.Args[0]}
	}
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Env = append(os.Environ(), doEnv+"="+do)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	n.Enter(s.cmd)
	if err := s.cmd.Start(); err != nil {
		t.Fatal(n.Explain(err))
	}
	if s.Sockets, err = n.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Sockets.Close)
	if err := n.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// end waits for the program and returns what it said.
func (s *space) end() (said string, code int) {
	state, err := s.cmd.Process.Wait()
	s.Namespace.Close()
	_ = s.cmd.Wait() // for what it said, and that nobody has its standard output any more
	if err != nil {
		return err.Error(), -1
	}
	return strings.TrimSpace(s.out.String()), state.ExitCode()
}

// answer accepts one connection and tells it where it was sent to.
func answer(t *testing.T, l *net.TCPListener) {
	t.Helper()
	_ = l.SetDeadline(time.Now().Add(30 * time.Second))
	c, err := l.AcceptTCP()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	to, err := Original(c)
	_, _ = fmt.Fprintf(c, "you want %v %v;", to, err)
	_, _ = io.Copy(io.Discard, c)
}

func TestTCPArrivesWithWhatItWasSentTo(t *testing.T) {
	all := Options{IPv6: []netip.Prefix{netip.MustParsePrefix("::/0")}, LocalPorts: []uint16{6443}}
	for _, tt := range []struct {
		to    string
		which int
	}{{"10.96.0.10:80", 0}, {"203.0.113.9:53", 0}, {"127.0.0.1:6443", 0}, {"[2001:db8:5::7]:443", 1}, {Host.String() + ":3000", 0}} {
		s := start(t, all, "say tcp "+tt.to)
		answer(t, s.TCP[tt.which])
		if said, code := s.end(); code != 0 || !strings.HasPrefix(said, "you want "+tt.to+" <nil>;") {
			t.Errorf("%s: %q, exit code %d", tt.to, said, code)
		}
	}
}

// What does not leave the namespace fails as it does anywhere, at once.
func TestWhatIsNotThere(t *testing.T) {
	for do, want := range map[string]string{
		"say tcp 127.0.0.1:6444":     "connection refused",
		"say tcp 192.0.2.1:6444":     "connection refused", // the namespace's own address
		"say tcp [::1]:6444":         "connection refused",
		"say tcp [2001:db8:5::7]:80": "network is unreachable", // there is no IPv6
		"say udp 127.0.0.1:123":      "connection refused",
		"say udp [2001:db8:5::7]:53": "network is unreachable",
		"say ip4:1 10.96.0.10":       "operation not permitted", // ICMP: the loopback device itself would answer
	} {
		s := start(t, Options{}, do)
		if said, _ := s.end(); !strings.Contains(said, want) {
			t.Errorf("%s: %q", do, said)
		}
	}
}

func TestDNSGetsWhatIsSentToAnyResolver(t *testing.T) {
	for _, to := range []string{"127.0.0.1:53", "10.96.0.10:53", "8.8.8.8:53"} {
		s := start(t, Options{}, "say udp "+to)
		b, oob := make([]byte, 100), make([]byte, 100)
		raw, err := s.DNSUDP.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) })
		if err != nil {
			t.Fatal(err)
		}
		_ = s.DNSUDP.SetDeadline(time.Now().Add(30 * time.Second))
		n, oobn, _, from, err := s.DNSUDP.ReadMsgUDP(b, oob)
		if err != nil || string(b[:n]) != "hello" {
			t.Fatalf("%q, %v", b[:n], err)
		}
		if _, _, err := s.DNSUDP.WriteMsgUDP([]byte("an answer"), oob[:oobn], from); err != nil {
			t.Error(err)
		}
		if said, _ := s.end(); said != "an answer <nil>" {
			t.Errorf("%s: %q", to, said)
		}
	}
	s := start(t, Options{}, "say tcp 127.0.0.1:53")
	answer(t, s.DNS)
	if said, _ := s.end(); !strings.HasPrefix(said, "you want") {
		t.Errorf("%q", said)
	}
}

func TestDatagramsArriveWithWhatTheyWereSentTo(t *testing.T) {
	for _, to := range []string{"10.96.0.10:123", "203.0.113.9:443", Host.String() + ":3000"} {
		s := start(t, Options{}, "say udp "+to)
		if s.UDP == nil {
			t.Fatal("this kernel has no nft_tproxy")
		}
		b := make([]byte, 100)
		_ = s.UDP.in.SetDeadline(time.Now().Add(30 * time.Second))
		n, from, got, err := s.UDP.Read(b)
		if err != nil || string(b[:n]) != "hello" || got.String() != to {
			t.Fatalf("%q to %v, want %s; %v", b[:n], got, to, err)
		}
		if err := s.UDP.Write([]byte("stranger"), netip.MustParseAddrPort("203.0.113.10:1"), from); err != nil {
			t.Error(err)
		}
		if err := s.UDP.Write(bytes.Repeat([]byte("x"), maxPayload), got, from); err != nil {
			t.Error(err)
		}
		if said, _ := s.end(); said != strings.Repeat("x", 1000)+" <nil>" {
			t.Errorf("%s: %q", to, said)
		}
	}
}

// Names are looked up in the files and with the DNS server, by whatever means; the folders and files of this machine are all there.
func TestFiles(t *testing.T) {
	before, _ := os.ReadFile(resolvConf)
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, []byte("of this machine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, Options{}, "", "sh", "-c", "cat /etc/resolv.conf; grep ^hosts: /etc/nsswitch.conf; pwd; cat "+file+"; exit 9")
	said, code := s.end()
	wd, _ := os.Getwd()
	want := resolverText
	if _, err := os.Stat(nsswitchConf); err == nil {
		want += nsswitchText + "\n"
	}
	if want += wd + "\nof this machine"; said != want || code != 9 {
		t.Errorf("%q, want %q; exit code %d", said, want, code)
	}
	if after, _ := os.ReadFile(resolvConf); !bytes.Equal(before, after) {
		t.Errorf("the machine's own is changed: %q", after)
	}
}

func TestNsswitch(t *testing.T) {
	got := nsswitch("passwd: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files\n hosts : x\nnetgroup: nis")
	if want := "passwd: files systemd\nnetgroup: nis\nhosts: files dns\n"; got != want {
		t.Errorf("%q", got)
	}
}

// asNobody runs this test again as a user without any right, and skips where that is the state already.
func asNobody(t *testing.T, name string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else, and what follows has been tested as this user")
	}
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "netns") // a folder that everybody can go to
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := dir + "/test"
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, b, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "-test.run", name, "-test.v", "-test.timeout", "2m")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") && !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestUnprivileged(t *testing.T) {
	asNobody(t, "^(TestTCPArrives|TestWhat|TestDNSGets|TestDatagrams|TestFiles$|TestOneself|TestKilled|TestBridgeReaches|TestFilesAre)")
}

// The program is the user that it would be outside, with the capabilities of one, and so are its files.
func TestOneself(t *testing.T) {
	path := t.TempDir() + "/made"
	s := start(t, Options{}, "user "+path)
	said, _ := s.end()
	caps := "0000000000000000"
	if os.Getuid() == 0 {
		status, _ := os.ReadFile("/proc/self/status")
		_, after, _ := strings.Cut(string(status), "CapEff:\t")
		caps = after[:16]
	}
	if want := fmt.Sprintf("%d %d %s\n<nil>", os.Getuid(), os.Getgid(), caps); said != want {
		t.Errorf("%q, want %q", said, want)
	}
	info, err := os.Stat(path)
	if err != nil || int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		t.Errorf("%+v, %v", info, err)
	}
}

// orphans leaves processes that have a group and a session of their own, one that hears nothing, and one that is stopped.
const orphans = `setsid sh -c 'trap "" TERM; echo $$; while :; do sleep 0.05; done' & setsid sh -c 'echo $$; kill -STOP $$' & `

func TestWhatTheProgramLeavesBehindEnds(t *testing.T) {
	dir := t.TempDir()
	// It ends when the three have said that they are there.
	s := start(t, Options{}, "", "sh", "-c", `readlink /proc/$$/ns/net; cd `+dir+`; `+strings.ReplaceAll(orphans, "echo", "touch")+
		doEnv+`=hide setsid `+os.Args[0]+` & until [ $(ls | wc -l) = 3 ]; do sleep 0.05; done`)
	name, _ := s.end()
	if !strings.HasPrefix(name, "net:[") {
		t.Fatalf("%q", name)
	}
	if left := inside(name); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := os.Stat(dir + "/outlived"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that lets nobody look at it was left: %v", err)
	}
}

// A bridge that is killed leaves no process in the namespace, and so no namespace.
func TestKilledBridge(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bridgeEnv+"="+orphans+"echo $$; sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for len(inside(name)) < 4 {
		time.Sleep(10 * time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for deadline := time.Now().Add(3 * (guardGrace + guardPatience)); len(inside(name)) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left: %v", inside(name))
		}
	}
}

func TestUnavailable(t *testing.T) {
	// A user namespace that allows none below it, as a machine may.
	script := `echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces; ` + bridgeEnv + `="exit 3" exec "$0"`
	out, err := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c", script, os.Args[0]).CombinedOutput()
	t.Logf("%s", out)
	if err == nil || !strings.Contains(string(out), "a network namespace: ") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestTheProgramCannotBeRun(t *testing.T) {
	path := t.TempDir() + "/text"
	if err := os.WriteFile(path, []byte("not a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	n, cmd, err := begin(Options{}, path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := n.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("%v", err)
	}
	_ = cmd.Wait()
	n.Close()
}

// Bridge reaches what listens in the namespace, on ports that this machine has taken too, and below 1024.
func TestBridgeReachesTheProgramsPorts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s := start(t, Options{Dialled: true}, "answer [::1]:7002 udp:127.0.0.1:7003 127.0.0.1:"+port+" 127.0.0.1:81")
	d := net.Dialer{Timeout: 5 * time.Second, ControlContext: s.Control}
	ask := func(network, address string) (string, error) {
		c, err := d.DialContext(t.Context(), network, address)
		if err != nil {
			return "", err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	// The last to listen answers: all do.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := ask("tcp", "127.0.0.1:81"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for _, address := range []string{"127.0.0.1:" + port, "localhost:" + port, "[::1]:7002"} {
		if said, err := ask("tcp", address); err != nil || said != "hello tcp" {
			t.Errorf("%s: %q, %v", address, said, err)
		}
	}
	if said, err := ask("udp", "127.0.0.1:7003"); err != nil || said != "hello udp" {
		t.Errorf("%q, %v", said, err)
	}
	if _, err := ask("tcp", "127.0.0.1:7001"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("where nobody listens: %v", err)
	}
	_ = s.cmd.Process.Kill()
	_, _ = s.end()
	if _, err := ask("tcp", "localhost:"+port); err == nil {
		t.Error("it is over, and somebody answers")
	}
}

// Files are where they belong, whether this machine has something there or not, and they follow what changes; nothing else is another.
func TestFilesAreAtTheirPaths(t *testing.T) {
	root, home, work := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Chdir(work)
	var paths []string
	put := func(path, text string) {
		t.Helper()
		at := root + path
		if err := errors.Join(os.MkdirAll(at[:strings.LastIndex(at, "/")], 0o700), os.WriteFile(at+".new", []byte(text+"\n"), 0o600), os.Rename(at+".new", at)); err != nil {
			t.Fatal(err)
		}
	}
	there := t.TempDir()
	if err := errors.Join(os.Mkdir(there+"/conf", 0o700), os.WriteFile(there+"/conf/hidden", nil, 0o600), os.WriteFile(there+"/beside", nil, 0o600), os.Mkdir(work+"/given", 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/etc/bridge-test/deep/a", "/etc/bridge-test-2/b", "/bridge-test/c", there + "/conf/d", "/var/run/bridge-test/e", work + "/given/f"} {
		put(path, path)
		paths = append(paths, path[:strings.LastIndex(path, "/")])
	}
	put("/bridge-test-file", "single")
	put("/etc/hostname", "of the pod")
	paths = append(paths, "/bridge-test-file", "/etc/hostname")
	left := []string{work + "/new", home + "/.config/new", "/etc", home, work, "/dev/bridge-test", "/proc/bridge-test", "/etc/resolv.conf/x", "/etc/passwd"}
	for _, path := range left {
		if err := os.MkdirAll(root+path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.ReadDir("/")
	script := `cat /etc/bridge-test/deep/a /etc/bridge-test-2/b /bridge-test/c ` + there + `/conf/d /var/run/bridge-test/e given/f /bridge-test-file /etc/hostname
ls -A ` + there + `/conf; ls ` + there + `; ls -A /; ls /etc/passwd; grep -c 127.0.0.1 /etc/resolv.conf; pwd; : > written; echo x > /etc/bridge-test/deep/a || echo not written
echo; read x; cat /etc/bridge-test/deep/a /etc/bridge-test/deep/more`
	n, err := New(Options{Files: Files{Root: root, Paths: append(paths, left...)}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	n.Enter(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(n.Explain(err))
	}
	s, err := n.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i, line := range n.Left() {
		if i >= len(left) || !strings.HasPrefix(line, left[i]+": ") {
			t.Errorf("left: %q", line)
		}
		t.Log(line)
	}
	if len(n.Left()) != len(left) {
		t.Errorf("left: %q", n.Left())
	}
	if err := n.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, out := "", bufio.NewReader(pipe)
	for line := ""; line != "\n"; got += line {
		if line, err = out.ReadString('\n'); err != nil {
			t.Fatalf("%v after %q", err, got)
		}
	}
	put("/etc/bridge-test/deep/a", "changed")
	put("/etc/bridge-test/deep/more", "more")
	_, _ = in.Write([]byte("\n"))
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Error(err)
	}
	got += string(rest)
	_ = cmd.Wait()
	n.Close()
	for _, e := range before {
		if !strings.Contains(got, e.Name()+"\n") {
			t.Errorf("%s is not in / any more", e.Name())
		}
	}
	for _, want := range []string{
		"/etc/bridge-test-2/b\n/bridge-test/c\n" + there + "/conf/d\n/var/run/bridge-test/e\n" + work + "/given/f\nsingle\nof the pod\nd\nbeside\nconf\n",
		"/etc/passwd\n1\n" + work + "\n", "\nchanged\nmore\n", "not written\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q", want)
		}
	}
	if _, err := os.Stat(work + "/written"); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/etc/bridge-test", "/bridge-test", "/bridge-test-file", "/run/bridge-test", "/" + oldRoot} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s on this machine: %v", path, err)
		}
	}
}
