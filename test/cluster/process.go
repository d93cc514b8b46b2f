//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a started component. A process id alone may belong to somebody else by the time it is
// read back, so its start time goes with it.
type process struct {
	Name string // "kubelet-node1"
	PID  int
	Born string // start time in clock ticks since boot, field 22 of /proc/PID/stat
}

// born returns the start time of a process, or "" when there is none or it is a zombie: not one whose other threads are still
// ending, for those have its files and ports.
func born(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the name in parentheses, may have spaces and parentheses itself.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const state, threads, start = 0, 17, 19
	if len(f) <= start || f[state] == "Z" && slices.Contains([]string{"0", "1"}, f[threads]) || f[state] == "X" {
		return ""
	}
	return f[start]
}

func (p process) alive() bool { return p.Born != "" && born(p.PID) == p.Born }

// alive says whether every recorded process of the cluster runs.
func (c *cluster) alive() bool {
	return !slices.ContainsFunc(c.Processes, func(p process) bool { return p.Name != netemProcess && !p.alive() })
}

// start runs a component in the background, in the cluster's cgroup, its output in a file of the log
// folder, and records it. namespaces are arguments for nsenter.
func (c *cluster) start(name string, namespaces []string, args ...string) (process, error) {
	logFile, err := os.OpenFile(c.dir("log", name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return process{}, err
	}
	defer logFile.Close()
	// The shell moves itself, not its parent: only so no moment exists in which the component, or a
	// child of it, is outside. Each exec keeps the process id.
	const enter = `echo 0 >"$0" && exec nsenter "$@"`
	cmd := exec.Command("sh", append(append([]string{"-c", enter, c.procsFile()}, namespaces...), args...)...)
	cmd.Env = environment()
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return process{}, fmt.Errorf("start %s: %w", name, err)
	}
	p := process{Name: name, PID: cmd.Process.Pid, Born: born(cmd.Process.Pid)}
	go cmd.Wait() //nolint:errcheck // reaps it if it ends while up still runs; init does afterwards
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Processes = append(c.Processes, p)
	return p, c.save()
}

// environment is the one components run in: a known PATH, and nothing of the caller's that would
// change them, such as KUBECONFIG or proxies.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C"}
}

// logTail is the end of a component's log, for the error that says it ended.
func (c *cluster) logTail(name string) string {
	content, _ := os.ReadFile(c.dir("log", name+".log")) //nolint:errcheck // no log, no tail
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// dead returns an error when a component has ended.
func (c *cluster) dead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.Processes {
		if p.Name != netemProcess && !p.alive() {
			return fmt.Errorf("%s ended; the last lines of %s:\n%s", p.Name, c.dir("log", p.Name+".log"), c.logTail(p.Name))
		}
	}
	return nil
}

// cgroupMounts lists where the control groups are mounted: one place per controller for version 1, one
// for version 2. unified is the mount of version 2, if any.
func cgroupMounts() (v1 map[string]string, unified string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	v1 = map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, ok := strings.Cut(s.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 3 {
			continue
		}
		switch r[0] {
		case "cgroup2":
			unified = l[4]
		case "cgroup":
			for _, o := range strings.Split(r[2], ",") {
				v1[o] = l[4]
			}
		}
	}
	return v1, unified, nil
}

// cgroup is the cluster's group below each mount. Components are in its child "components", pods in
// the children "node1" and "node2", as version 2 wants processes in leaves only.
func (c *cluster) cgroup() string { return "bridge-cluster/" + c.Name }

// cgroupDirs are the folders the cluster's group has, or would have, in every hierarchy.
func (c *cluster) cgroupDirs() []string {
	v1, unified, err := cgroupMounts()
	if err != nil {
		return nil
	}
	var dirs []string
	for _, m := range v1 {
		dirs = append(dirs, filepath.Join(m, c.cgroup()))
	}
	if unified != "" {
		dirs = append(dirs, filepath.Join(unified, c.cgroup()))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// trackedCgroup is the folder of the one hierarchy in which every process of the cluster is, whoever
// started it. It is the record of processes we did not start ourselves: shims and containers.
func (c *cluster) trackedCgroup() string {
	v1, unified, _ := cgroupMounts() //nolint:errcheck // checked at the start of up
	if pids, ok := v1["pids"]; ok {
		return filepath.Join(pids, c.cgroup())
	}
	return filepath.Join(unified, c.cgroup())
}

func (c *cluster) procsFile() string {
	return filepath.Join(c.trackedCgroup(), "components", "cgroup.procs")
}

func (c *cluster) makeCgroups() error {
	for _, dir := range c.cgroupDirs() {
		for n := range maxNodes {
			if err := os.MkdirAll(filepath.Join(dir, nodeName(n+1)), 0o755); err != nil {
				return fmt.Errorf("control group: %w", err)
			}
		}
	}
	return os.MkdirAll(filepath.Dir(c.procsFile()), 0o755)
}

// members lists the processes in a control group and below it.
func members(dir string) (pids []int) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // groups vanish while we look
		if err == nil && d.Name() == "cgroup.procs" {
			content, _ := os.ReadFile(path) //nolint:errcheck // as above
			for _, f := range strings.Fields(string(content)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
		}
		return nil
	})
	return pids
}

// stopTimeout is how long killed processes may take to be gone, on a busy machine.
const stopTimeout = 30 * time.Second

// stop kills every process of the cluster: those recorded, and all in its control group, which are
// containerd's shims and the containers. Nothing they would still write matters to anybody.
func (c *cluster) stop() error {
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(10 * time.Millisecond) {
		left := members(c.trackedCgroup())
		for _, p := range c.Processes {
			if p.alive() {
				left = append(left, p.PID)
			}
		}
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end; see /proc/PID/stack", left)
		}
		for _, pid := range left {
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may have ended just now
		}
	}
}

// removeCgroups removes the cluster's groups, leaves first, and the group above them when it was the
// last cluster.
func (c *cluster) removeCgroups() error {
	var errs []error
	for _, top := range c.cgroupDirs() {
		var dirs []string
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // what is gone is gone
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			if err := removeBusy(d); err != nil {
				errs = append(errs, err)
			}
		}
		os.Remove(filepath.Dir(top)) //nolint:errcheck // another cluster's groups may be in it
	}
	return errors.Join(errs...)
}

// removeBusy removes a control group, which the kernel calls busy for a moment after its last process.
func removeBusy(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := syscall.Rmdir(dir)
		if err == nil || errors.Is(err, syscall.ENOENT) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("control group %s: %w", dir, err)
		}
	}
}
