//go:build linux

package carry

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// unshared runs script in new namespaces of the kinds given, with arguments $1, $2, ...
func unshared(t *testing.T, kinds []string, script string, args ...string) (output string, err error) {
	t.Helper()
	c := exec.Command("unshare", append(append(kinds, "sh", "-euc", script, "sh"), args...)...)
	out, err := c.CombinedOutput()
	return string(out), err
}

// realProxy puts the loader and the carried proxy for m into a new folder.
func realProxy(t *testing.T, m machine) (path string) {
	t.Helper()
	parts, err := Parts(m.arch)
	if err != nil {
		t.Skipf("%v: make build packs it", err)
	}
	path = m.install(t)
	for _, p := range parts {
		for name, data := range p.Files {
			if name == "loader" {
				continue
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), data, 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
	return path
}

func TestLoaderStartsTheRealProxy(t *testing.T) {
	m := machine{arch: runtime.GOARCH}
	code, stdout, stderr := m.run(t, realProxy(t, m), nil, "--version")
	if code != 0 || !strings.HasPrefix(stdout, "proxy ") || stderr != "" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

// The kernel starts what an emulated loader executes with the emulator again, if it is told so: here only
// to a user namespace, so that the machine's own settings stay as they are.
func TestLoaderStartsTheRealProxyUnderEmulation(t *testing.T) {
	const register = `mount -t binfmt_misc binfmt_misc "$2"
printf '%s' ':q:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$1"':FPO' >"$2/register"
`
	for _, m := range machines(t) {
		if m.arch != "arm64" || m.qemu == "" {
			continue
		}
		kinds := []string{"--user", "--map-root-user", "--mount"}
		if out, err := unshared(t, kinds, register, m.qemu, t.TempDir()); err != nil {
			t.Skipf("this kernel registers no emulator for a user namespace (Linux 6.7 does): %v, %s", err, out)
		}
		out, err := unshared(t, kinds, register+`exec "$3" --version`, m.qemu, t.TempDir(), realProxy(t, m))
		if err != nil || !strings.HasPrefix(out, "proxy ") {
			t.Errorf("%v, %q", err, out)
		}
	}
}

// vm.memfd_noexec belongs to a PID namespace: 1 asks programs to say that they will execute, 2 forbids it.
func TestLoaderWhereMemoryIsNotExecutable(t *testing.T) {
	kinds := []string{"--pid", "--fork", "--mount-proc"}
	if os.Getuid() != 0 {
		t.Skip("needs root, to set vm.memfd_noexec for a PID namespace")
	}
	if out, err := unshared(t, kinds, "echo 2 >/proc/sys/vm/memfd_noexec"); err != nil {
		t.Skipf("vm.memfd_noexec cannot be set here: %v, %s", err, out)
	}
	m := machine{arch: runtime.GOARCH}
	path := m.install(t)
	pieces(t, path, own(t))
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, ".bridge-proxy"), []byte("left by a killed loader"), 0o400); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		level, folder string
		starts        bool
		words         string
	}{
		{"1", "", true, ""},
		{"2", "", false, "bridge loader: create a file in memory: permission denied (errno 13); let the node"},
		{"2", folder, true, ""},
		{"2", "/proc", false, "bridge loader: create /proc/.bridge-proxy: "},
		{"2", filepath.Join(folder, "missing"), false, "no such file or directory (errno 2)"},
	} {
		out, err := unshared(t, kinds, `echo "$1" >/proc/sys/vm/memfd_noexec; export BRIDGE_LOADER_DIR="$2" `+payloadEnv+`=1; exec "$3" argument`,
			c.level, c.folder, path)
		started := strings.Contains(out, `"argument"]`) // and exits with 7; the loader with 1
		if started != c.starts || !strings.Contains(out, c.words) || err == nil {
			t.Errorf("level %s, folder %q: %v, %q", c.level, c.folder, err, out)
		}
	}
	left, err := os.ReadDir(folder)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}
