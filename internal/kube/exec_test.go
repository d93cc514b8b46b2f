package kube

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	streaming "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"bridge/internal/hint"
)

// spdyOnly is an API server that lets no WebSocket pass. The program that it runs prints "half", and end says how it goes on.
func spdyOnly(t *testing.T, protocol string, end func(conn httpstream.Connection, status io.WriteCloser)) *Client {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		if _, err := httpstream.Handshake(r, w, []string{protocol}); err != nil {
			t.Error(err)
			return
		}
		type opened struct {
			httpstream.Stream
			replied <-chan struct{}
		}
		streams := make(chan opened, 8)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
			streams <- opened{s, replied}
			return nil
		})
		if conn == nil {
			t.Error("no upgrade")
			return
		}
		defer conn.Close()
		byType := map[string]httpstream.Stream{}
		for range 3 {
			s := <-streams
			<-s.replied
			byType[s.Headers().Get(corev1.StreamType)] = s
		}
		_, _ = io.WriteString(byType[corev1.StreamTypeStdout], "half")
		end(conn, byType[corev1.StreamTypeError])
		for _, s := range byType {
			_ = s.Close()
		}
		<-conn.CloseChan()
	}))
	t.Cleanup(server.Close)
	c, err := NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A connection that is cut before the program's status has come is no success, over SPDY either; where the protocol has no status its end is.
func TestACutOverSPDYIsNoSuccess(t *testing.T) {
	for name, c := range map[string]struct {
		protocol string
		end      func(httpstream.Connection, io.WriteCloser)
		lost     bool
	}{
		"cut":       {streaming.StreamProtocolV4Name, func(conn httpstream.Connection, _ io.WriteCloser) { _ = conn.Close() }, true},
		"no status": {streaming.StreamProtocolV4Name, func(httpstream.Connection, io.WriteCloser) {}, true},
		"status": {streaming.StreamProtocolV4Name, func(_ httpstream.Connection, status io.WriteCloser) {
			_, _ = io.WriteString(status, `{"metadata":{},"status":"Success"}`)
		}, false},
		"an old server": {streaming.StreamProtocolV2Name, func(httpstream.Connection, io.WriteCloser) {}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code, err := spdyOnly(t, c.protocol, c.end).Exec(t.Context(), "shop", "it", "app", []string{"x"}, &out)
			if c.lost != (err != nil) || c.lost && hint.CodeOf(err) != hint.Unreachable || out.String() != "half" {
				t.Errorf("code %d, error %v, output %q", code, err, out.String())
			}
		})
	}
}
