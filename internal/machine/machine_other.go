//go:build !linux

package machine

import (
	"context"
	"net/netip"
	"os"
	"runtime"

	"bridge/internal/hint"
)

// Machine is not to be had here.
type Machine struct{}

func allocated(os.FileInfo) int64 { return 0 }

func unsupported() error {
	return hint.Newf(hint.Usage, "use the proxy of bridge connect, or bridge forward", "the whole machine is for Linux only, and this is %s", runtime.GOOS)
}

// Hold says that it is not to be had.
func Hold(func(string)) (*Machine, error) { return nil, unsupported() }

// Undo says so too.
func Undo(func(string)) error { return unsupported() }

// Plan is not reached.
func (*Machine) Plan([]netip.Prefix, bool, []netip.Addr) error { return unsupported() }

// Ranges are none.
func (*Machine) Ranges() []netip.Prefix { return nil }

// Address is not valid.
func (*Machine) Address() netip.Addr { return netip.Addr{} }

// Local is nobody.
func (*Machine) Local(netip.Addr) bool { return false }

// System gives nothing.
func (*Machine) System() ([]string, error) { return nil, unsupported() }

// Open is not reached.
func (*Machine) Open(int) (int, error) { return -1, unsupported() }

// Resolve is not reached.
func (*Machine) Resolve(Zones) error { return unsupported() }

// Watch has nothing to see.
func (*Machine) Watch(context.Context) {}

// Restore has nothing to do.
func (*Machine) Restore() error { return nil }

// Close has nothing to do.
func (*Machine) Close() error { return nil }
