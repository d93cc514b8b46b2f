//go:build unix

package fault

import (
	"os"
	"os/signal"
	"syscall"
)

// stop returns when the process goes on. Another thread may be the one that the signal meets, so this one waits.
func stop() error {
	goOn := make(chan os.Signal, 1)
	signal.Notify(goOn, syscall.SIGCONT)
	defer signal.Stop(goOn)
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	<-goOn
	return nil
}
