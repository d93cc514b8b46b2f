package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"

	"bridge/internal/kube"
	"bridge/internal/machine"
)

// What the pod is let dial is reached: it is routed there, beside the ranges.
func TestWhatIsAllowedIsRouted(t *testing.T) {
	var said bytes.Buffer
	a := newApp(strings.NewReader(""), &said, &said)
	m := new(machine.Machine)
	allow := []netip.Prefix{netip.MustParsePrefix("203.0.113.200/32")}
	k := &kube.Client{Config: &rest.Config{Host: "https://192.0.2.1:6443"}}
	if err := a.planWhole(t.Context(), k, m, network{cidrs: []string{"198.51.100.0/24"}}, allow); err != nil {
		t.Fatal(err)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), allow[0]}; !slices.Equal(m.Ranges(), want) {
		t.Errorf("%v, want %v", m.Ranges(), want)
	}
	if text := said.String(); !strings.Contains(text, "to be routed to the cluster: [198.51.100.0/24 203.0.113.200/32]") {
		t.Errorf("%q", text)
	}
}

// Nobody who reads what it says any more is no end, which would leave the machine as it is: the exit code is that of what it did.
func TestABrokenStderrIsNoEndOfWhatChangesTheMachine(t *testing.T) {
	for _, flag := range []string{"--undo", "--tun"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		c := exec.Command("bridge", "connect", flag)
		c.Stderr = w
		if os.Geteuid() == 0 { // somebody else is refused before anything is looked at
			c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		}
		err = c.Start()
		_ = w.Close()
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
			t.Skipf("no user namespace: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err == nil || exitStatus(err) != "1" {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
