//go:build linux

package tools

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"bridge/internal/pcapng"
)

// packet is one of IPv4, with options of that many bytes, or IPv6, of a protocol.
func packet(six bool, options int, protocol byte, fragment, from, to uint16) []byte {
	var b []byte
	if six {
		b = make([]byte, 40)
		b[0], b[6] = 0x60, protocol
	} else {
		b = make([]byte, 20+options)
		b[0], b[9] = 0x40|byte(len(b)/4), protocol
		binary.BigEndian.PutUint16(b[6:], fragment)
	}
	b = binary.BigEndian.AppendUint16(b, from)
	return append(binary.BigEndian.AppendUint16(b, to), make([]byte, 16)...)
}

func TestTheFilterIsOfThePort(t *testing.T) {
	vm, err := bpf.NewVM(portFilter(8080))
	if err != nil {
		t.Fatal(err)
	}
	const moreFragments = 0x2000
	for name, c := range map[string]struct {
		packet []byte
		passes bool
	}{
		"tcp to":         {packet(false, 0, 6, 0, 1, 8080), true},
		"tcp from":       {packet(false, 0, 6, 0, 8080, 1), true},
		"udp to":         {packet(false, 0, 17, 0, 1, 8080), true},
		"options":        {packet(false, 8, 6, 0, 1, 8080), true},
		"first fragment": {packet(false, 0, 17, moreFragments, 1, 8080), true},
		"later fragment": {packet(false, 0, 17, 1, 8080, 8080), false},
		"other port":     {packet(false, 0, 6, 0, 8081, 1), false},
		"icmp":           {packet(false, 0, 1, 0, 8080, 8080), false},
		"six to":         {packet(true, 0, 6, 0, 1, 8080), true},
		"six from":       {packet(true, 0, 17, 0, 8080, 1), true},
		"six other":      {packet(true, 0, 6, 0, 1, 2), false},
		"six icmp":       {packet(true, 0, 58, 0, 8080, 8080), false},
		"arp":            {append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, make([]byte, 40)...), false},
	} {
		if n, err := vm.Run(c.packet); err != nil || c.passes != (n > 0) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

// A request over loopback is in the capture, each packet once; what comes after its end is not, and its end is a block's.
func TestCaptureSeesLoopback(t *testing.T) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if errors.Is(err, unix.EPERM) {
		t.Skip("CAP_NET_RAW is needed")
	} else if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the answer") }))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	in, end := io.Pipe()
	said, words := io.Pipe()
	var out bytes.Buffer
	whole := &pcapng.Whole{Out: &out}
	ended := make(chan int, 1)
	go func() { ended <- Run(t.Context(), []string{Capture, port}, Streams{In: in, Out: whole, Err: words}) }()
	first := make([]byte, 256)
	if n, err := said.Read(first); err != nil || !strings.HasPrefix(string(first[:n]), "capturing port") {
		t.Fatalf("%q, %v", first[:n], err)
	}
	response, err := http.Get(server.URL + "/the-request")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	_ = end.Close()
	last := make([]byte, 256)
	n, err := said.Read(last)
	if err != nil || !strings.Contains(string(last[:n]), " 0 dropped") {
		t.Errorf("%q, %v", last[:n], err)
	}
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
	if a, b := bytes.Count(out.Bytes(), []byte("GET /the-request")), bytes.Count(out.Bytes(), []byte("the answer")); a != 1 || b != 1 || whole.Packets < 5 {
		t.Errorf("%d times the request, %d times the answer, in %d packets", a, b, whole.Packets)
	}
	file := filepath.Join(t.TempDir(), "capture.pcapng")
	if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if read, err := exec.Command("tcpdump", "-n", "-A", "-r", file).CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		t.Log("tcpdump is not there to read it")
	} else if err != nil || !bytes.Contains(read, []byte("GET /the-request")) {
		t.Errorf("tcpdump: %v\n%s", err, read)
	}
	want(t, 2, "usage: capture PORT", Capture, "http")
	want(t, 2, "usage: capture PORT", Capture)
}
