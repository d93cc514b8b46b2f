package forward

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"bridge/internal/hint"
	"bridge/internal/procnet"
)

// own is this process's number; another in tests.
var own = strconv.Itoa(os.Getpid())

// holder is " by PROGRAM (process PID)" for who has the address; empty when that cannot be seen, as of other users' processes.
func holder(addr net.Addr) string {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return ""
	}
	inodes := map[string]bool{}
	for _, file := range []string{addr.Network(), addr.Network() + "6"} {
		f, err := os.Open("/proc/self/net/" + file)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if s, ok := procnet.Parse(lines.Text()); ok && holds(s, at, addr.Network() == "tcp") {
				inodes["socket:["+s.Inode+"]"] = true
			}
		}
		_ = f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range descriptors {
		if link, err := os.Readlink(fd); err != nil || !inodes[link] {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		if filepath.Base(process) == own {
			return " by another port here: it is given twice"
		}
		name, _ := os.ReadFile(process + "/comm")
		return fmt.Sprintf(" by %s (process %s)", hint.Printable(string(name)), filepath.Base(process))
	}
	return ""
}

// holds tells whether a socket keeps others from at.
func holds(s procnet.Socket, at netip.AddrPort, tcp bool) bool {
	if tcp && s.State != procnet.Listening || s.Local.Port() != at.Port() {
		return false
	}
	ip := s.Local.Addr()
	return ip == at.Addr().Unmap() || ip.IsUnspecified() || at.Addr().IsUnspecified()
}
