//go:build !linux

package kube

import (
	"net"
	"time"
)

// unacknowledged is not known here: the kernel's own timeouts end such a connection.
func unacknowledged(net.Conn) (time.Duration, bool) { return 0, false }
