// Package netns runs a program of the user's in a network of its own, whose only way out is bridge: a network and a mount namespace,
// below a user namespace where bridge is not root, made with nothing of this machine changed, and gone when the program has ended.
// internal/connect calls it, and decides where each connection goes; it alone imports google/nftables.
//
// The namespace's first process is bridge itself (First): it sets up, opens the sockets, hands them to the bridge that has started it,
// and becomes the program. In there
//
//   - every address is local to the loopback device, so that whatever is sent arrives in the namespace again;
//   - TCP to any of them is redirected to one listener, and what it was sent to is asked of the kernel (Original);
//   - UDP to port 53 of any IPv4 address arrives at the DNS server's socket; other UDP, and echo requests (ping), at sockets that tell what they were
//     sent to (Datagrams);
//   - the namespace's own loopback (127.0.0.0/8, ::1) is as on any machine; nothing else (SCTP) may be sent;
//   - /etc/resolv.conf names the DNS server, and /etc/nsswitch.conf has names looked up in files and in DNS alone;
//   - Files are at their paths.
//
// Where nftables is missing a device takes its place: all but the namespace's own loopback, and UDP to port 53, is routed to it, and its packets are handed out.
// Where it cannot tell what a datagram was sent to (nft_tproxy), that device is for all but TCP. It is a TUN device or, where none may be opened, one end of a
// veth pair, with a packet socket at the other.
//
// A second process (the guard) ends what is left in the namespace when the program has ended, or when bridge was killed. A third
// (the maker), in there, makes the sockets with which bridge reaches the program's own ports (Control).
package netns

import (
	"net"
	"net/netip"
	"os"
)

// Addresses of documentation (RFC 5737, RFC 3849), which nobody has: the namespace's own, and Host, by which the programs in it reach
// the loopback of this machine.
var (
	own4 = netip.MustParseAddr("192.0.2.1")
	own6 = netip.MustParseAddr("2001:db8::1")
	Host = netip.MustParseAddr("192.0.2.2")
)

// Options are what may differ. The zero value works.
type Options struct {
	// IPv6 are the ranges of IPv6 that are to be had. Others fail at once, as on a machine without: a connection is accepted before
	// anybody knows whether its target can be reached, so a program that has both would wait for the wrong one.
	IPv6 []netip.Prefix

	// LocalPorts are TCP ports of 127.0.0.1 that are redirected too.
	LocalPorts []uint16

	// Free are ports of its loopback that are left to the programs: no socket of bridge's has one of them.
	Free []uint16

	// Dialled has Control and Listens work.
	Dialled bool

	// MTU is that of the device that takes the place of nftables, if it is not the usual one.
	MTU uint32

	// Without are features that are not used, as if this kernel had none of them.
	Without Feature

	Files Files
}

// Feature is what a kernel may have, and let one use, or several.
type Feature uint8

// The features that something else takes the place of.
const (
	NFTables Feature = 1 << iota
	TProxy           // nftables' way to tell what a datagram was sent to
	TUN              // /dev/net/tun
)

// Files are files and folders that are put in the place of what this machine has at their paths, for the programs in the namespace alone.
// A folder follows what is made and changed in it; a file that is replaced by another stays as it was.
type Files struct {
	Root  string   // the folder that has them
	Paths []string // below Root, and for the programs; none is below another
}

// Sockets are open in the namespace. Whoever gets them closes them.
type Sockets struct {
	TCP    []*net.TCPListener // what is redirected: IPv4's, and IPv6's if there is any
	DNS    *net.TCPListener
	DNSUDP *net.UDPConn // gets what is sent to port 53 of any address
	// Datagrams is nil where the kernel hands out none.
	Datagrams *Datagrams
	// Device, which is not nil where there is no nftables, has the packets of all that is sent to others: of TCP there is at TCP what is sent to LocalPorts,
	// and Datagrams is nil.
	Device *os.File
	// Link is the Device's address where each of its packets has an Ethernet header.
	Link net.HardwareAddr
	// Redirected tells that TCP is redirected in spite of the Device.
	Redirected bool
	// NamesPass tells that UDP to port 53 of others is among its packets, as this kernel routes no port apart.
	NamesPass bool
}

// Close closes all of them.
func (s *Sockets) Close() {
	for _, l := range append(s.TCP, s.DNS) {
		if l != nil {
			_ = l.Close()
		}
	}
	if s.DNSUDP != nil {
		_ = s.DNSUDP.Close()
	}
	s.Datagrams.Close()
	if s.Device != nil {
		_ = s.Device.Close()
	}
}

// FilesError is why a namespace is not to be had with its Files: it may be without.
type FilesError struct{ Err error }

func (e *FilesError) Error() string { return "put files at their paths: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *FilesError) Unwrap() error { return e.Err }

// Unavailable is why this machine does not let one have such a namespace.
type Unavailable struct {
	Err     error
	Setting string // what would allow it; "" where that is not known
}

func (e *Unavailable) Error() string { return "a network namespace: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Unavailable) Unwrap() error { return e.Err }
