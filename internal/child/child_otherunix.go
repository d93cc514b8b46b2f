//go:build unix && !linux

package child

import (
	"os/exec"
	"syscall"
)

func prepare(cmd *exec.Cmd, group bool) func() {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: group}
	return func() {}
}
