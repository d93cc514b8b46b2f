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
	"bridge/internal/netns"
	"bridge/pkg/swap"
)

// network is what can be asked for of the network that CMD has.
type network struct {
	cidrs      []string
	localPorts []int
	publish    []int
	outside    bool
}

// networkFlags adds what concerns CMD's network.
func networkFlags(cmd *cobra.Command, n *network) {
	f := cmd.Flags()
	f.StringSliceVar(&n.cidrs, "cidr", nil, "addresses of the cluster, as 10.96.0.0/12, beside those that its names have and the ranges that your account may read; for CMD (repeatable)")
	f.IntSliceVar(&n.localPorts, "local-port", nil, "a TCP port of 127.0.0.1 on this machine that CMD finds at its own 127.0.0.1 (repeatable)")
	f.IntSliceVar(&n.publish, "publish", nil, "a TCP port of CMD's own network that is reached at this machine's localhost too, as a debugger's (repeatable)")
}

// check refuses what is none, and what does not go together; toPod are of --to-pod.
func (n network) check(toPod []int) error {
	if _, err := n.ranges(); err != nil {
		return err
	}
	if n.outside {
		for _, f := range []struct {
			flag string
			set  int
		}{{"--cidr", len(n.cidrs)}, {"--local-port", len(n.localPorts)}, {"--publish", len(n.publish)}, {"--to-pod", len(toPod)}} {
			if f.set > 0 {
				return hint.Newf(hint.Usage, "leave out one of them", "%s is for a network of CMD's own, and --network host has none", f.flag)
			}
		}
		return nil
	}
	whose := map[int]string{}
	for _, f := range []struct {
		flag  string
		ports []int
	}{{"--local-port", n.localPorts}, {"--publish", n.publish}, {"--to-pod", toPod}} {
		for _, port := range f.ports {
			if port == dnsPort {
				return hint.Newf(hint.Usage, "leave it out", "%s %d: that port of CMD's own network is bridge's DNS server", f.flag, port)
			}
			if other := whose[port]; other != "" && other != f.flag {
				return hint.Newf(hint.Usage, "leave out one of them", "%s %d and %s %d: CMD's localhost:%d can be one of them alone", other, port, f.flag, port, port)
			}
			whose[port] = f.flag
		}
	}
	if len(toPod) > 0 && !netns.Supported {
		return hint.Newf(hint.Usage, "leave it out; bridge forward reaches ports of pods", "--to-pod takes a network of CMD's own, and only Linux has them")
	}
	return nil
}

// dnsPort is where bridge's DNS server is in CMD's own network.
const dnsPort = 53

// connectProgram is CMD with that network, before the cluster is asked for its ranges.
func (a *app) connectProgram(k *kube.Client, args []string, n network, entrance connect.Options) (*connect.Program, error) {
	p := &connect.Program{
		Args: args, Env: os.Environ(), Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
		Direct: []string{hostOf(k.Config.Host)}, OnSignal: a.onSignal, Say: a.say, Entrance: entrance, Outside: n.outside,
	}
	var err error
	if p.Ranges, err = n.ranges(); err != nil {
		return nil, err
	}
	if p.LocalPorts, err = portNumbers("--local-port", n.localPorts); err != nil {
		return nil, err
	}
	if p.Publish, err = portNumbers("--publish", n.publish); err != nil {
		return nil, err
	}
	// So that kubectl works as before when the API server is a port of this machine's loopback.
	switch at := onLoopback(k.Config.Host); {
	case n.outside:
	case at.Addr().Is4():
		if !slices.Contains(p.LocalPorts, at.Port()) {
			p.LocalPorts = append(p.LocalPorts, at.Port())
		}
		for _, port := range p.Publish {
			a.own(p, port)
		}
	case at.IsValid():
		a.say(noAPIServer(at.String()))
	}
	return p, nil
}

// ranges are those of --cidr.
func (n network) ranges() (list []netip.Prefix, err error) {
	for _, text := range n.cidrs {
		r, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, hint.New(hint.Usage, hint.Worded(fmt.Sprintf("--cidr %s: not a range of addresses", text), err), "write it as 10.96.0.0/12")
		}
		if r.Addr().Is4In6() { // what programs send there has the IPv4 address
			return nil, hint.Newf(hint.Usage, "write the range of IPv4 alone, as 10.96.0.0/12", "--cidr %s: a range of IPv4 within IPv6", text)
		}
		list = append(list, r)
	}
	return list, nil
}

// own has a port be CMD's own, or the pod's, also when it is the API server's; the user's --local-port has been compared.
func (a *app) own(p *connect.Program, port uint16) {
	if i := slices.Index(p.LocalPorts, port); i >= 0 {
		p.LocalPorts = slices.Delete(slices.Clone(p.LocalPorts), i, i+1)
		a.say(noAPIServer(fmt.Sprintf("localhost:%d", port)))
	}
}

func noAPIServer(at string) string {
	return fmt.Sprintf("note: the API server is at %s, which is CMD's own: there kubectl does not reach it", at)
}

// portNumbers are a flag's, each once.
func portNumbers(flag string, numbers []int) (ports []uint16, err error) {
	for _, port := range numbers {
		if port < 1 || port > 65535 {
			return nil, hint.Newf(hint.Usage, "a port is a number from 1 to 65535", "%s %d", flag, port)
		}
		if !slices.Contains(ports, uint16(port)) {
			ports = append(ports, uint16(port))
		}
	}
	return ports, nil
}

// apart refuses that a port of CMD's own 127.0.0.1, where its callers come, is to be another's.
func (a *app) apart(n network, program *swap.Program, ports []swap.Port) error {
	for _, p := range ports {
		local := uint16(p.Local)
		switch {
		case !program.Inside():
			continue
		case p.Local == dnsPort:
			return hint.Newf(hint.Usage, fmt.Sprintf("have it come to another, --port OTHER:%d, or use --network host", p.Remote),
				"port %d of CMD's own network is bridge's DNS server, where port %d of the pod would come", dnsPort, p.Remote)
		case p.UDP:
			continue
		case slices.Contains(n.localPorts, int(p.Local)), slices.Contains(program.PodPorts, local):
			return hint.Newf(hint.Usage, fmt.Sprintf("have it come to another: --port OTHER:%d", p.Remote),
				"localhost:%d is CMD's own, where port %d of the pod comes, and cannot be that of --local-port or --to-pod", p.Local, p.Remote)
		}
		a.own(&program.Program, local)
	}
	return nil
}
