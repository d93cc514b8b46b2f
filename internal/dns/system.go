package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// resolvConfPath names the system's resolvers on Unix.
	resolvConfPath = "/etc/resolv.conf"

	// systemTries is how often the list of the system's resolvers is gone through when none answers,
	// and systemTryTime how long each is waited for: twice two of them fit into queryTime.
	systemTries   = 2
	systemTryTime = 1100 * time.Millisecond

	// upstreamUDPSize is what we tell resolvers that we take: what arrives unfragmented everywhere
	// (DNS flag day 2020).
	upstreamUDPSize = 1232
)

// system is the resolvers of the laptop.
type system struct {
	servers func() ([]string, error)
	self    netip.AddrPort // where we answer: never asked
	flight  flight[*dns.Msg]
}

// readResolvConf returns the nameservers of a resolver file (resolv.conf(5)).
func readResolvConf(path string) ([]string, error) {
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("the system's resolvers: %w", err)
	}
	var addrs []string
	for _, s := range conf.Servers {
		addrs = append(addrs, net.JoinHostPort(s, conf.Port))
	}
	return addrs, nil
}

// ask answers q, of those that are asked at the same time by asking once; the answer is the caller's to change.
func (s *system) ask(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	m, err := s.flight.do(ctx, key(q), func() (*dns.Msg, error) { return s.try(ctx, q) })
	if err != nil {
		return nil, err
	}
	m = m.Copy()
	spell(m, q.Question[0].Name)
	return m, nil
}

// try tries the resolvers in turn, as the C library does: the next one after no answer, SERVFAIL,
// REFUSED or NOTIMP; when nobody has better, the last such answer.
func (s *system) try(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	servers, err := s.servers()
	if err != nil {
		return nil, err
	}
	var last *dns.Msg
	err = errors.New("the system has no resolver beside this one")
	for range systemTries {
		for _, addr := range servers {
			if ap, perr := netip.ParseAddrPort(addr); perr == nil && ap == s.self {
				continue
			}
			m, aerr := askUDP(ctx, addr, q)
			if aerr != nil {
				err = fmt.Errorf("ask the system's resolver %s: %w", addr, aerr)
				if ctx.Err() != nil {
					return last, errUnless(last, err)
				}
				continue
			}
			switch m.Rcode {
			case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
				last = m
			default:
				return m, nil
			}
		}
		if last != nil {
			return last, nil
		}
	}
	return nil, err
}

func errUnless(m *dns.Msg, err error) error {
	if m != nil {
		return nil
	}
	return err
}

// askUDP asks one resolver from a fresh port, and again over TCP when the answer is truncated.
func askUDP(ctx context.Context, addr string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, systemTryTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	m, err := datagrams(ctx, c, q)
	if err != nil || !m.Truncated {
		return m, err
	}
	t, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Close() }()
	return roundTrip(ctx, t, q)
}

// datagrams sends q and reads until its answer arrives; anything else may be forged.
func datagrams(ctx context.Context, c net.Conn, q *dns.Msg) (*dns.Msg, error) {
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	dc := &dns.Conn{Conn: c, UDPSize: maxUDPQuery}
	if err := dc.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		m, err := dc.ReadMsg()
		var odd *dns.Error // no message
		switch {
		case m == nil && !errors.As(err, &odd):
			return nil, err
		case err == nil && answers(m, q):
			return m, nil
		case err != nil && m != nil && m.Truncated && answers(m, q): // some cut in mid-record
			return m, nil
		}
	}
}
