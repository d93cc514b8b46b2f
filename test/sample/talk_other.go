//go:build !unix

package main

import (
	"errors"
	"io"
)

// talk is for pods, and those run Linux.
func talk(io.Reader, io.Writer) error { return errors.ErrUnsupported }
