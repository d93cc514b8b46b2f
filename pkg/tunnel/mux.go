package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/hashicorp/yamux"
)

// yamux's settings. What it decides by a timer is off where it can be: only the session's echo decides
// what is dead.
const (
	// muxWindow is yamux's window of a stream, which never decides anything: windows are ours (window.go). yamux
	// returns credit only when half of it is read, so twice our largest keeps it out of the way.
	muxWindow = 2 * maxWindow
	// acceptBacklog is how many streams may be opened before the other end has seen them. The opener
	// waits beyond it, so it bounds opens per round trip; a stream beyond it on the accepting side
	// would be a peer that does not keep the protocol. Both ends must agree.
	acceptBacklog = 1024
	// maxStreams is how many streams the other end may have open: 10,000 idle connections must fit.
	maxStreams = 16384
	// acceptors take new streams from yamux. Taking one waits for its acknowledgement's turn on the
	// carrier, so on a slow and busy one they would be taken one queue's length after the other.
	acceptors = 16
	// yamuxWriteTimeout ends a write that waits for its turn. It leaves the stream in an unknown state, so it
	// comes so much later than what the session survives, its resume window.
	yamuxWriteTimeout = time.Minute
	// streamOpenTimeout, off: yamux would close the whole session when one stream is not accepted in time.
	streamOpenTimeout = 0
	// streamCloseTimeout, off: yamux would cut a half-open stream.
	streamCloseTimeout = 0
	// keepAliveInterval is not used (keep-alive is off), but yamux insists on one.
	keepAliveInterval = time.Hour
)

func yamuxConfig(log *slog.Logger, resumeWindow time.Duration) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          acceptBacklog,
		EnableKeepAlive:        false,
		KeepAliveInterval:      keepAliveInterval,
		ConnectionWriteTimeout: resumeWindow + yamuxWriteTimeout,
		MaxStreamWindowSize:    muxWindow,
		StreamOpenTimeout:      streamOpenTimeout,
		StreamCloseTimeout:     streamCloseTimeout,
		Logger:                 yamuxLogger{log},
	}
}

// yamuxLogger passes on what yamux says. All of it is for developers: what users need to know, the
// session says itself.
type yamuxLogger struct{ log *slog.Logger }

func (l yamuxLogger) Print(v ...any)   { l.say(func() string { return fmt.Sprint(v...) }) }
func (l yamuxLogger) Println(v ...any) { l.say(func() string { return fmt.Sprint(v...) }) }
func (l yamuxLogger) Printf(format string, v ...any) {
	l.say(func() string { return fmt.Sprintf(format, v...) })
}

func (l yamuxLogger) say(text func() string) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug(text())
	}
}

// yamux frame headers, as its spec.md has them.
const (
	frameHeader = 12 // version, type, flags (2), stream (4), length (4)
	frameData   = 0

	flagSYN = 1 << 0
	flagACK = 1 << 1
	flagFIN = 1 << 2
	flagRST = 1 << 3
)

// frame is a frame's header, as far as it matters here.
type frame struct {
	stream uint32
	flags  uint16
	data   uint32 // bytes of payload that follow
}

func parseFrame(header [frameHeader]byte) frame {
	f := frame{
		stream: binary.BigEndian.Uint32(header[4:]),
		flags:  binary.BigEndian.Uint16(header[2:]),
	}
	if header[1] == frameData {
		f.data = binary.BigEndian.Uint32(header[8:])
	}
	return f
}

// frameTap reads along with yamux, and gives it whole frames only. It tells see of every frame header before yamux gets
// to it: yamux itself reports neither a new stream before it is accepted nor, once the session is over, whether a
// stream's end had arrived before. And yamux locks a stream while a frame's data are still arriving: a reader would hang
// there, deadline or not, for as long as the next carrier takes. What yamux writes it tells say of, as the answer to a new
// stream's first frame may come before yamux has returned the stream.
type frameTap struct {
	io.ReadWriteCloser
	see    func(frame) error // an error ends the session
	say    func(frame)
	failed func(error) // reading failed

	buf        [2 * (frameHeader + maxFrame)]byte
	begin, end int // of what buf holds
	partial    int // bytes of the last frame in it, when that is not complete
	skip       int // bytes that it still lacks behind its header
	header     [frameHeader]byte
	have       int // bytes of its header

	body bool // what is written next is a frame's body
}

// Write is given a header, or a whole body.
func (t *frameTap) Write(p []byte) (int, error) {
	if t.body {
		t.body = false
	} else {
		f := parseFrame([frameHeader]byte(p))
		t.body = f.data > 0
		t.say(f)
	}
	return t.ReadWriteCloser.Write(p)
}

func (t *frameTap) Read(p []byte) (int, error) {
	for t.begin == t.end-t.partial {
		t.end = copy(t.buf[:], t.buf[t.begin:t.end])
		t.begin = 0
		n, err := t.ReadWriteCloser.Read(t.buf[t.end:])
		if scanErr := t.scan(t.buf[t.end : t.end+n]); scanErr != nil {
			err = scanErr
		}
		t.end += n
		if err != nil {
			t.failed(err)
			return 0, err
		}
	}
	n := copy(p, t.buf[t.begin:t.end-t.partial])
	t.begin += n
	return n, nil
}

// scan follows the frames in what arrived.
func (t *frameTap) scan(p []byte) error {
	for len(p) > 0 {
		if t.skip > 0 {
			n := min(len(p), t.skip)
			t.skip -= n
			t.partial += n
			p = p[n:]
		} else {
			n := copy(t.header[t.have:], p)
			t.have += n
			t.partial += n
			p = p[n:]
			if t.have < frameHeader {
				return nil
			}
			t.have = 0
			f := parseFrame(t.header)
			if f.data > maxFrame {
				return fmt.Errorf("frame: %d bytes, at most %d", f.data, maxFrame)
			}
			t.skip = int(f.data)
			if err := t.see(f); err != nil {
				return err
			}
		}
		if t.skip == 0 {
			t.partial = 0
		}
	}
	return nil
}
