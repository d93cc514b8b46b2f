package diagnose

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// longestBackOff is the kubelet's longest wait between two starts.
	longestBackOff = 5 * time.Minute
	// recent is for how long a container that ended and runs again is worth a warning.
	recent = 10 * time.Minute
	// unknownExit stands for an end that is not in the status.
	unknownExit = -1
)

func checkPrograms(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		switch {
		case p.DeletionTimestamp != nil, p.Status.Phase == corev1.PodSucceeded:
			continue
		case p.Status.Phase == corev1.PodFailed && (p.Status.Reason != "" || s.overtaken(p)):
			continue // its node or its deadline has ended it, or another has done its work
		}
		for _, c := range containersOf(p) {
			if f, ok := s.programFinding(p, c); ok {
				out = append(out, f)
			}
		}
	}
	return out
}

// outlasts tells whether a run of that length is longer than the one before, or long enough to be none of a loop.
func outlasts(run time.Duration, before *corev1.ContainerStateTerminated) bool {
	const granularity = 2 * time.Second // of the kubelet's times, twice
	return run > min(before.FinishedAt.Sub(before.StartedAt.Time), startPatience)+granularity
}

// programFinding is about a container whose program has ended when it should not have.
func (s *Snapshot) programFinding(p *pod, c container) (Finding, bool) {
	end := c.lastEnd()
	reason, _ := c.waiting()
	running := c.status.State.Running
	switch {
	case reason == "RunContainerError" || reason == "CrashLoopBackOff" || reason == hookError:
	case end == nil:
		return Finding{}, false
	case running != nil: // it runs again
		if c.init && !c.sidecar() || s.Now.Sub(end.FinishedAt.Time) > recent || end.ExitCode == 0 && s.killedByProbe(p, c, end) == nil && s.killedByHook(p, c, end) == nil {
			return Finding{}, false
		}
	case end.ExitCode == 0 && (c.init && !c.sidecar() || p.Spec.RestartPolicy != corev1.RestartPolicyAlways):
		return Finding{}, false // it has done its work
	}
	if end == nil {
		end = &corev1.ContainerStateTerminated{ExitCode: unknownExit}
	}
	severity := Problem
	if running != nil && c.status.Ready && outlasts(s.Now.Sub(running.StartedAt.Time), end) || p.Status.Phase == corev1.PodFailed && s.jobGoesOn(p) {
		severity = Warning
	}
	f := s.ofContainer(p, c, "program-exits", severity, Program)
	f.log = previousLog
	if c.status.State.Terminated != nil {
		f.log = currentLog
	}
	f.Events = told(s.eventsIn(p, c, "Killing", "BackOff", "Failed", "Unhealthy", "FailedPostStartHook"))
	s.explainEnd(&f, p, c, end)
	if end.ExitCode != unknownExit {
		ran := ""
		if !end.StartedAt.IsZero() && !end.FinishedAt.IsZero() && end.FinishedAt.Sub(end.StartedAt.Time) >= 0 && end.StartedAt.Unix() > 0 {
			ran = fmt.Sprintf(" after %v", end.FinishedAt.Sub(end.StartedAt.Time).Round(time.Second))
		}
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %s", f.Object, endField(c)), Says: strings.TrimSpace(fmt.Sprintf("%s, exit code %d%s %s", end.Reason, end.ExitCode, ran, firstLine(end.Message))), At: end.FinishedAt.Time})
	}
	f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %s", f.Object, c.field("restartCount")), Says: fmt.Sprint(c.status.RestartCount)})
	if wait := backOff(c, end, s.Now); wait != "" && (reason == "CrashLoopBackOff" || s.backsOff(p, c)) {
		f.State = append(f.State, Evidence{From: f.Object.String() + " back-off", Says: wait})
	}
	if f.Why == "" {
		switch {
		case running != nil:
			f.Why = "it runs again now; while it did not, its callers were refused"
		case c.status.State.Terminated != nil && severity == Warning:
			f.Why = "its Job goes on, and makes another pod if it may"
		case c.status.State.Terminated != nil && (p.Status.Phase == corev1.PodFailed || p.Spec.RestartPolicy == corev1.RestartPolicyNever):
			f.Why = "its pod's restartPolicy " + string(p.Spec.RestartPolicy) + " does not have it started again"
		case c.init && !c.sidecar():
			f.Why = "the containers behind an init container do not start before it has succeeded"
		default:
			f.Why = "the container is not there; the kubelet starts it again, each time after a longer wait, up to " + longestBackOff.String()
		}
	}
	return f, true
}

// backsOff tells whether a container that has ended waits for its next start, by the kubelet's events.
func (s *Snapshot) backsOff(p *pod, c container) bool {
	return c.status.State.Terminated != nil && slices.ContainsFunc(s.eventsIn(p, c, "BackOff"), func(e *corev1.Event) bool {
		return strings.Contains(e.Message, " restarting ")
	})
}

func endField(c container) string {
	if c.status.State.Terminated != nil {
		return c.field("state.terminated")
	}
	return c.field("lastState.terminated")
}

// explainEnd says in f how and why the container ended.
func (s *Snapshot) explainEnd(f *Finding, p *pod, c container, end *corev1.ContainerStateTerminated) {
	_, waits := c.waiting()
	logs := logsOf(p, c)
	if f.log == previousLog {
		logs += " --previous"
	}
	f.Next = []string{logs}
	switch started := end.Message + " " + waits; {
	case end.Reason == "OOMKilled":
		f.ID = "program-oom"
		limit, field := "its node's memory: it has no limit", "resources.limits.memory"
		if q, limited := c.Resources.Limits[corev1.ResourceMemory]; limited {
			limit = "its memory limit, " + q.String()
		} else if q, limited := together(p).Limits[corev1.ResourceMemory]; limited {
			limit, field = "its pod's memory limit, "+q.String()+", which its containers share", "the pod's own resources.limits.memory"
		}
		f.Summary = fmt.Sprintf("%s was killed for using more than %s", c.what(), limit)
		f.Next = []string{fmt.Sprintf("raise %s above what it needs, or have the program need less (GOMEMLIMIT, -Xmx): %s", field, f.edit()), logs}
	case end.Reason == "StartError" || end.Reason == "ContainerCannotRun" || c.waits("RunContainerError"):
		s.explainStart(f, c, started)
	case s.killedByProbe(p, c, end) != nil:
		s.explainKill(f, p, c, s.killedByProbe(p, c, end), logs)
	case s.killedByHook(p, c, end) != nil || c.waits(hookError):
		f.explainHook(c, waits)
	case end.ExitCode == 0:
		f.ID = "program-completes"
		f.Summary = fmt.Sprintf("%s ends by itself with exit code 0, and its pod's restartPolicy %s wants it to run on", c.what(), p.Spec.RestartPolicy)
		f.Next = []string{"give it a command that stays in the foreground, or make it a Job", logs}
	default:
		meaning := exitMeaning(end.ExitCode)
		f.Summary = fmt.Sprintf("%s ends by itself with exit code %d%s", c.what(), end.ExitCode, meaning)
		switch {
		case end.ExitCode == 127 || end.ExitCode == 126:
			f.ID = "program-command-not-found"
		case end.ExitCode == unknownExit:
			f.Summary = fmt.Sprintf("%s ends again and again, and how is not known", c.what())
		case bySignal(end.ExitCode):
			f.ID = "program-killed"
			f.Summary = fmt.Sprintf("%s ended with exit code %d%s", c.what(), end.ExitCode, meaning)
		}
		f.Next = []string{"its log says why: " + logs}
	}
}

// logsOf is the command for a container's log.
func logsOf(p *pod, c container) string {
	return fmt.Sprintf("kubectl logs %s%s -c %s", p.Name, inOf(p), c.Name)
}

func (c container) waits(reason string) bool {
	r, _ := c.waiting()
	return r == reason
}

// startFaults are why a runtime cannot start a program, by what runc, crun and the kubelet say, in lower case; next is the smallest change, if it is another than of the
// command.
var startFaults = []struct{ says, id, what, next string }{
	{"chdir to cwd", "program-start-failed", "its user may not enter its working directory, or it is no folder", "correct workingDir, or securityContext.runAsUser: "},
	{"error mounting", "program-start-failed", "something cannot be mounted in it, such as a folder over a file, or the other way round", "correct the volumeMount: a mountPath that is a file in the image takes a subPath: "},
	{"executable file not found in $path", "program-command-not-found", "the command is not in its image's PATH", ""},
	{"exec format error", "program-architecture", "the program is for another architecture, or a script without #!", ""},
	{"no such file or directory", "program-command-not-found", "a file that starting it takes is not in the image", ""},
	{"permission denied", "program-not-executable", "the file may not be executed by its user", ""},
	{"is a directory", "program-not-executable", "the command is a folder", ""},
	{"cannot allocate memory", "program-oom", "its memory limit is too small for it to start", "raise resources.limits.memory: "},
	{"container init was oom-killed", "program-oom", "its memory limit is too small for it to start", "raise resources.limits.memory: "},
}

func (s *Snapshot) explainStart(f *Finding, c container, said string) {
	f.ID, f.log = "program-start-failed", noLog
	next := "correct command, args or workingDir, or leave command out for the image's own: "
	f.Summary = fmt.Sprintf("%s cannot be started", c.what())
	lower := strings.ToLower(said)
	for _, fault := range startFaults {
		if strings.Contains(lower, fault.says) {
			f.ID = fault.id
			f.Summary = fmt.Sprintf("%s cannot be started: %s", c.what(), fault.what)
			next = cmp.Or(fault.next, next)
			break
		}
	}
	if len(c.Command) > 0 {
		f.State = append(f.State, Evidence{From: f.Object.String() + " command", Says: masked(slices.Concat(c.Command, c.Args))})
	} else if len(c.Args) > 0 {
		f.State = append(f.State, Evidence{From: f.Object.String() + " args", Says: counted(len(c.Args), "argument") + " for the image's own command"})
	}
	f.Next = []string{next + f.edit()}
}

// notExecuted is what runc, as the container's last word, writes to its log when the kernel does not take the program: then the container has
// ended, with exit code 1 or 255, as one that has started.
var notExecuted = regexp.MustCompile(`^(?:standard_init_linux\.go:\d+: )?exec (?:user process caused|\S+): "?(exec format error|no such file or directory)"?$`)

// explainLog makes of a program that ends one that was never started, where its log says so.
func (f *Finding) explainLog() {
	m := notExecuted.FindStringSubmatch(strings.TrimSpace(f.Log[len(f.Log)-1]))
	if f.ID != "program-exits" || m == nil {
		return
	}
	f.ID = "program-architecture"
	what, next := "it is for another architecture, or a script without #!", "build the image for the node's architecture (docker buildx build --platform), or give the script its first line, #!/bin/sh"
	if m[1] != "exec format error" {
		f.ID = "program-command-not-found"
		what, next = "a file that starting it takes is not in the image: a script's interpreter, or the C library that the program is linked with", "use an image that has it, or a program that needs none"
	}
	container, _, _ := strings.Cut(f.Summary, " ends ")
	f.Summary = fmt.Sprintf("%s cannot be started: %s", container, what)
	f.Next = []string{next + ": " + f.edit()}
}

// masked is a command without its arguments, in which passwords may be.
func masked(words []string) string {
	switch n := len(words) - 1; {
	case n < 0:
		return "none"
	case n == 0:
		return fmt.Sprintf("%q", words[0])
	default:
		return fmt.Sprintf("%q and %s", words[0], counted(n, "argument"))
	}
}

// killedByProbe is the event by which the kubelet says that it killed the container for its liveness or startup probe, if that is
// what this end was: not long before or, since events of a pod that goes on so are left out, before an end that a killed program has.
func (s *Snapshot) killedByProbe(p *pod, c container, end *corev1.ContainerStateTerminated) *corev1.Event {
	for _, e := range s.eventsOf("pod", p, "Killing") {
		if !strings.Contains(e.Message, "ontainer "+c.Name+" failed ") || !strings.Contains(e.Message, " probe") { // Container, or Init container
			continue
		}
		if endsBy(p, e, end) {
			return e
		}
	}
	return nil
}

// endsBy tells whether an end may be that of a kill of which e tells.
func endsBy(p *pod, e *corev1.Event, end *corev1.ContainerStateTerminated) bool {
	grace := int64(30)
	if p.Spec.TerminationGracePeriodSeconds != nil {
		grace = *p.Spec.TerminationGracePeriodSeconds
	}
	// Times of events and of ends are whole seconds.
	ago := end.FinishedAt.Sub(lastSeen(e))
	return ago >= -2*time.Second && (ago <= time.Duration(grace+5)*time.Second || slices.Contains([]int32{0, 128 + 9, 128 + 15}, end.ExitCode))
}

// explainKill says in f that the kubelet has killed the container, and why its probe failed.
func (s *Snapshot) explainKill(f *Finding, p *pod, c container, e *corev1.Event, logs string) {
	probe := asking{"liveness", c.LivenessProbe}
	if strings.Contains(e.Message, "failed startup probe") {
		probe = asking{"startup", c.StartupProbe}
	}
	f.ID = "program-killed-by-" + probe.kind
	f.Summary = fmt.Sprintf("%s is killed by the kubelet, since its %s probe fails", c.what(), probe.kind)
	f.Why = "the program itself has not ended: the probe did not get its answer"
	more := "give it more time (failureThreshold, timeoutSeconds) or a startupProbe: " + f.edit()
	f.Next = []string{"see whether the program answers what the probe asks, and " + more}
	failures := slices.DeleteFunc(s.eventsOf("pod", p, "Unhealthy"), func(e *corev1.Event) bool {
		return !probe.tells(e, c)
	})
	f.Events = told(append([]*corev1.Event{e}, failures...))
	if probe.Probe == nil {
		return // it has another spec by now
	}
	what := ""
	f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %sProbe", f.Object, probe.kind), Says: asked(probe.Probe) + ", " + timing(probe.Probe)})
	// It is not killed for those that could not be run. What listens by now is of another run.
	if i := slices.IndexFunc(failures, func(e *corev1.Event) bool { return !errored(e) }); i >= 0 {
		if fault := probe.fault(failures[i].Message); fault != nil {
			what, _ = s.explainProbe(f, p, c, probe, fault, logs)
			what = ": " + what
			if slices.Contains(slowFaults, fault.id) {
				f.Next = append(f.Next, "if it is only slow, "+more)
			}
		}
	}
	f.Summary = fmt.Sprintf("%s is killed by the kubelet, since its %s probe, %s, fails%s", c.what(), probe.kind, asked(probe.Probe), what)
}

// hookError is why a container waits whose postStart hook has failed.
const hookError = "PostStartHookError"

// killedByHook is the event by which the kubelet says that it killed the container since its postStart hook failed, if that is what this end was.
func (s *Snapshot) killedByHook(p *pod, c container, end *corev1.ContainerStateTerminated) *corev1.Event {
	for _, e := range s.eventsOf("pod", p, "FailedPostStartHook") {
		const granularity = 2 * time.Second
		if about(e, c) && lastSeen(e).After(end.StartedAt.Add(-granularity)) && lastSeen(e).Before(end.FinishedAt.Add(granularity)) {
			return e
		}
	}
	return nil
}

// explainHook says in f that the container was killed for its postStart hook. message is what the kubelet says of it, which is shown for a moment alone.
func (f *Finding) explainHook(c container, message string) {
	f.ID = "program-hook-failed"
	f.Summary = fmt.Sprintf("%s is killed by the kubelet, since its postStart hook fails", c.what())
	if _, why, known := strings.Cut(message, "failed - error: "); known && c.waits(hookError) {
		f.Summary += ": " + firstLine(why)
	}
	if h := c.Lifecycle; h != nil && h.PostStart != nil {
		says := "it has another form"
		switch {
		case h.PostStart.Exec != nil:
			says = "command " + masked(h.PostStart.Exec.Command)
		case h.PostStart.HTTPGet != nil:
			says = fmt.Sprintf("GET of port %s, %s", h.PostStart.HTTPGet.Port.String(), cmp.Or(h.PostStart.HTTPGet.Path, "/"))
		}
		f.State = append(f.State, Evidence{From: fmt.Sprintf("%s lifecycle.postStart of %s", f.Object, c.what()), Says: says})
	}
	f.Next = []string{"mend lifecycle.postStart, which may run before the program listens, or leave it out: " + f.edit()}
}

// eventsIn are those of p that are, or may be, about its container c.
func (s *Snapshot) eventsIn(p *pod, c container, reasons ...string) []*corev1.Event {
	return slices.DeleteFunc(s.eventsOf("pod", p, reasons...), func(e *corev1.Event) bool { return !about(e, c) })
}

// about tells whether an event names this container as its object's field; an event that names none may be about any.
func about(e *corev1.Event, c container) bool {
	path := e.InvolvedObject.FieldPath
	return path == "" || strings.HasSuffix(path, "{"+c.Name+"}")
}

// exitMeaning explains an exit code, with a space before it; "" for what only the program itself knows.
func exitMeaning(code int32) string {
	switch code {
	case 126:
		return " (a shell's for: found, but it cannot be executed)"
	case 127:
		return " (a shell's for: command not found)"
	}
	if name, known := signals[code-128]; known {
		return " (" + name + ")"
	}
	return ""
}

// bySignal tells whether an exit code is a killed program's: 128 and the signal, of which there are 64. 255 is a program's own -1.
func bySignal(code int32) bool { return code > 128 && code <= 128+64 }

var signals = map[int32]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT, or a Go program's own fatal error", 4: "SIGILL: built for another CPU",
	6: "SIGABRT: the program gave up by itself", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL: killed from outside, by the kernel's OOM killer or after the grace period",
	11: "SIGSEGV: a fault in memory", 13: "SIGPIPE", 15: "SIGTERM: asked to end",
}

// backOff says how long it is until the next start.
func backOff(c container, end *corev1.ContainerStateTerminated, now time.Time) string {
	if end.FinishedAt.IsZero() || c.status.RestartCount < 1 {
		return ""
	}
	// The kubelet keeps this to itself but for the message's "back-off 20s restarting", which is not there all the time: it begins with 10 s, and
	// doubles.
	_, message := c.waiting()
	const first, doubled = 10 * time.Second, 5                                              // five times is longer than the longest
	wait, of := min(first<<min(c.status.RestartCount-1, doubled), longestBackOff), "up to " // and begins anew after a long run
	if _, rest, ok := strings.Cut(message, "back-off "); ok {
		text, _, _ := strings.Cut(rest, " ")
		if d, err := time.ParseDuration(text); err == nil {
			wait, of = d, ""
		}
	}
	left := wait - now.Sub(end.FinishedAt.Time)
	if left <= 0 {
		return fmt.Sprintf("of %s%v, which are over: it starts any moment", of, wait)
	}
	return fmt.Sprintf("of %s%v, %v left", of, wait, left.Round(time.Second))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	const most = 200
	if len(line) > most {
		line = line[:most] + "…"
	}
	return line
}
