package route

import (
	"net/url"
	"slices"
	"strings"

	"bridge/internal/hint"
	"bridge/internal/http1"
)

// Filter says which requests are somebody's. The zero value says all.
type Filter struct {
	Headers []Header `json:"headers,omitempty"` // all must match; ParseFilter has them in order, each once
	// Path is the beginning of the request's path, on the border of a segment: "/api" is that of /api, /api/ and
	// /api/x, not of /apix. Spellings with %xx are the same as without. Empty means any.
	Path string `json:"path,omitempty"`
}

// Header is a value that a request carries. A request that gives another value beside it, in a further line or
// list member, says nothing certain and does not match: no two people can both be meant.
type Header struct {
	Name string `json:"name"` // upper and lower case are one
	// Member is a key in the list that the header baggage or tracestate is; empty for other headers.
	Member string `json:"member,omitempty"`
	Value  string `json:"value"`
}

const (
	baggage    = "baggage"
	tracestate = "tracestate"
)

// ParseFilter reads the values of the flags --header and --path. The error has the exit code of a wrong flag.
func ParseFilter(headers []string, path string) (Filter, error) {
	f := Filter{Path: path}
	if path != "" && (path[0] != '/' || strings.ContainsAny(path, "?#")) {
		return Filter{}, hint.Newf(hint.Usage, "give the beginning of a path, without a query, such as --path /api", "--path %q is no path", path)
	}
	for _, flag := range headers {
		h, err := parseHeader(flag)
		if err != nil {
			return Filter{}, err
		}
		if slices.ContainsFunc(f.Headers, func(other Header) bool { return h.key() == other.key() && h.Value != other.Value }) {
			return Filter{}, hint.Newf(hint.Usage, "all --header must match at once, so give each name one value", "--header %q asks for a second value of the same header", flag)
		}
		f.Headers = append(f.Headers, h)
	}
	slices.SortFunc(f.Headers, func(a, b Header) int { return strings.Compare(a.key(), b.key()) })
	f.Headers = slices.CompactFunc(f.Headers, func(a, b Header) bool { return a.key() == b.key() })
	return f, nil
}

func parseHeader(flag string) (Header, error) {
	bad := func(next, what string) (Header, error) {
		return Header{}, hint.Newf(hint.Usage, next, "--header %q %s", flag, what)
	}
	const example = "give NAME=VALUE, such as --header x-user=ada or --header baggage:user=ada"
	name, value, ok := strings.Cut(flag, "=")
	if !ok {
		return bad(example, "has no =")
	}
	h := Header{Value: value}
	h.Name, h.Member, _ = strings.Cut(name, ":")
	h.Name = strings.ToLower(h.Name)
	list := h.isList()
	switch {
	case !http1.IsToken(h.Name):
		return bad(example, "has no name of a header before the =")
	case !list && strings.Contains(name, ":"):
		return bad("only baggage:KEY=VALUE and tracestate:KEY=VALUE name a member of a list", "names a member of a header that is no list")
	case list && h.Member == "":
		return bad("give the member that is meant: --header "+h.Name+":KEY=VALUE", "is about a header that is a list")
	case list && strings.ContainsAny(h.Member, " \t,;"):
		return bad(example, "has no key of a list member before the =")
	case strings.Trim(value, " \t") != value:
		return bad("leave it out: HTTP has no space around a value", "has space around its value")
	case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return bad(example, "has a control character in its value")
	case strings.EqualFold(h.Name, tracestate) && strings.Contains(value, ","):
		return bad("a member of tracestate has no comma: give one key and its value", "can match no member")
	}
	return h, nil
}

func (h Header) isList() bool {
	return strings.EqualFold(h.Name, baggage) || strings.EqualFold(h.Name, tracestate)
}

// key is what can have only one value in a request that matches.
func (h Header) key() string { return strings.ToLower(h.Name) + ":" + h.Member }

func (f Filter) all() bool { return len(f.Headers) == 0 && f.Path == "" }

// String is f as it is given in flags, "all requests" for the zero value.
func (f Filter) String() string {
	if f.all() {
		return "all requests"
	}
	return strings.Join(f.args(), " ")
}

// args are the flags that ParseFilter reads.
func (f Filter) args() (args []string) {
	for _, h := range f.Headers {
		name := h.Name
		if h.Member != "" {
			name += ":" + h.Member
		}
		args = append(args, "--header", name+"="+h.Value)
	}
	if f.Path != "" {
		args = append(args, "--path", f.Path)
	}
	return args
}

// Overlaps says whether a request could match both.
func (f Filter) Overlaps(other Filter) bool {
	for _, h := range f.Headers {
		if slices.ContainsFunc(other.Headers, func(o Header) bool { return h.key() == o.key() && h.Value != o.Value }) {
			return false
		}
	}
	a, b := segments(f.Path), segments(other.Path)
	n := min(len(a), len(b))
	return slices.Equal(a[:n], b[:n])
}

// Matches says whether a request is f's. The target is as in its first line, or in :path.
func (f Filter) Matches(target string, fields []http1.Field) bool {
	if f.Path != "" {
		path, ok := pathOf(target)
		if !ok {
			return false
		}
		want, have := segments(f.Path), segments(path)
		if len(have) < len(want) || !slices.Equal(have[:len(want)], want) {
			return false
		}
	}
	for _, h := range f.Headers {
		if !h.matches(fields) {
			return false
		}
	}
	return true
}

func (h Header) matches(fields []http1.Field) (found bool) {
	for _, f := range fields {
		if !strings.EqualFold(f.Name, h.Name) {
			continue
		}
		if !h.isList() {
			if f.Value != h.Value {
				return false
			}
			found = true
			continue
		}
		for member := range strings.SplitSeq(f.Value, ",") {
			key, value := h.member(member)
			if key != h.Member {
				continue
			}
			if value != h.Value {
				return false
			}
			found = true
		}
	}
	return found
}

// member takes one of a list apart: W3C Baggage section 3.3.1 (properties behind ";", percent-encoded values), W3C
// Trace Context section 3.3.1.
func (h Header) member(member string) (key, value string) {
	isBaggage := strings.EqualFold(h.Name, baggage)
	if isBaggage {
		member, _, _ = strings.Cut(member, ";")
	}
	key, value, ok := strings.Cut(member, "=")
	if !ok {
		return "", ""
	}
	key, value = strings.Trim(key, " \t"), strings.Trim(value, " \t")
	if isBaggage {
		value = unescape(value)
	}
	return key, value
}

// pathOf takes the path out of a target, which may be an absolute URI. False when it has none (CONNECT, OPTIONS *).
func pathOf(target string) (string, bool) {
	if !strings.HasPrefix(target, "/") {
		_, rest, ok := strings.Cut(target, "://")
		if !ok {
			return "", false
		}
		i := strings.IndexAny(rest, "/?#")
		if i < 0 || rest[i] != '/' {
			return "/", true
		}
		target = rest[i:]
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	return target, true
}

// segments are those of a path, without %xx; one that is empty at the end is none.
func segments(path string) []string {
	path = strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/")
	if path == "" {
		return nil
	}
	all := strings.Split(path, "/")
	for i := range all {
		all[i] = unescape(all[i])
	}
	return all
}

// unescape leaves what is badly encoded as it is.
func unescape(s string) string {
	if plain, err := url.PathUnescape(s); err == nil {
		return plain
	}
	return s
}
