package intercept

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"bridge/internal/ping"
)

// dialTimeout bounds a dial that nobody answers. The laptop's own patience usually ends before.
const dialTimeout = 30 * time.Second

// Dialer makes the connections that the laptop asks for, with the pod's resolver and network. It refuses
// what would hand out more than the cluster's network: the pod's own loopback, where the tunnel
// listens, and the link, where nodes and clouds keep credentials (169.254.169.254).
type Dialer struct {
	// Resolvers are the nameservers of the pod, and may be asked (port 53) wherever they are: a node's
	// DNS cache is at a link-local address.
	Resolvers []netip.Addr
	// Loopback are TCP ports of the pod's own loopback that may be dialled.
	Loopback []int
	// Allow are addresses of the link, and metadata services, that may be dialled.
	Allow []netip.Prefix
}

// DialContext connects to address, "host:port"; of network "icmp" it is an IP address, to be sent echo requests. What is refused is the address after resolution; the
// error then wraps syscall.EACCES, which the tunnel passes on.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if network == "icmp" {
		if err := d.control(ctx, network, address, nil); err != nil {
			return nil, err
		}
		return ping.Dial(ctx, address)
	}
	dialer := net.Dialer{Timeout: dialTimeout, ControlContext: d.control}
	return dialer.DialContext(ctx, network, address)
}

// control is called with each address that is tried, before the first packet.
func (d *Dialer) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s %s: %w", network, address, err)
	}
	ip := a.Addr().Unmap().WithZone("")
	if a.Port() == 53 && slices.Contains(d.Resolvers, ip) {
		return nil
	}
	if ip.IsLoopback() && strings.HasPrefix(network, "tcp") && slices.Contains(d.Loopback, int(a.Port())) {
		return nil
	}
	why := forbidden(ip)
	if (why == linkLocal || why == metadata) && slices.ContainsFunc(d.Allow, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return nil
	}
	if why != "" {
		return fmt.Errorf("%s addresses are not reachable through the proxy: %w", why, syscall.EACCES)
	}
	return nil
}

// The kinds of addresses that are dialled for those alone who allow it.
const (
	linkLocal = "link-local"
	metadata  = "metadata"
)

// forbidden says of what kind an address is that is not dialled; "" for the others.
func forbidden(ip netip.Addr) string {
	// The prefix that stands for IPv4 addresses in networks without IPv4 (RFC 6052).
	if nat64 := netip.MustParsePrefix("64:ff9b::/96"); nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	// The clouds' metadata services outside of the link-local addresses.
	switch ip.String() {
	case "fd00:ec2::254", // AWS
		"fd20:ce::254",    // Google
		"168.63.129.16",   // Azure
		"100.100.100.200", // Alibaba
		"192.0.0.192":     // Oracle
		return metadata
	}
	switch {
	case ip.IsLoopback():
		return "loopback"
	case ip.IsUnspecified():
		return "unspecified"
	case ip.IsLinkLocalUnicast():
		return linkLocal
	case ip.IsMulticast():
		return "multicast"
	}
	return ""
}
