package diagnose

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ended is the status of a container that waits after an end, 20 seconds ago.
func ended(end string) string {
	return `containerStatuses: [{name: app, ready: false, restartCount: 3, image: "", imageID: "",
  state: {waiting: {reason: CrashLoopBackOff, message: "back-off 40s restarting failed container=app pod=it_shop(u1)"}},
  lastState: {terminated: {finishedAt: "2026-11-28T11:59:40Z", startedAt: "2026-11-28T11:59:10Z", ` + end + `}}}]`
}

func TestProgramsThatEnd(t *testing.T) {
	const startError = `failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: `
	cannotStart := func(why string) string {
		return withPod("command: [orders]", "", ended(`reason: StartError, exitCode: 128, message: '`+startError+why+`: unknown'`))
	}
	liveness := `livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}`
	killing := event("Pod/it", "Killing", "Container app failed liveness probe, will be restarted")
	try(t, []tried{
		{"by itself", withPod("", "", ended("reason: Error, exitCode: 3")), "program-exits", "exit code 3"},
		{"a shell's command", withPod("", "", ended("reason: Error, exitCode: 127")), "program-command-not-found", "command not found"},
		{"a fault in memory", withPod("", "", ended("reason: Error, exitCode: 139")), "program-killed", "SIGSEGV"},
		{"-1", withPod("", "", ended("reason: Error, exitCode: 255")), "program-exits", "exit code 255"},
		{"nobody knows how", withPod("", "", waits("CrashLoopBackOff", "back-off 40s restarting")), "program-exits", "how is not known"},
		{"well done", withPod("", "", ended("reason: Completed, exitCode: 0")), "program-completes", "make it a Job"},
		{"well done, in a job", strings.Replace(withPod("", "", `containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {reason: Completed, exitCode: 0}}}]`), "Always", "Never", 1), "", ""},
		{"too much memory", withPod("resources: {limits: {memory: 64Mi}}", "", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "its memory limit, 64Mi"},
		{"too much memory, without a limit", withPod("", "", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "it has no limit"},
		{"too much memory, of its pod's", withPod("", "resources: {limits: {memory: 64Mi}}", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "its pod's memory limit, 64Mi"},
		{"... and the change", withPod("", "resources: {limits: {memory: 64Mi}}", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "raise the pod's own resources.limits.memory"},
		{"its working directory", withPod("workingDir: /root", "", ended(`reason: StartError, exitCode: 128, message: 'OCI runtime create failed: runc create failed: unable to start container process: chdir to cwd ("/root") set in config.json failed: permission denied: unknown'`)), "program-start-failed", "correct workingDir"},
		{"a folder over a file", withPod("", "", ended(`reason: StartError, exitCode: 128, message: 'OCI runtime create failed: runc create failed: unable to start container process: error during container init: error mounting "/var/lib/kubelet/pods/u1/volumes/x" to rootfs at "/etc/hosts.d": mount: not a directory: Are you trying to mount a directory onto a file (or vice-versa)?: no such file or directory'`)), "program-start-failed", "correct the volumeMount"},
		{"not in PATH", cannotStart(`"orders": executable file not found in $PATH`), "program-command-not-found", "PATH"},
		{"no file", cannotStart(`"/bin/orders": stat /bin/orders: no such file or directory`), "program-command-not-found", ""},
		{"not executable", cannotStart(`"/etc/hostname": permission denied`), "program-not-executable", ""},
		{"of another architecture", cannotStart(`"/orders": exec format error`), "program-architecture", ""},
		{"by its liveness probe", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + strings.Replace(killing, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:35Z", 1), "program-killed-by-liveness", "GET http://:8080/healthz"},
		{"by its liveness probe, exit code 0", withPod(liveness, "", ended("reason: Completed, exitCode: 0")) + killing, "program-killed-by-liveness", ""},
		{"a sidecar, by its liveness probe", strings.NewReplacer("containerStatuses", "initContainerStatuses", "name: app, ready", "name: proxy, ready").Replace(withPod("", "initContainers: [{name: proxy, image: x, restartPolicy: Always, livenessProbe: {tcpSocket: {port: 1}}}]", ended("reason: Completed, exitCode: 0"))) + event("Pod/it", "Killing", "Init container proxy failed liveness probe"), "program-killed-by-liveness", "init container proxy is killed"},
		{"by its postStart hook", withPod("lifecycle: {postStart: {exec: {command: [warm]}}}", "", ended("reason: Completed, exitCode: 0")) + strings.Replace(event("Pod/it", "FailedPostStartHook", "PostStartHook failed"), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:39Z", 1), "program-hook-failed", "mend lifecycle.postStart"},
		{"by itself, after a run whose hook failed", withPod("lifecycle: {postStart: {exec: {command: [warm]}}}", "", ended("reason: Completed, exitCode: 0")) + strings.Replace(event("Pod/it", "FailedPostStartHook", "PostStartHook failed"), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:50:00Z", 1), "program-completes", ""},
		{"by its postStart hook, and why", withPod("lifecycle: {postStart: {httpGet: {port: 1}}}", "", waits("PostStartHookError", "HTTP lifecycle hook (/) for Container \"app\" failed - error: connection refused")), "program-hook-failed", "its postStart hook fails: connection refused"},
		{"by a probe that asks a wrong port", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + killing + event("Pod/it", "Unhealthy", "Liveness probe failed: dial tcp 10.1.1.1:8080: connect: connection refused"), "program-killed-by-liveness", "its liveness probe, GET http://:8080/healthz, fails: nothing listens where it asks"},
		{"... and if it is slow", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + killing + event("Pod/it", "Unhealthy", "Liveness probe failed: dial tcp 10.1.1.1:8080: connect: connection refused"), "program-killed-by-liveness", "if it is only slow, give it more time"},
		{"by a probe that speaks HTTPS", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + killing + event("Pod/it", "Unhealthy", "Liveness probe failed: http: server gave HTTP response to HTTPS client"), "program-killed-by-liveness", "leave out scheme: HTTPS"},
		{"by itself, long after a liveness kill", withPod(liveness, "", ended("reason: Error, exitCode: 3")) + strings.Replace(killing, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:50:00Z", 1), "program-exits", ""},
		{"another container's kill", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + event("Pod/it", "Killing", "Container other failed liveness probe, will be restarted"), "program-killed", "SIGKILL"},
		{"it runs again", withPod("", "", strings.Replace(running, "state: {running", `lastState: {terminated: {reason: Error, exitCode: 2, finishedAt: "2026-11-28T11:58:00Z"}}, state: {running`, 1)), "program-exits", ""},
		{"it runs again since long", withPod("", "", strings.Replace(running, "state: {running", `lastState: {terminated: {reason: Error, exitCode: 2, finishedAt: "2026-11-28T10:58:00Z"}}, state: {running`, 1)), "", ""},
		{"an init container", withPod("", "initContainers: [{name: migrate, image: x}]",
			`initContainerStatuses: [{name: migrate, ready: false, restartCount: 1, image: "", imageID: "", state: {terminated: {reason: Error, exitCode: 1, finishedAt: "2026-11-28T11:59:40Z"}}}]
`+waits("PodInitializing", "")), "program-exits", "init container migrate ends"},
	})
}

// What the kubelet does not say of the wait for the next start is known by the restarts.
func TestTheWaitForTheNextStart(t *testing.T) {
	now := time.Now()
	end := &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now.Add(-3 * time.Second))}
	for restarts, want := range map[int32]string{0: "", 1: "of up to 10s, 7s left", 3: "of up to 40s, 37s left", 6: "of up to 5m0s, 4m57s left", 100: "of up to 5m0s, 4m57s left"} {
		if got := backOff(container{status: corev1.ContainerStatus{RestartCount: restarts}}, end, now); got != want {
			t.Errorf("after %d restarts: %q, want %q", restarts, got, want)
		}
	}
}

// What is over for good is told as that.
func TestPodsThatHaveEnded(t *testing.T) {
	once := func(phase, reason, policy string, exitCode string) string {
		pod := strings.NewReplacer("Always", policy, "phase: Pending", "phase: "+phase).Replace(
			withPod("", "", reason+`containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {reason: Error, exitCode: `+exitCode+`}}}]`))
		return pod
	}
	try(t, []tried{
		{"succeeded all the same", once("Succeeded", "", "Never", "1"), "", ""},
		{"its node has ended it", once("Failed", "reason: NodeShutdown\n", "Never", "137"), "pod-failed", ""},
		{"its deadline has", once("Failed", "reason: DeadlineExceeded\n", "Never", "143"), "pod-failed", "raise activeDeadlineSeconds"},
		{"its Job's deadline has", strings.Replace(once("Failed", "reason: DeadlineExceeded\n", "Never", "143"), "uid: u1", "uid: u1, ownerReferences: [{apiVersion: batch/v1, kind: Job, name: work, uid: j, controller: true}]", 1), "", ""},
		{"by itself", once("Failed", "", "Never", "1"), "program-exits", "kubectl logs it -n shop -c app"},
	})
	for started, want := range map[string]Severity{"11:59:59": Problem, "11:59:50": Warning} {
		last := `lastState: {terminated: {reason: Error, exitCode: 2, startedAt: "2026-11-28T11:59:40Z", finishedAt: "2026-11-28T11:59:40Z"}}, state: {running`
		again := withPod("", "", strings.NewReplacer("state: {running", last, "T11:00:00Z", "T"+started+"Z").Replace(running))
		if found := load(t, again).report(nil).Findings; len(found) != 1 || found[0].Severity != want {
			t.Errorf("of a loop, running again since %s: %+v, want a %s", started, found, want)
		}
	}
	f := load(t, once("Failed", "", "Never", "1")).report(nil).Findings[0]
	if strings.Contains(strings.Join(f.Next, ""), "--previous") || !strings.Contains(f.Why, "restartPolicy Never") || f.Severity != Problem || f.log != currentLog {
		t.Errorf("a pod that is not restarted: %+v", f)
	}
	const ofJob = "metadata: {ownerReferences: [{apiVersion: batch/v1, kind: Job, name: it, uid: j1, controller: true}], "
	job := "\n---\nkind: Job\nmetadata: {name: it, uid: j1}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\nstatus: {active: 1}\n"
	f = load(t, strings.Replace(once("Failed", "", "Never", "1"), "metadata: {", ofJob, 1)+job).report(nil).Findings[0]
	if f.Severity != Warning || !strings.Contains(f.Why, "its Job goes on") {
		t.Errorf("a Job's first try: %+v", f)
	}
}

// Passwords are in arguments.
func TestArgumentsAreNotTold(t *testing.T) {
	for _, documents := range []string{
		withPod("command: [orders, --password=s3cret]", "", ended("reason: StartError, exitCode: 128, message: 'exec: \"orders\": executable file not found in $PATH'")),
		withPod("args: [--password=s3cret, s3cret]", "", ended("reason: StartError, exitCode: 128, message: m")),
		unreadyPod("readinessProbe: {exec: {command: [check, s3cret]}}", "11:00:00") + event("Pod/it", "Unhealthy", "Readiness probe failed: no"),
	} {
		found := load(t, documents).report(nil).Findings
		if text := fmt.Sprintf("%+v", found); len(found) != 1 || strings.Contains(text, "s3cret") {
			t.Errorf("found %s", text)
		}
	}
}

func TestWhatIsTold(t *testing.T) {
	f := load(t, withPod("", "", ended("reason: Error, exitCode: 3"))).report(nil).Findings[0]
	var state []string
	for _, e := range f.State {
		state = append(state, e.Says)
	}
	got := strings.Join(state, "\n")
	for _, want := range []string{"back-off 40s restarting", "Error, exit code 3 after 30s", "of 40s, 20s left"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
	if f.log != previousLog || f.Container != "app" {
		t.Errorf("it asks for log %v of %q", f.log, f.Container)
	}
}
