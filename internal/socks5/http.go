package socks5

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"bridge/pkg/tunnel"
)

const (
	// maxHeaderBytes bounds a request's header; large cookies and tokens fit.
	maxHeaderBytes = 64 << 10

	// maxReplyHeaderBytes bounds an answer's header.
	maxReplyHeaderBytes = 256 << 10

	// webIdleTime is how long a kept-alive connection may be silent, on either side.
	webIdleTime = 90 * time.Second

	// maxIdleTargets and maxIdlePerTarget bound the connections kept for the next plain request.
	maxIdleTargets   = 256
	maxIdlePerTarget = 16

	// pseudonym is our name in Via (RFC 9110 section 7.6.3) and Proxy-Status (RFC 9209).
	pseudonym = "bridge"
)

const notAProxyRequest = `This is bridge's proxy into the cluster, for SOCKS5 and HTTP, not a web server.
Give it to a program as its proxy, for example: curl -x http://HOST:PORT http://SERVICE.NAMESPACE/
`

// newTransport makes plain requests over the dial function, as they are: no proxy of the
// environment, no compression of our own, HTTP/1.1.
func (s *session) newTransport() *http.Transport {
	return &http.Transport{
		DialContext:            s.dial,
		DisableCompression:     true,
		MaxIdleConns:           maxIdleTargets,
		MaxIdleConnsPerHost:    maxIdlePerTarget,
		IdleConnTimeout:        webIdleTime,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxReplyHeaderBytes,
	}
}

// newProxy forwards absolute-form requests. ReverseProxy does what RFC 9110 section 7.6 asks of an
// intermediary: hop-by-hop fields end here, upgrades and trailers pass.
func (s *session) newProxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			// Rewrite dropped what the client itself said about hops before it; that is not ours to decide.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := r.In.Header[name]; ok {
					r.Out.Header[name] = v
				}
			}
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			addVia(r.Out.Header, r.In.ProtoMajor, r.In.ProtoMinor)
		},
		ModifyResponse: func(r *http.Response) error {
			addVia(r.Header, r.ProtoMajor, r.ProtoMinor)
			return nil
		},
		Transport:     s.transport,
		FlushInterval: -1, // at once: event streams
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			s.refuseHTTP(w, r, fmt.Errorf("%s %s: %w", r.Method, r.URL.Redacted(), err))
		},
	}
}

func addVia(h http.Header, major, minor int) {
	h.Add("Via", strconv.Itoa(major)+"."+strconv.Itoa(minor)+" "+pseudonym)
}

// ServeHTTP takes CONNECT and absolute-form requests. A web page can make a browser send neither to
// this port, so a page cannot reach into the cluster through it, unless the browser has it as its proxy. What it can send has the one
// answer of a file, which it cannot read (servePAC), and a refusal.
func (s *session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.handlers.Add(1) // while net/http still counts the connection, so before Serve waits
	defer s.handlers.Done()
	switch {
	case r.Method == http.MethodConnect:
		s.serveConnect(w, r)
	case s.isPAC(r):
		s.servePAC(w, r)
	case !r.URL.IsAbs():
		http.Error(w, notAProxyRequest, http.StatusBadRequest)
	case r.URL.Scheme != "http":
		http.Error(w, "bridge: cannot fetch "+r.URL.Scheme+" URLs; use CONNECT", http.StatusBadRequest)
	case r.URL.Hostname() == "":
		http.Error(w, "bridge: the URL names no host", http.StatusBadRequest)
	default:
		s.proxy.ServeHTTP(w, r)
	}
}

// PACPath is where the proxy auto-config file is.
const PACPath = "/proxy.pac"

// isPAC tells whether r asks for the proxy auto-config file by an address of this machine: a name may be that of a web page which
// has its name resolve to this machine, and would be allowed to read the answer.
func (s *session) isPAC(r *http.Request) bool {
	if s.pac == nil || r.URL.IsAbs() || r.URL.Path != PACPath || r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false
	}
	host := (&url.URL{Host: r.Host}).Hostname()
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// servePAC gives the file to browsers and keeps it from pages: it is no script that one could load to see what it defines.
func (s *session) servePAC(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/x-ns-proxy-autoconfig")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if _, err := w.Write(s.pac(r.Context())); err != nil {
		s.log.Debug("http", "client", r.RemoteAddr, "error", err)
	}
}

// serveConnect connects first and answers then, so that the status is the target's.
func (s *session) serveConnect(w http.ResponseWriter, r *http.Request) {
	host, port, err := net.SplitHostPort(r.Host)
	if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || host == "" || r.URL.Path != "" {
		http.Error(w, "bridge: CONNECT needs HOST:PORT", http.StatusBadRequest)
		return
	}
	// Not r's context: it ends when the client half-closes, which is no reason to give up.
	target, err := s.dial(s.ctx, "tcp", r.Host)
	if err != nil {
		s.refuseHTTP(w, r, fmt.Errorf("dial %s: %w", r.Host, err))
		return
	}
	defer func() { _ = target.Close() }()
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.refuseHTTP(w, r, err)
		return
	}
	defer func() { _ = conn.Close() }()
	err = s.answerConnect(conn, buf, target)
	if err != nil {
		s.log.Debug("connect", "client", r.RemoteAddr, "target", r.Host, "error", err)
	}
}

// answerConnect says yes and splices, beginning with what the client sent ahead of the answer.
func (s *session) answerConnect(conn net.Conn, buf *bufio.ReadWriter, target net.Conn) error {
	local, ok := conn.(*localConn)
	if !ok {
		return fmt.Errorf("connection of type %T", conn)
	}
	if _, err := io.WriteString(local, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return err
	}
	if n := buf.Reader.Buffered(); n > 0 {
		early, err := buf.Reader.Peek(n)
		if err != nil {
			return err
		}
		local.first = append(early[:n:n], local.first...)
		return new(tunnel.Flow).SpliceContext(s.ctx, local, target)
	}
	return new(tunnel.Flow).SpliceContext(s.ctx, local.TCPConn, target)
}

// refuseHTTP says in one line why there is no connection.
func (s *session) refuseHTTP(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, context.Canceled) {
		panic(http.ErrAbortHandler) // the client or bridge is going away: nobody to tell
	}
	s.log.Debug("http", "client", r.RemoteAddr, "error", err)
	why := refusalFor(err)
	w.Header().Set("Proxy-Status", pseudonym+"; error="+why.token)
	http.Error(w, "bridge: "+err.Error(), why.status)
}
