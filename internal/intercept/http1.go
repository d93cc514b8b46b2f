package intercept

import (
	"bytes"
	"strconv"
	"strings"
)

// exchange follows HTTP/1 from outside (RFC 9112): it reads along, changes nothing, and knows whether every
// request so far is answered to its last byte. That is the exact moment at which a connection can be
// ended, where the times alone would only be a guess. What is no HTTP/1 it gives up on, for good.
type exchange struct {
	requests, answers message
	waiting           []bool // for each request that is not answered: is it HEAD
	other             bool   // not HTTP/1, or no longer
}

const (
	// maxLine bounds a start line, a header and a chunk's size; servers take 8 KiB of each as a rule.
	maxLine = 16 << 10
	// maxWaiting bounds the requests that a client may send ahead (pipelining, which hardly one does).
	maxWaiting = 64
)

// fromCaller reads what the caller says.
func (e *exchange) fromCaller(p []byte) {
	if !e.other && !e.requests.read(p, e.request) {
		e.giveUp()
	}
}

// toCaller reads what the caller is told.
func (e *exchange) toCaller(p []byte) {
	if !e.other && !e.answers.read(p, e.answer) {
		e.giveUp()
	}
}

func (e *exchange) giveUp() { *e = exchange{other: true} }

// known says that this is HTTP/1 so far, and more than nothing.
func (e *exchange) known() bool { return !e.other && e.requests.count > 0 }

// answered says that every request has come and been answered whole.
func (e *exchange) answered() bool {
	return e.known() && len(e.waiting) == 0 && e.requests.between() && e.answers.between()
}

// request is called at the end of a request's head.
func (e *exchange) request(m *message) bool {
	method, rest, _ := strings.Cut(m.start, " ")
	if i := strings.LastIndexByte(rest, ' '); i < 0 || !strings.HasPrefix(rest[i+1:], "HTTP/1.") || method == "CONNECT" {
		return false
	}
	if len(e.waiting) == maxWaiting {
		return false
	}
	e.waiting = append(e.waiting, method == "HEAD")
	switch {
	case m.chunked:
		m.state = chunkSize
	case m.length > 0:
		m.state, m.left = fixed, m.length
	default:
		m.state = start
	}
	return true
}

// answer is called at the end of an answer's head.
func (e *exchange) answer(m *message) bool {
	protocol, rest, _ := strings.Cut(m.start, " ")
	code, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(protocol, "HTTP/1.") || len(code) != 3 || len(e.waiting) == 0 || code == "101" {
		return false
	}
	if code[0] == '1' { // another one follows
		m.state = start
		return true
	}
	head := e.waiting[0]
	e.waiting = e.waiting[1:]
	switch {
	case head || code == "204" || code == "304":
		m.state = start
	case m.chunked:
		m.state = chunkSize
	case m.length > 0:
		m.state, m.left = fixed, m.length
	case m.length == 0:
		m.state = start
	default:
		m.state = untilClose
	}
	return true
}

// message is one direction: messages one after the other.
type message struct {
	count int // heads so far
	state messageState
	line  []byte // of the line being read
	left  int64  // fixed, chunkData: bytes to come

	// Of the head being read.
	start   string
	length  int64 // -1: not said
	chunked bool
}

type messageState int

const (
	start      messageState = iota // before a start line
	headers                        // in the head, behind it
	fixed                          // in a body of known length
	chunkSize                      // before a chunk
	chunkData                      // in one, or in the end of line behind it
	trailers                       // behind the last one
	untilClose                     // in a body that ends with the connection
)

// between says that no message is under way.
func (m *message) between() bool { return m.state == start && len(m.line) == 0 }

// read goes through p and calls head at the end of each head. False means that this is no HTTP/1.
func (m *message) read(p []byte, head func(*message) bool) bool {
	for len(p) > 0 {
		switch m.state {
		case fixed, chunkData:
			n := min(m.left, int64(len(p)))
			p = p[n:]
			if m.left -= n; m.left > 0 {
				return true
			}
			if m.state == fixed {
				m.state = start
			} else {
				m.state = chunkSize
			}
			continue
		case untilClose:
			return true
		}
		n := bytes.IndexByte(p, '\n') + 1
		if n == 0 {
			n = len(p)
		}
		if len(m.line)+n > maxLine {
			return false
		}
		m.line = append(m.line, p[:n]...)
		if p[n-1] != '\n' {
			return true
		}
		p = p[n:]
		line := string(bytes.TrimRight(m.line, "\r\n"))
		m.line = m.line[:0]
		if !m.endOfLine(line, head) {
			return false
		}
	}
	return true
}

// endOfLine acts on one line.
func (m *message) endOfLine(line string, head func(*message) bool) bool {
	switch m.state {
	case start:
		if line == "" { // allowed before a request
			return true
		}
		m.start, m.length, m.chunked = line, -1, false
		m.state = headers
	case headers:
		if line == "" {
			m.count++
			return head(m)
		}
		return m.header(line)
	case chunkSize:
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 62)
		switch {
		case err != nil || n < 0:
			return false
		case n == 0:
			m.state = trailers
		default:
			m.state, m.left = chunkData, n+2
		}
	case trailers:
		if line == "" {
			m.state = start
		}
	}
	return true
}

// header takes from one header how long the body is.
func (m *message) header(line string) bool {
	name, value, ok := strings.Cut(line, ":")
	if !ok {
		return false
	}
	value = strings.TrimSpace(value)
	switch strings.ToLower(name) {
	case "content-length":
		n, err := strconv.ParseInt(value, 10, 63)
		if err != nil || n < 0 || m.length >= 0 && m.length != n {
			return false
		}
		m.length = n
	case "transfer-encoding":
		if !strings.EqualFold(value, "chunked") {
			return false
		}
		m.chunked = true
	}
	return true
}
