//go:build !linux

package netns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"syscall"
)

// Supported tells whether this system knows such namespaces at all.
const Supported = false

// Namespace is not to be had on this system.
type Namespace struct{}

// Main does nothing.
func Main() {}

// New fails with an *Unavailable.
func New(Options) (*Namespace, error) {
	return nil, &Unavailable{errors.New("only Linux has them"), ""}
}

// Try fails with an *Unavailable.
func Try(context.Context, Options) error {
	_, err := New(Options{})
	return err
}

// Enter is for Linux.
func (n *Namespace) Enter(*exec.Cmd) {}

// Explain is for Linux.
func (n *Namespace) Explain(err error) error { return err }

// Open is for Linux.
func (n *Namespace) Open(context.Context) (*Sockets, error) { return nil, errors.ErrUnsupported }

// Left is for Linux.
func (n *Namespace) Left() []string { return nil }

// Hidden is for Linux.
func (n *Namespace) Hidden() []string { return nil }

// Control is for Linux.
func (n *Namespace) Control(context.Context, string, string, syscall.RawConn) error {
	return errors.ErrUnsupported
}

// Listens is for Linux.
func (n *Namespace) Listens(uint16) bool { return false }

// Await is for Linux.
func (n *Namespace) Await(context.Context) error { return errors.ErrUnsupported }

// Run is for Linux.
func (n *Namespace) Run(context.Context) error { return errors.ErrUnsupported }

// Close is for Linux.
func (n *Namespace) Close() {}

// Original is for Linux.
func Original(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errors.ErrUnsupported }
