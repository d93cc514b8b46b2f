package proxypod

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"bridge/internal/hint"
	"bridge/pkg/tunnel"
)

func TestStateIsReadAsWritten(t *testing.T) {
	at := time.Date(2026, 11, 24, 6, 30, 0, 999, time.FixedZone("", 3600))
	long := errors.New(strings.Repeat("ö", 2*maxReason))
	for _, s := range []tunnel.State{
		{Phase: tunnel.Connecting, Since: at},
		{Phase: tunnel.Ready, Since: at},
		{Phase: tunnel.Degraded, Since: at, Err: errors.New("an answer takes 900ms since: when")},
		{Phase: tunnel.Reconnecting, Since: at, Err: long},
	} {
		want := StateOf(s)
		got, ok := ParseState(want.String())
		if !ok || got != want {
			t.Errorf("%q is read as %+v", want, got)
		}
	}
	for _, text := range []string{"", "ready", "ready since", "ready since yesterday"} {
		if s, ok := ParseState(text); ok {
			t.Errorf("%q is read as %+v", text, s)
		}
	}
}

func TestSayTunnelSaysChangesOnly(t *testing.T) {
	var said []string
	say := sayTunnel(func(line string) { said = append(said, line) }, func() string { return "" })
	now := time.Now()
	cut := errors.New("cut")
	for _, s := range []tunnel.State{
		{Phase: tunnel.Connecting, Since: now},
		{Phase: tunnel.Connecting, Since: now, Err: cut},
		{Phase: tunnel.Ready, Since: now},
		{Phase: tunnel.Ready, Since: now},
		{Phase: tunnel.Reconnecting, Since: now, Err: cut},
		{Phase: tunnel.Reconnecting, Since: now, Err: errors.New("refused")},
		{Phase: tunnel.Degraded, Since: now, Err: errors.New("slow")},
		{Phase: tunnel.Lost, Since: now, Err: hint.Newf(hint.TunnelLost, "", "another key")},
	} {
		say(s)
	}
	want := []string{"tunnel: ready", "tunnel: reconnecting (cut)", "tunnel: degraded (slow)", "tunnel: lost (another key)"}
	if !slices.Equal(said, want) {
		t.Errorf("said %q, want %q", said, want)
	}
	said = nil
	say = sayTunnel(func(line string) { said = append(said, line) }, func() string { return ", by podproxy" })
	say(tunnel.State{Phase: tunnel.Reconnecting, Since: now.Add(-12 * time.Second), Err: cut})
	say(tunnel.State{Phase: tunnel.Ready, Since: now})
	say(tunnel.State{Phase: tunnel.Lost, Since: now, Err: errors.New("ended by a signal")})
	if len(said) != 2 || said[1] != "tunnel: ready, by podproxy, after 12s of reconnecting" {
		t.Errorf("said %q", said)
	}
}
