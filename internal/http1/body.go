package http1

import (
	"bytes"
	"errors"
	"strconv"
)

// maxChunkLine bounds the line before a chunk: its size, and extensions, which hardly anybody sends.
const maxChunkLine = 4 << 10

// Body finds the end of one message's body. The zero value is no body.
type Body struct {
	state bodyState
	left  int64  // fixed, chunkData: bytes to come
	line  []byte // of the line being read
	total int    // of the trailers so far
}

type bodyState int

const (
	over       bodyState = iota
	fixed                // of known length
	chunkSize            // before a chunk
	chunkData            // in one
	chunkEnd             // in the end of line behind it
	trailers             // behind the last one
	untilClose           // until the connection ends
)

// Over says that no byte is to come.
func (b *Body) Over() bool { return b.state == over }

// UntilClose says that it ends with the connection.
func (b *Body) UntilClose() bool { return b.state == untilClose }

// Read returns how many bytes of p are the body's. After an error, which says that where the body ends could be read in
// two ways, n is without meaning.
func (b *Body) Read(p []byte) (n int, err error) {
	for n < len(p) {
		switch b.state {
		case over:
			return n, nil
		case untilClose:
			return len(p), nil
		case fixed, chunkData:
			m := min(b.left, int64(len(p)-n))
			n += int(m)
			if b.left -= m; b.left > 0 {
				return n, nil
			}
			if b.state == fixed {
				b.state = over
			} else {
				b.state = chunkEnd
			}
			continue
		}
		part := p[n:]
		end := bytes.IndexByte(part, '\n') + 1
		if end > 0 {
			part = part[:end]
		}
		n += len(part)
		if len(b.line)+len(part) > maxChunkLine && b.state != trailers || b.total+len(part) > MaxHead {
			return n, ErrTooLong
		}
		b.line = append(b.line, part...)
		if b.state == trailers {
			b.total += len(part)
		}
		if end == 0 {
			continue
		}
		text, err := cutLine(b.line)
		if err == nil {
			err = b.endOfLine(text)
		}
		if err != nil {
			return n, err
		}
		b.line = b.line[:0]
	}
	return n, nil
}

// endOfLine acts on one line.
func (b *Body) endOfLine(text []byte) (err error) {
	switch b.state {
	case chunkSize:
		size := text
		if i := bytes.IndexByte(text, ';'); i >= 0 {
			size = text[:i]
		}
		for _, c := range size {
			if !hex(c) {
				return errors.New("a chunk's size is no number")
			}
		}
		if b.left, err = strconv.ParseInt(string(size), 16, 63); err != nil {
			return errors.New("a chunk's size is no number")
		}
		b.state = chunkData
		if b.left == 0 {
			b.state = trailers
		}
	case chunkEnd:
		if len(text) > 0 {
			return errors.New("a chunk is longer than its size")
		}
		b.state = chunkSize
	case trailers:
		if len(text) == 0 {
			b.state = over
			return nil
		}
		_, err = field(text)
	}
	return err
}

func hex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
