//go:build unix

package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"
)

// Without a program SIGQUIT ends bridge as SIGTERM does, and SIGUSR1 and SIGUSR2, which would kill it before it has given back, do nothing. With one
// all of them are the program's.
func TestSignalsOfBridgeAndOfItsProgram(t *testing.T) {
	got := make(chan os.Signal, 1)
	notify(got)
	defer signal.Stop(got)
	all := []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT}
	for _, sig := range all {
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		if s := <-got; s != sig {
			t.Fatalf("got %v, want %v", s, sig)
		}
	}

	a := newApp(nil, io.Discard, io.Discard)
	signals, done, ended := make(chan os.Signal), make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		defer close(ended)
		a.handleSignals(signals, cancel, done)
	}()
	send := func() {
		for _, sig := range all {
			signals <- sig
		}
	}
	var passed []os.Signal
	a.onSignal(func(s os.Signal) { passed = append(passed, s) })
	send()
	signals <- syscall.SIGUSR1 // now the one before is dealt with
	a.onSignal(nil)
	if err := context.Cause(ctx); err != nil {
		t.Errorf("the program's signals have ended bridge: %v", err)
	}
	send()
	<-ctx.Done()
	signals <- syscall.SIGUSR1 // is no second one
	signals <- syscall.SIGQUIT // nor is the same once more, as timeout(1) sends it
	close(done)
	<-ended
	if want := []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT}; !slices.Equal(passed[:3], want) {
		t.Errorf("passed on %v, want %v", passed, want)
	}
	if code := a.exitCode(nil, context.Cause(ctx)); code != 131 {
		t.Errorf("exit code %d, want 131", code)
	}
}
