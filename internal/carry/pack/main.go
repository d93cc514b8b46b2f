// Command pack builds cmd/proxy for every architecture that bridge carries and leaves the compressed
// executables in internal/carry/bin, where internal/carry embeds them. make build runs it before it
// builds bridge; `go run ./internal/carry/pack` does the same by hand, from anywhere in the module.
package main

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

func main() {
	version := flag.String("version", "", "what `proxy --version` prints (default: devel)")
	out := flag.String("o", "", "the folder to write into (default: internal/carry/bin)")
	flag.Parse()
	if err := pack(*out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

// pack builds and compresses the proxies into dir. Files whose content is as before are left alone.
func pack(dir, version string) error {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "bridge").Output()
	if err != nil {
		return fmt.Errorf("find the module's folder: %w", err)
	}
	module := strings.TrimSpace(string(root))
	if dir == "" {
		dir = filepath.Join(module, "internal", "carry", "bin")
	}
	scratch, err := os.MkdirTemp("", "bridge-pack-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }()

	for _, arch := range [...]string{"amd64", "arm64"} {
		executable := filepath.Join(scratch, "proxy_"+arch)
		if err := build(module, executable, arch, version); err != nil {
			return fmt.Errorf("build the proxy for linux/%s: %w", arch, err)
		}
		plain, err := os.ReadFile(executable)
		if err != nil {
			return err
		}
		packed, err := compress(plain)
		if err != nil {
			return err
		}
		name := filepath.Join(dir, "proxy_linux_"+arch+".gz")
		if before, err := os.ReadFile(name); err == nil && bytes.Equal(before, packed) {
			continue
		}
		if err := os.WriteFile(name, packed, 0o644); err != nil {
			return err
		}
		fmt.Printf("%s: %.1f MB, %.1f MB packed\n", filepath.Base(name), megabytes(plain), megabytes(packed))
	}
	return nil
}

// build makes a static executable without symbols, paths or build id in it.
func build(module, out, arch, version string) error {
	ldflags := "-s -w -buildid="
	if version != "" {
		ldflags += " -X main.version=" + version
	}
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", out, "./cmd/proxy")
	c.Dir = module
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	c.Stdout, c.Stderr = os.Stderr, os.Stderr
	return c.Run()
}

// compress writes what the loader reads: one gzip member, no name, no time.
func compress(plain []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(plain); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func megabytes(b []byte) float64 { return float64(len(b)) / 1e6 }
