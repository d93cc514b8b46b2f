//go:build !linux

package netns

import (
	"errors"
	"net/netip"
)

// Read is for Linux.
func (d *Datagrams) Read([]byte) (n int, from, to netip.AddrPort, err error) {
	return 0, from, to, errors.ErrUnsupported
}

// Write is for Linux.
func (d *Datagrams) Write([]byte, netip.AddrPort, netip.AddrPort) error { return errors.ErrUnsupported }
