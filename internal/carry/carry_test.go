package carry

import (
	"bytes"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"bridge/internal/hint"
)

// join puts parts together as the mounted folder does, and refuses a name that occurs twice.
func join(t *testing.T, parts []Part, limit int) (loader, packed []byte) {
	t.Helper()
	folder := map[string][]byte{}
	for _, p := range parts {
		size := 0
		for name, data := range p.Files {
			if _, twice := folder[name]; twice {
				t.Errorf("%s is in two parts", name)
			}
			folder[name] = data
			size += len(data)
		}
		if size > limit {
			t.Errorf("part %s holds %d bytes, more than %d", p.Name, size, limit)
		}
	}
	var all bytes.Buffer
	for i := range parts {
		name := "proxy.00" + string(rune('0'+i))
		if _, ok := folder[name]; !ok {
			t.Fatalf("%s is missing", name)
		}
		all.Write(folder[name])
	}
	if len(folder) != len(parts)+1 {
		t.Errorf("%d files in %d parts", len(folder), len(parts))
	}
	return folder["loader"], all.Bytes()
}

func TestSplitKeepsEveryByteAndTheLimit(t *testing.T) {
	data := make([]byte, 50)
	for i := range data {
		data[i] = byte(i)
	}
	for limit := 6; limit < 70; limit++ {
		for size := 0; size <= len(data) && size < 10*(limit-5); size++ {
			parts, err := split([]byte("12345"), data[:size], limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(parts) > 10 {
				continue
			}
			loader, packed := join(t, parts, limit)
			if string(loader) != "12345" || !bytes.Equal(packed, data[:size]) {
				t.Errorf("limit %d, size %d: the parts hold something else", limit, size)
			}
		}
	}
}

func TestSplitRefusesWhatTheLoaderCannotName(t *testing.T) {
	if _, err := split([]byte("1234"), make([]byte, 5000), 5); err == nil {
		t.Error("5000 pieces were made; the loader counts to 999")
	}
	if _, err := split([]byte("12345"), nil, 5); err == nil {
		t.Error("a loader as large as a part was taken")
	}
}

func TestWithoutProxyTheErrorSaysWhatToRun(t *testing.T) {
	_, err := packedIn(fstest.MapFS{"bin/README": {}}, "arm64")
	if err == nil || !strings.Contains(hint.Of(err), "make") || hint.CodeOf(err) != hint.Other {
		t.Errorf("got %v, hint %q, code %d", err, hint.Of(err), hint.CodeOf(err))
	}
}

func TestUnknownArchitectureIsAUsageError(t *testing.T) {
	for _, arch := range []string{"", "s390x", "../README"} {
		if _, err := Parts(arch); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
			t.Errorf("Parts(%q): %v, code %d", arch, err, hint.CodeOf(err))
		}
	}
}

func TestPartsHoldTheProxy(t *testing.T) {
	for _, arch := range Arches {
		want, err := fs.ReadFile(files, "bin/proxy_linux_"+arch+".gz")
		if err != nil {
			if _, err := Parts(arch); hint.Of(err) == "" {
				t.Errorf("Parts without a proxy: %v", err)
			}
			t.Skip("no proxy in bin: make build makes it")
		}
		parts, err := Parts(arch)
		if err != nil {
			t.Fatal(err)
		}
		loader, packed := join(t, parts, MaxPart)
		if !bytes.Equal(packed, want) {
			t.Errorf("%s: the pieces are not the packed proxy", arch)
		}
		for what, executable := range map[string][]byte{"loader": loader, "proxy": must(Proxy(arch))} {
			if !bytes.HasPrefix(executable, []byte("\x7fELF")) {
				t.Errorf("%s: the %s is no ELF executable", arch, what)
			}
		}
		t.Logf("%s: %d parts, %d bytes", arch, len(parts), len(packed))
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
