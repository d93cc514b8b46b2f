package kube

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Knock is nil when something listens at port on the loopback of pod, and an error that wraps ECONNREFUSED when nothing does. Any other
// error leaves it open. It sends nothing but the connection's end, on which the container runtime gives up within a second or two.
func (c *Client) Knock(ctx context.Context, namespace, pod string, port int) error {
	conn, err := c.DialPod(ctx, namespace, pod, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		if err := half.CloseWrite(); err != nil {
			return err
		}
	}
	if _, err = conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
		return nil
	}
	return err
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
