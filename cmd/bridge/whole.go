package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/machine"
)

// checkWhole refuses what does not go with --tun and --undo.
func (o connectOptions) checkWhole(changed func(flag string) bool, program bool) error {
	flag := "--tun"
	if o.undo {
		flag = "--undo"
	}
	switch {
	case !o.tun && !o.undo:
		return nil
	case o.tun && o.undo:
		return hint.Newf(hint.Usage, "leave out one of them; --tun undoes first what a killed one has left", "--tun and --undo do not go together")
	case program:
		return hint.Newf(hint.Usage, "leave out one of them: bridge connect -- CMD needs no root", "%s and a CMD do not go together", flag)
	}
	for _, name := range []string{"listen", "dns-listen", "pac", "local-port", "publish"} {
		if changed(name) {
			return hint.Newf(hint.Usage, "leave out one of them", "%s opens no ports: --%s does not go with it", flag, name)
		}
	}
	if i := slices.IndexFunc(o.allow, ofLink); i >= 0 {
		return hint.Newf(hint.Usage, "leave it out, or write: bridge connect --allow-cidr ... -- CMD", "%s does not go with --allow-cidr %s: link-local addresses are this machine's own, and are not routed", flag, o.allow[i])
	}
	if o.undo && changed("cidr") {
		return hint.Newf(hint.Usage, "leave out --cidr", "--undo routes nothing")
	}
	return nil
}

// outliveReaders has a broken pipe be an error to say something into, and no end of bridge, which would leave the machine as it is. It holds until bridge
// has ended: what could not be changed back is said last.
func outliveReaders() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// planWhole says what is to be routed, before anything is made in the cluster: what is allowed too, which is meant.
func (a *app) planWhole(ctx context.Context, k *kube.Client, m *machine.Machine, n network, allow []netip.Prefix) error {
	asked, err := n.ranges()
	if err != nil {
		return err
	}
	ranges := asked
	if len(asked) == 0 {
		const name = "ask whoever runs the cluster for the ranges of Services and pods, and name them: --cidr 10.96.0.0/16 --cidr 10.244.0.0/16"
		var whole bool
		switch ranges, whole = k.Ranges(ctx); {
		case !whole:
			return hint.Newf(hint.Unreachable, "try again; or "+name, "the cluster's ranges could not all be read just now")
		case len(ranges) == 0:
			return hint.Newf(hint.Usage, name, "your account may not read the cluster's ranges, which belong to no namespace")
		}
	}
	api, err := apiAddresses(ctx, k)
	if err != nil {
		return err
	}
	if err := m.Plan(slices.Concat(ranges, allow), len(asked) > 0, api); err != nil {
		return err
	}
	a.say(fmt.Sprintf("to be routed to the cluster: %v", m.Ranges()))
	return nil
}

// apiAddresses are the API server's, or those of the proxy before it, which alone is asked then.
func apiAddresses(ctx context.Context, k *kube.Client) ([]netip.Addr, error) {
	u, err := serverURL(k.Config.Host)
	if err != nil {
		return nil, err
	}
	host := u.Hostname()
	proxy := k.Config.Proxy
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	if p, err := proxy(&http.Request{URL: u}); err == nil && p != nil {
		host = p.Hostname()
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, hint.New(hint.Unreachable, fmt.Errorf("the addresses of the API server: %w", err), "")
	}
	return list, nil
}
