package main

import (
	"errors"
	"net/netip"

	"github.com/spf13/cobra"
)

// allowFlag adds --allow-cidr: what a proxy pod dials of what it usually refuses.
func allowFlag(cmd *cobra.Command, allow *[]netip.Prefix) {
	cmd.Flags().Func("allow-cidr", "`addresses` of the proxy pod's link, or a metadata service's, as 169.254.20.10/32, that it may dial; without it these are refused (repeatable)", func(s string) error {
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			return errors.New("write it as 169.254.20.10/32")
		case p.Addr().IsLoopback():
			return errors.New("the proxy pod's own loopback is never dialled")
		}
		*allow = append(*allow, p.Masked())
		return nil
	})
}
