package kube

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// Dead says when the machine has lost the address that the connection to the API server comes from: nothing is answered
// there any more. pkg/tunnel asks every second.
func (p *podConn) Dead() error { return p.requests.dead(p.c.NetConn()) }

// Dead is like podConn's.
func (p *proxyConn) Dead() error { return p.requests.dead(p.Conn) }

// requestConns are the connections of a client's plain requests. They come from the same address as its carriers.
type requestConns struct {
	mu   sync.Mutex
	open map[*requestConn]struct{}
}

type requestConn struct {
	net.Conn
	of *requestConns
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// dialer is dial, with what it opens among r.
func (r *requestConns) dialer(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		c := &requestConn{conn, r}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.open == nil {
			r.open = make(map[*requestConn]struct{})
		}
		r.open[c] = struct{}{}
		return c, nil
	}
}

func (c *requestConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// dead is an error when the machine has lost carrier's own address. Then the requests that wait on connections from such
// addresses are ended too: the next carrier begins with some.
func (r *requestConns) dead(carrier net.Conn) error {
	err := addressGone(carrier)
	if err == nil {
		return nil
	}
	r.mu.Lock()
	var gone []*requestConn
	for c := range r.open {
		if addressGone(c) != nil {
			gone = append(gone, c)
		}
	}
	r.mu.Unlock()
	for _, c := range gone {
		_ = c.Close()
	}
	return err
}

// addressGone is an error when conn's own address is none of this machine's; nil where that cannot be told.
func addressGone(conn net.Conn) error {
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && (n.IP.Equal(local.IP) || local.IP.IsLoopback() && n.IP.IsLoopback()) {
			return nil // all of 127.0.0.0/8 is there with one of them
		}
	}
	return fmt.Errorf("this machine no longer has the address %v", local.IP)
}
