//go:build unix

package private

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

type document struct{ Key string }

func newPath(t *testing.T) string {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	dir, err := Dir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "shop.json")
}

func open(t *testing.T, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestDocumentOutlivesItsProcessAndIsNobodyElses(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := newPath(t)
	f := open(t, path)
	var d document
	if err := f.Read(&d); !errors.Is(err, io.EOF) {
		t.Errorf("a new file: %v", err)
	}
	for _, key := range []string{"a", "secret"} {
		if err := f.Write(document{key}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", name, info.Mode().Perm(), err, want)
		}
	}
	if _, err := Open(path); !errors.Is(err, ErrHeld) {
		t.Errorf("held and opened again: %v", err)
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	f = open(t, path)
	if err := f.Read(&d); err != nil || d.Key != "secret" {
		t.Errorf("read %q, %v", d.Key, err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// A killed process holds nothing, and what it was writing is not there.
func TestKilledWriter(t *testing.T) {
	if path := os.Getenv("PRIVATE_TEST_PATH"); path != "" {
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Write(document{"whole"}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.draft(), []byte(`{"Key": "ha`), 0o644); err != nil { // as if in between
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	path := newPath(t)
	c := exec.Command(os.Args[0], "-test.run", "TestKilledWriter")
	c.Env = append(c.Environ(), "PRIVATE_TEST_PATH="+path)
	if out, err := c.CombinedOutput(); err == nil || c.ProcessState.Exited() {
		t.Fatalf("not killed: %s", out)
	}
	f := open(t, path)
	var d document
	if err := f.Read(&d); err != nil || d.Key != "whole" {
		t.Errorf("read %q, %v", d.Key, err)
	}
	if err := f.Write(document{"next"}); err != nil {
		t.Error(err)
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
}

func TestUnsafeFilesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"is open to others (mode 0640)": func(path string) error { return os.Chmod(path, 0o640) },
		"is a link": func(path string) error {
			return errors.Join(os.Rename(path, path+".other"), os.Symlink(path+".other", path))
		},
		"is not a file": func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
		"belongs to user 1": func(path string) error {
			if os.Geteuid() != 0 {
				return errors.ErrUnsupported
			}
			return os.Chown(path, 1, 1)
		},
		"is open to others (mode 0755)": func(path string) error { return os.Chmod(filepath.Dir(path), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			f := open(t, path)
			if err := errors.Join(f.Write(document{"x"}), f.Close()); err != nil {
				t.Fatal(err)
			}
			if err := spoil(path); errors.Is(err, errors.ErrUnsupported) {
				t.Skip("needs root")
			} else if err != nil {
				t.Fatal(err)
			}
			_, err := Open(path)
			var unsafe *UnsafeError
			if !errors.As(err, &unsafe) || !strings.HasSuffix(err.Error(), name) {
				t.Fatalf("opened: %v", err)
			}
			if unsafe.Path != path {
				return // the folder
			}
			if err := Remove(path); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("not removed: %v", err)
			}
		})
	}
}

func TestGarbageIsAnError(t *testing.T) {
	for _, content := range []string{"{", "null garbage", `{"Key": 1}`, strings.Repeat(" ", maxDocument+1)} {
		path := newPath(t)
		f := open(t, path)
		if _, err := f.f.WriteString(content); err != nil {
			t.Fatal(err)
		}
		var d document
		if err := f.Read(&d); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%.20q: %v", content, err)
		}
		if err := f.Write(document{"good"}); err != nil {
			t.Error(err)
		}
		if err := f.Read(&d); err != nil || d.Key != "good" {
			t.Errorf("after %.20q: %q, %v", content, d.Key, err)
		}
	}
}

// Many at once: one at a time holds it, whoever removes or replaces it meanwhile.
func TestOneHolderAtATime(t *testing.T) {
	path := newPath(t)
	holder := make(chan struct{}, 1)
	done := make(chan error, 8)
	for range cap(done) {
		go func() {
			for held := 0; held < 20; {
				f, err := Open(path)
				if errors.Is(err, ErrHeld) {
					continue
				}
				if err != nil {
					done <- err
					return
				}
				held++
				select {
				case holder <- struct{}{}:
				default:
					done <- errors.New("two hold it")
					return
				}
				err = f.Write(document{"x"})
				<-holder
				if held%2 == 0 {
					err = errors.Join(err, f.Remove())
				} else {
					err = errors.Join(err, f.Close())
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
