package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	pathpkg "path"
	"strings"
	"syscall"
	"time"
)

// View is what a program in the pod's container finds around it.
type View struct {
	Entries []Entry
	Sum     string // what the next question may name, to be answered only if something has changed
}

// Entry is one thing in a View. A path is absolute, clean, and not the root.
type Entry struct {
	Type EntryType
	Name string      // the variable's, or a path
	Mode fs.FileMode // File: permission bits
	Data []byte      // Variable: the value; File: the content; Absent: why, for people; Token: the audience, may be empty
}

// EntryType says what an Entry is.
type EntryType uint8

// The types of entry, as in SPEC.md section 11.
const (
	unchanged EntryType = iota
	Variable
	Folder
	File
	Absent // something that is not handed over
	Token  // a token of the target's ServiceAccount, which is not handed over
)

const (
	// MaxViewFiles is how many bytes of files a View should have at most: ConfigMaps and Secrets have 1 MiB each.
	MaxViewFiles = 64 << 20
	// maxView bounds a View on the wire: the files, and room for names and for the environment, which Linux bounds to a few MiB.
	maxView = MaxViewFiles + 4<<20
	// maxEntries bounds what small ones cost.
	maxEntries = 1 << 16
	// maxEntryName is Linux' own limit for a path.
	maxEntryName = 4096

	entryHead = 9 // type, mode, length of the name, length of the data

	// viewRetry is how long to wait when the pod's files were changing.
	viewRetry = 200 * time.Millisecond
	// viewTries is how often they may do so in a row.
	viewTries = 10
)

var errView = errors.New("view of the container")

// checkEntry says what is wrong with an entry, nil for nothing.
func checkEntry(t EntryType, name string) error {
	switch {
	case t == unchanged:
		if name != "" {
			return fmt.Errorf("%w: unchanged, with a name", errView)
		}
		return nil
	case name == "" || len(name) > maxEntryName || strings.Contains(name, "\x00"):
		return fmt.Errorf("%w: a name of %d bytes, or with a NUL: %.64q", errView, len(name), name)
	case t == Variable && strings.Contains(name, "="):
		return fmt.Errorf("%w: a variable named %.64q", errView, name)
	case t >= Folder && t <= Token && (name == "/" || !pathpkg.IsAbs(name) || pathpkg.Clean(name) != name):
		return fmt.Errorf("%w: the path %.64q", errView, name)
	}
	return nil
}

// ViewWriter takes a View's entries, in the pod.
type ViewWriter struct {
	w       *bufio.Writer
	sum     hash.Hash
	size    int64
	entries int
}

func newViewWriter(w io.Writer) *ViewWriter {
	v := &ViewWriter{sum: sha256.New()}
	v.w = bufio.NewWriterSize(io.MultiWriter(v.sum, w), maxFrame)
	return v
}

// Add adds an entry.
func (v *ViewWriter) Add(e Entry) error {
	return v.AddFrom(e, int64(len(e.Data)), bytes.NewReader(e.Data))
}

// AddFrom adds an entry whose data are read from r, to its end, which has to come after size bytes.
func (v *ViewWriter) AddFrom(e Entry, size int64, r io.Reader) error {
	if err := checkEntry(e.Type, e.Name); err != nil {
		return err
	}
	v.entries++
	if v.size += entryHead + int64(len(e.Name)) + size; size < 0 || v.size > maxView || v.entries > maxEntries {
		return fmt.Errorf("%w: more than %d bytes or %d entries", errView, maxView, maxEntries)
	}
	head := append(make([]byte, 0, entryHead), byte(e.Type))
	head = binary.BigEndian.AppendUint16(head, uint16(e.Mode.Perm()))
	head = binary.BigEndian.AppendUint16(head, uint16(len(e.Name)))
	head = binary.BigEndian.AppendUint32(head, uint32(size))
	_, _ = v.w.Write(head) // an error stays, for Flush
	_, _ = v.w.WriteString(e.Name)
	n, err := io.Copy(v.w, io.LimitReader(r, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("%w: %s has changed while it was read", errView, e.Name)
	}
	return err
}

func (v *ViewWriter) flush() error { return v.w.Flush() }

// total is the Sum of what was added and flushed.
func (v *ViewWriter) total() string { return hex.EncodeToString(v.sum.Sum(nil)) }

// tellView serves one Look stream.
func (s *Server) tellView(st *Stream) error {
	s.viewMu.Lock()
	defer s.viewMu.Unlock()
	if err := st.Accept(); err != nil {
		return err
	}
	w := newViewWriter(st)
	if have := st.Header().Address; have != "" {
		now := newViewWriter(io.Discard)
		if s.View(now) == nil && now.flush() == nil && now.total() == have {
			return errors.Join(w.Add(Entry{}), w.flush(), st.CloseWrite())
		}
	}
	if err := s.View(w); err != nil {
		return err
	}
	return errors.Join(w.flush(), st.CloseWrite())
}

// readView reads an answer to its end. It returns nil for one that says that nothing has changed.
func readView(r io.Reader) (*View, error) {
	sum := sha256.New()
	limited := &io.LimitedReader{R: r, N: maxView + 1}
	in := bufio.NewReaderSize(io.TeeReader(limited, sum), maxFrame)
	v := &View{}
	for count := 0; ; count++ {
		e, err := readEntry(in)
		switch {
		case limited.N <= 0 || count > maxEntries:
			return nil, fmt.Errorf("%w: more than %d bytes or %d entries", errView, maxView, maxEntries)
		case err == io.EOF: //nolint:errorlint // readEntry returns it bare, between entries
			v.Sum = hex.EncodeToString(sum.Sum(nil))
			return v, nil
		case err != nil:
			return nil, err
		case e.Type == unchanged:
			if _, err := in.ReadByte(); count > 0 || err != io.EOF { //nolint:errorlint // a Reader's own
				return nil, fmt.Errorf("%w: unchanged, and something else", errView)
			}
			return nil, nil
		case e.Type <= Token:
			v.Entries = append(v.Entries, e)
		}
	}
}

// readEntry reads one entry; io.EOF when there is none.
func readEntry(r io.Reader) (Entry, error) {
	var head [entryHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if err == io.EOF { //nolint:errorlint // ReadFull returns it bare
			return Entry{}, err
		}
		return Entry{}, fmt.Errorf("%w: %w", errView, err)
	}
	nameLen, size := binary.BigEndian.Uint16(head[3:]), binary.BigEndian.Uint32(head[5:])
	if nameLen > maxEntryName || size > maxView {
		return Entry{}, fmt.Errorf("%w: an entry with a name of %d bytes and data of %d", errView, nameLen, size)
	}
	name := make([]byte, nameLen)
	_, err := io.ReadFull(r, name)
	var data bytes.Buffer // grows with what arrives: the length is only the other end's word
	if err == nil {
		_, err = io.CopyN(&data, r, int64(size))
	}
	if err != nil {
		return Entry{}, fmt.Errorf("%w: cut short: %w", errView, err)
	}
	e := Entry{Type: EntryType(head[0]), Name: string(name), Mode: fs.FileMode(binary.BigEndian.Uint16(head[1:])).Perm(), Data: data.Bytes()}
	if e.Type == unchanged && (size > 0 || nameLen > 0) {
		return Entry{}, fmt.Errorf("%w: unchanged, with a name or data", errView)
	}
	return e, checkEntry(e.Type, e.Name)
}

// View asks the pod what its container sees; nil when that is what the View with the Sum have has, which may be "". It waits for
// a session, and asks the next one when that is lost; ctx bounds all of it. The error wraps ErrClosed when Run has returned.
func (c *Client) View(ctx context.Context, have string) (*View, error) {
	for try := 1; ; try++ {
		v, err := c.look(ctx, have)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if isErrno(err, syscall.ECONNRESET) && try < viewTries { // by the pod, whose files were changing, or with the session
			select {
			case <-ctx.Done():
			case <-time.After(viewRetry):
			}
			continue
		}
		return nil, fmt.Errorf("the container's environment and files: %w", err)
	}
}

func (c *Client) look(ctx context.Context, have string) (*View, error) {
	st, err := c.open(ctx, Header{Kind: Look, Network: "tcp", Address: have}, false)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, st.Reset)
	defer stop()
	_ = st.CloseWrite()
	v, err := readView(st)
	if err != nil {
		st.Reset()
		return nil, err
	}
	return v, st.Close()
}
