package forward

import (
	"strconv"
	"strings"

	"bridge/internal/hint"
)

// Port is one [LOCAL:]REMOTE of the command line.
type Port struct {
	Local  int    // 0: any free one
	Same   bool   // no LOCAL was given: it is REMOTE's number
	Remote string // a number or a name
}

// ParsePort reads kubectl's grammar: "80", "8080:80", ":80" and "0:80" for a free local port, and a
// name in REMOTE's place.
func ParsePort(s string) (Port, error) {
	const examples = "write for example 80, 8080:80, :80 or 8080:http"
	local, remote, two := strings.Cut(s, ":")
	if !two {
		remote = local
	}
	if n, err := strconv.Atoi(remote); remote == "" || strings.Contains(remote, ":") || err == nil && (n < 1 || n > 65535) {
		return Port{}, hint.Newf(hint.Usage, examples, "port %q: the remote port is a number from 1 to 65535 or a name", s)
	}
	p := Port{Remote: remote, Same: !two}
	if !two {
		p.Local, _ = strconv.Atoi(remote) // a name has its number later
		return p, nil
	}
	if local == "" {
		return p, nil
	}
	n, err := strconv.ParseUint(local, 10, 16)
	if err != nil {
		return Port{}, hint.Newf(hint.Usage, examples, "port %q: the local port is a number from 0 to 65535", s)
	}
	p.Local = int(n)
	return p, nil
}
