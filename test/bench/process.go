//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startTimeout is what a program has to say that it is ready; bridge connect starts a pod first.
	startTimeout = 2 * time.Minute
	// stopTimeout is what it has to end by itself; bridge connect removes its pod.
	stopTimeout = time.Minute
	// maxSaid is how much of what a program says is kept for an error.
	maxSaid = 4 << 10
)

// process is a program that runs until it is stopped.
type process struct {
	cmd    *exec.Cmd
	ended  chan struct{}
	mu     sync.Mutex
	said   []byte
	reader sync.WaitGroup
}

// start runs a program and waits until it has printed a line that contains ready.
func start(ready string, env []string, argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	isReady := make(chan struct{})
	p.reader.Go(func() {
		var once sync.Once
		for s := bufio.NewScanner(out); s.Scan(); {
			_, _ = p.Write(append(s.Bytes(), '\n'))
			if strings.Contains(s.Text(), ready) {
				once.Do(func() { close(isReady) })
			}
		}
		_, _ = io.Copy(io.Discard, out)
	})
	go func() {
		p.reader.Wait()
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	select {
	case <-isReady:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("%s ended: %s", strings.Join(argv, " "), p.tail())
	case <-time.After(startTimeout):
		p.stop()
		return nil, fmt.Errorf("%s is not ready: %s", strings.Join(argv, " "), p.tail())
	}
}

// Write keeps the last of what the program says.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said = append(p.said, b...)
	p.said = p.said[max(0, len(p.said)-maxSaid):]
	return len(b), nil
}

func (p *process) tail() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.TrimSpace(string(p.said))
}

// line is the last one that has text, from text on.
func (p *process) line(text string) string {
	all := p.tail()
	line, _, _ := strings.Cut(all[max(0, strings.LastIndex(all, text)):], "\n")
	return line
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// freePort is a port of the loopback that nobody has now.
func freePort() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// cpuTime is what processes have used.
func cpuTime(pids []int) (total time.Duration) {
	const tick = time.Second / 100 // USER_HZ, the same on all architectures of Linux
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest) // begins with the third field of proc_pid_stat(5)
		if len(f) < 13 {
			continue
		}
		for _, s := range f[11:13] {
			n, _ := strconv.Atoi(s)
			total += time.Duration(n) * tick
		}
	}
	return total
}

// clusterTime is what the whole cluster has used: its control group's time, in version 1 or 2.
func clusterTime() time.Duration {
	if b, err := os.ReadFile("/sys/fs/cgroup/cpuacct/bridge-cluster/" + clusterName + "/cpuacct.usage"); err == nil {
		n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return time.Duration(n)
	}
	b, _ := os.ReadFile("/sys/fs/cgroup/bridge-cluster/" + clusterName + "/cpu.stat")
	_, rest, _ := strings.Cut(string(b), "usage_usec ")
	usec, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.ParseInt(usec, 10, 64)
	return time.Duration(n) * time.Microsecond
}

// loadAverage is that of the last minute, as the kernel writes it.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(b), " ")
	return load
}

// memory is the resident memory of processes, in bytes.
func memory(pids []int) (total int64) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if f := strings.Fields(string(b)); len(f) > 1 {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			total += n * int64(os.Getpagesize())
		}
	}
	return total
}

// podProcesses are those in the control group of a pod.
func podProcesses(uid string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), "pod"+uid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// cutConnections resets the connections of processes to the API server, as a load balancer that
// restarts does.
func cutConnections(ctx context.Context, pids []int) error {
	out, err := exec.CommandContext(ctx, "ss", "-Htnp", "dport", "=", ":6443").Output()
	if err != nil {
		return fmt.Errorf("ss: %w", err)
	}
	cut := 0
	for line := range strings.Lines(string(out)) {
		for _, pid := range pids {
			f := strings.Fields(line)
			if len(f) < 5 || !strings.Contains(line, fmt.Sprintf("pid=%d,", pid)) {
				continue
			}
			_, port, err := net.SplitHostPort(f[3])
			if err != nil {
				return err
			}
			if out, err := exec.CommandContext(ctx, "ss", "-K", "-tn", "sport", "=", ":"+port).CombinedOutput(); err != nil {
				return fmt.Errorf("ss -K: %w: %s", err, out)
			}
			cut++
		}
	}
	if cut == 0 {
		return errors.New("no connection to cut")
	}
	return nil
}
