package logs

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// pieceSize is what is held of a line; of a longer one piece after the other is printed.
const pieceSize = 64 << 10

// line is a line, or a piece of one.
type line struct {
	stamp []byte // as the node wrote it; nil in a log without, as an old kubelet's message
	text  []byte // without the stamp, and with the line's end if that is in it
	more  bool   // it goes on what came before
}

// mark is how far a log has been printed.
type mark struct {
	last time.Time // of the last line
	most time.Time // of all lines: those of stdout and stderr may be a little out of order
	part int       // how many bytes are printed of a line that is not whole, and has the time last; 0 for none
	// recent are the times of some lines before, last among them.
	recent     [16]recent
	at, newest int // that of last, and that which was added last
}

// recent is how many whole lines had a time.
type recent struct {
	when  time.Time
	lines int
}

// read prints from the mark on. r begins at the start of the mark's second, or later. The error is nil at r's end, print's, or the
// connection's. What is cut off by an error is left to the next read.
func (m *mark) read(r io.Reader, print func(line) error) error {
	b := bufio.NewReaderSize(r, pieceSize)
	resume := !m.last.IsZero()
	was := *m
	same, found := m.recent[m.at].lines, 0 // lines with the mark's time
	begins := true                         // a line does with the next piece
	skip, ahead := false, 0                // this line; so many bytes of it
	var stamp []byte
	var when time.Time
	for {
		text, err := b.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			err = nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err // and no part of a line
		}
		if len(text) > 0 {
			more := !begins
			if begins {
				skip, ahead = false, 0
				when, stamp, text = cutStamp(text)
				if resume && !when.IsZero() {
					switch {
					case when.After(was.most):
						resume = false
					case when.Equal(was.last) && found < same:
						skip = true
						found++
						// What follows in the log is new, whatever its time, but for the rest of a line.
						resume = found < same || was.part > 0
					case when.Equal(was.last):
						resume, ahead = false, was.part
						more = was.part > 0
					default:
						skip = true
					}
				}
				if !skip && ahead == 0 {
					m.begin(when)
				}
			}
			ends := bytes.HasSuffix(text, []byte{'\n'})
			if n := min(ahead, len(text)); n > 0 {
				text, ahead = text[n:], ahead-n
			}
			if !skip && len(text) > 0 {
				if e := print(line{stamp, text, more}); e != nil {
					return &writeError{e}
				}
				m.part += len(text)
				if ends {
					m.part = 0
					m.recent[m.at].lines++
				}
			}
			begins = ends
		}
		if err != nil {
			return nil
		}
	}
}

// begin is a new line.
func (m *mark) begin(when time.Time) {
	m.part = 0
	if when.IsZero() {
		return
	}
	if !when.Equal(m.last) {
		m.last = when
		m.at = slices.IndexFunc(m.recent[:], func(r recent) bool { return r.when.Equal(when) })
		if m.at < 0 {
			m.newest = (m.newest + 1) % len(m.recent)
			m.at = m.newest
			m.recent[m.at] = recent{when: when}
		}
	}
	if when.After(m.most) {
		m.most = when
	}
}

// cutStamp parts a line and its time; what begins with none is all text.
func cutStamp(b []byte) (when time.Time, stamp, text []byte) {
	head, rest, ok := bytes.Cut(b, []byte{' '})
	if !ok {
		// An empty line: containerd's has the blank, others' may not.
		head, rest = bytes.TrimSuffix(b, []byte{'\n'}), b[len(bytes.TrimSuffix(b, []byte{'\n'})):]
	}
	when, err := time.Parse(time.RFC3339Nano, string(head))
	if err != nil {
		return time.Time{}, nil, b
	}
	return when, bytes.Clone(head), rest
}

// printer writes the lines of all sources, each whole, but for those that are longer than a piece: when another comes between, the
// rest of it is a line of its own.
type printer struct {
	out            io.Writer
	prefix, stamps bool

	mu   sync.Mutex
	open *source // has begun the line that was written last, which has no end yet
	buf  []byte
}

func (p *printer) print(s *source, l line) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open != s && l.more && string(l.text) == "\n" {
		return nil // its end was written when another came between
	}
	b := p.buf[:0]
	if p.open != nil && (p.open != s || !l.more) {
		b = append(b, '\n')
		p.open = nil
	}
	if p.open == nil {
		if p.prefix {
			b = append(b, s.colour...)
			b = append(b, "["+s.String()+"]"...)
			if s.colour != "" {
				b = append(b, "\x1b[0m"...)
			}
			b = append(b, ' ')
		}
		if p.stamps && l.stamp != nil {
			b = append(append(b, l.stamp...), ' ')
		}
	}
	b = append(b, l.text...)
	if p.open = s; bytes.HasSuffix(l.text, []byte{'\n'}) {
		p.open = nil
	}
	p.buf = b
	_, err := p.out.Write(b)
	return err
}
