package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"bridge/internal/intercept"
	"bridge/internal/route"
)

// maxChosen is how many connections are carried at once whose requests are chosen for. An idle one takes
// some 28 KiB; what is held of all beside that has a budget (route.Budget), and the proxy has memoryLimit for both.
const maxChosen = 4096

const (
	// countEvery is how often it is looked how much the laptop was not given of its copy.
	countEvery = 5 * time.Second
	// maxQuiet is how many times of that are between two tellings at most, each of which is after twice as many as the one before.
	maxQuiet = 128
)

// chooser carries the callers of the laptop's ports where not all requests are the laptop's, in standby.
type chooser struct {
	// routes are where a port's requests go beside the original; nil: to nobody, and the laptop gets a copy.
	routes func(port int, to intercept.Ways) []route.Route
	ports  []int             // the laptop's
	tell   func(text string) // has the laptop's user told what there is to know, all of it each time
	// http2 is told whether the process of the route's laptop speaks HTTP/2; nil without routes.
	http2  func(route string, port int, speaks bool)
	log    *slog.Logger
	mirror route.Mirror
	memory route.Budget // of all connections together

	mu      sync.Mutex
	told    []string // what was met and holds, each once
	dropped uint64   // of the copy, as was told last
	lost    string   // that in words
	since   int      // how often it was looked after that
	quiet   int      // how often it is until more is told; 0: more is told at once
}

// choose is intercept.Interceptor's.
func (c *chooser) choose(ctx context.Context, caller net.Conn, to intercept.Ways) error {
	port := caller.LocalAddr().(*net.TCPAddr).Port
	switch {
	case !slices.Contains(c.ports, port):
		return intercept.PerConnection(ctx, caller, to)
	case c.routes == nil:
		return c.mirror.Serve(ctx, caller, to.Laptop, func(conn net.Conn) error {
			return intercept.PerConnection(ctx, conn, intercept.Ways{Laptop: to.Original})
		})
	}
	r := &route.Router{
		Routes:     func() []route.Route { return c.routes(port, to) },
		Original:   to.Original,
		Unreadable: func(why route.Reason) { c.unreadable(port, why) },
		HTTP2:      func(name string, speaks bool) { c.http2(name, port, speaks) },
		Budget:     &c.memory,
		Log:        c.log,
	}
	return r.Serve(ctx, caller)
}

// unreadable says once for each port and reason that connections went to the original for it.
func (c *chooser) unreadable(port int, why route.Reason) {
	text := fmt.Sprintf("port %d: a connection went to the original, since it cannot be read: %s", port, why)
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.told, text) {
		return
	}
	c.log.Info("a connection goes to the original, since it cannot be read; others may, and are not told", "port", port, "why", why)
	c.told = append(c.told, text)
	c.tellAll()
}

// run counts what the laptop was not given of its copy, until ctx is done.
func (c *chooser) run(ctx context.Context) { every(ctx, countEvery, c.count) }

// count tells what the laptop was not given, if that is more than was told before: at once when nothing was missing for a
// while, and then more and more seldom.
func (c *chooser) count() {
	copied, dropped := c.mirror.Counts()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.since++
	switch {
	case dropped == c.dropped:
		if c.since > 2*c.quiet {
			c.quiet = 0
		}
		return
	case c.since < c.quiet:
		return
	}
	c.dropped, c.since, c.quiet = dropped, 0, min(max(2*c.quiet, 2), maxQuiet)
	c.log.Warn("the laptop does not take its copy", "copied", copied, "dropped", dropped)
	c.lost = fmt.Sprintf("the copy lacks %d bytes of %d that callers sent", dropped, copied+dropped)
	c.tellAll()
}

// tellAll needs mu.
func (c *chooser) tellAll() {
	all := slices.Sorted(slices.Values(c.told))
	if c.lost != "" {
		all = append([]string{c.lost}, all...)
	}
	c.tell(strings.Join(all, "\n"))
}
