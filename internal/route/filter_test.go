package route

import (
	"strings"
	"testing"

	"bridge/internal/hint"
	"bridge/internal/http1"
)

func TestFiltersMatch(t *testing.T) {
	for name, c := range map[string]struct {
		headers []string
		path    string
		target  string
		fields  string // lines
		want    bool
	}{
		"none":                 {nil, "", "/", "", true},
		"header":               {[]string{"x-user=ada"}, "", "/", "X-User: ada", true},
		"another value":        {[]string{"x-user=ada"}, "", "/", "X-User: Ada", false},
		"part of a value":      {[]string{"x-user=ada"}, "", "/", "X-User: ada, bob", false},
		"no such header":       {[]string{"x-user=ada"}, "", "/", "X-Use: ada", false},
		"empty value":          {[]string{"x-user="}, "", "/", "X-User:", true},
		"value with =":         {[]string{"x-user=a=b"}, "", "/", "X-User: a=b", true},
		"twice the same":       {[]string{"x-user=ada"}, "", "/", "X-User: ada\nx-user: ada", true},
		"twice":                {[]string{"x-user=ada"}, "", "/", "X-User: ada\nx-user: bob", false},
		"all must match":       {[]string{"a=1", "b=2"}, "", "/", "A: 1", false},
		"all match":            {[]string{"a=1", "b=2"}, "", "/", "B: 2\nA: 1", true},
		"baggage":              {[]string{"baggage:user=ada"}, "", "/", "Baggage: x=y , user = ada ;p=1;q, z=1", true},
		"baggage, escaped":     {[]string{"baggage:user=ada l, ö"}, "", "/", "baggage: user=ada%20l%2C%20%C3%B6", true},
		"baggage, plus":        {[]string{"baggage:user=a+b"}, "", "/", "baggage: user=a+b", true},
		"baggage, badly":       {[]string{"baggage:user=a%2"}, "", "/", "baggage: user=a%2", true},
		"baggage, lines":       {[]string{"baggage:user=ada"}, "", "/", "baggage: x=y\nBAGGAGE: user=ada", true},
		"baggage, property":    {[]string{"baggage:user=ada"}, "", "/", "baggage: x=y;user=ada", false},
		"baggage, case":        {[]string{"baggage:user=ada"}, "", "/", "baggage: User=ada", false},
		"baggage, twice":       {[]string{"baggage:user=ada"}, "", "/", "baggage: user=ada,user=bob", false},
		"tracestate":           {[]string{"tracestate:a@b=1=2"}, "", "/", "tracestate: x=y,\ta@b=1=2 ", true},
		"tracestate, escaped":  {[]string{"tracestate:a=b c"}, "", "/", "tracestate: a=b%20c", false},
		"tracestate, semi":     {[]string{"tracestate:a=b;c"}, "", "/", "tracestate: a=b;c", true},
		"path":                 {nil, "/api", "/api", "", true},
		"path, deeper":         {nil, "/api", "/api/x?q", "", true},
		"path, slash":          {nil, "/api/", "/api?q=/", "", true},
		"path, border":         {nil, "/api", "/apix", "", false},
		"path, above":          {nil, "/api/x", "/api", "", false},
		"path, escaped":        {nil, "/käse", "/k%C3%a4se/x", "", true},
		"path, escaped border": {nil, "/a/b", "/a%2Fb", "", false},
		"path, query":          {nil, "/api", "/?/api", "", false},
		"path, absolute":       {nil, "/api", "http://x/api/y", "", true},
		"path, absolute empty": {nil, "/", "http://x", "", true},
		"path, host":           {nil, "/api", "http://api", "", false},
		"path, CONNECT":        {nil, "/", "x:80", "", false},
		"path, OPTIONS *":      {nil, "/", "*", "", false},
		"both":                 {[]string{"a=1"}, "/api", "/other", "A: 1", false},
	} {
		f, err := ParseFilter(c.headers, c.path)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := f.Matches(c.target, fieldsOf(c.fields)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func fieldsOf(lines string) (fields []http1.Field) {
	for line := range strings.SplitSeq(lines, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields = append(fields, http1.Field{Name: name, Value: strings.Trim(value, " \t")})
		}
	}
	return fields
}

func TestBadFlagsSayWhatToGive(t *testing.T) {
	for _, c := range []struct {
		headers []string
		path    string
	}{
		{[]string{"x-user"}, ""}, {[]string{"=ada"}, ""}, {[]string{"x user=ada"}, ""}, {[]string{"x: y=ada"}, ""}, {[]string{"x=\n"}, ""},
		{[]string{"x= ada"}, ""}, {[]string{"baggage=x"}, ""}, {[]string{"baggage:=x"}, ""}, {[]string{"baggage:a,b=x"}, ""}, {[]string{"tracestate:a=b,c"}, ""},
		{[]string{"x=1", "X=2"}, ""}, {nil, "api"}, {nil, "/api?x=y"}, {nil, "http://x/api"}, {[]string{":path=/x"}, ""},
	} {
		f, err := ParseFilter(c.headers, c.path)
		if err == nil || hint.CodeOf(err) != hint.Usage || hint.Of(err) == "" {
			t.Errorf("%q %q: %v, %v, hint %q", c.headers, c.path, f, err, hint.Of(err))
		}
	}
}

func TestFiltersOverlap(t *testing.T) {
	filter := func(flags string) Filter {
		var headers []string
		path := ""
		for flag := range strings.FieldsSeq(flags) {
			if flag[0] == '/' {
				path = flag
			} else {
				headers = append(headers, flag)
			}
		}
		f, err := ParseFilter(headers, path)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "", true}, {"", "x=1 /a", true}, {"x=1", "x=1", true}, {"x=1", "X=2", false}, {"x=1", "y=1", true}, {"x=1 y=1", "y=2", false},
		{"baggage:user=ada", "baggage:user=bob", false}, {"baggage:user=ada", "baggage:team=a", true}, {"baggage:user=ada", "tracestate:user=bob", true},
		{"/a", "/b", false}, {"/a", "/ab", false}, {"/a", "/a/b", true}, {"/a/", "/a", true}, {"/", "/b", true}, {"/%61", "/a/b", true}, {"x=1 /a", "x=2 /a", false},
		{"x=1 /a", "x=1 /b", false},
	} {
		for _, pair := range [][2]string{{c.a, c.b}, {c.b, c.a}} {
			if got := filter(pair[0]).Overlaps(filter(pair[1])); got != c.want {
				t.Errorf("%q and %q: %v", pair[0], pair[1], got)
			}
		}
	}
}

// FuzzOverlaps: no request is two people's unless their filters are known to overlap.
func FuzzOverlaps(f *testing.F) {
	f.Add("x=1", "/a", "y=1", "/a/b", "/a/b/c", "X: 1\nY: 1")
	f.Add("baggage:a=b", "", "baggage:a=c", "", "/", "baggage: a=b, a=c")
	f.Add("x=1", "/%61", "X=2", "/a", "/a", "x: 1\nx: 2")
	f.Fuzz(func(t *testing.T, headerA, pathA, headerB, pathB, target, lines string) {
		a, errA := ParseFilter([]string{headerA}, pathA)
		b, errB := ParseFilter([]string{headerB}, pathB)
		if errA != nil || errB != nil {
			return
		}
		fields := fieldsOf(lines)
		if a.Matches(target, fields) && b.Matches(target, fields) && (!a.Overlaps(b) || !b.Overlaps(a)) {
			t.Errorf("%v and %v both match %q", a, b, target)
		}
	})
}
