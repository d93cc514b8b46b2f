package logs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// nodeLog is a container's log as a node keeps it, and gives it from a second on.
type nodeLog struct {
	times []time.Time
	lines []string // the last may have no end
}

func (n *nodeLog) add(when time.Time, text string) {
	n.times, n.lines = append(n.times, when), append(n.lines, text)
}

// since is what the kubelet sends: from the first line on that is not older than the second.
func (n *nodeLog) since(when time.Time) string {
	var b strings.Builder
	on := false
	for i, l := range n.lines {
		on = on || !n.times[i].Before(when.Truncate(time.Second))
		if on {
			b.WriteString(n.times[i].Format(time.RFC3339Nano) + " " + l)
		}
	}
	return b.String()
}

// A log that is cut off again and again, wherever it may be, is printed once and whole. Many lines have the same time, some are out
// of order, some are longer than what is held.
func TestNoLineIsLostOrRepeated(t *testing.T) {
	for seed := range uint64(60) {
		random := rand.New(rand.NewPCG(seed, 1))
		var log nodeLog
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		for i := range 60 {
			if random.IntN(2) == 0 {
				now = now.Add(time.Duration(random.IntN(300)) * time.Millisecond)
			}
			when := now
			if random.IntN(10) == 0 {
				when = now.Add(-time.Duration(random.IntN(500)) * time.Microsecond)
			}
			text := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", random.IntN(20)))
			switch random.IntN(30) {
			case 0:
				text = "\n"
			case 1:
				text = fmt.Sprintf("%d %s\n", i, strings.Repeat("y", pieceSize+random.IntN(pieceSize)))
			}
			log.add(when, text)
		}
		var got bytes.Buffer
		var m mark
		for try := 0; ; try++ {
			text := log.since(m.last)
			var r io.Reader = strings.NewReader(text)
			cut := try < 20
			if cut {
				r = io.MultiReader(strings.NewReader(text[:random.IntN(len(text)+1)]), iotest.ErrReader(errors.New("cut")))
			}
			err := m.read(r, func(l line) error {
				got.Write(l.text)
				return nil
			})
			if (err != nil) != cut {
				t.Fatal(err)
			}
			if !cut {
				break
			}
		}
		if want := strings.Join(log.lines, ""); got.String() != want {
			a, b := strings.Split(want, "\n"), strings.Split(got.String(), "\n")
			for i := range min(len(a), len(b)) {
				if a[i] != b[i] {
					t.Fatalf("seed %d: line %d is %.40q, want %.40q (%d lines, want %d)", seed, i, b[i], a[i], len(b), len(a))
				}
			}
			t.Fatalf("seed %d: %d bytes, want %d", seed, got.Len(), len(want))
		}
	}
}

// An end in the middle of a line that looks like the log's end is gone on from as well.
func TestACleanEndInTheMiddle(t *testing.T) {
	var log nodeLog
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	log.add(now, "one\n")
	log.add(now, "two\n")
	log.add(now.Add(time.Nanosecond), "three\n")
	text := log.since(now)
	for end := range len(text) + 1 {
		if last := text[strings.LastIndex(text[:end], "\n")+1 : end]; last != "" && !strings.Contains(last, " ") {
			continue // in a time, which a node writes in one go
		}
		var got strings.Builder
		var m mark
		for _, part := range []string{text[:end], text} {
			if err := m.read(strings.NewReader(part), func(l line) error { got.Write(l.text); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if got.String() != "one\ntwo\nthree\n" {
			t.Errorf("cut at %d: %q", end, got.String())
		}
	}
}

// What is held of a line is bounded, and pieces come as soon as they are there.
func TestALineWithoutEnd(t *testing.T) {
	r := io.MultiReader(strings.NewReader("2026-01-02T03:04:05Z "), io.LimitReader(zeros{}, 16<<20))
	var m mark
	n, longest := 0, 0
	if err := m.read(r, func(l line) error { n, longest = n+len(l.text), max(longest, len(l.text)); return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 16<<20 || longest > pieceSize {
		t.Errorf("%d bytes, at most %d at once", n, longest)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestLinesOfTwoStayWhole(t *testing.T) {
	var out strings.Builder
	p := printer{out: &out, prefix: true}
	a, b := &source{pod: "a", container: "app"}, &source{pod: "b", container: "app", colour: "\x1b[32m"}
	for _, l := range []struct {
		s    *source
		text string
		more bool
	}{{a, "one\n", false}, {b, "two\n", false}, {a, "lo", false}, {a, "ng", true}, {b, "three\n", false}, {a, "er\n", true}, {a, "last", false}, {b, "four\n", false}, {a, "\n", true}, {a, "x\n", false}} {
		if err := p.print(l.s, line{text: []byte(l.text), more: l.more}); err != nil {
			t.Fatal(err)
		}
	}
	const green = "\x1b[32m[pod/b/app]\x1b[0m "
	if want := "[pod/a/app] one\n" + green + "two\n[pod/a/app] long\n" + green + "three\n[pod/a/app] er\n[pod/a/app] last\n" + green + "four\n[pod/a/app] x\n"; out.String() != want {
		t.Errorf("%q\nwant %q", out.String(), want)
	}
	out.Reset()
	p = printer{out: &out, stamps: true}
	for _, l := range []line{{[]byte("2026"), []byte("one\n"), false}, {nil, []byte("no time\n"), false}} {
		if err := p.print(a, l); err != nil {
			t.Fatal(err)
		}
	}
	if out.String() != "2026 one\nno time\n" {
		t.Errorf("%q", out.String())
	}
}
