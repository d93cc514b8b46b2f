package main

import (
	"errors"

	"github.com/spf13/cobra"
)

// carrierFlag adds --carrier: what the tunnel to a proxy pod goes through.
func carrierFlag(cmd *cobra.Command, podProxy *bool) {
	cmd.Flags().Var((*carrierValue)(podProxy), "carrier", "what the tunnel goes through: portforward; or podproxy, which is faster, opens a port on the proxy pod's address and needs the right to get pods/proxy, with portforward where it does not work; auto is portforward")
}

// carrierValue is true for podproxy.
type carrierValue bool

// Set takes one of the three.
func (c *carrierValue) Set(s string) error {
	switch s {
	case "auto", "portforward", "podproxy":
		*c = s == "podproxy"
		return nil
	}
	return errors.New("want auto, portforward or podproxy")
}

func (c *carrierValue) String() string {
	if *c {
		return "podproxy"
	}
	return "auto"
}

// Type is for the help.
func (c *carrierValue) Type() string { return "auto|portforward|podproxy" }
