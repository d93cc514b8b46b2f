package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
)

// UpgradeProtocol is what the laptop asks for where only HTTP passes, SPEC.md section 10.
const UpgradeProtocol = "bridge-tunnel"

// maxUpgrade bounds the request. Ours, with what an API server adds, has some 400 bytes.
const maxUpgrade = 4 << 10

const (
	upgradeAccepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + UpgradeProtocol + "\r\n\r\n"
	upgradeRefused  = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)

// UpgradeListener makes carriers of the connections of ln, whose clients speak HTTP first. For Server.Serve: the
// request is read by the first Read, so it counts among what is bounded before it is known who is there.
func UpgradeListener(ln net.Listener) net.Listener { return upgradeListener{ln} }

type upgradeListener struct{ net.Listener }

func (l upgradeListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &upgradeConn{Conn: conn}, nil
}

// upgradeConn is what follows the upgrade on a connection. The goroutine that reads owns its fields.
type upgradeConn struct {
	net.Conn
	begun bool
	rest  []byte // came behind the request
}

// Read reads and answers the request first. Its error ends the handshake; later calls read what else there is, so that
// the answer is not lost (linger).
func (c *upgradeConn) Read(p []byte) (n int, err error) {
	if !c.begun {
		c.begun = true
		if c.rest, err = acceptUpgrade(c.Conn); err != nil {
			return 0, err
		}
	}
	if len(c.rest) == 0 {
		c.rest = nil
		return c.Conn.Read(p)
	}
	n = copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// CloseWrite is for linger.
func (c *upgradeConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// acceptUpgrade reads one request and answers it. rest is what came behind it.
func acceptUpgrade(c net.Conn) (rest []byte, err error) {
	buf := make([]byte, maxUpgrade)
	n := 0
	for {
		if n == len(buf) {
			err = fmt.Errorf("upgrade: more than %d bytes of request", maxUpgrade)
			break
		}
		m, rerr := c.Read(buf[n:])
		n += m
		if head, rest, ok := bytes.Cut(buf[:n], []byte("\r\n\r\n")); ok {
			if err = checkUpgrade(string(head)); err != nil {
				break
			}
			_, err := c.Write([]byte(upgradeAccepted))
			return rest, err
		}
		if rerr != nil {
			return nil, fmt.Errorf("upgrade: %w", rerr)
		}
	}
	_, _ = c.Write([]byte(upgradeRefused))
	return nil, err
}

var errNoUpgrade = errors.New("upgrade: not a request for " + UpgradeProtocol)

// checkUpgrade looks at a request without its empty line. All that it says beside the upgrade means nothing.
func checkUpgrade(head string) error {
	lines := strings.Split(head, "\r\n")
	if !strings.HasPrefix(lines[0], "GET ") || !strings.HasSuffix(lines[0], " HTTP/1.1") {
		return errNoUpgrade
	}
	var connection, upgrade bool
	for _, line := range lines {
		if strings.ContainsAny(line, "\r\n") {
			return errNoUpgrade // whoever takes that for the end of a line has read another request
		}
		name, value, _ := strings.Cut(line, ":")
		switch {
		case strings.EqualFold(name, "Connection"):
			connection = connection || lists(value, "Upgrade")
		case strings.EqualFold(name, "Upgrade"):
			upgrade = upgrade || lists(value, UpgradeProtocol)
		}
	}
	if !connection || !upgrade {
		return errNoUpgrade
	}
	return nil
}

// lists says whether a comma-separated value has a word, in upper or lower case.
func lists(value, word string) bool {
	for item := range strings.SplitSeq(value, ",") {
		if strings.EqualFold(strings.TrimSpace(item), word) {
			return true
		}
	}
	return false
}
