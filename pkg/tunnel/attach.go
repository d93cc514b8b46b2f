package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// attachKind says what a laptop wants of a new carrier, SPEC.md section 3.
type attachKind uint8

const (
	attachNew    attachKind = 1 // a session
	attachResume attachKind = 2 // to go on with one
	attachLane   attachKind = 3 // to begin or go on with the bulk lane of one
)

// sessionID names a session. The laptop makes it up at random.
type sessionID [16]byte

// attach is the laptop's first message behind the hello.
type attach struct {
	kind     attachKind
	id       sessionID
	epoch    uint64
	received uint64        // bytes of the session that the laptop has
	window   time.Duration // how long the session outlives its carrier; whole milliseconds
}

const attachSize = 1 + len(sessionID{}) + 8 + 8 + 4

// MaxResumeWindow bounds what a laptop may ask for: the pod keeps streams and their buffers so long.
const MaxResumeWindow = time.Hour

func appendAttach(b []byte, a attach) []byte {
	b = append(b, byte(a.kind))
	b = append(b, a.id[:]...)
	b = binary.BigEndian.AppendUint64(b, a.epoch)
	b = binary.BigEndian.AppendUint64(b, a.received)
	return binary.BigEndian.AppendUint32(b, uint32(a.window.Milliseconds()))
}

func readAttach(r io.Reader) (attach, error) {
	var b [attachSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return attach{}, fmt.Errorf("attach: %w", err)
	}
	a := attach{kind: attachKind(b[0])}
	rest := b[1+copy(a.id[:], b[1:]):]
	a.epoch, a.received = binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:])
	a.window = time.Duration(binary.BigEndian.Uint32(rest[16:])) * time.Millisecond
	switch {
	case a.kind < attachNew || a.kind > attachLane:
		return attach{}, fmt.Errorf("attach: kind %d", a.kind)
	case a.kind == attachNew && a.received != 0:
		return attach{}, fmt.Errorf("attach: a new session of which %d bytes have arrived", a.received)
	case a.window > MaxResumeWindow:
		return attach{}, fmt.Errorf("attach: a resume window of %v, at most %v", a.window, MaxResumeWindow)
	}
	return a, nil
}

// verdict is the pod's answer to an attach.
type verdict uint8

const (
	attachOK      verdict = 0
	attachUnknown verdict = 1 // resume: there is no such session any more
	attachOld     verdict = 2 // a later bridge has taken over
)

// attached is the pod's answer.
type attached struct {
	verdict  verdict
	received uint64 // bytes of the session that the pod has
}

const attachedSize = 1 + 8

func appendAttached(b []byte, a attached) []byte {
	return binary.BigEndian.AppendUint64(append(b, byte(a.verdict)), a.received)
}

func readAttached(r io.Reader) (attached, error) {
	var b [attachedSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return attached{}, fmt.Errorf("attached: %w", err)
	}
	a := attached{verdict: verdict(b[0]), received: binary.BigEndian.Uint64(b[1:])}
	if a.verdict > attachOld || a.verdict != attachOK && a.received != 0 {
		return attached{}, fmt.Errorf("attached: verdict %d, %d bytes", a.verdict, a.received)
	}
	return a, nil
}

// ErrDisplaced says that another bridge, started later with the same key, has taken the session over.
var ErrDisplaced = errors.New("another bridge command has taken this session over")

// errUnknownSession says that the pod does not know the session to be resumed.
var errUnknownSession = errors.New("the pod does not know the session any more")

// err is what a's verdict means to the laptop.
func (a attached) err() error {
	switch a.verdict {
	case attachUnknown:
		return errUnknownSession
	case attachOld:
		return ErrDisplaced
	}
	return nil
}

// offer is the laptop's half of attaching on a link whose hello is done: it sends a and waits for the answer. On
// error l is closed.
func (l *link) offer(ctx context.Context, a attach) (attached, error) {
	var answer attached
	err := l.bounded(ctx, func() error {
		_, err := l.Write(appendAttach(nil, a))
		if err == nil {
			answer, err = readAttached(l)
		}
		return err
	})
	return answer, err
}

// bounded runs f, which uses l, and gives it helloTimeout. On error l is closed.
func (l *link) bounded(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	err := f()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("tunnel handshake: %w", err)
	}
	return nil
}
