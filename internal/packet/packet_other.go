//go:build !linux

package packet

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// MTU is what a device should have, in bytes.
const MTU = 65520

// Stack carries what arrives at a device, on Linux.
type Stack struct {
	Dial        func(ctx context.Context, network, address string) (net.Conn, error)
	Takes       func(netip.Addr) bool
	From        func(netip.Addr) bool
	DialTimeout time.Duration
	MTU         uint32
	Link        net.HardwareAddr
	Log         *slog.Logger
}

// Run says that it is not to be had here.
func (*Stack) Run(context.Context, int) error { return errors.ErrUnsupported }
