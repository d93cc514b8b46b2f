package main

import (
	"io"
	"os"
	"sync"

	"bridge/internal/terminal"
)

// live is a terminal with one line at its end that is rewritten in place; what is written to it, whole lines, goes above that. Where bridge is not
// in the foreground of a terminal, a pipe included, there is no such line.
type live struct {
	out   io.Writer
	front func() bool // bridge is in the foreground of a terminal

	mu   sync.Mutex
	line string // as it is shown
}

func newLive(out io.Writer) *live {
	return &live{out: out, front: func() bool {
		term := os.Getenv("TERM")
		return term != "" && term != "dumb" && terminal.Foreground(out)
	}}
}

const (
	erased = "\r\x1b[K"
	// What is longer than the terminal is wide is cut off there, so that it is one line.
	cut, uncut = "\x1b[?7l", "\x1b[?7h"
)

// show has line be the one at the end; "" takes it away.
func (l *live) show(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch line = printable(line); {
	case line == l.line:
	case !l.front():
		l.line = "" // whoever is there now has written over it
	case line == "":
		l.line = ""
		_, _ = io.WriteString(l.out, erased)
	default:
		l.line = line
		_, _ = io.WriteString(l.out, erased+cut+line+uncut)
	}
}

func (l *live) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line == "" || !l.front() {
		l.line = ""
		return l.out.Write(p)
	}
	if _, err := io.WriteString(l.out, erased+string(p)+cut+l.line+uncut); err != nil {
		return 0, err
	}
	return len(p), nil
}
