package kube

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	spdystream "k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // the types of client-go's spdy.Upgrader
	streaming "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	"bridge/internal/hint"
)

// Streams are what a program in a container reads and writes.
type Streams struct {
	Stdin          io.Reader // nil: it has none
	Stdout, Stderr io.Writer
	// TTY gives it a terminal. All that it prints goes to Stdout then.
	TTY bool
	// Size waits for the next size of that terminal; ok is false when there will be none. nil: it is not told.
	Size func() (width, height uint16, ok bool)
}

// Exec runs command in a container of a pod, with what it prints to out, and returns its exit code.
func (c *Client) Exec(ctx context.Context, namespace, pod, container string, command []string, out io.Writer) (code int, err error) {
	both := &lockedWriter{w: out}
	return c.Run(ctx, namespace, pod, container, command, Streams{Stdout: both, Stderr: both})
}

// Run runs command in a container of a pod, and returns its exit code. When ctx ends before, nobody ends the program.
func (c *Client) Run(ctx context.Context, namespace, pod, container string, command []string, s Streams) (code int, err error) {
	err = c.stream(ctx, namespace, pod, "exec", &corev1.PodExecOptions{
		Container: container, Command: command, Stdin: s.Stdin != nil, Stdout: true, Stderr: !s.TTY, TTY: s.TTY,
	}, s)
	if exit := exec.ExitError(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitStatus(), nil
	}
	if err == nil {
		return 0, nil
	}
	err = Explain(err, "run a command in pod "+namespace+"/"+pod)
	if NoProgram(err) {
		err = hint.New(hint.Other, err, "the container's image has no such program")
	}
	return 0, err
}

// Attach joins the streams of the program that a container runs. It returns when that ends.
func (c *Client) Attach(ctx context.Context, namespace, pod, container string, s Streams) error {
	err := c.stream(ctx, namespace, pod, "attach", &corev1.PodAttachOptions{
		Container: container, Stdin: s.Stdin != nil, Stdout: true, Stderr: !s.TTY, TTY: s.TTY,
	}, s)
	return Explain(err, "attach to container "+container+" of pod "+namespace+"/"+pod)
}

// BeforeUpgrade tells whether a program's streams were refused before there were any, as those of a container that has ended are. It reads what
// the API server says: over a WebSocket that comes as the program's status, without a type.
func BeforeUpgrade(err error) bool {
	return err != nil && hint.CodeOf(err) != hint.Unreachable && strings.Contains(err.Error(), "unable to upgrade connection")
}

// NoProgram tells whether err, of Run, is that the container has no such program, by what container runtimes say.
func NoProgram(err error) bool {
	if err == nil {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "executable file not found") ||
		strings.Contains(text, "no such file or directory") && (strings.Contains(text, "OCI runtime exec failed") || strings.Contains(text, "failed to exec"))
}

// stream opens a subresource of a pod's that carries a program's streams, until the program ends: in a WebSocket, or in SPDY where
// that is not passed.
func (c *Client) stream(ctx context.Context, namespace, pod, subresource string, options runtime.Object, s Streams) error {
	u := c.Clientset.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource(subresource).
		VersionedParams(options, scheme.ParameterCodec).URL()
	socket, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", u.String())
	if err != nil {
		return err
	}
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return err
	}
	plain, err := remotecommand.NewSPDYExecutorForTransports(transport, statusUpgrader{upgrader}, "POST", u)
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewFallbackExecutor(socket, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	o := remotecommand.StreamOptions{Stdin: s.Stdin, Stdout: s.Stdout, Tty: s.TTY}
	if !s.TTY {
		o.Stderr = s.Stderr
	}
	if s.TTY && s.Size != nil {
		o.TerminalSizeQueue = sizes(s.Size)
	}
	err = executor.StreamWithContext(ctx, o)
	if err != nil && rbac.MatchString(err.Error()) { // a refused upgrade has no type
		return apierrors.NewForbidden(corev1.Resource("pods/"+subresource), pod, err)
	}
	return err
}

// statusUpgrader opens SPDY connections in which an end without a status is an error. client-go takes it for success, so that a connection
// that is cut is one.
type statusUpgrader struct{ spdy.Upgrader }

// NewConnection is called when the server has agreed to the upgrade.
func (u statusUpgrader) NewConnection(r *http.Response) (spdystream.Connection, error) {
	conn, err := u.Upgrader.NewConnection(r)
	if err != nil && r.StatusCode > http.StatusInternalServerError { // its type is lost
		err = hint.New(hint.Unreachable, err, "what is between this machine and the pod does not answer; try again")
	}
	// Those before them send none on success.
	if err == nil && slices.Contains([]string{streaming.StreamProtocolV4Name, streaming.StreamProtocolV5Name}, r.Header.Get(httpstream.HeaderProtocolVersion)) {
		conn = statusConnection{conn}
	}
	return conn, err
}

type statusConnection struct{ spdystream.Connection }

// CreateStream is called for each of a program's streams, and for that of how it ends.
func (c statusConnection) CreateStream(h http.Header) (spdystream.Stream, error) {
	s, err := c.Connection.CreateStream(h)
	if err == nil && h.Get(corev1.StreamType) == corev1.StreamTypeError {
		s = &statusStream{Stream: s}
	}
	return s, err
}

type statusStream struct {
	spdystream.Stream
	some bool // a byte has come
}

// Read is of the status.
func (s *statusStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if s.some = s.some || n > 0; errors.Is(err, io.EOF) && !s.some {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// sizes are a terminal's, as client-go asks for them.
type sizes func() (width, height uint16, ok bool)

// Next is called until it returns nil.
func (next sizes) Next() *remotecommand.TerminalSize {
	width, height, ok := next()
	if !ok {
		return nil
	}
	return &remotecommand.TerminalSize{Width: width, Height: height}
}

// lockedWriter is for the two streams of a command, which come at once.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
