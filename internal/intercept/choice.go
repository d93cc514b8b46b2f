package intercept

import (
	"context"
	"net"
	"time"

	"bridge/pkg/tunnel"
)

// Dial connects a caller, whom h describes, to one of those who may answer. It returns when they have taken the connection:
// until then they have had nothing of what the caller says.
type Dial func(ctx context.Context, h tunnel.Header) (net.Conn, error)

// Ways are where one caller's connection can go.
type Ways struct {
	Laptop func(ctx context.Context) (net.Conn, error)
	// By is as Laptop, with another Dial than the Interceptor's: to one of several laptops.
	By func(Dial) func(ctx context.Context) (net.Conn, error)
	// Original is nil when no original runs.
	Original func(ctx context.Context) (net.Conn, error)
}

// Choose carries one caller's connection until that is over, and closes it. After an error the caller is reset. When the caller's
// connection is closed by somebody else it ends all that it has made; the last of each way may be closed before it.
type Choose func(ctx context.Context, caller net.Conn, to Ways) error

// PerConnection sends the caller to the laptop, or to an original when the laptop does not take the connection.
func PerConnection(ctx context.Context, caller net.Conn, to Ways) error {
	peer, err := to.Laptop(ctx)
	if err != nil && to.Original != nil {
		peer, err = to.Original(ctx)
	}
	if err != nil {
		return err
	}
	return tunnel.Splice(caller, peer)
}

func (i *Interceptor) choose() Choose {
	if i.Choose != nil {
		return i.Choose
	}
	return PerConnection
}

// Way is where a connection went.
type Way int

// The ways.
const (
	ToLaptop Way = iota
	ToOriginal
	ways // how many there are
)

// ways are those of c; each remembers where it led to.
func (i *Interceptor) ways(c *conn, h tunnel.Header) (to Ways) {
	by := func(w Way, dial Dial) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			before := c.left[w].Load()
			peer, err := dial(ctx, h)
			if err != nil {
				return nil, err
			}
			c.peers[w].Store(&peer) // before anybody looks at c, which may be closed by now
			if c.left[w].Load() != before {
				c.leaveSoon()
			}
			return peer, nil
		}
	}
	laptop := i.Laptop
	if laptop == nil {
		laptop = func(ctx context.Context, h tunnel.Header) (net.Conn, error) {
			st, err := i.Open(ctx, h)
			if err != nil {
				return nil, err
			}
			return st, nil
		}
	}
	to.Laptop = by(ToLaptop, laptop)
	to.By = func(d Dial) func(context.Context) (net.Conn, error) { return by(ToLaptop, d) }
	if i.Original != nil {
		to.Original = by(ToOriginal, i.Original)
	}
	return to
}

// Leave ends the connections of a port that went by w, or are being dialled, as far as that costs no request: those of HTTP/1, each between two
// requests, since the caller opens another one then, which can go elsewhere. The rest stays as it is.
func (i *Interceptor) Leave(port int, w Way) {
	for _, c := range i.all() {
		if c.port != port {
			continue
		}
		c.left[w].Add(1) // before its peer is looked for, which comes before this is
		if c.peer(w) != nil {
			c.leaveSoon()
		}
	}
}

// leaveSoon has c end between two requests.
func (c *conn) leaveSoon() {
	c.leaving.Store(true)
	if c.rhythm.answered() {
		c.leave()
	}
}

// leave sends the caller our end, and closes c some time after that.
func (c *conn) leave() {
	if c.sendEnd(time.Now()) {
		time.AfterFunc(endGrace, c.end)
	}
}
