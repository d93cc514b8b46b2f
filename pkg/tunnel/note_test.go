package tunnel

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
)

// What the pod has to say comes to whoever is there, and to whoever comes.
func TestNotesComeToEachLaptop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		notes := make(chan string, 10)
		e.client.OnNote = func(text string, lost bool) {
			if lost {
				text += "lost"
			}
			notes <- text
		}
		e.server.Note("before")
		e.start().waitReady()
		defer e.close()
		expect := func(want string) {
			t.Helper()
			if got := <-notes; got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		expect("before")
		e.server.Note("now\nand now")
		e.server.Note("now\nand now")
		expect("now\nand now")
		current, err := e.server.current()
		if err != nil {
			t.Fatal(err)
		}
		current.kill(net.ErrClosed)
		expect("lost") // what the pod says now is not known
		expect("now\nand now")
		e.server.Note("")
		expect("")
		e.server.Note("end")
		expect("end")
	})
}

// A note that is too long is cut between two lines, and says so.
func TestALongNoteIsCutAtALinesEnd(t *testing.T) {
	var lines []string
	for i := range 40 {
		lines = append(lines, fmt.Sprintf("port %d: %s", i, strings.Repeat("é", 30)))
	}
	for n, more := range map[int]string{1: "", 14: "", 15: "and 1 more", 40: "and 26 more"} {
		b := appendMessage(nil, message{typ: messageNote, text: strings.Join(lines[:n], "\n")})
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		want := lines[:min(n, 14)]
		if more != "" {
			want = append(want[:len(want):len(want)], more)
		}
		if m.text != strings.Join(want, "\n") {
			t.Errorf("of %d lines: %d bytes, %q", n, len(m.text), m.text)
		}
	}
}
