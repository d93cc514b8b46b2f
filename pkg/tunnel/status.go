package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"
)

// status is the answer to a header.
type status struct {
	code statusCode
	text string
}

type statusCode uint8

const (
	statusOK statusCode = iota
	statusOther
	statusRefused
	statusHostUnreachable
	statusNetUnreachable
	statusTimeout
	statusNoHost
	statusForbidden
	statusNoAnswer // of the resolver
)

const (
	statusFixed   = 3   // code, length of the text
	maxStatusText = 512 // enough for an error with two long names in it; cut, not refused, beyond
)

// errnos pairs each code with the errno that it stands for.
var errnos = []struct {
	code  statusCode
	errno syscall.Errno
}{
	{statusRefused, syscall.ECONNREFUSED},
	{statusHostUnreachable, syscall.EHOSTUNREACH},
	{statusNetUnreachable, syscall.ENETUNREACH},
	{statusTimeout, syscall.ETIMEDOUT},
	{statusForbidden, syscall.EACCES},
	{statusForbidden, syscall.EPERM},
}

// statusOf is the status for a dial that failed with err; ok for nil.
func statusOf(err error) status {
	if err == nil {
		return status{}
	}
	return status{code: codeOf(err), text: cleanText(err.Error())}
}

func codeOf(err error) statusCode {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return statusNoHost
	case dns != nil && !dns.IsTimeout:
		return statusNoAnswer
	}
	for _, e := range errnos {
		if isErrno(err, e.errno) {
			return e.code
		}
	}
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return statusTimeout
	}
	return statusOther
}

// cleanText makes text fit to be sent and printed: one line of valid UTF-8, bounded.
func cleanText(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxStatusText {
		text = text[:maxStatusText]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	return text
}

func appendStatus(b []byte, s status) []byte {
	b = append(b, byte(s.code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s.text)))
	return append(b, s.text...)
}

// statusNeeds says how many bytes of the status that begins with b are still to come.
func statusNeeds(b []byte) (int, error) {
	if len(b) < statusFixed {
		return statusFixed - len(b), nil
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > maxStatusText {
		return 0, errors.New("stream status: text too long")
	}
	return statusFixed + n - len(b), nil
}

// parseStatus reads a whole status, as statusNeeds delimits it.
func parseStatus(b []byte) status {
	return status{code: statusCode(b[0]), text: cleanText(string(b[statusFixed:]))}
}

// refusal is the error of an opener whose stream was refused: the other end's own words, and the
// errno (or *net.DNSError) they stand for.
type refusal struct {
	text  string
	cause error // nil for statusOther
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.cause }

// err is what s means to the opener who asked for address; nil for ok.
func (s status) err(network, address string) error {
	if s.code == statusOK {
		return nil
	}
	r := &refusal{text: s.text}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	switch s.code {
	case statusNoHost:
		r.cause = &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	case statusNoAnswer:
		r.cause = &net.DNSError{Err: "the resolver could not tell", Name: host, IsTemporary: true}
	}
	for _, e := range errnos {
		if s.code == e.code {
			r.cause = e.errno
			break
		}
	}
	if r.text == "" {
		r.text = "dial " + network + " " + address + ": refused by the other end"
		if r.cause != nil {
			r.text = "dial " + network + " " + address + ": " + r.cause.Error()
		}
	}
	return r
}
