package main

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"
)

// allowFlag adds --allow-cidr: what a proxy pod dials of what it usually refuses.
func allowFlag(cmd *cobra.Command, allow *[]netip.Prefix) {
	cmd.Flags().Func("allow-cidr", "`addresses` of the proxy pod's link, or a metadata service's, as 169.254.20.10/32, that it may dial; without it these are refused (repeatable)", func(s string) error {
		p, err := parseAllow(s)
		if err == nil {
			*allow = append(*allow, p)
		}
		return err
	})
}

// parseAllow takes what the pod refuses without it: addresses of the link, by their NAT64 prefix (RFC 6052) too, and a single address, as a metadata service's is.
func parseAllow(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("write it as 169.254.20.10/32")
	case p.Addr().Is4In6():
		return p, errors.New("write the IPv4 address alone")
	case p.Addr().IsLoopback() || within(p, "64:ff9b::7f00:0/104"):
		return p, errors.New("the proxy pod's own loopback is never dialled")
	case p.Addr().IsUnspecified() || p.Addr().IsMulticast():
		return p, errors.New("nobody can be dialled there")
	case !p.IsSingleIP() && !ofLink(p) && !within(p, "64:ff9b::a9fe:0/112"):
		return p, errors.New("it is for link-local addresses, or a metadata service's one; all others are dialled without it")
	}
	return p.Masked(), nil
}

// ofLink tells whether all of p is link-local.
func ofLink(p netip.Prefix) bool { return within(p, "169.254.0.0/16", "fe80::/10") }

func within(p netip.Prefix, of ...string) bool {
	return slices.ContainsFunc(of, func(s string) bool {
		o := netip.MustParsePrefix(s)
		return o.Contains(p.Addr()) && o.Bits() <= p.Bits()
	})
}
