package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// makeTime bounds the making of a socket, which takes microseconds.
const makeTime = 5 * time.Second

// maker is bridge's side of the process that makes sockets in the namespace: a socket stays in the namespace where it was made, whoever
// connects it. Bridge itself may not go there without being root.
type maker struct {
	pid int

	mu   sync.Mutex
	talk *net.UnixConn // nil: there is none
}

// startMaker starts the process, and returns bridge's end of the talk with it. It is a child of bridge, and not of the program that
// this process becomes, which would not know it.
func startMaker() (talk *os.File, pid int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socketpair", err)
	}
	talk = os.NewFile(uintptr(fds[0]), "maker")
	its := os.NewFile(uintptr(fds[1]), "maker")
	defer func() { _ = its.Close() }()
	cmd := exec.Command(self)
	cmd.Args = []string{makerName}
	cmd.ExtraFiles = []*os.File{its}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_PARENT}
	if err := cmd.Start(); err != nil {
		_ = talk.Close()
		return nil, 0, fmt.Errorf("start the maker of sockets: %w", err)
	}
	pid = cmd.Process.Pid
	return talk, pid, cmd.Process.Release()
}

// makeSockets is the process: it answers the name of a network with a socket of it, until nobody can ask any more.
func makeSockets() {
	talk := inheritedTalk()
	b := make([]byte, 16)
	for {
		n, err := talk.Read(b)
		if err != nil || n == 0 {
			os.Exit(0)
		}
		fd, err := socket(string(b[:n]))
		if err != nil {
			err = say(talk, report{Error: err.Error()}, nil)
		} else {
			err = say(talk, report{}, []int{fd})
			_ = unix.Close(fd)
		}
		if err != nil {
			os.Exit(1)
		}
	}
}

func socket(network string) (int, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	switch network {
	case "tcp4":
	case "tcp6":
		family = unix.AF_INET6
	case "udp4":
		kind = unix.SOCK_DGRAM
	case "udp6":
		family, kind = unix.AF_INET6, unix.SOCK_DGRAM
	default:
		return 0, fmt.Errorf("network %q", network)
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}

// take has the last of the files, which is the talk with the process.
func (m *maker) take(files []*os.File, pid int) ([]*os.File, error) {
	if pid == 0 || len(files) == 0 {
		return files, errors.New("there is no maker of sockets")
	}
	last := files[len(files)-1]
	defer func() { _ = last.Close() }()
	c, err := net.FileConn(last)
	if err != nil {
		return files[:len(files)-1], err
	}
	m.pid, m.talk = pid, c.(*net.UnixConn)
	return files[:len(files)-1], nil
}

// socket has one made.
func (m *maker) socket(network string) (*os.File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.talk == nil {
		return nil, net.ErrClosed
	}
	_ = m.talk.SetDeadline(time.Now().Add(makeTime))
	_, err := m.talk.Write([]byte(network))
	var got *report
	var files []*os.File
	if err == nil {
		got, files, err = receive(m.talk, 1<<10)
	}
	switch {
	case err != nil:
		m.end() // of two that talk past each other
		return nil, err
	case got.Error != "":
		return nil, errors.New(got.Error)
	case len(files) != 1:
		closeAll(files)
		return nil, errors.New("no socket was made")
	}
	return files[0], nil
}

// end is for who holds mu.
func (m *maker) end() {
	if m.talk != nil {
		_ = m.talk.Close()
		m.talk = nil
	}
}

// close has the process end.
func (m *maker) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.end()
}

// wait waits until it has.
func (m *maker) wait() {
	if m.pid == 0 {
		return
	}
	if p, err := os.FindProcess(m.pid); err == nil {
		_, _ = p.Wait()
	}
	m.pid = 0
}

// Control is for a net.Dialer: what that dials is in the namespace, up to its Close. It takes Options.Dialled.
func (n *Namespace) Control(_ context.Context, network, _ string, c syscall.RawConn) error {
	made, err := n.maker.socket(network)
	if err != nil {
		return fmt.Errorf("a socket in the program's network: %w", err)
	}
	defer func() { _ = made.Close() }()
	raw, err := made.SyscallConn()
	if err != nil {
		return err
	}
	var read, put error
	// The dialer's own socket, which is not connected yet, gives way to this one.
	err = c.Control(func(fd uintptr) {
		read = raw.Control(func(from uintptr) { put = unix.Dup3(int(from), int(fd), unix.O_CLOEXEC) })
	})
	return errors.Join(err, read, os.NewSyscallError("dup3", put))
}
