package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"bridge/internal/flow"
)

// Datagrams joins each address that sends datagrams to Sockets with a connection that Dial makes: a flow.
type Datagrams struct {
	Sockets []*net.UDPConn
	// Address is given to Dial.
	Address string
	Dial    func(ctx context.Context, network, address string) (net.Conn, error)
	// Idle is how long a flow may be silent before it is closed; not zero.
	Idle  time.Duration
	Stats *Stats // nil counts nothing
	// OnError, if set, is called when a flow could not be made.
	OnError func(caller netip.AddrPort, err error)
}

// Run serves until ctx is done; then it closes the sockets. It returns when everything has ended, with an error only if a socket
// fails.
func (d *Datagrams) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, c := range d.Sockets {
		wg.Go(func() {
			if err := d.serve(ctx, c); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	closeAll(d.Sockets)
	wg.Wait()
	if err := context.Cause(ctx); errors.As(err, new(*acceptError)) {
		return err
	}
	return nil
}

func (d *Datagrams) serve(ctx context.Context, c *net.UDPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	flows := &flow.Table[netip.AddrPort]{
		Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) { return d.Dial(ctx, "udp", d.Address) },
		Answer: func(caller netip.AddrPort, b []byte) error {
			d.Stats.moved(false, len(b))
			_, err := c.WriteToUDPAddrPort(b, caller)
			return err
		},
		Idle: func(netip.AddrPort) time.Duration { return d.Idle },
		Begin: func(caller netip.AddrPort) func(error) {
			closed := d.Stats.opened()
			return func(err error) {
				closed()
				if err != nil && ctx.Err() == nil && d.OnError != nil {
					d.OnError(caller, err)
				}
			}
		},
	}
	defer flows.Wait()
	defer cancel() // a socket that fails ends its flows
	err := flow.Receive(ctx, c, func(caller netip.AddrPort, b []byte) {
		d.Stats.moved(true, len(b))
		flows.Put(ctx, caller, b)
	})
	if err != nil {
		return &acceptError{err}
	}
	return nil
}
