// Package private keeps one JSON document in a file that only its owner may read and that one process at a time
// holds. pkg/swap keeps in it what a later bridge needs to go on with a swap.
package private

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxDocument bounds what is read, in bytes: nobody else writes these files.
const maxDocument = 1 << 20

// ErrHeld says that another process, which runs, holds the file.
var ErrHeld = errors.New("another process holds it")

// UnsafeError says that a file or its folder is open to others, or theirs.
type UnsafeError struct {
	Path string
	Why  string
}

func (e *UnsafeError) Error() string { return e.Path + " " + e.Why }

// Dir is the folder for bridge's private files: XDG_STATE_HOME/bridge, or ~/.local/state/bridge.
func Dir() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the specification has a relative one ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		state = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(state, "bridge"), nil
}

// File is a document that this process holds, until Close, Remove or its own end, be it by SIGKILL.
type File struct {
	path string
	f    *os.File // locked
}

// Open holds the file, and creates it, empty, and its folder when they are not there. The error is an *UnsafeError when
// others may read or write it, and wraps ErrHeld, or errors.ErrUnsupported on a system that cannot do this.
func Open(path string) (*File, error) {
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	for {
		f, err := openPrivate(path, os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		// Between opening and locking whoever held it may have replaced or removed it.
		mine, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				return &File{path, f}, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// Path is where it is.
func (f *File) Path() string { return f.path }

// Read reads the document into v. The error is io.EOF when there is none yet.
func (f *File) Read(v any) error {
	b, err := io.ReadAll(io.NewSectionReader(f.f, 0, maxDocument+1))
	switch {
	case err != nil:
		return err
	case len(b) == 0:
		return io.EOF
	case len(b) > maxDocument:
		return fmt.Errorf("%s: more than %d bytes", f.path, maxDocument)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	return nil
}

// Write replaces the document, entirely or not at all, also if the process is killed meanwhile. It is on the disk then.
func (f *File) Write(v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	draft := f.draft()
	_ = os.Remove(draft) // of somebody who was killed
	next, err := openPrivate(draft, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	// Locked before it has the name: at no time can another process hold it.
	err = lock(next)
	if err == nil {
		_, err = next.Write(b)
	}
	if err == nil {
		err = next.Sync()
	}
	if err == nil {
		err = os.Rename(draft, f.path)
	}
	if err != nil {
		_, _ = os.Remove(draft), next.Close()
		return err
	}
	_ = f.f.Close()
	f.f = next
	return SyncFolder(filepath.Dir(f.path))
}

func (f *File) draft() string { return f.path + ".new" }

// Close lets go of the file and leaves it there.
func (f *File) Close() error { return f.f.Close() }

// Remove removes the file.
func (f *File) Remove() error {
	_ = os.Remove(f.draft())
	return errors.Join(os.Remove(f.path), f.f.Close())
}

// Remove removes the file at path unless a process holds it. One that is not there, or that nobody should trust, is fine.
func Remove(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	f, err := Open(path)
	var unsafe *UnsafeError
	switch {
	case errors.As(err, &unsafe) && unsafe.Path == path:
		return os.Remove(path)
	case errors.Is(err, ErrHeld):
		return nil
	case err != nil:
		return err
	}
	return f.Remove()
}
