// Command push builds test/sample for both architectures and pushes its image, for tests and the demo on
// a cluster of one's own.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"bridge/internal/image"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: push IMAGE, in a registry that docker login knows")
		os.Exit(2)
	}
	pushed, err := image.Push(context.Background(), image.Program{Name: "sample", Executable: build}, os.Args[1], false)
	if err != nil {
		fmt.Fprintln(os.Stderr, "push:", err)
		os.Exit(1)
	}
	fmt.Println(pushed)
}

// build compiles the sample for one architecture.
func build(arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "bridge-sample-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "sample")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "bridge/test/sample")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("build test/sample for %s: %w", arch, err)
	}
	return os.ReadFile(file)
}
