package diagnose

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// asked is a probe in words: "GET http://:8080/healthz".
func asked(p *corev1.Probe) string {
	switch {
	case p.HTTPGet != nil:
		return fmt.Sprintf("GET %s://%s:%s%s", strings.ToLower(string(cmp.Or(p.HTTPGet.Scheme, corev1.URISchemeHTTP))), p.HTTPGet.Host, p.HTTPGet.Port.String(), cmp.Or(p.HTTPGet.Path, "/"))
	case p.TCPSocket != nil:
		return strings.TrimSuffix("TCP to port "+p.TCPSocket.Port.String()+" of "+p.TCPSocket.Host, " of ")
	case p.GRPC != nil:
		return fmt.Sprintf("gRPC health of port %d", p.GRPC.Port)
	case p.Exec != nil:
		return "command " + masked(p.Exec.Command)
	}
	return "nothing"
}

// timing is how a probe is run, with the API's defaults.
func timing(p *corev1.Probe) string {
	set := timingOf(p)
	t := fmt.Sprintf("every %s, each within %s, fails after %d in a row", seconds(set.PeriodSeconds), seconds(set.TimeoutSeconds), set.FailureThreshold)
	if p.InitialDelaySeconds > 0 {
		t += ", first after " + seconds(p.InitialDelaySeconds)
	}
	return t
}

// asking is one of a container's with its kind's name.
type asking struct {
	kind string
	*corev1.Probe
}

// period is from one attempt to the next.
func (p asking) period() time.Duration {
	return time.Duration(timingOf(p.Probe).PeriodSeconds) * time.Second
}

// timeout is how long one attempt may take.
func (p asking) timeout() time.Duration {
	return time.Duration(timingOf(p.Probe).TimeoutSeconds) * time.Second
}

// failures is how many in a row are one.
func (p asking) failures() int32 { return timingOf(p.Probe).FailureThreshold }

// most is how long after the container's start it has failed at last, if it never succeeds.
func (p asking) most() time.Duration {
	return time.Duration(p.InitialDelaySeconds)*time.Second + time.Duration(p.failures())*(p.period()+p.timeout())
}

func (c container) probes() (out []asking) {
	for _, p := range []asking{{"startup", c.StartupProbe}, {"liveness", c.LivenessProbe}, {"readiness", c.ReadinessProbe}} {
		if p.Probe != nil {
			out = append(out, p)
		}
	}
	return out
}

func checkProbes(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		for _, c := range containersOf(p) {
			for _, probe := range c.probes() {
				if f, ok := s.probeFinding(p, c, probe); ok {
					out = append(out, f)
				}
			}
		}
		if f, ok := s.gateFinding(p); ok {
			out = append(out, f)
		}
	}
	return out
}

type probeFault struct{ says, id, what, next string }

// probeFaults are why probes of ports fail, by the kubelet's words in lower case.
var probeFaults = []probeFault{
	{"connection refused", "probe-refused", "nothing listens where it asks", "compare the probe's port with what the program listens on (0.0.0.0, not 127.0.0.1): "},
	{"http response to https client", "probe-scheme", "it asks by HTTPS, and the program speaks HTTP", "leave out scheme: HTTPS: "},
	{"malformed http response", "probe-scheme", "it asks by HTTP, and the program speaks something else, such as TLS", "set scheme: HTTPS, or use tcpSocket: "},
	{"client sent an http request to an https server", "probe-scheme", "it asks by HTTP, and the program speaks HTTPS", "set scheme: HTTPS: "},
	{"statuscode: 404", "probe-path", "the program does not have the path it asks for", "correct the probe's path: "},
	{"statuscode: 401", "probe-unauthorized", "the path it asks for wants credentials", "probe a path without, or set httpHeaders: "},
	{"statuscode: 403", "probe-unauthorized", "the path it asks for is forbidden to it", "probe another path, or set httpHeaders: "},
	{"statuscode: 400", "probe-scheme", "the program takes its request for a wrong one; one that speaks HTTPS answers so to HTTP", "set scheme: HTTPS, if so: "},
	{"statuscode:", "probe-status", "the program answers that it is not well", "its log says why: "},
	{"deadline exceeded", "probe-timeout", "the answer does not come in time", "raise timeoutSeconds, or see what keeps the program: "},
	{"i/o timeout", "probe-timeout", "the connection does not come about in time", "raise timeoutSeconds; a NetworkPolicy may drop the kubelet's packets: "},
}

// commandFaults are why a probe's command does not come to its own end, by the kubelet's and the runtime's words in lower case.
var commandFaults = []probeFault{
	{"dial unix ", "probe-failing", "the node's container runtime, which would run it, does not answer the kubelet", "if it goes on, see to the node: kubectl describe node %s"},
	{"chdir to cwd", "probe-command", "the container's user may not enter its working directory, or it is no folder", "correct workingDir, or securityContext.runAsUser: "},
	{"no such file or directory", "probe-command", "the command is not in the container", "correct the probe's command: "},
	{"executable file not found", "probe-command", "the command is not in the container", "correct the probe's command: "},
	{"permission denied", "probe-command", "the command may not be executed by the container's user", "correct the probe's command, or the file's mode in the image: "},
	{"deadline exceeded", "probe-timeout", "the command does not end in time", "raise timeoutSeconds: "},
	{"timed out", "probe-timeout", "the command does not end in time", "raise timeoutSeconds: "},
}

// notRun is in what the kubelet says, in lower case, of a probe's command that did not come to its own end.
var notRun = regexp.MustCompile(`(?s)probe errored|oci runtime|unable to start container process|probe failed: command (".*" )?timed out`)

// commandOutput tells whether what the kubelet says in lower case of a probe's command that fails is the command's own output, which may have the words of any fault.
func commandOutput(message string) bool { return !notRun.MatchString(message) }

// fault is why it fails, by what the kubelet says; nil for a command's own output, and for what is not known.
func (p asking) fault(message string) *probeFault {
	if p.GRPC != nil && strings.Contains(message, "failed to connect service") {
		return grpcFaults[unknown]
	}
	lower, faults := strings.ToLower(message), probeFaults
	if p.Exec != nil {
		if faults = commandFaults; commandOutput(lower) {
			return nil
		}
	}
	if i := slices.IndexFunc(faults, func(w probeFault) bool { return strings.Contains(lower, w.says) }); i >= 0 {
		return &faults[i]
	}
	return nil
}

// grpcFaults are why a gRPC probe has no connection, of which the kubelet says one and the same: by whether somebody listens.
var grpcFaults = map[reply]*probeFault{
	unknown: {"", "probe-timeout", "no connection comes about: nothing listens there, or it does not speak gRPC without TLS", "compare the probe's port with what the program listens on: "},
	closed:  {"", "probe-refused", "nothing listens where it asks", "compare the probe's port with what the program listens on (0.0.0.0, not 127.0.0.1): "},
	open:    {"", "probe-timeout", "what listens there does not speak gRPC without TLS, or does not answer in time", "correct the probe's port, use httpGet or tcpSocket, or raise timeoutSeconds: "},
}

// faultNow is why it fails now, by what the kubelet says and, where it says too little, by what was found at its port; nil for what is not known.
func (s *Snapshot) faultNow(p *pod, probe asking, message string) *probeFault {
	fault := probe.fault(message)
	if fault == nil || fault != grpcFaults[unknown] {
		return fault
	}
	switch a := s.answers[placeOf(p, probe.GRPC.Port)]; {
	case a.at() == open:
		return grpcFaults[open]
	case a.at() == closed, a.loopback == closed:
		return grpcFaults[closed]
	}
	return fault
}

// explainProbe says why a probe fails, and in f what to do, with the evidence for that; logs is the command for the log that tells. elsewhere is
// whether the pod was found to listen at another port than is asked.
func (s *Snapshot) explainProbe(f *Finding, p *pod, c container, probe asking, fault *probeFault, logs string) (what string, elsewhere bool) {
	what = fault.what
	switch {
	case strings.HasSuffix(fault.next, "%s"):
		f.Next = []string{strings.Replace(fault.next, "%s", p.Spec.NodeName, 1)}
	case fault.id == "probe-status":
		f.Next = []string{fault.next + logs}
	default:
		f.Next = []string{fault.next + f.edit()}
	}
	switch fault.id {
	case "probe-timeout":
		if u, at := s.atLimit(p, c, corev1.ResourceCPU); at {
			f.State = append(f.State, u.evidence(p, c.what(), c.Resources, corev1.ResourceCPU))
			f.Next = append([]string{"it uses all the CPU that it may: raise resources.limits.cpu: " + f.edit()}, f.Next...)
		} else if all, at := s.togetherAtLimit(p, corev1.ResourceCPU, "cpu-at-limit"); at {
			f.State = append(f.State, all.State...)
			f.Next = append([]string{"its pod uses all the CPU that it may: raise the pod's own resources.limits.cpu: " + f.edit()}, f.Next...)
		}
	case "probe-refused":
		if n, byNumber := probe.number(); byNumber && probe.host() == "" && len(c.Ports) > 0 && !slices.ContainsFunc(c.Ports, func(port corev1.ContainerPort) bool { return port.ContainerPort == n }) {
			what += fmt.Sprintf(undeclared+"%s and not %d", portsOf(c), n)
		}
		if n, has := probe.numberIn(c); has {
			if others := s.listening(p, n); len(others) > 0 {
				elsewhere = true
				f.listens(others, s.Now)
				f.Next = append([]string{fmt.Sprintf("something listens at %s: have the probe ask there, if that is it: %s", list(others), f.edit())}, f.Next...)
			}
		}
	}
	return what, elsewhere
}

// slowFaults are those that a program has, too, that has only just been started.
var slowFaults = []string{"probe-refused", "probe-timeout", "probe-status", "probe-exec", "probe-failing"}

// undeclared begins what is added for a port that no start, however slow, opens.
const undeclared = "; the container declares "

// probeFinding is about one probe: its port, its timing, and what it gets.
func (s *Snapshot) probeFinding(p *pod, c container, probe asking) (Finding, bool) {
	begin := func(id string, severity Severity) Finding {
		f := s.ofContainer(p, c, id, severity, Probes)
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %sProbe of %s", f.Object, probe.kind, c.what()), Says: asked(probe.Probe) + ", " + timing(probe.Probe)})
		if o, run := s.probed[(liveRun{p, c, probe}).probing()]; run {
			f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %sProbe of %s, run from a pod", f.Object, probe.kind, c.what()), Says: o.Result.String() + ": " + o.Why, At: s.Now})
		}
		f.Why = "until it succeeds the pod is not ready, and no Service sends it anything"
		if probe.kind == "liveness" {
			f.Why = fmt.Sprintf("after %s in a row the kubelet kills the container", counted(int(probe.failures()), "failure"))
		}
		return f
	}
	if name, asksByName := probe.portName(); asksByName && !declares(c, name) {
		f := begin("probe-port-name-absent", Problem)
		f.Summary = fmt.Sprintf("%s has no port named %q, which its %s probe asks", c.what(), name, probe.kind)
		var have []string
		for _, port := range c.Ports {
			have = append(have, port.Name)
		}
		if like := nearest(name, have); like != "" {
			f.Next = append(f.Next, fmt.Sprintf("write %s, which there is: %s", like, f.edit()))
		}
		f.Next = append(f.Next, "name the port in ports, or give its number: "+f.edit())
		f.Events = told(s.eventsIn(p, c, "Unhealthy"))
		return f, true
	}
	if e := s.failure(p, c, probe); e != nil && (probe.kind != "liveness" || probe.cannotRun(e, c.status.State.Running.StartedAt.Time) || inARow(e, probe)) {
		severity := Problem
		if probe.kind == "liveness" {
			severity = Warning // it serves, until it is killed
		}
		f := begin("probe-failing", severity)
		f.because = append(f.because, partOf(f.Object, c.Name))
		f.Summary = fmt.Sprintf("the %s probe of %s fails: %s", probe.kind, c.what(), firstLine(said(e)))
		if probe.kind == "liveness" && errored(e) {
			f.Why = "the kubelet takes what it cannot run for no answer: it never restarts the container for it"
		}
		f.Next = []string{logsOf(p, c)}
		f.log = currentLog
		if probe.Exec != nil {
			f.ID = "probe-exec"
		}
		elsewhere := false
		if fault := s.faultNow(p, probe, e.Message); fault != nil {
			f.ID = fault.id
			var what string
			what, elsewhere = s.explainProbe(&f, p, c, probe, fault, f.Next[0])
			f.Summary = fmt.Sprintf("the %s probe of %s, %s, fails: %s", probe.kind, c.what(), asked(probe.Probe), what)
		}
		if probe.host() != "" {
			f.Next = append([]string{"leave out host, if the pod itself is meant: " + f.edit()}, f.Next...)
		}
		f.Events = told([]*corev1.Event{e})
		if slices.Contains(slowFaults, f.ID) && !strings.Contains(f.Summary, undeclared) {
			s.mayOpen(&f, p, c, elsewhere)
		}
		return f, true
	}
	if f, ok := s.earlyFinding(p, c, probe, begin); ok {
		return f, true
	}
	if f, ok := s.lostFinding(p, c, probe, begin); ok {
		return f, true
	}
	return s.timingFinding(probe, begin)
}

const (
	// slowestStart is the longest that a program is taken to start, also where only its pod's readiness says how long: that is every container's, and comes and goes.
	slowestStart = 10 * time.Minute
	// noticed is how long it may be before a kubelet that has much to do knows that a container runs, and begins to probe it.
	noticed = 5 * time.Second
)

// earlyFinding is about a liveness probe that has failed from its first attempts on while the program started, and succeeds since: with a
// slower start the kubelet kills it.
func (s *Snapshot) earlyFinding(p *pod, c container, probe asking, begin func(string, Severity) Finding) (Finding, bool) {
	running := c.status.State.Running
	if probe.kind != "liveness" || running == nil || !c.status.Ready || c.StartupProbe != nil || s.failure(p, c, probe) != nil {
		return Finding{}, false
	}
	set := timingOf(probe.Probe)
	started, delay, period, timeout := running.StartedAt.Time, set.InitialDelaySeconds, set.PeriodSeconds, set.TimeoutSeconds
	after := func(seconds int32) time.Time { return started.Add(time.Duration(seconds)*time.Second + noticed) }
	// Without a readiness probe it is ready at once, and that it succeeds is known only once the kubelet would have killed it. The events do
	// not say so: of many of one pod the kubelet leaves some out.
	if c.ReadinessProbe == nil && !s.Now.After(after(delay+set.FailureThreshold*(period+timeout))) {
		return Finding{}, false
	}
	// That it was killed for it is told already.
	if end := c.lastEnd(); end != nil && s.Now.Sub(end.FinishedAt.Time) <= recent && s.killedByProbe(p, c, end) != nil {
		return Finding{}, false
	}
	until := started.Add(slowPatience)
	if ready := condition(p, corev1.ContainersReady); ready != nil && c.ReadinessProbe != nil && ready.LastTransitionTime.After(started) {
		until = ready.LastTransitionTime.Time
		if most := started.Add(slowestStart); until.After(most) {
			until = most
		}
	}
	for _, e := range s.eventsOf("pod", p, "Unhealthy") {
		at := lastSeen(e)
		if !probe.tells(e, c) || errored(e) || !at.After(started) || at.After(until) || firstSeen(e).After(after(delay+2*period+timeout)) {
			continue
		}
		took := at.Sub(started)
		f := begin("probe-early", Warning)
		f.because = append(f.because, partOf(f.Object, c.Name))
		f.Summary = fmt.Sprintf("the liveness probe of %s begins after %s, and failed while the program started, which took %v or more", c.what(), seconds(delay), took)
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %s", f.Object, c.field("state.running.startedAt")), Says: started.UTC().Format(time.RFC3339), At: started})
		f.Events = told([]*corev1.Event{e})
		f.Next = []string{fmt.Sprintf("add a startupProbe, for which it waits, or set initialDelaySeconds above %.0f: %s", took.Seconds(), f.edit())}
		return f, true
	}
	return Finding{}, false
}

// Of a pod the kubelet tells 25 events at once, and then one in each silence (client-go's EventCorrelator). burst is how many a probe may have of them.
const (
	burst   = 15
	silence = 5 * time.Minute
)

// lostFinding is about a readiness probe that has failed while the program ran, after it had succeeded, and succeeds again since not long ago.
func (s *Snapshot) lostFinding(p *pod, c container, probe asking, begin func(string, Severity) Finding) (Finding, bool) {
	running, again := c.status.State.Running, condition(p, corev1.PodReady)
	if probe.kind != "readiness" || running == nil || !c.status.Ready || again == nil || again.Status != corev1.ConditionTrue || s.Now.Sub(again.LastTransitionTime.Time) > recent {
		return Finding{}, false
	}
	until := again.LastTransitionTime.Time
	// From then on a failure is none of the start.
	begins := running.StartedAt.Add(probe.most() + startPatience)
	if c.StartupProbe != nil {
		begins = begins.Add(asking{"startup", c.StartupProbe}.most())
	}
	if !until.After(begins) { // which may have been the first time
		return Finding{}, false
	}
	failures := slices.DeleteFunc(s.eventsIn(p, c, "Unhealthy"), func(e *corev1.Event) bool {
		return !probe.tells(e, c) || errored(e) || lastSeen(e).Before(running.StartedAt.Time) || firstSeen(e).After(until)
	})
	// Of a failure that runs before this one have had, too, the number says nothing.
	often := func(e *corev1.Event) bool {
		return !firstSeen(e).Before(running.StartedAt.Time) && probe.succeededBetween(e, failures)
	}
	var lost []*corev1.Event // the newest first
	var before time.Time     // the last of those that may be of the start
	var first time.Time
	var times, timesBefore int32
	for _, e := range failures {
		switch last := lastSeen(e); {
		case firstSeen(e).Before(begins) && !often(e):
			timesBefore += timesSeen(e)
			if last.After(before) {
				before = last
			}
		default:
			lost, times = append(lost, e), times+timesSeen(e)
			if first.IsZero() || firstSeen(e).Before(first) {
				first = firstSeen(e)
			}
		}
	}
	// quiet is how long nothing is told of a probe that fails, attempts of which succeed in between.
	quiet := func(attempts, told int32) time.Duration {
		d := time.Duration(attempts)*(probe.period()+probe.timeout()) + noticed
		if told >= burst {
			d += silence
		}
		return d
	}
	switch {
	case times < probe.failures(), until.Sub(lastSeen(lost[0])) > quiet(timingOf(probe.Probe).SuccessThreshold, times): // others have had the pod lose its readiness
		return Finding{}, false
	case !before.IsZero() && !slices.ContainsFunc(lost, often) && first.Sub(before) <= quiet(timingOf(probe.Probe).SuccessThreshold, timesBefore): // it may have failed all the time, in other words
		return Finding{}, false
	}
	f := begin("readiness-lost", Warning)
	f.because = append(f.because, partOf(f.Object, c.Name))
	f.Summary = fmt.Sprintf("the readiness probe of %s succeeded, failed for a while, and succeeds again: %s", c.what(), firstLine(said(lost[0])))
	if slices.ContainsFunc(lost, often) {
		f.Summary = fmt.Sprintf("the readiness probe of %s fails again and again, and succeeds now: %s", c.what(), firstLine(said(lost[0])))
	}
	f.Why = "while it failed the pod was not ready, and as a rule Services sent it nothing"
	f.condition(f.Object, string(again.Type), string(again.Status), again.Reason, again.Message, again.LastTransitionTime)
	f.Events = told(lost)
	f.Next = []string{"its log of that time may say why: " + logsOf(p, c)}
	return f, true
}

// succeededBetween tells whether the failures of a probe from the first to the last time that e tells of are too few for that time: those in other words, too. The
// kubelet counts those that it does not tell.
func (p asking) succeededBetween(e *corev1.Event, failures []*corev1.Event) bool {
	var times int32
	for _, o := range failures {
		if !lastSeen(o).Before(firstSeen(e)) && !firstSeen(o).After(lastSeen(e)) {
			times += timesSeen(o)
		}
	}
	attempt := max(p.period(), p.timeout())
	return lastSeen(e).Sub(firstSeen(e)) > time.Duration(times)*attempt*3/2+noticed
}

// hasRun tells whether a probe of a container that is ready has told something by now: that it has not failed means little before.
func (s *Snapshot) hasRun(c container, probe asking) bool {
	if probe.kind != "liveness" {
		return true // without its success the container would not be ready
	}
	first := time.Duration(probe.InitialDelaySeconds)*time.Second + probe.period() + probe.timeout() + noticed
	if c.StartupProbe != nil {
		first += asking{"startup", c.StartupProbe}.most()
	}
	return s.has(events) && c.status.State.Running != nil && s.Now.Sub(c.status.State.Running.StartedAt.Time) > first
}

// failure is the kubelet's event of a probe that fails now, nil for none. Of a liveness probe it is one that may not be long past.
func (s *Snapshot) failure(p *pod, c container, probe asking) *corev1.Event {
	running, started := c.status.State.Running, c.status.Started != nil && *c.status.Started
	if running == nil {
		return nil
	}
	since := running.StartedAt.Time // of an earlier run of the container the answers are old
	switch probe.kind {
	case "startup":
		if started {
			return nil
		}
	case "readiness":
		if !started || c.status.Ready {
			return nil
		}
	default:
		if recent := s.Now.Add(-2 * probe.period()); recent.After(since) {
			since = recent
		}
	}
	for _, e := range s.eventsOf("pod", p, "Unhealthy") {
		at := since
		if probe.cannotRun(e, running.StartedAt.Time) { // of which the kubelet tells seldom, since each time the words are others
			at = running.StartedAt.Time
		}
		if probe.tells(e, c) && !lastSeen(e).Before(at) {
			return e
		}
	}
	return nil
}

// tells is whether an Unhealthy event is of this probe of c.
func (p asking) tells(e *corev1.Event, c container) bool {
	return strings.HasPrefix(strings.ToLower(said(e)), p.kind) && about(e, c)
}

// said is an event's message, also of one that stands for several.
func said(e *corev1.Event) string {
	return strings.TrimPrefix(e.Message, "(combined from similar events): ")
}

// errored tells whether a probe could not be run, which the kubelet takes for no answer.
func errored(e *corev1.Event) bool { return strings.Contains(e.Message, " probe errored") }

// cannotRun tells whether its command is one that the container, which runs since then, does not have, or may not run: again and again, or when it has had the time
// to make it.
func (p asking) cannotRun(e *corev1.Event, since time.Time) bool {
	fault := p.fault(e.Message)
	return errored(e) && fault != nil && fault.id == "probe-command" && (timesSeen(e) > 1 || lastSeen(e).Sub(since) >= slowPatience)
}

// inARow tells whether a probe has failed more than once in the time of that many attempts, or twice that.
func inARow(e *corev1.Event, probe asking) bool {
	more := time.Duration(timesSeen(e) - 1)
	return more > 0 && lastSeen(e).Sub(firstSeen(e)) <= more*2*probe.period()
}

// timingFinding is about timings that cannot work as they are meant.
func (s *Snapshot) timingFinding(probe asking, begin func(string, Severity) Finding) (Finding, bool) {
	set := timingOf(probe.Probe)
	period, timeout := set.PeriodSeconds, set.TimeoutSeconds
	if timeout > period {
		f := begin("probe-timing", Warning)
		f.Summary = fmt.Sprintf("the %s probe may take %s and is to run every %s: with a slow answer it runs more seldom, and fails later than it says", probe.kind, seconds(timeout), seconds(period))
		f.Why = "the kubelet runs one at a time"
		f.Next = []string{fmt.Sprintf("set periodSeconds to %d or more, or timeoutSeconds to %d or less: %s", timeout, period, f.edit())}
		return f, true
	}
	return Finding{}, false
}

func (p asking) port() (intstr.IntOrString, bool) {
	switch {
	case p.HTTPGet != nil:
		return p.HTTPGet.Port, true
	case p.TCPSocket != nil:
		return p.TCPSocket.Port, true
	}
	return intstr.IntOrString{}, false
}

func (p asking) portName() (string, bool) {
	port, has := p.port()
	return port.StrVal, has && port.Type == intstr.String
}

func (p asking) number() (int32, bool) {
	if p.GRPC != nil {
		return p.GRPC.Port, true
	}
	port, has := p.port()
	return port.IntVal, has && port.Type == intstr.Int
}

// host is whom it asks, "" for the pod.
func (p asking) host() string {
	switch {
	case p.HTTPGet != nil:
		return p.HTTPGet.Host
	case p.TCPSocket != nil:
		return p.TCPSocket.Host
	}
	return ""
}

// numberIn is the number of the port of c that it asks; false for none, and where it asks another host.
func (p asking) numberIn(c container) (int32, bool) {
	if p.host() != "" {
		return 0, false
	}
	if name, byName := p.portName(); byName {
		for _, port := range c.Ports {
			if port.Name == name {
				return port.ContainerPort, true
			}
		}
		return 0, false
	}
	return p.number()
}

func declares(c container, name string) bool {
	return slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name })
}

func portsOf(c container) string {
	var out []string
	for _, p := range c.Ports {
		out = append(out, fmt.Sprint(p.ContainerPort))
	}
	return list(out)
}

// gateFinding is about a pod whose containers are ready and that is not, for a gate of its own.
func (s *Snapshot) gateFinding(p *pod) (Finding, bool) {
	containers := condition(p, corev1.ContainersReady)
	if ready(p) || containers == nil || containers.Status != corev1.ConditionTrue || len(p.Spec.ReadinessGates) == 0 || s.Now.Sub(containers.LastTransitionTime.Time) < 5*time.Second {
		return Finding{}, false
	}
	f := s.ofPod(p, "readiness-gate", Problem, Probes)
	var unmet []string
	for _, g := range p.Spec.ReadinessGates {
		c := condition(p, g.ConditionType)
		switch {
		case c == nil:
			f.State = append(f.State, Evidence{From: f.Object.String() + " condition " + string(g.ConditionType), Says: "nobody has set it"})
		case c.Status != corev1.ConditionTrue:
			f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
		default:
			continue
		}
		unmet = append(unmet, string(g.ConditionType))
	}
	f.Summary = fmt.Sprintf("its containers are ready, and its readiness gate %s is not met", list(unmet))
	f.Why = "it gets no traffic before the controller that the gate is named for says so"
	f.Next = []string{"look for that controller and its log; the condition is its business alone"}
	if s.Now.Sub(containers.LastTransitionTime.Time) < slowPatience {
		f.may()
	}
	return f, len(unmet) > 0
}
