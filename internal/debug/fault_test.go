package debug

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	streaming "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// server is an API server with one pod at most.
type server struct {
	mu       sync.Mutex
	pod      *corev1.Pod
	requests []string
	// first is asked before; true when it has answered.
	first func(w http.ResponseWriter, r *http.Request) bool
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method)
	if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/pods") && s.pod == nil {
		body, _ := io.ReadAll(r.Body)
		s.pod = &corev1.Pod{}
		_, _, _ = scheme.Codecs.UniversalDeserializer().Decode(body, nil, s.pod)
		s.pod.TypeMeta, s.pod.UID = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, "made"
	} else if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/pods") {
		refuse(w, 409, metav1.StatusReasonAlreadyExists)
		return
	}
	if s.first != nil && s.first(w, r) {
		return
	}
	if s.pod == nil {
		refuse(w, 404, metav1.StatusReasonNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	pod := s.pod
	if r.Method == http.MethodDelete {
		s.pod = nil
	}
	_ = json.NewEncoder(w).Encode(pod)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "told so"})
}

func (s *server) client(t *testing.T) *kube.Client {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: h.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func named(mine string) *corev1.Pod {
	return &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "dbg", Namespace: "shop", UID: "it", Annotations: map[string]string{madeByAnnotation: mine}}}
}

// A copy that is being made when bridge is to end is made, and known, and removed.
func TestACopyIsKnownWhenBridgeIsToEnd(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	var told []string
	s := &server{first: func(_ http.ResponseWriter, r *http.Request) bool {
		if end(); r.Method == http.MethodPost && len(told) != 1 {
			t.Errorf("who is to end at once is told %q while it is made", told)
		}
		return false
	}}
	c := &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(remove string, there bool) { told = append(told, fmt.Sprint(remove, " ", there)) }}
	made, err := c.create(ctx, named("me"), "remove", maxTries)
	if fmt.Sprint(told) != "[remove false]" {
		t.Errorf("%q", told)
	}
	if err != nil || made.UID != "made" {
		t.Fatalf("%v, %v", made, err)
	}
	if err := c.remove(ctx, made); err != nil || s.pod != nil {
		t.Errorf("%v, and it is there: %v", err, s.pod != nil)
	}
}

// A copy whose making got no clear answer is removed, and only that: what has its name and is another's stays.
func TestACopyWithoutAnAnswerIsRemoved(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"500": func(w http.ResponseWriter) { refuse(w, 500, metav1.StatusReasonInternalError) },
		"504": func(w http.ResponseWriter) { refuse(w, 504, metav1.StatusReasonTimeout) },
		"cut": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			deletes := 0
			s := &server{first: func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodDelete {
					if deletes++; deletes == 1 {
						refuse(w, 503, metav1.StatusReasonServiceUnavailable) // once more, then
						return true
					}
				}
				if r.Method == http.MethodPost {
					answer(w)
				}
				return r.Method == http.MethodPost
			}}
			c := &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}}
			if _, err := c.create(t.Context(), named("me"), "", maxTries); err == nil || hint.CodeOf(err) == hint.RestoreIncomplete {
				t.Error(err)
			}
			if s.pod != nil || deletes != 2 {
				t.Errorf("it is there: %v, after %v", s.pod != nil, s.requests)
			}
		})
	}
	s := &server{pod: named("somebody")}
	c := &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}}
	if _, err := c.create(t.Context(), named("me"), "", maxTries); hint.CodeOf(err) != hint.Conflict || s.pod == nil {
		t.Error(err)
	}
	if slices.Contains(s.requests, http.MethodDelete) {
		t.Errorf("%v", s.requests)
	}
	s = &server{pod: named("me")} // the answer before was lost, and the client has asked again
	c = &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}}
	if made, err := c.create(t.Context(), named("me"), "", maxTries); err != nil || made.UID != "it" {
		t.Error(err)
	}
}

// A copy of that name that is being removed is waited for; Ctrl-C ends that.
func TestACopyThatGoesIsWaitedFor(t *testing.T) {
	leaving := func() *corev1.Pod {
		p, now := named("before"), metav1.Now()
		p.DeletionTimestamp, p.Annotations[copyOfAnnotation] = &now, "orders"
		return p
	}
	s := &server{pod: leaving()}
	looks := 0
	s.first = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			if looks++; looks == 3 {
				s.pod = nil
			}
		}
		return false
	}
	var said []string
	c := &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}, Say: func(line string) { said = append(said, line) }}
	if made, err := c.create(t.Context(), named("me"), "", maxTries); err != nil || made.UID != "made" || len(said) != 1 {
		t.Errorf("%v, %v, said %q", made, err, said)
	}
	ctx, end := context.WithCancel(t.Context())
	s = &server{pod: leaving()}
	c = &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}, Say: func(string) { end() }}
	if _, err := c.create(ctx, named("me"), "", maxTries); !errors.Is(err, context.Canceled) || slices.Contains(s.requests, http.MethodDelete) {
		t.Errorf("%v, after %v", err, s.requests)
	}
}

// A copy that has gone when it is looked at is in nobody's way, and one of which nothing is to be seen is not said to be there.
func TestACopyThatHasJustGoneIsInNobodysWay(t *testing.T) {
	for name, c := range map[string]struct {
		gone func(s *server) // at the first look
		look int             // what a look gets
		made bool
		says string
	}{
		"gone":             {gone: func(s *server) { s.pod = nil }, made: true},
		"always just gone": {look: http.StatusNotFound, says: "told so"},
		"not to be seen":   {look: http.StatusForbidden, says: "told so"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{pod: named("before")}
			s.first = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet {
					return false
				}
				if c.gone != nil {
					c.gone(s)
					return false
				}
				refuse(w, c.look, map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden}[c.look])
				return true
			}
			it := &Copy{Kube: s.client(t), Name: "dbg", OnCreate: func(string, bool) {}, Say: func(string) {}}
			made, err := it.create(t.Context(), named("me"), "remove", maxTries)
			if c.made != (err == nil) || c.made && made.UID != "made" {
				t.Errorf("%v, %v", made, err)
			}
			if !c.made && (!strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), "there is a pod") || hint.CodeOf(err) != hint.Conflict) {
				t.Errorf("code %d: %v", hint.CodeOf(err), err)
			}
			if slices.Contains(s.requests, http.MethodDelete) || len(s.requests) > 2*maxTries {
				t.Errorf("%v", s.requests)
			}
		})
	}
}

// beside is a pod with a container of ours, which has printed a line and ended with exit code 3.
func beside() *corev1.Pod {
	p := named("")
	p.Spec.Containers = []corev1.Container{{Name: "app"}}
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "dbg"}}}
	p.Status.Phase = corev1.PodRunning
	p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "dbg", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 3}}}}
	return p
}

// logged answers for the log of that container, and attach for what joins its streams.
func logged(attach func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/log"):
			_, _ = fmt.Fprintln(w, "2026-01-02T03:04:05Z early")
		case strings.HasSuffix(r.URL.Path, "/attach"):
			attach(w, r)
		default:
			return false
		}
		return true
	}
}

// When the pod has been replaced by another one of its name, what ran in it is waited for no more.
func TestAPodThatIsReplacedIsWaitedForNoMore(t *testing.T) {
	s := &server{pod: beside()}
	s.pod.UID, s.pod.Spec.EphemeralContainers, s.pod.Status.EphemeralContainerStatuses = "another", nil, nil
	k := s.client(t)
	p := &Place{Pod: "dbg", Container: "dbg", uid: "it"}
	for name, wait := range map[string]func(context.Context) (int, error){
		"exit code": func(ctx context.Context) (int, error) { return ExitCode(ctx, k, p) },
		"output":    func(ctx context.Context) (int, error) { return p.Output(ctx, k, &strings.Builder{}, func(string) {}) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := wait(ctx)
		if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "another one by now") {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}

	// While its log is followed.
	s = &server{pod: beside()}
	s.pod.Status.EphemeralContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	s.first = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/log") {
			s.pod.UID, s.pod.Spec.EphemeralContainers, s.pod.Status.EphemeralContainerStatuses = "another", nil, nil
		}
		return logged(nil)(w, r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out strings.Builder
	_, err := p.Output(ctx, s.client(t), &out, func(string) {})
	if err == nil || ctx.Err() != nil || out.String() != "early\n" {
		t.Errorf("%v, %q", err, out.String())
	}
}

// upgraded opens a program's streams in a WebSocket, and ends with a status, or cuts it.
func upgraded(status string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) {
		up := websocket.Upgrader{Subprotocols: []string{streaming.StreamProtocolV5Name}}
		conn, err := up.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		if status == "" {
			return
		}
		_ = conn.WriteMessage(websocket.BinaryMessage, append([]byte{streaming.StreamErr}, status...))
		_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	}
}

// What a program without a terminal prints comes once, from its log, also when it has ended before it had its input; when its input was cut off
// its end is no success.
func TestAProgramWithInputPrintsEverythingOnce(t *testing.T) {
	for name, c := range map[string]struct {
		attach func(http.ResponseWriter, *http.Request)
		cut    bool
	}{
		"ended before": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "container not found", http.StatusBadRequest)
		}, false},
		"cut":                        {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, true},
		"no way to the kubelet":      {func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, metav1.StatusReasonServiceUnavailable) }, true},
		"cut after the upgrade":      {upgraded(""), true},
		"refused after the upgrade":  {upgraded(`{"status":"Failure","message":"Internal error occurred: unable to upgrade connection: container dbg not found in pod"}`), false},
		"the kubelet lost afterward": {upgraded(`{"status":"Failure","message":"Internal error occurred: error reading from error stream: EOF"}`), true},
		"ended":                      {upgraded(`{"status":"Success"}`), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := &server{pod: beside(), first: logged(c.attach)}
			var out strings.Builder
			code, err := (&Place{Pod: "dbg", Container: "dbg", uid: "it"}).Attach(t.Context(), s.client(t), kube.Streams{Stdin: strings.NewReader("x"), Stdout: &out, Stderr: &out}, func(string) {})
			if c.cut != (err != nil) || !c.cut && code != 3 || out.String() != "early\n" {
				t.Errorf("%d, %v, %q", code, err, out.String())
			}
		})
	}
}

// When the answer is lost to the request that adds a container, it is said that it may be there.
func TestAContainerThatMayBeThereIsToldOf(t *testing.T) {
	pod := beside()
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		said   bool
	}{
		"cut":     {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, true},
		"500":     {func(w http.ResponseWriter) { refuse(w, 500, metav1.StatusReasonInternalError) }, true},
		"refused": {func(w http.ResponseWriter) { refuse(w, 403, metav1.StatusReasonForbidden) }, false},
	} {
		s := &server{pod: pod, first: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch {
				c.answer(w)
			}
			return r.Method == http.MethodPatch
		}}
		var said strings.Builder
		e := &Ephemeral{Kube: s.client(t), Target: kube.Target{Kind: kube.Pod, Name: "dbg"}, ProxyImage: "proxy", Say: func(line string) { said.WriteString(line) }}
		if _, err := e.Start(t.Context()); err == nil || c.said != strings.Contains(said.String(), "it stays until the pod goes") {
			t.Errorf("%s: %v, %q", name, err, said.String())
		}
	}
}

// What Pod Security lets pass is found by trials: of the one right first, of what a root user has by itself then. Anything else that refuses ends it.
func TestCaptureAsksForWhatIsLetPass(t *testing.T) {
	for name, c := range map[string]struct {
		refusals [2]string // of each of the two ways
		patches  int       // that were no trial
		words    string
		code     hint.Code
	}{
		"restricted":      {[2]string{`violates PodSecurity "restricted:latest"`, `violates PodSecurity "restricted:latest"`}, 0, "CAP_NET_RAW", hint.Forbidden},
		"another's rule":  {[2]string{"denied by a webhook"}, 1, "denied by a webhook", hint.Forbidden},
		"baseline, ended": {[2]string{`violates PodSecurity "baseline:latest"`, ""}, 1, "goes, or is another one", hint.Other},
	} {
		t.Run(name, func(t *testing.T) {
			pod := beside()
			pod.Spec.EphemeralContainers, pod.Status.EphemeralContainerStatuses = nil, nil
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			patches := 0
			s := &server{pod: pod}
			s.first = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPatch {
					return false
				}
				body, _ := io.ReadAll(r.Body)
				way := 1
				if strings.Contains(string(body), `"add":["NET_RAW"]`) {
					way = 0
				}
				trial := r.URL.Query().Get("dryRun") == metav1.DryRunAll
				if !trial {
					patches++
				}
				if refusal := c.refusals[way]; refusal != "" {
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(http.StatusForbidden)
					_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: 403, Reason: metav1.StatusReasonForbidden, Message: refusal})
					return true
				}
				if !trial {
					pod.UID = "another" // and it is gone
				}
				return false
			}
			err := (&Capture{Kube: s.client(t), Target: kube.Target{Kind: kube.Pod, Name: "dbg"}, Port: "80", ProxyImage: "proxy", Say: func(string) {}}).Run(t.Context())
			if hint.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.words) || patches != c.patches {
				t.Errorf("%v, after %d patches", err, patches)
			}
		})
	}
}

func TestThePortIsThePods(t *testing.T) {
	pod := beside()
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	for in, want := range map[string]string{"http": "8080", "81": "81", "": "", "grpc": "", "0": "", "65536": ""} {
		if got, err := portOf(pod, in); got != want || (err != nil) != (want == "") || err != nil && !strings.Contains(hint.Of(err), "8080 http") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestAServicesPortIsThatBehindIt(t *testing.T) {
	of := &corev1.Service{}
	of.Spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80, TargetPort: intstr.FromString("http")}, {Name: "grpc", Port: 81, TargetPort: intstr.FromInt32(9090)}, {Name: "old", Port: 82}}
	for in, want := range map[string]string{"80": "http", "web": "http", "81": "9090", "grpc": "9090", "old": "82", "82": "82", "http": "http", "9090": "9090"} {
		if got := targetPort(of, in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	of.Spec.ClusterIP = corev1.ClusterIPNone
	for in, want := range map[string]string{"80": "80", "web": "http"} {
		if got := targetPort(of, in); got != want {
			t.Errorf("headless, %q: %q, want %q", in, got, want)
		}
	}
}
