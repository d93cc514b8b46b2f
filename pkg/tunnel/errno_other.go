//go:build !windows

package tunnel

import (
	"errors"
	"syscall"
)

func isErrno(err error, errno syscall.Errno) bool { return errors.Is(err, errno) }
