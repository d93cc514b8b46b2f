package forward

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"bridge/internal/hint"
)

const (
	// maxList bounds a list's lines: each has listeners and watches of its own.
	maxList = 1000
	// maxListLine bounds a line, in bytes.
	maxListLine = 4096
	// maxWrong bounds the lines that an error names.
	maxWrong = 20
)

// Listed is one line of a list.
type Listed struct {
	Args
	Where string // "list.txt:3"
}

// ParseList reads a list: in each line what one would write after bridge forward. What is behind a # that begins a word is a
// comment. The error names the first lines that are wrong.
func ParseList(r io.Reader, name string) (list []Listed, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxListLine)
	var wrong []string
	next := ""
	n := 0
	for lines.Scan() {
		n++
		where := fmt.Sprintf("%s:%d", name, n)
		var words []string
		for word := range strings.FieldsSeq(lines.Text()) {
			if strings.HasPrefix(word, "#") {
				break
			}
			words = append(words, word)
		}
		if len(words) == 0 {
			continue
		}
		a, err := ParseArgs(words)
		if err != nil {
			wrong = append(wrong, where+": "+err.Error())
			next = hint.Of(err)
			if len(wrong) == maxWrong {
				wrong = append(wrong, "and what follows is not read")
				break
			}
			continue
		}
		if len(list) == maxList {
			return nil, hint.Newf(hint.Usage, "divide it", "%s has more than %d targets", name, maxList)
		}
		list = append(list, Listed{a, where})
	}
	switch {
	case lines.Err() != nil:
		return nil, hint.Newf(hint.Usage, "a line is TARGET PORT..., as behind bridge forward", "%s:%d: %w", name, n+1, lines.Err())
	case len(wrong) > 0:
		return nil, hint.Newf(hint.Usage, next, "%s", strings.Join(wrong, "\n"))
	case len(list) == 0:
		return nil, hint.Newf(hint.Usage, "a line is TARGET PORT..., as behind bridge forward", "%s names no target", name)
	}
	return list, nil
}
