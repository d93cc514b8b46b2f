//go:build linux

package carry

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// payloadEnv turns the test binary into the payload of a loader: it prints what it was started with.
const payloadEnv = "BRIDGE_TEST_PAYLOAD"

func TestMain(m *testing.M) {
	if os.Getenv(payloadEnv) != "" {
		fmt.Printf("%q\n%q\n", os.Args, os.Environ())
		os.Exit(7)
	}
	os.Exit(m.Run())
}

// machine runs the loader of one architecture, an other one than ours under qemu's emulation.
type machine struct {
	arch string
	qemu string
}

// machines returns those that can run here. BRIDGE_TEST_LOADER replaces ours (a sanitized build, say).
func machines(t testing.TB) []machine {
	all := []machine{{arch: runtime.GOARCH}}
	for arch, emulator := range map[string]string{"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"} {
		if arch == runtime.GOARCH {
			continue
		}
		path, err := exec.LookPath(emulator)
		if err != nil {
			t.Logf("the loader for %s is not run: no %s (Debian: qemu-user-static)", arch, emulator)
			continue
		}
		all = append(all, machine{arch, path})
	}
	return all
}

// install puts the loader into a new folder and returns its path.
func (m machine) install(t testing.TB) string {
	t.Helper()
	executable, err := files.ReadFile("loader/loader_" + m.arch)
	if err != nil {
		t.Fatal(err)
	}
	if path := os.Getenv("BRIDGE_TEST_LOADER"); path != "" && m.qemu == "" {
		if executable, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "loader")
	if err := os.WriteFile(path, executable, 0o555); err != nil {
		t.Fatal(err)
	}
	return path
}

// run starts the loader at path with env alone and returns its exit status and output.
func (m machine) run(t testing.TB, path string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	c := exec.Command(path, args...)
	if m.qemu != "" {
		c = exec.Command(m.qemu, append([]string{path}, args...)...)
	}
	c.Env = env
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if c.ProcessState.ExitCode() < 0 {
		t.Fatalf("the loader died: %v; %s", err, errs.String())
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// pieces writes stream beside the loader at path, cut at the given offsets.
func pieces(t testing.TB, path string, stream []byte, cuts ...int) {
	t.Helper()
	old, err := filepath.Glob(filepath.Join(filepath.Dir(path), "proxy.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	from := 0
	for i, to := range append(cuts, len(stream)) {
		name := fmt.Sprintf("%s/proxy.%03d", filepath.Dir(path), i)
		if err := os.WriteFile(name, stream[from:to], 0o444); err != nil {
			t.Fatal(err)
		}
		from = to
	}
}

var checkEnv = []string{"BRIDGE_LOADER_CHECK=1"}

// accepts has the loader at path check what lies beside it. The loader compares size and CRC-32 with those
// that compress/gzip took of the original, so "ok" means: the same bytes.
func (m machine) accepts(t testing.TB, path string, size int) {
	t.Helper()
	code, stdout, stderr := m.run(t, path, checkEnv)
	if want := fmt.Sprintf("ok %d\n", size); code != 0 || stdout != want || stderr != "" {
		t.Errorf("%s: exit %d, %q, %q; want %q", m.arch, code, stdout, stderr, want)
	}
}

// refuses has the loader at path fail with one line that contains words.
func (m machine) refuses(t testing.TB, path string, env []string, words string) {
	t.Helper()
	code, stdout, stderr := m.run(t, path, env)
	if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "bridge loader: ") ||
		strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, words) {
		t.Errorf("%s: exit %d, %q, %q; want one line with %q", m.arch, code, stdout, stderr, words)
	}
}

func packLevel(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// samples are data that make different blocks: stored, fixed and dynamic codes, long and short distances.
func samples(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 200_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 300_000) // code lengths up to the limit of 15 bits
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 12)
	}
	source, err := os.ReadFile("loader/loader.c")
	if err != nil {
		t.Fatal(err)
	}
	far := append(bytes.Clone(random[:32768]), random[:32768]...) // the largest distance, 32768
	return map[string][]byte{
		"empty": {}, "one byte": {'x'}, "short text": []byte("bridge bridge bridge"), "one value": bytes.Repeat([]byte{'a'}, 100_000),
		"random": random, "skewed": skewed, "source": source, "far": far,
		"one window": random[:32768], "a window and a byte": random[:32769],
		"mixed": bytes.Join([][]byte{source, random, source, skewed, far, source}, nil),
	}
}

func TestLoaderUnpacksWhatGzipPacks(t *testing.T) {
	for _, m := range machines(t) {
		path := m.install(t)
		for name, data := range samples(t) {
			for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
				if m.qemu != "" && level > gzip.BestSpeed && level < gzip.BestCompression {
					continue // emulation is slow, and the kinds of block are the same
				}
				t.Run(fmt.Sprintf("%s/%s/%d", m.arch, name, level), func(t *testing.T) {
					pieces(t, path, packLevel(t, data, level))
					m.accepts(t, path, len(data))
				})
			}
		}
	}
}

func TestLoaderJoinsPiecesCutAnywhere(t *testing.T) {
	for _, m := range machines(t) {
		path := m.install(t)
		text := []byte("a piece may end in the middle of a header, a code, a length, or the checksum; a piece may end")
		stream := packLevel(t, text, gzip.BestCompression)
		for cut := range len(stream) + 1 {
			pieces(t, path, stream, cut)
			m.accepts(t, path, len(text))
		}
		every := make([]int, len(stream))
		for i := range every {
			every[i] = i
		}
		pieces(t, path, stream, every...) // an empty one, and one for each byte
		m.accepts(t, path, len(text))

		data := samples(t)["mixed"]
		stream = packLevel(t, data, gzip.DefaultCompression)
		for _, size := range []int{1 << 10, 64 << 10, 64<<10 - 1, 64<<10 + 1} { // the loader reads 64 KiB at a time
			var cuts []int
			for at := size; at < len(stream); at += size {
				cuts = append(cuts, at)
			}
			pieces(t, path, stream, cuts...)
			m.accepts(t, path, len(data))
		}
	}
}

func TestLoaderRefusesEveryTruncation(t *testing.T) {
	for _, m := range machines(t) {
		path := m.install(t)
		for _, level := range []int{gzip.NoCompression, gzip.BestCompression} {
			stream := packLevel(t, []byte("cut me anywhere, cut me anywhere, and I must not start"), level)
			for n := range stream {
				pieces(t, path, stream[:n])
				m.refuses(t, path, checkEnv, "damaged: it ends too early")
			}
		}
	}
}

func TestLoaderRefusesAMissingPiece(t *testing.T) {
	data := samples(t)["mixed"]
	stream := packLevel(t, data, gzip.BestCompression)
	for _, m := range machines(t) {
		path := m.install(t)
		m.refuses(t, path, nil, "open "+filepath.Dir(path)+"/proxy.000: no such file or directory (errno 2)")
		for piece := range 3 {
			pieces(t, path, stream, 1000, 50_000)
			if err := os.Remove(fmt.Sprintf("%s/proxy.%03d", filepath.Dir(path), piece)); err != nil {
				t.Fatal(err)
			}
			words := "damaged"
			if piece == 0 {
				words = "proxy.000: no such file"
			}
			m.refuses(t, path, checkEnv, words)
		}
	}
}

func TestLoaderRefusesOtherGzipFiles(t *testing.T) {
	data := []byte("what the packer does not write, the loader does not read")
	good := packLevel(t, data, gzip.BestCompression)
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, c := range map[string]struct {
		stream []byte
		words  string
	}{
		"two members":      {append(bytes.Clone(good), good...), "bytes follow its end"},
		"a byte too many":  {append(bytes.Clone(good), 0), "bytes follow its end"},
		"a name":           {changed(3, 8), "does not start as a plain gzip file"},
		"no gzip":          {[]byte("\x7fELF0000000000000000000000"), "does not start as a plain gzip file"},
		"checksum":         {changed(len(good)-8, good[len(good)-8]^1), "checksum"},
		"size":             {changed(len(good)-1, 1), "size"},
		"unknown block":    {changed(10, good[10]|6), "block of unknown kind"},
		"larger than said": {packLevel(t, make([]byte, 64<<20+1), gzip.BestSpeed), "more than 64 MiB"},
	} {
		for _, m := range machines(t) {
			t.Run(m.arch+"/"+name, func(t *testing.T) {
				path := m.install(t)
				pieces(t, path, c.stream, 9)
				m.refuses(t, path, checkEnv, c.words)
			})
		}
	}
}

// valid tells by compress/gzip what the loader must say of stream, and whether it is a case they share.
func valid(stream []byte) (size int, ok bool) {
	if !bytes.HasPrefix(stream, []byte{0x1f, 0x8b, 8, 0}) {
		return 0, false
	}
	rest := bytes.NewReader(stream)
	z, err := gzip.NewReader(rest)
	if err != nil {
		return 0, false
	}
	z.Multistream(false)
	n, err := io.Copy(io.Discard, io.LimitReader(z, 64<<20+1))
	return int(n), err == nil && n <= 64<<20 && rest.Len() == 0
}

// agree checks that the loader accepts exactly what compress/gzip accepts, with the same bytes.
func (m machine) agree(t testing.TB, path string, stream []byte, cut int) {
	t.Helper()
	pieces(t, path, stream, cut%(len(stream)+1))
	if size, ok := valid(stream); ok {
		m.accepts(t, path, size)
	} else {
		m.refuses(t, path, checkEnv, "damaged")
	}
}

func TestLoaderAgreesWithGzipOnDamagedStreams(t *testing.T) {
	const rounds = 1200 // a few milliseconds each; FuzzLoader goes on from here
	r := rand.New(rand.NewPCG(3, 4))
	all := samples(t)
	var streams [][]byte
	for _, name := range []string{"empty", "one byte", "short text", "one value", "source", "skewed"} {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.BestCompression} {
			streams = append(streams, packLevel(t, all[name][:min(len(all[name]), 20_000)], level))
		}
	}
	for _, m := range machines(t) {
		path := m.install(t)
		n := rounds
		if m.qemu != "" {
			n /= 6 // emulation is slow, and the C code the same
		}
		for range n {
			stream := bytes.Clone(streams[r.IntN(len(streams))])
			for range 1 + r.IntN(3) {
				at := r.IntN(min(len(stream), 1+r.IntN(len(stream)))) // the first bytes, with the codes, more often
				switch r.IntN(4) {
				case 0:
					stream[at] = byte(r.Uint32())
				case 1:
					stream[at] ^= 1 << r.IntN(8)
				case 2:
					stream = append(stream[:at], stream[at+1:]...)
				case 3:
					stream = append(stream[:at], append([]byte{byte(r.Uint32())}, stream[at:]...)...)
				}
			}
			m.agree(t, path, stream, r.IntN(len(stream)+1))
			if t.Failed() {
				t.Fatalf("stream: %x", stream)
			}
		}
	}
}

func FuzzLoader(f *testing.F) {
	for _, data := range samples(f) {
		for _, level := range []int{gzip.HuffmanOnly, gzip.NoCompression, gzip.BestSpeed, gzip.BestCompression} {
			f.Add(packLevel(f, data[:min(len(data), 2000)], level), uint16(11))
		}
	}
	m := machine{arch: runtime.GOARCH}
	path := m.install(f)
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		m.agree(t, path, stream, int(cut))
	})
}

// own returns a packed executable that prints its arguments and environment: this test.
func own(t testing.TB) []byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	executable, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	return packLevel(t, executable, gzip.BestSpeed)
}

func TestLoaderPassesArgumentsAndEnvironment(t *testing.T) {
	m := machine{arch: runtime.GOARCH}
	path := m.install(t)
	pieces(t, path, own(t), 100_000, 900_000)
	env := []string{"B=2 2", "A=", "BRIDGE_LOADER=no", payloadEnv + "=1", "BRIDGE_LOADER_CHECK="}
	for _, folder := range []string{"", t.TempDir()} {
		env := append(env[:len(env):len(env)], "BRIDGE_LOADER_DIR="+folder)
		code, stdout, stderr := m.run(t, path, env, "--client", "a b", "", "é")
		want := fmt.Sprintf("%q\n%q\n", []string{path, "--client", "a b", "", "é"}, env)
		if code != 7 || stdout != want || stderr != "" {
			t.Errorf("exit %d, %s, %s; want exit 7, %s", code, stdout, stderr, want)
		}
	}
}

func TestLoaderSaysWhyItCannotExecute(t *testing.T) {
	for _, m := range machines(t) {
		path := m.install(t)
		pieces(t, path, packLevel(t, []byte("no executable"), gzip.BestSpeed))
		if m.qemu == "" { // an emulator answers for itself
			m.refuses(t, path, nil, "execute from memory: exec format error (errno 8)\n")
		}
	}
}

func TestLoaderIsSmallAndFreestanding(t *testing.T) {
	for _, arch := range Arches {
		path := machine{arch: arch}.install(t)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 12<<10 {
			t.Errorf("%s: %d bytes", arch, info.Size())
		}
		f, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		stack := false
		for _, p := range f.Progs {
			switch p.Type {
			case elf.PT_LOAD:
				if p.Flags&elf.PF_W != 0 && p.Flags&elf.PF_X != 0 {
					t.Errorf("%s: a segment is writable and executable", arch)
				}
				if p.Filesz == 0 {
					t.Errorf("%s: a segment has no byte in the file, which kernels before 6.6 do not load", arch)
				}
			case elf.PT_GNU_STACK:
				stack = p.Flags&elf.PF_X == 0
			default:
				t.Errorf("%s: a segment of type %s", arch, p.Type)
			}
		}
		if !stack {
			t.Errorf("%s: the stack is executable", arch)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
