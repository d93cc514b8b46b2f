//go:build !unix

package private

import (
	"errors"
	"os"
)

// Who may read a file is another matter here, and not looked into: nothing is kept.

func makeFolder(string) error                   { return errors.ErrUnsupported }
func openPrivate(string, int) (*os.File, error) { return nil, errors.ErrUnsupported }

// SyncFolder has nothing to do.
func SyncFolder(string) error { return nil }

func lock(*os.File) error { return errors.ErrUnsupported }
