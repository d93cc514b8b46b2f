//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// notify has c get the signals that end bridge, and those that a program of the user's may wait for.
func notify(c chan<- os.Signal) {
	signal.Notify(c, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
}

// programsOnly tells whether a signal means nothing to bridge itself.
func programsOnly(s os.Signal) bool { return s == syscall.SIGUSR1 || s == syscall.SIGUSR2 }
