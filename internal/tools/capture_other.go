//go:build !linux

package tools

import (
	"context"
	"errors"
)

func capture(context.Context, Streams, uint16) error {
	return errors.New("only Linux has a way to see packets")
}
