package connect

import (
	"context"
	"net"
	"time"

	"bridge/internal/flow"
	"bridge/internal/netns"
	"bridge/pkg/tunnel"
)

// flows carries a program's datagrams, and its echo requests.
type flows struct {
	g *gate
	d *netns.Datagrams
}

// serve carries what arrives, until ctx is done, and returns when all has ended. It waits for nobody: who is slow loses datagrams.
func (f *flows) serve(outer context.Context) error {
	ctx, cancel := context.WithCancel(outer)
	table := &flow.Table[flow.Pair]{
		Dial:   func(ctx context.Context, p flow.Pair) (net.Conn, error) { return f.g.reach(ctx, p.Network, p.To) },
		Answer: f.d.Answer,
		Refuse: f.d.Refuse,
		Idle:   func(p flow.Pair) time.Duration { return tunnel.FlowIdle(p.Network, p.To.String()) },
		Few:    flow.Pair.Echo,
		Begin: func(p flow.Pair) func(error) {
			return func(err error) {
				if err != nil {
					f.g.log.Debug("datagrams of the program", "network", p.Network, "to", p.To, "error", err)
				}
			}
		},
	}
	defer table.Wait()
	defer cancel()
	defer context.AfterFunc(outer, f.d.Close)()
	err := f.d.Receive(func(p flow.Pair, b []byte) { table.Put(ctx, p, b) })
	if outer.Err() != nil {
		return nil
	}
	return err
}
