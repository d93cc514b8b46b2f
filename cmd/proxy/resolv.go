package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

const (
	// maxResolvConf bounds the file; the kubelet's own limit for the search list is 2048 bytes.
	maxResolvConf = 64 << 10
	// ndotsDefault and ndotsMax are resolv.conf(5)'s.
	ndotsDefault = 1
	ndotsMax     = 15
)

// resolver is a resolv.conf (resolv.conf(5)), as far as the laptop's DNS server needs it.
type resolver struct {
	nameservers []string
	search      []string
	ndots       int
}

func readResolvConf(path string) (resolver, error) {
	f, err := os.Open(path)
	if err != nil {
		return resolver{}, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return resolver{}, fmt.Errorf("read %s: %w", path, err)
	}
	return parseResolvConf(string(text)), nil
}

// parseResolvConf takes what it understands, as resolvers do: the last search or domain line holds.
func parseResolvConf(text string) resolver {
	r := resolver{ndots: ndotsDefault}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if _, err := netip.ParseAddr(words[1]); err == nil {
				r.nameservers = append(r.nameservers, words[1])
			}
		case "search":
			r.search = words[1:]
		case "domain":
			r.search = words[1:2]
		case "options":
			for _, option := range words[1:] {
				if value, ok := strings.CutPrefix(option, "ndots:"); ok {
					if n, err := strconv.Atoi(value); err == nil && n >= 0 {
						r.ndots = min(n, ndotsMax)
					}
				}
			}
		}
	}
	return r
}

func (r resolver) addrs() []netip.Addr {
	var all []netip.Addr
	for _, s := range r.nameservers {
		if a, err := netip.ParseAddr(s); err == nil {
			all = append(all, a.Unmap().WithZone(""))
		}
	}
	return all
}
