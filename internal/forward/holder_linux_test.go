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
	port := taken.Addr().(*net.TCPAddr).Port
	if _, err = Listen([]string{"127.0.0.1"}, port); err == nil || !strings.HasSuffix(err.Error(), " is in use by another port here: it is given twice") {
		t.Errorf("%q", err)
	}
	defer func(is string) { own = is }(own)
	own = ""
	_, err = Listen([]string{"127.0.0.1"}, port)
	if err == nil || !strings.Contains(err.Error(), " by a[2Jbc (process ") {
		t.Errorf("%q", err)
	}
}
