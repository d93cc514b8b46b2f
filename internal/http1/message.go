package http1

import (
	"errors"
	"slices"
	"strconv"
	"strings"
)

// Request is what a request's head says.
type Request struct {
	Method, Target string
	Minor          int // of the version HTTP/1.x
	Fields         []Field
	Body           Body
	Close          bool     // the connection is to end behind the answer
	Upgrade        []string // the protocols that are offered, in small letters; nil: none
	Expect         bool     // the body may come only after an answer 100
}

// ParseRequest takes apart a head that h has read whole. The error says what in it could be read in two ways.
func ParseRequest(h *Head) (r Request, err error) {
	lines := h.lines()
	if r.Method, r.Target, r.Minor, err = requestLine([]byte(lines[0]), true); err != nil {
		return r, err
	}
	f, err := framing(lines[1:], r.Minor)
	if err != nil {
		return r, err
	}
	if f.hosts > 1 || f.hosts == 0 && r.Minor > 0 {
		return r, errors.New("not one Host")
	}
	if len(f.coding) > 0 && !f.chunked() {
		return r, errors.New("a request with a transfer coding other than chunked")
	}
	r.Fields, r.Close, r.Expect = f.fields, f.close, f.expect
	if slices.Contains(f.connection, "upgrade") {
		r.Upgrade = f.upgrade
	}
	switch {
	case f.chunked():
		r.Body = Body{state: chunkSize}
	case f.length > 0:
		r.Body = Body{state: fixed, left: f.length}
	}
	return r, nil
}

// Response is what an answer's head says.
type Response struct {
	Code   int
	Body   Body
	Close  bool // the connection is to end behind it
	Fields []Field
}

// ParseResponse takes apart the head of an answer to a request with this method.
func ParseResponse(h *Head, method string) (r Response, err error) {
	lines := h.lines()
	code, minor, err := statusLine([]byte(lines[0]))
	if err != nil {
		return r, err
	}
	f, err := framing(lines[1:], minor)
	if err != nil {
		return r, err
	}
	r.Code, r.Fields, r.Close = code, f.fields, f.close
	switch {
	case code < 200, code == 204, code == 304, method == "HEAD":
	case f.chunked():
		r.Body = Body{state: chunkSize}
	case len(f.coding) == 0 && f.length > 0:
		r.Body = Body{state: fixed, left: f.length}
	case len(f.coding) == 0 && f.length == 0:
	default:
		r.Body, r.Close = Body{state: untilClose}, true
	}
	return r, nil
}

// Interim says that another answer follows.
func (r *Response) Interim() bool { return r.Code < 200 && r.Code != 101 }

// frame is what the fields of a head say of the message's end.
type frame struct {
	fields     []Field
	length     int64 // -1: not said
	coding     []string
	hosts      int
	connection []string // in small letters
	upgrade    []string // likewise
	expect     bool
	close      bool
}

func (f *frame) chunked() bool { return len(f.coding) == 1 && f.coding[0] == "chunked" }

func framing(lines []string, minor int) (frame, error) {
	f := frame{length: -1}
	for _, line := range lines {
		d, err := field([]byte(line))
		if err != nil {
			return f, err
		}
		f.fields = append(f.fields, d)
		switch small(d.Name) {
		case "content-length":
			n, ok := decimal(d.Value)
			if !ok || f.length >= 0 {
				return f, errors.New("a Content-Length that is not one number")
			}
			f.length = n
		case "transfer-encoding":
			if f.coding != nil {
				return f, errors.New("two Transfer-Encodings")
			}
			if f.coding = List(d.Value); f.coding == nil {
				return f, errors.New("an empty Transfer-Encoding")
			}
		case "host":
			f.hosts++
		case "connection":
			f.connection = append(f.connection, List(d.Value)...)
		case "upgrade":
			f.upgrade = append(f.upgrade, List(d.Value)...)
		case "expect":
			f.expect = true
		}
	}
	if f.coding != nil && (f.length >= 0 || minor == 0) {
		return f, errors.New("a Transfer-Encoding with a Content-Length, or in HTTP/1.0")
	}
	f.close = slices.Contains(f.connection, "close") || minor == 0 && !slices.Contains(f.connection, "keep-alive")
	return f, nil
}

// List splits a list of tokens at its commas, in small letters.
func List(value string) (tokens []string) {
	for t := range strings.SplitSeq(value, ",") {
		if t = strings.Trim(t, " \t"); t != "" {
			tokens = append(tokens, small(t))
		}
	}
	return tokens
}

// small has the letters of ASCII in small; others have small forms in ASCII too (the Kelvin sign's is k), and are left.
func small(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// decimal reads digits only, in their one spelling.
func decimal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 63)
	return n, err == nil && strconv.FormatInt(n, 10) == s && n >= 0
}
