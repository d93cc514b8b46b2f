package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// measure is how long the message at the beginning of p is, read in parts of size; 0: it is not whole, or not clear.
func measure(p []byte, size int, parse func(*Head) (Body, error), request bool) int {
	h := &Head{Request: request}
	total := 0
	for from := 0; from < len(p); {
		part := p[from:min(len(p), from+size)]
		n, whole, err := h.Read(part)
		if err != nil {
			return 0
		}
		from += n
		total += n
		if !whole {
			continue
		}
		body, err := parse(h)
		if err != nil || body.UntilClose() {
			return 0
		}
		for from < len(p) && !body.Over() {
			n, err := body.Read(p[from:min(len(p), from+size)])
			if err != nil {
				return 0
			}
			from += n
			total += n
		}
		if !body.Over() {
			return 0
		}
		return total
	}
	return 0
}

func requestBody(h *Head) (Body, error) {
	r, err := ParseRequest(h)
	return r.Body, err
}

func answerBody(h *Head) (Body, error) {
	r, err := ParseResponse(h, "GET")
	return r.Body, err
}

var requests = []string{
	"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore",
	"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcmore",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\nmore",
	"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\nmore",
}

func TestRequestsAreAsLongAsTheyAre(t *testing.T) {
	for _, text := range requests {
		for _, size := range []int{1, 2, 3, 7, 1000} {
			if got := measure([]byte(text), size, requestBody, true); got != len(text)-len("more") {
				t.Errorf("%q by %d: %d of %d", text, size, got, len(text))
			}
		}
	}
}

func TestAnswersAreAsLongAsTheyAre(t *testing.T) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcmore",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n10\r\n0123456789abcdef\r\n0\r\n\r\nmore",
		"HTTP/1.1 204 No Content\r\n\r\nmore",
		"HTTP/1.1 304\r\nContent-Length: 3\r\n\r\nmore",
		"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nmore",
	} {
		for _, size := range []int{1, 2, 3, 7, 1000} {
			if got := measure([]byte(text), size, answerBody, false); got != len(text)-len("more") {
				t.Errorf("%q by %d: %d of %d", text, size, got, len(text))
			}
		}
	}
}

// What cannot become a request is known before its line ends.
func TestAnotherProtocolIsKnownAtOnce(t *testing.T) {
	for _, text := range []string{"\x16", "*1\r", "SSH-2.0-x y z", "HELO x\r\n", " ", "GET\t", "GET / HTTP/2", "GET / FTP", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "\r", "\n", "GET \x01"} {
		h := Head{Request: true}
		if _, _, err := h.Read([]byte(text)); err == nil {
			t.Errorf("%q may become a request", text)
		}
	}
}

func TestAHeadHasSoManyFieldsAndNoMore(t *testing.T) {
	for more, want := range []error{nil, ErrTooLong} {
		text := "GET / HTTP/1.1\r\n" + strings.Repeat("a:\r\n", maxFields+more) + "\r\n"
		if _, whole, err := (&Head{Request: true}).Read([]byte(text)); !errors.Is(err, want) || whole != (want == nil) {
			t.Errorf("with %d fields: whole %v, %v", maxFields+more, whole, err)
		}
	}
}

// FuzzRequest compares with net/http: what is clear to us has the same length there, however it is cut.
func FuzzRequest(f *testing.F) {
	for _, text := range requests {
		f.Add([]byte(text), 3)
	}
	f.Fuzz(func(t *testing.T, p []byte, size int) {
		if size < 1 {
			return
		}
		n := measure(p, size, requestBody, true)
		if whole := measure(p, len(p)+1, requestBody, true); n != whole {
			t.Fatalf("%d by %d, %d at once", n, size, whole)
		}
		if n == 0 {
			return
		}
		in := bufio.NewReader(bytes.NewReader(p))
		r, err := http.ReadRequest(in)
		if err != nil {
			return // it looks at more than where a message ends
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if rest, _ := io.ReadAll(in); len(p)-len(rest) != n {
			t.Errorf("%d bytes, %d in net/http", n, len(p)-len(rest))
		}
	})
}

// FuzzAnswer likewise.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcmore"), 2)
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nmore"), 2)
	f.Fuzz(func(t *testing.T, p []byte, size int) {
		if size < 1 {
			return
		}
		n := measure(p, size, answerBody, false)
		if n == 0 {
			return
		}
		in := bufio.NewReader(bytes.NewReader(p))
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		if rest, _ := io.ReadAll(in); len(p)-len(rest) != n {
			t.Errorf("%d bytes, %d in net/http", n, len(p)-len(rest))
		}
	})
}

// What looks like chunked to who makes letters small by Unicode is not what a server reads.
func TestOnlyASCIIHasSmallLetters(t *testing.T) {
	text := "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chun\u212aed\r\n\r\n3\r\nabc\r\n0\r\n\r\nmore"
	if got := measure([]byte(text), len(text), requestBody, true); got != 0 {
		t.Errorf("%d bytes are a request", got)
	}
}
