package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is for the start of main: in a namespace's first process, its guard and its maker it does not return.
func Main() {
	switch os.Args[0] {
	case firstName:
		first(os.Args[1], os.Args[2:])
	case guardName:
		watch(os.Args[1])
	case makerName:
		makeSockets()
	}
}

// first sets the namespace up, hands out its sockets, and becomes the program at path when it is told to. It ends when the other end
// of the talk does.
func first(path string, args []string) {
	runtime.LockOSThread() // capabilities are a thread's
	talk := inheritedTalk()
	b := make([]byte, maxReport)
	n, err := talk.Read(b)
	if err != nil {
		os.Exit(1)
	}
	var o Options
	if err := json.Unmarshal(b[:n], &o); err != nil {
		os.Exit(1)
	}
	r := report{}
	files, kinds, err := setUp(o)
	r.More = kinds
	if err == nil {
		r.Left, r.Hidden, err = place(o.Files, path)
		r.InFiles = err != nil
	}
	if err == nil {
		r.Namespace, err = os.Readlink("/proc/self/ns/net")
	}
	if err == nil {
		err = giveUp()
	}
	if err == nil && o.Dialled {
		var f *os.File
		if f, r.Maker, err = startMaker(); err == nil {
			files = append(files, f)
		}
	}
	if err != nil {
		r.Error = err.Error()
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if say(talk, r, fds) != nil || err != nil {
		os.Exit(1)
	}
	if n, err := talk.Read(b); err != nil || n == 0 {
		os.Exit(1)
	}
	closeAll(files)
	err = &os.PathError{Op: "exec", Path: path, Err: syscall.Exec(path, args, os.Environ())}
	_ = say(talk, report{Error: err.Error()}, nil)
	os.Exit(1)
}

// inheritedTalk is this process's end of the talk with bridge.
func inheritedTalk() *net.UnixConn {
	unix.CloseOnExec(inherited)
	file := os.NewFile(inherited, "talk")
	conn, err := net.FileConn(file)
	if err != nil {
		os.Exit(1)
	}
	_ = file.Close()
	return conn.(*net.UnixConn)
}

func say(talk *net.UnixConn, r report, fds []int) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, _, err = talk.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	return err
}

// giveUp lets go of the capabilities of the set-up, for this thread and what it starts or becomes.
func giveUp() error {
	if privileged() {
		return nil
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	return nil
}

// setUp makes the namespace what the package comment says, and opens its sockets, in the order in which sockets takes them: of the last ones kinds says what
// they are.
func setUp(o Options) (files []*os.File, kinds []string, err error) {
	if err := up(loopback); err != nil {
		return nil, nil, fmt.Errorf("set up the loopback device: %w", err)
	}
	asInPods()
	open := func(what interface{ File() (*os.File, error) }, err error) error {
		if err != nil {
			return err
		}
		f, err := what.File()
		if err != nil {
			return err
		}
		files = append(files, f)
		return nil
	}
	taken := slices.Concat(o.Free, o.LocalPorts)
	listen := func(network, address string, taken ...uint16) (uint16, error) {
		l, err := listenApart(network, address, taken)
		if err != nil {
			return 0, err
		}
		defer func() { _ = l.Close() }()
		return portOf(l), open(l, nil)
	}
	// To any address: what is sent to another resolver by UDP arrives here too, and is answered from where it was sent to.
	if _, err := listen("tcp4", "0.0.0.0:53"); err != nil {
		return nil, nil, err
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{Port: 53})
	if err := open(udp, err); err != nil {
		return nil, nil, err
	}
	defer func() { _ = udp.Close() }()
	var port4, port6 uint16
	if port4, err = listen("tcp4", "127.0.0.1:0", taken...); err != nil {
		return nil, nil, err
	}
	if len(o.IPv6) > 0 {
		if port6, err = listen("tcp6", "[::1]:0", taken...); err != nil {
			return nil, nil, err
		}
	}
	if err := ownFiles(); err != nil {
		return nil, nil, fmt.Errorf("put a resolver file in place: %w", err)
	}
	without := errors.New("not wanted")
	if o.Without&NFTables == 0 {
		without = redirect(port4, port6, o.LocalPorts)
	}
	byDevice := func() error {
		kind, more, err := device(o)
		if err != nil {
			return err
		}
		kinds, files = append(kinds, kind), append(files, more)
		if catchNames(udp) != nil {
			kinds = append(kinds, namesPass)
		}
		return nil
	}
	if without != nil {
		if err := byDevice(); err != nil {
			return nil, nil, fmt.Errorf("nftables: %w; and a device in its place: %w", without, err)
		}
		for _, p := range o.LocalPorts {
			if _, err := listen("tcp4", fmt.Sprintf("127.0.0.1:%d", p)); err != nil {
				return nil, nil, err
			}
			kinds = append(kinds, localPort)
		}
		return files, kinds, nil
	}
	names, more := datagramSockets(o, taken)
	if (o.Without&TProxy != 0 || !slices.Contains(names, udp4)) && byDevice() == nil {
		closeAll(more)
		passEchoes(names)
		return files, append(kinds, redirected), nil
	}
	if err := links(o, nil); err != nil {
		return nil, nil, fmt.Errorf("set up the loopback device: %w", err)
	}
	return append(files, more...), names, nil
}

// listenApart listens at an address, on none of the taken ports.
func listenApart(network, address string, taken []uint16) (*net.TCPListener, error) {
	for {
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		found := l.(*net.TCPListener)
		if !slices.Contains(taken, portOf(found)) {
			return found, nil
		}
		defer func() { _ = l.Close() }() // then, so that it is not found again
	}
}

func portOf(l *net.TCPListener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// The files that say how names are looked up. The server knows the pod's search list itself. Without a resolver file programs ask
// 127.0.0.1, too. The root as the search list keeps out the domain of the host's name; musl makes "orders.." of a name with it, which is
// none, so no name has too few dots.
const (
	resolvConf   = "/etc/resolv.conf"
	resolverText = "# bridge's DNS server, for this program and what it starts\nnameserver 127.0.0.1\nsearch .\noptions ndots:0\n"
	nsswitchConf = "/etc/nsswitch.conf"
	nsswitchText = "hosts: files dns"
)

// strict are files of root's that ssh reads only if they are root's or the user's own. Below a user namespace that has no root they are
// nobody's, so the user has copies of them there.
var strict = []string{"/etc/ssh/ssh_config.d/*", "/etc/crypto-policies/back-ends/openssh.config"}

// caches are where a daemon of this machine answers the C library's questions for names.
var caches = []string{"/run/nscd", "/var/run/nscd"}

// ownFiles puts our files in the place of this machine's, for this namespace. They are in a file system of their own, which needs a
// folder for a moment.
func ownFiles() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	at := "/tmp"
	if err := unix.Mount("tmpfs", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return &os.PathError{Op: "mount", Path: at, Err: err}
	}
	defer func() { _ = unix.Unmount(at, unix.MNT_DETACH) }()
	for path, text := range map[string]func(string) string{
		resolvConf:   func(string) string { return resolverText },
		nsswitchConf: nsswitch,
	} {
		if err := replace(path, filepath.Join(at, filepath.Base(path)), text); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for i, path := range strictFiles() {
		_ = replace(path, filepath.Join(at, strconv.Itoa(i)), func(text string) string { return text }) // ssh says what it then does not read
	}
	for _, path := range caches {
		if there, err := filepath.EvalSymlinks(path); err != nil || !isFolder(there) {
			continue
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return &os.PathError{Op: "mount", Path: path, Err: err}
		}
	}
	return nil
}

// replace puts a file in the place of the one at path: ours, with text of what is in that.
func replace(path, ours string, text func(string) string) error {
	there, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(ours, []byte(text(string(there))), 0o644); err != nil { //nolint:gosec // as everybody may read the one it hides
		return err
	}
	if err := unix.Mount(ours, path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "mount", Path: path, Err: err}
	}
	return nil
}

// strictFiles are those of strict that are here.
func strictFiles() (paths []string) {
	if os.Getuid() == 0 {
		return nil
	}
	for _, pattern := range strict {
		list, _ := filepath.Glob(pattern) // it is well formed
		for _, path := range list {
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// nsswitch is a file nsswitch.conf without the ways to look up hosts that go past the resolver file.
func nsswitch(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if database, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(database) == "hosts" {
			continue
		}
		out.WriteString(line)
	}
	return strings.TrimSuffix(out.String(), "\n") + "\n" + nsswitchText + "\n"
}

// all4 is every IPv4 address.
var all4 = netip.MustParsePrefix("0.0.0.0/0")
