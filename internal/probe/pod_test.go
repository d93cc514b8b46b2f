package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// refusing is a connection that tells with its first Read that it was refused.
type refusing struct{ net.Conn }

func (refusing) Write(b []byte) (int, error) { return len(b), nil }
func (refusing) Read([]byte) (int, error) {
	return 0, &net.OpError{Op: "read", Err: syscall.ECONNREFUSED}
}

// In the pod a probe asks as the kubelet does: the pod's address is the Host, and a refusal may come late.
func TestProbesInThePod(t *testing.T) {
	var host string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host = r.Host; r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	_, text, _ := net.SplitHostPort(server.Listener.Addr().String())
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	pod := &Pod{
		Address: "10.1.2.3",
		Dial: func(ctx context.Context, to int) (net.Conn, error) {
			if to != port {
				conn, _ := net.Pipe()
				return refusing{conn}, nil
			}
			return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		},
		Knock: func(_ context.Context, to int) error {
			if to != port {
				return syscall.ECONNREFUSED
			}
			return nil
		},
		Exec: func(_ context.Context, command []string, out io.Writer) (int, error) {
			if command[0] == "absent" {
				return 0, errors.New("no such container")
			}
			_, err := io.WriteString(out, "no "+command[1])
			return 3, err
		},
	}
	at, nowhere := intstr.FromInt(port), intstr.FromInt32(9)
	for _, tt := range []struct {
		name string
		h    corev1.ProbeHandler
		want Outcome
	}{
		{"HTTP", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: at}}, Outcome{Success, "status 200", false}},
		{"HTTP, not well", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: at, Path: "/bad"}}, Outcome{Failure, "status 503", false}},
		{"HTTP, refused", corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: nowhere}}, Outcome{Failure, "connection refused", true}},
		{"gRPC, refused", corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 9}}, Outcome{Failure, "connection refused", true}},
		{"TCP", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: at}}, Outcome{Success, "connected", false}},
		{"TCP, refused", corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: nowhere}}, Outcome{Failure, "connection refused", true}},
		{"a command", corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check", "$(WHAT)"}}}, Outcome{Failure, "exit status 3: no database", false}},
		{"a command that cannot be run", corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"absent"}}}, Outcome{Unknown, "no such container", false}},
	} {
		c := corev1.Container{Env: []corev1.EnvVar{{Name: "WHAT", Value: "database"}}, ReadinessProbe: &corev1.Probe{ProbeHandler: tt.h}}
		probes, notes := Of(c, Options{Pod: pod})
		if len(probes) != 1 || len(notes) > 0 {
			t.Fatalf("%s: %v, %q", tt.name, probes, notes)
		}
		if got := probes[0].run(t.Context()); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	if want := net.JoinHostPort("10.1.2.3", text); host != want {
		t.Errorf("the Host was %q, want %q", host, want)
	}
}
