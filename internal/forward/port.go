package forward

import (
	"cmp"
	"errors"
	"net"
	"strconv"
	"strings"

	"bridge/internal/hint"
)

// Port is one [LOCAL:]REMOTE of the command line, or one [LOCAL:]HOST:PORT.
type Port struct {
	Local   int    // 0: any free one
	Same    bool   // no LOCAL was given: it is REMOTE's number
	Path    string // of a unix socket, in Local's place; else empty
	Host    string // of HOST:PORT; empty: REMOTE is a port of the target
	Remote  string // a number or a name
	Network string // "tcp" or "udp"; empty: not said
}

// Args are what is written after bridge forward: a target and its ports, or HOST:PORTs.
type Args struct {
	Target string // empty: each port has its Host
	Ports  []Port
}

const (
	portExamples = "write for example 80, 8080:80, :80, 8080:http, 53/udp or unix:/tmp/orders.sock:80"
	hostExamples = "write for example db.example.com:5432, 15432:db.example.com:5432 or [2001:db8::1]:5432"
)

// ParseArgs reads TARGET PORT... or HOST:PORT...
func ParseArgs(args []string) (a Args, err error) {
	parse := ParsePort
	switch {
	case len(args) == 0:
		return a, hint.Newf(hint.Usage, "see: bridge forward --help", "a target and at least one port are needed")
	case strings.Contains(args[0], ":"): // no name of an object has one
		parse = ParseHostPort
	case len(args) == 1:
		return a, hint.Newf(hint.Usage, "see: bridge forward --help", "a target and at least one port are needed: there is no port behind %s", args[0])
	default:
		a.Target, args = args[0], args[1:]
	}
	for _, s := range args {
		p, err := parse(s)
		if err != nil {
			return a, err
		}
		a.Ports = append(a.Ports, p)
	}
	return a, nil
}

// ParsePort reads kubectl's grammar: "80", "8080:80", ":80" and "0:80" for a free local port, and a
// name in REMOTE's place. Beyond it LOCAL may be "unix:PATH", and "/udp" or "/tcp" be at the end.
func ParsePort(s string) (Port, error) {
	rest, network := cutNetwork(s)
	p := Port{Network: network}
	local, remote, two := cutLast(rest)
	n, err := strconv.Atoi(remote)
	isNumber := err == nil || errors.Is(err, strconv.ErrRange)
	if remote == "" || strings.ContainsAny(remote, "/[]") || isNumber && (n < 1 || n > 65535) {
		return Port{}, hint.Newf(hint.Usage, portExamples, "port %q: the remote port is a number from 1 to 65535 or a name", s)
	}
	p.Remote = remote
	if !two {
		p.Same, p.Local = true, n // a name has its number later
		return p, nil
	}
	return p, p.setLocal(s, local, portExamples)
}

// ParseHostPort reads "HOST:PORT" with what ParsePort allows before and behind it; an IPv6 address is in brackets.
func ParseHostPort(s string) (Port, error) {
	rest, network := cutNetwork(s)
	p := Port{Network: network}
	front, remote, _ := cutLast(rest)
	n, err := strconv.ParseUint(remote, 10, 16)
	if err != nil || n == 0 {
		return Port{}, hint.Newf(hint.Usage, hostExamples, "%q: the port of a HOST:PORT is a number from 1 to 65535", s)
	}
	p.Remote = remote
	local, host, two := cutLast(front)
	if before, in, ok := strings.Cut(front, "["); ok {
		local, two = strings.CutSuffix(before, ":")
		if host, ok = strings.CutSuffix(in, "]"); !ok || net.ParseIP(host) == nil || before != "" && !two {
			return Port{}, hint.Newf(hint.Usage, hostExamples, "%q: what is in brackets is an IPv6 address", s)
		}
	} else if strings.Count(front, ":") > 1 && !strings.HasPrefix(front, "unix:") {
		return Port{}, hint.Newf(hint.Usage, hostExamples+"; --address says where to listen", "%q: an IPv6 address is written in brackets", s)
	}
	if _, err := strconv.Atoi(host); host == "" || err == nil || strings.ContainsAny(host, "/ ") || host == "unix" && !two {
		return Port{}, hint.Newf(hint.Usage, hostExamples+", or a target first: bridge forward svc/orders 8080:80", "%q: %q is no host", s, host)
	}
	p.Host = host
	if !two {
		p.Same, p.Local = true, int(n)
		return p, nil
	}
	return p, p.setLocal(s, local, hostExamples)
}

// setLocal reads what comes before REMOTE: a number, nothing, or unix:PATH.
func (p *Port) setLocal(whole, local, examples string) error {
	if path, ok := strings.CutPrefix(local, "unix:"); ok {
		switch {
		case path == "":
			return hint.Newf(hint.Usage, "write for example unix:/tmp/orders.sock:80", "port %q: there is no path behind unix:", whole)
		case p.Network == "udp":
			return hint.Newf(hint.Usage, "give a local port", "port %q: a unix socket here is for TCP", whole)
		}
		p.Path = path
		return nil
	}
	n, err := strconv.ParseUint(cmp.Or(local, "0"), 10, 16)
	if err != nil {
		return hint.Newf(hint.Usage, examples, "port %q: the local port is a number from 0 to 65535", whole)
	}
	p.Local = int(n)
	return nil
}

// cutLast cuts around the last colon; two is false without one.
func cutLast(s string) (before, after string, two bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// cutNetwork cuts off /udp or /tcp.
func cutNetwork(s string) (rest, network string) {
	for _, network := range []string{"udp", "tcp"} {
		at := len(s) - len("/"+network)
		if at >= 0 && strings.EqualFold(s[at:], "/"+network) {
			return s[:at], network
		}
	}
	return s, ""
}
