package child

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// groupLook is how often is looked whether the rest of the group has ended: nobody tells of processes that are not one's own.
	groupLook = 20 * time.Millisecond
	// groupPatience is for those that not even SIGKILL ends: in the middle of a system call, or another user's.
	groupPatience = 2 * time.Second
)

// prepare has the kernel end the program when bridge is killed: it would hold the port of the next one. The signal comes when the
// thread that has started it ends, so that has to stay; the function returned lets go of it.
func (p *Process) prepare() func() {
	runtime.LockOSThread()
	p.group, p.term = true, openTerminal()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if p.term.ours() && !p.term.shared {
		// In one step with the start: it may read from the terminal at once.
		p.cmd.SysProcAttr.Foreground, p.cmd.SysProcAttr.Ctty = true, p.term.fd()
	}
	return runtime.UnlockOSThread
}

// attend waits until the program has ended, and then ends what is left of its group; that can be addressed by the program's number
// because nobody has asked for its exit code yet. Meanwhile it sees to the terminal.
func (p *Process) attend() {
	pid := p.cmd.Process.Pid
	for {
		sig, stopped := waitStopped(pid)
		if !stopped {
			break
		}
		p.term.stopped(pid, sig)
	}
	p.term.takeBack(pid)
	if len(members(pid)) > 0 {
		p.Signal(syscall.SIGTERM)
		_ = signalGroup(pid, syscall.SIGCONT) // what is stopped would not hear
		for end := time.Now().Add(p.grace + groupPatience); len(members(pid)) > 0 && time.Now().Before(end); time.Sleep(groupLook) {
		}
	}
	p.term.release()
}

// waitStopped waits until the program is stopped, by sig, or has ended; that is left to be asked for.
func waitStopped(pid int) (sig syscall.Signal, stopped bool) {
	var info struct { // siginfo_t, of SIGCHLD
		signo, errno, code int32
		_                  int32
		pid, uid, status   int32
		_                  [100]byte
	}
	wait := func(options int) error {
		for {
			err := unix.Waitid(unix.P_PID, pid, (*unix.Siginfo)(unsafe.Pointer(&info)), options, nil)
			if err != syscall.EINTR { //nolint:errorlint // an Errno
				return err
			}
		}
	}
	const cldStopped = 5 // CLD_STOPPED
	if wait(unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT) != nil || info.code != cldStopped {
		return 0, false
	}
	sig = syscall.Signal(info.status)
	_ = wait(unix.WSTOPPED | unix.WNOHANG) // taken note of
	return sig, true
}

// members are the processes of a group that have not ended.
func members(group int) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// PID (NAME) STATE PARENT GROUP; the name may have anything in it.
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		if len(f) < 3 || string(f[0]) == "Z" || string(f[0]) == "X" || string(f[2]) != strconv.Itoa(group) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
