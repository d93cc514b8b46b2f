package machine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"bridge/internal/hint"
)

// Route is one that this machine has.
type Route struct {
	To      netip.Prefix // all addresses of a version for the default route
	Device  string
	Gateway netip.Addr // not valid when it is reached directly
}

// Precious is an address that has to be reached as before.
type Precious struct {
	Addr netip.Addr
	What string // "the API server"
}

// byDefault tells whether it takes what nobody else has: all of it, or half, as VPNs do that leave the real one alone.
func (r Route) byDefault() bool { return r.To.Bits() <= 1 }

// The widest ranges that are taken, in bits: a cluster has no more.
const (
	widest4 = 8
	widest6 = 16
)

// never are no cluster's.
var never = []struct {
	netip.Prefix
	what string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "this machine's loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/3"), "multicast addresses"},
	{netip.MustParsePrefix("::1/128"), "this machine's loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

// merge is the same addresses in as few ranges as possible, in order.
func merge(ranges []netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, r := range ranges {
		list = append(list, unmap(r).Masked())
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	var out []netip.Prefix
	for _, r := range list {
		if n := len(out); n > 0 && out[n-1].Overlaps(r) { // the wider is there
			continue
		}
		out = append(out, r)
		for n := len(out); n > 1; n = len(out) {
			a, b := out[n-2], out[n-1]
			if a.Bits() != b.Bits() || a.Bits() == 0 || netip.PrefixFrom(b.Addr(), b.Bits()-1).Masked() != netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked() {
				break
			}
			out = append(out[:n-2], netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked())
		}
	}
	return out
}

// unmap is the range of IPv4 that one of IPv6 stands for (::ffff:10.96.0.0/108), if it does. It is not valid where that is wider than all of IPv4.
func unmap(r netip.Prefix) netip.Prefix {
	if r.Addr().Is4In6() {
		return netip.PrefixFrom(r.Addr().Unmap(), r.Bits()-(128-32))
	}
	return r
}

// check says whether ranges, merged, may be routed on a machine that has those routes: not over what has to be reached as before, nor over
// what no cluster has. A range that overlaps with a route is refused, unless the user has asked for the ranges: then it is a note.
func check(ranges []netip.Prefix, asked bool, has []Route, precious []Precious) (notes []string, err error) {
	var errs []error
	refuse := func(next, format string, args ...any) {
		errs = append(errs, hint.Newf(hint.Other, next, format, args...))
	}
	for _, r := range ranges {
		if !r.IsValid() {
			refuse("name the cluster's own ranges by --cidr, those of IPv4 as 10.96.0.0/12", "there is a range that is none")
			continue
		}
		if r.Addr().Is4() && r.Bits() < widest4 || r.Addr().Is6() && r.Bits() < widest6 {
			refuse("name the cluster's own ranges, narrower ones, by --cidr", "a route to %s would take far more than a cluster has", r)
			continue
		}
		swallows := false
		for _, n := range never {
			if n.Overlaps(r) {
				swallows = true
				refuse("name other ranges by --cidr", "%s has %s", r, n.what)
			}
		}
		for _, p := range precious {
			if r.Contains(p.Addr) {
				swallows = true
				refuse("name narrower ranges, without it, by --cidr", "a route to %s would swallow %s, %s", r, p.What, p.Addr)
			}
		}
		if swallows {
			continue
		}
		for _, h := range has {
			switch {
			case h.byDefault() || !h.To.Overlaps(r):
			case h.To == r:
				refuse(fmt.Sprintf("take down the network of %s, or name narrower ranges by --cidr", h.Device), "%s is routed already: %s", r, h)
			case !asked:
				refuse("if the cluster is to have it, name the ranges to route by --cidr; or take down the network of "+h.Device,
					"%s overlaps with a network of this machine's: %s", r, h)
			case h.To.Bits() > r.Bits():
				notes = append(notes, fmt.Sprintf("note: of %s, %s is not the cluster's but as before: %s", r, h.To, h))
			default:
				notes = append(notes, fmt.Sprintf("note: %s is the cluster's now, all else of %s as before", r, h))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return notes, nil
}

// String is "10.0.0.0/8 via 10.1.2.3 dev tun0".
func (r Route) String() string {
	words := []string{r.To.String()}
	if r.Gateway.IsValid() {
		words = append(words, "via", r.Gateway.String())
	}
	return strings.Join(append(words, "dev", r.Device), " ")
}

// own4s are addresses for the device, of which the first that is nobody's is taken: of the range for benchmarks (RFC 2544), which no
// network has, and of the documentation's (RFC 5737). After a kill all names are asked there, by the default route: nobody may have one.
var own4s = []string{"198.19.249.53", "198.18.249.53", "192.0.2.53"}

// own6 is the device's for IPv6, of a range of its own (RFC 4193).
var own6 = netip.MustParseAddr("fd62:7269:6467:6500::53")

// own4 is an address for the device.
func own4(ranges []netip.Prefix, has []Route, precious []Precious) (netip.Addr, error) {
	for _, text := range own4s {
		addr := netip.MustParseAddr(text)
		taken := slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) }) ||
			slices.ContainsFunc(has, func(h Route) bool { return !h.byDefault() && h.To.Contains(addr) }) ||
			slices.ContainsFunc(precious, func(p Precious) bool { return p.Addr == addr })
		if !taken {
			return addr, nil
		}
	}
	return netip.Addr{}, hint.Newf(hint.Other, "remove one of these networks", "no address for the device is free: this machine routes %s", strings.Join(own4s, ", "))
}
