package tunnel

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/*.hex anew")

// golden compares what is sent with the bytes in testdata: SPEC.md's promise to other versions.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.WriteFile(file, []byte(hex.Dump(got)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if hex.Dump(got) != string(want) {
		t.Errorf("%s: sent\n%swant\n%s", name, hex.Dump(got), want)
	}
}

var goldenHeaders = map[string]Header{
	"header-dial":         {Kind: Dial, Network: "tcp", Address: "orders.shop:80"},
	"header-dial-udp":     {Kind: Dial, Network: "udp", Address: "[fd00::a]:53"},
	"header-dial-icmp":    {Kind: Dial, Network: "icmp", Address: "10.244.0.7:0"},
	"header-inbound":      {Kind: Inbound, Network: "tcp", Address: ":8080"},
	"header-inbound-ipv4": {Kind: Inbound, Network: "tcp", Address: ":8080", Peer: netipAddr("10.244.0.7:54321")},
	"header-inbound-ipv6": {Kind: Inbound, Network: "tcp", Address: ":8080", Peer: netipAddr("[fd00::7]:54321")},
	"header-view":         {Kind: Look, Network: "tcp"},
}

func TestHeaderBytes(t *testing.T) {
	for name, h := range goldenHeaders {
		b, err := appendHeader(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		r := bytes.NewReader(append(b, "payload"...))
		back, err := readHeader(r)
		if err != nil || back != h {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "payload" {
			t.Errorf("%s: reading took some of the payload, left %q", name, rest)
		}
	}
	mapped, err := appendHeader(nil, Header{Kind: Inbound, Network: "tcp", Address: ":8080", Peer: netipAddr("[::ffff:10.244.0.7]:54321")})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "header-inbound-ipv4", mapped)
}

func TestHeaderLimits(t *testing.T) {
	for _, bad := range []Header{
		{Kind: 4, Network: "tcp", Address: "a:1"},
		{Kind: Dial, Network: "unix", Address: "a:1"},
		{Kind: Dial, Network: "tcp", Address: strings.Repeat("a", maxHeader)},
	} {
		if _, err := appendHeader(nil, bad); err == nil {
			t.Errorf("sent %.80v", bad)
		}
	}
	longest := Header{Kind: Dial, Network: "tcp", Address: strings.Repeat("a", maxHeader-2-headerFixed)}
	b, err := appendHeader(nil, longest)
	if err != nil || len(b) != maxHeader {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if back, err := readHeader(bytes.NewReader(b)); err != nil || back != longest {
		t.Errorf("longest: %v", err)
	}
	for name, bad := range map[string]string{
		"too short":       "\x00\x04\x01\x01\x00\x00",
		"too long":        "\xff\xff",
		"kind":            "\x00\x05\x00\x01\x00\x00\x00",
		"network":         "\x00\x05\x01\x04\x00\x00\x00",
		"no network":      "\x00\x05\x01\x00\x00\x00\x00",
		"inbound icmp":    "\x00\x05\x02\x03\x00\x00\x00",
		"address length":  "\x00\x05\x01\x01\x05\x00\x00",
		"address cut":     "\x00\x05\x01\x01\x10\x00\x00",
		"target cut":      "\x00\x05\x01\x01\x00\x00\x01",
		"no target":       "\x00\x0a\x02\x01\x04\x01\x02\x03\x04\x00\x50\x00",
		"body cut":        "\x00\x09\x01\x01\x00\x00",
		"nothing at all ": "",
	} {
		if h, err := readHeader(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: read %+v", name, h)
		}
	}
	if h, err := readHeader(strings.NewReader("\x00\x0a\x01\x01\x00\x00\x03a:1NEW")); err != nil || h.Address != "a:1" {
		t.Errorf("a later version's fields: %+v, %v", h, err)
	}
}

func FuzzHeader(f *testing.F) {
	for _, h := range goldenHeaders {
		b, _ := appendHeader(nil, h)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := appendHeader(nil, h)
		if err != nil {
			t.Fatalf("read %+v but cannot send it: %v", h, err)
		}
		back, err := readHeader(bytes.NewReader(again))
		if h.Peer.Addr().Is4In6() { // is sent as IPv4
			h.Peer = back.Peer
		}
		if err != nil || back != h {
			t.Fatalf("%+v became %+v, %v", h, back, err)
		}
	})
}

var goldenStatus = map[string]error{
	"status-ok":        nil,
	"status-other":     errors.New("something else\nin two lines"),
	"status-refused":   &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
	"status-no-route":  syscall.EHOSTUNREACH,
	"status-no-net":    syscall.ENETUNREACH,
	"status-timeout":   context.DeadlineExceeded,
	"status-no-host":   &net.DNSError{Err: "no such host", Name: "nowhere", IsNotFound: true},
	"status-no-answer": &net.DNSError{Err: "server misbehaving", Name: "nowhere", IsTemporary: true},
	"status-forbidden": syscall.EACCES,
}

func TestStatusBytes(t *testing.T) {
	for name, err := range goldenStatus {
		golden(t, name, appendStatus(nil, statusOf(err)))
	}
}

func TestStatusErrors(t *testing.T) {
	errno := map[string]syscall.Errno{
		"status-refused": syscall.ECONNREFUSED, "status-no-route": syscall.EHOSTUNREACH, "status-no-net": syscall.ENETUNREACH,
		"status-timeout": syscall.ETIMEDOUT, "status-forbidden": syscall.EACCES,
	}
	for name, sent := range goldenStatus {
		b := appendStatus(nil, statusOf(sent))
		for i := range b {
			if need, err := statusNeeds(b[:i]); err != nil || need < 1 || need > len(b)-i {
				t.Fatalf("%s: needs %d more after %d of %d bytes, %v", name, need, i, len(b), err)
			}
		}
		if need, err := statusNeeds(b); need != 0 || err != nil {
			t.Fatalf("%s: needs %d more, %v", name, need, err)
		}
		got := parseStatus(b).err("tcp", "nowhere:80")
		switch want, ok := errno[name]; {
		case ok:
			wantErr(t, name, got, want)
		case name == "status-no-host":
			var dns *net.DNSError
			if !errors.As(got, &dns) || !dns.IsNotFound || dns.Name != "nowhere" {
				t.Errorf("%s: %#v", name, got)
			}
		case name == "status-no-answer":
			var dns *net.DNSError
			if !errors.As(got, &dns) || dns.IsNotFound || dns.Name != "nowhere" {
				t.Errorf("%s: %#v", name, got)
			}
		case sent == nil && got != nil:
			t.Errorf("%s: %v", name, got)
		}
		if sent != nil && got.Error() != cleanText(sent.Error()) {
			t.Errorf("%s: reads %q, want %q", name, got, sent)
		}
	}
	if got := (status{code: statusRefused}).err("tcp", "a:1"); !errors.Is(got, syscall.ECONNREFUSED) || got.Error() == "" {
		t.Errorf("without a text: %v", got)
	}
	if got := (status{code: 200, text: "new"}).err("tcp", "a:1"); got == nil || got.Error() != "new" {
		t.Errorf("a later version's code: %v", got)
	}
	long := statusOf(errors.New(strings.Repeat("ü", maxStatusText)))
	if len(long.text) > maxStatusText || !strings.HasSuffix(long.text, "ü") {
		t.Errorf("cut to %d bytes ending %q", len(long.text), long.text[len(long.text)-2:])
	}
	if got := cleanText("a\x1b[31m\x00\xffb"); got != "a [31m ?b" {
		t.Errorf("cleaned to %q", got)
	}
}

func FuzzStatus(f *testing.F) {
	for _, err := range goldenStatus {
		f.Add(appendStatus(nil, statusOf(err)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var have []byte
		for {
			need, err := statusNeeds(have)
			if err != nil || need > len(b) {
				return
			}
			if need == 0 {
				break
			}
			have, b = append(have, b[:need]...), b[need:]
		}
		s := parseStatus(have)
		if len(s.text) > maxStatusText {
			t.Fatalf("%d bytes of text", len(s.text))
		}
		if (s.err("tcp", "a:1") == nil) != (s.code == statusOK) {
			t.Fatal("an error and a code that differ")
		}
	})
}

var goldenMessages = map[string]message{
	"control-ping":        {typ: messagePing, echo: 0x0102030405060708},
	"control-pong":        {typ: messagePong, echo: 0x0102030405060708},
	"control-reset":       {typ: messageReset, stream: 258, code: resetBoth},
	"control-not-reading": {typ: messageReset, stream: 258, code: resetNotReading},
	"control-ready":       {typ: messageReady, on: true},
	"control-window":      {typ: messageWindow, stream: 258, limit: 1 << 33},
	"control-not-ready":   {typ: messageReady},
	"control-moved":       {typ: messageMoved, stream: 258},
	"control-lane":        {typ: messageLane},
	"control-note":        {typ: messageNote, text: "port 443: TLS\nport 8080: TLS"},
}

func TestControlBytes(t *testing.T) {
	for name, m := range goldenMessages {
		b := appendMessage(nil, m)
		golden(t, name, b)
		if back, err := readMessage(bytes.NewReader(b)); err != nil || back != m {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	r := strings.NewReader("\x63\x00\x02??\x04\x00\x01\x01")
	if m, err := readMessage(r); err != nil || m.typ != 0x63 {
		t.Errorf("a later version's message: %+v, %v", m, err)
	}
	if m, err := readMessage(r); err != nil || m.typ != messageReady || !m.on {
		t.Errorf("the one behind it: %+v, %v", m, err)
	}
	for name, bad := range map[string]string{
		"length": "\x01\x00\x07" + strings.Repeat("x", 7), "too long": "\x63\x04\x01" + strings.Repeat("x", 1025), "cut": "\x01\x00\x08xx", "empty": "",
	} {
		if m, err := readMessage(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: read %+v", name, m)
		}
	}
}

func FuzzControl(f *testing.F) {
	for _, m := range goldenMessages {
		f.Add(appendMessage(nil, m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for r := bytes.NewReader(b); ; {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			if m.typ < messagePing || m.typ > messageNote {
				continue
			}
			if back, err := readMessage(bytes.NewReader(appendMessage(nil, m))); err != nil || back != m {
				t.Fatalf("%+v became %+v, %v", m, back, err)
			}
		}
	})
}

// TestOutboxIsBounded: whatever the other end makes us say, what waits to be said does not grow.
func TestOutboxIsBounded(t *testing.T) {
	o := newOutbox()
	for i := range 1000 {
		o.put(message{typ: messagePing})
		o.put(message{typ: messagePong, echo: uint64(i)})
		o.put(message{typ: messageReady, on: i%2 == 0})
	}
	b, _ := o.take(nil)
	r := bytes.NewReader(b)
	var got []message
	for {
		m, err := readMessage(r)
		if err != nil {
			break
		}
		got = append(got, m)
	}
	want := []message{{typ: messagePong, echo: 999}, {typ: messagePing}, {typ: messageReady}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

var goldenHellos = map[string]hello{
	"hello-laptop": {protocol: Protocol, info: Info{Version: "v1.2.3"}},
	"hello-pod": {protocol: Protocol, info: Info{
		Version: "v1.2.3", Nameservers: []string{"10.96.0.10"}, Search: []string{"shop.svc.cluster.local", "svc.cluster.local"}, Ndots: 5,
	}},
	"hello-next-version": {protocol: Protocol + 1, info: Info{Version: "v2.0.0"}},
}

func TestHelloBytes(t *testing.T) {
	for name, h := range goldenHellos {
		b, err := appendHello(nil, h)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, b)
		if back, err := readHello(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(back, h) {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	for name, bad := range map[string]string{
		"magic": "HTTP/1.1", "too long": "BRDG\x00\x01\x40\x01", "cut": "BRDG\x00\x01\x00\x09{}", "json": "BRDG\x00\x01\x00\x02{]", "empty": "",
	} {
		if h, err := readHello(strings.NewReader(bad)); err == nil {
			t.Errorf("%s: read %+v", name, h)
		}
	}
	if h, err := readHello(strings.NewReader("BRDG\x00\x01\x00\x16{\"version\":\"1\",\"a\":{}}")); err != nil || h.info.Version != "1" {
		t.Errorf("a later version's member: %+v, %v", h, err)
	}
	if _, err := appendHello(nil, hello{info: Info{Search: []string{strings.Repeat("x", maxHello)}}}); err == nil {
		t.Error("sent a hello that is too long")
	}
}

var goldenAttach = map[string]attach{
	"attach-new":    {kind: attachNew, id: sessionID{0: 1, 15: 16}, epoch: 1 << 60, window: time.Minute},
	"attach-resume": {kind: attachResume, id: sessionID{0: 1, 15: 16}, epoch: 1 << 60, received: 1 << 33, window: time.Minute},
	"attach-lane":   {kind: attachLane, id: sessionID{0: 1, 15: 16}, epoch: 1 << 60, received: 1 << 33},
}

var goldenAttached = map[string]attached{
	"attached-ok":      {verdict: attachOK, received: 1 << 33},
	"attached-unknown": {verdict: attachUnknown},
	"attached-old":     {verdict: attachOld},
}

var goldenSegments = map[string]segment{
	"segment-data": {typ: segmentData, length: maxBatch, received: 1 << 33},
	"segment-ack":  {typ: segmentAck, received: 1 << 33},
	"segment-end":  {typ: segmentEnd, received: 1 << 33},
	"segment-ask":  {typ: segmentAsk, length: 1, received: 1 << 33},
}

func TestResumeBytes(t *testing.T) {
	for name, a := range goldenAttach {
		b := appendAttach(nil, a)
		golden(t, name, b)
		if back, err := readAttach(bytes.NewReader(b)); err != nil || back != a {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	for name, a := range goldenAttached {
		b := appendAttached(nil, a)
		golden(t, name, b)
		if back, err := readAttached(bytes.NewReader(b)); err != nil || back != a {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	for name, s := range goldenSegments {
		b := appendSegment(nil, s)
		golden(t, name, b)
		if back, err := readSegment(bytes.NewReader(b)); err != nil || back != s {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
}

func TestResumeLimits(t *testing.T) {
	zeros := strings.Repeat("\x00", attachSize)
	for name, bad := range map[string]string{
		"kind 0": zeros, "kind 4": "\x04" + zeros[1:], "cut": "\x02" + zeros[2:], "empty": "",
		"new with bytes":  "\x01" + zeros[:24] + "\x01" + zeros[:11],
		"window too long": "\x01" + zeros[:32] + "\xff" + zeros[:3],
	} {
		if a, err := readAttach(strings.NewReader(bad)); err == nil {
			t.Errorf("attach, %s: read %+v", name, a)
		}
	}
	for name, bad := range map[string]string{
		"verdict": "\x03" + zeros[:8], "cut": zeros[:8], "empty": "", "unknown with bytes": "\x01" + zeros[:7] + "\x01",
	} {
		if a, err := readAttached(strings.NewReader(bad)); err == nil {
			t.Errorf("attached, %s: read %+v", name, a)
		}
	}
	for name, bad := range map[string]string{
		"type 0": zeros[:12], "type 5": "\x05" + zeros[:11], "end with data": "\x03\x00\x00\x01" + zeros[:8], "cut": "\x02" + zeros[:10], "empty": "", "data without data": "\x01" + zeros[:11],
		"ack with data": "\x02\x00\x00\x01" + zeros[:8], "too long": "\x01\x01\x00\x01" + zeros[:8],
	} {
		if s, err := readSegment(strings.NewReader(bad)); err == nil {
			t.Errorf("segment, %s: read %+v", name, s)
		}
	}
}

func FuzzAttach(f *testing.F) {
	for _, a := range goldenAttach {
		f.Add(appendAttach(nil, a))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAttach(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, appendAttach(nil, a)) {
			t.Fatalf("%x was read as %+v", b, a)
		}
	})
}

func FuzzAttached(f *testing.F) {
	for _, a := range goldenAttached {
		f.Add(appendAttached(nil, a))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readAttached(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, appendAttached(nil, a)) {
			t.Fatalf("%x was read as %+v", b, a)
		}
	})
}

func FuzzSegment(f *testing.F) {
	for _, s := range goldenSegments {
		f.Add(appendSegment(nil, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readSegment(bytes.NewReader(b))
		if err == nil && !bytes.HasPrefix(b, appendSegment(nil, s)) {
			t.Fatalf("%x was read as %+v", b, s)
		}
	})
}

func FuzzHello(f *testing.F) {
	for _, h := range goldenHellos {
		b, _ := appendHello(nil, h)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := appendHello(nil, h)
		if err != nil {
			return // JSON may grow when written anew
		}
		if _, err := readHello(bytes.NewReader(again)); err != nil {
			t.Fatalf("%+v: %v", h, err)
		}
	})
}

// FuzzFrameTap: however the frames are cut into reads, the tap sees the same headers and passes on the same whole frames.
func FuzzFrameTap(f *testing.F) {
	syn := "\x00\x01\x00\x01\x00\x00\x00\x03\x00\x1c\x00\x00"
	data := "\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x05hello"
	fin := "\x00\x01\x00\x04\x00\x00\x00\x03\x00\x00\x00\x00"
	full := "\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x80\x00" + strings.Repeat("x", maxFrame)
	f.Add([]byte(syn+data+fin), 1)
	f.Add([]byte(syn+data+fin), 13)
	f.Add([]byte(data+full+full+full+data[:14]), 40_000)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		frames := func(cut int) (seen []frame, passed []byte, ended error) {
			rest := b
			tap := &frameTap{
				ReadWriteCloser: readOnly{readerFunc(func(p []byte) (int, error) {
					if len(rest) == 0 {
						return 0, io.EOF
					}
					n := copy(p[:min(max(1, cut), len(p))], rest)
					rest = rest[n:]
					return n, nil
				})},
				see:    func(f frame) error { seen = append(seen, f); return nil },
				failed: func(err error) { ended = err },
			}
			passed, _ = io.ReadAll(tap)
			return seen, passed, ended
		}
		whole, all, err := frames(len(b))
		parts, some, _ := frames(cut)
		if errors.Is(err, io.EOF) && (!reflect.DeepEqual(whole, parts) || !bytes.Equal(all, some)) {
			t.Fatalf("whole %v, cut %v", whole, parts)
		}
		if !bytes.HasPrefix(b, all) || !bytes.HasPrefix(b, some) {
			t.Fatal("passed on what was not there")
		}
	})
}

type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (readOnly) Close() error              { return nil }
