package reach

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"

	"bridge/internal/forward"
	"bridge/internal/kube"
)

// Target is an object or a host, and the local ports that are to reach ports of it.
type Target struct {
	Object kube.Target // zero: each port has its Host
	Ports  []forward.Port
	// Where is the line of a list, "list.txt:3"; empty for the command line.
	Where string
	// Address is a loopback address of its own (Services); the zero one: Set's.
	Address netip.Addr
}

// ParseTarget makes one of what was written.
func ParseTarget(a forward.Args, where string) (t Target, err error) {
	t = Target{Ports: a.Ports, Where: where}
	if a.Target != "" {
		t.Object, err = kube.ParseTarget(a.Target)
	}
	if err != nil && where != "" {
		err = fmt.Errorf("%s: %w", where, err)
	}
	return t, err
}

// name is what a port of t is called, "service/orders:80" or "db.example.com:5432/udp".
func (t Target) name(p forward.Port, network string) string {
	name := t.Object.String() + ":" + p.Remote
	if p.Host != "" {
		name = net.JoinHostPort(p.Host, p.Remote)
	}
	if network == "udp" {
		name += "/udp"
	}
	return name
}

// String says which of several targets it is.
func (t Target) String() string {
	name := ""
	switch {
	case t.Object != (kube.Target{}):
		name = t.Object.String()
	case len(t.Ports) > 0:
		name = t.name(t.Ports[0], cmp.Or(t.Ports[0].Network, "tcp"))
	}
	if t.Where != "" {
		return t.Where + ": " + name
	}
	return name
}
