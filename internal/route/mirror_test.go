package route

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"bridge/pkg/tunnel"
)

// mirrored serves original with a copy for laptop.
func mirrored(t testing.TB, m *Mirror, laptop, original func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	dial := server(t, func(c net.Conn) {
		_ = c.SetDeadline(time.Time{})
		_ = m.Serve(ctx, c, laptop, func(c net.Conn) error {
			o, err := original(ctx)
			if err != nil {
				return err
			}
			return tunnel.Splice(c, o)
		})
	})
	t.Cleanup(cancel)
	return dial
}

func TestALaptopGetsACopy(t *testing.T) {
	original, laptop := &record{name: "original"}, &record{name: "laptop"}
	done := make(chan struct{})
	copies := server(t, func(c net.Conn) { laptop.serve(c); close(done) })
	if got := ask(t, mirrored(t, new(Mirror), copies, server(t, original.serve)), plain+adas, 7); strings.Count(got, "original") != 2 || strings.Contains(got, "laptop") {
		t.Errorf("got %q", got)
	}
	<-done
	if got := laptop.all(); got != plain+adas {
		t.Errorf("the laptop got %q", got)
	}
}

// A laptop that is away, or takes nothing, costs nothing; what it missed is counted.
func TestALaptopThatTakesNoCopyCostsNothing(t *testing.T) {
	stop := make(chan struct{})
	for name, dial := range map[string]func(context.Context) (net.Conn, error){
		"away":   func(context.Context) (net.Conn, error) { return nil, errors.New("away") },
		"closes": server(t, func(net.Conn) {}),
		"silent": server(t, func(net.Conn) { <-stop }),
	} {
		m := new(Mirror)
		sink := server(t, func(c net.Conn) {
			_, _ = io.Copy(io.Discard, c)
			io.WriteString(c, "done")
		})
		const size = 32 << 20
		if got := ask(t, mirrored(t, m, dial, sink), strings.Repeat("x", size), 64<<10); got != "done" {
			t.Errorf("%s: got %q", name, got)
		}
		if copied, dropped := m.Counts(); dropped == 0 || copied+dropped > size {
			t.Errorf("%s: %d copied, %d dropped", name, copied, dropped)
		}
	}
	close(stop)
}
