//go:build !linux

package ping

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Dial is for Linux.
func Dial(_ context.Context, address string) (net.Conn, error) {
	return nil, fmt.Errorf("ping %s: %w", address, errors.ErrUnsupported)
}
