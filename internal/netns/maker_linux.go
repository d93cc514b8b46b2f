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

	"golang.org/x/sys/unix"
)

// maxAsked is how many sockets are asked for at once, each of which takes microseconds; more wait. The kernel holds that many words.
const maxAsked = 64

// maker is bridge's side of the process that makes sockets in the namespace: a socket stays in the namespace where it was made, whoever
// connects it. Bridge itself may not go there without being root.
type maker struct {
	process *os.Process   // nil: there is none
	ended   chan struct{} // closed when it has

	heard chan struct{} // closed when no answer comes any more
	slots chan struct{}

	mu     sync.Mutex
	talk   *net.UnixConn // nil: nobody can be asked
	asked  []asker       // in the order of the answers
	closed bool          // nobody is to be asked any more
}

// asker waits for a socket until gone is closed.
type asker struct {
	gone <-chan struct{}
	got  chan made
}

type made struct {
	socket *os.File
	err    error
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
	cmd.Dir, cmd.Env = "/", []string{} // the program's are not for it
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
	rest, last := files[:len(files)-1], files[len(files)-1]
	defer func() { _ = last.Close() }()
	var err error
	if m.process, err = os.FindProcess(pid); err != nil {
		return rest, err
	}
	m.ended = make(chan struct{})
	go m.attend()
	c, err := net.FileConn(last)
	if err != nil {
		return rest, err
	}
	m.talk, m.heard, m.slots = c.(*net.UnixConn), make(chan struct{}), make(chan struct{}, maxAsked)
	go m.hear(m.talk)
	return rest, nil
}

// attend waits for the process.
func (m *maker) attend() {
	defer close(m.ended)
	_, _ = m.process.Wait()
}

// socket has one made, if it is until ctx is done.
func (m *maker) socket(ctx context.Context, network string) (*os.File, error) {
	if m.heard == nil {
		return nil, net.ErrClosed
	}
	select {
	case m.slots <- struct{}{}: // until it is answered, which may be later
	case <-m.heard:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	a := asker{ctx.Done(), make(chan made)}
	if err := m.ask(network, a); err != nil {
		return nil, err
	}
	select {
	case got := <-a.got:
		return got.socket, got.err
	case <-m.heard:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *maker) ask(network string, a asker) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.talk == nil {
		return net.ErrClosed
	}
	if _, err := m.talk.Write([]byte(network)); err != nil {
		m.end()
		return err
	}
	m.asked = append(m.asked, a)
	return nil
}

// hear gives each answer to whoever has asked for it and is still there, until the process has ended.
func (m *maker) hear(talk *net.UnixConn) {
	defer close(m.heard)
	for {
		r, files, err := receive(talk, 1<<10)
		m.mu.Lock()
		if err != nil || len(m.asked) == 0 {
			m.end()
			m.mu.Unlock()
			closeAll(files)
			return
		}
		a := m.asked[0]
		m.asked = m.asked[1:]
		m.mu.Unlock()
		<-m.slots
		var got made
		switch {
		case r.Error != "":
			got.err = errors.New(r.Error)
		case len(files) != 1:
			got.err = errors.New("no socket was made")
		default:
			got.socket, files = files[0], nil
		}
		closeAll(files)
		select {
		case a.got <- got:
		case <-a.gone:
			if got.socket != nil {
				_ = got.socket.Close()
			}
		}
	}
}

// end ends the process, which has nothing to finish. It is for who holds mu.
func (m *maker) end() {
	if m.talk != nil {
		_ = m.talk.Close()
		m.talk = nil
	}
	if m.process != nil {
		_ = m.process.Kill()
	}
}

// close ends the process, and waits until it has ended.
func (m *maker) close() {
	m.mu.Lock()
	m.closed = true
	m.end()
	m.mu.Unlock()
	if m.ended != nil {
		<-m.ended
	}
	if m.heard != nil {
		<-m.heard
	}
}

// Await waits until ctx is done, or Close is called, or for an error: Control does not work any more, and nobody comes to the program. It
// takes Options.Dialled, and an Open without an error.
func (n *Namespace) Await(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-n.maker.ended:
	}
	n.maker.mu.Lock()
	defer n.maker.mu.Unlock()
	if n.maker.closed {
		return nil
	}
	return errors.New("the process that makes sockets in the program's network has ended")
}

// Control is for a net.Dialer: what that dials is in the namespace, up to its Close. It takes Options.Dialled.
func (n *Namespace) Control(ctx context.Context, network, _ string, c syscall.RawConn) error {
	made, err := n.maker.socket(ctx, network)
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
