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

// Namespace is not to be had on this system.
type Namespace struct{}

// Main does nothing.
func Main() {}

// New fails with an *Unavailable.
func New(Options) (*Namespace, error) {
	return nil, &Unavailable{errors.New("this system has none"), ""}
}

// Enter is for Linux.
func (n *Namespace) Enter(*exec.Cmd) {}

// Explain is for Linux.
func (n *Namespace) Explain(err error) error { return err }

// Open is for Linux.
func (n *Namespace) Open(context.Context) (*Sockets, error) { return nil, errors.ErrUnsupported }

// Left is for Linux.
func (n *Namespace) Left() []string { return nil }

// Control is for Linux.
func (n *Namespace) Control(context.Context, string, string, syscall.RawConn) error {
	return errors.ErrUnsupported
}

// Run is for Linux.
func (n *Namespace) Run(context.Context) error { return errors.ErrUnsupported }

// Close is for Linux.
func (n *Namespace) Close() {}

// Original is for Linux.
func Original(*net.TCPConn) (netip.AddrPort, error) { return netip.AddrPort{}, errors.ErrUnsupported }
