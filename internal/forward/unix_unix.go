//go:build unix

package forward

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// lockWait is how long a folder's lock is waited for, and lockAgain how often it is tried: everybody who may read the folder can
	// hold it.
	lockWait  = 2 * time.Second
	lockAgain = 20 * time.Millisecond
)

// lockFolder keeps other bridges from replacing a socket in the folder meanwhile.
func lockFolder(path string) (unlock func(), err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockWait); ; time.Sleep(lockAgain) {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		again := err == syscall.EINTR || err == syscall.EWOULDBLOCK //nolint:errorlint // bare
		if !again || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// umask is the process's, so that one listener at a time changes it.
var umask sync.Mutex

// listenPrivate makes a socket of mode 0600, from the first moment on.
func listenPrivate(path string) (*net.UnixListener, error) {
	umask.Lock()
	defer umask.Unlock()
	const others = 0o177
	before := syscall.Umask(others)
	defer syscall.Umask(before)
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
