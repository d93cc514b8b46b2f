package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bridge/internal/private"
)

// fileState is what is at a path.
type fileState struct {
	Link    string `json:"link,omitempty"` // where it points, when it is a symbolic link
	Content []byte `json:"content,omitempty"`
	Absent  bool   `json:"absent,omitempty"`
	Mode    uint32 `json:"mode,omitempty"` // permissions
}

// maxFile bounds what is kept of a resolver file, in bytes.
const maxFile = 256 << 10

func look(path string) (fileState, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fileState{Absent: true}, nil
	case err != nil:
		return fileState{}, err
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(path)
		return fileState{Link: link}, err
	case !info.Mode().IsRegular():
		return fileState{}, fmt.Errorf("%s is neither a file nor a link", path)
	case info.Size() > maxFile:
		return fileState{}, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	b, err := os.ReadFile(path)
	return fileState{Content: b, Mode: uint32(info.Mode().Perm())}, err
}

func (s fileState) same(o fileState) bool {
	return s.Absent == o.Absent && s.Link == o.Link && bytes.Equal(s.Content, o.Content)
}

// fileChange is a file that is replaced for a while.
type fileChange struct {
	Path   string    `json:"path"`
	Before fileState `json:"before"`
	After  []byte    `json:"after"`
	// Servers are those that programs asked before, also when Before is a link.
	Servers []string `json:"servers,omitempty"`
	// Left is that somebody else has written the file since, which is theirs. They may yet put ours back, which they have seen there.
	Left bool `json:"left,omitempty"`
	// InPlace has it written, not replaced: something is mounted on it. A write may be cut short.
	InPlace bool `json:"inPlace,omitempty"`
}

// newMode is a resolver file's where there was none: everybody reads it.
const newMode = 0o644

// do makes the change, which the journal has.
func (c *fileChange) do() error {
	mode := fs.FileMode(newMode)
	if c.Before.Mode != 0 {
		mode = fs.FileMode(c.Before.Mode)
	}
	return c.put(fileState{Content: c.After, Mode: uint32(mode)})
}

// undo brings back what was there before, if what is there is what do has made or was about to make. Of what somebody else has written since it
// replaces our server only, which answers no more; where that is not named either it sets Left. It tells what it did, or "".
func (c *fileChange) undo() (did string, err error) {
	_ = os.Remove(c.draft()) // of whoever was killed in the middle
	now, err := look(c.Path)
	switch {
	case err != nil:
		return "", err
	case now.same(c.Before):
		c.Left = false
		return "", nil
	case now.same(fileState{Content: c.After}), c.torn(now):
		c.Left = false
		return c.Path + " is as it was", c.put(c.Before)
	case c.names(now):
		c.Left = false
		now.Content = withoutOurs(now.Content, nameservers(c.After), c.Servers)
		return fmt.Sprintf("%s was changed by somebody else since; it is left as it is, but names %q in place of bridge's DNS server", c.Path, nameservers(now.Content)), c.put(now)
	}
	c.Left = true
	return c.Path + " was changed by somebody else since; it is left as it is. Should what they bring back name bridge's DNS server: bridge connect --undo", nil
}

// names tells whether now names our server.
func (c *fileChange) names(now fileState) bool {
	ours := nameservers(c.After)
	return slices.ContainsFunc(nameservers(now.Content), func(s string) bool { return slices.Contains(ours, s) })
}

// torn tells whether now is a write of ours that was cut short, there or back.
func (c *fileChange) torn(now fileState) bool {
	return c.InPlace && !now.Absent && now.Link == "" && (bytes.HasPrefix(c.After, now.Content) || bytes.HasPrefix(c.Before.Content, now.Content))
}

// put has s be at the path: all of it or nothing, unless something is mounted there.
func (c *fileChange) put(s fileState) error {
	if c.InPlace {
		f, err := os.OpenFile(c.Path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		_, err = f.Write(s.Content)
		return errors.Join(err, f.Close())
	}
	if s.Absent {
		return os.Remove(c.Path)
	}
	draft := c.draft()
	_ = os.Remove(draft)
	err := create(draft, s)
	if err == nil {
		err = os.Rename(draft, c.Path)
	}
	if err != nil {
		_ = os.Remove(draft)
		return err
	}
	return private.SyncFolder(filepath.Dir(c.Path))
}

// draft is what becomes the file when it is whole.
func (c *fileChange) draft() string { return c.Path + ".bridge" }

// create makes what is not there.
func create(path string, s fileState) error {
	if s.Link != "" {
		return os.Symlink(s.Link, path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(s.Mode))
	if err != nil {
		return err
	}
	_, err = f.Write(s.Content)
	return errors.Join(err, f.Chmod(fs.FileMode(s.Mode)), f.Sync(), f.Close())
}

// ourComment is the first line of a resolver file of ours.
const ourComment = "# Written by bridge connect --tun, which brings back what was here; after a kill: bridge connect --undo"

// withoutOurs is a resolver file in which servers stand for ours, and nothing says that it is ours.
func withoutOurs(file []byte, ours, servers []string) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(file)) {
		f := strings.Fields(line)
		switch {
		case strings.TrimSpace(line) == ourComment:
		case len(f) > 1 && f[0] == "nameserver" && slices.Contains(ours, f[1]):
			for _, s := range servers {
				b.WriteString("nameserver " + s + "\n")
			}
			servers = nil
		default:
			b.WriteString(line)
		}
	}
	return []byte(b.String())
}

// resolverFile is a resolver file (resolv.conf(5)) that names server alone, and keeps of the one before what concerns no server.
func resolverFile(before []byte, server string) []byte {
	var b strings.Builder
	b.WriteString(ourComment + "\n")
	b.WriteString("nameserver " + server + "\n")
	for line := range strings.Lines(string(before)) {
		switch first(line) {
		case "search", "domain", "options", "sortlist":
			b.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	return []byte(b.String())
}

// nameservers are those of a resolver file.
func nameservers(file []byte) (list []string) {
	for line := range strings.Lines(string(file)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			list = append(list, f[1])
		}
	}
	return list
}

func first(line string) string {
	if f := strings.Fields(line); len(f) > 0 {
		return f[0]
	}
	return ""
}
