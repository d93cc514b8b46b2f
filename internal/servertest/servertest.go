// Package servertest has servers for tests, each of which ends with its test. Nothing else imports it.
package servertest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// TCP serves connections to a port of 127.0.0.1, all at once: each is closed after serve. The test's end waits for them, so that its client
// has to end its own.
func TCP(t testing.TB, serve func(*net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				serve(c.(*net.TCPConn))
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// Echo sends back what it gets, and a half-close too.
func Echo(c *net.TCPConn) {
	_, _ = io.Copy(c, c)
	_ = c.CloseWrite()
}

// UDP answers each datagram that comes to a free port of ip, with what answer makes of it, one after the other.
func UDP(t testing.TB, ip string, answer func(datagram []byte, from net.Addr) []byte) (address string) {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(answer(b[:n], from), from)
		}
	})
	t.Cleanup(func() {
		_ = c.Close()
		wg.Wait()
	})
	return c.LocalAddr().String()
}

// Same is an answer of UDP: the datagram itself.
func Same(datagram []byte, _ net.Addr) []byte { return datagram }
