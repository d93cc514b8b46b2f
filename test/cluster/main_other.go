//go:build !linux

package main

import (
	"fmt"
	"io"
	"runtime"
)

func dispatch(string, options, []string, io.Writer, io.Writer) error {
	return fmt.Errorf("this needs Linux (network namespaces, cgroups, overlayfs), not %s; use a Linux machine, or KUBECONFIG with a cluster you have", runtime.GOOS)
}
