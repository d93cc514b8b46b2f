package kube

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"time"
)

// What comes back is an answer, whatever it is, and so is the end; a port that takes all and gives nothing has none.
func TestAskWaitsForAnAnswer(t *testing.T) {
	both(t, func(t *testing.T, ws bool) {
		silent := func(d io.ReadWriteCloser, _ string) error {
			_, _ = io.Copy(io.Discard, d)
			return nil
		}
		for name, port := range map[string]struct {
			handle  func(io.ReadWriteCloser, string) error
			answers bool
			err     error
		}{
			"an answer": {func(d io.ReadWriteCloser, _ string) error {
				r, err := http.ReadRequest(bufio.NewReader(d))
				if err != nil || r.Method != http.MethodGet || r.URL.Path != "/" || r.Host != "localhost:80" {
					t.Errorf("it asks %+v, %v", r, err)
				}
				_, err = io.WriteString(d, "x")
				return err
			}, true, nil},
			"the end": {func(io.ReadWriteCloser, string) error { return nil }, true, nil},
			"nobody":  {func(io.ReadWriteCloser, string) error { return errors.New("connect: connection refused") }, false, syscall.ECONNREFUSED},
			"silence": {silent, false, nil},
		} {
			_, c := newForwardServer(t, ws, port.handle)
			ctx, cancel := t.Context(), func() {}
			if name == "silence" {
				ctx, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
			}
			if answers, err := c.Ask(ctx, "shop", "orders-0", 80); answers != port.answers || !errors.Is(err, port.err) {
				t.Errorf("%s: %v, %v", name, answers, err)
			}
			cancel()
		}
		// Who is only knocked at gets no request.
		_, c := newForwardServer(t, ws, func(d io.ReadWriteCloser, _ string) error {
			if b, err := io.ReadAll(d); len(b) > 0 || err != nil {
				t.Errorf("it sends %q, %v", b, err)
			}
			return nil
		})
		if err := c.Knock(t.Context(), "shop", "orders-0", 80); err != nil {
			t.Error(err)
		}
	})
}
