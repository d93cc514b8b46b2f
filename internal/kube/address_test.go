package kube

import (
	"net"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// from is a connection that comes from another address than its own.
type from struct {
	net.Conn
	addr net.Addr
}

func (f from) LocalAddr() net.Addr { return f.addr }

func TestAddressGone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := addressGone(conn); err != nil {
		t.Error(err)
	}
	gone := from{conn, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}}
	if err := addressGone(gone); err == nil || !strings.Contains(err.Error(), "192.0.2.7") {
		t.Errorf("%v", err)
	}
	if err := addressGone(from{conn, &net.UnixAddr{}}); err != nil {
		t.Error(err)
	}
}

// A client for another namespace of the cluster has the same connections, and its carriers know of them.
func TestInKeepsTheConnections(t *testing.T) {
	c, err := NewForConfig(&rest.Config{Host: "https://127.0.0.1:1"}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	gone := from{conn, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 1}}
	if err := c.In("other").requests.dead(gone); err == nil {
		t.Error("not dead")
	}
}
