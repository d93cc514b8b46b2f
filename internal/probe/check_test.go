package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// serve starts a server and returns its port.
func serve(t *testing.T, s *httptest.Server, start func()) int32 {
	t.Helper()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	start()
	t.Cleanup(s.Close)
	return portOf(t, s.Listener.Addr())
}

func portOf(t *testing.T, a net.Addr) int32 {
	t.Helper()
	_, text, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return int32(n)
}

// closedPort is one at which nobody listens.
func closedPort(t *testing.T) int32 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return portOf(t, ln.Addr())
}

// silentPort takes connections, as the kernel does for a process at a breakpoint, and nobody answers.
func silentPort(t *testing.T) int32 {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return portOf(t, ln.Addr())
}

// patient is the timeout of a probe that has to come in time, in seconds, on a machine that is busy.
const patient = 60

// of is the one probe of a container that has this handler.
func of(t *testing.T, h corev1.ProbeHandler, timeoutSeconds int32, o Options) *Probe {
	t.Helper()
	if o.Local == nil {
		o.Local = func(port int32) (int32, error) { return port, nil }
	}
	c := corev1.Container{ReadinessProbe: &corev1.Probe{ProbeHandler: h, TimeoutSeconds: timeoutSeconds}}
	probes, notes := Of(c, o)
	if len(probes) != 1 {
		t.Fatalf("no probe: %q", notes)
	}
	return probes[0]
}

func TestHTTPGet(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/status/{code}", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		w.WriteHeader(code)
	})
	mux.Handle("/to-good", http.RedirectHandler("/status/200", http.StatusFound))
	mux.Handle("/to-bad", http.RedirectHandler("/status/500", http.StatusMovedPermanently))
	mux.Handle("/elsewhere", http.RedirectHandler("http://other.example/", http.StatusFound))
	mux.Handle("/round", http.RedirectHandler("/round", http.StatusFound))
	nobody := closedPort(t)
	mux.Handle("/to-nobody", http.RedirectHandler(fmt.Sprintf("http://localhost:%d/", nobody), http.StatusFound))
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 4<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/broken", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "less")
	})
	mux.HandleFunc("/none", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	s := httptest.NewUnstartedServer(mux)
	plain := serve(t, s, s.Start)
	s = httptest.NewUnstartedServer(mux)
	s.EnableHTTP2 = true
	secure := serve(t, s, s.StartTLS)
	silent := silentPort(t)

	for _, tt := range []struct {
		scheme corev1.URIScheme
		port   int32
		path   string
		want   Outcome
	}{
		{"", plain, "/status/200", Outcome{Success, "status 200", false}},
		{"HTTP", plain, "status/204?a=b", Outcome{Success, "status 204", false}},
		{"HTTP", plain, "/status/304", Outcome{Success, "status 304, not followed", false}},
		{"HTTP", plain, "/status/399", Outcome{Success, "status 399, not followed", false}},
		{"HTTP", plain, "/status/400", Outcome{Failure, "status 400", false}},
		{"HTTP", plain, "/status/503", Outcome{Failure, "status 503", false}},
		{"HTTP", plain, "/to-good", Outcome{Success, "status 200", false}},
		{"HTTP", plain, "/to-bad", Outcome{Failure, "status 500", false}},
		{"HTTP", plain, "/elsewhere", Outcome{Success, "status 302, not followed", false}},
		{"HTTP", plain, "/round", Outcome{Failure, "more than 10 redirects", false}},
		{"HTTP", plain, "/to-nobody", Outcome{Failure, fmt.Sprintf("dial tcp 127.0.0.1:%d: connect: connection refused", nobody), false}},
		{"HTTP", plain, "/long", Outcome{Success, "status 200", false}},
		{"HTTP", plain, "/broken", Outcome{Unknown, "the answer's body: unexpected EOF", false}},
		{"HTTP", plain, "/none", Outcome{Failure, "EOF", false}},
		{"HTTPS", secure, "/status/200", Outcome{Success, "status 200", false}},
		{"HTTPS", secure, "/status/500", Outcome{Failure, "status 500", false}},
		{"HTTPS", plain, "/status/200", Outcome{Failure, "http: server gave HTTP response to HTTPS client", false}},
		{"HTTP", secure, "/status/200", Outcome{Failure, "status 400", false}},
		{"HTTP", silent, "/", Outcome{Failure, "no answer in time", false}},
		{"HTTP", nobody, "/", Outcome{Failure, "connection refused", true}},
	} {
		timeout := int32(patient)
		if tt.port == silent {
			timeout = 1
		}
		p := of(t, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Scheme: tt.scheme, Path: tt.path, Port: intstr.FromInt32(tt.port)}}, timeout, Options{})
		if got := p.run(t.Context()); got != tt.want {
			t.Errorf("%s: %+v, want %+v", p.What, got, tt.want)
		}
	}
}

func TestHTTPGetSendsWhatTheKubeletSends(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r }))
	port := serve(t, s, s.Start)
	host := "localhost:" + strconv.Itoa(int(port))
	for _, tt := range []struct {
		headers []corev1.HTTPHeader
		host    string
		want    http.Header
	}{
		{nil, host, http.Header{"User-Agent": {userAgent}, "Accept": {"*/*"}, "Connection": {"close"}}},
		{[]corev1.HTTPHeader{{Name: "host", Value: "shop.example"}, {Name: "user-agent", Value: "mine"}, {Name: "Accept", Value: ""}, {Name: "x-a", Value: "1"}, {Name: "X-A", Value: "2"}},
			"shop.example", http.Header{"User-Agent": {"mine"}, "X-A": {"1", "2"}, "Connection": {"close"}}},
	} {
		p := of(t, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/a", Port: intstr.FromInt32(port), HTTPHeaders: tt.headers}}, patient, Options{})
		for range 2 { // headers are not used up
			if out := p.run(t.Context()); out.Result != Success {
				t.Fatalf("%+v", out)
			}
			if r := <-got; r.Host != tt.host || !reflect.DeepEqual(r.Header, tt.want) || r.Method != "GET" || r.URL.Path != "/a" {
				t.Errorf("host %q and %v, want %q and %v", r.Host, r.Header, tt.host, tt.want)
			}
		}
	}
}

func TestTCP(t *testing.T) {
	open, closed := silentPort(t), closedPort(t)
	for port, want := range map[int32]Outcome{open: {Success, "connected", false}, closed: {Failure, "connection refused", true}} {
		p := of(t, corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}, patient, Options{})
		if got := p.run(t.Context()); got != want {
			t.Errorf("%s: %+v, want %+v", p.What, got, want)
		}
	}
}

func TestExec(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	for _, tt := range []struct {
		command []string
		want    Outcome
	}{
		{[]string{"true"}, Outcome{Result: Success, Why: "exit status 0"}},
		{[]string{"sh", "-c", "echo one; echo two >&2; exit 3"}, Outcome{Result: Failure, Why: "exit status 3: one two"}},
		{[]string{"sh", "-c", "head -c 100000 /dev/zero; exit 1"}, Outcome{Result: Failure, Why: "exit status 1:"}},
		{[]string{"sh", "-c", "exec sleep 3600"}, Outcome{Result: Failure, Why: "no end in time"}},
		{[]string{"sh", "-c", "sleep 3600 & echo $! >$0", mark}, Outcome{Result: Success, Why: "exit status 0"}},
		{[]string{"/does/not/exist"}, Outcome{Result: Unknown, Why: "fork/exec /does/not/exist: no such file or directory"}},
	} {
		timeout := int32(patient)
		if slices.Contains(tt.command, "exec sleep 3600") {
			timeout = 1
		}
		p := of(t, corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: tt.command}}, timeout, Options{Exec: true})
		if got := p.run(t.Context()); got != tt.want {
			t.Errorf("%q: %+v, want %+v", tt.command, got, tt.want)
		}
	}
	if b, err := os.ReadFile(mark); err != nil {
		t.Error(err)
	} else if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		t.Error(err)
	} else if left, err := os.FindProcess(n); err == nil {
		_ = left.Kill()
	}
}

// A command of the cluster's does not run on the laptop unasked.
func TestExecNeedsLeave(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	h := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"touch", mark}}}
	port := closedPort(t)
	p := of(t, h, patient, Options{Port: port})
	if out := p.run(t.Context()); !out.Absent {
		t.Errorf("%s: %+v", p.What, out)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Error("the command ran")
	}
	of(t, h, patient, Options{Port: port, Exec: true}).run(t.Context())
	if _, err := os.Stat(mark); err != nil {
		t.Errorf("the command did not run: %v", err)
	}
	c := corev1.Container{LivenessProbe: &corev1.Probe{ProbeHandler: h}}
	for _, o := range []Options{{}, {Port: port}, {Exec: true}} {
		if _, notes := Of(c, o); len(notes) != 1 || !strings.Contains(notes[0], mark) || !strings.Contains(notes[0], "the livenessProbe ") {
			t.Errorf("notes %q", notes)
		}
	}
}

func TestExpand(t *testing.T) {
	env := []corev1.EnvVar{{Name: "A", Value: "one"}, {Name: "B", Value: "$(A)"}, {Name: "S", ValueFrom: &corev1.EnvVarSource{}}}
	in := []string{"plain", "$(A)/$(A)", "$(B)", "$(NONE)", "$$(A)", "$A ${A}", "$(A", "end$", "[$(S)]"}
	want := []string{"plain", "one/one", "$(A)", "$(NONE)", "$(A)", "$A ${A}", "$(A", "end$", "[]"}
	if got := expand(in, env); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// grpcServer answers the health check of a service of this name.
func grpcServer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	if err != nil || len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 ||
		r.URL.Path != "/grpc.health.v1.Health/Check" || r.Header.Get("Te") != "trailers" || r.Header.Get("Content-Type") != "application/grpc" {
		w.Header().Set("Grpc-Status", "13")
		return
	}
	answer := func(message string) {
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = w.Write(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))))
		_, _ = io.WriteString(w, message)
		w.Header().Set("Grpc-Status", "0")
	}
	switch string(body[5:]) {
	case "":
		answer("\x08\x01")
	case "\x0a\x04down":
		answer("\x08\x02")
	case "\x0a\x05empty":
		answer("")
	case "\x0a\x05extra": // a field of a later version
		answer("\x12\x01x\x08\x01")
	case "\x0a\x06broken":
		answer("\x08")
	case "\x0a\x05plain":
		_, _ = io.WriteString(w, "hello")
	case "\x0a\x04hang":
		<-r.Context().Done()
	case "\x0a\x04none":
		w.Header().Set("Grpc-Status", "12")
	default:
		w.Header().Set("Grpc-Status", "5")
	}
}

func TestGRPC(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(grpcServer))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	port := serve(t, s, s.Start)
	s = httptest.NewUnstartedServer(http.NotFoundHandler())
	old := serve(t, s, s.Start)
	silent := silentPort(t)
	for _, tt := range []struct {
		port    int32
		service string
		want    Outcome
	}{
		{port, "", Outcome{Success, "serving", false}},
		{port, "extra", Outcome{Success, "serving", false}},
		{port, "down", Outcome{Failure, "not serving (2)", false}},
		{port, "empty", Outcome{Failure, "not serving (0)", false}},
		{port, "broken", Outcome{Failure, errNotHealth.Error(), false}},
		{port, "plain", Outcome{Failure, "no gRPC answer, status 200", false}},
		{port, "other", Outcome{Failure, "gRPC status 5: the server does not know the service", false}},
		{port, "none", Outcome{Failure, "gRPC status 12: the server has no health service (grpc.health.v1.Health)", false}},
		{port, "hang", Outcome{Failure, "no answer in time", false}},
		{silent, "", Outcome{Failure, "no answer in time", false}},
		{closedPort(t), "", Outcome{Failure, "connection refused", true}},
	} {
		timeout := int32(patient)
		if tt.port == silent || tt.service == "hang" {
			timeout = 1
		}
		p := of(t, corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: tt.port, Service: &tt.service}}, timeout, Options{})
		if got := p.run(t.Context()); got != tt.want {
			t.Errorf("%s: %+v, want %+v", p.What, got, tt.want)
		}
	}
	// What speaks no HTTP/2 fails, with words that are net/http's.
	if out := of(t, corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: old}}, 1, Options{}).run(t.Context()); out.Result != Failure || out.Absent || out.Why == "" {
		t.Errorf("HTTP/1.1: %+v", out)
	}
}

func FuzzHealthStatus(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x02\x08\x01"))
	f.Add([]byte("\x00\x00\x00\x00\x05\x12\x01x\x08\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if status, err := healthStatus(b); err == nil && len(b) == 5 && status != 0 {
			t.Errorf("status %d of an empty message", status)
		}
	})
}

func TestOf(t *testing.T) {
	get := func(port intstr.IntOrString, host string) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/h", Port: port, Host: host}}}
	}
	c := corev1.Container{
		Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		StartupProbe:   get(intstr.FromString("http"), ""),
		ReadinessProbe: get(intstr.FromString("8080"), ""),
		LivenessProbe: &corev1.Probe{
			ProbeHandler:        corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
			InitialDelaySeconds: 7, PeriodSeconds: 8, TimeoutSeconds: 9, SuccessThreshold: 1, FailureThreshold: 11,
		},
	}
	o := Options{Local: func(port int32) (int32, error) {
		if port != 8080 {
			return 0, fmt.Errorf("port %d is elsewhere", port)
		}
		return 3000, nil
	}}
	probes, notes := Of(c, o)
	if len(probes) != 3 || len(notes) != 0 {
		t.Fatalf("%v, %q", probes, notes)
	}
	for _, p := range probes {
		p.Check = nil
	}
	std := Probe{What: "GET http://localhost:3000/h", Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	startup, readiness := std, std
	startup.Kind, readiness.Kind = Startup, Readiness
	liveness := Probe{Kind: Liveness, What: "TCP connection to localhost:3000", InitialDelay: 7 * time.Second, Period: 8 * time.Second, Timeout: 9 * time.Second, SuccessThreshold: 1, FailureThreshold: 11}
	if want := []*Probe{&startup, &readiness, &liveness}; !reflect.DeepEqual(probes, want) {
		t.Errorf("%v, want %v", probes, want)
	}

	c.StartupProbe, c.ReadinessProbe = get(intstr.FromString("admin"), ""), get(intstr.FromInt32(8080), "127.0.0.1")
	c.LivenessProbe = get(intstr.FromInt32(9000), "")
	probes, notes = Of(c, o)
	want := []string{
		`the startupProbe is not run here: the container has no port "admin"`,
		"the readinessProbe is not run here: it asks another host than the pod, \"127.0.0.1\"",
		"the livenessProbe is not run here: port 9000 is elsewhere",
	}
	if len(probes) != 0 || !slices.Equal(notes, want) {
		t.Errorf("%v, %q, want %q", probes, notes, want)
	}
}

// What comes from the cluster is shown on one line, and drives no terminal.
func TestWordsAreOneLine(t *testing.T) {
	p := of(t, corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "one\n\x1b[2Jtwo" + strings.Repeat("x", 1000)}}}, 1, Options{Exec: true})
	if strings.ContainsAny(p.What, "\n\x1b") || len(p.What) != maxWhy {
		t.Errorf("%q", p.What)
	}
}
