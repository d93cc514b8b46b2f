package netns

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

const (
	// guardGrace is what a process that the program has left behind has between SIGTERM and SIGKILL.
	guardGrace = 5 * time.Second
	// guardLook is how often is looked whether all have ended: nobody tells of processes that are not one's own.
	guardLook = 20 * time.Millisecond
	// guardPatience is for those that not even SIGKILL ends: in the middle of a system call, or another user's.
	guardPatience = 2 * time.Second
)

// guard is a process that outlives bridge, for as long as it takes to end those in the namespace.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File // when it is closed, by us or by our end, the guard acts
}

func startGuard(namespace string) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	g := &guard{cmd: exec.Command(self), pipe: w}
	g.cmd.Args = []string{guardName, namespace}
	g.cmd.ExtraFiles = []*os.File{r}
	g.cmd.Dir = "/"
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what the terminal sends is not for it
	if err := g.cmd.Start(); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("start the guard: %w", err)
	}
	return g, nil
}

// end waits until the guard has done its work.
func (g *guard) end() {
	if g == nil {
		return
	}
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

// watch is the guard: it waits for the end of bridge, or of the program, and ends what is left in the namespace.
func watch(namespace string) {
	_, _ = io.Copy(io.Discard, os.NewFile(inherited, "pipe"))
	told := map[int]bool{}
	for start := time.Now(); time.Since(start) < guardGrace+guardPatience; time.Sleep(guardLook) {
		left := inside(namespace)
		if len(left) == 0 {
			break
		}
		for _, pid := range left {
			switch {
			case time.Since(start) > guardGrace:
				_ = syscall.Kill(pid, syscall.SIGKILL)
			case !told[pid]:
				told[pid] = true
				_ = syscall.Kill(pid, syscall.SIGTERM)
				_ = syscall.Kill(pid, syscall.SIGCONT) // one that is stopped would not hear
			}
		}
	}
	os.Exit(0)
}

// inside are the processes in the namespace, whose names /proc tells of one's own processes. Of one that lets nobody look at it, as
// ssh-agent does (PR_SET_DUMPABLE), the folder with the link cannot be listed; the link can be read by who owns the user namespace.
func inside(namespace string) (pids []int) {
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink("/proc/" + e.Name() + "/ns/net"); err == nil && to == namespace {
			pids = append(pids, pid)
		}
	}
	return pids
}
