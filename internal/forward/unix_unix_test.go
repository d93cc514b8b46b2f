//go:build unix

package forward

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"bridge/internal/hint"
)

// Everybody who may read a folder can hold its lock, for ever.
func TestAFolderThatAnotherHoldsHangsNothing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ln, err := ListenUnix(filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		held, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if _, err := ListenUnix(filepath.Join(dir, "another")); !errors.Is(err, syscall.EWOULDBLOCK) || hint.Of(err) == "" {
			t.Errorf("%v", err)
		}
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "s")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its socket is left: %v", err)
		}
	})
}
