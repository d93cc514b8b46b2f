//go:build !unix

package terminal

import (
	"os"
	"time"

	"golang.org/x/term"
)

// lookEvery is how often the size is looked at, where no signal tells.
const lookEvery = 250 * time.Millisecond

func foreground(*os.File) bool { return false } // nobody knows

func (t *Terminal) watch(changed chan<- struct{}) (until func(done <-chan struct{})) {
	lastWidth, lastHeight, _ := term.GetSize(int(t.out.Fd()))
	return func(done <-chan struct{}) {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				width, height, err := term.GetSize(int(t.out.Fd()))
				if err == nil && (width != lastWidth || height != lastHeight) {
					lastWidth, lastHeight = width, height
					tell(changed)
				}
			}
		}
	}
}
