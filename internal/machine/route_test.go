package machine

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"bridge/internal/hint"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func TestRangesAreMerged(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"10.244.0.0/24 10.244.1.0/24 10.244.2.0/24", "10.244.0.0/23 10.244.2.0/24"},
		{"10.244.3.0/24 10.244.1.0/24 10.244.0.0/24 10.244.2.0/24", "10.244.0.0/22"},
		{"10.244.1.0/24 10.244.2.0/24", "10.244.1.0/24 10.244.2.0/24"}, // neighbours, and no range
		{"10.96.0.7/16 10.96.0.0/16 10.96.3.0/24", "10.96.0.0/16"},
		{"fd00::/108 10.0.0.0/9 10.128.0.0/9", "10.0.0.0/8 fd00::/108"},
		{"::ffff:10.96.0.0/108 10.112.0.0/12", "10.96.0.0/11"},
		{"", ""},
	} {
		if got := merge(prefixes(strings.Fields(c.in)...)); !slices.Equal(got, prefixes(strings.Fields(c.want)...)) {
			t.Errorf("%s: %v, want %s", c.in, got, c.want)
		}
	}
}

func TestRoutesThatTakeTooMuchAreRefused(t *testing.T) {
	has := []Route{
		{To: netip.MustParsePrefix("0.0.0.0/0"), Device: "eth0", Gateway: netip.MustParseAddr("192.168.1.1")},
		{To: netip.MustParsePrefix("192.168.1.0/24"), Device: "eth0"},
		{To: netip.MustParsePrefix("10.0.0.0/8"), Device: "vpn0", Gateway: netip.MustParseAddr("10.255.0.1")},
		{To: netip.MustParsePrefix("172.17.0.0/16"), Device: "docker0"},
	}
	has = append(has, // OpenVPN's def1
		Route{To: netip.MustParsePrefix("0.0.0.0/1"), Device: "vpn0", Gateway: netip.MustParseAddr("10.255.0.1")},
		Route{To: netip.MustParsePrefix("128.0.0.0/1"), Device: "vpn0", Gateway: netip.MustParseAddr("10.255.0.1")})
	precious := []Precious{
		{netip.MustParseAddr("203.0.113.7"), "the API server"},
		{netip.MustParseAddr("192.168.1.1"), "the default gateway"},
		{netip.MustParseAddr("100.64.0.2"), "a DNS server in use"},
		{netip.MustParseAddr("198.51.100.9"), "where your SSH session comes from"},
		{netip.MustParseAddr("fd00:1::5"), "the API server"},
	}
	for _, c := range []struct {
		ranges string
		asked  bool
		err    string // in it; "" is none
		note   string
	}{
		{ranges: "100.96.0.0/16 fd00:2::/108"},
		{ranges: "203.0.113.0/24", err: "would swallow the API server, 203.0.113.7"},
		{ranges: "203.0.113.0/24", asked: true, err: "would swallow the API server"},
		{ranges: "192.168.0.0/16", asked: true, err: "would swallow the default gateway, 192.168.1.1"},
		{ranges: "100.64.0.0/10", asked: true, err: "would swallow a DNS server in use, 100.64.0.2"},
		{ranges: "198.51.100.0/24", asked: true, err: "would swallow where your SSH session comes from, 198.51.100.9"},
		{ranges: "fd00:1::/64", asked: true, err: "would swallow the API server, fd00:1::5"},
		{ranges: "10.96.0.0/16", err: "10.96.0.0/16 overlaps with a network of this machine's: 10.0.0.0/8 via 10.255.0.1 dev vpn0"},
		{ranges: "10.96.0.0/16", asked: true, note: "10.96.0.0/16 is the cluster's now, all else of 10.0.0.0/8"},
		{ranges: "172.16.0.0/12", err: "overlaps with a network of this machine's: 172.17.0.0/16 dev docker0"},
		{ranges: "172.16.0.0/12", asked: true, note: "of 172.16.0.0/12, 172.17.0.0/16 is not the cluster's"},
		{ranges: "172.17.0.0/16", asked: true, err: "172.17.0.0/16 is routed already: 172.17.0.0/16 dev docker0"},
		{ranges: "0.0.0.0/0", asked: true, err: "far more than a cluster has"},
		{ranges: "96.0.0.0/4", asked: true, err: "far more than a cluster has"},
		{ranges: "::/8", asked: true, err: "far more than a cluster has"},
		{ranges: "127.1.0.0/16", asked: true, err: "has this machine's loopback"},
		{ranges: "169.254.169.0/24", asked: true, err: "has link-local addresses"},
		{ranges: "239.0.0.0/8", asked: true, err: "has multicast addresses"},
	} {
		notes, err := check(prefixes(strings.Fields(c.ranges)...), c.asked, has, precious)
		switch {
		case c.err == "" && err != nil:
			t.Errorf("%s: %v", c.ranges, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want %q", c.ranges, err, c.err)
		case err != nil && hint.Of(err) == "":
			t.Errorf("%s: %v does not say what to do", c.ranges, err)
		case c.note != "" && !strings.Contains(strings.Join(notes, "\n"), c.note):
			t.Errorf("%s: %q, want %q", c.ranges, notes, c.note)
		}
	}
}

// What is no range must not become a route to everything, whoever has named it.
func TestARangeThatIsNoneIsRefused(t *testing.T) {
	for _, r := range []netip.Prefix{{}, netip.MustParsePrefix("::ffff:10.96.0.0/95"), netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 108)} {
		if _, err := check(merge([]netip.Prefix{r}), true, nil, nil); err == nil || hint.Of(err) == "" {
			t.Errorf("%v: %v", r, err)
		}
	}
	if _, err := check(merge(prefixes("::ffff:0.0.0.0/96")), true, nil, nil); err == nil || !strings.Contains(err.Error(), "far more") {
		t.Errorf("%v", err)
	}
}

func TestTheDeviceHasAnAddressThatIsNobodys(t *testing.T) {
	got, err := own4(nil, []Route{{To: netip.MustParsePrefix("0.0.0.0/0")}}, nil)
	if err != nil || got.String() != "198.19.249.53" {
		t.Errorf("%v, %v", got, err)
	}
	got, err = own4(prefixes("198.19.0.0/16"), []Route{{To: netip.MustParsePrefix("198.18.0.0/16")}}, nil)
	if err != nil || got.String() != "192.0.2.53" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err = own4(prefixes("198.18.0.0/15", "192.0.2.0/24"), nil, nil); err == nil {
		t.Error("an address where none is free")
	}
}
