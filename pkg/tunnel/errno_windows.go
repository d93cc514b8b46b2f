package tunnel

import (
	"errors"
	"syscall"
)

// winsock has the numbers that sockets really fail with: Windows' syscall.ECONNREFUSED and its like are
// invented by Go and never returned.
var winsock = map[syscall.Errno]syscall.Errno{
	syscall.EACCES:       10013,
	syscall.ENETUNREACH:  10051,
	syscall.ECONNRESET:   10054,
	syscall.ETIMEDOUT:    10060,
	syscall.ECONNREFUSED: 10061,
	syscall.EHOSTUNREACH: 10065,
}

func isErrno(err error, errno syscall.Errno) bool {
	w, ok := winsock[errno]
	return errors.Is(err, errno) || ok && errors.Is(err, w)
}
