// Package http1 tells where the messages of HTTP/1 begin and end (RFC 9112), for programs that pass them on and
// change nothing. It is strict: what two servers could read in two ways is an error here, so that
// nobody hides a request inside another one. internal/route reads with it.
package http1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxHead bounds a head, and the trailers behind a chunked body: more than servers take (8 to 64 KiB).
	MaxHead = 64 << 10
	// maxFields is more than servers take too (100 in some, 2,000 in others). Taken apart, a field of two bytes needs a hundred.
	maxFields = 2000
	// maxMethod is more than any registered method has (18).
	maxMethod = 24
)

// ErrTooLong says that a head, or a line in a chunked body, is over the limit.
var ErrTooLong = errors.New("longer than a server takes")

// Head reads the head of one message as it comes. The zero value reads an answer's; it is used once.
type Head struct {
	// Request says that it is a request's. What cannot become one is an error as soon as that shows, even
	// within the first line: who speaks another protocol may be waiting for its answer.
	Request bool

	read   []byte
	line   int // where the current line begins
	fields int
}

// Read takes the bytes of p that belong to the head: all of them until it is whole. After an error the head is no
// HTTP/1; Bytes still has all n.
func (h *Head) Read(p []byte) (n int, whole bool, err error) {
	for n < len(p) {
		end := bytes.IndexByte(p[n:], '\n') + 1
		part := p[n:]
		if end > 0 {
			part = part[:end]
		}
		n += len(part)
		h.read = append(h.read, part...)
		if len(h.read) > MaxHead {
			return n, false, ErrTooLong
		}
		line := h.read[h.line:]
		if end == 0 {
			if h.line == 0 && h.Request {
				_, _, _, err = requestLine(line, false)
			}
			return n, false, err
		}
		text, err := cutLine(line)
		switch {
		case err != nil:
			return n, false, err
		case h.line > 0 && len(text) == 0:
			return n, true, nil
		case h.fields == maxFields:
			return n, false, ErrTooLong
		case h.line > 0:
			_, err = field(text)
			h.fields++
		case h.Request:
			_, _, _, err = requestLine(text, true)
		default:
			_, _, err = statusLine(text)
		}
		if err != nil {
			return n, false, err
		}
		h.line = len(h.read)
	}
	return n, false, nil
}

// Bytes are what Read took.
func (h *Head) Bytes() []byte { return h.read }

// lines are those of a whole head without their ends and without the empty one.
func (h *Head) lines() []string {
	return strings.Split(strings.TrimSuffix(string(h.read), "\r\n\r\n"), "\r\n")
}

// cutLine takes the end off a line.
func cutLine(line []byte) ([]byte, error) {
	text, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return nil, errors.New("a line ends without CR")
	}
	for _, c := range text {
		if control(c) {
			return nil, fmt.Errorf("control character %#x in a line", c)
		}
	}
	return text, nil
}

func control(c byte) bool { return c < ' ' && c != '\t' || c == 0x7f }

// requestLine takes a request's first line apart, or sees whether it may become one.
func requestLine(line []byte, whole bool) (method, target string, minor int, err error) {
	bad := errors.New("not a request line of HTTP/1")
	i := 0
	for i < len(line) && token(line[i]) {
		i++
	}
	if i > maxMethod || i == len(line) && whole || i < len(line) && (i == 0 || line[i] != ' ') {
		return "", "", 0, bad
	}
	if i == len(line) {
		return "", "", 0, nil
	}
	rest := line[i+1:]
	j := 0
	for j < len(rest) && rest[j] > ' ' && rest[j] != 0x7f {
		j++
	}
	if j == len(rest) && whole || j < len(rest) && (j == 0 || rest[j] != ' ') {
		return "", "", 0, bad
	}
	if j == len(rest) {
		return "", "", 0, nil
	}
	version := string(rest[j+1:])
	switch {
	case version == "HTTP/1.1":
		minor = 1
	case version == "HTTP/1.0":
	case whole, !strings.HasPrefix("HTTP/1.1\r", version) && !strings.HasPrefix("HTTP/1.0\r", version):
		return "", "", 0, bad
	}
	return string(line[:i]), string(rest[:j]), minor, nil
}

// statusLine takes an answer's first line apart.
func statusLine(line []byte) (code, minor int, err error) {
	bad := errors.New("not a status line of HTTP/1")
	const shape = "HTTP/1.x nnn"
	if len(line) < len(shape) || len(line) > len(shape) && line[len(shape)] != ' ' || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' {
		return 0, 0, bad
	}
	if minor = int(line[7]) - '0'; minor != 0 && minor != 1 {
		return 0, 0, bad
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return 0, 0, bad
		}
		code = 10*code + int(c-'0')
	}
	if code < 100 {
		return 0, 0, bad
	}
	return code, minor, nil
}

// Field is one line of a head: its name as it was written, and its value without the space around it.
type Field struct{ Name, Value string }

func field(line []byte) (Field, error) {
	i := 0
	for i < len(line) && token(line[i]) {
		i++
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		return Field{}, errors.New("a line of the head is no field")
	}
	return Field{string(line[:i]), string(bytes.Trim(line[i+1:], " \t"))}, nil
}

// IsToken says whether s is a token, as methods and names of fields are (RFC 9110 section 5.6.2).
func IsToken(s string) bool {
	for i := range len(s) {
		if !token(s[i]) {
			return false
		}
	}
	return s != ""
}

func token(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
