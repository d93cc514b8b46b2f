// Package child runs a program of the user's on this machine, with the terminal, the signals and the exit code that it would have had
// without bridge. internal/connect calls it.
package child

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// defaultGrace is a third of what a pod has: somebody waits for it.
const defaultGrace = 10 * time.Second

// ExitError is how a program has ended.
type ExitError struct {
	Code int // its exit code; 128 and the signal that killed it
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("the program has ended with exit code %d", e.Code)
}

// Command is a program to be run.
type Command struct {
	Args           []string // the program, looked up as a shell would, and its arguments
	Env            []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Grace is how long it has to end after SIGTERM, before it is killed. Zero means 10 s.
	Grace time.Duration
	// Prepare may change how it is started. Nil changes nothing.
	Prepare func(*exec.Cmd)
}

// Find says whether there is such a program. The error names it.
func (c *Command) Find() error {
	_, err := exec.LookPath(c.Args[0])
	return err
}

// Process is a program that runs.
type Process struct {
	cmd   *exec.Cmd
	group bool // it is the head of a process group of its own
	term  *terminal
	grace time.Duration
	ended chan struct{}
	exit  *ExitError // set when ended is closed

	mu      sync.Mutex
	running bool // it may be signalled
	killer  *time.Timer
}

// Start starts it. Wait has to be called.
//
// On Linux it has a process group of its own, so that what a shell or a build tool starts gets the signals too, and ends with it. At a
// terminal that is the group in the foreground, which the terminal's own signals (Ctrl-C, Ctrl-Z) reach; when the program is stopped,
// bridge stops as well, and both continue together. On other systems it stays in bridge's group at a terminal.
func (c *Command) Start() (*Process, error) {
	p := &Process{cmd: exec.Command(c.Args[0], c.Args[1:]...), grace: cmp.Or(c.Grace, defaultGrace), ended: make(chan struct{}), running: true}
	p.cmd.Env, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.Env, c.Stdin, c.Stdout, c.Stderr
	started := make(chan error)
	go p.run(c.Prepare, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// run is the one goroutine, and thread, that starts and awaits the program.
func (p *Process) run(change func(*exec.Cmd), started chan<- error) {
	defer close(p.ended)
	defer p.prepare()()
	if change != nil {
		change(p.cmd)
	}
	err := p.cmd.Start()
	if err != nil {
		p.term.takeBack(0) // it has got it, and then could not be run
		p.term.release()
		started <- err
		return
	}
	p.begun()
	started <- nil
	p.attend()
	_ = p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = false
	if p.killer != nil {
		p.killer.Stop()
	}
	code := p.cmd.ProcessState.ExitCode()
	if sig := signalOf(p.cmd.ProcessState); sig != 0 {
		code = 128 + int(sig)
	}
	p.exit = &ExitError{code}
}

// Ended is closed when the program has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Wait waits until the program has ended, and ends it when ctx is done.
func (p *Process) Wait(ctx context.Context) *ExitError {
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.Signal(syscall.SIGTERM)
		<-p.ended
	}
	return p.exit
}

// Signal passes a signal on that bridge got, unless the terminal has sent it to the program as well. After SIGTERM and SIGHUP the program
// has the grace period to end, and is killed then; what it does at others is its own affair.
func (p *Process) Signal(sig os.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running {
		return
	}
	if (sig == os.Interrupt || sig == syscall.SIGQUIT) && !p.group && atTerminal() {
		return
	}
	p.send(sig)
	if (sig == syscall.SIGTERM || sig == syscall.SIGHUP) && p.killer == nil {
		p.killer = time.AfterFunc(p.grace, p.kill)
	}
}

func (p *Process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running {
		p.send(os.Kill)
	}
}

// send sends to the program, or its group. mu is held.
func (p *Process) send(sig os.Signal) {
	if s, ok := sig.(syscall.Signal); ok && p.group && signalGroup(p.cmd.Process.Pid, s) == nil {
		return
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		_ = p.cmd.Process.Kill() // a system without signals
	}
}
