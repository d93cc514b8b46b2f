package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"bridge/internal/hint"
)

// An earlier capture is never written over, also one that a link leads to; one that has come to nothing leaves no file.
func TestACaptureHasAFileOfItsOwn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "it.pcapng")
	file, err := openCapture(name)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := file.Stat(); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := closeCapture(file); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty file is left: %v", err)
	}
	if err := os.WriteFile(name, []byte("packets"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := name + ".link"
	names := []string{name}
	if err := os.Symlink(name, link); err == nil {
		names = append(names, link)
	}
	for _, name := range names {
		if _, err := openCapture(name); hint.CodeOf(err) != hint.Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(name); string(b) != "packets" {
		t.Errorf("it has %q, %v", b, err)
	}
	if _, err := openCapture(filepath.Join(name, "none")); hint.CodeOf(err) != hint.Usage {
		t.Errorf("no folder: %v", err)
	}
	null, err := openCapture(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if err := closeCapture(null); err != nil {
		t.Error(err)
	}
}
