package machine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bridge/internal/hint"
)

// Machine is this one, held: no other bridge changes it until Close.
type Machine struct {
	say     func(string)
	journal *journal
	way     way
	ranges  []netip.Prefix
	own     netip.Addr // the device's, and the DNS server's
	system  []string   // the resolvers from before
	fd      int        // of the device, or -1
	closed  bool
	err     error // of Close

	mu     sync.Mutex
	inner  []netip.Prefix // as inner tells
	looked time.Time
}

// Hold takes this machine, and changes back what a bridge that was killed has left. A resolver file of bridge's that nobody can change back is an error:
// its server would be taken for the system's. The error has a hint.
func Hold(say func(string)) (*Machine, error) {
	if os.Geteuid() != 0 {
		return nil, notRoot("with sudo, and the kubeconfig named: sudo bridge --kubeconfig ~/.kube/config connect --tun; or without root: bridge connect -- CMD")
	}
	j, err := take(stateFolder, resolverPath, say)
	if err != nil {
		return nil, err
	}
	return &Machine{say: say, journal: j, fd: -1}, nil
}

// Undo changes back what a bridge that was killed has left, and says so.
func Undo(say func(string)) error {
	if os.Geteuid() != 0 {
		return notRoot("with sudo: sudo bridge connect --undo")
	}
	return undoAll(stateFolder, resolverPath, say)
}

func notRoot(next string) error {
	return hint.Newf(hint.Other, next, "routes and the resolver of this machine are root's to change")
}

// Plan says whether ranges may be routed here, and says in notes what that takes from others. asked is that the user has named them, and api
// are the API server's addresses. The error has a hint.
func (m *Machine) Plan(ranges []netip.Prefix, asked bool, api []netip.Addr) error {
	m.ranges = merge(ranges)
	has, err := routes()
	if err != nil {
		return err
	}
	file, err := os.ReadFile(resolverPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m.way = inCharge(target(resolverPath), file, func(program string) bool { _, err := exec.LookPath(program); return err == nil })
	if m.system, err = servers(m.way); err != nil {
		return err
	}
	if behind := target(resolverPath); m.way == byFile && behind != resolverPath {
		mounted, err := isMounted(behind)
		if err != nil {
			return err
		}
		if mounted {
			return hint.Newf(hint.Other, "have /etc be this place's own; or: bridge connect -- CMD",
				"%s is a link to %s, on which something is mounted: what it says is this place's, and the link everybody's", resolverPath, behind)
		}
	}
	notes, err := check(m.ranges, asked, has, m.precious(has, api))
	if err != nil {
		return err
	}
	for _, n := range notes {
		m.say(n)
	}
	m.own, err = own4(m.ranges, has, nil)
	return err
}

// Ranges are those that are routed, merged.
func (m *Machine) Ranges() []netip.Prefix { return m.ranges }

// Address is the device's own, of IPv4, for the DNS server. Call Plan before.
func (m *Machine) Address() netip.Addr { return m.own }

// System gives the resolvers of before ("host:port").
func (m *Machine) System() ([]string, error) {
	if m.way == byResolved { // which follows the networks that come and go
		return servers(m.way)
	}
	return m.system, nil
}

// localTime is how long it is remembered which addresses are this machine's.
const localTime = time.Second

// Local tells whether a packet's sender may be a program of this machine: the address is one of its own, or of a network that is in it alone, as that of its containers is.
// A neighbour whose packets arrive here, to be forwarded or to the device's address, is none.
func (m *Machine) Local(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a == m.own || a == own6 {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); m.looked.IsZero() || now.Sub(m.looked) >= localTime {
		if list, err := inner(); err == nil { // else as before: containers come and go while it is listed
			m.inner, m.looked = list, now
		}
	}
	return slices.ContainsFunc(m.inner, func(p netip.Prefix) bool { return p.Contains(a) })
}

// inner are the addresses of this machine, each alone, and the networks of its bridges that have no port to the outside.
func inner() (list []netip.Prefix, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	outside := make(map[int]bool) // bridges, by index
	for _, l := range links {
		if t := l.Type(); t != "veth" && t != "tuntap" && t != "tun" {
			outside[l.Attrs().MasterIndex] = true
		}
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		for _, at := range addresses {
			if at.LinkIndex != l.Attrs().Index || at.IPNet == nil {
				continue
			}
			addr, _ := netip.AddrFromSlice(at.IP)
			addr = addr.Unmap()
			bits := addr.BitLen()
			if l.Type() == "bridge" && !outside[l.Attrs().Index] && !addr.IsLinkLocalUnicast() { // that is any link's
				bits, _ = at.Mask.Size()
			}
			list = append(list, netip.PrefixFrom(addr, bits).Masked())
		}
	}
	return list, nil
}

// precious is what has to be reached as before.
func (m *Machine) precious(has []Route, api []netip.Addr) (list []Precious) {
	add := func(a netip.Addr, what string) {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsLoopback() {
			list = append(list, Precious{a, what})
		}
	}
	for _, a := range api {
		add(a, "the API server")
	}
	for _, r := range has {
		if r.byDefault() {
			add(r.Gateway, "the default gateway")
		}
	}
	for _, s := range m.system {
		if host, _, err := net.SplitHostPort(s); err == nil {
			a, _ := netip.ParseAddr(host)
			add(a, "a DNS server in use")
		}
	}
	for _, a := range sshPeers(os.Getpid()) {
		add(a, "where your SSH session comes from")
	}
	return list
}

// sshPeers are from where somebody has logged in by SSH to run the process pid, as its environment tells, or that of who has started it:
// sudo clears it.
func sshPeers(pid int) (list []netip.Addr) {
	for pid > 1 {
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		for v := range strings.SplitSeq(string(environment), "\x00") {
			name, value, _ := strings.Cut(v, "=")
			if name != "SSH_CONNECTION" && name != "SSH_CLIENT" {
				continue
			}
			if a, err := netip.ParseAddr(first(value)); err == nil && !slices.Contains(list, a) {
				list = append(list, a)
			}
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return list
		}
		// "PID (NAME) STATE PARENT ...", and the name may have anything.
		rest := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(rest) < 2 {
			return list
		}
		if pid, err = strconv.Atoi(rest[1]); err != nil {
			return list
		}
	}
	return list
}

// routes are this machine's, of the main table.
func routes() (list []Route, err error) {
	all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("the routes of this machine: %w", err)
	}
	for _, r := range all {
		if r.Type != unix.RTN_UNICAST {
			continue
		}
		to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Family == netlink.FAMILY_V6 {
			to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if r.Dst != nil {
			addr, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if r.Family == netlink.FAMILY_V4 {
				addr = addr.Unmap()
			}
			to = netip.PrefixFrom(addr, bits)
		}
		hops := []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw}}
		if len(r.MultiPath) > 0 {
			hops = r.MultiPath
		}
		for _, h := range hops {
			gateway, _ := netip.AddrFromSlice(h.Gw)
			list = append(list, Route{To: to, Device: deviceName(h.LinkIndex), Gateway: gateway.Unmap()})
		}
	}
	return list, nil
}

func deviceName(index int) string {
	if l, err := netlink.LinkByIndex(index); err == nil {
		return l.Attrs().Name
	}
	return fmt.Sprintf("number %d", index)
}

// Open makes the device and the routes, and returns the device's descriptor, which Close closes. Both end with this process, if not before.
func (m *Machine) Open(mtu int) (device int, err error) {
	if m.fd, err = openDevice(); err != nil {
		return -1, err
	}
	link, err := netlink.LinkByName(Device)
	if err != nil {
		return -1, fmt.Errorf("the device %s: %w", Device, err)
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return -1, fmt.Errorf("the device %s: its MTU: %w", Device, err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(m.own, 32))}); err != nil {
		return -1, fmt.Errorf("the device %s: its address: %w", Device, err)
	}
	six := slices.ContainsFunc(m.ranges, func(r netip.Prefix) bool { return r.Addr().Is6() })
	if six {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(own6, 128)), Flags: unix.IFA_F_NODAD}); err != nil {
			six = false
			m.say(fmt.Sprintf("note: this machine has no IPv6, so the cluster's addresses of IPv6 are not reached: %v", err))
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return -1, fmt.Errorf("the device %s: %w", Device, err)
	}
	if six {
		if err := awaitLocal(own6); err != nil {
			return -1, fmt.Errorf("the device %s: its address %s: %w", Device, own6, err)
		}
	}
	for _, r := range m.ranges {
		src := m.own
		if r.Addr().Is6() {
			if src = own6; !six {
				continue
			}
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(r), Src: src.AsSlice(), Scope: netlink.SCOPE_LINK}); err != nil {
			return -1, fmt.Errorf("a route to %s: %w", r, err)
		}
	}
	return m.fd, nil
}

const (
	// localPatience bounds how long the kernel has for an address of IPv6, which is usually ready within a millisecond.
	localPatience = 5 * time.Second
	localLook     = time.Millisecond
)

// awaitLocal waits until an address of the device is this machine's: the kernel makes one of IPv6 so after it has given it out, and forwards, or drops, what
// comes for it before.
func awaitLocal(a netip.Addr) error {
	for end := time.Now().Add(localPatience); ; time.Sleep(localLook) {
		list, err := netlink.RouteGet(a.AsSlice())
		if err == nil && len(list) > 0 && list[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if time.Now().After(end) {
			return errors.Join(errors.New("the kernel does not take it for this machine's"), err)
		}
	}
}

// allocated is the room that a file has on its disk, in bytes.
func allocated(info os.FileInfo) int64 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return 0
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func openDevice() (fd int, err error) {
	const path = "/dev/net/tun"
	fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, hint.Newf(hint.Other, "modprobe tun; in a container it takes --device "+path+" and --cap-add NET_ADMIN", "open %s: %w", path, err)
	}
	r, err := unix.NewIfreq(Device)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL) // nobody else's: it would stay, with our routes
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		_ = unix.Close(fd)
		next := "it takes the capability NET_ADMIN"
		if errors.Is(err, unix.EBUSY) {
			next = "somebody else has a device of that name: ip link show " + Device
		}
		return -1, hint.Newf(hint.Other, next, "make the device %s: %w", Device, err)
	}
	return fd, nil
}

// Resolve has this machine's programs ask the DNS server, which answers at port 53 of Address, and says who tells them so.
func (m *Machine) Resolve(z Zones) error {
	switch m.way {
	case byResolved:
		for _, args := range resolvectl(m.own, z, m.ranges) {
			if err := command(nil, "resolvectl", args...); err != nil {
				return err
			}
		}
		m.say(fmt.Sprintf("systemd-resolved asks bridge for %s, svc and short names of one label", z.Domain))
		return nil
	case byResolvconf:
		return m.resolvconf()
	}
	before, err := look(resolverPath)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(resolverPath)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	mounted, err := isMounted(resolverPath)
	if err != nil {
		return err
	}
	c := &fileChange{Path: resolverPath, Before: before, After: resolverFile(text, m.own.String(), thisRun()), Servers: nameservers(text), InPlace: mounted}
	if err := m.journal.begin(record{File: c}); err != nil {
		return err
	}
	if err := c.do(); err != nil {
		return fmt.Errorf("have %s name bridge's DNS server: %w", resolverPath, err)
	}
	m.say(resolverPath + " names bridge's DNS server")
	return nil
}

// Watch says when somebody else has programs ask another DNS server, and when they ask ours again, until ctx is done. It is for after Resolve. What systemd-resolved
// is told by others it does not see.
func (m *Machine) Watch(ctx context.Context) {
	if m.way != byResolved {
		watch(ctx, resolverPath, m.own.String(), m.say)
	}
}

// thisRun says which bridge writes a file, for whoever reads it, as nobody else does.
func thisRun() string {
	return fmt.Sprintf("process %d, %s", os.Getpid(), time.Now().UTC().Format(time.RFC3339Nano))
}

func (m *Machine) resolvconf() error {
	text, err := os.ReadFile(resolverPath)
	if err != nil {
		return err
	}
	if err := m.journal.begin(record{Resolvconf: true}); err != nil {
		return err
	}
	// openresolv heeds -m 0 -x, first and alone; Debian's sorts by the device's name.
	if err := command(resolverFile(text, m.own.String(), thisRun()), "resolvconf", "-a", Device, "-m", "0", "-x"); err != nil {
		return err
	}
	now, err := os.ReadFile(resolverPath)
	if err != nil {
		return err
	}
	if s := nameservers(now); len(s) == 0 || s[0] != m.own.String() {
		return hint.Newf(hint.Other, "have it come first: /etc/resolvconf/interface-order", "resolvconf has not put %s first in %s, which names %q", m.own, resolverPath, s)
	}
	m.say("resolvconf has " + resolverPath + " name bridge's DNS server")
	return nil
}

// isMounted tells whether something is mounted at path.
func isMounted(path string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == path {
			return true, nil
		}
	}
	return false, nil
}

// Restore brings the resolver back, for which the DNS server goes on. Close does what is left. Both may be called again.
func (m *Machine) Restore() error {
	if m.closed || !m.journal.pending() {
		return nil
	}
	return m.journal.undo(m.say)
}

// Close changes everything back and lets go of this machine. Called again it says again what has failed.
func (m *Machine) Close() error {
	if m.closed {
		return m.err
	}
	m.err = m.Restore()
	m.closed = true
	if m.fd >= 0 {
		_ = unix.Close(m.fd)
		m.fd = -1
		if m.way == byResolved {
			_ = command(nil, "resolvectl", "flush-caches") // what it has heard from us
		}
	}
	m.journal.end()
	return m.err
}
