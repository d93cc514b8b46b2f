//go:build linux

package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// programs are the built files a cluster starts from. They live in the user's cache folder, named by
// the hash of their sources, so that a fresh clone with the same sources builds nothing.
type programs struct {
	Kubernetes string // every component, see folder kubernetes
	CoreDNS    string
	Pause      string
}

// target is one program to build.
type target struct {
	name    string
	folder  string // of the package or the module, in the source folder
	pkg     string // to build; empty: the one in folder
	modfile string // in folder; empty: go.mod
	ldflags string
	cold    string // how long a build takes with nothing cached, on two cores
	sources []string
}

func targets(kubernetes string) []target {
	modfile := "go-" + kubernetes + ".mod"
	if kubernetes == versions[0] {
		modfile = "go.mod"
	}
	part := strings.Split(kubernetes, ".")
	const version = "k8s.io/component-base/version."
	return []target{
		{
			name:    "kubernetes " + kubernetes,
			folder:  "kubernetes",
			modfile: modfile,
			ldflags: fmt.Sprintf("-s -w -X %[1]sgitVersion=v%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X %[1]sgitTreeState=clean",
				version, kubernetes, part[0], part[1]),
			cold:    "5 to 10 minutes",
			sources: []string{"main.go", modfile, strings.TrimSuffix(modfile, ".mod") + ".sum"},
		},
		{
			name: "coredns", folder: "coredns", ldflags: "-s -w", cold: "2 minutes",
			sources: []string{"main.go", "go.mod", "go.sum"},
		},
		{
			name: "pause", folder: "pause", ldflags: "-s -w", cold: "10 seconds",
			sources: []string{"main.go"},
		},
	}
}

// build returns the programs of one Kubernetes release, built from the sources in folder source where
// the cache does not have them. It says on progress what it builds and how long that takes.
func build(source, kubernetes string, progress io.Writer) (programs, error) {
	cache, err := cacheFolder()
	if err != nil {
		return programs{}, err
	}
	var built [3]string
	for i, t := range targets(kubernetes) {
		if built[i], err = t.build(source, cache, progress); err != nil {
			return programs{}, err
		}
	}
	return programs{Kubernetes: built[0], CoreDNS: built[1], Pause: built[2]}, nil
}

// cacheFolder is where built programs are.
func cacheFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("cache folder: %w", err)
	}
	cache = filepath.Join(cache, "bridge-cluster")
	return cache, os.MkdirAll(cache, 0o755)
}

func (t target) build(source, cache string, progress io.Writer) (string, error) {
	folder := filepath.Join(source, t.folder)
	hash := sha256.New()
	fmt.Fprintln(hash, t.name, t.ldflags, runtime.Version(), runtime.GOARCH)
	for _, s := range t.sources {
		content, err := os.ReadFile(filepath.Join(folder, s))
		if err != nil {
			return "", fmt.Errorf("build %s: %w", t.name, err)
		}
		fmt.Fprintln(hash, s, len(content))
		hash.Write(content)
	}
	file := filepath.Join(cache, hex.EncodeToString(hash.Sum(nil))[:16], t.folder)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	// Two builds at once would compile everything twice. What is built already does not wait for them.
	unlock, err := lock(cache, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	args := []string{"build", "-trimpath", "-ldflags", t.ldflags, "-o", file + ".part"}
	if t.modfile != "" {
		args = append(args, "-modfile="+t.modfile)
	}
	cmd := exec.Command("go", append(args, cmp.Or(t.pkg, "."))...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	fmt.Fprintf(progress, "building %s (once; %s from nothing, seconds from a warm Go cache)\n", t.name, t.cold)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("build %s: %w", t.name, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			fmt.Fprintf(progress, "building %s: %s so far\n", t.name, time.Since(start).Round(time.Second))
		case err := <-done:
			if err != nil {
				return "", fmt.Errorf("build %s: %w\n%s", t.name, err, strings.TrimSpace(output.String()))
			}
			fmt.Fprintf(progress, "built %s in %s\n", t.name, time.Since(start).Round(time.Second))
			return file, os.Rename(file+".part", file)
		}
	}
}

// sourceFolder is where this program's sources are: what --source says, else where it was compiled,
// else the folder test/cluster of the clone around the working directory.
func sourceFolder(said string) (string, error) {
	isSource := func(dir string) bool {
		content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		return err == nil && strings.HasPrefix(string(content), "module bridge/test/cluster\n")
	}
	if said != "" {
		if !isSource(said) {
			return "", fmt.Errorf("--source %s: no go.mod of bridge/test/cluster there", said)
		}
		return filepath.Abs(said)
	}
	if _, file, _, ok := runtime.Caller(0); ok && isSource(filepath.Dir(file)) {
		return filepath.Dir(file), nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		for _, d := range []string{dir, filepath.Join(dir, "test", "cluster")} {
			if isSource(d) {
				return d, nil
			}
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("the sources of test/cluster are not around the working directory; name the folder with --source")
		}
	}
}

// lock holds an exclusive lock on a folder until unlock is called or the process ends, and waits for
// whoever holds it. A lock on the folder itself leaves no lock file behind.
func lock(folder string, progress io.Writer) (unlock func(), err error) {
	for {
		f, err := os.Open(folder)
		if err != nil {
			return nil, fmt.Errorf("lock: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			fmt.Fprintf(progress, "waiting for another cluster command to finish (it holds %s)\n", folder)
			err = flockWait(int(f.Fd()))
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", folder, err)
		}
		// Whoever held it may have removed the folder, and somebody made it anew.
		held, err1 := f.Stat()
		now, err2 := os.Stat(folder)
		if err1 == nil && err2 == nil && os.SameFile(held, now) {
			return func() { f.Close() }, nil
		}
		f.Close()
		if err2 != nil {
			return nil, fmt.Errorf("lock: %w", err2)
		}
	}
}

// flockWait blocks until the lock is free. A signal the Go runtime sends itself may interrupt it.
func flockWait(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
