//go:build unix

package terminal

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func foreground(f *os.File) bool {
	group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// watch tells of each change of size. Who continues after a stop has a terminal that the shell has set meanwhile.
func (t *Terminal) watch(changed chan<- struct{}) (until func(done <-chan struct{})) {
	signals := make(chan os.Signal, 2) // one of each
	signal.Notify(signals, syscall.SIGWINCH, syscall.SIGCONT)
	return func(done <-chan struct{}) {
		defer signal.Stop(signals)
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				if s == syscall.SIGCONT {
					t.again()
				}
				tell(changed)
			}
		}
	}
}
