package kube

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Whatever lies between a port-forward and its TCP connection.
func TestTheKernelKnowsEveryCarriersConnection(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		_, c := newForwardServer(t, ws, echoPort)
		conn := dial(t, c, 80)
		if sent, _, ok := retransmitted(conn.(*podConn).c.NetConn()); !ok || sent == 0 {
			t.Errorf("%d packets sent, known: %v", sent, ok)
		}
	})
}

// An upload over a path that swallows everything is lost, whatever the far end was doing: also where its window had been closed for so long that TCP asks
// seldom whether it opens.
func TestAnUploadOverADeadPathIsLost(t *testing.T) {
	t.Parallel()
	const (
		alive   = 14 * time.Second // TCP would ask 12.6 s after a window has closed, and not before 25.4 s again
		noticed = 15 * time.Second
		slack   = 2 // a second time of asking would be later
	)
	for name, pause := range map[string]time.Duration{"reads": 0, "reads seldom": 2 * time.Second, "does not read": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far, cut := overLoopback(t)
			if pause > alive && !probesOften(near) {
				t.Skip("this kernel asks seldom")
			}
			p := &podConn{c: &session{carrier: &rawCarrier{Conn: near, r: bufio.NewReader(near)}}, onLost: func() {}, closed: make(chan struct{}), wmu: make(chan struct{}, 1)}
			p.start()
			var others sync.WaitGroup
			defer others.Wait()
			defer func() { _, _ = p.Close(), far.Close() }() // which ends them
			ended := make(chan struct{})
			defer close(ended)
			others.Go(func() {
				b := make([]byte, 64<<10)
				for {
					select {
					case <-time.After(pause):
					case <-ended:
						return
					}
					if _, err := far.Read(b); err != nil {
						return
					}
				}
			})
			others.Go(func() {
				for b := make([]byte, 64<<10); ; {
					if _, err := p.Write(b); err != nil {
						return
					}
				}
			})
			lost := make(chan error, 1)
			others.Go(func() {
				_, err := p.Read(make([]byte, 1))
				lost <- err
			})
			time.Sleep(alive)
			since := time.Now()
			cut()
			err := <-lost
			if took := time.Since(since); !errors.Is(err, syscall.ETIMEDOUT) || took > slack*noticed {
				t.Errorf("%v after %v", err, took)
			}
		})
	}
}

// A path that takes longer than the watch may ask is not asked twice for everything: TCP waits for as long as an acknowledgement takes.
func TestASlowPathIsNotSentEverythingTwice(t *testing.T) {
	t.Parallel()
	const oneWay = 2200 * time.Millisecond // there and back it is longer than pingPeriod
	near, far := overSlowPath(t, oneWay)
	if !probesOften(near) {
		t.Skip("this kernel asks seldom")
	}
	p := &podConn{c: &session{carrier: &rawCarrier{Conn: near, r: bufio.NewReader(near)}}, onLost: func() {}, closed: make(chan struct{}), wmu: make(chan struct{}, 1)}
	p.start()
	var others sync.WaitGroup
	defer others.Wait()
	defer func() { _, _ = p.Close(), far.Close() }()
	others.Go(func() { _, _ = io.Copy(io.Discard, far) }) // which acknowledges
	_, before, _ := retransmitted(near)                   // the handshake may have been
	for range 4 {
		if _, err := p.Write([]byte("it")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * oneWay / 2) // until it is acknowledged: each acknowledgement begins the wait for the next anew
		if sent, again, ok := retransmitted(near); !ok || sent == 0 || again > before {
			t.Fatalf("of %d packets %d were sent again, known: %v", sent, again-before, ok)
		}
	}
}

func probesOften(c net.Conn) bool {
	raw, err := tcpUnder(c).SyscallConn()
	if err != nil {
		return false
	}
	failed := raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS) })
	return failed == nil && err == nil
}

// newNetwork is a network of the test's own, and what runs something in it.
func newNetwork(t *testing.T) (in func(do func() error)) {
	t.Helper()
	calls, done := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if done <- err; err != nil {
			return // this is the machine's
		}
		for do := range calls {
			done <- do()
		}
	}()
	switch err := <-done; {
	case errors.Is(err, unix.EPERM):
		t.Skip("without root there is no network of the test's own")
	case err != nil:
		t.Fatal(err)
	}
	t.Cleanup(func() { close(calls) })
	return func(do func() error) {
		t.Helper()
		calls <- do
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// overLoopback is a connection over the loopback device of a network of the test's own, and what cuts that.
func overLoopback(t *testing.T) (near, far net.Conn, cut func()) {
	t.Helper()
	in := newNetwork(t)
	in(func() (err error) {
		if err = loopback(unix.IFF_UP); err == nil {
			near, far, err = connected("127.0.0.1", "127.0.0.1")
		}
		return err
	})
	return near, far, func() { in(func() error { return loopback(0) }) }
}

// connected is a connection to a listener at an address, which is dialled by another.
func connected(at, by string) (near, far net.Conn, err error) {
	l, err := net.Listen("tcp4", at+":0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.ParseIP(by), Port: l.Addr().(*net.TCPAddr).Port}); err != nil {
		return nil, nil, err
	}
	far, err = l.Accept()
	return near, far, err
}

// overSlowPath is a connection that takes so long there, and as long back: what leaves by a TUN device comes back by it, from who it was to.
func overSlowPath(t *testing.T, oneWay time.Duration) (near, far net.Conn) {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("without a TUN device there is no slow path: ", err)
	}
	newNetwork(t)(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
		}
		r, err := unix.NewIfreq("slow")
		if err != nil {
			return err
		}
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
		device := os.NewFile(uintptr(fd), "tun")
		t.Cleanup(func() { _ = device.Close() })
		for _, set := range []struct {
			request uint
			value   [4]byte
		}{{unix.SIOCSIFADDR, [4]byte{192, 0, 2, 1}}, {unix.SIOCSIFNETMASK, [4]byte{255, 255, 255, 0}}} {
			if err == nil {
				err = r.SetInet4Addr(set.value[:])
			}
			if err == nil {
				err = change(set.request, r)
			}
		}
		if err == nil {
			r.SetUint16(unix.IFF_UP)
			err = change(unix.SIOCSIFFLAGS, r)
		}
		if err != nil {
			return err
		}
		go func() {
			for {
				b := make([]byte, 64<<10)
				n, err := device.Read(b)
				if err != nil {
					return
				}
				if b = b[:n]; n < 20 || b[0]>>4 != 4 {
					continue
				}
				for i := 12; i < 16; i++ { // no checksum changes
					b[i], b[i+4] = b[i+4], b[i]
				}
				time.AfterFunc(oneWay, func() { _, _ = device.Write(b) })
			}
		}()
		near, far, err = connected("192.0.2.1", "192.0.2.2")
		return err
	})
	return near, far
}

// loopback sets the flags of this thread's loopback device.
func loopback(flags uint16) error {
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	return change(unix.SIOCSIFFLAGS, r)
}

// change sets something of a device of this thread's network.
func change(request uint, r *unix.Ifreq) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, request, r)
}
