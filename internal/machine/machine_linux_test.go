package machine

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bridge/internal/hint"
)

// inside calls f in a network namespace of the test's own, on a thread that ends with it.
func inside(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skipf("no network namespace: %v", err)
	}
}

func ip(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
	if err != nil {
		t.Errorf("ip %s: %v: %s", line, err, out)
	}
	return string(out)
}

// The device, its address and its routes are there until Close, and what the machine has is seen: default route, gateway, networks.
func TestTheDeviceAndItsRoutesComeAndGo(t *testing.T) {
	inside(t, func() {
		for _, line := range []string{
			"link set lo up", "link add eth0 type veth peer name eth1", "link set eth1 up", "address add 192.168.7.2/24 dev eth0", "link set eth0 up", "route add default via 192.168.7.1",
			"route add 10.8.0.0/16 via 192.168.7.9", "route add blackhole 10.9.0.0/16",
		} {
			ip(t, line)
		}
		has, err := routes()
		if err != nil {
			t.Error(err)
		}
		for _, want := range []string{"0.0.0.0/0 via 192.168.7.1 dev eth0", "192.168.7.0/24 dev eth0", "10.8.0.0/16 via 192.168.7.9 dev eth0"} {
			if !slices.ContainsFunc(has, func(r Route) bool { return r.String() == want }) {
				t.Errorf("%v has not %s", has, want)
			}
		}
		j, err := hold(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Error(err)
			return
		}
		m := &Machine{say: func(string) {}, journal: j, fd: -1}
		refused := m.Plan(prefixes("192.168.0.0/16"), true, nil)
		if refused == nil || !strings.Contains(refused.Error(), "would swallow the default gateway, 192.168.7.1") {
			t.Errorf("%v", refused)
		}
		if err := m.Plan(prefixes("10.244.0.0/24", "::ffff:10.96.0.0/112", "10.244.1.0/24"), false, []netip.Addr{netip.MustParseAddr("192.0.2.8")}); err != nil {
			t.Error(err)
			return
		}
		before := ip(t, "-4 -o route show table all") + ip(t, "-4 -o address")
		if _, err := m.Open(65520); err != nil {
			t.Error(err)
			return
		}
		got := ip(t, "route")
		for _, want := range []string{"10.244.0.0/23 dev tun-bridge", "10.96.0.0/16 dev tun-bridge"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %s in:\n%s", want, got)
			}
		}
		if link := ip(t, "link show tun-bridge"); !strings.Contains(link, "mtu 65520") || !strings.Contains(link, "UP") {
			t.Error(link)
		}
		if err := errors.Join(m.Close(), m.Close()); err != nil {
			t.Error(err)
		}
		if after := ip(t, "-4 -o route show table all") + ip(t, "-4 -o address"); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	})
}

// An address of IPv6 is this machine's when Open returns, and packets from it leave by the device.
func TestTheDevicesIPv6AddressIsLocal(t *testing.T) {
	inside(t, func() {
		ip(t, "link set lo up")
		j, err := hold(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Error(err)
			return
		}
		var said []string
		m := &Machine{say: func(line string) { said = append(said, line) }, journal: j, fd: -1}
		if err := m.Plan(prefixes("10.96.0.0/16", "fd77::/64"), false, nil); err != nil {
			t.Error(err)
			return
		}
		_, err = m.Open(65520)
		if got := ip(t, "-6 route get "+own6.String()); err != nil || len(said) > 0 || !strings.HasPrefix(got, "local ") {
			t.Errorf("%v, it said %q; %s", err, said, got)
		}
		if got := ip(t, "-6 route get fd77::1"); !strings.Contains(got, "dev tun-bridge") || !strings.Contains(got, "src "+own6.String()) {
			t.Error(got)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}

// A device of that name which is somebody's stays theirs: it would outlive the process, with the routes.
func TestADeviceOfSomebodysIsNotTaken(t *testing.T) {
	inside(t, func() {
		ip(t, "tuntap add dev tun-bridge mode tun")
		fd, err := openDevice()
		if err == nil {
			_ = unix.Close(fd)
		}
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(hint.Of(err), "ip link show tun-bridge") {
			t.Errorf("%v; %s", err, hint.Of(err))
		}
	})
}

// A full disk keeps nobody from having the resolver file back that has no more in it than ours has room for. Else it is said, and is undone when there is room.
func TestUndoOnAFullDisk(t *testing.T) {
	const at = "BRIDGE_TEST_SMALL_DISK"
	dir := os.Getenv(at)
	if dir == "" {
		dir = t.TempDir()
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o size=64k none "$1" && exec "$0" -test.run '^TestUndoOnAFullDisk$' -test.v`, os.Args[0], dir)
		cmd.Env = append(os.Environ(), at+"="+dir)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	p := &place{t: t, path: filepath.Join(dir, "resolv.conf"), folder: filepath.Join(dir, "state")}
	full := filepath.Join(dir, "full")
	fill := func() {
		f, err := os.Create(full)
		for err == nil {
			_, err = f.Write(make([]byte, os.Getpagesize()))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	p.write(original)
	p.killed(false, true)
	fill()
	p.undo()
	p.has(original)

	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	long := original + strings.Repeat("# a long one\n", os.Getpagesize()/8)
	p.write(long)
	p.killed(false, true)
	fill()
	if err := undoAll(p.folder, p.path, p.say); hint.CodeOf(err) != hint.RestoreIncomplete || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	p.has(ours)
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	p.undo()
	p.has(long)
}

// Whoever closes it last is told, too, that it is not as before.
func TestCloseSaysAgainWhatHasFailed(t *testing.T) {
	p := newPlace(t)
	p.write(original)
	p.killed(false, true)
	if err := errors.Join(os.Remove(p.path), os.Mkdir(p.path, 0o700)); err != nil {
		t.Fatal(err)
	}
	j, err := hold(p.folder)
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{say: p.say, journal: j, fd: -1}
	for _, f := range []func() error{m.Restore, m.Close, m.Close} {
		if err := f(); hint.CodeOf(err) != hint.RestoreIncomplete || !strings.Contains(hint.Of(err), "--undo") {
			t.Errorf("%v; %s", err, hint.Of(err))
		}
	}
}

// Who is let in are this machine and its containers, and no neighbour: neither on its network nor on one that a bridge joins to it.
func TestNeighboursAreNotLocal(t *testing.T) {
	inside(t, func() {
		for _, line := range []string{
			"link add eth0 type ifb", "address add 192.168.7.2/24 dev eth0",
			"link add docker0 type bridge", "address add 172.17.0.1/16 dev docker0", "address add fe80::7/64 dev docker0 nodad", "link add c0 type veth peer name c1", "link set c0 master docker0",
			"link add br0 type bridge", "address add 192.168.8.2/24 dev br0", "link add eth1 type ifb", "link set eth1 master br0",
		} {
			ip(t, line)
		}
		m := &Machine{own: netip.MustParseAddr("198.19.249.53")}
		for text, want := range map[string]bool{
			"198.19.249.53": true, "192.168.7.2": true, "::ffff:192.168.7.2": true, "192.168.8.2": true, "172.17.0.9": true, "fe80::7": true, own6.String(): true,
			"192.168.7.3": false, "192.168.8.3": false, "203.0.113.5": false, "fe80::1%eth0": false,
		} {
			if got := m.Local(netip.MustParseAddr(text)); got != want {
				t.Errorf("%s: %v", text, got)
			}
		}
	})
}

// Who has logged in by SSH is known also behind sudo, which clears the environment.
func TestTheSSHPeerIsFoundBehindSudo(t *testing.T) {
	c := exec.Command("sh", "-c", `env -i sh -c 'echo $$; exec sleep 1000' & wait`)
	c.Env = append(os.Environ(), "SSH_CONNECTION=203.0.113.9 50000 192.0.2.1 22", "SSH_CLIENT=203.0.113.9 50000 22")
	c.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Kill(-c.Process.Pid, unix.SIGKILL)
		_ = c.Wait()
	}()
	var pid int
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &pid)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := sshPeers(pid); !slices.Contains(got, netip.MustParseAddr("203.0.113.9")) {
		t.Errorf("%v", got)
	}
}
