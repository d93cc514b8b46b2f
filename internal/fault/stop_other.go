//go:build !unix

package fault

import "errors"

func stop() error { return errors.ErrUnsupported }
