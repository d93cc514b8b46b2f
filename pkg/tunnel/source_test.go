package tunnel

import (
	"bytes"
	"testing"
)

// TestManyHeldFramesAreSmall: what is read of connections and not passed on is bounded, and gives room again.
func TestManyHeldFramesAreSmall(t *testing.T) {
	near, far := tcpPair(t)
	defer func() { _, _ = near.Close(), far.Close() }()
	sent := bytes.Repeat([]byte("x"), crowdedRead+spliceBuffer)
	if _, err := near.Write(sent); err != nil {
		t.Fatal(err)
	}
	s := newSource(far)
	if s.raw == nil {
		t.Skip("read in the plain way here")
	}
	read := func() int {
		t.Helper()
		p, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		s.release()
		return len(p)
	}
	framesHeld.Add(manyHeld)
	n := read()
	framesHeld.Add(-manyHeld)
	if n > crowdedRead {
		t.Errorf("read %d bytes", n)
	}
	for n < len(sent) {
		n += read()
	}
	for range manyHeld { // each is released
		if _, err := near.Write(sent[:1]); err != nil {
			t.Fatal(err)
		}
		read()
	}
	go func() { _, _ = near.Write(sent) }()
	for n, most := 0, 0; n < len(sent); {
		more := read()
		n, most = n+more, max(most, more)
		if n == len(sent) && most <= crowdedRead {
			t.Error("no more than a crowded read at once")
		}
	}
}
