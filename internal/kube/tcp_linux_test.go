package kube

import (
	"bufio"
	"errors"
	"net"
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
	var all sync.WaitGroup
	for name, pause := range map[string]time.Duration{"reads": 0, "reads seldom": 2 * time.Second, "does not read": time.Minute} {
		all.Go(func() {
			runtime.LockOSThread() // it ends with the goroutine
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				t.Log("without root there is no path to be cut: ", err)
				return
			}
			near, far, err := overLoopback()
			if err != nil {
				t.Error(err)
				return
			}
			p := &podConn{c: &rawCarrier{Conn: near, r: bufio.NewReader(near)}, onLost: func() {}, closed: make(chan struct{}), wmu: make(chan struct{}, 1)}
			p.start()
			var others sync.WaitGroup
			defer others.Wait()
			defer func() { _, _ = p.Close(), far.Close() }() // which ends them
			ended := make(chan struct{})
			defer close(ended)
			if pause > alive && !probesOften(near) {
				t.Log("this kernel asks seldom: a far end that does not read is left out")
				return
			}
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
			cut := time.Now()
			if err := loopback(0); err != nil {
				t.Error(err)
			}
			err = <-lost
			if took := time.Since(cut); !errors.Is(err, syscall.ETIMEDOUT) || took > slack*noticed {
				t.Errorf("the far end %s: %v after %v", name, err, took)
			}
		})
	}
	all.Wait()
}

func probesOften(c net.Conn) bool {
	raw, err := tcpUnder(c).SyscallConn()
	if err != nil {
		return false
	}
	failed := raw.Control(func(fd uintptr) { _, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS) })
	return failed == nil && err == nil
}

// overLoopback is a connection over this thread's own loopback device.
func overLoopback() (near, far net.Conn, err error) {
	if err := loopback(unix.IFF_UP); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	far, err = l.Accept()
	return near, far, err
}

// loopback sets the flags of this thread's loopback device.
func loopback(flags uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(flags)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}
