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
	"syscall"

	"bridge/internal/private"
)

// fileState is what is at a path.
type fileState struct {
	Link    string `json:"link,omitempty"` // where it points, when it is a symbolic link
	Content []byte `json:"content,omitempty"`
	Absent  bool   `json:"absent,omitempty"`
	Mode    uint32 `json:"mode,omitempty"` // permissions
}

// maxFile bounds what is kept of a resolver file, in bytes. A journal that is full of them is one that can be read.
const maxFile = 32 << 10

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

// undoChanges brings back what was there before the changes of one file, oldest first, if what is there is what do has made or was about to make.
// Where somebody else has put back what an older one had made, the later ones are over. Of what somebody else has written it replaces our server only,
// which answers no more; where that is not named either the changes are left. It tells what it did, or "".
func undoChanges(changes []*fileChange) (left []*fileChange, did string, err error) {
	if len(changes) == 0 {
		return nil, "", nil
	}
	newest := changes[len(changes)-1]
	path := newest.Path
	_ = os.Remove(newest.draft()) // of whoever was killed in the middle
	now, err := look(path)
	if err != nil {
		return changes, "", err
	}
	known := false
	left = changes
	for i, c := range slices.Backward(changes) {
		made := now.same(fileState{Content: c.After}) || c == newest && c.torn(now)
		if !made && !now.same(c.Before) {
			continue
		}
		if made && !now.same(c.Before) {
			if err := c.put(c.Before); err != nil {
				return changes, "", err
			}
			now, did = c.Before, path+" is as it was"
		}
		known, left = true, changes[:i]
	}
	if known {
		return left, did, nil
	}
	file := now.Content
	if now.Link != "" {
		file, _ = os.ReadFile(path) // somebody's copy of ours, or nothing of ours
	}
	i, c := whose(changes, file)
	if c == nil {
		return changes, path + " was changed by somebody else since; it is left as it is. Should what they bring back name bridge's DNS server: bridge connect --undo", nil
	}
	if now.Link != "" || c.Before.Link != "" { // what a link is to may change, and a file that stands for it does not
		entire := *c
		entire.InPlace = c.InPlace && now.Link == "" // or else nothing is mounted there any more
		did = path + " was changed by somebody else since, and named bridge's DNS server; it is as it was"
		if more := linesBesides(file, c.After); len(more) > 0 {
			did += fmt.Sprintf(", without what they have added: %q", more)
		}
		return changes[:i], did, entire.put(c.Before)
	}
	now.Content = withoutOurs(file, nameservers(c.After), c.Servers)
	return changes[:i], fmt.Sprintf("%s was changed by somebody else since; it is left as it is, but names %q in place of bridge's DNS server", path, nameservers(now.Content)), c.put(now)
}

// whose is the change that the file, which others have had, goes back to, as its comment says, or else the newest; nil when it does not name our server.
func whose(changes []*fileChange, file []byte) (i int, c *fileChange) {
	i = -1
	for n, c := range changes {
		if c.names(file) && (i < 0 || !changes[i].signed(file) || c.signed(file)) {
			i = n
		}
	}
	if i < 0 {
		return 0, nil
	}
	return i, changes[i]
}

// signed tells whether the file has the comment of ours that says whose it is.
func (c *fileChange) signed(file []byte) bool {
	line, _, _ := strings.Cut(string(c.After), "\n")
	return strings.HasPrefix(line, ourComment) && slices.Contains(strings.Split(string(file), "\n"), line)
}

// names tells whether the file names our server.
func (c *fileChange) names(file []byte) bool {
	ours := nameservers(c.After)
	return slices.ContainsFunc(nameservers(file), func(s string) bool { return slices.Contains(ours, s) })
}

// linesBesides are those that file has besides ours.
func linesBesides(file, ours []byte) (list []string) {
	has := slices.Collect(strings.Lines(string(ours)))
	for line := range strings.Lines(string(file)) {
		if !slices.Contains(has, line) && strings.TrimSpace(line) != "" {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// torn tells whether now is a write of ours that was cut short, there or back: in place, or over the other's bytes (overwrite).
func (c *fileChange) torn(now fileState) bool {
	if now.Absent || now.Link != "" {
		return false
	}
	before, after := c.Before.Content, c.After
	return c.InPlace && (bytes.HasPrefix(after, now.Content) || bytes.HasPrefix(before, now.Content)) ||
		c.Before.Link == "" && !c.Before.Absent && (partlyOver(now.Content, before, after) || partlyOver(now.Content, after, before))
}

// partlyOver tells whether b is what stands there while some of text, or all, has been written over old, and nothing been cut off.
func partlyOver(b, text, old []byte) bool {
	n := 0
	for n < min(len(b), len(text)) && b[n] == text[n] {
		n++
	}
	for ; n > 0; n-- {
		if len(b) == max(n, len(old)) && bytes.Equal(b[n:], old[min(n, len(old)):]) {
			return true
		}
	}
	return false
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
		if s.Link == "" && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && overwrite(c.Path, s) {
			return nil
		}
		return err
	}
	return private.SyncFolder(filepath.Dir(c.Path))
}

// overwrite writes s over the file at path where that takes no more room than the file has, for a disk that is full. It is false when it did not.
func overwrite(path string, s fileState) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || allocated(info) < int64(len(s.Content)) {
		return false
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return false
	}
	_, err = f.WriteAt(s.Content, 0)
	if err == nil {
		err = errors.Join(f.Truncate(int64(len(s.Content))), f.Chmod(fs.FileMode(s.Mode)), f.Sync())
	}
	return errors.Join(err, f.Close()) == nil
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

// ourComment begins the first line of a resolver file of ours. Which bridge's it is stands behind it.
const ourComment = "# Written by bridge connect --tun, which brings back what was here; after a kill: bridge connect --undo"

// withoutOurs is a resolver file in which servers stand for ours, and nothing says that it is ours.
func withoutOurs(file []byte, ours, servers []string) []byte {
	var b strings.Builder
	for line := range strings.Lines(string(file)) {
		f := strings.Fields(line)
		switch {
		case strings.HasPrefix(strings.TrimSpace(line), ourComment):
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

// resolverFile is a resolver file (resolv.conf(5)) that names server alone, and keeps of the one before what concerns no server. It says which
// bridge's it is, by run, so that no two are the same.
func resolverFile(before []byte, server, run string) []byte {
	var b strings.Builder
	b.WriteString(ourComment + " (" + run + ")\n")
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
