package flow

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// A read that fails is tried again after readPause, and given up after about 10 seconds.
	readPause     = 100 * time.Millisecond
	maxReadErrors = 100
)

// Receive gives put what comes to c, until ctx is done, which is no error, or c fails. Whoever ends ctx closes c. put must not
// keep b.
func Receive(ctx context.Context, c *net.UDPConn, put func(from netip.AddrPort, b []byte)) error {
	b := make([]byte, MaxDatagram)
	for failed := 0; ; {
		n, from, err := c.ReadFromUDPAddrPort(b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			failed = 0
			put(from, b[:n])
		default:
			// What a datagram of ours met (Windows says so here), or want of memory.
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				return err
			}
			select {
			case <-time.After(readPause):
			case <-ctx.Done():
			}
		}
	}
}
