// Package hint gives an error its exit code and the next step for the person who reads it.
// Every package of bridge makes its errors with it; cmd/bridge alone prints them and exits.
package hint

import (
	"errors"
	"fmt"
)

// Code is what bridge exits with. The zero value means "not decided here": CodeOf reads on down
// the chain of wrapped errors, and ends at Other.
type Code int

// The exit codes of bridge, as listed in docs/exit-codes.md. 0 is success; 128+n is the signal n.
const (
	Other             Code = 1
	Usage             Code = 2
	Forbidden         Code = 3 // forbidden or unauthorised
	Unreachable       Code = 4 // the API server does not answer
	NotFound          Code = 5
	Conflict          Code = 6 // somebody else has swapped it
	ProxyNotReady     Code = 7 // image, quota, admission, scheduling
	TunnelLost        Code = 8 // for good
	RestoreIncomplete Code = 9
	// Warnings and Problems are what diagnose has found at most; Problems too a probe that does not succeed. Neither is an error.
	Warnings Code = 10
	Problems Code = 11
)

// Error is a cause with a next step and an exit code.
type Error struct {
	Code Code
	Err  error  // what failed; never nil
	Hint string // the likely cause and the next command; may be empty
}

// New wraps err. A nil err gives nil, so that it can stand around a call.
func New(code Code, err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: code, Err: err, Hint: hint}
}

// Newf makes an error from a format (%w allowed) and adds a code and a hint.
func Newf(code Code, hint, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...), Hint: hint}
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Worded is cause in words of its own; what is asked of cause holds for it.
func Worded(words string, cause error) error { return &worded{words, cause} }

type worded struct {
	words string
	cause error
}

func (w *worded) Error() string { return w.words }
func (w *worded) Unwrap() error { return w.cause }

// CodeOf returns the outermost code in err's chain, Other if there is none, and 0 for nil.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	for e := err; ; {
		var h *Error
		if !errors.As(e, &h) {
			return Other
		}
		if h.Code != 0 {
			return h.Code
		}
		e = h.Err
	}
}

// Of returns the outermost hint that is not empty, or "".
func Of(err error) string {
	for e := err; e != nil; {
		var h *Error
		if !errors.As(e, &h) {
			return ""
		}
		if h.Hint != "" {
			return h.Hint
		}
		e = h.Err
	}
	return ""
}

// Then is the hint of err, if it has one, and next after it.
func Then(err error, next string) string {
	if first := Of(err); first != "" {
		return first + "; " + next
	}
	return next
}
