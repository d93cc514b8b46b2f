package netns

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"bridge/internal/procnet"
)

// Listens tells whether a program listens on a TCP port of the namespace's localhost, 127.0.0.1 or ::1. It asks the kernel, and not the program, which may
// take a connection that says nothing amiss, as debuggers do. It takes Options.Dialled.
func (n *Namespace) Listens(port uint16) bool {
	for _, table := range []string{"tcp", "tcp6"} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.maker.process.Pid, table))
		for line := range strings.Lines(string(b)) {
			if s, ok := procnet.Parse(line); ok && s.State == procnet.Listening && s.Local.Port() == port && slices.Contains(localhost, s.Local.Addr()) {
				return true
			}
		}
	}
	return false
}

// localhost are the addresses at which a listener is at localhost.
var localhost = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback(), netip.IPv4Unspecified(), netip.IPv6Unspecified()}
