package main

import "github.com/spf13/cobra"

// carrierFlag adds --carrier: what the tunnel to a proxy pod goes through.
func carrierFlag(cmd *cobra.Command, podProxy *bool) {
	value := newChoice("auto", func(word string) { *podProxy = word == "podproxy" }, "auto", "portforward", "podproxy")
	cmd.Flags().Var(value, "carrier", "what the tunnel goes through: portforward; or podproxy, which is faster, opens a port on the proxy pod's address and needs the right to get pods/proxy, with portforward where it does not work; auto is portforward")
}
