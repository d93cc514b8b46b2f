package diagnose

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// slowPatience is how long a program may take before it answers, and a load balancer before it knows a pod: 20 to 60 seconds are usual.
const slowPatience = time.Minute

// starting tells whether p is not ready only since it, or a container of it, has not had the time it may take.
func (s *Snapshot) starting(p *pod) bool {
	if s.Now.Sub(p.CreationTimestamp.Time) < slowPatience || s.rolling(p) {
		return true
	}
	for _, c := range containersOf(p) {
		if !c.status.Ready && s.startingContainer(p, c) {
			return true
		}
	}
	return false
}

// startingContainer tells the same of one that runs.
func (s *Snapshot) startingContainer(p *pod, c container) bool {
	return c.status.State.Running != nil && (s.young(c) || s.rolling(p))
}

// young tells whether a container that runs has not yet had the time that a start may take: a startup probe says how long.
func (s *Snapshot) young(c container) bool {
	r := c.status.State.Running
	if r == nil {
		return false
	}
	patience := slowPatience
	if probe := c.StartupProbe; probe != nil {
		patience = time.Duration(probe.InitialDelaySeconds+timingOf(probe).longest()) * time.Second
	}
	return s.Now.Sub(r.StartedAt.Time) < patience
}

// mayOpen makes a warning of f, which is about a port of c that is closed, while c may be still starting. A pod's only container that listens elsewhere
// by then has started, by all that is seen, and a rollout gives it no more time.
func (s *Snapshot) mayOpen(f *Finding, p *pod, c container, elsewhere bool) {
	elsewhere = elsewhere && len(containersOf(p)) == 1
	if s.young(c) || !elsewhere && s.startingContainer(p, c) {
		f.may()
	}
}

// longestStart is how long a program of a rollout may take that says nothing of it, as by a startup probe.
const longestStart = 5 * time.Minute

// rolling tells whether p may be of a rollout that its Deployment has not given up, and still start.
func (s *Snapshot) rolling(p *pod) bool {
	return s.Now.Sub(p.CreationTimestamp.Time) < longestStart && s.progresses(p)
}

// progresses tells whether p may be of a rollout that its Deployment has not given up.
func (s *Snapshot) progresses(p *pod) bool {
	d := s.deployed[s.owner(p)]
	if d == nil {
		return false
	}
	deadline := int32(600)
	if d.Spec.ProgressDeadlineSeconds != nil {
		deadline = *d.Spec.ProgressDeadlineSeconds
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionTrue && c.Reason == "ReplicaSetUpdated" {
			return s.Now.Sub(p.CreationTimestamp.Time) < time.Duration(deadline)*time.Second
		}
	}
	return false
}

// may makes a warning of f, which explains what it would explain as a problem.
func (f *Finding) may() {
	f.Severity, f.explains = Warning, true
	f.Summary = "it may be still starting: " + f.Summary
}

// checkSandboxes is about pods whose node cannot make what their containers run in, their network as a rule.
func checkSandboxes(s *Snapshot) (out []Finding) {
	for i := range s.Pods {
		p := &s.Pods[i]
		if p.DeletionTimestamp != nil || over(p) || hasRun(p) || s.Now.Sub(p.CreationTimestamp.Time) < startPatience {
			continue
		}
		failed := s.eventsOf("pod", p, "FailedCreatePodSandBox")
		if len(failed) == 0 {
			continue
		}
		f := s.ofPod(p, "pod-sandbox-failed", Problem, Node)
		f.Summary = "its node cannot make its sandbox, in which its containers are to run: " + firstLine(cause(failed[0].Message))
		f.Why = "no container of the pod starts before it has one; the kubelet tries again by itself"
		f.State = []Evidence{{From: f.Object.String() + " status.phase", Says: string(p.Status.Phase), At: p.CreationTimestamp.Time}}
		f.Events = told(failed)
		f.Next = []string{"the message is the runtime's or the network plugin's: look whether its pod on " + p.Spec.NodeName + " runs, and whether addresses are left: kubectl get pods -A --field-selector spec.nodeName=" + p.Spec.NodeName}
		if says := tinyLimit(p); says != "" && strings.Contains(failed[0].Message, "OOM-killed") {
			f.Summary, f.Next = says, []string{"raise resources.limits.memory: " + f.edit()}
		}
		out = append(out, f)
	}
	return out
}

// tinyLimit says which container has a memory limit that is less than any program takes, as where a unit was forgotten; "" for none, and where its pod may have
// more, since the others' limits count together with it.
func tinyLimit(p *pod) (says string) {
	const least = 4 << 20
	all := int64(0)
	for _, c := range containersOf(p) {
		q, limited := c.Resources.Limits[corev1.ResourceMemory]
		if all += q.Value(); !limited || q.IsZero() || all >= least {
			return ""
		}
		limit := q.String()
		if q.Value() < 1<<20 {
			limit += " (bytes; was a unit such as Mi forgotten?)"
		}
		says = fmt.Sprintf("%s has a memory limit of %s, in which nothing starts", c.what(), limit)
	}
	return says
}

// over tells whether all of p's containers have ended for good.
func over(p *pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// hasRun tells whether a container of p runs or has run.
func hasRun(p *pod) bool {
	for _, c := range containersOf(p) {
		if c.status.State.Running != nil || c.lastEnd() != nil {
			return true
		}
	}
	return false
}

// checkUnexplained is about each pod that does not work and that no other check has said something of: found is what they have.
func checkUnexplained(s *Snapshot, found []Finding) (out []Finding) {
	explained := map[Ref]bool{}
	for i := range found {
		if found[i].explaining() {
			for _, r := range found[i].about() {
				explained[r] = true
			}
		}
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if unready(*p) && !over(p) && !explained[refOf("pod", p)] && s.Now.Sub(p.CreationTimestamp.Time) >= startPatience {
			if f, ok := s.unexplained(p); ok {
				out = append(out, f)
			}
		}
	}
	return out
}

// unexplained says of a pod as much as its status does; false for one that is not ready since its work is done.
func (s *Snapshot) unexplained(p *pod) (Finding, bool) {
	f := s.ofPod(p, "pod-not-ready", Problem, Node)
	unsaid := "no event says why"
	f.Summary = "it is not ready, and nothing says why"
	if s.isUnread(events) {
		unsaid = "its events, which may say why, were not read"
		f.Summary = "it is not ready; " + unsaid
	}
	f.Why = "until it is ready no Service sends it anything"
	f.State = []Evidence{{From: f.Object.String() + " status.phase", Says: string(p.Status.Phase), At: p.CreationTimestamp.Time}}
	for _, t := range []corev1.PodConditionType{corev1.PodReady, corev1.PodReadyToStartContainers} {
		if c := condition(p, t); c != nil && c.Status != corev1.ConditionTrue {
			f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
		}
	}
	all := s.eventsOf("pod", p)
	f.Events = told(all)
	f.Next = []string{"kubectl describe pod " + p.Name + inOf(p)}
	busy, works, some := false, true, false // whether each container is ready or has done its work, and some have
	for _, c := range containersOf(p) {
		running, end := c.status.State.Running, c.status.State.Terminated
		reason, message := c.waiting()
		finished := end != nil && end.ExitCode == 0 && (c.init && !c.sidecar() || p.Spec.RestartPolicy != corev1.RestartPolicyAlways)
		works, some = works && (finished || c.status.Ready), some || finished && !c.init
		if c.status.Ready || finished || f.Container != "" {
			continue
		}
		f.Container = c.Name
		switch {
		case running != nil && c.init && !c.sidecar():
			busy = true
			f.Direction, f.log = Program, currentLog
			f.Summary = fmt.Sprintf("%s still runs, and the containers behind it wait", c.what())
			f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %s", f.Object, c.field("state.running")), Says: "running", At: running.StartedAt.Time})
		case running != nil:
			f.Direction, f.log = Probes, currentLog
			f.Summary = fmt.Sprintf("%s runs and is not ready, and %s", c.what(), unsaid)
			for _, probe := range c.probes() {
				f.State = append(f.State, Evidence{From: fmt.Sprintf("%s %sProbe of %s", f.Object, probe.kind, c.what()), Says: asked(probe.Probe) + ", " + timing(probe.Probe)})
			}
		case len(all) > 0 && all[0].Reason == "Pulling":
			busy = true
			f.Direction = Image
			f.Summary = fmt.Sprintf("%s: its node still pulls image %s", c.what(), c.Image)
		case reason != "":
			f.Summary = fmt.Sprintf("%s does not start: %s", c.what(), firstLine(worded(reason, message)))
		default:
			f.Container = ""
			f.Summary = "its node has told nothing of its containers"
		}
		if f.log == currentLog {
			f.Next = append([]string{logsOf(p, c)}, f.Next...)
		}
	}
	switch {
	case works && some:
		return f, false
	case busy:
		f.Severity, f.explains = Warning, true
	case s.starting(p):
		f.may()
	}
	return f, true
}
