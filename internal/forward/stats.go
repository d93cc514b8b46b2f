package forward

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxStatError bounds an error's text in a Stat, in bytes: it is for people.
const maxStatError = 200

// Stats counts what goes through a local end. The zero value is ready; a nil one counts nothing.
type Stats struct {
	open, total, in, out atomic.Int64

	mu     sync.Mutex
	err    string
	failAt time.Time
}

// Stat is what Stats has counted.
type Stat struct {
	// Target is what is forwarded to, "service/orders:80" or "db.example.com:5432/udp", and Local from where.
	Target string   `json:"target"`
	Local  []string `json:"local"`
	// Open and Total are connections, or flows of datagrams; those that could not be made are among them.
	Open  int64 `json:"open"`
	Total int64 `json:"total"`
	// Sent and Received are bytes, to the target and from it.
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// LastError is why a connection failed last, if one did, and LastErrorAt when.
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
}

// Now is what was counted until now.
func (s *Stats) Now() Stat {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stat{
		Open: s.open.Load(), Total: s.total.Load(), Sent: s.out.Load(), Received: s.in.Load(),
		LastError: s.err, LastErrorAt: s.failAt,
	}
}

// opened counts a connection until what it returns is called.
func (s *Stats) opened() (closed func()) {
	if s == nil {
		return func() {}
	}
	s.open.Add(1)
	s.total.Add(1)
	return func() { s.open.Add(-1) }
}

func (s *Stats) moved(out bool, n int) {
	switch {
	case s == nil:
	case out:
		s.out.Add(int64(n))
	default:
		s.in.Add(int64(n))
	}
}

// Failed notes why a connection failed, for Stat.
func (s *Stats) Failed(err error) {
	text := err.Error()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.failAt = text[:min(len(text), maxStatError)], time.Now().UTC().Truncate(time.Second)
}
