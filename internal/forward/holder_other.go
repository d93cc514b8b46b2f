//go:build !linux

package forward

import "net"

// holder is empty: only Linux says without root who has a port.
func holder(net.Addr) string { return "" }
