package tunnel

import (
	"net"
	"testing"
)

// What the pod has to say comes to whoever is there, and to whoever comes.
func TestNotesComeToEachLaptop(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := newEnds(t, pipeNetwork(t))
		notes := make(chan string, 10)
		e.client.OnNote = func(text string) { notes <- text }
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
		expect("now\nand now")
		e.server.Note("")
		expect("")
		e.server.Note("end")
		expect("end")
	})
}
