//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bridge/internal/netns"
	"bridge/internal/packet"
)

// ethernetMTU is what a device has that is made as if there were a wire.
const ethernetMTU = 1500

// entrances are the ways into the tunnel; alone are they without it.
var (
	entrances = []*variant{
		throughProxy, bySOCKS,
		{name: "connect -- CMD", what: "bridge connect -- CMD: the same, dialled in CMD's network by the pod's address", bridges: true, open: openProgram},
		{name: "connect --tun", what: "bridge connect --tun: the same, dialled on the laptop by the pod's address", bridges: true, open: openWhole},
	}
	alone = []*variant{
		onLoopback,
		{name: "CMD's redirect", what: "the first of its hops: nftables' redirect in a network of its own (internal/netns), to a server in bridge's place", open: openRedirect},
		{name: "CMD's entrance", what: "bridge connect -- CMD, where host.bridge.internal is dialled: by nftables' redirect and bridge to a server on the laptop", bridges: true, open: openProgramAlone},
		{name: "TUN", what: "a TUN device with the MTU that connect --tun has, and its stack (internal/packet), to a server on the laptop", bridges: true, open: openDevice(packet.MTU)},
		{name: "TUN, MTU 1500", what: "the same with the MTU of Ethernet, as others ship it", bridges: true, open: openDevice(ethernetMTU)},
	}
)

var entranceMeasures = []measure{
	{figures: []figure{{"bulk up, 1 connection", megabytes, false}, {"CPU of the laptop's side, up", "ms/MB", true}}, run: bulkAndOwnCPU(orderUp)},
	{figures: []figure{{"bulk down, 1 connection", megabytes, false}, {"CPU of the laptop's side, down", "ms/MB", true}}, run: bulkAndOwnCPU(orderDown)},
	{figures: []figure{{"bulk up, 32 connections", megabytes, false}}, run: bulkOnly(orderUp, many)},
	{figures: []figure{{"bulk down, 32 connections", megabytes, false}}, run: bulkOnly(orderDown, many)},
	{figures: []figure{{"128 B requests, 32 connections", perSecond, false}}, run: requests},
	{figures: []figure{{"idle echo, p50", micros, true}, {"idle echo, p99", micros, true}}, run: idleEcho},
	{figures: []figure{{"connections (dial, 1 echo, close)", perSecond, false}}, run: connections},
}

// bulkAndOwnCPU is bulkAndCPU without the cluster's.
func bulkAndOwnCPU(what byte) func(*route, pace) ([]float64, error) {
	return func(r *route, p pace) ([]float64, error) {
		values, err := bulkAndCPU(what)(r, p)
		return values[:min(len(values), 2)], err
	}
}

func openForwardProxy(ctx context.Context, w *world, r *route) error {
	port := freePort()
	r.dial = tcp(local(port))
	if err := r.between("Forwarding from", nil, w.program("bridge"),
		"forward", "--address=127.0.0.1", "--via=proxy", "pod/"+w.server.name, fmt.Sprintf("%d:%d", port, serverPort)); err != nil {
		return err
	}
	return r.proxied(ctx, w)
}

// inProgram starts a connect with a CMD that does nothing, and dials address in CMD's network.
func (r *route) inProgram(w *world, address string) error {
	const here = "CMD is process"
	if err := r.between(here, nil, w.program("bridge"), "connect", "--", "sh", "-c", "echo "+here+" $$; exec sleep infinity"); err != nil {
		return err
	}
	_, pid, _ := strings.Cut(r.processes[0].line(here), here+" ")
	r.dial = inNetwork("/proc/"+pid+"/ns/net", address)
	return nil
}

func openProgram(ctx context.Context, w *world, r *route) error {
	if err := r.inProgram(w, net.JoinHostPort(w.server.ip, strconv.Itoa(serverPort))); err != nil {
		return err
	}
	return r.proxied(ctx, w)
}

func openProgramAlone(_ context.Context, w *world, r *route) error {
	port := freePort()
	var err error
	if r.server, err = start(listening, nil, w.program("bench"), "serve", "-listen", local(port)); err != nil {
		return err
	}
	return r.inProgram(w, net.JoinHostPort(netns.Host.String(), strconv.Itoa(port)))
}

func openRedirect(_ context.Context, w *world, r *route) (err error) {
	if r.server, err = start(redirectReady, nil, w.program("bench"), "redirect"); err != nil {
		return err
	}
	_, network, _ := strings.Cut(r.server.line(redirectReady), redirectReady+" ")
	r.dial = inNetwork(network, elsewhere)
	return nil
}

// openWhole changes the laptop, but not this machine's files: it has folders of its own in their place.
func openWhole(ctx context.Context, w *world, r *route) error {
	dir, err := os.MkdirTemp("", "bench-tun")
	if err != nil {
		return err
	}
	r.clean = func() { _ = os.RemoveAll(dir) }
	etc, state := filepath.Join(dir, "etc"), filepath.Join(dir, "state")
	if out, err := exec.CommandContext(ctx, "cp", "-a", "/etc", etc).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	if err := os.Mkdir(state, 0o755); err != nil {
		return err
	}
	// A resolver file that is a link is not to be followed to this machine's.
	if err := os.Remove(filepath.Join(etc, "resolv.conf")); err != nil && !os.IsNotExist(err) {
		return err
	}
	const script = `mount --make-rprivate / && mount --bind "$1" /etc && mount --bind "$2" /var/lib && mount -t tmpfs none /run && shift 2 && exec "$@"`
	config := filepath.Join(dir, "kubeconfig") // /var/lib has it no more
	b, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	if err == nil {
		err = os.WriteFile(config, b, 0o600)
	}
	if err != nil {
		return err
	}
	if err := r.between("this machine is connected", []string{"KUBECONFIG=" + config}, "unshare", "--mount", "sh", "-c", script, "sh", etc, state,
		w.program("bridge"), "connect", "--tun"); err != nil {
		return err
	}
	r.dial = tcp(net.JoinHostPort(w.server.ip, strconv.Itoa(serverPort)))
	return r.proxied(ctx, w)
}

// openDevice dials by a device and internal/packet's stack, in another program.
func openDevice(mtu int) func(context.Context, *world, *route) error {
	return func(_ context.Context, w *world, r *route) error {
		at := local(freePort())
		var err error
		if r.server, err = start(listening, nil, w.program("bench"), "serve", "-listen", at); err != nil {
			return err
		}
		if err := r.between(deviceReady, nil, w.program("bench"), "device", "-mtu", strconv.Itoa(mtu), "-to", at); err != nil {
			return err
		}
		_, network, _ := strings.Cut(r.processes[0].line(deviceReady), deviceReady+" ")
		r.dial = inNetwork(network, elsewhere)
		return nil
	}
}

const (
	redirectReady = "redirected is what is sent in"
	deviceReady   = "the device is in"
	elsewhere     = "10.77.0.1:80" // any port of any address in deviceRange
)

// redirect is the server of all connections in a network as CMD has it, which it says.
func redirect(ctx context.Context, out io.Writer) error {
	n, err := netns.New(netns.Options{})
	if err != nil {
		return err
	}
	defer n.Close()
	idle, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{Path: idle, Args: []string{"sleep", "infinity"}}
	n.Enter(cmd)
	if err := cmd.Start(); err != nil {
		return n.Explain(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	sockets, err := n.Open(ctx)
	if err != nil {
		return err
	}
	defer sockets.Close()
	if err := n.Run(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "%s /proc/%d/ns/net\n", redirectReady, cmd.Process.Pid)
	return acceptFrom(ctx, sockets.TCP[0], func(c net.Conn) {
		if to, err := netns.Original(c.(*net.TCPConn)); err != nil || to.String() != elsewhere {
			fmt.Fprintln(os.Stderr, "sent to", to, err)
			_ = c.Close()
			return
		}
		answer(c)
	})
}

var deviceRange = netip.MustParsePrefix("10.77.0.0/16")

// device runs the stack on a device in a network namespace of its own, which it says, and connects all that comes with address.
func device(ctx context.Context, out io.Writer, mtu int, address string) error {
	type made struct {
		fd      int
		network string
		err     error
	}
	ready := make(chan made)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with it, and the namespace
		m := made{network: fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())}
		if m.err = unix.Unshare(unix.CLONE_NEWNET); m.err == nil {
			m.fd, m.err = makeDevice(mtu)
		}
		ready <- m
		<-ctx.Done()
	}()
	m := <-ready
	if m.err != nil {
		return m.err
	}
	defer func() { _ = unix.Close(m.fd) }()
	fmt.Fprintln(out, deviceReady, m.network)
	s := &packet.Stack{
		MTU: uint32(mtu), Takes: deviceRange.Contains,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	return s.Run(ctx, m.fd)
}

// makeDevice makes one in the namespace of the thread.
func makeDevice(mtu int) (fd int, err error) {
	const name = "tun0"
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err == nil {
		script := fmt.Sprintf("ip link set %[1]s mtu %[2]d up && ip address add 192.0.2.1/32 dev %[1]s && ip route add %[3]s dev %[1]s src 192.0.2.1", name, mtu, deviceRange)
		var out []byte
		if out, err = exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
			err = fmt.Errorf("%s: %w: %s", script, err, out)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// inNetwork dials address in the network namespace at path. Going there takes a few µs of each dial.
func inNetwork(path, address string) func() (net.Conn, error) {
	return inNetworkOf(path, "tcp", address)
}

func inNetworkOf(path, network, address string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		there, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("the network %s: %w", path, err)
		}
		defer unix.Close(there)
		here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("this network: %w", err)
		}
		defer unix.Close(here)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter the network %s: %w", path, err)
		}
		c, err := net.DialTimeout(network, address, dialTimeout)
		if back := unix.Setns(here, unix.CLONE_NEWNET); back != nil {
			panic(back) // this thread is where no other goroutine may be
		}
		return c, err
	}
}
