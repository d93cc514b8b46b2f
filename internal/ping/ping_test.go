package ping

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"syscall"
	"testing"
)

// A message is as the kernel makes it: these are a ping's and its answer, on the loopback.
func TestMessagesAreAsTheKernelMakesThem(t *testing.T) {
	for name, c := range map[string]struct{ from, request, reply string }{
		"IPv4": {"127.0.0.1", "0800b5dc12340001abcd8420", "0000bddc12340001abcd8420"},
		"IPv6": {"::1", "80003d9412340001abcd8420", "81003c9412340001abcd8420"},
	} {
		from := netip.MustParseAddr(c.from)
		request, err := hex.DecodeString(c.request)
		if err != nil {
			t.Fatal(err)
		}
		id, echo, ok := ParseRequest(request, from.Is6())
		if !ok || id != 0x1234 || hex.EncodeToString(echo) != "0001abcd8420" {
			t.Errorf("%s: %#x, %x, %v", name, id, echo, ok)
		}
		if again := whole(from, from, Requests(from.Is6()), 0, withID(id, echo)); !bytes.Equal(again, request) {
			t.Errorf("%s: a request is %x, want %x", name, again, request)
		}
		if reply := Reply(from, from, id, echo); hex.EncodeToString(reply) != c.reply {
			t.Errorf("%s: a reply is %x, want %s", name, reply, c.reply)
		}
		for _, other := range [][]byte{nil, request[:7], Reply(from, from, id, echo), append([]byte{request[0], 1}, request[2:]...)} {
			if _, _, ok := ParseRequest(other, from.Is6()); ok {
				t.Errorf("%s: %x is a request", name, other)
			}
		}
	}
}

// What tells of a failure quotes the request's packet, so that a system knows whose it was.
func TestARefusalQuotesTheRequest(t *testing.T) {
	for _, c := range []struct {
		by, from, to string
		err          error
		head         [2]byte
		quoted       int
	}{
		{"192.0.2.1", "192.0.2.1", "10.96.0.10", syscall.EACCES, [2]byte{3, 13}, 20},
		{"192.0.2.1", "192.0.2.1", "10.96.0.10", syscall.EHOSTUNREACH, [2]byte{3, 1}, 20},
		{"2001:db8::1", "2001:db8::1", "fd00::10", syscall.EPERM, [2]byte{1, 1}, 40},
		{"2001:db8::1", "2001:db8::1", "fd00::10", errors.New("lost"), [2]byte{1, 3}, 40},
	} {
		by, from, to := netip.MustParseAddr(c.by), netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)
		b := Refusal(by, from, to, 0x1234, []byte{0, 1, 9, 9, 9, 9}, c.err)
		if [2]byte(b) != c.head || len(b) != headSize+c.quoted+headSize {
			t.Fatalf("%s, %v: %x", c.to, c.err, b)
		}
		sum := uint32(0)
		if to.Is6() {
			sum = Pseudo(by, from, protocol6, len(b))
		}
		if got := Checksum(b, sum); got != 0 {
			t.Errorf("%s: the checksum does not hold: %#x", c.to, got)
		}
		packet := b[headSize:]
		if !to.Is6() && Checksum(packet[:c.quoted], 0) != 0 {
			t.Errorf("the header's checksum does not hold: %x", packet)
		}
		if !bytes.Equal(packet[c.quoted-len(to.AsSlice()):c.quoted], to.AsSlice()) {
			t.Errorf("%s: the packet is to another: %x", c.to, packet)
		}
		if id, echo, ok := ParseRequest(packet[c.quoted:], to.Is6()); !ok || id != 0x1234 || !bytes.Equal(echo, []byte{0, 1}) {
			t.Errorf("%s: it quotes %x", c.to, packet[c.quoted:])
		}
	}
}
