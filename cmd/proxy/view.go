package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"bridge/pkg/tunnel"
)

// view is what the target's program would find in this container: the kubelet has resolved it, and the laptop gets it.
type view struct {
	environ []string
	files   []string // paths where the kubelet keeps files
	absent  []place
	tokens  []place
}

// place is a path with a text.
type place struct{ path, text string }

const (
	// loaderPrefix begins the variables that are bridge's own.
	loaderPrefix = "BRIDGE_LOADER_"
	// kubeletPrefix begins the names in a volume that are the kubelet's: files lie in a folder of that name, which the link
	// dataLink names, and change by changing that link.
	kubeletPrefix = ".."
	dataLink      = "..data"
	// maxDepth bounds folders in a volume: a key's path in it has a few.
	maxDepth = 32
)

func (v *view) addFiles(s string) error {
	if !path.IsAbs(s) {
		return errors.New("want an absolute path")
	}
	v.files = append(v.files, path.Clean(s))
	return nil
}

func (v *view) addAbsent(s string) error { return addPlace(&v.absent, s) }
func (v *view) addToken(s string) error  { return addPlace(&v.tokens, s) }

func addPlace(to *[]place, s string) error {
	name, text, ok := strings.Cut(s, ":")
	if !ok || !path.IsAbs(name) {
		return errors.New("want an absolute path, a colon and a text")
	}
	*to = append(*to, place{path.Clean(name), text})
	return nil
}

// tell is tunnel.Server's View.
func (v *view) tell(w *tunnel.ViewWriter) error {
	for _, e := range v.environ {
		name, value, _ := strings.Cut(e, "=")
		if name == "" || strings.HasPrefix(name, loaderPrefix) {
			continue
		}
		if err := w.Add(tunnel.Entry{Type: tunnel.Variable, Name: name, Data: []byte(value)}); err != nil {
			return err
		}
	}
	for _, p := range v.absent {
		if err := w.Add(tunnel.Entry{Type: tunnel.Absent, Name: p.path, Data: []byte(p.text)}); err != nil {
			return err
		}
	}
	for _, p := range v.tokens {
		if _, err := os.Stat(p.path); errors.Is(err, fs.ErrNotExist) {
			continue // the account has its tokens not mounted
		}
		if err := w.Add(tunnel.Entry{Type: tunnel.Token, Name: p.path, Data: []byte(p.text)}); err != nil {
			return err
		}
	}
	t := &teller{view: v, w: w, room: tunnel.MaxViewFiles, told: map[string]bool{}}
	for _, mount := range v.files {
		if err := t.mount(mount); err != nil {
			return err
		}
	}
	return nil
}

// teller is one telling of the files.
type teller struct {
	*view
	w    *tunnel.ViewWriter
	room int64           // for content
	told map[string]bool // volumes may be mounted in one another
}

// mount tells what is at one of the view's paths: a volume, or a single file of one.
func (t *teller) mount(at string) error {
	info, err := os.Stat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return t.absent(at, err)
	case !info.IsDir():
		f, err := os.Open(at)
		if err != nil {
			return t.absent(at, err)
		}
		return t.file(at, f)
	}
	// What leads out of the volume is not in it.
	root, err := os.OpenRoot(at)
	if err != nil {
		return t.absent(at, err)
	}
	defer func() { _ = root.Close() }()
	before, _ := root.Readlink(dataLink)
	if err := t.folder(root, at, ".", 0); err != nil {
		return err
	}
	if after, _ := root.Readlink(dataLink); after != before {
		return fmt.Errorf("%s changes", at)
	}
	return nil
}

// folder tells what is in a folder of a volume.
func (t *teller) folder(root *os.Root, at, in string, depth int) error {
	if t.skip(at) {
		return nil
	}
	if err := t.w.Add(tunnel.Entry{Type: tunnel.Folder, Name: at}); err != nil {
		return err
	}
	entries, err := fs.ReadDir(root.FS(), in)
	if err != nil {
		return t.absent(at, err)
	}
	for _, e := range entries {
		at, in := path.Join(at, e.Name()), path.Join(in, e.Name())
		if strings.HasPrefix(e.Name(), kubeletPrefix) || t.left(at) {
			continue
		}
		info, err := root.Stat(in)
		switch {
		case err != nil:
			err = t.absent(at, err)
		case info.IsDir() && depth == maxDepth:
			err = t.absent(at, errors.New("it is too deep"))
		case info.IsDir():
			err = t.folder(root, at, in, depth+1)
		case !info.Mode().IsRegular():
			err = t.absent(at, errors.New("it is not a file"))
		default:
			var f *os.File
			if f, err = root.Open(in); err != nil {
				err = t.absent(at, err)
			} else {
				err = t.file(at, f)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// left tells whether the laptop is not to have what is at a path.
func (t *teller) left(at string) bool {
	for _, list := range [][]place{t.view.absent, t.tokens} {
		for _, p := range list {
			if p.path == at {
				return true
			}
		}
	}
	return false
}

// skip tells whether a path was told already; from now on it was.
func (t *teller) skip(at string) bool {
	before := t.told[at]
	t.told[at] = true
	return before
}

// file tells a file, and closes it.
func (t *teller) file(at string, f *os.File) error {
	defer func() { _ = f.Close() }()
	if t.left(at) || t.skip(at) {
		return nil
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return t.absent(at, err)
	case !info.Mode().IsRegular():
		return t.absent(at, errors.New("it is not a file"))
	case info.Size() > t.room:
		return t.absent(at, fmt.Errorf("all files together have more than %d MiB", tunnel.MaxViewFiles>>20))
	}
	t.room -= info.Size()
	return t.w.AddFrom(tunnel.Entry{Type: tunnel.File, Name: at, Mode: info.Mode()}, info.Size(), f)
}

// absent tells that something cannot be had, in the system's own words. What is not there any more is no news.
func (t *teller) absent(at string, err error) error {
	why := err.Error()
	if p := new(fs.PathError); errors.As(err, &p) {
		why = p.Err.Error()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrPermission):
		why = "the proxy, which is not root, may not read it"
	}
	return t.w.Add(tunnel.Entry{Type: tunnel.Absent, Name: at, Data: []byte(why)})
}
