package forward

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"bridge/internal/hint"
	"bridge/internal/servertest"
)

func TestTheHolderOfAPortIsSeen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux says who has a port")
	}
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::]:0"} {
		taken, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Listen([]string{"127.0.0.1"}, taken.Addr().(*net.TCPAddr).Port)
		if err == nil || !strings.Contains(err.Error(), "is in use by another port here: it is given twice") {
			t.Errorf("%s: %v", address, err)
		}
		_ = taken.Close()
	}
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = ListenUDP([]string{"127.0.0.1"}, taken.LocalAddr().(*net.UDPAddr).Port)
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "is in use by another port here: it is given twice") {
		t.Errorf("UDP: %v", err)
	}
}

func TestAUnixSocketIsItsOwnersAndGoesWithItsListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := ListenUnix(path); hint.CodeOf(err) != hint.Other || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("one in use: %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

func TestAStaleUnixSocketIsReplacedAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as SIGKILL leaves it
	_ = dead.Close()
	ln, err := ListenUnix(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	// Somebody takes the path meanwhile: theirs stays.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's file is removed: %v", err)
	}
	if _, err := ListenUnix(path); hint.Of(err) == "" || !strings.Contains(err.Error(), "another file") {
		t.Errorf("a file: %v", err)
	}
	if _, err := ListenUnix(filepath.Join(dir, "none", "s")); hint.Of(err) == "" {
		t.Errorf("no folder: %v", err)
	}
}

func TestParseListNamesEachLineThatIsWrong(t *testing.T) {
	list, err := ParseList(strings.NewReader("# all\n\nsvc/orders 80 17000:raw # and more\n  15432:db:5432\n"), "list")
	if err != nil || len(list) != 2 || list[0].Target != "svc/orders" || len(list[0].Ports) != 2 || list[1].Where != "list:4" || list[1].Ports[0].Host != "db" {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = ParseList(strings.NewReader("svc/a\nsvc/b 80\nsvc/c 80:\n"), "list")
	if hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "list:1: ") || !strings.Contains(err.Error(), "\nlist:3: ") || strings.Contains(err.Error(), "list:2") {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"", "# none", strings.Repeat("x", maxListLine+1), strings.Repeat("svc/a 80\n", maxList+1)} {
		if _, err := ParseList(strings.NewReader(text), "list"); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

// endless is a list without an end.
type endless struct {
	line string
	read int
}

func (e *endless) Read(b []byte) (n int, err error) {
	for n+len(e.line) <= len(b) {
		n += copy(b[n:], e.line)
	}
	if e.read += n; e.read > 16<<20 {
		return 0, errors.New("so much is read")
	}
	return n, nil
}

func TestAListIsBoundedWhileItIsRead(t *testing.T) {
	for line, words := range map[string]string{"svc/a 80\n": "more than", "svc/a\n": "is not read"} {
		if _, err := ParseList(&endless{line: line}, "list"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// withSender is a datagram behind where it came from.
func withSender(b []byte, from net.Addr) []byte { return append([]byte(from.String()+" "), b...) }

func TestEachCallerHasAFlowOfItsOwn(t *testing.T) {
	target := servertest.UDP(t, "127.0.0.1", withSender)
	sockets, err := ListenUDP([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var stats Stats
	var d net.Dialer
	f := &Datagrams{Sockets: sockets, Address: target, Idle: time.Hour, Stats: &stats, Dial: d.DialContext}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	from := map[string]bool{}
	for range 2 {
		c, err := net.Dial("udp", sockets[0].LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, text := range []string{"a", strings.Repeat("b", 9000)} {
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 64<<10)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			n, err := c.Read(b)
			flow, got, _ := strings.Cut(string(b[:n]), " ")
			if err != nil || got != text {
				t.Fatalf("%d bytes came back, %v", n, err)
			}
			from[flow] = true
		}
	}
	if st := stats.Now(); len(from) != 2 || st.Total != 2 || st.Open != 2 || st.Sent != 2*9001 || st.Received <= st.Sent {
		t.Errorf("flows %v, %+v", from, st)
	}
	cancel()
	if err := <-done; err != nil || stats.Now().Open != 0 {
		t.Errorf("%v, %+v", err, stats.Now())
	}
}

// A socket that fails is the end, also while its flows live.
func TestASocketThatFailsEndsItsFlows(t *testing.T) {
	sockets, err := ListenUDP([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	dialled := make(chan struct{})
	target := servertest.UDP(t, "127.0.0.1", withSender)
	f := &Datagrams{Sockets: sockets, Address: target, Idle: time.Hour, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		defer close(dialled)
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	c, err := net.Dial("udp", sockets[0].LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "x")
	<-dialled
	_ = sockets[0].Close()
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
		cancel()
		<-done
	}
}

func TestAFlowThatCannotBeMadeIsReported(t *testing.T) {
	sockets, err := ListenUDP([]string{"localhost"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 16)
	f := &Datagrams{
		Sockets: sockets, Idle: time.Minute, OnError: func(_ netip.AddrPort, err error) { failed <- err },
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.EACCES },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	c, err := net.Dial("udp", sockets[0].LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "x")
	if err := <-failed; !errors.Is(err, syscall.EACCES) {
		t.Error(err)
	}
	cancel()
	<-done
}

func TestStatsCountWhileAConnectionLives(t *testing.T) {
	target := servertest.TCP(t, servertest.Echo)
	lns, err := Listen([]string{"127.0.0.1"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var stats Stats
	var d net.Dialer
	f := &Forwarder{Listeners: lns, Address: target, Dial: d.DialContext, Stats: &stats}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	c, err := net.Dial("tcp", lns[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	for st := stats.Now(); st.Sent < 5 || st.Received < 5; st = stats.Now() { // it is counted after it was written
		time.Sleep(time.Millisecond)
	}
	if st := stats.Now(); st.Open != 1 || st.Total != 1 || st.Sent != 5 || st.Received != 5 {
		t.Errorf("%+v", st)
	}
	_ = c.Close()
	cancel()
	<-done
	if st := stats.Now(); st.Open != 0 || st.Total != 1 {
		t.Errorf("afterwards %+v", st)
	}
}

func TestTheHintNamesAnotherPort(t *testing.T) {
	for port, want := range map[int]string{80: "18080:80", 18080: "28080:80"} {
		err := listenError(&net.OpError{Op: "listen", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, Err: syscall.EADDRINUSE})
		if next := hint.Of(err); !strings.Contains(next, want) {
			t.Errorf("%d: %q", port, next)
		}
	}
}
