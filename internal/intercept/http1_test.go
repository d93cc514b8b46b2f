package intercept

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
)

// steps are what the two sides say, in turn: "> " the caller, "< " the other.
func TestExchangeKnowsWhenAllIsAnswered(t *testing.T) {
	const get, ok = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
	type step struct {
		text            string // after "> " or "< "
		known, answered bool
	}
	for name, steps := range map[string][]step{
		"one":             {{"> " + get, true, false}, {"< " + ok, true, true}},
		"two":             {{"> " + get, true, false}, {"< " + ok, true, true}, {"> " + get, true, false}, {"< " + ok, true, true}},
		"pipelined":       {{"> " + get + get, true, false}, {"< " + ok, true, false}, {"< " + ok, true, true}},
		"half a head":     {{"> " + get, true, false}, {"< " + ok, true, true}, {"> GE", true, false}},
		"half a body":     {{"> POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab", true, false}, {"< " + ok, true, false}, {"> cd", true, true}},
		"half an answer":  {{"> " + get, true, false}, {"< " + ok[:len(ok)-1], true, false}, {"< c", true, true}},
		"empty":           {{"> " + get, true, false}, {"< HTTP/1.1 200 OK\r\ncontent-length:0\r\n\r\n", true, true}},
		"no content":      {{"> " + get, true, false}, {"< HTTP/1.1 204 No Content\r\n\r\n", true, true}},
		"not modified":    {{"> " + get, true, false}, {"< HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", true, true}},
		"head":            {{"> HEAD / HTTP/1.1\r\n\r\n", true, false}, {"< HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", true, true}},
		"continue":        {{"> PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", true, false}, {"< HTTP/1.1 100 Continue\r\n\r\n", true, false}, {"> x", true, false}, {"< " + ok, true, true}},
		"chunks":          {{"> " + get, true, false}, {"< HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nabc\r\n10\r\n0123456789abc", true, false}, {"< def\r\n0\r\n", true, false}, {"< X: y\r\n\r\n", true, true}},
		"chunked request": {{"> POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", true, false}, {"> 0\r\n\r\n", true, false}, {"< " + ok, true, true}},
		"until close":     {{"> " + get, true, false}, {"< HTTP/1.0 200 OK\r\n\r\nabc", true, false}, {"< abc", true, false}},
		"upgrade":         {{"> " + get, true, false}, {"< HTTP/1.1 101 Switching Protocols\r\n\r\n", false, false}},
		"connect":         {{"> CONNECT a:1 HTTP/1.1\r\n\r\n", false, false}},
		"http/2":          {{"> PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, false}},
		"server first":    {{"< 220 mail\r\n", false, false}, {"> HELO x\r\n", false, false}},
		"binary":          {{"> " + strings.Repeat("\x00", maxLine+1), false, false}, {"> " + get, false, false}},
		"two lengths":     {{"> POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", false, false}},
		"bad chunk":       {{"> " + get, true, false}, {"< HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", false, false}},
		"too many ahead":  {{"> " + strings.Repeat(get, maxWaiting+1), false, false}},
	} {
		for _, size := range []int{1, 2, 7, 1 << 20} {
			var e exchange
			for i, s := range steps {
				say := e.fromCaller
				if s.text[0] == '<' {
					say = e.toCaller
				}
				for text := []byte(s.text[2:]); len(text) > 0; {
					n := min(size, len(text))
					say(text[:n])
					text = text[n:]
				}
				// A line that is not at its end may be anything.
				if e.known() != s.known || e.answered() != s.answered {
					t.Errorf("%s, step %d, by %d: known %v, answered %v", name, i, size, e.known(), e.answered())
				}
			}
		}
	}
}

// FuzzExchange compares with net/http: where that reads a request and an answer and nothing is left over,
// all must be answered, however the bytes are cut.
func FuzzExchange(f *testing.F) {
	f.Add("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", 3)
	f.Add("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 1)
	f.Add("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 304 Not Modified\r\n\r\n", 1000)
	f.Fuzz(func(t *testing.T, request, answer string, size int) {
		if size < 1 {
			return
		}
		var e exchange
		feed := func(text string, say func([]byte)) {
			for p := []byte(text); len(p) > 0; {
				n := min(size, len(p))
				say(p[:n])
				p = p[n:]
			}
		}
		feed(request, e.fromCaller)
		feed(answer, e.toCaller)
		if !e.answered() || e.requests.count != 1 || e.answers.count != 1 {
			return
		}
		requests := bufio.NewReader(bytes.NewReader([]byte(request)))
		r, err := http.ReadRequest(requests)
		if err != nil {
			return // net/http is stricter; what matters is what it takes and we would cut
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Errorf("the request is not whole: %v", err)
		}
		answers := bufio.NewReader(bytes.NewReader([]byte(answer)))
		a, err := http.ReadResponse(answers, r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, a.Body); err != nil {
			t.Errorf("the answer is not whole: %v", err)
		}
	})
}
