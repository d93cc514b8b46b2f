// Package terminal gives the user's own terminal to a program elsewhere: what is typed goes there as it is, and the sizes are told.
// It says too what is a terminal, and whose. cmd/bridge calls it; it alone imports golang.org/x/term.
package terminal

import (
	"io"
	"os"
	"sync"

	"golang.org/x/term"
)

// Terminal is the one at which bridge was started.
type Terminal struct {
	in, out *os.File

	mu     sync.Mutex
	before *term.State // as it was; nil while it is not raw
}

// Open is the terminal that in is; nil where in is none. Its size is taken from out, where that is one too.
func Open(in io.Reader, out io.Writer) *Terminal {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	t := &Terminal{in: f, out: f}
	if Is(out) {
		t.out = out.(*os.File)
	}
	return t
}

// Is tells whether what is written to out is shown by a terminal.
func Is(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Foreground tells whether out is a terminal, and bridge has it: no shell has put bridge into the background.
func Foreground(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && Is(f) && foreground(f)
}

// Raw has each key go to who reads, Ctrl-C too, until Restore.
func (t *Terminal) Raw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, err := term.MakeRaw(int(t.in.Fd()))
	if err != nil {
		return err
	}
	t.before = before
	return nil
}

// Restore makes it as it was. It may be called more than once.
func (t *Terminal) Restore() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.before != nil {
		_ = term.Restore(int(t.in.Fd()), t.before)
		t.before = nil
	}
}

// again makes it raw once more, where a shell has changed it meanwhile.
func (t *Terminal) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.before != nil {
		_, _ = term.MakeRaw(int(t.in.Fd()))
	}
}

// Sizes returns a function that waits for the next size; the first is there at once. stop ends it: ok is false then.
func (t *Terminal) Sizes() (next func() (width, height uint16, ok bool), stop func()) {
	changed, done := make(chan struct{}, 1), make(chan struct{})
	changed <- struct{}{}
	var watching sync.WaitGroup
	watch := t.watch(changed) // from here on no change is missed
	watching.Go(func() { watch(done) })
	next = func() (uint16, uint16, bool) {
		for {
			select {
			case <-done:
				return 0, 0, false
			case <-changed:
				if width, height, err := term.GetSize(int(t.out.Fd())); err == nil && width > 0 && height > 0 {
					return uint16(width), uint16(height), true
				}
			}
		}
	}
	return next, sync.OnceFunc(func() {
		close(done)
		watching.Wait()
	})
}

// tell says that the size may be another one, unless that is to be told anyway.
func tell(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}
