package child

import (
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// terminal is the one that controls bridge, while a program runs; nil where there is none.
type terminal struct {
	f      *os.File
	shared bool // bridge is at the head of a pipeline, and who reads its output may need the terminal too

	continued chan os.Signal // SIGCONT
	done      sync.WaitGroup

	mu sync.Mutex // held while bridge is stopped
}

// openTerminal returns nil unless standard input is the terminal: only then the program may read from it.
func openTerminal() *terminal {
	if _, err := unix.IoctlGetInt(int(os.Stdin.Fd()), unix.TIOCGPGRP); err != nil {
		return nil // no terminal, or not the controlling one
	}
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	out, err := os.Stdout.Stat()
	return &terminal{f: f, shared: err == nil && out.Mode()&os.ModeNamedPipe != 0}
}

func (t *terminal) fd() int { return int(t.f.Fd()) }

// foreground is the group that has the terminal, 0 if none has.
func (t *terminal) foreground() int {
	group, err := unix.IoctlGetInt(t.fd(), unix.TIOCGPGRP)
	if err != nil {
		return 0
	}
	return group
}

// ours tells whether bridge's own group has the terminal.
func (t *terminal) ours() bool { return t != nil && t.foreground() == unix.Getpgrp() }

// give makes a group the one in the foreground. Whoever is not in that one is stopped for it, unless SIGTTOU is blocked; to ignore it
// would be for good, and for all programs started later.
func (t *terminal) give(group int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var ttou, before unix.Sigset_t
	ttou.Val[0] = 1 << (syscall.SIGTTOU - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &ttou, &before) != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(t.fd(), unix.TIOCSPGRP, group)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
}

// begun is called when the program runs.
func (p *Process) begun() {
	t := p.term
	if t == nil {
		return
	}
	t.continued = make(chan os.Signal, 1)
	signal.Notify(t.continued, syscall.SIGCONT)
	t.done.Go(func() { t.follow(p.cmd.Process.Pid) })
}

// follow has the program go on with bridge, and gives it the terminal that a shell's fg gives bridge.
func (t *terminal) follow(group int) {
	for range t.continued {
		t.mu.Lock()
		t.resume(group)
		t.mu.Unlock()
	}
}

// stopped is called when the program was stopped by sig: bridge's own group stops too, with the terminal, and until it goes on. It goes
// on at once where nobody could have it continue, which the kernel knows (an orphaned group is not stopped).
func (t *terminal) stopped(group int, sig syscall.Signal) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.foreground(); (sig == syscall.SIGTTIN || sig == syscall.SIGTTOU) && (now == unix.Getpgrp() || now == group) {
		t.give(group) // it has only to be given what it asks for, if it has not got it meanwhile
		_ = signalGroup(group, syscall.SIGCONT)
		return
	}
	// Changes nothing, and waits until the kernel has sent the signal to all of the group: of what was stopped after it was continued
	// nobody would hear.
	_ = unix.Setpgid(0, unix.Getpgrp())
	if t.foreground() == group {
		t.give(unix.Getpgrp())
	}
	for _, pid := range members(unix.Getpgrp()) {
		if pid != unix.Getpid() {
			_ = syscall.Kill(pid, syscall.SIGTSTP)
		}
	}
	// To this very thread: it does not come back from the call before the stop is over.
	runtime.LockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), syscall.SIGTSTP)
	runtime.UnlockOSThread()
	t.resume(group)
}

// resume has the program go on, with the terminal if that is bridge's to give. mu is held.
func (t *terminal) resume(group int) {
	if t.ours() && !t.shared {
		t.give(group)
	}
	_ = signalGroup(group, syscall.SIGCONT)
}

// takeBack gives bridge's group the terminal that the program's had. A shell that has put bridge into the background keeps it.
func (t *terminal) takeBack(group int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := t.foreground(); now == group || now > 0 && signalGroup(now, 0) == syscall.ESRCH { //nolint:errorlint // an Errno
		t.give(unix.Getpgrp())
	}
}

// release ends what openTerminal and begun have begun.
func (t *terminal) release() {
	if t == nil {
		return
	}
	if t.continued != nil {
		signal.Stop(t.continued)
		close(t.continued)
		t.done.Wait()
	}
	_ = t.f.Close()
}
