package main

import (
	"bytes"
	"testing"
)

// A line is rewritten only when it is another one, what others write stands above it, and a shell that has put bridge into the background is
// not written over.
func TestLineThatIsRewrittenInPlace(t *testing.T) {
	var out bytes.Buffer
	front := true
	l := &live{out: &out, front: func() bool { return front }}
	wants := func(want string) {
		t.Helper()
		if got := out.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		out.Reset()
	}
	say := func(line string) {
		if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	}
	say("one\n")
	wants("one\n")
	l.show("readiness \x1b[31msuccess")
	wants(erased + cut + "readiness [31msuccess" + uncut)
	l.show("readiness \x1b[31msuccess")
	wants("")
	say("two\n")
	wants(erased + "two\n" + cut + "readiness [31msuccess" + uncut)
	front = false
	l.show("readiness failure")
	say("three\n")
	wants("three\n")
	front = true
	say("four\n")
	wants("four\n")
	l.show("readiness failure")
	l.show("")
	wants(erased + cut + "readiness failure" + uncut + erased)
	l.show("")
	say("five\n")
	wants("five\n")
}
