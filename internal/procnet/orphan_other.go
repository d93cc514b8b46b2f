//go:build !linux

package procnet

import "net"

// Orphaned is false: only Linux tells.
func Orphaned(_, _ net.Addr) bool { return false }
