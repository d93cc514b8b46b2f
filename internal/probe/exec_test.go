//go:build unix

package probe

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// What a command in a shell has started does not outlive the probe's timeout.
func TestWhatACommandHasStartedEndsWithIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan Outcome, 1)
	go func() { done <- execute(ctx, []string{"sh", "-c", "sleep 1000 & echo $! > " + file + ".new && mv " + file + ".new " + file + "; wait"}) }()
	var pid int
	for pid == 0 {
		b, err := os.ReadFile(file)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
	for !gone(pid) {
		time.Sleep(time.Millisecond) // until the test's timeout
	}
}

// gone is whether the process has ended; nobody here awaits it, so it may be a zombie for a while.
func gone(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(b), ") Z ")
}
