package tunnel

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"bridge/internal/cork"
)

const (
	// maxHandshake bounds what the pod reads before it knows who is there. Ours needs about 2.5 KiB.
	maxHandshake = 4 << 10
	// handshakeTimeout bounds the pod's wait for the TLS handshake of somebody it does not know.
	handshakeTimeout = 5 * time.Second
	// helloTimeout bounds the wait for the hello, on both ends; the laptop's includes TLS.
	helloTimeout = 10 * time.Second
	// lingerTimeout bounds how long a refused connection is read from, for its alert to arrive.
	lingerTimeout = time.Second
)

var (
	// ErrServerKey says that the pod has another key than at first contact: it is not the same
	// proxy, or somebody is in between.
	ErrServerKey = errors.New("the pod's proxy has another key than at first contact")
	// ErrKeyRefused says that the pod knows other laptops' keys alone.
	ErrKeyRefused = errors.New("the pod's proxy does not accept this key")

	errClientKey = errors.New("not a key that this proxy knows")
)

// tlsConfig is what both ends share; verify sees the other's fingerprint before anything is exchanged.
func tlsConfig(key Key, verify func(Fingerprint) error) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{key.cert},
		MinVersion:             tls.VersionTLS13,
		ServerName:             "bridge",
		ClientAuth:             tls.RequireAnyClientCert, // proves possession; verify decides
		InsecureSkipVerify:     true,                     // no names, no chains: verify decides
		SessionTicketsDisabled: true,
		// The records of one write leave together: small ones would only cost.
		DynamicRecordSizingDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("no certificate")
			}
			return verify(fingerprintOf(state.PeerCertificates[0]))
		},
	}
}

// dialHandshake is the laptop's half. pinned is the key known for the peer, zero at first contact. want travels
// behind the hello, so that attaching takes no round trip of its own. On error the carrier is closed.
func dialHandshake(ctx context.Context, carrier net.Conn, key Key, pinned Fingerprint, ours hello, want attach) (*link, *meeting, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = carrier.Close() })
	defer stop()

	var met meeting
	w := &cork.Conn{Conn: carrier}
	t := tls.Client(w, tlsConfig(key, func(f Fingerprint) error {
		if pinned != (Fingerprint{}) && !pinned.equal(f) {
			return fmt.Errorf("%w: %v, pinned %v", ErrServerKey, f, pinned)
		}
		met.key = f
		return nil
	}))
	l := newLink(t, w)
	err := func() error {
		if err := t.HandshakeContext(ctx); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
		w.Open(wireRead)
		// Read while writing: when the pod refuses our key it says so, and takes nothing any more.
		var sendErr error
		var sending sync.WaitGroup
		sending.Go(func() { sendErr = sendHello(l, ours, appendAttach(nil, want)) })
		var err error
		if l.peer, err = readHello(t); err != nil {
			_ = carrier.Close() // ends the write; its error would say less
		}
		sending.Wait()
		if err := cmp.Or(err, sendErr); err != nil {
			return err
		}
		if err := checkVersion(ours, l.peer); err != nil {
			return err
		}
		met.answer, err = readAttached(t)
		return err
	}()
	if err == nil && !stop() { // timed out at the last moment: the carrier is closed, or about to be
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = l.Close()
		if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
			err = fmt.Errorf("%w (%w)", err, cause)
		}
		if isBadCertificate(err) {
			err = fmt.Errorf("%w: %w", ErrKeyRefused, err)
		}
		return nil, nil, fmt.Errorf("tunnel handshake: %w", err)
	}
	return l, &met, nil
}

// meeting is what the laptop learnt from its handshake.
type meeting struct {
	key    Fingerprint // the pod's
	answer attached
}

// isBadCertificate says whether the other end sent that alert. crypto/tls has no exported type for
// an alert received. In TLS 1.3 the laptop's handshake is over before the pod has seen its
// certificate, so the alert comes with the first read.
func isBadCertificate(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" && op.Err.Error() == "tls: bad certificate"
}

// acceptTLS is the pod's first half: nothing is known about who is there before verify has seen their fingerprint. On error the
// carrier is closed.
func acceptTLS(ctx context.Context, carrier net.Conn, key Key, verify func(Fingerprint) error) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	limited := &limitedConn{Conn: carrier, left: maxHandshake}
	w := &cork.Conn{Conn: limited}
	t := tls.Server(w, tlsConfig(key, verify))
	if err := t.HandshakeContext(ctx); err != nil {
		if ctx.Err() == nil {
			linger(carrier)
		}
		_ = carrier.Close()
		return nil, fmt.Errorf("tls: %w", err)
	}
	limited.unlimited = true
	w.Open(wireRead)
	return newLink(t, w), nil
}

// acceptHello is the pod's second half, with the right laptop. On error l is closed.
func acceptHello(ctx context.Context, l *link, ours hello) error {
	return l.bounded(ctx, func() error {
		var err error
		if l.peer, err = readHello(l); err != nil {
			return err
		}
		mismatch := checkVersion(l.peer, ours)
		if mismatch != nil {
			ours.info = Info{Version: ours.info.Version}
		}
		if err := sendHello(l, ours, nil); err != nil {
			return err
		}
		return mismatch
	})
}

// sendHello sends h, and what is to follow it in the same flight.
func sendHello(w io.Writer, h hello, then []byte) error {
	b, err := appendHello(nil, h)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(b, then...)); err != nil {
		return fmt.Errorf("hello: %w", err)
	}
	return nil
}

func checkVersion(laptop, pod hello) error {
	if laptop.protocol == pod.protocol {
		return nil
	}
	return &VersionError{
		Laptop: laptop.protocol, LaptopVersion: laptop.info.Version,
		Pod: pod.protocol, PodVersion: pod.info.Version,
	}
}

// linger reads what a refused laptop still sends, so that closing does not become a TCP reset that
// takes the alert with it.
func linger(c net.Conn) {
	stop := time.AfterFunc(lingerTimeout, func() { _ = c.Close() })
	defer stop.Stop()
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_, _ = io.CopyN(io.Discard, c, maxHandshake)
}

// limitedConn reads at most left bytes until unlimited is set (by the goroutine that reads).
type limitedConn struct {
	net.Conn
	left      int
	unlimited bool
}

var errHandshakeTooLong = fmt.Errorf("more than %d bytes before the handshake was complete", maxHandshake)

func (c *limitedConn) Read(p []byte) (int, error) {
	if c.unlimited {
		return c.Conn.Read(p)
	}
	if c.left == 0 && len(p) > 0 {
		return 0, errHandshakeTooLong
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
