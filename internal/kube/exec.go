package kube

import (
	"context"
	"errors"
	"io"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// Exec runs command in a container of a pod, with what it prints to out, and returns its exit code.
func (c *Client) Exec(ctx context.Context, namespace, pod, container string, command []string, out io.Writer) (code int, err error) {
	u := c.Clientset.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	socket, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", u.String())
	if err != nil {
		return 0, err
	}
	plain, err := remotecommand.NewSPDYExecutor(c.Config, "POST", u)
	if err != nil {
		return 0, err
	}
	executor, err := remotecommand.NewFallbackExecutor(socket, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return 0, err
	}
	both := &lockedWriter{w: out}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: both, Stderr: both})
	if exit := exec.ExitError(nil); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitStatus(), nil
	}
	if err == nil {
		return 0, nil
	}
	if rbac.MatchString(err.Error()) { // a refused upgrade has no type
		err = apierrors.NewForbidden(corev1.Resource("pods/exec"), pod, err)
	}
	return 0, Explain(err, "run a command in pod "+namespace+"/"+pod)
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
