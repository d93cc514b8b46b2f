package socks5

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"bridge/internal/servertest"
)

const (
	patience = time.Minute           // for what comes soon, or not at all
	pause    = 10 * time.Millisecond // between two looks
)

// datagrams dials as the pod would, and keeps what was asked for, and what of that has ended.
type datagrams struct {
	*cluster
	mu     sync.Mutex
	asked  []string
	closed chan string
}

func newDatagrams(c *cluster) *datagrams {
	return &datagrams{cluster: c, closed: make(chan string, 100)}
}

func (d *datagrams) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d.mu.Lock()
	d.asked = append(d.asked, network+" "+address)
	d.mu.Unlock()
	c, err := d.cluster.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &closing{Conn: c, end: func() { d.closed <- address }}, nil
}

func (d *datagrams) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

// closing calls end when it is closed.
type closing struct {
	net.Conn
	once sync.Once
	end  func()
}

func (c *closing) Close() error {
	c.once.Do(c.end)
	return c.Conn.Close()
}

// echo answers each datagram with itself behind "echo ".
func echo(t *testing.T, ip string) (address string) {
	t.Helper()
	return servertest.UDP(t, ip, func(b []byte, _ net.Addr) []byte { return append([]byte("echo "), b...) })
}

// socket is a UDP socket for a client's datagrams.
func socket(t *testing.T, ip string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// associate asks for an association and returns its TCP connection and where datagrams go.
func associate(t *testing.T, proxy string, announced target) (net.Conn, netip.AddrPort) {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.Write(announced.append([]byte("\x05\x01\x00\x05\x03\x00")))
	head := make([]byte, 2+4)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	relay, err := readTarget(c, head[5])
	if err != nil || !bytes.HasPrefix(head, []byte("\x05\x00\x05\x00\x00")) {
		t.Fatalf("answer % x, %v", head, err)
	}
	return c, netip.MustParseAddrPort(relay.address())
}

var nowhere = target{"0.0.0.0", 0}

func datagram(to target, data string) string {
	return string(to.append(make([]byte, 3))) + data
}

// converse sends datagrams and reads one answer.
func converse(t *testing.T, c *net.UDPConn, relay netip.AddrPort, send ...string) string {
	t.Helper()
	for _, s := range send {
		if _, err := c.WriteToUDPAddrPort([]byte(s), relay); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 64<<10)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil || netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != relay {
		t.Fatalf("from %v: %v", from, err)
	}
	return string(b[:n])
}

func TestDatagramsReachNamesAndBothFamilies(t *testing.T) {
	v4 := netip.MustParseAddrPort(echo(t, "127.0.0.1"))
	targets := map[string]target{"name": {"dns.shop", 7}, "IPv4": {v4.Addr().String(), v4.Port()}}
	if c, err := net.ListenPacket("udp6", "[::1]:0"); err == nil {
		c.Close()
		v6 := netip.MustParseAddrPort(echo(t, "::1"))
		targets["IPv6"] = target{v6.Addr().String(), v6.Port()}
	}
	d := newDatagrams(&cluster{addrs: map[string]string{"dns.shop:7": v4.String()}})
	// One association for all of them.
	_, relay := associate(t, startProxy(t, d.dial), nowhere)
	c := socket(t, "127.0.0.1")
	for name, to := range targets {
		t.Run(name, func(t *testing.T) {
			for _, data := range []string{"hello", "", strings.Repeat("x", 60_000)} {
				if got := converse(t, c, relay, datagram(to, data)); got != datagram(to, "echo "+data) {
					t.Errorf("%d bytes: got %.100q", len(data), got)
				}
			}
			if n := len(slices.DeleteFunc(d.all(), func(s string) bool { return s != "udp "+to.address() })); n != 1 {
				t.Errorf("%d dials in %q", n, d.all())
			}
		})
	}
}

// Datagrams come from the client alone: its address, and the port of its first one or the one that it has announced.
func TestDatagramsOfOthersAreDropped(t *testing.T) {
	d := newDatagrams(&cluster{addrs: map[string]string{"orders:7": echo(t, "127.0.0.1")}})
	proxy := startProxy(t, d.dial)
	good, bad := target{"orders", 7}, target{"stolen", 7}
	for _, tt := range []struct {
		name     string
		announce func(client netip.AddrPort) target
		learnt   bool
	}{
		{"learnt", func(netip.AddrPort) target { return nowhere }, true},
		{"announced", func(c netip.AddrPort) target { return target{c.Addr().String(), c.Port()} }, false},
		{"port announced", func(c netip.AddrPort) target { return target{"0.0.0.0", c.Port()} }, false},
		{"port of any IPv6 address announced", func(c netip.AddrPort) target { return target{"::", c.Port()} }, false},
		{"nonsense announced", func(netip.AddrPort) target { return target{"192.0.2.1", 9} }, true},
		{"name announced", func(netip.AddrPort) target { return target{"laptop", 9} }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, other := socket(t, "127.0.0.1"), socket(t, "127.0.0.1")
			_, relay := associate(t, proxy, tt.announce(client.LocalAddr().(*net.UDPAddr).AddrPort()))
			if tt.learnt {
				// What is no datagram of SOCKS5 teaches nothing, nor what has another address.
				other.WriteToUDPAddrPort([]byte("\x00\x01hello"), relay)
				if far, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2)}); err == nil {
					far.WriteToUDPAddrPort([]byte(datagram(bad, "x")), relay)
					far.Close()
				}
				if got := converse(t, client, relay, datagram(good, "1")); got != datagram(good, "echo 1") {
					t.Fatalf("%q", got)
				}
			}
			other.WriteToUDPAddrPort([]byte(datagram(bad, "x")), relay)
			if got := converse(t, client, relay, datagram(good, "2")); got != datagram(good, "echo 2") {
				t.Fatalf("%q", got)
			}
			if asked := d.all(); slices.Contains(asked, "udp stolen:7") {
				t.Errorf("asked for %q", asked)
			}
		})
	}
}

// What cannot be sent on is lost, and the association goes on.
func TestDatagramsThatAreDropped(t *testing.T) {
	d := newDatagrams(&cluster{
		addrs: map[string]string{"orders:7": echo(t, "127.0.0.1")},
		errs:  map[string]error{"forbidden:7": syscall.EACCES},
	})
	_, relay := associate(t, startProxy(t, d.dial), nowhere)
	good := target{"orders", 7}
	valid := datagram(target{"dropped", 7}, "x")
	got := converse(t, socket(t, "127.0.0.1"), relay,
		"", "\x00", "\x00\x00\x00", "\x00\x00\x00\x03", valid[:8],
		"\x00\x00\x01"+valid[3:],               // a fragment
		"\x00\x00\x81"+valid[3:],               // the last one
		"\x00\x01"+valid[2:], "\x01"+valid[1:], // the reserved bytes
		"\x00\x00\x00\x02\x00\x07x",           // no type of address
		"\x00\x00\x00\x03\x00\x00\x07x",       // no name
		"\x00\x00\x00\x03\x03a\nb\x00\x07x",   // no name's characters
		datagram(target{"forbidden", 7}, "x"), // the pod does not dial
		datagram(good, "hello"))
	if got != datagram(good, "echo hello") {
		t.Errorf("%q", got)
	}
	for _, asked := range d.all() {
		if asked != "udp orders:7" && asked != "udp forbidden:7" {
			t.Errorf("asked for %q", asked)
		}
	}
}

func TestAssociationEndsWithItsConnection(t *testing.T) {
	d := newDatagrams(&cluster{addrs: map[string]string{"orders:7": echo(t, "127.0.0.1")}})
	for name, end := range map[string]func(*net.TCPConn){
		"closed": func(c *net.TCPConn) { c.Close() },
		"reset":  func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
		"half-closed, after bytes that mean nothing": func(c *net.TCPConn) {
			io.WriteString(c, strings.Repeat("x", 1<<20))
			c.CloseWrite()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, relay := associate(t, startProxy(t, d.dial), nowhere)
			u, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			io.WriteString(u, datagram(target{"orders", 7}, "hello"))
			b := make([]byte, 100)
			if n, err := u.Read(b); err != nil {
				t.Fatal(n, err)
			}
			end(c.(*net.TCPConn))
			if got := <-d.closed; got != "orders:7" {
				t.Error(got)
			}
			for deadline := time.Now().Add(patience); err == nil && time.Now().Before(deadline); time.Sleep(pause) { // until nobody has the port
				_, err = u.Write([]byte("x"))
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Error(err)
			}
		})
	}
	// And with Serve: this one is open when the test's clean-up waits for that.
	_, relay := associate(t, startProxy(t, d.dial), nowhere)
	converse(t, socket(t, "127.0.0.1"), relay, datagram(target{"orders", 7}, "hello"))
}

func TestAssociationsAreBounded(t *testing.T) {
	addr := start(t, &Server{Dial: (&cluster{}).dial, associations: 1})
	c, _ := associate(t, addr, nowhere)
	ask := string(nowhere.append([]byte("\x05\x01\x00\x05\x03\x00")))
	refused := string(appendReply([]byte{5, 0}, replyGeneralFailure, nil))
	if got := exchange(t, addr, ask); got != refused {
		t.Fatalf("the second: % x", got)
	}
	c.Close()
	for deadline := time.Now().Add(patience); exchange(t, addr, ask) == refused; time.Sleep(pause) { // for a moment
		if time.Now().After(deadline) {
			t.Fatal("refused for good")
		}
	}
}

// A flow that was silent for as long as its port allows ends, and the next datagram begins another.
func TestSilentFlowsEnd(t *testing.T) {
	for port, idle := range map[uint16]time.Duration{53: 30 * time.Second, 7: 2 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			closed := make(chan struct{}, 10)
			ctx, cancel := context.WithCancel(t.Context())
			s := newSession(ctx, &Server{Dial: func(context.Context, string, string) (net.Conn, error) {
				near, far := net.Pipe()
				go func() { _, _ = io.Copy(io.Discard, far) }()
				return &closing{Conn: near, end: func() { closed <- struct{}{} }}, nil
			}})
			f := datagramFlow{&association{s: s}, target{"orders", port}}
			s.flows.Put(ctx, f, []byte("x"))
			for range 3 {
				time.Sleep(idle - time.Second)
				s.flows.Put(ctx, f, []byte("x"))
			}
			synctest.Wait()
			if len(closed) != 0 {
				t.Errorf("port %d: closed while there were datagrams", port)
			}
			time.Sleep(idle)
			synctest.Wait()
			if len(closed) != 1 {
				t.Errorf("port %d: not closed after %v", port, idle)
			}
			s.flows.Put(ctx, f, []byte("x"))
			synctest.Wait()
			cancel()
			s.flows.Wait()
			if len(closed) != 2 {
				t.Errorf("port %d: %d flows", port, len(closed))
			}
		})
	}
}

// FuzzParseDatagram checks that what is taken for a datagram says the same when it is written anew, and loses nothing of its data.
func FuzzParseDatagram(f *testing.F) {
	for _, seed := range []string{
		"\x00\x00\x00\x01\x7f\x00\x00\x01\x00\x35data",
		"\x00\x00\x00\x03\x0borders.shop\x01\xbbdata",
		"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50",
		"\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x7f\x00\x00\x01\x00\x50",
		"\x00\x00\x00\x03\x03::1\x00\x50",
		"\x00\x00\x01\x01\x7f\x00\x00\x01\x00\x35data",
		"\x00\x01\x00\x00\x21\x12\xa4\x42", // STUN
		"\x00\x00\x00\x09",
		"",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		to, data, err := parseDatagram(b)
		if err != nil {
			if to != (target{}) || data != nil {
				t.Fatalf("%q: %v, and yet %v %q", b, err, to, data)
			}
			return
		}
		if !bytes.HasSuffix(b, data) || len(data) > len(b)-7 || b[2] != 0 {
			t.Fatalf("%q: data %q", b, data)
		}
		if host, _, err := net.SplitHostPort(to.address()); err != nil || host != to.host || host == "" {
			t.Fatalf("%q: address %q: %v", b, to.address(), err)
		}
		again, rest, err := parseDatagram(append(to.append(make([]byte, 3)), data...))
		if addr, aerr := netip.ParseAddr(to.host); aerr == nil { // also a name that is one
			to.host = addr.Unmap().String()
		}
		if err != nil || again != to || !bytes.Equal(rest, data) {
			t.Fatalf("%q: %v %q, and again %v %q, %v", b, to, data, again, rest, err)
		}
	})
}
