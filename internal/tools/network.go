package tools

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"os"
	"strconv"
	"strings"
	"time"

	"bridge/internal/hint"
)

// dialTimeout is how long a host that does not answer is waited for.
const dialTimeout = 10 * time.Second

func request(ctx context.Context, method, url, body string, h headers) (*http.Request, error) {
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, line := range h {
		name, value, _ := strings.Cut(line, ":")
		if name, value = strings.TrimSpace(name), strings.TrimSpace(value); strings.EqualFold(name, "Host") {
			req.Host = value
		} else {
			req.Header.Set(name, value)
		}
	}
	return req, nil
}

// curlFailed is curl's own exit code for a status of 400 or more with -f.
const curlFailed = 22

func curl(ctx context.Context, s Streams, f *flag.FlagSet, args []string) (err error) {
	verbose, head, insecure := f.Bool("v", false, ""), f.Bool("i", false, ""), f.Bool("k", false, "")
	// As of curl's own: -f leaves a file as it is when the request fails.
	headOnly, follow, fail := f.Bool("I", false, ""), f.Bool("L", false, ""), f.Bool("f", false, "")
	method, data, file := f.String("X", "", ""), f.String("d", "", ""), f.String("o", "", "")
	seconds, connecting := f.Float64("m", 0, ""), f.Float64("connect-timeout", dialTimeout.Seconds(), "")
	written := f.String("w", "", "")
	ignore(f, "sS")
	var h headers
	f.Var(&h, "H", "")
	if err := parse(f, args, 1, 1); err != nil {
		return err
	}
	switch {
	case *method != "":
	case *headOnly:
		*method = http.MethodHead
	case *data != "":
		*method = http.MethodPost
	default:
		*method = http.MethodGet
	}
	*head = *head || *headOnly
	req, err := request(ctx, *method, f.Arg(0), *data, h)
	if err != nil {
		return err
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "bridge-tools")
	}
	var sending *http.Request // at the moment
	dump := func() {
		c := sending.Clone(ctx)
		if c.Header.Get("Accept-Encoding") == "" { // without compression it is not sent
			c.Header.Set("Accept-Encoding", "identity")
		}
		if b, err := httputil.DumpRequestOut(c, false); err == nil {
			_, _ = fmt.Fprint(s.Err, marked("> ", strings.Replace(string(b), "Accept-Encoding: identity\r\n", "", 1)))
		}
	}
	if sending = req; *verbose {
		asked := ""
		req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			DNSStart: func(d httptrace.DNSStartInfo) { asked = d.Host },
			DNSDone: func(d httptrace.DNSDoneInfo) {
				for _, a := range d.Addrs {
					_, _ = fmt.Fprintf(s.Err, "* %s is %s\n", hint.Printable(asked), a.String())
				}
			},
			GotConn:      func(c httptrace.GotConnInfo) { _, _ = fmt.Fprintf(s.Err, "* connected to %s\n", c.Conn.RemoteAddr()) },
			WroteHeaders: dump,
		}))
	}
	client := http.Client{
		Timeout: time.Duration(*seconds * float64(time.Second)),
		Transport: &http.Transport{
			DialContext:       (&net.Dialer{Timeout: time.Duration(*connecting * float64(time.Second))}).DialContext,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: *insecure}, // the user's own -k
			DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true,
		},
	}
	var heads bytes.Buffer
	show := func(resp *http.Response) {
		b, err := httputil.DumpResponse(resp, false)
		switch {
		case err != nil:
		case *head:
			heads.Write(b)
		case *verbose:
			_, _ = fmt.Fprint(s.Err, marked("< ", string(b)))
		}
	}
	client.CheckRedirect = func(to *http.Request, via []*http.Request) error {
		if !*follow {
			return http.ErrUseLastResponse
		}
		show(to.Response)
		sending = to
		return fewRedirects(via)
	}
	begin, code, kind := time.Now(), "000", ""
	defer func() {
		_, writeErr := io.WriteString(s.Out, strings.NewReplacer("%{http_code}", code, "%{response_code}", code,
			"%{time_total}", fmt.Sprintf("%.6f", time.Since(begin).Seconds()), "%{content_type}", kind, `\n`, "\n", `\t`, "\t").Replace(*written))
		if err == nil {
			err = writeErr
		}
	}()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	code, kind = strconv.Itoa(resp.StatusCode), resp.Header.Get("Content-Type")
	show(resp)
	if *fail && resp.StatusCode >= 400 {
		_, _ = fmt.Fprintf(s.Err, "curl: status %d\n", resp.StatusCode)
		return exitCode(curlFailed)
	}
	out := s.Out
	if *file != "" && *file != "-" {
		to, openErr := os.OpenFile(*file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if openErr != nil {
			return openErr
		}
		defer func() { err = errors.Join(err, to.Close()) }()
		out = to
	}
	if _, err := heads.WriteTo(out); err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

// fewRedirects is an error when there were too many.
func fewRedirects(via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("ten redirects")
	}
	return nil
}

func marked(mark, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(mark + line)
	}
	return b.String()
}

// httpProbe does as the kubelet does: any certificate will do, a redirect to another host is a success, and so is each status below 400.
func httpProbe(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error {
	timeout := f.Duration("timeout", time.Second, "")
	var h headers
	f.Var(&h, "H", "")
	if err := parse(f, args, 1, 1); err != nil {
		return err
	}
	req, err := request(ctx, http.MethodGet, f.Arg(0), "", h)
	if err != nil {
		return err
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "kube-probe/bridge")
	}
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "*/*")
	}
	client := http.Client{
		Timeout:   *timeout,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, DisableCompression: true}, // as the kubelet
		CheckRedirect: func(to *http.Request, via []*http.Request) error {
			if to.URL.Hostname() != via[0].URL.Hostname() {
				return http.ErrUseLastResponse
			}
			return fewRedirects(via)
		},
	}
	begin := time.Now()
	resp, err := client.Do(req)
	took := time.Since(begin).Round(time.Millisecond)
	if err != nil {
		_, _ = fmt.Fprintf(s.Out, "failure after %s: %v\n", took, err)
		return exitCode(1)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		_, _ = fmt.Fprintf(s.Out, "failure in %s: status %d\n", took, resp.StatusCode)
		return exitCode(1)
	}
	_, err = fmt.Fprintf(s.Out, "success in %s: status %d\n", took, resp.StatusCode)
	return err
}

func netcat(ctx context.Context, s Streams, f *flag.FlagSet, args []string) error {
	udp, scan, listen := f.Bool("u", false, ""), f.Bool("z", false, ""), f.Bool("l", false, "")
	seconds := f.Float64("w", dialTimeout.Seconds(), "")
	port := f.String("p", "", "") // of -l, as some have it
	ignore(f, "vn")
	if err := parse(f, args, 0, 2); err != nil {
		return err
	}
	operands := f.Args()
	if *listen && *port != "" {
		operands = append(operands, *port)
	}
	if *listen != (len(operands) == 1) || len(operands) == 0 || *listen && *scan {
		return errUsage
	}
	network := "tcp"
	if *udp {
		network = "udp"
	}
	if *listen {
		return serveOne(ctx, s, network, ":"+operands[0])
	}
	address := net.JoinHostPort(f.Arg(0), f.Arg(1))
	conn, err := (&net.Dialer{Timeout: time.Duration(*seconds * float64(time.Second))}).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if *scan {
		says := "open"
		if *udp {
			says, err = knockUDP(conn)
		}
		if err == nil {
			_, err = fmt.Fprintf(s.Err, "%s: %s\n", address, says)
		}
		return err
	}
	return join(ctx, conn, s)
}

// knockUDP sends an empty datagram, which says more than nothing where the port is closed: an ICMP error comes back.
func knockUDP(conn net.Conn) (says string, err error) {
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err = conn.Write(nil); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return "not refused, and no answer to an empty datagram: of UDP there is no more to know", nil
	}
	return "open", err
}

// serveOne takes one connection; of UDP it prints what comes, from anybody.
func serveOne(ctx context.Context, s Streams, network, address string) error {
	if network == "udp" {
		conn, err := (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
		buf := make([]byte, 64<<10)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return err
			}
			if _, err := s.Out.Write(buf[:n]); err != nil {
				return err
			}
		}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, network, address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	conn, err := ln.Accept()
	stop()
	_ = ln.Close()
	if err != nil {
		return err
	}
	defer conn.Close()
	return join(ctx, conn, s)
}

// join passes bytes both ways until the other side ends. Nobody waits for the standard input, which may never end.
func join(ctx context.Context, conn net.Conn, s Streams) error {
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	go func() {
		_, _ = io.Copy(conn, s.In)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err := io.Copy(s.Out, conn)
	return err
}
