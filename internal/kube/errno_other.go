//go:build !windows

package kube

import "syscall"

var errnoRefused = []syscall.Errno{syscall.ECONNREFUSED}
