//go:build !unix

package child

import (
	"errors"
	"os"
	"syscall"
)

func atTerminal() bool                         { return true }
func signalGroup(int, syscall.Signal) error    { return errors.ErrUnsupported }
func signalOf(*os.ProcessState) syscall.Signal { return 0 }
func (p *Process) prepare() func()             { return func() {} }
