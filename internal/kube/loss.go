package kube

import (
	"fmt"
	"net"
)

const (
	// So many packets, and so many seconds, are looked at together: fewer say little.
	lossSample, lossSeconds = 200, 5
	// More than lossBad of them sent again is what a person notices, less than lossGood is not. The
	// kernel sends a few again by mistake.
	lossBad, lossGood = 0.05, 0.02
)

// Degraded says when much of what goes to the API server has to be sent again, in words; "" otherwise, and where
// the system does not count it. One goroutine calls it. pkg/tunnel asks every second.
func (p *podConn) Degraded() string { return p.loss.of(p.c.NetConn()) }

// loss judges a TCP connection by its counters.
type loss struct {
	sent, again uint32 // as they were at the last judgement; they wrap
	seconds     int    // since then
	why         string // "" while it is good
}

// of looks at conn, always the same, and says what is wrong with it.
func (l *loss) of(conn net.Conn) string {
	if sent, again, ok := retransmitted(conn); ok {
		l.count(sent, again)
	}
	return l.why
}

// count is called every second.
func (l *loss) count(sent, again uint32) {
	n := sent - l.sent
	if l.seconds++; l.seconds < lossSeconds || n < lossSample {
		return
	}
	rate := float64(again-l.again) / float64(n)
	l.sent, l.again, l.seconds = sent, again, 0
	switch {
	case rate > lossBad:
		l.why = fmt.Sprintf("%.0f %% of the packets to the API server are lost", 100*rate)
	case rate < lossGood:
		l.why = ""
	}
}
