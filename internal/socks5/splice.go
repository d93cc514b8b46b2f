package socks5

import (
	"context"
	"net"

	"bridge/pkg/tunnel"
)

// splice carries bytes both ways until both directions are done; when ctx ends first, both are cut.
func splice(ctx context.Context, a, b net.Conn) error {
	stop := context.AfterFunc(ctx, func() {
		_ = a.Close()
		_ = b.Close()
	})
	defer stop()
	return tunnel.Splice(a, b)
}
