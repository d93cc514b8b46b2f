package intercept

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

func TestForbiddenAddresses(t *testing.T) {
	for address, why := range map[string]string{
		"127.0.0.1": "loopback", "127.9.9.9": "loopback", "::1": "loopback", "::ffff:127.0.0.1": "loopback",
		"0.0.0.0": "unspecified", "::": "unspecified",
		"169.254.169.254": "link-local", "169.254.0.1": "link-local", "fe80::1": "link-local", "fe80::1%eth0": "link-local",
		"::ffff:169.254.169.254": "link-local", "64:ff9b::a9fe:a9fe": "link-local", "64:ff9b::7f00:1": "loopback",
		"fd00:ec2::254": "metadata", "100.100.100.200": "metadata", "168.63.129.16": "metadata",
		"224.0.0.1": "multicast", "ff02::1": "multicast",
		"10.96.0.10": "", "192.168.1.1": "", "172.20.0.1": "", "8.8.8.8": "", "fd00::1": "", "2001:db8::1": "", "64:ff9b::808:808": "",
	} {
		if got := forbidden(netip.MustParseAddr(address).Unmap().WithZone("")); got != why {
			t.Errorf("%s: %q, want %q", address, got, why)
		}
	}
}

func TestDialerRefusesTheAddressAfterResolution(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	d := &Dialer{Resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	for _, address := range []string{
		"127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port, "0.0.0.0:" + port, "[::]:" + port,
		"169.254.169.254:80", "[fe80::1%lo]:80", "127.0.0.2:53",
	} {
		for _, network := range []string{"tcp", "udp", "icmp"} {
			if network == "icmp" && strings.HasPrefix(address, "localhost") { // is no address
				continue
			}
			c, err := d.DialContext(t.Context(), network, address)
			if !errors.Is(err, syscall.EACCES) {
				t.Errorf("%s %s: %v, %v; want a refusal", network, address, c, err)
			}
		}
	}
}

// What is allowed is dialled, and no more: of the pod's own loopback nothing.
func TestDialerDialsWhatIsAllowed(t *testing.T) {
	d := &Dialer{Allow: []netip.Prefix{netip.MustParsePrefix("169.254.20.0/24"), netip.MustParsePrefix("fe80::/64"), netip.MustParsePrefix("168.63.129.16/32")}}
	for address, allowed := range map[string]bool{
		"169.254.20.10:53": true, "[::ffff:169.254.20.10]:80": true, "[fe80::1%eth0]:80": true, "168.63.129.16:80": true,
		"169.254.169.254:80": false, "[fe80:1::1]:80": false, "100.100.100.200:80": false,
	} {
		if err := d.control(t.Context(), "tcp", address, nil); (err == nil) != allowed {
			t.Errorf("%s: %v", address, err)
		}
	}
	d.Allow = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for _, address := range []string{"127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "224.0.0.1:80"} {
		if err := d.control(t.Context(), "tcp", address, nil); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: %v", address, err)
		}
	}
}

// Of the pod's loopback only the ports that are named may be dialled, by TCP.
func TestDialerDialsNamedPortsOfTheLoopback(t *testing.T) {
	named, other := listen(t, "127.0.0.1:0"), listen(t, "127.0.0.1:0")
	d := &Dialer{Loopback: []int{named.Addr().(*net.TCPAddr).Port}}
	c, err := d.DialContext(t.Context(), "tcp", named.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	for network, address := range map[string]string{"tcp": other.Addr().String(), "udp": named.Addr().String()} {
		if c, err := d.DialContext(t.Context(), network, address); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s %s: %v, %v; want a refusal", network, address, c, err)
		}
	}
}

func TestDialerAsksTheResolverWhereverItIs(t *testing.T) {
	d := &Dialer{Resolvers: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	c, err := d.DialContext(t.Context(), "udp", "127.0.0.1:53") // nothing is sent
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

func TestDialerConnects(t *testing.T) {
	// An address of this machine that is neither loopback nor link-local.
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil || forbidden(prefix.Addr()) != "" {
			continue
		}
		l := listen(t, netip.AddrPortFrom(prefix.Addr(), 0).String())
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.WriteString(c, "hello")
				_ = c.Close()
			}
		}()
		c, err := (&Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		read(t, c, "hello")
		_ = c.Close()
		c, err = (&Dialer{}).DialContext(t.Context(), "icmp", netip.AddrPortFrom(prefix.Addr(), 0).String())
		if errors.Is(err, syscall.EACCES) {
			return // internal/ping says who may
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "\x00\x01ping"); err != nil {
			t.Fatal(err)
		}
		read(t, c, "\x00\x01ping")
		_ = c.Close()
		return
	}
	t.Skip("this machine has no address but loopback")
}
