package kube

import "syscall"

// errnoRefused has Winsock's number too: Go's ECONNREFUSED is an invented one there.
var errnoRefused = []syscall.Errno{syscall.ECONNREFUSED, 10061}
