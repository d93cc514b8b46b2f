package packet

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"bridge/internal/ping"
	"bridge/internal/servertest"
)

// patience bounds every wait for something that has to happen.
const patience = time.Minute

// place is a network namespace of the test's own whose way out is a Stack: to 10.77.0.0/16 and fd77::/64.
type place struct {
	t    *testing.T
	work chan func()
}

// do calls f in the namespace.
func (p *place) do(f func()) {
	done := make(chan struct{})
	p.work <- func() { defer close(done); f() }
	<-done
}

// dial makes a connection from the namespace.
func (p *place) dial(network, address string) (c net.Conn, err error) {
	p.do(func() { c, err = (&net.Dialer{Timeout: patience}).Dial(network, address) })
	return c, err
}

type dial = func(ctx context.Context, network, address string) (net.Conn, error)

// newPlace is one whose Stack dials so, until the test ends. Then nothing of it is left.
func newPlace(t *testing.T, d dial) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	leaks := goleak.IgnoreCurrent()
	p := &place{t: t, work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with it, and the namespace
		ready <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range p.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Skipf("no network namespace: %v", err)
	}
	var device int
	var err error
	p.do(func() { device, err = makeDevice() })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	s := &Stack{Dial: d, Takes: func(a netip.Addr) bool {
		return netip.MustParsePrefix("10.77.0.0/16").Contains(a) || netip.MustParsePrefix("fd77::/64").Contains(a)
	}}
	go func() { ended <- s.Run(ctx, device) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = unix.Close(device)
		close(p.work)
		goleak.VerifyNone(t, leaks)
	})
	return p
}

// makeDevice makes one in the namespace of the thread.
func makeDevice() (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	r, err := unix.NewIfreq("tun0")
	if err != nil {
		return 0, err
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		return 0, err
	}
	for _, line := range []string{
		"link set lo up", fmt.Sprintf("link set tun0 mtu %d up", MTU), "address add 192.0.2.1/32 dev tun0", "address add fd78::1/128 dev tun0 nodad",
		"route add 10.0.0.0/8 dev tun0 src 192.0.2.1", "route add fd77::/64 dev tun0 src fd78::1",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	// The kernel makes an IPv6 address its own after it has given it out: what is sent there before is forwarded, which is dropped.
	for end := time.Now().Add(patience); ; {
		out, err := exec.Command("ip", "-6", "route", "get", "fd78::1").CombinedOutput()
		if err == nil && strings.HasPrefix(string(out), "local ") {
			return fd, nil
		}
		if time.Now().After(end) {
			return 0, fmt.Errorf("fd78::1 is not local: %s", out)
		}
	}
}

// target is a listener outside of the namespace, and a dial that has every address be it.
func target(t *testing.T) (*net.TCPListener, dial) {
	t.Helper()
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, ln.Addr().String())
	}
}

// A half-close passes, each way, and what was said before it, to the byte; over IPv4 and IPv6.
func TestBytesAndHalfClosePass(t *testing.T) {
	ln, d := target(t)
	asked := make(chan string, 2)
	p := newPlace(t, func(ctx context.Context, network, address string) (net.Conn, error) {
		asked <- network + " " + address
		return d(ctx, network, address)
	})
	up, down := make([]byte, 3<<20), make([]byte, 5<<20)
	_, _ = rand.Read(up)
	_, _ = rand.Read(down)
	for _, address := range []string{"10.77.1.2:80", "[fd77::7]:443"} {
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := ln.AcceptTCP()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			got, err := io.ReadAll(c) // to the half-close
			if err != nil || !bytes.Equal(got, up) {
				t.Errorf("the target got %d bytes, %v", len(got), err)
			}
			_, _ = c.Write(down)
		})
		c, err := p.dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-asked; got != "tcp "+address {
			t.Errorf("%q was dialled", got)
		}
		if _, err := c.Write(up); err != nil {
			t.Error(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Error(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, down) {
			t.Errorf("the program got %d bytes, %v", len(got), err)
		}
		_ = c.Close()
		wg.Wait()
	}
}

// The program's connection is not made before the target's, and is refused when that is.
func TestDialComesBeforeTheHandshake(t *testing.T) {
	ln, d := target(t)
	asked, goOn := make(chan struct{}), make(chan error)
	p := newPlace(t, func(ctx context.Context, network, address string) (net.Conn, error) {
		asked <- struct{}{}
		if err := <-goOn; err != nil {
			return nil, err
		}
		return d(ctx, network, address)
	})
	for _, refusal := range []error{nil, syscall.ECONNREFUSED} {
		made := make(chan error, 1)
		go func() {
			c, err := p.dial("tcp", "10.77.0.1:80")
			if err == nil {
				_ = c.Close()
			}
			made <- err
		}()
		<-asked
		select {
		case err := <-made:
			t.Fatalf("the connection was made, or failed, before its target was dialled: %v", err)
		default:
		}
		goOn <- refusal
		if err := <-made; !errors.Is(err, refusal) {
			t.Errorf("%v, want %v", err, refusal)
		}
	}
	_ = ln
}

func TestResetsPass(t *testing.T) {
	ln, d := target(t)
	p := newPlace(t, d)
	for _, who := range []string{"the target", "the program"} {
		c, err := p.dial("tcp", "10.77.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		s, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		resets, sees := s, c.(*net.TCPConn)
		if who == "the program" {
			resets, sees = sees, resets
		}
		_ = resets.SetLinger(0)
		_ = resets.Close()
		_ = sees.SetReadDeadline(time.Now().Add(patience))
		if _, err := sees.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s resets: the other sees %v", who, err)
		}
		_ = sees.Close()
	}
}

// Connections that are open when Run ends are reset on both ends.
func TestTheEndResets(t *testing.T) {
	ln, d := target(t)
	var c net.Conn
	var s *net.TCPConn
	t.Run("run", func(t *testing.T) {
		p := newPlace(t, d)
		var err error
		if c, err = p.dial("tcp", "10.77.0.1:80"); err != nil {
			t.Fatal(err)
		}
		if s, err = ln.AcceptTCP(); err != nil {
			t.Fatal(err)
		}
	})
	if s == nil {
		t.Skip("no namespace")
	}
	for name, conn := range map[string]net.Conn{"program": c, "target": s} {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the %s sees %v", name, err)
		}
		_ = conn.Close()
	}
}

// Datagrams keep their boundaries and their sender's address, the longest too, which are more than a packet.
func TestDatagramsPass(t *testing.T) {
	echo := servertest.UDP(t, "127.0.0.1", servertest.Same)
	t.Run("run", func(t *testing.T) {
		p := newPlace(t, func(ctx context.Context, network, address string) (net.Conn, error) {
			if network != "udp" || address != "10.77.0.10:53" && address != "[fd77::10]:53" {
				t.Errorf("%s %s was dialled", network, address)
			}
			return new(net.Dialer).DialContext(ctx, network, echo)
		})
		for _, address := range []string{"10.77.0.10:53", "[fd77::10]:53"} {
			c, err := p.dial("udp", address) // connected: takes answers from there alone
			if err != nil {
				t.Fatal(err)
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			for _, size := range []int{0, 1, 1400, 65400} {
				b, got := make([]byte, size), make([]byte, 64<<10)
				_, _ = rand.Read(b)
				if _, err := c.Write(b); err != nil {
					t.Fatal(err)
				}
				n, err := c.Read(got)
				if err != nil || !bytes.Equal(got[:n], b) {
					t.Errorf("%s, %d bytes: %d came back, %v", address, size, n, err)
				}
			}
			_ = c.Close()
		}
	})
}

// Echo requests reach who can be asked, and what keeps them from it is told.
func TestEchoesPass(t *testing.T) {
	p := newPlace(t, func(ctx context.Context, network, address string) (net.Conn, error) {
		switch {
		case network != "icmp":
			t.Errorf("%s %s was dialled", network, address)
		case address == "10.77.0.10:0" || address == "[fd77::10]:0":
			return ping.Dial(ctx, "127.0.0.1:0")
		}
		return nil, syscall.EACCES
	})
	b := make([]byte, 64<<10)
	for _, address := range []string{"10.77.0.10:0", "[fd77::10]:0", "10.77.0.11:0", "[fd77::11]:0"} {
		var c net.Conn
		var err error
		p.do(func() { c, err = ping.Dial(t.Context(), address) })
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if strings.Contains(address, "11") {
			_, err := c.Write([]byte("\x00\x01hello"))
			for err == nil { // the kernel tells of it as soon as it can
				_, err = c.Read(b)
			}
			if !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.EACCES) { // prohibited, over IPv4 and IPv6
				t.Errorf("%s: %v", address, err)
			}
			_ = c.Close()
			continue
		}
		for seq, size := range []int{2, 3, 58, 60_000} {
			echo := make([]byte, size)
			_, _ = rand.Read(echo)
			echo[0], echo[1] = 0, byte(seq)
			if _, err := c.Write(echo); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], echo) {
				t.Errorf("%s: %d bytes came back of %d, %v", address, n, size, err)
			}
		}
		_ = c.Close()
	}
}

// A question that is not passed on is not answered, nor is what goes elsewhere.
func TestNothingIsAnsweredInATargetsPlace(t *testing.T) {
	p := newPlace(t, func(_ context.Context, network, address string) (net.Conn, error) {
		if address != "10.77.0.10:53" {
			t.Errorf("%s %s was dialled", network, address)
			return nil, syscall.ECONNREFUSED
		}
		near, far := net.Pipe() // a flow's Write is a datagram
		go func() { _, _ = io.Copy(far, far); _ = far.Close() }()
		return near, nil
	})
	p.do(func() {
		echo, err := net.Dial("ip4:icmp", "10.77.0.1")
		if err != nil {
			t.Error(err)
			return
		}
		defer echo.Close()
		elsewhere, err := net.Dial("udp", "10.99.0.1:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer elsewhere.Close()
		taken, err := net.Dial("udp", "10.77.0.10:53")
		if err != nil {
			t.Error(err)
			return
		}
		defer taken.Close()
		question := append([]byte{13, 0, 0xf2, 0xfd, 0, 1, 0, 1}, make([]byte, 12)...) // what is the time?
		if _, err := echo.Write(question); err != nil {
			t.Error(err)
		}
		if _, err := elsewhere.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		// The packets keep their order: when this one has come back, the others have been dealt with.
		_ = taken.SetDeadline(time.Now().Add(patience))
		if _, err := taken.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := taken.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		_ = echo.SetReadDeadline(time.Now().Add(time.Millisecond)) // what is there is read
		if n, err := echo.Read(make([]byte, 100)); err == nil {
			t.Errorf("it was answered: %d bytes", n)
		}
	})
}

// What is neither TCP, UDP nor ICMP is refused at once.
func TestOtherProtocolsAreRefused(t *testing.T) {
	p := newPlace(t, func(_ context.Context, network, address string) (net.Conn, error) {
		t.Errorf("%s %s was dialled", network, address)
		return nil, syscall.ECONNREFUSED
	})
	p.do(func() {
		sctp, err := net.Dial("ip4:132", "10.77.0.1")
		if err != nil {
			t.Error(err)
			return
		}
		defer sctp.Close()
		_ = sctp.SetDeadline(time.Now().Add(patience))
		if _, err := sctp.Write(make([]byte, 32)); err != nil {
			t.Error(err)
		}
		if _, err := sctp.Read(make([]byte, 100)); !errors.Is(err, syscall.ENOPROTOOPT) {
			t.Errorf("SCTP: %v", err)
		}
	})
}
