//go:build linux

package terminal

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bridge/test/pty"
)

func lflag(t *testing.T, tty *os.File) uint32 {
	t.Helper()
	settings, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return settings.Lflag
}

// Raw lets Ctrl-C through, also after a shell has set the terminal anew, and Restore takes all of that back, once.
func TestRawAndBack(t *testing.T) {
	screen, tty := pty.Open(t)
	defer screen.Close()
	defer tty.Close()
	before := lflag(t, tty)
	term := Open(tty, &bytes.Buffer{})
	if term == nil {
		t.Fatal("a terminal is not seen as one")
	}
	if err := term.Raw(); err != nil {
		t.Fatal(err)
	}
	if lflag(t, tty)&(unix.ISIG|unix.ICANON|unix.ECHO) != 0 {
		t.Error("it is not raw")
	}
	set, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	set.Lflag = before
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, set); err != nil {
		t.Fatal(err)
	}
	term.again()
	if lflag(t, tty)&unix.ISIG != 0 {
		t.Error("it is not raw any more")
	}
	term.Restore()
	if after := lflag(t, tty); after != before {
		t.Errorf("%x, and it was %x", after, before)
	}
	term.again()
	if after := lflag(t, tty); after != before {
		t.Error("it is raw after the end")
	}
}

func TestSizes(t *testing.T) {
	screen, tty := pty.Open(t)
	defer screen.Close()
	defer tty.Close()
	pty.Resize(t, screen, 80, 24)
	next, stop := Open(tty, tty).Sizes()
	if width, height, ok := next(); !ok || width != 80 || height != 24 {
		t.Errorf("%dx%d, %v", width, height, ok)
	}
	pty.Resize(t, screen, 100, 30)
	// The kernel tells the programs on the terminal, of which the test is none.
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if width, height, ok := next(); !ok || width != 100 || height != 30 {
		t.Errorf("%dx%d, %v", width, height, ok)
	}
	stop()
	stop()
	if _, _, ok := next(); ok {
		t.Error("a size after the end")
	}
}

func TestNoTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if Open(r, w) != nil || Open(strings.NewReader(""), w) != nil || Foreground(w) || Foreground(&bytes.Buffer{}) {
		t.Error("a pipe is taken for a terminal")
	}
	screen, tty := pty.Open(t)
	defer screen.Close()
	defer tty.Close()
	if !Is(tty) || Foreground(tty) {
		t.Error("a terminal that the test was not started at has it in the foreground")
	}
}
