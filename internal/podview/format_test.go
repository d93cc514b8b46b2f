package podview

import (
	"bytes"
	"encoding/json"
	"maps"
	"os/exec"
	"strings"
	"testing"
)

// hard are values that something between here and a program likes to change.
var hard = map[string]string{
	"PLAIN": "value", "EMPTY": "", "SPACES": "  two  words ", "TAB": "a\tb", "LINES": "one\ntwo\n", "LAST": "ends with a line\n\n",
	"SINGLE": "it's", "DOUBLE": `say "hi"`, "BOTH": `it's "both"`, "DOLLAR": "$HOME ${HOME} $(id) $$", "TICK": "`id`",
	"QUOTED_DOLLAR": "it's $HOME", "BACKSLASH": `a\nb`, "BACKSLASHES": `C:\\dir`, "BACKSLASH_END": `C:\dir\`, "QUOTED_BACKSLASH": `it's \n`,
	"HASH": "a # b", "EQUALS": "a=b=c", "EXCLAMATION": "a!b!!", "GLOB": "* ? [a]", "TILDE": "~/x", "SEMICOLON": "a;b&c|d>e<f(g)",
	"CR": "a\r\nb", "UNICODE": "Grüße ☃", "ESCAPE": "\x1b[31mred", "JSON": `{"a":["b\"c"]}`, "LONG": strings.Repeat("x", 100_000), "NOT_UTF8": "a\xffb",
	"my.config": "dots", "with-dash": "dash",
}

func variables(without ...string) (list []Variable) {
	m := maps.Clone(hard)
	for _, name := range without {
		delete(m, name)
	}
	for name, value := range m {
		list = append(list, Variable{name, value})
	}
	return list
}

// Every format says a value exactly, or says in words that it does not. A real shell reads them.
func TestFormatsAreExact(t *testing.T) {
	for _, c := range []struct {
		format, script string
		left           []string
	}{
		{"shell", `eval "$(cat)"`, []string{"my.config", "with-dash"}},
		{"dotenv", `set -a; cat > "$DIR/.env"; . "$DIR/.env"`, []string{"my.config", "with-dash", "BOTH", "QUOTED_DOLLAR", "BACKSLASHES", "BACKSLASH_END", "QUOTED_BACKSLASH", "CR"}},
		// What docker does with the file: all behind the first = is the value. A shell has no variable with a dot in its name; env has.
		{"docker", `set --; while IFS= read -r line; do set -- "$@" "$line"; done; exec env "$@" env -0`, []string{"LINES", "LAST", "CR", "LONG", "NOT_UTF8"}},
	} {
		t.Run(c.format, func(t *testing.T) {
			var out bytes.Buffer
			left, err := Print(&out, c.format, variables())
			if err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(hard)
			for _, name := range c.left {
				delete(want, name)
			}
			for _, line := range left {
				name, why, _ := strings.Cut(line, ": ")
				if _, still := want[name]; still || why == "" {
					t.Errorf("left out: %q", line)
				}
			}
			if len(left) != len(c.left) {
				t.Errorf("left out %q, want %q", left, c.left)
			}
			script := c.script
			if c.format != "docker" {
				script += `; exec env -0`
			}
			sh, err := exec.LookPath("sh")
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(sh, "-c", script, sh)
			cmd.Env, cmd.Stdin = []string{"PATH=/usr/bin:/bin", "DIR=" + t.TempDir()}, &out
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, stderr.String())
			}
			have := map[string]string{}
			for e := range strings.SplitSeq(string(got), "\x00") {
				name, value, _ := strings.Cut(e, "=")
				have[name] = value
			}
			for name := range hard {
				value, ok := have[name]
				if wanted, say := want[name]; ok != say || value != wanted {
					t.Errorf("%s: %.80q (%v), want %.80q (%v)", name, value, ok, wanted, say)
				}
			}
		})
	}
}

func TestJSONIsExact(t *testing.T) {
	var out bytes.Buffer
	left, err := Print(&out, "json", variables())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 || !strings.Contains(left[0], "NOT_UTF8") {
		t.Errorf("left out: %q", left)
	}
	want := maps.Clone(hard)
	delete(want, "NOT_UTF8")
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || !maps.Equal(got, want) {
		t.Errorf("%v: %q", err, got)
	}
	if strings.Contains(out.String(), `\u003e`) {
		t.Error("> is escaped as for HTML")
	}
}

func TestUnknownFormat(t *testing.T) {
	if _, err := Print(nil, "yaml", nil); err == nil || !strings.Contains(err.Error(), "dotenv, shell, json, docker") {
		t.Errorf("%v", err)
	}
}
