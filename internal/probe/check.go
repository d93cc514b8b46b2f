package probe

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

const (
	// userAgent is the kubelet's; programs know it by what comes before the version.
	userAgent = "kube-probe/1.35"
	// maxBody is how much of an answer, and of a command's output, is read.
	maxBody = 10 << 10
	// maxRedirects is of one run.
	maxRedirects = 10
	// maxWhy bounds an Outcome's words, in characters.
	maxWhy = 200
	// pipeDelay is how long a command's children may keep its output open after it.
	pipeDelay = time.Second
)

// absentError is a dial of the probe's own port that nobody took: on one's own machine it is refused, or waits.
type absentError struct{ error }

func (e absentError) Unwrap() error { return e.error }

// dialFunc makes a connection, as a net.Dialer does.
type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// absent is a dial of that port with d; nil is a net.Dialer.
func absent(d dialFunc) dialFunc {
	if d == nil {
		d = new(net.Dialer).DialContext
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := d(ctx, network, address)
		var timeout net.Error
		if err != nil && ctx.Err() == nil && (!errors.As(err, &timeout) || !timeout.Timeout()) {
			return nil, absentError{err}
		}
		return conn, err
	}
}

// end is where a probe goes.
type end struct {
	address string
	dial    dialFunc
	knock   func(ctx context.Context) error // whether a connection opens; nil: dial tells
}

// local is a port of localhost.
func (o Options) local(port int32) end {
	return end{address: net.JoinHostPort("localhost", strconv.Itoa(int(port))), dial: absent(o.Dial)}
}

// at is a port of the pod.
func (p *Pod) at(port int32) end {
	return end{
		address: net.JoinHostPort(p.Address, strconv.Itoa(int(port))),
		dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			_, to, err := net.SplitHostPort(address) // a redirect may lead to another port
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseUint(to, 10, 16)
			if err != nil {
				return nil, err
			}
			conn, err := p.Dial(ctx, int(n))
			if err != nil {
				return nil, refused(err)
			}
			return lateConn{conn}, nil
		},
		knock: func(ctx context.Context) error { return refused(p.Knock(ctx, int(port))) },
	}
}

// refused makes of a refusal that nobody listens.
func refused(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return absentError{err}
	}
	return err
}

// lateConn is one whose first Read tells that it was refused.
type lateConn struct{ net.Conn }

func (c lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, refused(err)
}

// failed is the outcome of what ended with err.
func failed(ctx context.Context, err error) Outcome {
	var absent absentError
	if errors.As(err, &absent) {
		why := "nobody listens"
		if errors.Is(err, syscall.ECONNREFUSED) {
			why = "connection refused"
		}
		return Outcome{Failure, why, true}
	}
	var timeout net.Error
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return Outcome{Result: Failure, Why: "no answer in time"}
	}
	if of := new(url.Error); errors.As(err, &of) { // it would name the URL again
		err = of.Err
	}
	return Outcome{Result: Failure, Why: words(err.Error())}
}

// words is one line of text, as long as it may be.
func words(text string) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text))
	return fmt.Sprintf("%.*s", maxWhy, text)
}

// tcp succeeds when a connection opens.
func tcp(to end) (what string, check func(context.Context) Outcome) {
	return "TCP connection to " + to.address, func(ctx context.Context) Outcome {
		if to.knock != nil {
			if err := to.knock(ctx); err != nil {
				return failed(ctx, err)
			}
			return Outcome{Result: Success, Why: "connected"}
		}
		conn, err := to.dial(ctx, "tcp", to.address)
		if err != nil {
			return failed(ctx, err)
		}
		_ = conn.Close()
		return Outcome{Result: Success, Why: "connected"}
	}
}

// httpGet succeeds with a status of 200 to 399. Redirects are followed to the same host only, and are a success when they lead
// elsewhere. A body that breaks off gives no result, unless the status is one of a failure.
func httpGet(a *corev1.HTTPGetAction, to end) (what string, check func(context.Context) Outcome) {
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = strings.ToLower(cmp.Or(string(a.Scheme), "http")), to.address
	address := u.String()
	header := http.Header{}
	for _, h := range a.HTTPHeaders {
		header.Add(h.Name, h.Value)
	}
	if _, ok := header["User-Agent"]; !ok {
		header.Set("User-Agent", userAgent)
	}
	switch accept, ok := header["Accept"]; {
	case !ok:
		header.Set("Accept", "*/*")
	case accept[0] == "":
		header.Del("Accept")
	}
	client := &http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := to.dial(ctx, network, address)
				if absent := (absentError{}); address != u.Host && errors.As(err, &absent) {
					err = absent.error // where a redirect leads
				}
				return conn, err
			},
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // as the kubelet
			ForceAttemptHTTP2: true, DisableKeepAlives: true, DisableCompression: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			switch {
			case r.URL.Hostname() != via[0].URL.Hostname():
				return http.ErrUseLastResponse
			case len(via) >= maxRedirects:
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return nil
		},
	}
	return "GET " + address, func(ctx context.Context) Outcome {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return Outcome{Why: words(err.Error())}
		}
		r.Header, r.Host = header.Clone(), header.Get("Host")
		resp, err := client.Do(r)
		if err != nil {
			return failed(ctx, err)
		}
		defer resp.Body.Close()
		why := fmt.Sprintf("status %d", resp.StatusCode)
		if resp.StatusCode < 200 || resp.StatusCode >= 400 {
			return Outcome{Result: Failure, Why: why}
		}
		if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody)); err != nil {
			return Outcome{Why: words("the answer's body: " + err.Error())}
		}
		if resp.StatusCode >= 300 {
			why += ", not followed"
		}
		return Outcome{Result: Success, Why: why}
	}
}

// execute succeeds with exit status 0. The command has bridge's own environment.
func execute(ctx context.Context, command []string) Outcome {
	var out output
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = pipeDelay
	endWhole(cmd)
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay):
		return Outcome{Result: Success, Why: "exit status 0"}
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Outcome{Result: Failure, Why: "no end in time"}
	case errors.As(err, &exit):
		why := exit.Error()
		if text := out.String(); text != "" {
			why += ": " + text
		}
		return Outcome{Result: Failure, Why: words(why)}
	}
	return Outcome{Why: words(err.Error())}
}

// execute is the same in the container.
func (p *Pod) execute(ctx context.Context, command []string) Outcome {
	var out output
	code, err := p.Exec(ctx, command, &out)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Outcome{Result: Failure, Why: "no end in time"}
	case err != nil:
		return Outcome{Why: words(err.Error())}
	}
	why, result := fmt.Sprintf("exit status %d", code), Success
	if code != 0 {
		if result = Failure; out.Len() > 0 {
			why += ": " + out.String()
		}
	}
	return Outcome{Result: result, Why: words(why)}
}

// output keeps the first maxBody bytes.
type output struct{ bytes.Buffer }

func (o *output) Write(b []byte) (int, error) {
	_, _ = o.Buffer.Write(b[:min(len(b), maxBody-o.Len())])
	return len(b), nil
}

// expand replaces $(NAME) by the value that env itself has for NAME, and $$ by $. Other references stay as they are.
func expand(command []string, env []corev1.EnvVar) []string {
	values := map[string]string{}
	for _, e := range env {
		values[e.Name] = e.Value
	}
	out := make([]string, len(command))
	for i, text := range command {
		var b strings.Builder
		for {
			before, after, found := strings.Cut(text, "$")
			b.WriteString(before)
			if !found {
				break
			}
			text = after
			if rest, ok := strings.CutPrefix(after, "$"); ok {
				b.WriteByte('$')
				text = rest
				continue
			}
			if name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")"); closed && strings.HasPrefix(after, "(") {
				if value, known := values[name]; known {
					b.WriteString(value)
					text = rest
					continue
				}
			}
			b.WriteByte('$')
		}
		out[i] = b.String()
	}
	return out
}
