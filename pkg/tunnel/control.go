package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
)

// messageType is the first byte of a control message, SPEC.md section 5.
type messageType uint8

const (
	messagePing   messageType = 1
	messagePong   messageType = 2
	messageReset  messageType = 3
	messageReady  messageType = 4
	messageWindow messageType = 5
	messageMoved  messageType = 6
	messageLane   messageType = 7
	messageNote   messageType = 8
)

// resetCode says how much of a stream is over.
type resetCode uint8

const (
	resetBoth       resetCode = 0 // both directions: the FIN that follows is not an end but a reset
	resetNotReading resetCode = 1 // the sender reads no more; what it sent stays valid
)

const (
	controlFixed = 3 // type, length
	// maxControl bounds a payload: ours have at most 8 bytes, the rest is room for later versions.
	maxControl = 1024
)

// message is one control message; which fields count depends on the type.
type message struct {
	typ    messageType
	echo   uint64    // ping, pong
	stream uint32    // reset, window, moved
	code   resetCode // reset
	limit  uint64    // window
	on     bool      // ready
	text   string    // note
}

func appendMessage(b []byte, m message) []byte {
	start := len(b)
	b = append(b, byte(m.typ), 0, 0)
	switch m.typ {
	case messagePing, messagePong:
		b = binary.BigEndian.AppendUint64(b, m.echo)
	case messageReset:
		b = binary.BigEndian.AppendUint32(b, m.stream)
		b = append(b, byte(m.code))
	case messageWindow:
		b = binary.BigEndian.AppendUint32(b, m.stream)
		b = binary.BigEndian.AppendUint64(b, m.limit)
	case messageMoved:
		b = binary.BigEndian.AppendUint32(b, m.stream)
	case messageReady:
		on := byte(0)
		if m.on {
			on = 1
		}
		b = append(b, on)
	case messageNote:
		b = append(b, fitting(m.text)...)
	}
	binary.BigEndian.PutUint16(b[start+1:], uint16(len(b)-start-controlFixed))
	return b
}

// fitting is text as far as it fits, in whole lines, with a last one that says how many are left out.
func fitting(text string) string {
	if len(text) <= maxControl {
		return text
	}
	const more = "and %d more"
	room := maxControl - len(more) - len("1000000")
	kept, left := 0, 0
	for line := range strings.Lines(text) {
		if left > 0 || kept+len(line) > room {
			left++
		} else {
			kept += len(line)
		}
	}
	return text[:kept] + fmt.Sprintf(more, left)
}

// readMessage reads one message. A type that is not known comes back with that type alone.
func readMessage(r io.Reader) (message, error) {
	var buf [maxControl]byte
	if _, err := io.ReadFull(r, buf[:controlFixed]); err != nil {
		return message{}, fmt.Errorf("control message: %w", err)
	}
	m := message{typ: messageType(buf[0])}
	size := int(binary.BigEndian.Uint16(buf[1:]))
	if size > maxControl {
		return message{}, fmt.Errorf("control message: type %d with %d bytes, at most %d", m.typ, size, maxControl)
	}
	p := buf[:size]
	if _, err := io.ReadFull(r, p); err != nil {
		return message{}, fmt.Errorf("control message: %w", err)
	}
	want := -1
	switch m.typ {
	case messagePing, messagePong:
		if want = 8; size == want {
			m.echo = binary.BigEndian.Uint64(p)
		}
	case messageReset:
		if want = 5; size == want {
			m.stream, m.code = binary.BigEndian.Uint32(p), resetCode(p[4])
		}
	case messageWindow:
		if want = 12; size == want {
			m.stream, m.limit = binary.BigEndian.Uint32(p), binary.BigEndian.Uint64(p[4:])
		}
	case messageMoved:
		if want = 4; size == want {
			m.stream = binary.BigEndian.Uint32(p)
		}
	case messageLane:
		want = 0
	case messageReady:
		if want = 1; size == want {
			m.on = p[0] != 0
		}
	case messageNote:
		m.text = string(p)
	}
	if want >= 0 && size != want {
		return message{}, fmt.Errorf("control message: type %d with %d bytes, want %d", m.typ, size, want)
	}
	return m, nil
}

// outbox holds the control messages that wait to be written. Putting never blocks, and the number
// waiting is bounded without dropping: one ping, one pong (the newest), one ready, one note (the newest), one for the lane, and at
// most two resets, one move and one window (the newest) for each stream that was open.
type outbox struct {
	wake chan struct{} // capacity 1: something was put

	mu                      sync.Mutex
	ping, pong, ready, note *message
	resets                  []message
	windows                 map[uint32]uint64 // stream to limit
	after                   []func()          // to be called once the messages are written
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), windows: make(map[uint32]uint64)}
}

func (o *outbox) put(m message) { o.putThen(m, nil) }

// putThen has the writer call after once m is written: a reset, or a move, goes out before the FIN.
func (o *outbox) putThen(m message, after func()) {
	o.mu.Lock()
	if after != nil {
		o.after = append(o.after, after)
	}
	switch m.typ {
	case messagePing:
		o.ping = &m
	case messagePong:
		o.pong = &m
	case messageReady:
		o.ready = &m
	case messageNote:
		o.note = &m
	case messageWindow:
		o.windows[m.stream] = max(o.windows[m.stream], m.limit)
	default:
		o.resets = append(o.resets, m)
	}
	o.mu.Unlock()
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take appends all that waits to b; after is to be called after it is written.
func (o *outbox) take(b []byte) (messages []byte, after []func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range []**message{&o.pong, &o.ping, &o.ready, &o.note} {
		if *m != nil {
			b = appendMessage(b, **m)
			*m = nil
		}
	}
	for _, m := range o.resets {
		b = appendMessage(b, m)
	}
	o.resets = o.resets[:0]
	for stream, limit := range o.windows {
		b = appendMessage(b, message{typ: messageWindow, stream: stream, limit: limit})
	}
	clear(o.windows)
	after = o.after
	o.after = nil
	return b, after
}
