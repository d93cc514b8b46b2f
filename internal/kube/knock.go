package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Knock is nil when something listens at port on the loopback of pod, and an error that wraps ECONNREFUSED when nothing does. Any other
// error leaves it open. It sends nothing but the connection's end, on which the container runtime gives up within a second or two.
func (c *Client) Knock(ctx context.Context, namespace, pod string, port int) error {
	answers, err := c.hear(ctx, namespace, pod, port, func(conn net.Conn) error {
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			return half.CloseWrite()
		}
		return nil
	})
	if err == nil && !answers {
		return context.Cause(ctx)
	}
	return err
}

// Ask is Knock with an HTTP GET of /, and tells whether anything comes back before ctx is done, whatever it is: a program that has ended the
// connection has answered too.
func (c *Client) Ask(ctx context.Context, namespace, pod string, port int) (answers bool, err error) {
	return c.hear(ctx, namespace, pod, port, func(conn net.Conn) error {
		_, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: localhost:%d\r\nUser-Agent: bridge\r\nConnection: close\r\n\r\n", port)
		return err
	})
}

// hear says something at port on the loopback of pod, and tells whether anything comes back before ctx is done, if only the end.
func (c *Client) hear(ctx context.Context, namespace, pod string, port int, say func(net.Conn) error) (answers bool, err error) {
	conn, err := c.DialPod(ctx, namespace, pod, port)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := say(conn); err != nil {
		return false, err
	}
	_, err = conn.Read(make([]byte, 1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, nil
	case errors.Is(err, io.EOF):
		err = nil
	}
	return err == nil, err
}

// SpeaksTLS tells whether who listens at port on the loopback of pod takes part in a TLS handshake.
func (c *Client) SpeaksTLS(ctx context.Context, namespace, pod string, port int) bool {
	conn, err := c.DialPod(ctx, namespace, pod, port)
	if err != nil {
		return false
	}
	defer conn.Close()
	// Whose certificate it is does not matter.
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx) == nil
}

// KnockAddress is Knock at the pod's own address, from where the API server is: by its proxy to pods, which sends a GET of /. Any
// answer of the pod is nil. An error that does not wrap ECONNREFUSED leaves it open.
func (c *Client) KnockAddress(ctx context.Context, namespace, pod string, port int) error {
	doing := fmt.Sprintf("connect to port %d of pod %s/%s through pods/proxy", port, namespace, pod)
	body, err := c.Clientset.CoreV1().RESTClient().Get().Namespace(namespace).Resource("pods").Name(fmt.Sprintf("%s:%d", pod, port)).
		SubResource("proxy").Suffix("/").MaxRetries(0).Stream(ctx)
	switch {
	case err == nil:
		return body.Close()
	case apierrors.IsUnexpectedServerError(err) && !strings.Contains(err.Error(), noWay): // the pod's own
		return nil
	}
	return explainPodProxy(err, doing)
}

// noWay is in what the API server says of a pod that it has not reached.
const noWay = "error trying to reach service"
