package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/hint"
)

const (
	original = "# of this machine\nnameserver 192.0.2.1\nsearch example.com\n\n"
	ours     = "nameserver 198.19.249.53\n"
)

// place is a resolver file in a folder of the test's, with a journal.
type place struct {
	t            *testing.T
	path, folder string
	said         []string
}

func newPlace(t *testing.T) *place {
	dir := t.TempDir()
	return &place{t: t, path: filepath.Join(dir, "resolv.conf"), folder: filepath.Join(dir, "state")}
}

func (p *place) say(line string) { p.said = append(p.said, line) }

func (p *place) write(text string) {
	p.t.Helper()
	if err := os.WriteFile(p.path, []byte(text), 0o640); err != nil {
		p.t.Fatal(err)
	}
}

// killed is a bridge that writes its journal, changes the file if it comes to that, and is killed.
func (p *place) killed(inPlace, changes bool) {
	p.t.Helper()
	j, err := hold(p.folder)
	if err != nil {
		p.t.Fatal(err)
	}
	before, err := look(p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	c := &fileChange{Path: p.path, Before: before, After: []byte(ours), Servers: []string{"192.0.2.1"}, InPlace: inPlace}
	if err := j.write(record{File: c}); err != nil {
		p.t.Fatal(err)
	}
	if changes {
		if err := c.do(); err != nil {
			p.t.Fatal(err)
		}
		if b, err := os.ReadFile(p.path); err != nil || string(b) != ours {
			p.t.Fatalf("%q, %v", b, err)
		}
	}
	_ = j.file.Close() // the kernel's work
}

func (p *place) undo() {
	p.t.Helper()
	if err := undoAll(p.folder, p.path, p.say); err != nil {
		p.t.Fatal(err)
	}
	if _, err := os.Stat(p.folder); !errors.Is(err, fs.ErrNotExist) {
		p.t.Errorf("a journal is left: %v", err)
	}
	left, _ := filepath.Glob(p.path + ".*")
	if len(left) > 0 {
		p.t.Errorf("left: %q", left)
	}
}

func (p *place) has(want string) {
	p.t.Helper()
	if b, err := os.ReadFile(p.path); err != nil || string(b) != want {
		p.t.Errorf("%q, %v; want %q\nit said %q", b, err, want, p.said)
	}
}

func TestUndoBringsBackWhatWasThere(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		for _, changes := range []bool{false, true} {
			t.Run(fmt.Sprintf("in place %v, changed %v", inPlace, changes), func(t *testing.T) {
				p := newPlace(t)
				p.write(original)
				p.killed(inPlace, changes)
				p.undo()
				p.has(original)
				if info, err := os.Stat(p.path); err != nil || info.Mode().Perm() != 0o640 {
					t.Errorf("%v, %v", info.Mode(), err)
				}
			})
		}
	}
}

func TestUndoBringsBackALink(t *testing.T) {
	p := newPlace(t)
	real := filepath.Join(filepath.Dir(p.path), "real")
	if err := errors.Join(os.WriteFile(real, []byte(original), 0o644), os.Symlink("real", p.path)); err != nil {
		t.Fatal(err)
	}
	p.killed(false, true)
	if b, err := os.ReadFile(real); err != nil || string(b) != original {
		t.Errorf("what the link points to: %q, %v", b, err)
	}
	p.undo()
	p.has(original)
	if link, err := os.Readlink(p.path); err != nil || link != "real" {
		t.Errorf("%q, %v", link, err)
	}
}

func TestUndoRemovesAFileWhereNoneWas(t *testing.T) {
	p := newPlace(t)
	p.killed(false, true)
	p.undo()
	if _, err := os.Lstat(p.path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// What somebody else has written is theirs, but for our server, which answers no more.
func TestUndoLeavesAloneWhatSomebodyHasChangedSince(t *testing.T) {
	for _, inPlace := range []bool{false, true} {
		for theirs, want := range map[string]string{
			ours + "nameserver 192.0.2.99\n":                         "nameserver 192.0.2.1\nnameserver 192.0.2.99\n",
			ourComment + "\n" + ours + "search vpn.example\n":        "nameserver 192.0.2.1\nsearch vpn.example\n",
			"# theirs\nsearch vpn.example\nnameserver 198.19.249.53": "# theirs\nsearch vpn.example\nnameserver 192.0.2.1\n",
		} {
			p := newPlace(t)
			p.write(original)
			p.killed(inPlace, true)
			p.write(theirs)
			p.undo()
			p.has(want)
			if !strings.Contains(strings.Join(p.said, "\n"), "changed by somebody else") {
				t.Errorf("%q", p.said)
			}
		}
	}
}

// A VPN's client that begins after bridge, and ends after it, brings back what it has found: bridge's.
func TestUndoKnowsWhatWasThereWhenSomebodyBringsBackOurs(t *testing.T) {
	p := newPlace(t)
	p.write(original)
	p.killed(false, true)
	const theirs = "nameserver 192.0.2.99\n"
	p.write(theirs)
	for range 2 {
		if err := undoAll(p.folder, p.path, p.say); err != nil {
			t.Fatal(err)
		}
		p.has(theirs)
	}
	p.write(ours)
	p.undo()
	p.has(original)
}

// Behind a link of somebody's may be a copy of ours, and a link that was there before leads to what changes with the network: it is brought back.
func TestUndoSeesThroughLinks(t *testing.T) {
	ourFile := string(resolverFile(nil, "198.19.249.53", "process 1"))
	for _, c := range []struct {
		name              string
		link, linkedSince bool
		file, says        string
		stays             bool
	}{
		{name: "a link to a copy of ours", linkedSince: true, file: ourFile, says: "is as it was"},
		{name: "a link to what is not ours", linkedSince: true, file: "nameserver 192.0.2.99\n", says: "is left as it is", stays: true},
		{name: "a link to nothing", linkedSince: true, says: "is left as it is", stays: true},
		{name: "a line more, where a link was", link: true, file: ourFile + "options timeout:1\n", says: `without what they have added: ["options timeout:1"]`},
		{name: "another link, where a link was", link: true, linkedSince: true, file: ourFile, says: "is as it was"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlace(t)
			at := func(name string) string { return filepath.Join(filepath.Dir(p.path), name) }
			p.write(original)
			if c.link {
				if err := errors.Join(os.Rename(p.path, at("real")), os.Symlink("real", p.path)); err != nil {
					t.Fatal(err)
				}
			}
			before, err := look(p.path)
			change := &fileChange{Path: p.path, Before: before, After: []byte(ourFile), Servers: []string{"192.0.2.1"}}
			if err := errors.Join(err, change.do(), os.Remove(p.path)); err != nil {
				t.Fatal(err)
			}
			written := p.path
			if c.linkedSince {
				written = at("copy")
				if err := os.Symlink("copy", p.path); err != nil {
					t.Fatal(err)
				}
			}
			if c.file != "" {
				if err := os.WriteFile(written, []byte(c.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			theirs, err := look(p.path)
			if err != nil {
				t.Fatal(err)
			}
			left, did, err := undoChanges([]*fileChange{change})
			if err != nil || !strings.Contains(did, c.says) || (len(left) > 0) != c.stays {
				t.Errorf("%q, %v; %d are left", did, err, len(left))
			}
			want := before
			if c.stays {
				want = theirs
			}
			if now, err := look(p.path); err != nil || !now.same(want) {
				t.Errorf("%+v, %v; want %+v", now, err, want)
			}
			if c.linkedSince && c.file != "" {
				if b, err := os.ReadFile(written); err != nil || string(b) != c.file {
					t.Errorf("what their link is to: %q, %v", b, err)
				}
			}
		})
	}
}

// Whose file it is that somebody has changed is known by its comment.
func TestServersAreThoseOfWhoseFileItWas(t *testing.T) {
	p := newPlace(t)
	file := func(run string) string { return string(resolverFile(nil, "198.19.249.53", run)) }
	var changes []*fileChange
	for n, server := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"} {
		changes = append(changes, &fileChange{
			Path: p.path, Before: fileState{Content: fmt.Appendf(nil, "# run %d\n", n)}, After: []byte(file(fmt.Sprint("run ", n))), Servers: []string{server},
		})
	}
	for text, want := range map[string]struct {
		has  string
		left int
	}{
		file("run 1") + "# more\n": {"nameserver 192.0.2.2\n# more\n", 1},
		"# theirs\n" + ours:        {"# theirs\nnameserver 192.0.2.3\n", 2},
	} {
		p.write(text)
		left, _, err := undoChanges(changes)
		if err != nil || len(left) != want.left {
			t.Errorf("%d are left, %v", len(left), err)
		}
		p.has(want.has)
	}
}

// What was there before the first one is known over later ones, which find somebody else's there.
func TestTheOriginalIsKnownOverLaterRuns(t *testing.T) {
	const theirs = "nameserver 192.0.2.99\n"
	file := func(run string) string { return string(resolverFile(nil, "198.19.249.53", run)) }
	begun := func(p *place, run string) *journal {
		t.Helper()
		j, err := hold(p.folder)
		if err == nil {
			err = j.leftover(p.say)
		}
		if err != nil {
			t.Fatal(err)
		}
		before, err := look(p.path)
		c := &fileChange{Path: p.path, Before: before, After: []byte(file(run)), Servers: nameservers(before.Content)}
		if err = errors.Join(err, j.begin(record{File: c}), c.do()); err != nil {
			t.Fatal(err)
		}
		return j
	}
	ended := func(j *journal, p *place) {
		t.Helper()
		if err := j.undo(p.say); err != nil {
			t.Fatal(err)
		}
		j.end()
	}
	// A VPN that has begun in the first is there at its end, and begins anew in each of the others.
	manyRuns := func(p *place, runs int) {
		t.Helper()
		p.write(original)
		for n := range runs {
			j := begun(p, fmt.Sprint("run ", n))
			p.write(theirs + fmt.Sprintf("# %d\n", n))
			ended(j, p)
			p.has(theirs + fmt.Sprintf("# %d\n", n))
		}
	}
	t.Run("it ends after a second", func(t *testing.T) {
		p := newPlace(t)
		manyRuns(p, 1)
		ended(begun(p, "second"), p)
		p.has(theirs + "# 0\n")
		p.write(file("run 0"))
		p.undo()
		p.has(original)
	})
	t.Run("it ends in the second", func(t *testing.T) {
		p := newPlace(t)
		manyRuns(p, 1)
		j := begun(p, "second")
		p.write(file("run 0"))
		ended(j, p)
		p.has(original)
		p.said = nil
		if err := undoAll(p.folder, p.path, p.say); err != nil || strings.Join(p.said, "") != "nothing to undo" {
			t.Errorf("%q, %v", p.said, err)
		}
	})
	t.Run("the second has resolvconf", func(t *testing.T) {
		p := newPlace(t)
		manyRuns(p, 1)
		j, err := hold(p.folder)
		if err == nil {
			err = j.begin(record{Resolvconf: true})
		}
		if err != nil {
			t.Fatal(err)
		}
		if !j.pending() {
			t.Error("resolvconf's part is nothing to undo")
		}
		if err := j.begin(record{}); err != nil {
			t.Fatal(err)
		}
		j.end()
		p.write(file("run 0"))
		p.undo()
		p.has(original)
	})
	t.Run("many", func(t *testing.T) {
		p := newPlace(t)
		manyRuns(p, 3*maxLeft)
		p.write(file("run 0"))
		p.undo()
		p.has(original)
	})
}

// A file of ours whose journal is gone is not passed over, nor are its servers taken for the system's; behind a link too. What our comment stands in alone is none.
func TestAFileOfOursWithoutAJournalIsSaid(t *testing.T) {
	for _, link := range []bool{false, true} {
		for text, dead := range map[string]bool{
			ourComment + "\n" + ours:                     true,
			"nameserver 192.0.2.1\n" + ours:              true,
			ourComment + "\n" + "nameserver 192.0.2.1\n": false,
			"# 198.19.249.53\nnameserver 192.0.2.1\n":    false,
			"": false,
		} {
			p := newPlace(t)
			p.write(text)
			if link {
				copied := p.path + ".copy"
				if err := errors.Join(os.Rename(p.path, copied), os.Symlink(copied, p.path)); err != nil {
					t.Fatal(err)
				}
			}
			j, tunErr := take(p.folder, p.path, p.say)
			if tunErr == nil {
				j.end()
			}
			for _, err := range []error{tunErr, undoAll(p.folder, p.path, p.say)} {
				if dead && (hint.CodeOf(err) != hint.RestoreIncomplete || hint.Of(err) == "") || !dead && err != nil {
					t.Errorf("%q, link %v: %v", text, link, err)
				}
			}
			p.has(text)
			if _, err := os.Stat(p.folder); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a journal is left: %v", err)
			}
		}
	}
}

// A file that something is mounted on is written in place, and a kill may be in the middle.
func TestUndoMendsAWriteThatWasCutShort(t *testing.T) {
	for _, torn := range []string{"", ours[:7], original[:9]} {
		p := newPlace(t)
		p.write(original)
		p.killed(true, true)
		p.write(torn)
		p.undo()
		p.has(original)
	}
}

// What a bridge that was killed in the middle of replacing the file has left is no hindrance, and goes.
func TestUndoRemovesADraft(t *testing.T) {
	for _, changed := range []bool{false, true} {
		p := newPlace(t)
		p.write(original)
		p.killed(false, changed)
		if err := os.WriteFile(p.path+".bridge", []byte(original[:3]), 0o600); err != nil {
			t.Fatal(err)
		}
		p.undo()
		p.has(original)
	}
}

func TestNothingToUndo(t *testing.T) {
	p := newPlace(t)
	p.undo()
	if strings.Join(p.said, "") != "nothing to undo" {
		t.Errorf("%q", p.said)
	}
}

func TestOneAtATime(t *testing.T) {
	p := newPlace(t)
	j, err := hold(p.folder)
	if err == nil {
		err = j.write(record{})
	}
	if err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprint(os.Getpid())
	_, again := hold(p.folder)
	for name, err := range map[string]error{"another": again, "undo": undoAll(p.folder, p.path, p.say)} {
		if err == nil || !strings.Contains(err.Error(), "process "+pid) || !strings.Contains(hint.Of(err), "kill "+pid) || hint.CodeOf(err) != hint.Conflict {
			t.Errorf("%s: %v; %s", name, err, hint.Of(err))
		}
	}
	j.end()
	j, err = hold(p.folder)
	if err != nil {
		t.Fatal(err)
	}
	j.end()
}

// What cannot be undone now is undone later.
func TestUndoThatFailsStaysInTheJournal(t *testing.T) {
	p := newPlace(t)
	p.write(original)
	p.killed(false, true)
	if err := errors.Join(os.Remove(p.path), os.Mkdir(p.path, 0o700)); err != nil {
		t.Fatal(err)
	}
	err := undoAll(p.folder, p.path, p.say)
	if hint.CodeOf(err) != hint.RestoreIncomplete || hint.Of(err) == "" {
		t.Fatalf("%v", err)
	}
	if err := os.Remove(p.path); err != nil {
		t.Fatal(err)
	}
	p.write(ours)
	p.undo()
	p.has(original)
}

func TestAJournalThatIsNoneIsSaid(t *testing.T) {
	p := newPlace(t)
	if err := errors.Join(os.Mkdir(p.folder, 0o700), os.WriteFile(filepath.Join(p.folder, journalName), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := undoAll(p.folder, p.path, p.say); hint.CodeOf(err) != hint.RestoreIncomplete || !strings.Contains(hint.Of(err), journalName) {
		t.Errorf("%v", err)
	}
}

// A write over the other's bytes, as on a full disk, that was cut short there or back is bridge's, and no more than that is.
func TestUndoMendsAWriteOverTheOther(t *testing.T) {
	long := original + strings.Repeat("# and more\n", 40)
	for _, before := range []string{original, long, "nameserver 192.0.2.1\n"} {
		for _, c := range [][2]string{{before, ours}, {ours, before}} {
			old, text := c[0], c[1]
			for _, n := range []int{1, len(text) / 2, len(text)} {
				b := []byte(old)
				if n > len(b) {
					b = append(b, make([]byte, n-len(b))...)
				}
				copy(b, text[:n])
				p := newPlace(t)
				p.write(before)
				p.killed(false, true)
				p.write(string(b))
				p.undo()
				p.has(before)
			}
		}
	}
	other := &fileChange{Before: fileState{Content: []byte(long)}, After: []byte(ours)}
	if other.torn(fileState{Content: []byte("nameserver 198.51.100.1\n" + long)}) || other.torn(fileState{Content: []byte(ours + "more")}) {
		t.Error("what somebody else has written is taken for bridge's")
	}
}
