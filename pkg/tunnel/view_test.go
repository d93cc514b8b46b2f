package tunnel

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

var goldenView = []Entry{
	{Type: Variable, Name: "GREETING", Data: []byte("two\nlines")},
	{Type: Variable, Name: "EMPTY", Data: []byte{}},
	{Type: Absent, Name: "/data", Data: []byte(`the PersistentVolumeClaim "orders"`)},
	{Type: Token, Name: "/var/run/secrets/tokens/vault", Data: []byte("vault")},
	{Type: Folder, Name: "/etc/orders", Data: []byte{}},
	{Type: File, Name: "/etc/orders/run.sh", Mode: 0o755, Data: []byte("#!/bin/sh\n")},
}

func write(t testing.TB, list []Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := newViewWriter(&b)
	for _, e := range list {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestViewBytes(t *testing.T) {
	b := write(t, goldenView)
	golden(t, "view", b)
	golden(t, "view-unchanged", write(t, []Entry{{}}))
	v, err := readView(bytes.NewReader(b))
	if err != nil || !same(v.Entries, goldenView) {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := readView(bytes.NewReader(write(t, []Entry{{}}))); v != nil || err != nil {
		t.Errorf("unchanged: %+v, %v", v, err)
	}
	if v, err := readView(strings.NewReader("\x2a\x00\x00\x00\x01\x00\x00\x00\x02xNEW\x01\x00\x00\x00\x01\x00\x00\x00\x01AB")); err == nil {
		t.Errorf("junk: %+v", v)
	}
	if v, err := readView(strings.NewReader("\x2a\x00\x00\x00\x01\x00\x00\x00\x03xNEW\x01\x00\x00\x00\x01\x00\x00\x00\x01AB")); err != nil || len(v.Entries) != 1 {
		t.Errorf("a later version's type: %+v, %v", v, err)
	}
}

func same(a, b []Entry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if !bytes.Equal(x.Data, y.Data) {
			return false
		}
		x.Data, y.Data = nil, nil
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

func TestViewRefusesBadNames(t *testing.T) {
	for _, e := range []Entry{
		{Type: File, Name: "/"}, {Type: File, Name: "etc/x"}, {Type: File, Name: "/etc/../x"}, {Type: File, Name: "/etc//x"},
		{Type: Folder, Name: "/etc/"}, {Type: File, Name: "/etc/x\x00y"}, {Type: Absent, Name: ""}, {Type: Token, Name: "token"},
		{Type: Variable, Name: "A=B"}, {Type: Variable}, {Type: File, Name: "/" + strings.Repeat("a", maxEntryName)}, {Name: "x"},
	} {
		if err := newViewWriter(io.Discard).Add(e); err == nil {
			t.Errorf("sent %v %.40q", e.Type, e.Name)
		}
		head := []byte{byte(e.Type), 0, 0, byte(len(e.Name) >> 8), byte(len(e.Name)), 0, 0, 0, 0}
		if v, err := readView(bytes.NewReader(append(head, e.Name...))); err == nil {
			t.Errorf("read %+.80v", v)
		}
	}
	for what, b := range map[string]string{
		"cut in the head":       "\x01\x00",
		"cut in the name":       "\x01\x00\x00\x00\x05\x00\x00\x00\x00A",
		"cut in the data":       "\x01\x00\x00\x00\x01\x00\x00\x00\x05Axx",
		"more data than a view": "\x03\x00\x00\x00\x02\xff\xff\xff\xff/x",
		"unchanged, and more":   "\x00\x00\x00\x00\x00\x00\x00\x00\x00x",
		"more, and unchanged":   "\x01\x00\x00\x00\x01\x00\x00\x00\x00A\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"unchanged, with data":  "\x00\x00\x00\x00\x00\x00\x00\x00\x01x",
	} {
		if v, err := readView(strings.NewReader(b)); err == nil {
			t.Errorf("%s: %+v", what, v)
		}
	}
	w := newViewWriter(io.Discard)
	for range maxEntries {
		if err := w.Add(Entry{Type: Variable, Name: "A"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(Entry{Type: Variable, Name: "A"}); err == nil {
		t.Error("more entries than allowed were sent")
	}
	if err := newViewWriter(io.Discard).AddFrom(Entry{Type: File, Name: "/x"}, maxView, nil); err == nil {
		t.Error("more bytes than allowed were sent")
	}
	if err := newViewWriter(io.Discard).AddFrom(Entry{Type: File, Name: "/x"}, 3, strings.NewReader("ab")); err == nil {
		t.Error("a file that has become shorter was sent")
	}
	if err := newViewWriter(io.Discard).AddFrom(Entry{Type: File, Name: "/x"}, 1, strings.NewReader("ab")); err == nil {
		t.Error("a file that has become longer was sent")
	}
}

func FuzzView(f *testing.F) {
	f.Add(write(f, goldenView))
	f.Add(write(f, []Entry{{}}))
	f.Add([]byte("\x2a\x00\x00\x00\x01\x00\x00\x00\x03xNEW"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := readView(bytes.NewReader(b))
		if err != nil || v == nil {
			return
		}
		back, err := readView(bytes.NewReader(write(t, v.Entries)))
		if err != nil || !same(back.Entries, v.Entries) {
			t.Fatalf("%+v became %+v, %v", v, back, err)
		}
	})
}

// The pod's answer comes whole, over every carrier, and again only when something has changed.
func TestView(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		big := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
		content := atomic.Pointer[[]byte]{}
		content.Store(&big)
		e.server.View = func(w *ViewWriter) error {
			for _, entry := range goldenView {
				if err := w.Add(entry); err != nil {
					return err
				}
			}
			data := *content.Load()
			return w.AddFrom(Entry{Type: File, Name: "/etc/big", Mode: 0o644}, int64(len(data)), bytes.NewReader(data))
		}
		e.start().waitReady()
		v, err := e.client.View(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if want := append(goldenView[:len(goldenView):len(goldenView)], Entry{Type: File, Name: "/etc/big", Mode: 0o644, Data: big}); !same(v.Entries, want) {
			t.Fatalf("%d entries, not as told", len(v.Entries))
		}
		if again, err := e.client.View(t.Context(), v.Sum); err != nil || again != nil {
			t.Errorf("unchanged: %v, %v", again, err)
		}
		content.Store(&goldenView[0].Data)
		other, err := e.client.View(t.Context(), v.Sum)
		if err != nil || other == nil || other.Sum == v.Sum || len(other.Entries) != len(v.Entries) {
			t.Errorf("changed: %v, %v", other, err)
		}
		e.wantNoStreams()
	})
}

// What changes while it is told is asked for again; what nobody tells is refused.
func TestViewThatChanges(t *testing.T) {
	e := newEnds(t, pipeNetwork(t))
	var calls atomic.Int32
	e.server.View = func(w *ViewWriter) error {
		if err := w.Add(goldenView[0]); err != nil {
			return err
		}
		if calls.Add(1) < 3 {
			return errors.New("changes")
		}
		return nil
	}
	e.start().waitReady()
	if v, err := e.client.View(t.Context(), ""); err != nil || len(v.Entries) != 1 || calls.Load() != 3 {
		t.Errorf("%+v, %v after %d calls", v, err, calls.Load())
	}
	calls.Store(-1000)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrNoProgress)
	if v, err := e.client.View(ctx, ""); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("%+v, %v", v, err)
	}
	calls.Store(-1000)
	if v, err := e.client.View(t.Context(), ""); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%+v, %v", v, err)
	}
	e.wantNoStreams()
}

func TestViewRefused(t *testing.T) {
	e := newEnds(t, pipeNetwork(t))
	e.start().waitReady()
	if v, err := e.client.View(t.Context(), hex.EncodeToString(make([]byte, 32))); err == nil || !strings.Contains(err.Error(), "view is not served here") {
		t.Errorf("%+v, %v", v, err)
	}
	e.wantNoStreams()
}
