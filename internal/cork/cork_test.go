package cork

import (
	"errors"
	"io"
	"net"
	"testing"
)

// counter counts the writes that reach the connection below.
type counter struct {
	net.Conn
	writes int
	bytes  []byte
	err    error
}

func (c *counter) Write(p []byte) (int, error) {
	c.writes++
	c.bytes = append(c.bytes, p...)
	return len(p), c.err
}

func TestWhatIsGatheredLeavesInOneWrite(t *testing.T) {
	below := &counter{}
	c := &Conn{Conn: below}
	for range 2 {
		err := c.Gather(func() error {
			for _, s := range []string{"a", "bc", "def"} {
				if _, err := io.WriteString(c, s); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if below.writes != 2 || string(below.bytes) != "abcdefabcdef" {
		t.Errorf("%d writes of %q", below.writes, below.bytes)
	}
}

func TestAWriteByItselfLeavesAtOnce(t *testing.T) {
	below := &counter{}
	c := &Conn{Conn: below}
	_, _ = io.WriteString(c, "a")
	_ = c.Gather(func() error { return nil })
	if below.writes != 1 {
		t.Errorf("%d writes, want 1", below.writes)
	}
}

func TestTheErrorBelowIsGathersError(t *testing.T) {
	broken, wrong := errors.New("broken"), errors.New("wrong")
	c := &Conn{Conn: &counter{err: broken}}
	err := c.Gather(func() error {
		_, _ = io.WriteString(c, "a")
		return wrong
	})
	if !errors.Is(err, broken) || !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
}

func TestAReadGetsWhatThereIs(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	c := &Conn{Conn: near}
	c.Open(16)
	go func() { _, _ = io.WriteString(far, "hello") }()
	var got []byte
	for len(got) < 5 {
		b := make([]byte, 2)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n]...)
	}
	if string(got) != "hello" {
		t.Errorf("got %q", got)
	}
}
