package connect

import (
	"context"
	"net"
	"net/netip"
	"time"

	"bridge/internal/flow"
	"bridge/internal/netns"
	"bridge/pkg/tunnel"
)

// pair is who sends datagrams to whom.
type pair struct{ from, to netip.AddrPort }

// flows carries a program's datagrams.
type flows struct {
	g *gate
	d *netns.Datagrams
}

// serve carries what arrives, until ctx is done, and returns when all has ended. It waits for nobody: who is slow loses datagrams.
func (f *flows) serve(outer context.Context) error {
	ctx, cancel := context.WithCancel(outer)
	table := &flow.Table[pair]{
		Dial:   func(ctx context.Context, p pair) (net.Conn, error) { return f.g.reach(ctx, "udp", p.to) },
		Answer: func(p pair, b []byte) error { return f.d.Write(b, p.to, p.from) },
		Idle:   func(p pair) time.Duration { return tunnel.FlowIdle(p.to.String()) },
		Begin: func(p pair) func(error) {
			return func(err error) {
				if err != nil {
					f.g.log.Debug("datagrams of the program", "to", p.to, "error", err)
				}
			}
		},
	}
	defer table.Wait()
	defer cancel()
	defer context.AfterFunc(outer, f.d.Close)()
	b := make([]byte, flow.MaxDatagram)
	for {
		n, from, to, err := f.d.Read(b)
		switch {
		case outer.Err() != nil:
			return nil
		case err != nil:
			return err
		case to.IsValid():
			table.Put(ctx, pair{from, to}, b[:n])
		}
	}
}
