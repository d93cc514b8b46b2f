package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// Nobody who reads what it says any more is no end, which would leave the machine as it is: the exit code is that of what it did.
func TestABrokenStderrIsNoEndOfWhatChangesTheMachine(t *testing.T) {
	for _, flag := range []string{"--undo", "--tun"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		c := exec.Command("bridge", "connect", flag)
		c.Stderr = w
		if os.Geteuid() == 0 { // somebody else is refused before anything is looked at
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		}
		err = c.Start()
		_ = w.Close()
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
			t.Skipf("no user namespace: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil || exitStatus(err) != "1" {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
