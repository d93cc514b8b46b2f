package netns

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"bridge/internal/ping"
)

// asInPods lets programs listen on ports below 1024, and send echo requests, without being root. Where it cannot be, they may what they may outside.
func asInPods() {
	_ = os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0)
	_ = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", fmt.Appendf(nil, "%[1]d %[1]d", os.Getgid()), 0) // of both versions; no other group is known here
}

const (
	loopback   = "lo"
	deviceName = "bridge0"
)

// routing is where this network's addresses and routes are changed, and its loopback device's number.
func routing() (c *netlink.Conn, lo int, err error) {
	device, err := net.InterfaceByName(loopback)
	if err != nil {
		return nil, 0, err
	}
	c, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
	return c, device.Index, err
}

// links gives the loopback device the namespace's addresses, and makes every address its own; or, if that is not nil, has those of others be the way of device.
func links(o Options, device *net.Interface) error {
	c, lo, err := routing()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for own, others := range map[netip.Addr][]netip.Prefix{own4: {all4}, own6: o.IPv6} {
		if len(others) == 0 {
			continue
		}
		err := addAddress(c, lo, own)
		if errors.Is(err, unix.EEXIST) { // a device was tried before
			err = nil
		}
		if err == nil && device != nil && own.Is6() { // which else it is some time later
			err = addLocal(c, lo, netip.PrefixFrom(own, own.BitLen()), own)
		}
		for _, p := range others {
			switch {
			case err != nil:
			case device != nil:
				err = addRoute(c, device.Index, p, own)
			default:
				err = addLocal(c, lo, p, own)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// device makes one that is the way to all others, and says of which kind it is.
func device(o Options) (kind string, f *os.File, err error) {
	kind = tun
	if o.Without&TUN != 0 {
		err = errors.New("not wanted")
	} else {
		f, err = tunDevice(o)
	}
	if err != nil {
		var other error
		if f, other = vethDevice(o); other != nil {
			return "", nil, fmt.Errorf("%w; nor a veth pair: %w", err, other)
		}
		kind = veth
	}
	way, err := net.InterfaceByName(deviceName)
	if err == nil {
		err = links(o, way)
	}
	if err != nil {
		_ = f.Close()
		if kind == veth { // which does not go with it
			removeLink(way)
		}
		return "", nil, err
	}
	return kind, f, nil
}

// removeLink removes a device, its peer, and their routes.
func removeLink(device *net.Interface) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil || device == nil {
		return
	}
	defer func() { _ = c.Close() }()
	head := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(head[4:], uint32(device.Index)) // ifi_index
	_, _ = c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_DELLINK, Flags: netlink.Request | netlink.Acknowledge}, Data: head})
}

// tunDevice makes a TUN device.
func tunDevice(o Options) (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	r, err := unix.NewIfreq(deviceName)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil && o.MTU != 0 {
		err = setMTU(deviceName, o.MTU)
	}
	if err == nil {
		err = up(deviceName)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// vethAddress is that of the device of a veth pair. Without ARP the system sends to its own.
var vethAddress = net.HardwareAddr{0x02, 'b', 'r', 'd', 'g', 'e'}

// vethBuffer is what a packet socket keeps, in bytes, as far as the system lets it: more than a connection has under way.
const vethBuffer = 1 << 20

// vethDevice makes a pair of devices, and a packet socket at the other one, whose packets have Ethernet headers.
func vethDevice(o Options) (*os.File, error) {
	const other = "bridge1"
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	var head [unix.SizeofIfInfomsg]byte
	named := func(e *netlink.AttributeEncoder, name string) {
		e.String(unix.IFLA_IFNAME, name)
		if o.MTU != 0 {
			e.Uint32(unix.IFLA_MTU, o.MTU)
		}
	}
	peer := netlink.NewAttributeEncoder()
	named(peer, other)
	attributes, err := peer.Encode()
	if err != nil {
		return nil, err
	}
	err = add(c, unix.RTM_NEWLINK, head[:], func(e *netlink.AttributeEncoder) {
		named(e, deviceName)
		e.Bytes(unix.IFLA_ADDRESS, vethAddress)
		e.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
			info.String(unix.IFLA_INFO_KIND, "veth")
			info.Nested(unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) error {
				const vethInfoPeer = 1 // VETH_INFO_PEER, linux/veth.h
				data.Bytes(vethInfoPeer, append(head[:], attributes...))
				return nil
			})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("make a veth pair: %w", err)
	}
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+other+"/disable_ipv6", []byte("1"), 0) // it has nothing to say
	at, err := net.InterfaceByName(other)
	if err != nil {
		return nil, err
	}
	var f *os.File
	if err = errors.Join(setFlags(deviceName, unix.IFF_UP|unix.IFF_NOARP), up(other)); err == nil {
		f, err = packetSocket(at)
	}
	if err != nil {
		removeLink(at)
		return nil, err
	}
	return f, nil
}

// packetSocket has the packets that arrive at a device, and sends others from there.
func packetSocket(at *net.Interface) (*os.File, error) {
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for _, buffer := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, buffer, vethBuffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: at.Index}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), at.Name), nil
}

// namesTable is the routing table of catchNames, and its rule's priority: behind what is local, and before all else.
const namesTable = 53

// catchNames has UDP to port 53 of any IPv4 address arrive in the namespace, at the DNS server's socket, in spite of a device. It takes a kernel with policy
// routing by ports (4.17).
func catchNames(server *net.UDPConn) error {
	if release := kernelRelease(); release[0] < 4 || release[0] == 4 && release[1] < 17 { // it would leave out the ports, and so catch everything, without an error
		return errors.ErrUnsupported
	}
	raw, err := server.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	if err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1) }); err != nil || set != nil { // it answers from there
		return errors.Join(err, set)
	}
	c, lo, err := routing()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := addTo(c, namesTable, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, lo, all4, own4); err != nil {
		return err
	}
	head := []byte{unix.AF_INET, 0, 0, 0, namesTable, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0} // struct fib_rule_hdr
	return add(c, unix.RTM_NEWRULE, head, func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.FRA_PRIORITY, namesTable)
		e.Uint8(unix.FRA_IP_PROTO, unix.IPPROTO_UDP)
		e.Bytes(unix.FRA_DPORT_RANGE, binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 53), 53)) // struct fib_rule_port_range
	})
}

// kernelRelease is the first two numbers of this kernel's version, zeros when it does not tell.
func kernelRelease() (n [2]int) {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &n[0], &n[1])
	}
	return n
}

func up(device string) error { return setFlags(device, unix.IFF_UP) }

// setFlags adds flags to those of a device.
func setFlags(device string, flags uint16) error {
	return change(device, func(fd int, r *unix.Ifreq) error {
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r); err != nil {
			return err
		}
		r.SetUint16(r.Uint16() | flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	})
}

func setMTU(device string, mtu uint32) error {
	return change(device, func(fd int, r *unix.Ifreq) error {
		r.SetUint32(mtu)
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, r)
	})
}

// change has do change a device.
func change(device string, do func(fd int, r *unix.Ifreq) error) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	r, err := unix.NewIfreq(device)
	if err != nil {
		return err
	}
	return do(fd, r)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addAddress gives the device an address (ip address add ADDRESS dev DEVICE).
func addAddress(c *netlink.Conn, device int, a netip.Addr) error {
	head := []byte{family(a), byte(a.BitLen()), unix.IFA_F_NODAD, 0} // struct ifaddrmsg; scope 0 is global
	return add(c, unix.RTM_NEWADDR, binary.NativeEndian.AppendUint32(head, uint32(device)), func(e *netlink.AttributeEncoder) {
		e.Bytes(unix.IFA_LOCAL, a.AsSlice())
		e.Bytes(unix.IFA_ADDRESS, a.AsSlice())
	})
}

// addLocal makes all addresses of p the device's (ip route add local PREFIX dev DEVICE src SOURCE).
func addLocal(c *netlink.Conn, device int, p netip.Prefix, source netip.Addr) error {
	return addTo(c, unix.RT_TABLE_LOCAL, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, device, p, source)
}

// addRoute has what is sent to p leave by the device (ip route add PREFIX dev DEVICE src SOURCE).
func addRoute(c *netlink.Conn, device int, p netip.Prefix, source netip.Addr) error {
	return addTo(c, unix.RT_TABLE_MAIN, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, device, p, source)
}

func addTo(c *netlink.Conn, table, scope, kind byte, device int, p netip.Prefix, source netip.Addr) error {
	head := []byte{ // struct rtmsg, and no flags
		family(p.Addr()), byte(p.Bits()), 0, 0, table, unix.RTPROT_STATIC, scope, kind,
		0, 0, 0, 0,
	}
	return add(c, unix.RTM_NEWROUTE, head, func(e *netlink.AttributeEncoder) {
		if p.Bits() > 0 {
			e.Bytes(unix.RTA_DST, p.Masked().Addr().AsSlice())
		}
		e.Uint32(unix.RTA_OIF, uint32(device))
		e.Bytes(unix.RTA_PREFSRC, source.AsSlice())
	})
}

func add(c *netlink.Conn, kind netlink.HeaderType, head []byte, attributes func(*netlink.AttributeEncoder)) error {
	e := netlink.NewAttributeEncoder()
	attributes(e)
	b, err := e.Encode()
	if err != nil {
		return err
	}
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl},
		Data:   append(head, b...),
	})
	return err
}

// onlyChain says what may be sent.
const onlyChain = "only"

// redirect has TCP to any address but the namespace's own arrive at the two ports, of 127.0.0.1 and ::1 (0: there is no IPv6), and
// lets no protocol but TCP and UDP out.
func redirect(port4, port6 uint16, localPorts []uint16) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	t := c.AddTable(ownTable)
	nat := c.AddChain(&nftables.Chain{
		Name: "redirect", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	only := c.AddChain(&nftables.Chain{
		Name: onlyChain, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	rule := func(chain *nftables.Chain, parts ...[]expr.Any) { c.AddRule(newRule(chain, parts...)) }
	for _, p := range localPorts {
		rule(nat, to(loopback4), protocol(unix.IPPROTO_TCP), toPort(p), redirectTo(port4))
	}
	for _, p := range within {
		rule(nat, to(p), accept)
		rule(only, to(p), accept)
	}
	rule(nat, version(unix.NFPROTO_IPV4), protocol(unix.IPPROTO_TCP), redirectTo(port4))
	if port6 != 0 {
		rule(nat, version(unix.NFPROTO_IPV6), protocol(unix.IPPROTO_TCP), redirectTo(port6))
	}
	rule(only, protocol(unix.IPPROTO_TCP), accept)
	rule(only, protocol(unix.IPPROTO_UDP), accept)
	rule(only, drop)
	return c.Flush()
}

// ownTable is made by redirect.
var ownTable = &nftables.Table{Family: nftables.TableFamilyINet, Name: "bridge"}

// catchDatagrams has UDP of one version to any address but the namespace's own, and IPv4's DNS, arrive at the transparent socket at port.
func catchDatagrams(six bool, port uint16) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "datagrams", Table: ownTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	v := byte(unix.NFPROTO_IPV4)
	if six {
		v = unix.NFPROTO_IPV6
	}
	for _, p := range within {
		if p.Addr().Is6() == six {
			c.AddRule(newRule(chain, to(p), accept))
		}
	}
	udp := append(version(v), protocol(protocolUDP)...)
	if !six {
		c.AddRule(newRule(chain, udp, toPort(53), accept))
	}
	c.AddRule(newRule(chain, udp, []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.TProxy{Family: v, TableFamily: unix.NFPROTO_INET, RegPort: 1},
	}))
	return c.Flush()
}

// letEchoes lets echo requests of one version out, and what answers them. The kernel itself would answer some others in the place of their targets.
func letEchoes(six bool) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	p := byte(protocolICMP)
	if six {
		p = protocolICMPv6
	}
	for _, kind := range append(ping.Replies(six), ping.Requests(six)) {
		c.InsertRule(newRule(&nftables.Chain{Name: onlyChain, Table: ownTable}, protocol(p), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
			equal([]byte{kind}),
		}, accept))
	}
	return c.Flush()
}

func newRule(chain *nftables.Chain, parts ...[]expr.Any) *nftables.Rule {
	return &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: slices.Concat(parts...)}
}

// What is the namespace's own.
var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	within    = []netip.Prefix{loopback4, netip.PrefixFrom(own4, 32), netip.MustParsePrefix("::1/128"), netip.PrefixFrom(own6, 128)}
)

// What rules are made of.
var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} // the sender gets EPERM
)

func equal(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }

func version(v byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{v})}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p})}
}

// to matches packets to an address of p.
func to(p netip.Prefix) []expr.Any {
	v, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if p.Addr().Is6() {
		v, offset = unix.NFPROTO_IPV6, 24
	}
	size := uint32(p.Addr().BitLen() / 8)
	return append(version(v),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: size,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, size),
		},
		equal(p.Masked().Addr().AsSlice()),
	)
}

func toPort(p uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		equal(binary.BigEndian.AppendUint16(nil, p)),
	}
}

// redirectTo sends TCP to a port of this machine's loopback, for the namespace this is.
func redirectTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}
