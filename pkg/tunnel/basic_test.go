package tunnel

import (
	"context"
	"io"
	"testing"
)

func TestEcho(t *testing.T) {
	onAll(t, func(t *testing.T, e *ends) {
		e.server.Dial = echoTCP(t)
		e.start()
		c, err := e.client.DialContext(context.Background(), "tcp", "echo:7")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := c.(*Stream).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "hello" {
			t.Fatalf("read %q, %v", got, err)
		}
		_ = c.Close()
		info, ok := e.client.Info()
		if !ok || info.Ndots != 5 || info.Version != "v1-pod" {
			t.Errorf("Info: %+v, %v", info, ok)
		}
	})
}
