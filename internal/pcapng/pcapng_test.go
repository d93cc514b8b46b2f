package pcapng

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

// written is a capture of two packets, with the ends of its blocks.
func written(t testing.TB) (all []byte, ends []int) {
	t.Helper()
	var out bytes.Buffer
	w := &Writer{Out: &out}
	for _, step := range []func() error{
		func() error { return w.Begin("test") },
		func() error { return w.Interface("lo", MaxPacket) },
		func() error {
			return w.Packet(Packet{Time: time.Unix(1, 5), Length: 9, Data: []byte("hello"), Direction: In})
		},
		func() error { return w.Packet(Packet{Time: time.Unix(2, 0), Length: 4, Data: []byte("four")}) },
		func() error { return w.Statistics(time.Unix(3, 0), 2, 1) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, out.Len())
	}
	return out.Bytes(), ends
}

func TestBlocksAreAsTheFormatHasThem(t *testing.T) {
	all, ends := written(t)
	from := 0
	for i, kind := range []uint32{sectionBlock, interfaceBlock, packetBlock, packetBlock, statisticsBlock} {
		b := all[from:ends[i]]
		if got := binary.LittleEndian.Uint32(b); got != kind {
			t.Errorf("block %d is of type %#x", i, got)
		}
		first, last := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[len(b)-4:])
		if int(first) != len(b) || first != last || len(b)%4 != 0 {
			t.Errorf("block %d of %d bytes says %d, and %d at its end", i, len(b), first, last)
		}
		from = ends[i]
	}
	p := all[ends[1]:ends[2]]
	stamp := uint64(binary.LittleEndian.Uint32(p[12:]))<<32 | uint64(binary.LittleEndian.Uint32(p[16:]))
	if stamp != 1e9+5 || binary.LittleEndian.Uint32(p[20:]) != 5 || binary.LittleEndian.Uint32(p[24:]) != 9 || string(p[28:33]) != "hello" {
		t.Errorf("%x", p)
	}
}

// Wherever a stream ends, what was passed on ends with a block, and is all of them that were complete.
func TestWholeBlocksAlonePass(t *testing.T) {
	all, ends := written(t)
	for cut := range len(all) + 1 {
		for _, part := range []int{1, 7, len(all) + 1} {
			var out bytes.Buffer
			w := &Whole{Out: &out}
			for at := 0; at < cut; at += part {
				if _, err := w.Write(all[at:min(at+part, cut)]); err != nil {
					t.Fatal(err)
				}
			}
			want := 0
			for _, e := range ends {
				if e <= cut {
					want = e
				}
			}
			if out.Len() != want || !bytes.Equal(out.Bytes(), all[:want]) {
				t.Fatalf("cut at %d, in parts of %d: %d bytes, want %d", cut, part, out.Len(), want)
			}
		}
	}
}

func FuzzWhole(f *testing.F) {
	all, _ := written(f)
	f.Add(all)
	f.Add([]byte("bash: no such file\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := &Whole{Out: &out}
		_, err := w.Write(b)
		if len(w.held) > MaxBlock+len(b) || !bytes.HasPrefix(b, out.Bytes()) {
			t.Errorf("%v: holds %d", err, len(w.held))
		}
	})
}
