//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/hashicorp/yamux"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"bridge/internal/kube"
)

// Both ends use yamux.DefaultConfig: this is what a multiplexer on a port-forward gives before any work.
// The carrier is bridge's own port-forward, which is faster than client-go's; so what the tunnel is
// better by is not owed to that.

// yamuxPod takes sessions; each stream starts with a byte for the length of the address to connect to,
// and the address.
func yamuxPod(ctx context.Context, listen string) error {
	return accept(ctx, listen, func(c net.Conn) {
		s, err := yamux.Server(c, nil)
		if err != nil {
			c.Close()
			return
		}
		defer s.Close()
		for {
			st, err := s.AcceptStream()
			if err != nil {
				break
			}
			go yamuxDial(st)
		}
		// Readers of a session that was cut can spin for good (v0.1.2), beside all that is measured later.
		if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
	})
}

func yamuxDial(st *yamux.Stream) {
	var size [1]byte
	if _, err := io.ReadFull(st, size[:]); err != nil {
		st.Close()
		return
	}
	address := make([]byte, size[0])
	if _, err := io.ReadFull(st, address); err != nil {
		st.Close()
		return
	}
	c, err := net.Dial("tcp", string(address))
	if err != nil {
		st.Close()
		return
	}
	join(st, c)
}

// yamuxLaptop has one session, over one port-forward, and a stream for each connection.
func yamuxLaptop(ctx context.Context, listen, pod, to string) error {
	k, err := kube.New(genericclioptions.NewConfigFlags(true), "bridge-bench")
	if err != nil {
		return err
	}
	carrier, err := k.DialPod(ctx, k.Namespace, pod, yamuxPort)
	if err != nil {
		return err
	}
	s, err := yamux.Client(carrier, nil)
	if err != nil {
		return err
	}
	defer s.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		<-s.CloseChan()
		cancel(fmt.Errorf("the session is over"))
	}()
	header := append([]byte{byte(len(to))}, to...)
	if err := accept(ctx, listen, func(c net.Conn) {
		st, err := s.OpenStream()
		if err == nil {
			_, err = st.Write(header)
		}
		if err != nil {
			c.Close()
			return
		}
		join(c, st)
	}); err != nil {
		return err
	}
	return context.Cause(ctx)
}
