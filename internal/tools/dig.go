package tools

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"bridge/internal/hint"
)

// digTimeout is how long a server may take for one answer; it is asked twice, as datagrams get lost.
const digTimeout = 3 * time.Second

func types() map[string]dnsmessage.Type {
	return map[string]dnsmessage.Type{
		"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "CNAME": dnsmessage.TypeCNAME, "MX": dnsmessage.TypeMX, "NS": dnsmessage.TypeNS,
		"PTR": dnsmessage.TypePTR, "SOA": dnsmessage.TypeSOA, "SRV": dnsmessage.TypeSRV, "TXT": dnsmessage.TypeTXT,
	}
}

func dig(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error {
	of := f.String("x", "", "")
	if err := parse(f, args, 0, -1); err != nil {
		return err
	}
	name, server, search, short, kind, typed := *of, "", false, false, "A", false
	for _, a := range f.Args() {
		switch {
		case a == "+short":
			short = true
		case strings.HasPrefix(a, "@"):
			server = a[1:]
		case a == "+search":
			search = true
		case strings.HasPrefix(a, "+"): // how it is printed, mostly
		case types()[strings.ToUpper(a)] != 0 && !typed: // in either order; a name of one label may be called so
			kind, typed = strings.ToUpper(a), true
		case name == "":
			name = a
		default:
			kind = strings.ToUpper(a)
		}
	}
	if name == "" && typed { // which was a name after all
		name, kind = kind, "A"
	}
	address, addressErr := netip.ParseAddr(name)
	if *of != "" {
		kind = "PTR"
	}
	t, ok := types()[kind]
	if !ok || name == "" || *of != "" && addressErr != nil {
		return errUsage
	}
	if addressErr == nil && kind == "PTR" {
		name = reverse(address)
	}
	conf, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && server == "" {
		return err
	}
	servers, domains := resolvConf(string(conf))
	if server != "" {
		servers = []string{server}
	}
	if len(servers) == 0 {
		return errors.New("/etc/resolv.conf names no server: write @SERVER")
	}
	names := []string{strings.TrimSuffix(name, ".") + "."}
	if search && !strings.HasSuffix(name, ".") {
		names = nil
		for _, d := range domains {
			names = append(names, name+"."+strings.TrimSuffix(d, ".")+".")
		}
		names = append(names, name+".")
	}
	var last error
	for _, n := range names {
		var found bool
		if found, last = ask(ctx, s.Out, servers, n, t, short); found || last != nil && !errors.Is(last, exitCode(1)) {
			return last
		}
	}
	return last
}

// resolvConf are the servers and the search list of a resolver's file.
func resolvConf(text string) (servers, domains []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && f[0] == "nameserver":
			servers = append(servers, f[1])
		case len(f) >= 2 && f[0] == "search":
			domains = f[1:]
		}
	}
	return servers, domains
}

// reverse is the name under which an address's own name is.
func reverse(a netip.Addr) string {
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
	}
	var out strings.Builder
	b := a.As16()
	for i := 15; i >= 0; i-- {
		fmt.Fprintf(&out, "%x.%x.", b[i]&15, b[i]>>4)
	}
	return out.String() + "ip6.arpa."
}

// ask asks the servers in turn until one answers, and prints what it says. The error is exitCode(1) for an answer without a record.
func ask(ctx context.Context, w io.Writer, servers []string, name string, t dnsmessage.Type, short bool) (found bool, err error) {
	n, err := dnsmessage.NewName(name)
	if err != nil {
		return false, fmt.Errorf("%q is no name", name)
	}
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32()), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: t, Class: dnsmessage.ClassINET}},
	}
	packed, err := query.Pack()
	if err != nil {
		return false, err
	}
	var wrong error
	for _, server := range servers {
		address := server
		if _, _, err := net.SplitHostPort(server); err != nil {
			address = net.JoinHostPort(strings.Trim(server, "[]"), "53")
		}
		begin := time.Now()
		answer, over, err := exchange(ctx, address, query.ID, packed)
		if err != nil {
			wrong = errors.Join(wrong, err)
			continue
		}
		if short {
			for _, r := range answer.Answers {
				_, _ = fmt.Fprintln(w, hint.Printable(data(r.Body)))
			}
			return answered(answer)
		}
		return show(w, answer, fmt.Sprintf("%s by %s in %s", address, over, time.Since(begin).Round(time.Millisecond)))
	}
	return false, wrong
}

// exchange asks by UDP, and by TCP where the answer does not fit.
func exchange(ctx context.Context, address string, id uint16, query []byte) (m dnsmessage.Message, over string, err error) {
	for range 2 {
		m, err = exchangeBy(ctx, "udp", address, id, query)
		if err == nil && m.Truncated {
			m, err = exchangeBy(ctx, "tcp", address, id, query)
			return m, "tcp", err
		}
		if timeout := net.Error(nil); err == nil || !errors.As(err, &timeout) || !timeout.Timeout() {
			break
		}
	}
	return m, "udp", err
}

func exchangeBy(ctx context.Context, network, address string, id uint16, query []byte) (m dnsmessage.Message, err error) {
	ctx, cancel := context.WithTimeout(ctx, digTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return m, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if _, err := conn.Write(query); err != nil {
		return m, err
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		if network == "tcp" {
			if _, err := io.ReadFull(conn, buf[:2]); err != nil {
				return m, err
			}
			n = int(binary.BigEndian.Uint16(buf))
			_, err = io.ReadFull(conn, buf[:n])
		} else {
			n, err = conn.Read(buf)
		}
		if err != nil {
			return m, err
		}
		err := m.Unpack(buf[:n])
		if err == nil && m.ID == id && m.Response {
			return m, nil
		}
		if network == "tcp" {
			return m, errors.Join(errors.New("an answer that is none"), err)
		}
		// A datagram may be anybody's.
	}
}

func show(w io.Writer, m dnsmessage.Message, from string) (found bool, err error) {
	_, _ = fmt.Fprintf(w, ";; %s, %s\n", strings.TrimPrefix(m.RCode.String(), "RCode"), from)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range append(m.Answers, m.Authorities...) {
		_, _ = fmt.Fprintf(t, "%s\t%d\tIN\t%s\t%s\n", hint.Printable(r.Header.Name.String()), r.Header.TTL, strings.TrimPrefix(r.Header.Type.String(), "Type"), hint.Printable(data(r.Body)))
	}
	if err := t.Flush(); err != nil {
		return false, err
	}
	return answered(m)
}

func answered(m dnsmessage.Message) (found bool, err error) {
	if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) == 0 {
		return false, exitCode(1)
	}
	return true, nil
}

// data is a record's, in words.
func data(body dnsmessage.ResourceBody) string {
	switch b := body.(type) {
	case *dnsmessage.AResource:
		return netip.AddrFrom4(b.A).String()
	case *dnsmessage.AAAAResource:
		return netip.AddrFrom16(b.AAAA).String()
	case *dnsmessage.CNAMEResource:
		return b.CNAME.String()
	case *dnsmessage.NSResource:
		return b.NS.String()
	case *dnsmessage.PTRResource:
		return b.PTR.String()
	case *dnsmessage.MXResource:
		return fmt.Sprintf("%d %s", b.Pref, b.MX)
	case *dnsmessage.SRVResource:
		return fmt.Sprintf("%d %d %d %s", b.Priority, b.Weight, b.Port, b.Target)
	case *dnsmessage.TXTResource:
		var parts []string
		for _, p := range b.TXT {
			parts = append(parts, fmt.Sprintf("%q", p))
		}
		return strings.Join(parts, " ")
	case *dnsmessage.SOAResource:
		return fmt.Sprintf("%s %s %d %d %d %d %d", b.NS, b.MBox, b.Serial, b.Refresh, b.Retry, b.Expire, b.MinTTL)
	}
	return "?"
}
