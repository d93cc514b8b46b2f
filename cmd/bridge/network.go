package main

import (
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"bridge/internal/connect"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/pkg/swap"
)

// network is what can be asked for of the network that CMD has.
type network struct {
	cidrs      []string
	localPorts []int
	outside    bool
}

// networkFlags adds what concerns CMD's network.
func networkFlags(cmd *cobra.Command, n *network) {
	f := cmd.Flags()
	f.StringSliceVar(&n.cidrs, "cidr", nil, "addresses of the cluster, as 10.96.0.0/12, beside those that its names have and the ranges that your account may read; for CMD (repeatable)")
	f.IntSliceVar(&n.localPorts, "local-port", nil, "a TCP port of 127.0.0.1 on this machine that CMD finds at its own 127.0.0.1 (repeatable)")
	f.Var(newChoice("auto", func(word string) { n.outside = word == "host" }, "auto", "host"), "network",
		"auto: CMD has a network of its own where this machine allows that (Linux); host: this machine's, and variables that name a proxy")
}

// connectProgram is CMD with that network, before the cluster is asked for its ranges.
func (a *app) connectProgram(k *kube.Client, args []string, n network, entrance connect.Options) (*connect.Program, error) {
	p := &connect.Program{
		Args: args, Env: os.Environ(), Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
		Direct: []string{hostOf(k.Config.Host)}, OnSignal: a.onSignal, Say: a.say, Entrance: entrance, Outside: n.outside,
	}
	for _, text := range n.cidrs {
		r, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, hint.Newf(hint.Usage, "write it as 10.96.0.0/12", "--cidr: %w", err)
		}
		p.Ranges = append(p.Ranges, r)
	}
	var err error
	if p.LocalPorts, err = portNumbers("--local-port", n.localPorts); err != nil {
		return nil, err
	}
	// So that kubectl works as before when the API server is a port of this machine's loopback.
	switch at := onLoopback(k.Config.Host); {
	case n.outside:
	case at.Addr().Is4():
		p.LocalPorts = append(p.LocalPorts, at.Port())
	case at.IsValid():
		a.say(fmt.Sprintf("note: the API server is at %s, which is CMD's own: there kubectl does not reach it", at))
	}
	return p, p.Check()
}

func portNumbers(flag string, numbers []int) (ports []uint16, err error) {
	for _, port := range numbers {
		if port < 1 || port > 65535 {
			return nil, hint.Newf(hint.Usage, "a port is a number from 1 to 65535", "%s %d", flag, port)
		}
		ports = append(ports, uint16(port))
	}
	return ports, nil
}

// apart refuses that a port of CMD's own 127.0.0.1, where its callers come, is to be another's.
func (n network) apart(program *swap.Program, ports []swap.Port) error {
	for _, p := range ports {
		local := uint16(p.Local)
		switch {
		case program.Outside:
			continue
		case p.Local == 53:
			return hint.Newf(hint.Usage, fmt.Sprintf("have it come to another, --port OTHER:%d, or use --network host", p.Remote),
				"port 53 of CMD's own network is bridge's DNS server, where port %d of the pod would come", p.Remote)
		case p.UDP:
			continue
		case slices.Contains(n.localPorts, int(p.Local)), slices.Contains(program.PodPorts, local):
			return hint.Newf(hint.Usage, fmt.Sprintf("have it come to another: --port OTHER:%d", p.Remote),
				"localhost:%d is CMD's own, where port %d of the pod comes, and cannot be that of --local-port or --to-pod", p.Local, p.Remote)
		}
		program.LocalPorts = slices.DeleteFunc(program.LocalPorts, func(port uint16) bool { return port == local }) // the API server's
	}
	return nil
}
