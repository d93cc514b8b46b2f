//go:build !linux

package kube

import (
	"net"
	"time"
)

// unacknowledged is not known here: the kernel's own timeouts end such a connection.
func unacknowledged(net.Conn) (time.Duration, bool) { return 0, false }

// probeOften is not possible here.
func probeOften(net.Conn, time.Duration) {}

// retransmitted is not known here.
func retransmitted(net.Conn) (sent, again uint32, ok bool) { return 0, 0, false }
