//go:build unix

package tools

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
)

// hold waits for ctx. As the first process of a container it takes note of the end of processes whose parents have ended before them.
func hold(ctx context.Context) {
	ends := make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGCHLD)
	defer signal.Stop(ends)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ends:
			for {
				var status syscall.WaitStatus
				if pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil); err != nil || pid <= 0 {
					break
				}
			}
		}
	}
}

// ownerOf is the user and the group, in numbers.
func ownerOf(info fs.FileInfo) string {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("%d:%d", s.Uid, s.Gid)
	}
	return "?"
}
