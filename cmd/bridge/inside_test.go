package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"bridge/internal/diagnose"
	"bridge/pkg/tunnel"
)

// What the way to the pod has met is not the address's fault, and what the pod has met is: through a real tunnel, before, while and after there is one.
func TestWhatTheWayToThePodHasMet(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var keys [2]tunnel.Key
	for i := range keys {
		if keys[i], err = tunnel.NewKey(); err != nil {
			t.Fatal(err)
		}
	}
	pod := &tunnel.Server{Key: keys[1], Client: keys[0].Fingerprint(), Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		if address == "shut:80" {
			return nil, fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
		}
		near, far := net.Pipe()
		return near, far.Close()
	}}
	lost := make(chan struct{})
	var once sync.Once
	was := false
	laptop := &tunnel.Client{
		Key: keys[0],
		Carrier: func(ctx context.Context) (net.Conn, string, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", ln.Addr().String())
			return c, "pod", err
		},
		OnState: func(s tunnel.State) {
			if was && !s.Phase.Carries() {
				once.Do(func() { close(lost) })
			}
			was = was || s.Phase.Carries()
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	serving, cut := context.WithCancel(ctx)
	var running sync.WaitGroup
	served := make(chan struct{})
	defer running.Wait()
	defer cancel()
	dial := dialFrom(laptop)
	dialled := func(address string) error {
		own, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := dial(own, "tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := dialled("open:80"); !errors.Is(err, diagnose.ErrNotDialled) {
		t.Errorf("before there is a tunnel: %v", err)
	}
	running.Go(func() {
		defer close(served)
		if err := pod.Serve(serving, ln); err != nil {
			t.Errorf("pod: %v", err)
		}
	})
	running.Go(func() { _ = laptop.Run(ctx) })
	ready, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if err := laptop.WaitReady(ready); err != nil {
		t.Fatal(err)
	}
	if err := dialled("open:80"); err != nil {
		t.Errorf("what is open: %v", err)
	}
	if err := dialled("shut:80"); !errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, diagnose.ErrNotDialled) {
		t.Errorf("what refuses: %v", err)
	}
	cut()
	<-served
	<-lost
	if err := dialled("shut:80"); !errors.Is(err, diagnose.ErrNotDialled) || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("with the tunnel lost: %v", err)
	}
}
