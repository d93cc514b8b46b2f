package route

import (
	"encoding/json"
	"slices"
	"testing"

	"bridge/internal/hint"
)

// A choice is the same after it went through a command line or JSON, however its flags were ordered.
func TestChoicesKeep(t *testing.T) {
	for _, c := range []struct {
		headers []string
		path    string
		mirror  bool
		args    []string
		text    string
	}{
		{nil, "", false, nil, "all requests"},
		{nil, "", true, []string{"--mirror"}, "--mirror"},
		{nil, "/api", false, []string{"--path", "/api"}, "--path /api"},
		{[]string{"X-B= ", "x-a=1=2", "X-A=1=2"}, "", false, nil, ""},
		{[]string{"X-B=y", "x-a=1=2", "X-A=1=2", "baggage:User=ada"}, "/a", false,
			[]string{"--header", "baggage:User=ada", "--header", "x-a=1=2", "--header", "x-b=y", "--path", "/a"},
			"--header baggage:User=ada --header x-a=1=2 --header x-b=y --path /a"},
	} {
		choice, err := ParseChoice(c.headers, c.path, c.mirror)
		if c.text == "" {
			if err == nil {
				t.Errorf("%q: %v", c.headers, choice)
			}
			continue
		}
		if err != nil || !slices.Equal(choice.Args(), c.args) || choice.String() != c.text || choice.All() != (c.args == nil) {
			t.Errorf("%q %q: %q, %q, %v", c.headers, c.path, choice.Args(), choice, err)
		}
		b, err := json.Marshal(choice)
		var back Choice
		if err != nil || json.Unmarshal(b, &back) != nil || !back.Equal(choice) {
			t.Errorf("%s became %q", b, back)
		}
		slices.Reverse(c.headers)
		if again, err := ParseChoice(c.headers, c.path, c.mirror); err != nil || !again.Equal(choice) {
			t.Errorf("the other way round: %q, %v", again, err)
		}
	}
	if _, err := ParseChoice([]string{"x=1"}, "", true); hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
		t.Errorf("a mirror with a filter: %v", err)
	}
	a, _ := ParseChoice([]string{"a=1 --header b=2"}, "", false)
	b, _ := ParseChoice([]string{"a=1", "b=2"}, "", false)
	if a.Equal(b) || a.String() != b.String() {
		t.Errorf("%q and %q", a.Args(), b.Args())
	}
}
