//go:build !linux

package netns

import (
	"errors"
	"net/netip"

	"bridge/internal/flow"
)

// Receive is for Linux.
func (d *Datagrams) Receive(func(flow.Pair, []byte)) error { return errors.ErrUnsupported }

func (d *Datagrams) send(netip.Addr, netip.Addr, bool, []byte) error { return errors.ErrUnsupported }
