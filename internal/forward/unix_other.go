//go:build !unix

package forward

import "net"

// lockFolder locks nothing: two bridges that start at once with the same path may take it from each other.
func lockFolder(string) (unlock func(), err error) { return func() {}, nil }

// listenPrivate makes a socket with the folder's access list.
func listenPrivate(path string) (*net.UnixListener, error) {
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
