package kube

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	tunneling "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	streamhttp "k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"bridge/internal/cork"
)

// maxRefusal bounds what is read of the answer to a refused upgrade.
const maxRefusal = 64 << 10

// DialPod opens a connection to port on the loopback of pod, by a port-forward through the API server
// and the kubelet: in a WebSocket, or in plain SPDY where that does not pass or does not answer. It does not learn whether
// anything listens on the port: a refusal is the first Read's error, wrapping ECONNREFUSED. The
// connection has CloseWrite and Reset; a deadline that passes ends its direction. Without a deadline
// ctx is given 30 seconds. A lost path to the API server is noticed within 15 seconds while somebody
// reads.
func (c *Client) DialPod(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	return c.DialEndpoint(ctx, Endpoint{Namespace: namespace, Pod: pod, Port: port})
}

// DialEndpoint is DialPod to a pod whose UID may be known: then the port-forward of an earlier connection to it, which has ended well or was left, is used again.
func (c *Client) DialEndpoint(ctx context.Context, ep Endpoint) (net.Conn, error) {
	namespace, pod, port := ep.Namespace, ep.Pod, ep.Port
	remote := podAddr{namespace, pod, port}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if conn := c.dialAgain(ctx, ep.UID, remote); conn != nil {
		return conn, nil
	}
	u := c.Clientset.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("portforward").URL()
	conn, err := c.ways.open(ctx, func(ctx context.Context, by way, lost func()) (*podConn, error) {
		var car carrier
		var err error
		if by == bySPDY {
			car, err = c.dialSPDY(ctx, u)
		} else {
			car, err = c.dialWebSocket(ctx, u)
		}
		if err != nil {
			return nil, err
		}
		s, err := newSession(car)
		if err != nil {
			return nil, err
		}
		return c.openStreams(ctx, s, ep.UID, remote, lost)
	})
	if err != nil {
		return nil, Explain(err, fmt.Sprintf("connect to port %d of pod %s/%s", port, namespace, pod))
	}
	return conn, nil
}

// DialPodProxy opens a connection to port on the address of pod through the API server's proxy: by an HTTP
// Upgrade to protocol, which the pod has to agree to. The connection is the pod's bytes as they are: nothing in it finds
// out that the path is dead. It has Degraded and Dead. Without a deadline ctx is given 30 seconds. The error says what may be in the way; it wraps
// ECONNREFUSED when the API server met that at the pod.
func (c *Client) DialPodProxy(ctx context.Context, namespace, pod string, port int, protocol string) (net.Conn, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	u := c.Clientset.CoreV1().RESTClient().Get().Namespace(namespace).Resource("pods").
		Name(fmt.Sprintf("%s:%d", pod, port)).SubResource("proxy").URL()
	conn, err := c.upgrade(ctx, http.MethodGet, u, protocol, nil)
	if err != nil {
		return nil, explainPodProxy(err, fmt.Sprintf("connect to port %d of pod %s/%s through pods/proxy", port, namespace, pod))
	}
	return &proxyConn{rawCarrier: conn, requests: c.requests}, nil
}

// proxyConn is a connection by pods/proxy.
type proxyConn struct {
	*rawCarrier
	loss     loss // of Degraded's caller
	requests *requestConns
}

// Degraded is like podConn's.
func (p *proxyConn) Degraded() string { return p.loss.of(p.Conn) }

func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, requestTimeout)
}

func (c *Client) dialWebSocket(ctx context.Context, u *url.URL) (carrier, error) {
	tlsConfig, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	up := &wsUpgrade{proxy: c.Config.Proxy, tls: tlsConfig}
	if up.proxy == nil {
		up.proxy = utilnet.NewProxierWithNoProxyCIDR(http.ProxyFromEnvironment)
	}
	rt, err := rest.HTTPWrappersForConfig(c.Config, up)
	if err != nil {
		return nil, err
	}
	return await(ctx, func() (carrier, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		resp, err := rt.RoundTrip(req) //nolint:bodyclose // the upgraded connection is the body
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode != http.StatusSwitchingProtocols:
			return nil, refusal(resp)
		case up.conn.Subprotocol() != webSocketProtocol:
			_ = up.conn.Close()
			return nil, fmt.Errorf("upgrade refused: the WebSocket speaks %q", up.conn.Subprotocol())
		}
		return &wsCarrier{Conn: up.conn, below: up.below}, nil
	})
}

// tlsConfig is for a connection to the API server, nil where that takes none. Each is one of its own, and those that come later resume the TLS session of earlier ones,
// which spares both ends the most of a handshake.
func (c *Client) tlsConfig() (*tls.Config, error) {
	cfg, err := rest.TLSConfigFor(c.Config)
	if cfg != nil {
		cfg.ClientSessionCache = c.sessions
	}
	return cfg, err
}

const (
	webSocketProtocol = tunneling.WebsocketsSPDYTunnelingPrefix + portforward.PortForwardProtocolV1Name
	// webSocketBuffer holds a frame with its headers: so it leaves as one message.
	webSocketBuffer = maxFrame + 16
	// below TLS so much is read at once.
	belowRead = 64 << 10
)

// ownDeadline keeps the library from setting write deadlines: it has one at each write, and may not be given another
// meanwhile. Ours are set below it, by wsCarrier, at any time.
type ownDeadline struct{ *cork.Conn }

func (ownDeadline) SetWriteDeadline(time.Time) error { return nil }

// wsUpgrade is the transport of one upgrade request; it keeps the connection.
type wsUpgrade struct {
	proxy func(*http.Request) (*url.URL, error)
	tls   *tls.Config
	conn  *websocket.Conn
	below *cork.Conn
}

func (u *wsUpgrade) RoundTrip(req *http.Request) (*http.Response, error) {
	stop := func() bool { return true }
	defer func() { stop() }()
	dialer := websocket.Dialer{
		Proxy:           u.proxy,
		TLSClientConfig: u.tls,
		Subprotocols:    []string{webSocketProtocol},
		ReadBufferSize:  webSocketBuffer,
		WriteBufferSize: webSocketBuffer,
		NetDialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// The library heeds ctx only while it connects.
			stop = context.AfterFunc(req.Context(), func() { _ = conn.Close() })
			u.below = &cork.Conn{Conn: conn}
			u.below.Open(belowRead)
			return ownDeadline{u.below}, nil
		},
	}
	at := *req.URL
	at.Scheme = strings.Replace(at.Scheme, "http", "ws", 1)
	conn, resp, err := dialer.DialContext(req.Context(), at.String(), req.Header)
	if err != nil && !errors.Is(err, websocket.ErrBadHandshake) {
		return nil, err
	}
	u.conn = conn
	return resp, nil
}

// await runs dial, which ends soon after ctx does, and closes what comes too late.
func await[C io.Closer](ctx context.Context, dial func() (C, error)) (conn C, err error) {
	type result struct {
		c   C
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, err := dial()
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		return r.c, r.err
	case <-ctx.Done():
	}
	go func() {
		if r := <-done; r.err == nil {
			_ = r.c.Close()
		}
	}()
	return conn, context.Cause(ctx)
}

func (c *Client) dialSPDY(ctx context.Context, u *url.URL) (carrier, error) {
	h := http.Header{streamhttp.HeaderProtocolVersion: {portforward.PortForwardProtocolV1Name}}
	conn, err := c.upgrade(ctx, http.MethodPost, u, spdy.HeaderSpdy31, h)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// upgrade sends a request that asks for protocol, with more headers (nil for none), and returns the connection when the
// other side has agreed.
func (c *Client) upgrade(ctx context.Context, method string, u *url.URL, protocol string, h http.Header) (*rawCarrier, error) {
	tlsConfig, err := c.tlsConfig()
	if err != nil {
		return nil, err
	}
	dialer, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{TLS: tlsConfig, Proxier: c.Config.Proxy})
	if err != nil {
		return nil, err
	}
	up := &upgrade{dial: dialer.Dial}
	rt, err := rest.HTTPWrappersForConfig(c.Config, up)
	if err != nil {
		return nil, err
	}
	return await(ctx, func() (*rawCarrier, error) {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, err
		}
		maps.Copy(req.Header, h)
		req.Header.Set(streamhttp.HeaderConnection, streamhttp.HeaderUpgrade)
		req.Header.Set(streamhttp.HeaderUpgrade, protocol)
		resp, err := rt.RoundTrip(req) //nolint:bodyclose // the upgraded connection is the body
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusSwitchingProtocols && strings.EqualFold(resp.Header.Get(streamhttp.HeaderUpgrade), protocol) {
			return &rawCarrier{Conn: up.conn, r: up.r}, nil
		}
		defer up.conn.Close()
		return nil, refusal(resp)
	})
}

// upgrade is the transport of one upgrade request; it keeps the connection.
type upgrade struct {
	dial func(*http.Request) (net.Conn, error) // also writes the request
	conn net.Conn
	r    *bufio.Reader
}

func (u *upgrade) RoundTrip(req *http.Request) (*http.Response, error) {
	conn, err := u.dial(req)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(req.Context(), func() { _ = conn.Close() })
	defer stop()
	r := bufio.NewReaderSize(conn, maxFrame)
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	u.conn, u.r = conn, r
	return resp, nil
}

// refusal makes an error of what the API server answered instead of upgrading.
func refusal(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil {
		return fmt.Errorf("upgrade refused: %s", resp.Status)
	}
	obj, _, err := scheme.Codecs.UniversalDecoder(corev1.SchemeGroupVersion).Decode(body, nil, nil)
	if status, ok := obj.(*metav1.Status); err == nil && ok {
		return &apierrors.StatusError{ErrStatus: *status}
	}
	text, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n")
	return apierrors.NewGenericServerResponse(resp.StatusCode, resp.Request.Method, corev1.Resource("pods"), "", resp.Status+": "+text, 0, true)
}

// wsCarrier is a WebSocket: each frame is one binary message.
type wsCarrier struct {
	*websocket.Conn
	below *cork.Conn
	r     io.Reader // the message being read, nil between two
}

func (w *wsCarrier) Read(b []byte) (int, error) {
	for {
		if w.r == nil {
			kind, r, err := w.NextReader()
			if err != nil {
				if websocket.IsCloseError(err, websocket.CloseNormalClosure) {
					err = io.EOF
				}
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("the API server sent a text message in a port-forward")
			}
			w.r = r
		}
		n, err := w.r.Read(b)
		if errors.Is(err, io.EOF) {
			w.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (w *wsCarrier) WriteFrame(head, payload []byte) error {
	m, err := w.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := m.Write(head); err != nil {
		return err
	}
	if _, err := m.Write(payload); err != nil {
		return err
	}
	return m.Close()
}

func (w *wsCarrier) Gather(write func() error) error { return w.below.Gather(write) }

func (w *wsCarrier) SetWriteDeadline(t time.Time) error { return w.below.SetWriteDeadline(t) }

func (w *wsCarrier) Close() error {
	_ = w.SetWriteDeadline(time.Now().Add(goodbyeTimeout))
	bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = w.WriteControl(websocket.CloseMessage, bye, time.Now().Add(goodbyeTimeout))
	return w.Conn.Close()
}

// rawCarrier is the upgraded connection itself.
type rawCarrier struct {
	net.Conn
	r   *bufio.Reader // what came with the answer to the upgrade, then the connection
	buf []byte        // head and payload joined: one TLS record and one packet less
}

func (r *rawCarrier) Read(b []byte) (int, error) { return r.r.Read(b) }
func (r *rawCarrier) NetConn() net.Conn          { return r.Conn }

func (r *rawCarrier) WriteFrame(head, payload []byte) error {
	r.buf = slices.Grow(r.buf[:0], len(head)+len(payload))
	r.buf = append(append(r.buf, head...), payload...)
	_, err := r.Conn.Write(r.buf)
	return err
}

// Gather adds nothing: the connection below is the library's.
func (r *rawCarrier) Gather(write func() error) error { return write() }
