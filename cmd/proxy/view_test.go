//go:build unix

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"bridge/pkg/tunnel"
)

// kubeletVolume writes files as the kubelet does: in a folder of that time, behind two links. A volume that is there changes at once.
func kubeletVolume(t *testing.T, dir, at string, files map[string]string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		path := filepath.Join(dir, at, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, []byte(text), 0o640))
	}
	must(os.Symlink(at, filepath.Join(dir, "..data_tmp")))
	must(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		if _, err := os.Lstat(filepath.Join(dir, top)); err != nil {
			must(os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top)))
		}
	}
}

// The proxy tells its own environment, and the files of the target's volumes, resolved; what it cannot tell, it names.
func TestProxyTellsWhatTheContainerSees(t *testing.T) {
	dir := t.TempDir()
	config, single, volume := filepath.Join(dir, "config"), filepath.Join(dir, "single.conf"), filepath.Join(dir, "account")
	if err := os.Mkdir(config, 0o755); err != nil {
		t.Fatal(err)
	}
	kubeletVolume(t, config, "..2026_1", map[string]string{"a.conf": "A", "deep/er/b": "\x00\x01", "token": "secret"})
	kubeletVolume(t, volume, "..2026_1", map[string]string{"token": "secret", "ca.crt": "CA"})
	big, err := os.Create(filepath.Join(config, "big"))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = big.Truncate(tunnel.MaxViewFiles), big.Close()
	for _, err := range []error{
		os.WriteFile(single, []byte("one"), 0o755),
		os.Symlink("../single.conf", filepath.Join(config, "outside")),
		os.Symlink("..data/gone", filepath.Join(config, "dangling")),
		os.Symlink(".", filepath.Join(config, "loop")),
		syscall.Mkfifo(filepath.Join(config, "fifo"), 0o600),
		os.Mkdir(filepath.Join(config, "empty"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("GREETING", "two\nlines=")
	t.Setenv("BRIDGE_LOADER_DIR", "/tmp")
	p := start(t, "", "--files", config, "--files", single, "--files", volume, "--files", filepath.Join(dir, "none"),
		"--files", filepath.Join(config, "deep"), "--absent", "/data:a claim: big", "--absent", filepath.Join(config, "empty")+":an emptyDir",
		"--token", filepath.Join(config, "token")+":https://vault", "--token", filepath.Join(volume, "token")+":", "--token", filepath.Join(dir, "none/token")+":")
	v, err := p.laptop.View(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	kinds := map[tunnel.EntryType]string{tunnel.Folder: "folder", tunnel.File: "file", tunnel.Absent: "absent", tunnel.Token: "token"}
	for _, e := range v.Entries {
		name := strings.TrimPrefix(e.Name, dir)
		switch {
		case e.Type == tunnel.Variable && (e.Name == "GREETING" || strings.HasPrefix(e.Name, "BRIDGE_LOADER")):
			got["$"+e.Name] = string(e.Data)
		case e.Type == tunnel.Variable:
		case strings.HasPrefix(name, "/config/loop/"): // as deep as is allowed
		case got[name] != "":
			t.Errorf("%s is told twice", name)
		default:
			got[name] = kinds[e.Type] + " " + string(e.Data)
		}
	}
	want := map[string]string{
		"$GREETING": "two\nlines=", "/data": "absent a claim: big", "/config/empty": "absent an emptyDir",
		"/config/token": "token https://vault", "/account/token": "token ",
		"/config": "folder ", "/config/a.conf": "file A", "/config/deep": "folder ", "/config/deep/er": "folder ", "/config/deep/er/b": "file \x00\x01",
		"/config/big": "absent all files together have more than 64 MiB", "/config/outside": "absent path escapes from parent",
		"/config/fifo": "absent it is not a file", "/config/loop": "folder ",
		"/single.conf": "file one", "/account": "folder ", "/account/ca.crt": "file CA",
	}
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%s: %q, want %q", name, got[name], text)
		}
		delete(got, name)
	}
	for name, text := range got {
		t.Errorf("%s: %.80q is told", name, text)
	}

	// A change as the kubelet makes it arrives; without one nothing does.
	if again, err := p.laptop.View(t.Context(), v.Sum); err != nil || again != nil {
		t.Errorf("unchanged: %v, %v", again, err)
	}
	kubeletVolume(t, config, "..2026_2", map[string]string{"a.conf": "B"})
	again, err := p.laptop.View(t.Context(), v.Sum)
	if err != nil || again == nil {
		t.Fatalf("changed: %v, %v", again, err)
	}
	for _, e := range again.Entries {
		if e.Type == tunnel.File && e.Name == filepath.Join(config, "a.conf") && !bytes.Equal(e.Data, []byte("B")) {
			t.Errorf("still %q", e.Data)
		}
	}
	p.term()
}
