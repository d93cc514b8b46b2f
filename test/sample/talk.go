//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"
)

// talk says back each line that it gets, ends with N at "exit N", and says which signals it gets and, at a terminal, each size that has.
func talk(stdin io.Reader, stdout io.Writer) error {
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(stdout, format+"\n", args...)
	}
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, os.Interrupt, syscall.SIGWINCH)
	size := func() {
		if width, height, ok := terminalSize(); ok {
			say("size %dx%d", width, height)
		}
	}
	go func() {
		for s := range signals {
			if s == syscall.SIGWINCH {
				size()
			} else {
				say("got %v", s)
			}
		}
	}()
	say("talk")
	size()
	lines := bufio.NewScanner(stdin)
	for lines.Scan() {
		if code, ok := strings.CutPrefix(lines.Text(), "exit "); ok {
			n, err := strconv.Atoi(code)
			if err != nil {
				return err
			}
			os.Exit(n)
		}
		say("line %q", lines.Text())
	}
	say("end")
	return lines.Err()
}

// terminalSize is that of the terminal on the standard input; false where that is none.
func terminalSize() (width, height uint16, ok bool) {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, os.Stdin.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	return size.columns, size.rows, errno == 0
}
