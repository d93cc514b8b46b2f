package forward

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"bridge/internal/hint"
)

// ListenUnix opens a unix socket at path that only its owner may use. One that nobody listens on any more is replaced; one in use,
// or another file, is an error. The socket is removed when the listener is closed.
func ListenUnix(path string) (net.Listener, error) {
	unlock, err := lockFolder(filepath.Dir(path))
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, hint.New(hint.Other, fmt.Errorf("local socket %s: another program holds it: %w", path, err), "choose a folder that is yours alone")
	case err != nil:
		return nil, hint.New(hint.Other, fmt.Errorf("local socket %s: %w", path, err), "its folder has to be there, and yours to write to")
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := listenPrivate(path)
	if err != nil {
		next := "choose another path"
		if errors.Is(err, syscall.EINVAL) {
			next = "a socket's path has 100 characters at most"
		}
		return nil, hint.New(hint.Other, fmt.Errorf("local socket: %w", err), next)
	}
	ln.SetUnlinkOnClose(false) // by then it may be another's
	mine, err := os.Lstat(path)
	if err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("local socket: %w", err)
	}
	return &unixListener{UnixListener: ln, path: path, mine: mine}, nil
}

// removeStale removes a socket at path that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("local socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return hint.Newf(hint.Other, "choose another path, or remove it", "local socket %s: there is another file", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return hint.Newf(hint.Other, "choose another path", "local socket %s is in use", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return hint.New(hint.Other, fmt.Errorf("local socket %s: whether it is in use: %w", path, err), "choose another path")
	}
	if err := os.Remove(path); err != nil {
		return hint.New(hint.Other, fmt.Errorf("local socket: the one that a dead program has left: %w", err), "choose another path")
	}
	return nil
}

type unixListener struct {
	*net.UnixListener
	path string
	mine fs.FileInfo
	once sync.Once
}

// Close closes the listener and removes its socket, unless that is another's by now.
func (l *unixListener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		if unlock, lockErr := lockFolder(filepath.Dir(l.path)); lockErr == nil {
			defer unlock()
		}
		if there, statErr := os.Lstat(l.path); statErr == nil && os.SameFile(l.mine, there) {
			_ = os.Remove(l.path)
		}
		err = l.UnixListener.Close()
	})
	return err
}
