//go:build !unix

package tools

import (
	"context"
	"io/fs"
)

func hold(ctx context.Context) { <-ctx.Done() }

func ownerOf(fs.FileInfo) string { return "?" }
