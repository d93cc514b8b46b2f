//go:build unix

package tunnel

import "syscall"

// rawRead lets the caller try to read c without waiting.
func rawRead(c syscall.Conn) syscall.RawConn {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil // closed: a plain read says so
	}
	return raw
}

func readFD(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }
