package podview

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"bridge/internal/hint"
	"bridge/internal/private"
	"bridge/pkg/tunnel"
)

const (
	// folderPrefix begins the names of private folders, and of the journals beside them.
	folderPrefix = "root-"
	journal      = ".json"
	// rootName is the folder for the container's files in a private folder, draftName a file that gets its name when it is whole.
	rootName  = "root"
	draftName = ".draft"
)

// Folder has a container's files, for this user alone.
type Folder struct {
	dir  *os.Root
	in   string // where in dir the container's root is
	path string
	file *private.File // the journal; nil without one
	have map[string]tunnel.Entry
}

// NewFolder makes a private folder beside bridge's private files. Close removes it, and after a kill Sweep does.
func NewFolder() (*Folder, error) {
	base, err := private.Dir()
	if err != nil {
		return nil, err
	}
	at := filepath.Join(base, folderPrefix+strings.ToLower(rand.Text()[:8]))
	// Before the folder: what is there and not held is swept.
	file, err := private.Open(at + journal)
	if err != nil {
		return nil, err
	}
	f := &Folder{in: rootName, path: filepath.Join(at, rootName), file: file}
	err = file.Write(struct {
		Process int `json:"process"` // for people
	}{os.Getpid()})
	if err == nil {
		err = os.MkdirAll(f.path, 0o700)
	}
	if err == nil {
		f.dir, err = os.OpenRoot(at)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// OpenFolder is the user's own folder, which has to be empty if it is there. Close leaves it.
func OpenFolder(dir string) (*Folder, error) {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		var list []fs.DirEntry
		if list, err = os.ReadDir(dir); err == nil && len(list) > 0 {
			err = hint.Newf(hint.Usage, "name a folder that is new, or empty it", "%s is not empty", dir)
		}
		if err == nil {
			err = os.Chmod(dir, 0o700)
		}
	}
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Folder{dir: root, in: ".", path: dir}, nil
}

// Root is the folder below which the container's paths are.
func (f *Folder) Root() string { return f.path }

// Tops are the container's paths at and below which all of its files are: those of folders, and of files that are in none of these.
func (f *Folder) Tops() (paths []string) {
	for _, name := range slices.Sorted(maps.Keys(f.have)) {
		if !slices.ContainsFunc(paths, func(top string) bool { return strings.HasPrefix(name, top+"/") }) {
			paths = append(paths, name)
		}
	}
	return paths
}

// Write makes the folder have the files and folders among the entries, and no others: each file at once, entirely or not at all. changed are
// the paths of files that are new, other or gone.
func (f *Folder) Write(entries []tunnel.Entry) (changed []string, err error) {
	want := map[string]tunnel.Entry{}
	for _, e := range entries {
		if e.Type == tunnel.Folder || e.Type == tunnel.File {
			want[e.Name] = e
		}
	}
	// From the bottom up: a folder is empty when its turn comes.
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(f.have))) {
		if now, ok := want[name]; ok && now.Type == f.have[name].Type {
			continue
		}
		if err := f.dir.Remove(f.at(name)); err != nil && !errors.Is(err, fs.ErrNotExist) && f.have[name].Type == tunnel.File {
			return changed, err
		}
		if f.have[name].Type == tunnel.File {
			changed = append(changed, name)
		}
		delete(f.have, name)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		e := want[name]
		before, had := f.have[name]
		if had && before.Mode == e.Mode && bytes.Equal(before.Data, e.Data) {
			continue
		}
		if err := f.put(e); err != nil {
			return changed, err
		}
		if f.have == nil {
			f.have = map[string]tunnel.Entry{}
		}
		f.have[name] = e
		if e.Type == tunnel.File {
			changed = append(changed, name)
		}
	}
	return changed, nil
}

// at is a container's path in dir.
func (f *Folder) at(name string) string { return path.Join(f.in, strings.TrimPrefix(name, "/")) }

func (f *Folder) put(e tunnel.Entry) error {
	if e.Type == tunnel.Folder {
		return f.dir.MkdirAll(f.at(e.Name), 0o700)
	}
	if err := f.dir.MkdirAll(path.Dir(f.at(e.Name)), 0o700); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if e.Mode&0o111 != 0 {
		mode = 0o700
	}
	if err := f.dir.Remove(draftName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	draft, err := f.dir.OpenFile(draftName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = draft.Write(e.Data)
	if err := errors.Join(err, draft.Close()); err != nil {
		return err
	}
	return f.dir.Rename(draftName, f.at(e.Name))
}

// Close lets go of the folder, and removes it if it is a private one.
func (f *Folder) Close() error {
	var err error
	if f.dir != nil {
		err = f.dir.Close()
	}
	if f.file == nil {
		return err
	}
	if err := os.RemoveAll(filepath.Dir(f.path)); err != nil {
		return errors.Join(err, f.file.Close()) // the journal stays, for Sweep
	}
	return errors.Join(err, f.file.Remove())
}

// Sweep removes the private folders of processes that were killed.
func Sweep() error {
	base, err := private.Dir()
	if err != nil {
		return nil // then nothing can be there
	}
	list, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	swept := map[string]bool{}
	for _, e := range list {
		name, _, _ := strings.Cut(e.Name(), ".")
		if !strings.HasPrefix(name, folderPrefix) {
			continue
		}
		at := filepath.Join(base, name)
		if swept[at] {
			continue
		}
		swept[at] = true
		file, openErr := private.Open(at + journal)
		switch {
		case errors.Is(openErr, private.ErrHeld):
			continue
		case openErr != nil:
			err = errors.Join(err, openErr)
			continue
		}
		if e := os.RemoveAll(at); e != nil {
			err = errors.Join(err, fmt.Errorf("files of a container are left: %w", e), file.Close())
			continue
		}
		err = errors.Join(err, file.Remove())
	}
	return err
}
