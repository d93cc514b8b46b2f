package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"bridge/internal/child"
	"bridge/internal/hint"
	"bridge/internal/kube"
)

func exitStatus(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}

// A hint's command goes to the cluster that the user has chosen, also one of a package that does not know which that is.
func TestHintsGoToTheChosenCluster(t *testing.T) {
	var out bytes.Buffer
	a := newApp(strings.NewReader(""), &out, &out)
	*a.flags.Context = "staging"
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "", errors.New(`User "ada" cannot list resource "pods" in API group "" in the namespace "shop"`))
	a.exitCode(kube.Explain(forbidden, "list pods"), nil)
	if want := "kubectl auth --context staging can-i list pods -n shop\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestExitCodeIsTheSignalsUnlessCleaningUpFailed(t *testing.T) {
	interrupted := signalError{syscall.SIGINT}
	for _, c := range []struct {
		err, cause error
		code       int
		stderr     string
	}{
		{nil, nil, 0, ""},
		{errors.New("no"), nil, 1, "bridge: no\n"},
		{hint.Newf(hint.Conflict, "ask jane", "held"), nil, 6, "bridge: held\n  hint: ask jane\n"},
		{errors.Join(&fs.PathError{Op: "open", Path: "/etc/\x1b[2Ja", Err: fs.ErrPermission}, errors.New("no")), nil, 1, "bridge: open /etc/[2Ja: permission denied\nno\n"},
		{nil, interrupted, 130, ""},
		{fmt.Errorf("wait: %w", context.Canceled), interrupted, 130, ""},
		{interrupted, interrupted, 130, ""},
		{nil, signalError{syscall.SIGTERM}, 143, ""},
		{nil, signalError{syscall.SIGHUP}, 129, ""},
		{errors.New("no"), interrupted, 130, "bridge: no\n"},
		{hint.Newf(hint.RestoreIncomplete, "", "left"), interrupted, 9, "bridge: left\n"},
		// A program's end is no error of ours, unless it came too early; and no reason to be silent about what is left.
		{&child.ExitError{Code: 3}, nil, 3, ""},
		{&child.ExitError{}, nil, 0, ""},
		{fmt.Errorf("early: %w", &child.ExitError{Code: 3}), nil, 3, "bridge: early: the program has ended with exit code 3\n"},
		{fmt.Errorf("early: %w", &child.ExitError{}), nil, 1, "bridge: early: the program has ended with exit code 0\n"},
		{hint.New(hint.RestoreIncomplete, fmt.Errorf("%w, and left", &child.ExitError{Code: 3}), ""), nil, 9, "bridge: the program has ended with exit code 3, and left\n"},
	} {
		var out bytes.Buffer
		a := newApp(strings.NewReader(""), &out, &out)
		if got := a.exitCode(c.err, c.cause); got != c.code || out.String() != c.stderr {
			t.Errorf("%v, %v: exit %d, stderr %q; want %d, %q", c.err, c.cause, got, out.String(), c.code, c.stderr)
		}
	}
}
