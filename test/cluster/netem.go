//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netem makes the laptop's link slow and lossy, with the words of the kernel's netem. The kernel's own
// is not used, since many kernels are built without it. Instead, arriving packets are queued to a
// process of ours (NFQUEUE), which lets each of them go on when its time has come. It works on arrival,
// at both ends, because a packet that has arrived no longer counts against its sender's socket: held at
// the sender, TCP's own queue limit would cap the rate. One observer is not deceived: ping takes the
// kernel's time of arrival, before the queue, so it sees one direction only, unless it is ping -U.

// netemProcess is the name the process is recorded by. The cluster is whole without it.
const netemProcess = "netem"

// netemVerb is the command of this program that process runs; users have no need of it.
const netemVerb = "netem-run"

// impairment is what each direction of the link suffers. The zero value is a perfect link.
type impairment struct {
	delay  time.Duration
	jitter time.Duration // delay varies by up to so much either way; packets stay in order
	loss   float64       // 0 to 1
	rate   float64       // bits per second; 0 is no limit
}

func parseImpairment(args []string) (impairment, error) {
	var i impairment
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		var err error
		switch key {
		case "delay":
			i.delay, err = time.ParseDuration(value)
		case "jitter":
			i.jitter, err = time.ParseDuration(value)
		case "loss":
			i.loss, err = strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
			i.loss /= 100
		case "rate":
			i.rate, err = parseRate(value)
		default:
			return i, usagef("netem %q: use delay=20ms jitter=5ms loss=1%% rate=1gbit, or off", a)
		}
		if err != nil {
			return i, usagef("netem %s: %w", a, err)
		}
	}
	if i == (impairment{}) || i.delay < 0 || i.jitter < 0 || i.jitter > i.delay || i.loss < 0 || i.loss > 1 {
		return i, usagef("netem %q: use delay=20ms jitter=5ms loss=1%% rate=1gbit, or off", strings.Join(args, " "))
	}
	return i, nil
}

func parseRate(s string) (float64, error) {
	for _, unit := range []struct {
		suffix string
		factor float64
	}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}} {
		if number, ok := strings.CutSuffix(s, unit.suffix); ok {
			rate, err := strconv.ParseFloat(number, 64)
			if err == nil && rate <= 0 {
				err = errors.New("a rate is more than 0")
			}
			return rate * unit.factor, err
		}
	}
	return 0, errors.New("a rate ends in gbit, mbit or kbit")
}

// The chain with the queue, jumped to for what arrives from the other end. --queue-bypass: packets pass
// when the process has died.
const (
	netemOn = `*raw
:NETEM -
-A NETEM -j NFQUEUE --queue-num 0 --queue-bypass
-A PREROUTING -i {link} -j NETEM
COMMIT
`
	netemOff = `*raw
-D PREROUTING -i {link} -j NETEM
-F NETEM
-X NETEM
COMMIT
`
)

// linkEnds are both ends of the laptop's link: the namespace, and the link in it.
func (c *cluster) linkEnds() [2]struct{ ns, link string } {
	return [2]struct{ ns, link string }{{c.nodeNS(1), laptopLink}, {c.laptopNS(), clusterLink}}
}

// netem replaces what the cluster's link suffers; off ends it.
func netem(name string, args []string, progress io.Writer) error {
	off := len(args) == 1 && args[0] == "off"
	if !off {
		if _, err := parseImpairment(args); err != nil {
			return err
		}
	}
	if _, err := running(name); err != nil {
		return err
	}
	c, _, unlock, err := open(name, progress)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.netemStop(); err != nil || off {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := c.start(netemProcess, nil, append([]string{self, netemVerb, "--name", name}, args...)...)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(c.netemBound()); err == nil {
			break
		}
		if !p.alive() || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("netem: %s", c.logTail(netemProcess)), c.netemStop())
		}
	}
	for _, end := range c.linkEnds() {
		if err := iptablesRestore(end.ns, strings.ReplaceAll(netemOn, "{link}", end.link)); err != nil {
			return errors.Join(err, c.netemStop())
		}
	}
	return nil
}

// netemBound is a file that exists while the process has its queues.
func (c *cluster) netemBound() string { return c.dir("netem") }

func iptablesRestore(ns, rules string) error {
	return commandWith(rules, "nsenter", inNetNS(ns, "iptables-restore", "--wait", "5", "--noflush")...)
}

// netemStop removes the rules and ends the process, whichever there are.
func (c *cluster) netemStop() error {
	for _, end := range c.linkEnds() {
		if command("nsenter", inNetNS(end.ns, "iptables", "-w", "5", "-t", "raw", "-S", "NETEM")...) != nil {
			continue // no such chain
		}
		if err := iptablesRestore(end.ns, strings.ReplaceAll(netemOff, "{link}", end.link)); err != nil {
			return err
		}
	}
	for _, p := range c.Processes {
		if p.Name != netemProcess {
			continue
		}
		for p.alive() {
			syscall.Kill(p.PID, syscall.SIGKILL) //nolint:errcheck // it may have ended just now
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := os.RemoveAll(c.netemBound()); err != nil {
		return err
	}
	c.Processes = slices.DeleteFunc(c.Processes, func(p process) bool { return p.Name == netemProcess })
	return c.save()
}

// netemRun is the process: one queue in each namespace, until it is told to stop.
func netemRun(name string, args []string) error {
	i, err := parseImpairment(args)
	if err != nil {
		return err
	}
	c, err := load(name)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	failed := make(chan error, 4)
	for _, end := range c.linkEnds() {
		q, err := bindQueue(nsFile(end.ns), i)
		if err != nil {
			return err
		}
		go func() { failed <- q.receive() }()
		go func() { failed <- q.release() }()
	}
	if err := os.WriteFile(c.netemBound(), nil, 0o644); err != nil {
		return err
	}
	select {
	case <-stop:
		return nil // the kernel lets the queued packets go
	case err := <-failed:
		return err
	}
}

// queue is one direction: packets come from the kernel, wait in line, and get their verdict.
type queue struct {
	impairment
	fd   int
	line chan held

	free time.Time // when the line with its limited rate has sent what came before
	last time.Time // when the packet before goes on

	mu  sync.Mutex // guards writes
	buf []byte
}

// held is a packet that waits, still in the kernel.
type held struct {
	id uint32
	at time.Time // when it goes on
}

// maxHeld is how many packets wait in one direction; the kernel drops what comes on top, as a full router
// does. It is more than 1 Gbit/s in small packets for 100 ms.
const maxHeld = 16384

// Constants of linux/netfilter/nfnetlink_queue.h.
const (
	nfqMsgPacket, nfqMsgVerdict, nfqMsgConfig, nfqMsgVerdictBatch = 0, 1, 2, 3

	nfqCfgCmd, nfqCfgParams, nfqCfgMaxLen, nfqCfgMask, nfqCfgFlags = 1, 2, 3, 4, 5

	nfqAttrPacketHdr, nfqAttrVerdictHdr, nfqAttrPayload, nfqAttrCapLen = 1, 2, 10, 13

	nfqCmdBind    = 1
	nfqCopyPacket = 2
	nfqFlagGSO    = 1 << 2

	nfDrop, nfAccept = 0, 1
)

// bindQueue takes queue 0 of a network namespace.
func bindQueue(nsFile string, i impairment) (*queue, error) {
	q := &queue{impairment: i, line: make(chan held, maxHeld)}
	opened := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as in dialIn
		err := enterNetNS(nsFile)
		if err == nil {
			q.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		}
		opened <- err
	}()
	if err := <-opened; err != nil {
		return nil, err
	}
	if err := unix.Bind(q.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	const buffer = 16 << 20
	unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)  //nolint:errcheck // smaller works too
	unix.SetsockoptInt(q.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1)  //nolint:errcheck // as above
	params := append(binary.BigEndian.AppendUint32(nil, 20), nfqCopyPacket) // 20 bytes: their true length comes along
	attrs := attribute(nil, nfqCfgCmd, []byte{nfqCmdBind, 0, 0, unix.AF_INET})
	attrs = attribute(attrs, nfqCfgParams, params)
	attrs = attribute(attrs, nfqCfgMaxLen, binary.BigEndian.AppendUint32(nil, maxHeld))
	if i.loss == 0 {
		// Up to 64 KB at once, as the sender made them. With loss, packets are what a wire would carry, so
		// that a lost one is one.
		attrs = attribute(attrs, nfqCfgFlags, binary.BigEndian.AppendUint32(nil, nfqFlagGSO))
		attrs = attribute(attrs, nfqCfgMask, binary.BigEndian.AppendUint32(nil, nfqFlagGSO))
	}
	if err := q.send(nfqMsgConfig, unix.NLM_F_ACK, attrs); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, err := unix.Read(q.fd, answer)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if n >= 20 && binary.NativeEndian.Uint16(answer[4:]) == unix.NLMSG_ERROR {
		if code := int32(binary.NativeEndian.Uint32(answer[16:])); code != 0 {
			return nil, fmt.Errorf("packet queue (CONFIG_NETFILTER_NETLINK_QUEUE): %w", syscall.Errno(-code))
		}
	}
	return q, nil
}

// attribute appends a netlink attribute.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// send writes one message to the kernel.
func (q *queue) send(message, flags uint16, attrs []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := binary.NativeEndian.AppendUint32(q.buf[:0], uint32(16+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_QUEUE<<8|message)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)  // sequence, port
	b = append(b, unix.AF_UNSPEC, 0, 0, 0) // version 0, queue 0
	q.buf = append(b, attrs...)
	_, err := unix.Write(q.fd, q.buf)
	return err
}

func (q *queue) verdict(message uint16, verdict, id uint32) error {
	v := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, verdict), id)
	return q.send(message, 0, attribute(nil, nfqAttrVerdictHdr, v))
}

// receive takes packets from the kernel, drops those that are lost and lines up the others.
func (q *queue) receive() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(q.fd, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS) {
			continue
		}
		if err != nil {
			return fmt.Errorf("packet queue: %w", err)
		}
		for b := buf[:n]; len(b) >= 20; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < 20 || size > len(b) {
				break
			}
			if binary.NativeEndian.Uint16(b[4:]) == unix.NFNL_SUBSYS_QUEUE<<8|nfqMsgPacket {
				if err := q.packet(b[20:size]); err != nil {
					return err
				}
			}
			b = b[min(len(b), (size+3)&^3):]
		}
	}
}

// packet decides about one packet; b is its attributes.
func (q *queue) packet(b []byte) error {
	var id uint32
	size := 0
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		switch value := b[4:n]; binary.NativeEndian.Uint16(b[2:]) & 0x3fff {
		case nfqAttrPacketHdr:
			id = binary.BigEndian.Uint32(value)
		case nfqAttrPayload:
			size = max(size, len(value))
		case nfqAttrCapLen:
			size = int(binary.BigEndian.Uint32(value))
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	if q.loss > 0 && rand.Float64() < q.loss {
		return q.verdict(nfqMsgVerdict, nfDrop, id)
	}
	now := time.Now()
	at := now
	if q.rate > 0 {
		if q.free.Before(now) {
			q.free = now
		}
		q.free = q.free.Add(time.Duration(float64(size*8) / q.rate * float64(time.Second)))
		at = q.free
	}
	at = at.Add(q.delay)
	if q.jitter > 0 {
		at = at.Add(time.Duration((2*rand.Float64() - 1) * float64(q.jitter)))
	}
	if at.Before(q.last) {
		at = q.last
	}
	q.last = at
	q.line <- held{id, at}
	return nil
}

// release lets packets go on when their time has come, all that are due with one verdict.
func (q *queue) release() error {
	next := <-q.line
	for {
		time.Sleep(time.Until(next.at))
		now := time.Now()
		due := next
		for more := true; more; {
			select {
			case next = <-q.line:
				if more = !next.at.After(now); more {
					due = next
				}
			default:
				more = false
				next = held{}
			}
		}
		if err := q.verdict(nfqMsgVerdictBatch, nfAccept, due.id); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("packet queue: %w", err)
		}
		if next == (held{}) {
			next = <-q.line
		}
	}
}
