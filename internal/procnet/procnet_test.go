package procnet

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

func TestParse(t *testing.T) {
	if _, ok := Parse("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"); ok {
		t.Error("the heading is taken for a socket")
	}
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the lines below are of a machine with the low byte first")
	}
	for line, want := range map[string]Socket{
		"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0": {
			Local: netip.MustParseAddrPort("127.0.0.1:8080"), Remote: netip.MustParseAddrPort("0.0.0.0:0"), State: Listening, Inode: "4711",
		},
		"   1: 00000000000000000000000001000000:0016 0000000000000000FFFF00000100007F:0050 01 00000003:00000020 00:00000000 00000000     0        0 12 1 0": {
			Local: netip.MustParseAddrPort("[::1]:22"), Remote: netip.MustParseAddrPort("127.0.0.1:80"), State: 1, Sent: 3, Waiting: 32, Inode: "12",
		},
	} {
		if s, ok := Parse(line); !ok || s != want {
			t.Errorf("%s: %+v, %v", line, s, ok)
		}
	}
}
