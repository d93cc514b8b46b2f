//go:build !unix

package probe

import "os/exec"

func endWhole(*exec.Cmd) {}
