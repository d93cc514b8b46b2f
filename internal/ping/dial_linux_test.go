package ping

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func TestEchoesComeBackToTheirOwn(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		var conns []net.Conn
		for range 2 {
			c, err := Dial(t.Context(), address)
			if errors.Is(err, syscall.EACCES) && os.Getuid() != 0 {
				t.Skip("this machine lets its users send none, which TestWhoMayPing has")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			conns = append(conns, c)
		}
		b := make([]byte, 65535)
		for i, want := range []string{"\x00\x01first", "\x00\x02" + string(bytes.Repeat([]byte("x"), 20_000)), "\xff\xff"} {
			for n, c := range conns {
				own := want + string(rune('a'+n))
				if _, err := c.Write([]byte("\x00")); err != nil { // is none
					t.Fatal(err)
				}
				if _, err := c.Write([]byte(own)); err != nil {
					t.Fatal(err)
				}
				got, err := c.Read(b)
				if err != nil || string(b[:got]) != own {
					t.Errorf("%s, %d of connection %d: %d bytes, want %d; %v", address, i, n, got, len(own), err)
				}
			}
		}
		for i, c := range conns {
			next := make(chan string)
			go func() {
				echo, err := c.(*conn).Next()
				next <- fmt.Sprintf("%q %v", echo, err)
			}()
			if _, err := c.Write([]byte{'0', byte('0' + i)}); err != nil {
				t.Fatal(err)
			}
			if got, want := <-next, fmt.Sprintf("%q <nil>", []byte{'0', byte('0' + i)}); got != want {
				t.Errorf("%s: %s, want %s", address, got, want)
			}
			_ = c.SetReadDeadline(time.Now())
			if _, err := c.(*conn).Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", address, err)
			}
			if c.(*conn).lent != nil {
				t.Errorf("%s: one that waits in vain holds a buffer", address)
			}
			_ = c.SetReadDeadline(time.Now().Add(patience))
		}
		if _, err := conns[0].Write(make([]byte, 1<<16)); !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("too long: %v", err)
		}
	}
	for _, bad := range []string{"localhost:0", "10.0.0.1", ""} {
		if c, err := Dial(t.Context(), bad); err == nil {
			_ = c.Close()
			t.Errorf("%q is dialled", bad)
		}
	}
}

// Users may where the system lets their group, without being root; else it is said what keeps them from it.
func TestWhoMayPing(t *testing.T) {
	const inside = "BRIDGE_TEST_MAY_PING"
	switch os.Getenv(inside) {
	case "":
		for may, allow := range map[string]string{"yes": "echo 0 0 >/proc/sys/net/ipv4/ping_group_range", "no": "true"} { // a new network lets nobody
			script := `ip link set lo up && eval "$1" && exec setpriv --bounding-set -net_raw --inh-caps -net_raw "$0" -test.run '^(TestWhoMayPing|TestEchoes.*)$' -test.v`
			cmd := exec.Command("unshare", "--user", "--map-root-user", "--net", "sh", "-c", script, os.Args[0], allow)
			cmd.Env = append(os.Environ(), inside+"="+may)
			out, err := cmd.CombinedOutput()
			if err != nil != (may == "no") || may == "no" && !bytes.Contains(out, []byte("ping_group_range lets nobody here")) || !bytes.Contains(out, []byte("--- PASS: TestWhoMayPing")) {
				t.Errorf("%s: %v\n%s", may, err, out)
			}
		}
	case "yes":
		c, err := Dial(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.(*conn).raw {
			t.Error("it took a right to")
		}
	case "no":
		if _, err := Dial(t.Context(), "127.0.0.1:0"); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%v", err)
		}
	}
}
