package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/probe"
)

const (
	// probedPods is of how many pods of a target the probes are run; those that are not ready come first.
	probedPods = 10
	// wayTime is what a run may take beside the probe's own time: the way to the pod, which the kubelet does not have.
	wayTime = 3 * time.Second
)

// LiveReport is what the probes of a target's pods give.
type LiveReport struct {
	Namespace string    `json:"namespace"`
	Time      time.Time `json:"time"`
	// Probes are by pod and container; those of one stand together.
	Probes []LiveProbe `json:"probes"`
	// Left is how many pods more there are.
	Left int `json:"left,omitempty"`
	// Without are containers that have no probe, "orders-0/app".
	Without []string `json:"without,omitempty"`
}

// LiveProbe is one probe, run just now.
type LiveProbe struct {
	Pod       string `json:"pod"`
	Container string `json:"container"`
	// State is the container's: "running for 5m, ready, 0 restarts".
	State string `json:"state"`
	Kind  string `json:"kind"`
	What  string `json:"what"`
	Set   Timing `json:"set"`
	// Means is what that comes to, in seconds.
	Means string `json:"means"`
	// Result is of this run, Answer what it met, and Seconds how long that took; 0 where it is not known.
	Result  probe.Result `json:"result"`
	Answer  string       `json:"answer"`
	Seconds float64      `json:"seconds,omitempty"`
	// Inside is whether a pod of ours has asked.
	Inside bool `json:"inside,omitempty"`
	// Kubelet is the last failure that the kubelet has told of, none: "".
	Kubelet string `json:"kubelet,omitempty"`
	// Disputed is whether it succeeds on the pod's loopback while the kubelet's own, which asks the pod's address, has not succeeded in a minute or more.
	Disputed bool `json:"disputed,omitempty"`
	// Next is what would happen if it went on like this.
	Next string `json:"next"`
}

// Timing is how a probe is set, with the API's defaults.
type Timing struct {
	InitialDelaySeconds int32 `json:"initialDelaySeconds"`
	PeriodSeconds       int32 `json:"periodSeconds"`
	TimeoutSeconds      int32 `json:"timeoutSeconds"`
	SuccessThreshold    int32 `json:"successThreshold"`
	FailureThreshold    int32 `json:"failureThreshold"`
}

// String has the fields by their names.
func (t Timing) String() string {
	return fmt.Sprintf("initialDelaySeconds %d, periodSeconds %d, timeoutSeconds %d, successThreshold %d, failureThreshold %d",
		t.InitialDelaySeconds, t.PeriodSeconds, t.TimeoutSeconds, t.SuccessThreshold, t.FailureThreshold)
}

func timingOf(p *corev1.Probe) Timing {
	return Timing{p.InitialDelaySeconds, cmp.Or(p.PeriodSeconds, 10), cmp.Or(p.TimeoutSeconds, 1), cmp.Or(p.SuccessThreshold, 1), cmp.Or(p.FailureThreshold, 3)}
}

// failing is how long it takes until a program that stops answering has failed: refused at once and just before the next run, or
// silent and just after one.
func (t Timing) failing() string {
	return span(seconds((t.FailureThreshold-1)*t.PeriodSeconds), seconds(t.longest()))
}

// longest is that for one that hangs. The kubelet runs a probe that takes longer than its period again at once.
func (t Timing) longest() int32 {
	return t.PeriodSeconds + (t.FailureThreshold-1)*max(t.PeriodSeconds, t.TimeoutSeconds) + t.TimeoutSeconds
}

// means is what the timing comes to.
func (t Timing) means(kind, killed string) string {
	begin := t.InitialDelaySeconds + (t.SuccessThreshold-1)*t.PeriodSeconds
	switch kind {
	case "startup":
		return fmt.Sprintf("the other probes wait for it; %s if it has not answered %s to %s after its start",
			killed, seconds(t.InitialDelaySeconds+(t.FailureThreshold-1)*t.PeriodSeconds), seconds(t.InitialDelaySeconds+t.longest()))
	case "readiness":
		return fmt.Sprintf("ready after at least %s; not ready %s after it stops answering", seconds(begin), t.failing())
	}
	return fmt.Sprintf("first asked after %s; %s %s after it stops answering", seconds(t.InitialDelaySeconds), killed, t.failing())
}

// next is what the kubelet would do if the probe went on giving that result.
func (t Timing) next(kind, killed string, c container, result probe.Result, now time.Time) string {
	running, started := c.status.State.Running, c.status.Started != nil && *c.status.Started
	var wait time.Duration // until it is asked for the first time
	if running != nil {
		wait = max(running.StartedAt.Add(time.Duration(t.InitialDelaySeconds)*time.Second).Sub(now), 0).Round(time.Second)
	}
	switch {
	case running == nil:
		return "nothing before the container runs"
	case result == probe.Unknown:
		return "it stays as it is: a run that goes wrong is no answer, to the kubelet neither"
	case kind == "startup" && started:
		return "nothing before the next start: it has succeeded"
	case kind == "startup" && result == probe.Success:
		return "the container counts as started, and the other probes begin"
	case kind == "startup":
		left := func(failing int32) string {
			return max(running.StartedAt.Add(time.Duration(t.InitialDelaySeconds+failing)*time.Second).Sub(now), 0).Round(time.Second).String()
		}
		return killed + " in " + span(left((t.FailureThreshold-1)*t.PeriodSeconds), left(t.longest()))
	case !started:
		return "nothing before the startup probe has succeeded"
	case kind == "liveness" && result == probe.Success:
		return "it goes on"
	case kind == "liveness":
		text := fmt.Sprintf("%s after %s in a row: %s after the first", killed, counted(int(t.FailureThreshold), "failure"), t.between())
		if wait > 0 {
			text += fmt.Sprintf(", which is not asked before %v from now", wait)
		}
		return text
	case c.status.Ready && result == probe.Success:
		return "stays ready"
	case c.status.Ready:
		return fmt.Sprintf("not ready after %s in a row: %s after the first; then no Service sends to it", counted(int(t.FailureThreshold), "failure"), t.between())
	case result == probe.Success:
		return fmt.Sprintf("ready after %s in a row: within %v", counted(int(t.SuccessThreshold), "success"), wait+time.Duration(t.SuccessThreshold*t.PeriodSeconds)*time.Second)
	}
	return "stays not ready"
}

// between is from the first failure to the last: of a program that refuses, and of one that hangs where that takes longer.
func (t Timing) between() string {
	return span(seconds((t.FailureThreshold-1)*t.PeriodSeconds), seconds((t.FailureThreshold-1)*max(t.PeriodSeconds, t.TimeoutSeconds)))
}

// span is "20s to 31s", or one of the two where they are the same.
func span(from, to string) string {
	if from == to {
		return from
	}
	return from + " to " + to
}

// Live runs the probes of a target's pods once: from a pod of ours, or by port-forward for nil; and commands where they are to run.
func Live(ctx context.Context, k *kube.Client, t kube.Target, from *From) (*LiveReport, error) {
	list, err := podsOf(ctx, k, t)
	if err != nil {
		return nil, err
	}
	s := &Snapshot{Namespace: k.Namespace, Now: time.Now(), Pods: list}
	// Without the events it is known all the same how it is now.
	if l, err := k.Clientset.CoreV1().Events(k.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.Set{"involvedObject.kind": "Pod", "reason": "Unhealthy"}.String()}); err == nil {
		s.Events = l.Items
	}
	s.index()
	r := &LiveReport{Namespace: k.Namespace, Time: s.Now}
	if len(s.Pods) > probedPods {
		r.Left = len(s.Pods) - probedPods
	}
	var runs []liveRun
	for i := range s.Pods[:min(len(s.Pods), probedPods)] {
		p := &s.Pods[i]
		for _, c := range containersOf(p) {
			if c.init && !c.sidecar() {
				continue
			}
			if len(c.probes()) == 0 {
				r.Without = append(r.Without, p.Name+"/"+c.Name)
			}
			for _, probe := range c.probes() {
				runs = append(runs, liveRun{p, c, probe})
			}
		}
	}
	r.Probes = make([]LiveProbe, len(runs))
	atOnce(aFew, len(runs), func(i int) { r.Probes[i] = s.live(ctx, k, runs[i], from) })
	return r, ctx.Err()
}

// podsOf are a target's pods that have not ended, those first that are not ready.
func podsOf(ctx context.Context, k *kube.Client, t kube.Target) ([]corev1.Pod, error) {
	all, err := k.Pods(ctx, k.Namespace, t)
	if err != nil || t.Kind == kube.Pod {
		return all, err
	}
	list := slices.DeleteFunc(all, func(p corev1.Pod) bool { return over(&p) || p.DeletionTimestamp != nil })
	slices.SortStableFunc(list, func(a, b corev1.Pod) int { return rank(&a) - rank(&b) })
	return list, nil
}

type liveRun struct {
	pod   *pod
	c     container
	probe asking
}

// live runs one probe.
func (s *Snapshot) live(ctx context.Context, k *kube.Client, r liveRun, from *From) LiveProbe {
	set, killed := timingOf(r.probe.Probe), "killed and restarted"
	if r.pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
		killed = "killed"
	}
	out := LiveProbe{
		Pod: r.pod.Name, Container: r.c.Name, State: s.stateOf(r.c), Kind: r.probe.kind, What: asked(r.probe.Probe),
		Set: set, Means: set.means(r.probe.kind, killed) + r.grace(),
	}
	if e := s.lastFailure(r); e != nil {
		out.Kubelet = fmt.Sprintf("%s (%s ago, %s)", firstLine(cause(said(e))), duration.HumanDuration(s.Now.Sub(lastSeen(e))), counted(int(timesSeen(e)), "time"))
	}
	if r.c.status.State.Running == nil {
		out.Answer = "not run"
	} else {
		var o probe.Outcome
		var told bool
		o, told, out.Seconds = r.run(ctx, k, from)
		out.Result, out.Answer, out.Inside = o.Result, o.Why, from != nil && r.probe.Exec == nil
		out.Disputed = out.Result == probe.Success && r.probe.Exec == nil && !out.Inside && !s.young(r.c) && s.failure(r.pod, r.c, r.probe) != nil
		switch {
		case out.Disputed:
			out.Next = "what the kubelet makes of it: it asks the pod's address, and this run its loopback, where alone the program may listen; --inside asks the address"
		case out.Result == probe.Unknown && !told:
			out.Next = "not known: it was not run here"
		}
	}
	out.Next = cmp.Or(out.Next, set.next(r.probe.kind, killed, r.c, out.Result, s.Now))
	return out
}

// grace is what a program that hangs has beside: it may not take the signal by which it is asked to end.
func (r liveRun) grace() string {
	if r.probe.kind == "readiness" {
		return ""
	}
	given := cmp.Or(r.probe.TerminationGracePeriodSeconds, r.pod.Spec.TerminationGracePeriodSeconds)
	if given == nil || *given == 0 {
		return ""
	}
	return fmt.Sprintf("; one that does not end by itself then, up to %s later (terminationGracePeriodSeconds)", seconds(int32(min(*given, math.MaxInt32))))
}

// run is one run, whether the outcome is the container's own, and the seconds that it took. From a pod of ours that asks a port k is not needed.
func (r liveRun) run(ctx context.Context, k *kube.Client, from *From) (o probe.Outcome, told bool, seconds float64) {
	one := *r.c.Container
	one.StartupProbe, one.ReadinessProbe, one.LivenessProbe = nil, r.probe.Probe, nil
	timeout := time.Duration(timingOf(r.probe.Probe).TimeoutSeconds) * time.Second
	var mu sync.Mutex // a dial may outlive the run
	began, lost := time.Now(), error(nil)
	// way notes an error that is of the way to the pod.
	way := func(err error) error {
		if errors.Is(err, ErrNotDialled) || hint.CodeOf(err) == hint.Forbidden {
			mu.Lock()
			lost = err
			mu.Unlock()
		}
		return err
	}
	dial := func(ctx context.Context, port int) (net.Conn, error) {
		conn, err := k.DialPod(ctx, r.pod.Namespace, r.pod.Name, port)
		return conn, way(err)
	}
	knock := func(ctx context.Context, port int) error {
		return way(k.Knock(ctx, r.pod.Namespace, r.pod.Name, port))
	}
	if from != nil {
		dial = func(ctx context.Context, port int) (net.Conn, error) {
			conn, err := from.Dial(ctx, "tcp", net.JoinHostPort(r.pod.Status.PodIP, strconv.Itoa(port)))
			return conn, way(err)
		}
		knock = func(ctx context.Context, port int) error {
			conn, err := dial(ctx, port)
			if err == nil {
				_ = conn.Close()
			}
			return err
		}
	}
	to := &probe.Pod{
		Address: cmp.Or(r.pod.Status.PodIP, "localhost"),
		Dial: func(ctx context.Context, port int) (net.Conn, error) {
			conn, err := dial(ctx, port)
			connected := time.Now()
			if err == nil {
				_ = conn.SetDeadline(connected.Add(timeout))
			}
			mu.Lock()
			began = connected
			mu.Unlock()
			return conn, err
		},
		Knock: knock,
		Exec: func(ctx context.Context, command []string, out io.Writer) (int, error) {
			code, err := k.Exec(ctx, r.pod.Namespace, r.pod.Name, r.c.Name, command, out)
			if err == nil {
				return code, nil
			}
			if why := cause(err.Error()); why != err.Error() {
				mu.Lock()
				told, err = true, errors.New("the command cannot be run: "+why)
				mu.Unlock()
			}
			return code, err
		},
	}
	probes, notes := probe.Of(one, probe.Options{Pod: to})
	if len(probes) == 0 {
		return probe.Outcome{Why: list(notes)}, false, 0
	}
	ctx, cancel := context.WithTimeout(ctx, timeout+wayTime)
	defer cancel()
	o = probes[0].Check(ctx)
	mu.Lock()
	defer mu.Unlock()
	told = told || o.Result != probe.Unknown
	switch {
	case lost != nil:
		return probe.Outcome{Why: lost.Error()}, false, 0
	case r.probe.TCPSocket != nil && from == nil:
		return o, told, 0 // that it is open is told a second later
	}
	return o, told, time.Since(began).Seconds()
}

// cause is why something cannot be started, in what runc says of it: the words before it are more than is shown. Any other text stays.
func cause(text string) string {
	if _, why, found := strings.Cut(text, "unable to start container process: "); found {
		return strings.TrimSuffix(why, ": unknown")
	}
	return text
}

// stateOf is the state of a container in words.
func (s *Snapshot) stateOf(c container) string {
	reason, _ := c.waiting()
	state := "waiting: " + cmp.Or(reason, "not known")
	switch {
	case c.status.State.Running != nil:
		state = "running for " + duration.HumanDuration(s.Now.Sub(c.status.State.Running.StartedAt.Time))
		if !c.status.Ready {
			state += ", not"
		} else {
			state += ","
		}
		state += " ready"
	case c.status.State.Terminated != nil:
		state = "ended"
	}
	return fmt.Sprintf("%s, %s", state, counted(int(c.status.RestartCount), "restart"))
}

// lastFailure is the kubelet's last event of a probe's failure, nil for none.
func (s *Snapshot) lastFailure(r liveRun) *corev1.Event {
	for _, e := range s.eventsOf("pod", r.pod, "Unhealthy") {
		if r.probe.tells(e, r.c) {
			return e
		}
	}
	return nil
}
