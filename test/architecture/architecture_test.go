// Package architecture holds ARCHITECTURE.md's table of imports against the code.
package architecture

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// row is one of the table's.
type row struct {
	uses []string
	owns string
}

// sharing may import client-go's own packages.
var sharing = []string{"internal/kube", "internal/proxypod", "internal/witness", "pkg/swap"}

func TestTheTableIsTrue(t *testing.T) {
	rows, imports := table(t), packages(t)
	for name, imported := range imports {
		r, ok := rows[name]
		if !ok {
			t.Errorf("%s is not in the table", name)
			continue
		}
		var uses []string
		for _, i := range imported {
			if ours, ok := strings.CutPrefix(i, "bridge/"); ok {
				uses = append(uses, ours)
			}
			for owner, other := range rows {
				if other.owns != "" && owner != name && (i == other.owns || strings.HasPrefix(i, other.owns+"/")) {
					t.Errorf("%s imports %s, which is %s's", name, i, owner)
				}
			}
			if strings.HasPrefix(i, "k8s.io/client-go/") && !slices.Contains(sharing, name) {
				t.Errorf("%s imports %s", name, i)
			}
		}
		if !slices.Equal(uses, r.uses) {
			t.Errorf("%s uses %q, the table says %q", name, uses, r.uses)
		}
		if r.owns != "" && !slices.ContainsFunc(imported, func(i string) bool { return i == r.owns || strings.HasPrefix(i, r.owns+"/") }) {
			t.Errorf("%s does not import %s", name, r.owns)
		}
	}
	for name := range rows {
		if _, ok := imports[name]; !ok {
			t.Errorf("%s is in the table and not in the code", name)
		}
	}
}

// The pod's program stays small: no client-go, no cobra, not even by way of another package.
func TestTheProxyLinksNoClient(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "bridge/cmd/proxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(dep, "k8s.io/") || strings.HasPrefix(dep, "github.com/spf13/") {
			t.Errorf("cmd/proxy links %s", dep)
		}
	}
}

func table(t *testing.T) map[string]row {
	t.Helper()
	b, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]row{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		uses := strings.Fields(cells[3])
		slices.Sort(uses)
		rows[strings.Trim(cells[1], " `")] = row{uses: uses, owns: strings.TrimSpace(cells[4])}
	}
	return rows
}

// packages are the product's, with what they import, sorted, on Linux.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "bridge/cmd/...", "bridge/pkg/...", "bridge/internal/...")
	cmd.Env = append(os.Environ(), "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	list := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err == io.EOF {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		slices.Sort(p.Imports)
		list[strings.TrimPrefix(p.ImportPath, "bridge/")] = p.Imports
	}
}
