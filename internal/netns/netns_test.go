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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"bridge/internal/flow"
	"bridge/internal/ping"
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
	case "ping": // says of each address what comes back of an echo, or why nothing does
		for _, to := range do[1:] {
			fmt.Println(echoOf(to))
		}
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

// echoOf is what comes back of an echo.
func echoOf(address string) string {
	c, err := ping.Dial(context.Background(), address)
	if err != nil {
		return err.Error()
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1000)
	n := 0
	if _, err = c.Write([]byte("\x00\x01hello")); err == nil {
		n, err = c.Read(b)
	}
	return fmt.Sprintf("%s %v", b[min(n, 2):n], err)
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

// The kernel gives bridge any port that is free in there, and the program has not opened its own yet.
func TestFreePortsAreTheProgramsOwn(t *testing.T) {
	o := Options{IPv6: []netip.Prefix{netip.MustParsePrefix("::/0")}}
	for port := uint16(32768); port < 32768+9000; port++ { // a third of what it gives from
		o.Free = append(o.Free, port)
	}
	for range 8 {
		s := start(t, o, "", "true")
		addrs := []net.Addr{s.TCP[0].Addr(), s.TCP[1].Addr()}
		for _, in := range s.Datagrams.in {
			if c, ok := in.conn.(*net.UDPConn); ok {
				addrs = append(addrs, c.LocalAddr())
			}
		}
		for _, addr := range addrs {
			if slices.Contains(o.Free, netip.MustParseAddrPort(addr.String()).Port()) {
				t.Errorf("bridge has %v", addr)
			}
		}
		if _, code := s.end(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	}
}

// Where a device is in the place of nftables, what is sent to others are its packets, and what is the namespace's own is as ever.
func TestADeviceInThePlaceOfNftables(t *testing.T) {
	for _, without := range []Feature{NFTables, NFTables | TUN} {
		t.Run(fmt.Sprint(without), func(t *testing.T) { testDevice(t, without) })
	}
}

func testDevice(t *testing.T, without Feature) {
	o := Options{Without: without, MTU: 9000, IPv6: []netip.Prefix{netip.MustParsePrefix("2001:db8:5::/64")}, LocalPorts: []uint16{6443}}
	s := start(t, o, "say tcp 127.0.0.1:6443")
	if s.Device == nil || s.Datagrams != nil || len(s.TCP) != 3 {
		t.Fatalf("%+v", s.Sockets)
	}
	answer(t, s.TCP[2])
	if said, code := s.end(); code != 0 || !strings.HasPrefix(said, "you want 127.0.0.1:6443 <nil>;") {
		t.Errorf("%q, exit code %d", said, code)
	}
	for do, want := range map[string]string{
		"say tcp 127.0.0.1:6444":   "connection refused",
		"say udp 127.0.0.1:123":    "connection refused",
		"say tcp [2001:db8:6::]:1": "network is unreachable",
		"ping 127.0.0.1:0 [::1]:0": "hello <nil>\nhello <nil>",
	} {
		s := start(t, o, do)
		if said, _ := s.end(); !strings.Contains(said, want) {
			t.Errorf("%s: %q", do, said)
		}
	}
	for do, to := range map[string]string{"say udp 10.96.0.10:123": "10.96.0.10", "say tcp [2001:db8:5::7]:80": "2001:db8:5::7"} {
		s := start(t, o, do)
		b := make([]byte, 10_000)
		for { // the kernel says what it has to say of IPv6, too
			n, err := s.read(b)
			if err != nil {
				t.Fatal(err)
			}
			addr := netip.MustParseAddr(to)
			at := map[bool]int{false: 16, true: 24}[addr.Is6()]
			if b[0]>>4 == map[bool]byte{false: 4, true: 6}[addr.Is6()] && bytes.Equal(b[at:at+addr.BitLen()/8], addr.AsSlice()) && n > at {
				break
			}
		}
		_ = s.cmd.Process.Kill()
		_, _ = s.end()
	}
}

// Where nftables cannot tell what a datagram was sent to, those are the device's packets, and TCP is redirected.
func TestADeviceForDatagrams(t *testing.T) {
	o := Options{Without: TProxy, MTU: 9000, LocalPorts: []uint16{6443}}
	for _, to := range []string{"127.0.0.1:6443", "10.96.0.10:80"} {
		s := start(t, o, "say tcp "+to)
		if s.Device == nil || !s.Redirected || s.Datagrams != nil || len(s.TCP) != 1 {
			t.Fatalf("%+v", s.Sockets)
		}
		answer(t, s.TCP[0])
		if said, code := s.end(); code != 0 || !strings.HasPrefix(said, "you want "+to+" <nil>;") {
			t.Errorf("%q, exit code %d", said, code)
		}
	}
	for do, want := range map[string]string{"ping 127.0.0.1:0": "hello <nil>", "say udp 127.0.0.1:123": "connection refused", "say ip4:132 10.96.0.10": "operation not permitted"} {
		s := start(t, o, do)
		if said, _ := s.end(); !strings.Contains(said, want) {
			t.Errorf("%s: %q", do, said)
		}
	}
	for _, do := range []string{"say udp 10.96.0.10:123", "ping 10.96.0.10:0"} {
		s := start(t, o, do)
		b := make([]byte, 10_000)
		for {
			n, err := s.read(b)
			if err != nil {
				t.Fatal(err)
			}
			if n > 20 && b[0]>>4 == 4 && bytes.Equal(b[16:20], []byte{10, 96, 0, 10}) {
				break
			}
		}
		_ = s.cmd.Process.Kill()
		_, _ = s.end()
	}
}

// read reads a packet of the device, without its Ethernet header.
func (s *space) read(b []byte) (n int, err error) {
	raw, err := s.Device.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if n, failed = unix.Read(int(fd), b); !errors.Is(failed, unix.EAGAIN) || time.Now().After(end) {
				return
			}
		}
	})
	if err := errors.Join(err, failed); err != nil || s.Link == nil {
		return n, err
	}
	const ethernet = 14
	const group = 1 // as what asks for routers goes to
	if n < ethernet || b[0]&group == 0 && !bytes.Equal(b[:6], s.Link) {
		return 0, fmt.Errorf("to another device: % x", b[:n])
	}
	return copy(b, b[ethernet:n]), nil
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
		"say ip4:1 10.96.0.10":       "operation not permitted", // ICMP that is no echo: the loopback device itself would answer
		"say ip4:132 10.96.0.10":     "operation not permitted", // SCTP
		"ping [2001:db8:5::7]:0":     "network is unreachable",
	} {
		s := start(t, Options{}, do)
		if said, _ := s.end(); !strings.Contains(said, want) {
			t.Errorf("%s: %q", do, said)
		}
	}
}

func TestDNSGetsWhatIsSentToAnyResolver(t *testing.T) {
	for _, c := range []struct {
		to      string
		without Feature
	}{
		{"127.0.0.1:53", 0}, {"10.96.0.10:53", 0}, {"8.8.8.8:53", 0},
		{"127.0.0.1:53", NFTables}, {"10.96.0.10:53", NFTables}, {"8.8.8.8:53", NFTables | TUN}, {"8.8.8.8:53", TProxy},
	} {
		s := start(t, Options{Without: c.without}, "say udp "+c.to)
		if s.NamesPass {
			t.Fatal("this kernel does not tell them apart")
		}
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
			t.Fatalf("%+v: %q, %v", c, b[:n], err)
		}
		if _, _, err := s.DNSUDP.WriteMsgUDP([]byte("an answer"), oob[:oobn], from); err != nil {
			t.Error(err)
		}
		if said, _ := s.end(); said != "an answer <nil>" {
			t.Errorf("%+v: %q", c, said)
		}
	}
	s := start(t, Options{}, "say tcp 127.0.0.1:53")
	answer(t, s.DNS)
	if said, _ := s.end(); !strings.HasPrefix(said, "you want") {
		t.Errorf("%q", said)
	}
}

func TestDatagramsArriveWithWhatTheyWereSentTo(t *testing.T) {
	both := Options{IPv6: []netip.Prefix{netip.MustParsePrefix("::/0")}}
	for _, to := range []string{"10.96.0.10:123", "203.0.113.9:443", Host.String() + ":3000", "[2001:db8:5::7]:443", "[2001:db8:5::7]:53", "[fd00::10]:123"} {
		s := start(t, both, "say udp "+to)
		stranger := netip.MustParseAddrPort("203.0.113.10:1")
		if strings.HasPrefix(to, "[") {
			stranger = netip.MustParseAddrPort("[2001:db8:7::1]:1")
		}
		s.answer(t, func(p flow.Pair, b []byte) {
			if p.Network != "udp" || p.To.String() != to || string(b) != "hello" {
				t.Errorf("%s %q to %v, want %s", p.Network, b, p.To, to)
			}
			if err := s.Datagrams.Answer(flow.Pair{Network: "udp", From: p.From, To: stranger}, []byte("stranger")); err != nil {
				t.Error(err)
			}
			long := maxPayload
			if p.To.Addr().Is6() {
				long = maxPayload6
			}
			if err := s.Datagrams.Answer(p, bytes.Repeat([]byte("x"), long)); err != nil {
				t.Error(err)
			}
		})
		if said, _ := s.end(); said != strings.Repeat("x", 1000)+" <nil>" {
			t.Errorf("%s: %q", to, said)
		}
	}
}

// answer has what comes answered until the namespace is closed.
func (s *space) answer(t *testing.T, put func(p flow.Pair, b []byte)) {
	t.Helper()
	if s.Datagrams == nil {
		t.Fatal("this kernel has no nft_tproxy")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Datagrams.Receive(put); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { s.Datagrams.Close(); <-done })
}

// Echo requests arrive with what they were sent to, and their answers at who has sent them; what refuses them is told. The namespace's own addresses
// answer themselves.
func TestEchoesArriveWithWhatTheyWereSentTo(t *testing.T) {
	table := []struct{ to, want string }{
		{"10.96.0.10:0", "hello <nil>"}, {Host.String() + ":0", "hello <nil>"}, {"[2001:db8:5::7]:0", "hello <nil>"},
		{"127.0.0.1:0", "hello <nil>"}, {"192.0.2.1:0", "hello <nil>"}, {"[::1]:0", "hello <nil>"},
		{"10.96.0.11:0", "no route to host"}, {"[2001:db8:5::8]:0", "permission denied"},
	}
	do := "ping"
	for _, row := range table {
		do += " " + row.to
	}
	s := start(t, Options{IPv6: []netip.Prefix{netip.MustParsePrefix("::/0")}}, do)
	var mu sync.Mutex
	asked := map[string]bool{}
	s.answer(t, func(p flow.Pair, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		if asked[p.To.String()] = true; p.Network != "icmp" {
			t.Errorf("%s to %v", p.Network, p.To)
		}
		switch p.To.Addr().String() {
		case "10.96.0.11", "2001:db8:5::8":
			s.Datagrams.Refuse(p, b, syscall.EACCES)
		default:
			if err := s.Datagrams.Answer(p, b); err != nil {
				t.Error(err)
			}
		}
	})
	said, _ := s.end()
	lines := strings.Split(said, "\n")
	mu.Lock()
	defer mu.Unlock()
	for i, row := range table {
		own := netip.MustParseAddrPort(row.to).Addr()
		if i >= len(lines) || !strings.Contains(lines[i], row.want) || asked[row.to] == (own.IsLoopback() || own == own4) {
			t.Errorf("%s: %q, want %q; asked: %v", row.to, lines[min(i, len(lines)-1)], row.want, asked[row.to])
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

// forNobody is a command that runs tests as a user without any right.
func forNobody(t *testing.T, tests string) []string {
	t.Helper()
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
	// daemon, and not nobody, who seems to be the owner of files whose own has no number in a user namespace.
	return []string{"setpriv", "--reuid", "1", "--regid", "1", "--clear-groups", path, "-test.run", tests, "-test.v", "-test.timeout", "5m"}
}

func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else, and what follows has been tested as this user")
	}
	args := forNobody(t, "^(TestTCPArrives|TestWhat|TestDNSGets|TestDatagrams|TestEchoes|TestFiles$|TestOneself|TestKilled|TestBridgeReaches|TestFilesAre|TestTry|TestTheMaker|TestFree)")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "--- SKIP") && !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
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

func TestTry(t *testing.T) {
	o := Options{IPv6: []netip.Prefix{netip.MustParsePrefix("::/0")}, Dialled: true}
	if err := Try(t.Context(), o); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Try(ctx, o); err == nil {
		t.Error("nobody wanted it any more, and it was made")
	}
	for _, p := range ours(t) {
		t.Errorf("left: %s", p)
	}
}

// ours are this process's children, what they are called.
func ours(t *testing.T) (list []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(all) == 0 {
		t.Fatal("the test is worth nothing: this kernel does not tell of children")
	}
	for _, path := range all {
		b, _ := os.ReadFile(path)
		for _, pid := range strings.Fields(string(b)) {
			name, _ := os.ReadFile("/proc/" + pid + "/status")
			list = append(list, string(name))
		}
	}
	return list
}

// What the program's environment says, it says to the program alone.
func TestTheMakerHasNoEnvironment(t *testing.T) {
	t.Setenv("BRIDGE_TEST_SECRET", "secret")
	s := start(t, Options{Dialled: true}, "", "sleep", "60")
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.maker.process.Pid)); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	_ = s.cmd.Process.Kill()
	_, _ = s.end()
}

// Without the maker nobody comes to the program: that is an error, and not one that waits.
func TestTheMakerIsLost(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		s := start(t, Options{Dialled: true}, "answer 127.0.0.1:81")
		lost := make(chan error, 1)
		go func() { lost <- s.Await(t.Context()) }()
		if err := s.maker.process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{ControlContext: s.Control}
		if c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:81"); err == nil {
			t.Errorf("%v: it was dialled: %v", sig, c)
		}
		if err := <-lost; err == nil {
			t.Errorf("%v: no error", sig)
		}
		_ = s.cmd.Process.Kill()
		_, _ = s.end()
		for _, p := range ours(t) {
			t.Errorf("%v: left: %s", sig, p)
		}
	}
}

// One that takes long costs those their dial who do not wait for it, and nobody the program.
func TestTheMakerIsSlow(t *testing.T) {
	s := start(t, Options{Dialled: true}, "answer 127.0.0.1:81")
	lost := make(chan error, 1)
	awaiting, stop := context.WithCancel(t.Context())
	go func() { lost <- s.Await(awaiting) }()
	if err := s.maker.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	d := net.Dialer{ControlContext: s.Control}
	var waiting sync.WaitGroup
	for range maxAsked + 10 {
		waiting.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := d.DialContext(ctx, "tcp", "127.0.0.1:81"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		})
	}
	waiting.Wait()
	if err := s.maker.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:81")
		if err == nil {
			_ = c.Close()
			break
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline) { // it does not listen yet
			t.Fatal(err)
		}
	}
	stop()
	if err := <-lost; err != nil {
		t.Error(err)
	}
	_ = s.cmd.Process.Kill()
	_, _ = s.end()
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:81"); err == nil {
		t.Error("it is over, and somebody was dialled")
	}
}

// The user's ssh reads root's configuration, which has an owner in there that ssh trusts.
func TestSSH(t *testing.T) {
	const inside = "BRIDGE_TEST_SSH"
	if os.Getenv(inside) == "" {
		if os.Getuid() != 0 {
			t.Skip("only root can give ssh a configuration for this test")
		}
		folder := filepath.Dir(strict[0])
		if _, err := os.Stat(folder); err != nil {
			t.Fatal("the test is worth nothing: ", err)
		}
		// It is there for this one process and what that starts.
		script := `mount -t tmpfs -o mode=755 tmpfs ` + folder + ` && printf 'Host bridge-test\nPort 2222\n' > ` + folder + `/bridge-test.conf && exec "$@"`
		cmd := exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, "sh"}, forNobody(t, "^TestSSH$")...)...)
		cmd.Dir, cmd.Env = "/", append(os.Environ(), inside+"=1", "HOME=/")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	s := start(t, Options{}, "", "ssh", "-G", "bridge-test")
	if said, code := s.end(); code != 0 || !strings.Contains(said, "\nport 2222\n") {
		t.Errorf("exit code %d, %s", code, said)
	}
}

// What is not at its path has as many lines as somebody may read, and never keeps the program from being run.
func TestManyFilesThatAreLeft(t *testing.T) {
	for paths, last := range map[int]string{maxLines + 50: "50 more", 20000: "all of the files: 20000 paths are too many"} {
		f := Files{Root: t.TempDir()}
		for i := range paths {
			f.Paths = append(f.Paths, fmt.Sprintf("/proc/%d", i))
		}
		s := start(t, Options{Files: f}, "", "echo", "run")
		left := s.Left()
		if said, code := s.end(); said != "run" || code != 0 {
			t.Errorf("%q, exit code %d", said, code)
		}
		if len(left) > maxLines+1 || left[len(left)-1] != last {
			t.Errorf("%d lines, the last is %q", len(left), left[len(left)-1])
		}
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
	s := start(t, Options{Dialled: true}, "answer [::1]:7002 udp:127.0.0.1:7003 192.0.2.1:7004 127.0.0.2:7005 127.0.0.1:"+port+" 127.0.0.1:81")
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
	for port, want := range map[uint16]bool{81: true, 7002: true, 7003: false, 7004: false, 7005: false, 82: false, 53: true} {
		if got := s.Listens(port); got != want {
			t.Errorf("somebody listens at %d: %v", port, got)
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
	var left []string
	for _, path := range []string{"/etc/bridge-test/deep/a", "/etc/bridge-test-2/b", "/bridge-test/c", "/var/run/bridge-test/e"} {
		put(path, path)
		paths = append(paths, path[:strings.LastIndex(path, "/")])
	}
	put("/bridge-test-file", "single")
	paths = append(paths, "/bridge-test-file")
	if os.Getuid() == 0 { // who may write in all of them
		left, paths = paths, nil
	}
	for _, path := range []string{there + "/conf/d", work + "/given/f"} {
		put(path, path)
		paths = append(paths, path[:strings.LastIndex(path, "/")])
	}
	put("/etc/hostname", "of the pod")
	paths = append(paths, "/etc/hostname")
	if err := errors.Join(os.Mkdir(home+"/.ssh", 0o700), os.WriteFile(home+"/.gitconfig", []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	put(home+"/.gitconfig", "of the pod")
	yours := append(left, there+"/new", work+"/new")
	left = append(yours, home+"/.config/new", home+"/.ssh", home+"/.gitconfig", "/etc", home, work, "/dev/bridge-test", "/proc/bridge-test", "/etc/resolv.conf/x", "/etc/passwd")
	for _, path := range left {
		if err := os.MkdirAll(root+path, 0o700); err != nil && !errors.Is(err, syscall.ENOTDIR) { // a file is there
			t.Fatal(err)
		}
	}
	before, _ := os.ReadDir("/")
	script := `cat ` + there + `/conf/d given/f /etc/hostname
ls -A ` + there + `/conf; ls ` + there + `; ls -A /; ls /etc/passwd; grep -c 127.0.0.1 /etc/resolv.conf; pwd; : > written; echo x > given/f || echo not written
[ $(id -u) = 0 ] || cat /etc/bridge-test/deep/a /etc/bridge-test-2/b /bridge-test/c /var/run/bridge-test/e /bridge-test-file
[ $(id -u) = 0 ] || mkdir /new /etc/new /run/new || echo none made
echo; read x; cat given/f given/more`
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
		if i >= len(left) || !strings.HasPrefix(line, left[i]+": ") || strings.Contains(line, "make it first, empty: ") != (i < len(yours)) {
			t.Errorf("left: %q", line)
		}
		t.Log(line)
	}
	if len(n.Left()) != len(left) {
		t.Errorf("left: %q", n.Left())
	}
	if want := []string{there + "/conf", "/etc/hostname"}; !slices.Equal(n.Hidden(), want) {
		t.Errorf("hidden: %q, want %q", n.Hidden(), want)
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
	put(work+"/given/f", "changed")
	put(work+"/given/more", "more")
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
	all := []string{
		there + "/conf/d\n" + work + "/given/f\nof the pod\nd\nbeside\nconf\n", "/etc/passwd\n1\n" + work + "\n", "\nchanged\nmore\n", "not written\n",
	}
	if os.Getuid() != 0 {
		all = append(all, "/etc/bridge-test/deep/a\n/etc/bridge-test-2/b\n/bridge-test/c\n/var/run/bridge-test/e\nsingle\n", "none made\n")
	}
	for _, want := range all {
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
