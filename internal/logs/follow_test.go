package logs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// cluster is an API server with one pod, whose container prints what a test says.
type cluster struct {
	mu       sync.Mutex
	changed  chan struct{}
	logs     []nodeLog // of each run of the container
	gone     bool
	away     bool          // it answers nothing but "not now"
	none     bool          // a list of pods is empty
	denied   bool          // who asks may read no pods
	cut      chan struct{} // closed to cut what follows
	cutOff   int           // so many answers with a previous run's log are cut in their first line
	holdsUp  string        // why no container of it starts; "" when they run
	names    []string      // its containers; nil for "app" alone
	broken   int           // the code with which the logs of those that are not "app" are refused
	asked    []string      // the containers whose logs were asked for
	refused  int           // so many requests that follow a log are answered "not now"
	removed  int           // so many requests of a previous run's log are answered as where its container has just been removed
	started  time.Time     // by the node's clock, when a run began
	finished time.Time     // and the one before ended
	requests []string
}

func (c *cluster) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

// says has the container print lines, of different times.
func (c *cluster) says(lines ...string) {
	for _, l := range lines {
		c.change(func() { c.logs[len(c.logs)-1].add(time.Now().UTC(), l+"\n") })
	}
}

func (c *cluster) restarts() { c.change(func() { c.logs = append(c.logs, nodeLog{}) }) }

// cuts cuts all connections that follow a log.
func (c *cluster) cuts() {
	c.change(func() {
		close(c.cut)
		c.cut = make(chan struct{})
	})
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	away, gone, denied := c.away, c.gone, c.denied
	c.mu.Unlock()
	status := func(code int, reason metav1.StatusReason) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: "told so"})
	}
	switch {
	case away:
		status(503, metav1.StatusReasonServiceUnavailable)
	case gone:
		status(404, metav1.StatusReasonNotFound)
	case strings.HasSuffix(r.URL.Path, "/log"):
		c.mu.Lock()
		container := r.URL.Query().Get("container")
		c.asked = append(c.asked, container)
		refused := c.refused > 0 && r.URL.Query().Get("follow") == "true"
		if refused {
			c.refused--
		}
		c.mu.Unlock()
		switch {
		case container == "app":
		case c.broken == 500:
			status(500, metav1.StatusReasonInternalError)
			return
		case c.broken == 405:
			status(405, metav1.StatusReasonMethodNotAllowed)
			return
		}
		switch {
		case refused:
			status(503, metav1.StatusReasonServiceUnavailable)
			return
		}
		c.log(w, r)
	case denied:
		status(403, metav1.StatusReasonForbidden)
	default:
		c.mu.Lock()
		p := corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: "it", Namespace: "shop", UID: "u"},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		if c.names != nil {
			p.Spec.Containers = nil
		}
		for _, name := range c.names {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
		}
		p.Status.Phase = corev1.PodRunning
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", RestartCount: int32(len(c.logs) - 1), State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.started)}}}}
		if len(c.logs) > 1 {
			p.Status.ContainerStatuses[0].LastTerminationState.Terminated = &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(c.finished)}
		}
		if c.holdsUp != "" {
			p.Status.ContainerStatuses = nil
			for _, container := range p.Spec.Containers {
				p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{Name: container.Name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: c.holdsUp}}})
			}
		}
		if c.holdsUp == corev1.PodReasonUnschedulable {
			p.Status.ContainerStatuses = nil
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: c.holdsUp}}
		}
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
		if !c.none {
			list.Items = append(list.Items, p)
		}
		c.mu.Unlock()
		var answer any = p
		switch {
		case strings.Contains(r.URL.Path, "/services/"):
			answer = corev1.Service{TypeMeta: metav1.TypeMeta{Kind: "Service", APIVersion: "v1"}, Spec: corev1.ServiceSpec{Selector: map[string]string{"a": "b"}}}
		case strings.HasSuffix(r.URL.Path, "/pods"):
			answer = list
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func (c *cluster) log(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	var since time.Time
	if t := q.Get("sinceTime"); t != "" {
		since, _ = time.Parse(time.RFC3339, t)
	}
	c.mu.Lock()
	c.requests = append(c.requests, r.URL.RawQuery)
	run, cut := len(c.logs)-1, c.cut
	if q.Get("previous") == "true" {
		run--
		if c.removed > 0 {
			c.removed--
			c.mu.Unlock()
			_, _ = w.Write([]byte(kube.LogRemoved + "containerd://0123"))
			return
		}
		if c.cutOff > 0 {
			c.cutOff--
			c.mu.Unlock()
			_, _ = w.Write([]byte("20"))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	c.mu.Unlock()
	for sent := 0; ; {
		c.mu.Lock()
		text, changed := c.logs[run].since(since), c.changed
		over := q.Get("follow") != "true" || run < len(c.logs)-1 || c.gone
		if q.Get("tailLines") != "" && sent == 0 {
			lines := strings.SplitAfter(text, "\n")
			var n int
			_, _ = fmt.Sscan(q.Get("tailLines"), &n)
			sent = len(text) - len(strings.Join(lines[max(0, len(lines)-1-n):], ""))
		}
		c.mu.Unlock()
		_, _ = w.Write([]byte(text[sent:]))
		sent = len(text)
		_ = http.NewResponseController(w).Flush()
		if over {
			return
		}
		select {
		case <-changed:
		case <-cut: // changed may be newer than it
		case <-r.Context().Done():
			return
		}
		select {
		case <-cut:
			panic(http.ErrAbortHandler)
		default:
		}
	}
}

type output struct {
	mu    sync.Mutex
	text  strings.Builder
	wrote chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	select {
	case o.wrote <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (o *output) await(t *testing.T, text string) {
	t.Helper()
	for end := time.After(time.Minute); ; {
		o.mu.Lock()
		all := o.text.String()
		o.mu.Unlock()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-o.wrote:
		case <-end:
			t.Fatalf("no %q in %q", text, all)
		}
	}
}

func newCluster(t *testing.T) (*cluster, *Log, *output, *output) {
	c := &cluster{changed: make(chan struct{}), cut: make(chan struct{}), logs: make([]nodeLog, 1)}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	k, err := kube.NewForConfig(&rest.Config{Host: server.URL}, "shop")
	if err != nil {
		t.Fatal(err)
	}
	out, said := &output{wrote: make(chan struct{}, 1)}, &output{wrote: make(chan struct{}, 1)}
	return c, &Log{
		Kube: k, Target: kube.Target{Kind: kube.Pod, Name: "it"}, Options: Options{Follow: true, Tail: -1}, Out: out,
		Say: func(line string) { fmt.Fprintln(said, line) },
	}, out, said
}

// What is followed says why it is silent when its container does not start, once, and begins when it does.
func TestFollowSaysWhatHoldsUpTheStart(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]string{
		"ImagePullBackOff":            "note: pod/it/app does not start: ImagePullBackOff. See bridge diagnose pod/it -n shop\nnote: pod/it/web does not start: ImagePullBackOff. See bridge diagnose pod/it -n shop\n",
		corev1.PodReasonUnschedulable: "note: pod/it does not start: Unschedulable. See bridge diagnose pod/it -n shop\n",
		"ContainerCreating":           "",
	} {
		c, l, out, said := newCluster(t)
		c.holdsUp, c.names = reason, []string{"app", "web"}
		done := make(chan error, 1)
		go func() { done <- l.Run(t.Context()) }()
		for _, line := range strings.SplitAfter(want, "\n") {
			said.await(t, line)
		}
		c.change(func() { c.holdsUp, c.names = "", nil })
		c.says("here")
		out.await(t, "here\n")
		c.change(func() { c.gone = true })
		if err := <-done; err != nil {
			t.Error(err)
		}
		all := said.text.String()
		if n := strings.Count(want, "\n"); strings.Count(all, "note: ") != n {
			t.Errorf("%s: %q", reason, all)
		}
	}
}

// The log of what has never run is empty, which is no log.
func TestTheLogOfWhatHasNeverRun(t *testing.T) {
	t.Parallel()
	for _, reason := range []string{corev1.PodReasonUnschedulable, "RunContainerError"} {
		c, l, _, said := newCluster(t)
		c.holdsUp, l.Follow = reason, false
		if err := l.Run(t.Context()); hint.CodeOf(err) != hint.NotFound || !strings.Contains(said.text.String(), "does not start: "+reason) {
			t.Errorf("%v, said %q", err, said.text.String())
		}
	}
	c, l, out, _ := newCluster(t)
	c.names, l.Follow = []string{"app", "bridge-debug-1234abcd-xyz12"}, false
	c.says("here")
	if err := l.Run(t.Context()); err != nil || out.text.String() != "here\n" || len(c.asked) != 1 {
		t.Errorf("%v, %q, asked for %q", err, out.text.String(), c.asked)
	}
}

// A log that cannot be read keeps nobody from the others; it is told at once, and once, and has the command end with an error. A fault that may
// pass is waited for at the first log alone.
func TestALogThatFailsDoesNotEndTheOthers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		names     string
		code      int
		err, said string
		asked     string // the containers, as their logs were asked for
	}{
		{"web app", 405, "1 of 2 logs could not be read", "note: read the log of pod/it/web: told so; the others go on\n", "web app"},
		{"app web", 405, "read the log of pod/it/web: told so", "", "app web"},
		{"web app db", 405, "2 of 3 logs could not be read", "note: read the log of pod/it/web: told so; the others go on\nnote: read the log of pod/it/db: told so\n", "web app db"},
		{"web db app", 500, "2 of 3 logs could not be read", "note: read the log of pod/it/web: told so; the others go on\nnote: read the log of pod/it/db: told so; the others go on\n", "web web web web web db app"},
	} {
		t.Run(fmt.Sprint(tt.names, tt.code), func(t *testing.T) {
			t.Parallel()
			c, l, out, said := newCluster(t)
			c.names, c.broken, l.Follow, l.Prefix = strings.Fields(tt.names), tt.code, false, true
			c.says("one", "two")
			err := l.Run(t.Context())
			if err == nil || err.Error() != tt.err {
				t.Errorf("%v, want %s", err, tt.err)
			}
			out.await(t, "[pod/it/app] two\n")
			if text := said.text.String(); text != tt.said {
				t.Errorf("it says %q, want %q", text, tt.said)
			}
			if asked := strings.Join(c.asked, " "); asked != tt.asked {
				t.Errorf("asked for %s, want %s", asked, tt.asked)
			}
		})
	}
}

// Who does not read what is printed ends it at once.
func TestAReaderThatIsGoneEndsAllLogs(t *testing.T) {
	c, l, _, said := newCluster(t)
	l.Follow = false
	c.says("one")
	reader, writer := io.Pipe()
	_ = reader.Close()
	l.Out = writer
	if err := l.Run(t.Context()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
	if text := said.text.String(); text != "" {
		t.Errorf("it says %q", text)
	}
}

// A restart while there is no connection, an API server that is away, and cuts: each line once.
func TestFollowOverARestartWithoutAConnection(t *testing.T) {
	c, l, out, said := newCluster(t)
	done := make(chan error, 1)
	c.says("1", "2")
	go func() { done <- l.Run(t.Context()) }()
	out.await(t, "2\n")
	c.says("3")
	c.cuts()
	said.await(t, "is lost, it goes on")
	out.await(t, "3\n")
	c.change(func() { c.away = true })
	c.cuts()
	c.says("4", "5")
	c.restarts()
	c.says("6")
	said.await(t, "does not answer")
	c.change(func() { c.away = false })
	out.await(t, "6\n")
	said.await(t, "answers again")
	c.says("7")
	c.restarts()
	c.restarts()
	c.says("8")
	out.await(t, "8\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.text.String(); got != "1\n2\n3\n4\n5\n6\n7\n8\n" {
		t.Errorf("%q", got)
	}
	said.await(t, "pod/it is gone")
}

// What the old run printed at its end is read again when that is cut, and one connection that does not come back is told of once.
func TestFollowWhenTheRestOfTheOldRunIsCut(t *testing.T) {
	c, l, out, said := newCluster(t)
	done := make(chan error, 1)
	c.says("1")
	go func() { done <- l.Run(t.Context()) }()
	out.await(t, "1\n")
	c.change(func() { c.away = true })
	c.cuts()
	c.says("2")
	c.restarts()
	c.says("3")
	said.await(t, "does not answer")
	c.change(func() { c.away, c.cutOff, c.refused = false, 2, 2 })
	out.await(t, "3\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.text.String(); got != "1\n2\n3\n" {
		t.Errorf("%q", got)
	}
}

// While a container is restarted the kubelet may look for one that it has just removed: what it says then is no line of the log.
func TestALogWhoseContainerHasJustBeenRemoved(t *testing.T) {
	c, l, out, said := newCluster(t)
	l.Follow, l.Previous = false, true
	c.says("1")
	c.restarts()
	c.change(func() { c.removed = 2 })
	if err := l.Run(t.Context()); err != nil || out.text.String() != "1\n" || said.text.String() != "" {
		t.Errorf("%v, %q, %q", err, out.text.String(), said.text.String())
	}
	c.change(func() { c.removed = 100 })
	if err := l.Run(t.Context()); hint.CodeOf(err) != hint.NotFound || out.text.String() != "1\n" || !strings.Contains(said.text.String(), "not there any more") {
		t.Errorf("%v, %q, %q", err, out.text.String(), said.text.String())
	}
	l.Follow, l.Previous = true, false
	c.change(func() { c.removed = 2 })
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	c.says("2")
	out.await(t, "2\n")
	c.restarts()
	c.says("3")
	out.await(t, "3\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil || out.text.String() != "1\n2\n3\n" {
		t.Errorf("%v, %q", err, out.text.String())
	}
}

func TestAConnectionThatStaysAwayIsToldOfOnce(t *testing.T) {
	c, l, out, said := newCluster(t)
	c.refused = 3
	done := make(chan error, 1)
	c.says("1")
	go func() { done <- l.Run(t.Context()) }()
	out.await(t, "1\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(said.text.String(), "is lost"); n != 1 {
		t.Errorf("told %d times: %q", n, said.text.String())
	}
}

// A new run's lines are new, also when the node's clock was set back before them.
func TestFollowOverAClockThatIsSetBack(t *testing.T) {
	c, l, out, _ := newCluster(t)
	done := make(chan error, 1)
	c.says("1")
	go func() { done <- l.Run(t.Context()) }()
	out.await(t, "1\n")
	back := time.Now().Add(-time.Hour).UTC()
	c.change(func() {
		c.finished, c.started = time.Now(), back
		c.logs[0].add(time.Now().UTC(), "2\n")
		c.logs = append(c.logs, nodeLog{})
		c.logs[1].add(back, "3\n")
	})
	out.await(t, "3\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.text.String(); got != "1\n2\n3\n" {
		t.Errorf("%q", got)
	}
}

// A list of pods that is refused for good ends it, while a log is followed that brings nothing.
func TestFollowEndsWhenThePodsMayNotBeReadAnyMore(t *testing.T) {
	c, l, out, _ := newCluster(t)
	done := make(chan error, 1)
	c.says("1")
	go func() { done <- l.Run(t.Context()) }()
	out.await(t, "1\n")
	c.change(func() { c.denied = true })
	select {
	case err := <-done:
		if hint.CodeOf(err) != hint.Forbidden {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}

// The container that was named is looked for when there is a first pod.
func TestFollowKnowsItsContainerWithTheFirstPod(t *testing.T) {
	c, l, _, said := newCluster(t)
	l.Target, l.Container, c.none = kube.Target{Kind: kube.Service, Name: "it"}, "typo", true
	done := make(chan error, 1)
	go func() { done <- l.Run(t.Context()) }()
	said.await(t, "has no pod yet")
	c.change(func() { c.none = false })
	select {
	case err := <-done:
		if hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "typo") {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}

// Of what was there at the start so much is printed as is wished for; after that everything, also of a connection that was lost before it
// brought a line.
func TestFollowFromTheEnd(t *testing.T) {
	c, l, out, said := newCluster(t)
	l.Tail = 0
	done := make(chan error, 1)
	c.says("old", "older")
	go func() { done <- l.Run(t.Context()) }()
	follows := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return strings.Contains(strings.Join(c.requests, " "), "follow=true")
	}
	for end := time.Now().Add(time.Minute); !follows(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no log is followed")
		}
	}
	c.cuts()
	said.await(t, "is lost, it goes on")
	c.says("new")
	out.await(t, "new\n")
	c.change(func() { c.gone = true })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.text.String(); got != "new\n" {
		t.Errorf("%q", got)
	}
}
