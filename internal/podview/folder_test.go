//go:build unix

package podview

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"bridge/pkg/tunnel"
)

// holdEnv makes the test binary a process that has a private folder, says where, and waits to be killed.
const holdEnv = "BRIDGE_TEST_HOLD_FOLDER"

func TestMain(m *testing.M) {
	if os.Getenv(holdEnv) != "" {
		hold()
	}
	goleak.VerifyTestMain(m)
}

func hold() {
	f, err := NewFolder()
	if err == nil {
		_, err = f.Write([]tunnel.Entry{file("/etc/secret/key", "SECRET")})
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(f.Root())
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(1)
}

func file(name, text string) tunnel.Entry {
	return tunnel.Entry{Type: tunnel.File, Name: name, Mode: 0o644, Data: []byte(text)}
}

func folder(name string) tunnel.Entry { return tunnel.Entry{Type: tunnel.Folder, Name: name} }

func TestTops(t *testing.T) {
	f, err := OpenFolder(filepath.Join(t.TempDir(), "new"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]tunnel.Entry{
		folder("/etc/a"), file("/etc/a/b", ""), folder("/etc/a/c"), file("/etc/a/c/d", ""), folder("/etc/a-b"), file("/etc/ab", ""), file("/opt/single", ""),
	}); err != nil {
		t.Fatal(err)
	}
	if got := f.Tops(); !slices.Equal(got, []string{"/etc/a", "/etc/a-b", "/etc/ab", "/opt/single"}) {
		t.Errorf("%q", got)
	}
}

// tree is what is in a folder: modes, and the text of files.
func tree(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if e.IsDir() {
			list = append(list, fmt.Sprintf("%s/ %04o", name, info.Mode().Perm()))
			return nil
		}
		b, err := os.ReadFile(path)
		list = append(list, fmt.Sprintf("%s %04o %s", name, info.Mode().Perm(), b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func want(t *testing.T, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("is %q\nwant %q", got, want)
	}
}

func TestFolderFollowsTheContainer(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	f, err := NewFolder()
	if err != nil {
		t.Fatal(err)
	}
	script := tunnel.Entry{Type: tunnel.File, Name: "/etc/app/run.sh", Mode: 0o555, Data: []byte("#!")}
	write := func(changed []string, entries ...tunnel.Entry) {
		t.Helper()
		got, err := f.Write(entries)
		if err != nil {
			t.Fatal(err)
		}
		want(t, got, changed)
	}
	write([]string{"/etc/app/a", "/etc/app/sub/b", "/etc/app/run.sh", "/single"},
		folder("/etc/app"), folder("/etc/app/sub"), file("/etc/app/a", "A"), file("/etc/app/sub/b", "B"), script, file("/single", "1"), folder("/etc/optional"),
		tunnel.Entry{Type: tunnel.Absent, Name: "/data"}, tunnel.Entry{Type: tunnel.Variable, Name: "X"})
	want(t, tree(t, f.Root()), []string{"/ 0700", "/etc/ 0700", "/etc/app/ 0700", "/etc/app/sub/ 0700", "/etc/optional/ 0700",
		"/etc/app/a 0600 A", "/etc/app/sub/b 0600 B", "/etc/app/run.sh 0700 #!", "/single 0600 1"})

	// A file that is open goes on as it was: it is replaced, not written to.
	open, err := os.Open(filepath.Join(f.Root(), "etc/app/a"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	write([]string{"/etc/app/a", "/etc/app/sub/b", "/etc/app/run.sh", "/etc/app/sub"},
		folder("/etc/app"), file("/etc/app/a", "AA"), file("/etc/app/sub", "now a file"), file("/single", "1"))
	buf := make([]byte, 10)
	if n, _ := open.Read(buf); string(buf[:n]) != "A" {
		t.Errorf("an open file became %q", buf[:n])
	}
	want(t, tree(t, f.Root()), []string{"/ 0700", "/etc/ 0700", "/etc/app/ 0700", "/etc/app/a 0600 AA", "/etc/app/sub 0600 now a file", "/single 0600 1"})
	write(nil, folder("/etc/app"), file("/etc/app/a", "AA"), file("/etc/app/sub", "now a file"), file("/single", "1"))

	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if left := tree(t, os.Getenv("XDG_STATE_HOME")); len(left) != 2 {
		t.Errorf("left: %q", left)
	}
}

// A name that leads out of the folder leads nowhere, whoever has let it come this far.
func TestFolderKeepsInside(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	f, err := NewFolder()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Symlink(t.TempDir(), filepath.Join(f.Root(), "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/../../../../../../../../../../../../tmp/x", "/out/x"} {
		if _, err := f.Write([]tunnel.Entry{file(name, "x")}); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}

func TestUsersFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	for range 2 { // new, and then empty
		f, err := OpenFolder(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]tunnel.Entry{file("/etc/a", "A")}); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want(t, tree(t, dir), []string{"/ 0700", "/etc/ 0700", "/etc/a 0600 A"})
		if f, err := OpenFolder(dir); err == nil {
			t.Errorf("not empty, and taken: %s", f.Root())
		}
		if err := os.RemoveAll(filepath.Join(dir, "etc")); err != nil {
			t.Fatal(err)
		}
	}
}

// After SIGKILL the next bridge removes the files, and leaves those of a bridge that runs.
func TestSweepAfterAKill(t *testing.T) {
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	if err := Sweep(); err != nil { // nothing there
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	roots := map[bool]string{}
	processes := map[bool]*exec.Cmd{}
	for _, killed := range []bool{true, false} {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), holdEnv+"=1")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		roots[killed], processes[killed] = strings.TrimSpace(line), cmd
	}
	_ = processes[true].Process.Kill()
	_ = processes[true].Wait()
	if _, err := os.Stat(filepath.Join(roots[true], "etc/secret/key")); err != nil {
		t.Fatalf("the test is worth nothing: %v", err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(roots[true])); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of the killed one there is still %s: %v", roots[true], err)
	}
	if _, err := os.Stat(filepath.Join(roots[false], "etc/secret/key")); err != nil {
		t.Errorf("of the one that runs: %v", err)
	}
	_ = processes[false].Process.Kill()
	_ = processes[false].Wait()
	// A folder whose journal somebody has removed goes as well.
	if err := os.Remove(filepath.Dir(roots[false]) + journal); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := tree(t, filepath.Join(state, "bridge")); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}
