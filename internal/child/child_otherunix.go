//go:build unix && !linux

package child

import "syscall"

func (p *Process) prepare() func() {
	p.group = !atTerminal()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: p.group}
	return func() {}
}
