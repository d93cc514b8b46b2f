package forward

import (
	"net"
	"os"
	"strings"
	"testing"
)

// A program may call itself what it likes.
func TestTheHoldersNameIsNoOrderToTheTerminal(t *testing.T) {
	before, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/comm", []byte("a\x1b[2Jb\nc"), 0); err != nil {
		t.Skip(err)
	}
	defer func() { _ = os.WriteFile("/proc/self/comm", before, 0) }()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = Listen([]string{"127.0.0.1"}, taken.Addr().(*net.TCPAddr).Port)
	if err == nil || !strings.Contains(err.Error(), " by a[2Jbc (process ") {
		t.Errorf("%q", err)
	}
}
