package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bridge/internal/intercept"
	"bridge/internal/member"
	"bridge/internal/route"
	"bridge/internal/standby"
	"bridge/pkg/tunnel"
)

// readEvery is how often the file is looked at. The kubelet writes it, some time after somebody has joined.
const readEvery = 500 * time.Millisecond

// members are the laptops of a swap that several people may share: each has a tunnel of its own, and the requests that the file
// gives it.
type members struct {
	path string
	// newServer makes the tunnel's end for a laptop, newLaptop what tells whether that takes connections.
	newServer func(tunnel.Fingerprint) *tunnel.Server
	newLaptop func(*tunnel.Server) *standby.Laptop
	// grace is how long who has left may go on with what it has begun.
	grace time.Duration
	log   *slog.Logger

	running sync.WaitGroup

	mu      sync.Mutex
	file    []byte  // as it was read last
	failed  string  // why it could not be, as was said last
	seats   []*seat // in the file's order
	leaving []*seat // no more in the file
	told    string  // note's
}

// seat is one laptop's.
type seat struct {
	member.Share
	server *tunnel.Server
	laptop *standby.Laptop
	left   chan struct{} // closed when it is no more in the file
	own    []string      // what it is told beside what is for all
}

// run follows the file until ctx is done. It has read it when started is called.
func (m *members) run(ctx context.Context, started func()) {
	m.read(ctx)
	started()
	every(ctx, readEvery, func() { m.read(ctx) })
	m.running.Wait()
}

// read looks whether the file says something new. What cannot be read changes nothing.
func (m *members) read(ctx context.Context) {
	text, err := os.ReadFile(m.path)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil && m.file != nil && bytes.Equal(text, m.file) {
		return
	}
	var shares []member.Share
	if err == nil {
		shares, err = member.ParseShares(text)
	}
	if err != nil {
		if why := err.Error(); why != m.failed {
			m.failed = why
			m.log.Error("who shares the swap cannot be read: it stays as it is", "error", err)
		}
		return
	}
	m.file, m.failed = text, ""
	m.seat(ctx, shares)
}

// seat has those who are in shares, and lets go of the others. mu is held.
func (m *members) seat(ctx context.Context, shares []member.Share) {
	var seats []*seat
	for _, share := range shares {
		i := slices.IndexFunc(m.seats, func(s *seat) bool { return s.Client == share.Client })
		if i < 0 {
			m.log.Info("shares the swap", "client", share.Client, "requests", share.Filter)
			seats = append(seats, m.sit(ctx, share))
			continue
		}
		m.seats[i].Share = share
		seats = append(seats, m.seats[i])
	}
	for _, s := range m.seats {
		if !slices.ContainsFunc(shares, func(share member.Share) bool { return share.Client == s.Client }) {
			m.log.Info("shares the swap no more", "client", s.Client)
			close(s.left)
			m.leaving = append(m.leaving, s)
		}
	}
	m.seats = seats
}

// sit makes a seat, which lasts until it is left and grace is over, or ctx is done. mu is held.
func (m *members) sit(ctx context.Context, share member.Share) *seat {
	s := &seat{Share: share, server: m.newServer(share.Client), left: make(chan struct{})}
	s.tell(m.told)
	s.laptop = m.newLaptop(s.server)
	ctx, stop := context.WithCancel(ctx)
	m.running.Go(func() { s.laptop.Run(ctx) })
	m.running.Go(func() {
		defer stop()
		select {
		case <-ctx.Done():
			return
		case <-s.left:
		}
		select {
		case <-ctx.Done():
		case <-time.After(m.grace):
		}
		m.mu.Lock()
		m.leaving = slices.DeleteFunc(m.leaving, func(o *seat) bool { return o.server == s.server })
		m.mu.Unlock()
		s.server.End()
	})
	return s
}

// server is tunnel.Door's: who is leaving may still come back with what it has begun.
func (m *members) server(client tunnel.Fingerprint) *tunnel.Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range slices.Concat(m.seats, m.leaving) {
		if s.Client == client {
			return s.server
		}
	}
	return nil
}

// routes are where a port's requests go beside the original.
func (m *members) routes(port int, to intercept.Ways) (out []route.Route) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.seats {
		out = append(out, route.Route{
			Name: s.Client.String(), Filter: s.Filter, Dial: to.By(s.laptop.Dial),
			Takes: func() bool { return s.takes(port) },
		})
	}
	return out
}

func (s *seat) takes(port int) bool {
	select {
	case <-s.left:
		return false
	default:
		return s.laptop.TakesOn(port)
	}
}

// note tells all of them, and who comes later.
func (m *members) note(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = text
	for _, s := range m.seats {
		s.tell(text)
	}
}

// http2 tells the one whose process does not speak HTTP/2, until it does.
func (m *members) http2(client string, port int, speaks bool) {
	text := fmt.Sprintf("port %d: requests of HTTP/2 go to the original, since the process on the laptop does not speak that without TLS (h2c): "+
		"have it do so, or the callers speak HTTP/1.1", port)
	m.mu.Lock()
	defer m.mu.Unlock()
	i := slices.IndexFunc(m.seats, func(s *seat) bool { return s.Client.String() == client })
	if i < 0 {
		return
	}
	s := m.seats[i]
	switch at := slices.Index(s.own, text); {
	case speaks && at >= 0:
		s.own = slices.Delete(s.own, at, at+1)
	case !speaks && at < 0:
		m.log.Info("the laptop's process speaks no HTTP/2", "client", client, "port", port)
		s.own = append(s.own, text)
	default:
		return
	}
	s.tell(m.told)
}

// tell tells what is for all, and what is this one's own. mu of members is held.
func (s *seat) tell(all string) {
	lines := slices.Sorted(slices.Values(s.own))
	if all != "" {
		lines = append([]string{all}, lines...)
	}
	s.server.Note(strings.Join(lines, "\n"))
}

// errShared is why a connection as a whole is nobody's.
var errShared = fmt.Errorf("requests are chosen one by one: %w", standby.ErrAway)

// share has callers' requests go to the members, and all others to the originals.
func (p *proxy) share(key tunnel.Key) {
	p.members = &members{
		path: p.membersAt, grace: p.drain, log: p.log,
		newServer: func(client tunnel.Fingerprint) *tunnel.Server { return p.newServer(key, client) },
		newLaptop: func(s *tunnel.Server) *standby.Laptop {
			return &standby.Laptop{Open: s.Open, Answering: s.Answering, Ports: p.listen, Log: p.log, OnChange: func(_ int, open bool) {
				if !open {
					p.originals.Look()
				}
			}}
		},
	}
	p.door = &tunnel.Door{Key: key, Server: p.members.server, Log: p.log}
	p.ports.Laptop = func(context.Context, tunnel.Header) (net.Conn, error) { return nil, errShared }
	p.ports.Limit = maxChosen
	p.chooser = &chooser{routes: p.members.routes, ports: p.listen, tell: p.members.note, http2: p.members.http2, log: p.log}
	p.ports.Choose = p.chooser.choose
}
