package procnet

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestOrphaned(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6", "tcp"} { // tcp: IPv4 in IPv6
		address := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": ":0"}[network]
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Logf("%s: %v", network, err) // as without IPv6
			continue
		}
		defer ln.Close()
		to := ln.Addr().(*net.TCPAddr)
		if network == "tcp" {
			to = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to.Port}
		}
		far, err := net.DialTCP("tcp", nil, to)
		if err != nil {
			t.Fatal(err)
		}
		near, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		gone := func(what string, want bool) {
			t.Helper()
			if got := Orphaned(near.RemoteAddr(), near.LocalAddr()); got != want {
				t.Errorf("%s, %s: %v", network, what, got)
			}
		}
		gone("open", false)
		_ = far.CloseWrite()
		if _, err := io.ReadAll(near); err != nil {
			t.Fatal(err)
		}
		gone("half-closed", false)
		_ = far.Close()
		// The kernel tells near before it takes the socket from the program.
		for range 1000 {
			if Orphaned(near.RemoteAddr(), near.LocalAddr()) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		gone("closed", true)
	}
	// Nobody's here.
	if Orphaned(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 2}) || Orphaned(&net.UnixAddr{}, &net.UnixAddr{}) {
		t.Error("a socket that there is none of is closed")
	}
}
