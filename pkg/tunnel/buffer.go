package tunnel

import "sync"

// chunkSize is what a sendBuffer grows and shrinks by: small, since a session at rest keeps one, and
// large enough that taking one is nothing beside filling it.
const chunkSize = 64 << 10

type chunk [chunkSize]byte

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// sendBuffer is a stretch of an endless stream of bytes: what was appended and is not yet discarded.
// Positions count from the stream's start. The zero value is empty, at position 0.
type sendBuffer struct {
	start, end uint64
	chunks     []*chunk // the first holds start
	skip       int      // bytes of the first chunk before start
}

func (b *sendBuffer) len() int { return int(b.end - b.start) }

func (b *sendBuffer) append(p []byte) {
	for len(p) > 0 {
		at := b.skip + b.len()
		if at == len(b.chunks)*chunkSize {
			b.chunks = append(b.chunks, chunks.Get().(*chunk))
		}
		n := copy(b.chunks[at/chunkSize][at%chunkSize:], p)
		b.end += uint64(n)
		p = p[n:]
	}
}

// copyAt copies what begins at pos to p, and says how much that was. pos lies in the buffer, or at its end.
func (b *sendBuffer) copyAt(p []byte, pos uint64) (total int) {
	p = p[:min(uint64(len(p)), b.end-pos)]
	for at := b.skip + int(pos-b.start); total < len(p); {
		n := copy(p[total:], b.chunks[at/chunkSize][at%chunkSize:])
		total += n
		at += n
	}
	return total
}

// discard drops what comes before pos, which lies in the buffer, or at its end.
func (b *sendBuffer) discard(pos uint64) {
	b.skip += int(pos - b.start)
	b.start = pos
	n := b.skip / chunkSize
	if b.len() == 0 {
		n, b.skip = len(b.chunks), 0
	} else {
		b.skip %= chunkSize
	}
	for _, c := range b.chunks[:n] {
		chunks.Put(c)
	}
	m := copy(b.chunks, b.chunks[n:])
	clear(b.chunks[m:])
	b.chunks = b.chunks[:m]
}
