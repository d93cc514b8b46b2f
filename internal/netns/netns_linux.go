package netns

import (
	"context"
	"encoding/json"
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
	"time"

	"golang.org/x/sys/unix"
)

// Supported tells whether this system knows such namespaces at all.
const Supported = true

// self is this program's file, also when it was replaced on the disk.
const self = "/proc/self/exe"

// The first argument by which this program knows that it is another: names that no user types.
const (
	firstName = "bridge-namespace-first"
	guardName = "bridge-namespace-guard"
	makerName = "bridge-namespace-maker"
)

// setUpTime bounds the set-up, which takes some 50 ms: of a machine that is very slow.
const setUpTime = 30 * time.Second

// inherited is the descriptor on which the first process and the maker find their ends of the talk, and the guard its pipe.
const inherited = 3

// Namespace is one. Use its methods in this order: Enter, Open, Run, Close.
type Namespace struct {
	o            Options
	talk         *net.UnixConn // with the first process
	other        *os.File      // the first process's end
	guard        *guard
	maker        maker
	left, hidden []string
}

// New makes what is needed on this side.
func New(o Options) (*Namespace, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "namespace")
	defer func() { _ = ours.Close() }()
	other := os.NewFile(uintptr(fds[1]), "namespace")
	conn, err := net.FileConn(ours)
	if err != nil {
		_ = other.Close()
		return nil, err
	}
	return &Namespace{o: o, talk: conn.(*net.UnixConn), other: other}, nil
}

// Enter changes cmd, which is not started yet, to start the first process in its place.
func (n *Namespace) Enter(cmd *exec.Cmd) {
	program := cmd.Path
	cmd.Path = self
	cmd.Args = append([]string{firstName, program}, cmd.Args...)
	cmd.ExtraFiles = []*os.File{n.other}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	a := cmd.SysProcAttr
	a.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWNS
	if privileged() {
		return
	}
	// The program has the user and the group that it would have outside, and what it makes is theirs. The capabilities are for the
	// set-up, and end with it.
	a.Cloneflags |= unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	a.AmbientCaps = setUpCapabilities
}

// setUpCapabilities are what the first process needs.
var setUpCapabilities = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_NET_BIND_SERVICE}

// privileged tells whether this process may make the namespaces, and set them up, without one of users.
func privileged() bool {
	if os.Geteuid() != 0 {
		return false
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return false
	}
	for _, c := range setUpCapabilities {
		if data[c/32].Effective&(1<<(c%32)) == 0 {
			return false
		}
	}
	return true
}

// Explain makes an *Unavailable of the error with which cmd could not be started.
func (n *Namespace) Explain(err error) error {
	if err == nil || errors.Is(err, exec.ErrNotFound) {
		return err
	}
	return &Unavailable{err, setting()}
}

// setting names what keeps namespaces from being made.
func setting() string {
	number := func(name string) int {
		b, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			return -1
		}
		v, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return -1
		}
		return v
	}
	for _, max := range []string{"user/max_user_namespaces", "user/max_net_namespaces", "user/max_mnt_namespaces"} {
		if number(max) == 0 {
			return "sysctl -w " + strings.ReplaceAll(max, "/", ".") + "=1000"
		}
	}
	switch {
	case number("kernel/unprivileged_userns_clone") == 0:
		return "sysctl -w kernel.unprivileged_userns_clone=1"
	case number("kernel/apparmor_restrict_unprivileged_userns") > 0:
		return "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bridge with the rule userns"
	case filtered():
		return "a seccomp filter that lets unshare and mount pass: in a container, docker run --privileged"
	}
	return ""
}

// filtered tells whether a seccomp filter judges this process's calls, as in most containers.
func filtered() bool {
	b, _ := os.ReadFile("/proc/self/status")
	return strings.Contains(string(b), "\nSeccomp:\t2\n")
}

// Open waits until the namespace is set up, and returns its sockets. The error wraps an *Unavailable when this machine does not allow
// it, and a *FilesError when it is for the Files. After an error the first process ends.
func (n *Namespace) Open(ctx context.Context) (*Sockets, error) {
	_ = n.other.Close() // now the first process's end tells when it has ended
	defer n.bound(ctx)()
	ask, err := json.Marshal(n.o)
	if err == nil && len(ask) > maxReport {
		n.left = []string{fmt.Sprintf("all of the files: %d paths are too many", len(n.o.Files.Paths))}
		n.o.Files = Files{}
		ask, err = json.Marshal(n.o)
	}
	if err != nil {
		return nil, &Unavailable{err, ""}
	}
	if _, err := n.talk.Write(ask); err != nil {
		return nil, &Unavailable{fmt.Errorf("its first process has ended: %w", err), setting()}
	}
	got, files, err := receive(n.talk, maxReport)
	if err == nil && got.Error != "" {
		err = errors.New(got.Error)
		if got.InFiles {
			err = &FilesError{err}
		}
	}
	if err == nil && n.o.Dialled {
		files, err = n.maker.take(files, got.Maker) // first: it is there, and has to be ended
	}
	if err == nil {
		n.left, n.hidden = append(n.left, got.Left...), got.Hidden
		n.guard, err = startGuard(got.Namespace)
	}
	if err != nil {
		closeAll(files)
		return nil, &Unavailable{err, setting()}
	}
	return sockets(files, len(n.o.IPv6) > 0, got.More)
}

// Left are the Files that are not at their paths, and why, a line each. Call it after Open.
func (n *Namespace) Left() []string { return n.left }

// Hidden are the paths at which this machine has something that the Files hide. Call it after Open.
func (n *Namespace) Hidden() []string { return n.hidden }

// Run has the first process become the program. The error says why that cannot be.
func (n *Namespace) Run(ctx context.Context) error {
	defer n.bound(ctx)()
	if _, err := n.talk.Write([]byte("{}")); err != nil {
		return err
	}
	got, _, err := receive(n.talk, maxReport)
	if errors.Is(err, io.EOF) {
		return nil // its end was closed when the program took its place
	}
	if err != nil {
		return err
	}
	return errors.New(got.Error)
}

// bound bounds the talk by ctx and by setUpTime.
func (n *Namespace) bound(ctx context.Context) func() {
	_ = n.talk.SetDeadline(time.Now().Add(setUpTime))
	stop := context.AfterFunc(ctx, func() { _ = n.talk.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// Close ends what is left in the namespace: with SIGTERM, and with SIGKILL after a while. The program has to have ended, or never
// to have been started.
func (n *Namespace) Close() {
	_ = n.other.Close()
	_ = n.talk.Close()
	n.maker.close()
	n.guard.end()
}

// Try makes a namespace with these options, and ends it: an error says that it is not to be had, and wraps an *Unavailable.
func Try(ctx context.Context, o Options) error {
	n, err := New(o)
	if err != nil {
		return err
	}
	defer n.Close()
	cmd := &exec.Cmd{Path: self, Args: []string{self}, SysProcAttr: &syscall.SysProcAttr{Setsid: true}} // what the terminal sends is not for it
	n.Enter(cmd)
	if err := cmd.Start(); err != nil {
		return n.Explain(err)
	}
	sockets, err := n.Open(ctx)
	if err == nil {
		sockets.Close()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return err
}

// report is what the first process says: once when all is set up, with the sockets, and once more if the program cannot be run.
type report struct {
	Error     string   `json:",omitempty"`
	InFiles   bool     `json:",omitempty"` // the error is about Files
	Namespace string   // its name, as /proc has it
	More      []string // what the files are behind those that there always are
	Maker     int      // the process, whose socket comes last; 0 for none
	Left      []string
	Hidden    []string
}

// maxReport is longer than any; maxFiles more than are handed over.
const (
	maxReport = 64 << 10
	maxFiles  = 253 // the kernel's own bound
)

func receive(c *net.UnixConn, limit int) (*report, []*os.File, error) {
	b, oob := make([]byte, limit), make([]byte, unix.CmsgSpace(maxFiles*4))
	size, oobn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, nil, err
	}
	if size == 0 {
		return nil, nil, io.EOF
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "socket"))
		}
	}
	var r report
	if err := json.Unmarshal(b[:size], &r); err != nil {
		closeAll(files)
		return nil, nil, err
	}
	return &r, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// sockets are what the first process has handed over, in its order.
func sockets(files []*os.File, ipv6 bool, more []string) (*Sockets, error) {
	defer func() { closeAll(files) }() // those that are left
	s := &Sockets{}
	var errs []error
	next := func() *os.File {
		if len(files) == 0 {
			errs = append(errs, errors.New("the namespace's first process has handed over too little"))
			return nil
		}
		f := files[0]
		files = files[1:]
		return f
	}
	listener := func() *net.TCPListener {
		f := next()
		if f == nil {
			return nil
		}
		defer func() { _ = f.Close() }()
		l, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		return l.(*net.TCPListener)
	}
	packets := func() *net.UDPConn {
		f := next()
		if f == nil {
			return nil
		}
		defer func() { _ = f.Close() }()
		c, err := net.FilePacketConn(f)
		if err != nil {
			errs = append(errs, err)
			return nil
		}
		return c.(*net.UDPConn)
	}
	s.DNS, s.DNSUDP = listener(), packets()
	s.TCP = append(s.TCP, listener())
	if ipv6 {
		s.TCP = append(s.TCP, listener())
	}
	for _, kind := range more {
		switch kind {
		case tun, veth:
			if s.Device = next(); s.Device != nil {
				errs = append(errs, nonblocking(s.Device)) // handing it over has undone it
			}
			if kind == veth {
				s.Link = vethAddress
			}
		case namesPass:
			s.NamesPass = true
		case redirected:
			s.Redirected = true
		case localPort:
			s.TCP = append(s.TCP, listener())
		default:
			if s.Datagrams == nil {
				s.Datagrams = &Datagrams{}
			}
			if f := next(); f != nil {
				errs = append(errs, s.Datagrams.add(kind, f))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func nonblocking(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetNonblock(int(fd), true) })
	return errors.Join(err, set)
}

// Original is what c, accepted from one of Sockets.TCP, was sent to: where it was accepted, if it was not redirected.
func Original(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, net.ErrClosed
	}
	const originalDst = 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
	var to netip.AddrPort
	var asked error
	err = raw.Control(func(fd uintptr) {
		// Both calls read into what is large enough for a socket address of the family.
		if local.IP.To4() != nil {
			var m *unix.IPv6Mreq
			if m, asked = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, originalDst); asked == nil {
				b := m.Multiaddr // a sockaddr_in: family, port, address
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			}
			return
		}
		var m *unix.IPv6MTUInfo
		if m, asked = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, originalDst); asked == nil {
			p := m.Addr.Port // in the network's order
			to = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), p<<8|p>>8)
		}
	})
	if err == nil && (errors.Is(asked, unix.ENOENT) || errors.Is(asked, unix.ENOPROTOOPT)) {
		return local.AddrPort(), nil
	}
	return to, errors.Join(err, asked)
}
