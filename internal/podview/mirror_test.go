package podview

import (
	"context"
	"io/fs"
	"testing"
	"testing/synctest"

	"bridge/pkg/tunnel"
)

// What a file of the cluster's is called is no word to the terminal.
func TestMirrorSaysNothingToATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		m := &Mirror{
			Look: func(context.Context, string) (*tunnel.View, error) {
				return nil, &fs.PathError{Op: "open", Path: "/etc/\x1b[2Ja", Err: fs.ErrPermission}
			},
			Say: func(line string) {
				if want := "the container's files are not refreshed: open /etc/[2Ja: permission denied"; line != want {
					t.Errorf("%q, want %q", line, want)
				}
				cancel()
			},
			view: new(tunnel.View),
		}
		m.Run(ctx)
	})
}
