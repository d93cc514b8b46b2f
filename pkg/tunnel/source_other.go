//go:build !unix

package tunnel

import "syscall"

// rawRead is not possible here: a read is handed to the system with its buffer.
func rawRead(syscall.Conn) syscall.RawConn { return nil }

func readFD(uintptr, []byte) (int, error) { return 0, syscall.ENOSYS }
