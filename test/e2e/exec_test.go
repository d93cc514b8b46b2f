//go:build linux

package e2e

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"bridge/internal/hint"
	"bridge/test/pty"
)

// screen is a bridge at a terminal of its own.
type screen struct {
	*process
	*lines // what the person sees
	f      *os.File
}

// atTerminal starts bridge at a terminal of 80 by 24.
func (w *world) atTerminal(args ...string) *screen {
	w.t.Helper()
	own, tty := pty.Open(w.t)
	pty.Resize(w.t, own, 80, 24)
	c := &screen{lines: newLines(), f: own}
	var reading sync.WaitGroup
	reading.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := own.Read(buf)
			_, _ = c.Write([]byte(strings.ReplaceAll(string(buf[:n]), "\r", "")))
			if err != nil {
				return
			}
		}
	})
	w.t.Cleanup(func() {
		reading.Wait()
		_ = own.Close()
	})
	c.process = w.bridgeWith(func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}, s.kubeconfig, []string{"TERM=xterm"}, args...)
	_ = tty.Close()
	return c
}

func (c *screen) types(text string) {
	c.t.Helper()
	if _, err := c.f.WriteString(text); err != nil {
		c.t.Fatal(err)
	}
}

func (c *screen) resize(width, height int) {
	c.t.Helper()
	pty.Resize(c.t, c.f, width, height)
}

func (c *screen) shows(text string) {
	c.t.Helper()
	if _, err := c.awaitOr(text, c.ended); err != nil {
		c.t.Fatal(err)
	}
}

func TestExec(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	pod := w.pods("app=orders")[0].Name

	p := w.bridge("exec", "deployment/orders", "--", "/sample", "look", "/proc/self/cmdline")
	p.exits(0)
	p.says("in pod/orders-")
	p = w.bridge("exec", "svc/orders", "--", "/sample", "get", "--none")
	p.exits(2)
	p.says("flag provided but not defined")
	p = w.bridge("exec", "pod/"+pod, "--", "/sample", "dance")
	p.exits(1)
	p.says(`unknown command "dance"`)
	p = w.bridge("exec", pod, "-c", "web", "--", "/sample")
	p.exits(int(hint.Usage))
	p.says("its containers: app")
	p = w.bridge("exec", pod, "--", "sh")
	p.exits(int(hint.Other))
	p.says("the container's image has no such program")
	p = w.bridge("exec", "deployment/none", "--", "true")
	p.exits(int(hint.NotFound))

	// What comes from a pipe arrives, to its end, and so over SPDY where no WebSocket passes.
	lb := w.balance("127.0.0.1", "1m", noWebSocket)
	for _, kubeconfig := range []string{w.as("eve", deployed(t, "exec")), lb.kubeconfig} {
		p = w.bridgeWith(reads(strings.NewReader("one\ntwo")), kubeconfig, nil, "exec", "-i", pod, "--", "/sample", "talk")
		p.exits(0)
		p.prints(`line "one"`)
		p.prints(`line "two"`)
		p.prints("end")
		p = w.bridgeWith(reads(strings.NewReader("exit 77\n")), kubeconfig, nil, "exec", "-it", pod, "--", "/sample", "talk")
		p.exits(77)
		p.says("no terminal, so -t is left out")
	}

	p = w.bridgeAs(w.as("bob", deployed(t, "status")), nil, "exec", pod, "--", "/sample")
	p.exits(int(hint.Forbidden))
}

// The program has this machine's terminal: keys, its size, and the exit code; and the terminal is as before afterwards.
func TestExecAtATerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	c := w.atTerminal("exec", "-it", "deployment/orders", "--", "/sample", "talk")
	c.shows("size 80x24")
	c.resize(132, 50)
	c.shows("size 132x50")
	c.types("hello\r")
	c.shows(`line "hello"`)
	c.types("\x03")
	c.shows("got interrupt") // there, and not bridge
	c.types("exit 9\r")
	c.exits(9)

	c = w.atTerminal("exec", "-it", "deployment/orders", "--", "/sample", "talk")
	c.shows("talk")
	c.signal(syscall.SIGTERM)
	c.exits(128 + int(syscall.SIGTERM))
}

// A cut connection is an error, and never the program's success: in a WebSocket, and in SPDY where no WebSocket passes.
func TestExecLosesItsConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withOrders()
	way := newPath(t)
	lb := w.balance("127.0.0.1", "1m", noWebSocket)
	for _, c := range []struct {
		kubeconfig string
		cut        func()
	}{{way.kubeconfig, way.cut}, {lb.kubeconfig, func() { lb.process.signal(syscall.SIGKILL) }}} {
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer hold.Close()
		p := w.bridgeWith(reads(in), c.kubeconfig, nil, "exec", "-i", "deployment/orders", "--", "/sample", "talk")
		_ = in.Close()
		p.prints("talk")
		c.cut()
		p.exits(int(hint.Unreachable))
		p.says("run a command in pod")
	}
}

// reads gives a command its standard input.
func reads(in io.Reader) func(*exec.Cmd) { return func(cmd *exec.Cmd) { cmd.Stdin = in } }
