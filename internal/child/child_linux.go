package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// prepare has the kernel end the program when bridge is killed: it would hold the port of the next one. The signal comes when the
// thread that has started it ends, so that has to stay; the function returned lets go of it.
func prepare(cmd *exec.Cmd, group bool) func() {
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: group, Pdeathsig: syscall.SIGTERM}
	return runtime.UnlockOSThread
}
