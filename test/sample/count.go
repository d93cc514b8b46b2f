package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// count prints numbered lines, each with when the program was started, so that none is taken for another's.
type count struct {
	every        time.Duration
	until, width int
}

func (c count) run(out io.Writer) error {
	run := time.Now().UnixNano()
	tail := strings.Repeat("x", c.width)
	for i := 1; c.until == 0 || i <= c.until; i++ {
		fmt.Fprintln(out, run, i, tail)
		time.Sleep(c.every)
	}
	if c.width > 0 {
		time.Sleep(time.Hour) // who prints much is not restarted
	}
	return errors.New("all is counted")
}
