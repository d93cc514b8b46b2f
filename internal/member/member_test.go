package member

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"bridge/internal/route"
	"bridge/pkg/tunnel"
)

// of is a member whose key is named by one digit.
func of(t *testing.T, owner, key string, headers ...string) Member {
	t.Helper()
	client, err := tunnel.ParseFingerprint(strings.Repeat(key, 64))
	if err != nil {
		t.Fatal(err)
	}
	return Member{Owner: owner, Client: client, Choice: choice(t, headers...), Bridge: "v1.2.0"}
}

// choice is of headers, and of a path if one begins with a slash.
func choice(t *testing.T, flags ...string) route.Choice {
	t.Helper()
	path := ""
	var headers []string
	for _, f := range flags {
		if f[0] == '/' {
			path = f
		} else {
			headers = append(headers, f)
		}
	}
	c, err := route.ParseChoice(headers, path, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Two who could have the same request are refused, the second with the first one's name.
func TestJoin(t *testing.T) {
	ada := of(t, "ada@laptop", "a", "x-user=ada")
	for _, c := range []struct {
		name   string
		second route.Choice
		joins  bool
	}{
		{"another value of the same header", choice(t, "x-user=bob"), true},
		{"the same", choice(t, "x-user=ada"), false},
		{"more of the same", choice(t, "x-user=ada", "/api"), false},
		{"another header, which a request may have too", choice(t, "x-team=blue"), false},
		{"a path, which a request with the header may have", choice(t, "/api"), false},
		{"the path, and another value of the header", choice(t, "/api", "x-user=bob"), true},
		{"all requests", route.Choice{}, false},
		{"a copy", route.Choice{Mirror: true}, false},
	} {
		l := New(ada)
		m := of(t, "bob@pc", "b")
		m.Choice = c.second
		err := l.Join(m)
		var overlap *OverlapError
		switch {
		case c.joins && (err != nil || l.Owners() != "ada@laptop, bob@pc"):
			t.Errorf("%s: %v, %s", c.name, err, l.Owners())
		case !c.joins && (!errors.As(err, &overlap) || overlap.Other.Owner != "ada@laptop" || len(l.Members) != 1):
			t.Errorf("%s: %v, %s", c.name, err, l.Owners())
		}
	}
	mirror := ada
	mirror.Choice = route.Choice{Mirror: true}
	l := New(mirror)
	if err := l.Join(of(t, "bob@pc", "b", "x-user=bob")); err == nil {
		t.Error("beside a mirror")
	}
}

func TestJoinHasALimit(t *testing.T) {
	l := New(of(t, "ada@laptop", "a", "x-user=0"))
	for i := 1; i < Max; i++ {
		m := of(t, "ada@laptop", "b", "x-user="+strings.Repeat("x", i))
		m.Client[0] = byte(i)
		if err := l.Join(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Join(of(t, "bob@pc", "c", "x-user=bob")); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if l.Owners() != "ada@laptop" {
		t.Errorf("owners %s", l.Owners())
	}
}

// The lists are as the golden files have them, which are formats: bridges of different days read each other's.
func TestGolden(t *testing.T) {
	noon := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	ada, bob := of(t, "ada@laptop", "a", "x-user=ada"), of(t, "bob@pc", "b", "baggage:user=bob", "x-user=bob", "/api")
	ada.Since, ada.Renewed, bob.Since, bob.Renewed = noon, noon.Add(10*time.Second), noon.Add(time.Minute), noon.Add(time.Minute)
	ada.Tunnel, ada.Notes, ada.Probes = "ready since 2026-11-24T12:00:00Z", []string{"port 8080: TLS"}, json.RawMessage(`[]`)
	l := New(ada)
	l.Made, l.Container, l.Ports, l.Tunnel = true, "app", []int32{8080}, 27100
	if err := l.Join(bob); err != nil {
		t.Fatal(err)
	}
	text, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	shares, err := l.Shares()
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"list.json": text, "shares.json": string(shares)} {
		want, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if got != strings.TrimSuffix(string(want), "\n") {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
		}
	}
	back, err := Parse(text)
	if err != nil || !reflect.DeepEqual(back, l) {
		t.Errorf("read back: %+v, %v", back, err)
	}
	read, err := ParseShares(shares)
	if err != nil || len(read) != 2 || read[0].Client != ada.Client || !reflect.DeepEqual(read[1].Filter, bob.Filter) {
		t.Errorf("a proxy reads %+v, %v", read, err)
	}
}

// Of two versions the one that is too old is named, with what to do.
func TestVersions(t *testing.T) {
	for _, c := range []struct{ text, older, advice string }{
		{`{"version":2,"bridge":"v2.0.0","members":"other"}`, "this bridge is too old", "upgrade bridge here to v2.0.0"},
		{`{"version":1,"protocol":1,"bridge":"v0.9.0"}`, "(v0.9.0) is too old", "have ada@laptop give it back, upgrade bridge to v1.2.0 and swap anew"},
		{`{"version":1,"protocol":99}`, "this bridge is too old", "upgrade bridge here to another version"},
	} {
		l, err := Parse(c.text)
		var version *VersionError
		if !errors.As(err, &version) || !strings.Contains(err.Error(), c.older) || !strings.Contains(version.Advice("ada@laptop", "v1.2.0"), c.advice) {
			t.Errorf("%s: %v, %+v", c.text, err, version)
		}
		if len(l.Members) > 0 {
			t.Errorf("%s: members were read", c.text)
		}
	}
	one := `{"owner":"ada","client":"` + strings.Repeat("a", 64) + `"}`
	for _, text := range []string{
		"", "null", "x", `{"version":1,"protocol":2,"members":[{"owner":"ada"}]}`, `{"version":1,"protocol":2}`,
		`{"version":1,"protocol":2,"members":[` + one + `,` + one + `]}`, `{"version":1,"protocol":2,"members":[` + one,
	} {
		var version *VersionError
		if _, err := Parse(text); err == nil || text != "null" && errors.As(err, &version) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// What a later bridge has written beside stays there, whoever writes the list; who leaves takes theirs along.
func TestUnknownFieldsStay(t *testing.T) {
	b, err := os.ReadFile("testdata/list.json")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `"version":1`, `"version":1,"room":{"for":["more"]}`, 1)
	for _, name := range []string{"ada@laptop", "bob@pc"} {
		text = strings.Replace(text, `"owner":"`+name+`"`, `"owner":"`+name+`","tunnel":"","pet":"`+name+`'s"`, 1)
	}
	l, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	bob := l.Members[1]
	bob.Tunnel = "ready"
	if !l.Put(bob) {
		t.Fatal("bob is not there")
	}
	l.Leave(l.Members[0].Client)
	if err := l.Join(of(t, "eve@pc", "e", "x-user=eve")); err != nil {
		t.Fatal(err)
	}
	text, err = l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for want, n := range map[string]int{`"room":{"for":["more"]}`: 1, `"pet":"bob@pc's"`: 1, `"pet"`: 1, `"owner"`: 2, `"tunnel":"ready"`: 1, `"tunnel"`: 2} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%s is there %d times, and not %d:\n%s", want, got, n, text)
		}
	}
	l, err = Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Marshal(); err != nil || again != text {
		t.Errorf("written again: %s, %v", again, err)
	}
}

// A proxy does not take what is ambiguous.
func TestParseSharesRefuses(t *testing.T) {
	share := func(key, filter string) string {
		return `{"client":"` + strings.Repeat(key, 64) + `",` + filter + `}`
	}
	ada, bob := share("a", `"headers":[{"name":"x-user","value":"ada"}]`), share("b", `"headers":[{"name":"x-user","value":"bob"}]`)
	for text, good := range map[string]bool{
		`{"version":1}`: true,
		`{"version":1,"shares":[` + ada + `,` + bob + `]}`:                                          true,
		`{"version":1,"shares":[` + ada + `,` + ada + `]}`:                                          false,
		`{"version":1,"shares":[` + ada + `,` + share("b", `"path":"/api"`) + `]}`:                  false,
		`{"version":1,"shares":[` + share("b", `"path":""`) + `]}`:                                  false,
		`{"version":1,"shares":[` + share("0", `"path":"/api"`) + `]}`:                              false,
		`{"version":2,"shares":[` + ada + `]}`:                                                      false,
		`{"version":1,"shares":[{"path":"/api"}]}`:                                                  false,
		`{"version":1,"shares":[{"client":"a","path":"/api"}]}`:                                     false,
		`{"version":1,"shares":[` + ada + strings.Repeat(","+share("c", `"path":"/x"`), Max) + `]}`: false,
		``: false,
	} {
		if _, err := ParseShares([]byte(text)); (err == nil) != good {
			t.Errorf("%.300s: %v", text, err)
		}
	}
}

// Whatever a Lease or a file says, reading it ends, and what was read can be written.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"list.json", "shares.json"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if l, err := Parse(text); err == nil {
			written, err := l.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Parse(written); err != nil || len(again.Members) != len(l.Members) {
				t.Errorf("written as %s: %v", written, err)
			}
		}
		shares, err := ParseShares([]byte(text))
		if err != nil {
			return
		}
		for i, s := range shares {
			for _, o := range shares[:i] {
				if s.Overlaps(o.Filter) {
					t.Errorf("%s and %s overlap", s.Filter, o.Filter)
				}
			}
		}
	})
}
