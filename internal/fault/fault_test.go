//go:build unix

package fault

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestMain is the process that a fault befalls when one is asked for.
func TestMain(m *testing.M) {
	if os.Getenv(Env) == "" {
		os.Exit(m.Run())
	}
	if err := After(Claimed, After(PlanRead, nil)); err != nil {
		fmt.Println(err)
		os.Exit(3)
	}
	fmt.Println("it goes on")
	os.Exit(0)
}

func befallen(asked string) (*exec.Cmd, *strings.Builder) {
	cmd, out := exec.Command(os.Args[0]), &strings.Builder{}
	cmd.Env = append(os.Environ(), Env+"="+asked)
	cmd.Stdout = out
	return cmd, out
}

func TestActions(t *testing.T) {
	for _, c := range []struct {
		asked, says string
		code        int
	}{
		{"apply.claimed:error", "asks for an error at apply.claimed", 3},
		{"apply.claimed:pause", "there are POINT:kill", 3},
		{"apply.ready:kill", "it goes on", 0},
		{"apply.claimed:kill", "", -1},
	} {
		cmd, out := befallen(c.asked)
		err := cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(out.String(), c.says) {
			t.Errorf("%s: %v, it said %q", c.asked, err, out)
		}
		if c.code < 0 && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("%s: %v", c.asked, err)
		}
	}
}

func TestStopGoesOn(t *testing.T) {
	cmd, out := befallen("apply.claimed:stop")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(cmd.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("%v: status %#x", err, status)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "it goes on") {
		t.Errorf("%v: it said %q", err, out)
	}
}

func TestAfterKeepsTheStepsError(t *testing.T) {
	t.Setenv(Env, string(Claimed)+":error")
	failed := errors.New("the step failed")
	if err := After(Claimed, failed); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

func TestPointsAreAllThereAre(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []Point
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok {
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Point" {
				name, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				declared = append(declared, Point(name))
			}
		}
		return true
	})
	if listed := slices.Concat(Points(), KeeperPoints(), SharingPoints(), StandbyPoints()); len(declared) == 0 || !slices.Equal(declared, listed) {
		t.Errorf("declared are %q\nlisted are %q", declared, listed)
	}
}
