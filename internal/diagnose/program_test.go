package diagnose

import (
	"strings"
	"testing"
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
		{"well done", withPod("", "", ended("reason: Completed, exitCode: 0")), "program-completes", "make it a Job"},
		{"well done, in a job", strings.Replace(withPod("", "", `containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {reason: Completed, exitCode: 0}}}]`), "Always", "Never", 1), "", ""},
		{"too much memory", withPod("resources: {limits: {memory: 64Mi}}", "", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "its memory limit, 64Mi"},
		{"too much memory, without a limit", withPod("", "", ended("reason: OOMKilled, exitCode: 137")), "program-oom", "it has no limit"},
		{"not in PATH", cannotStart(`"orders": executable file not found in $PATH`), "program-command-not-found", "PATH"},
		{"no file", cannotStart(`"/bin/orders": stat /bin/orders: no such file or directory`), "program-command-not-found", ""},
		{"not executable", cannotStart(`"/etc/hostname": permission denied`), "program-not-executable", ""},
		{"of another architecture", cannotStart(`"/orders": exec format error`), "program-architecture", ""},
		{"by its liveness probe", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + strings.Replace(killing, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:35Z", 1), "program-killed-by-liveness", "GET http://:8080/healthz"},
		{"by its liveness probe, exit code 0", withPod(liveness, "", ended("reason: Completed, exitCode: 0")) + killing, "program-killed-by-liveness", ""},
		{"by itself, long after a liveness kill", withPod(liveness, "", ended("reason: Error, exitCode: 3")) + strings.Replace(killing, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:50:00Z", 1), "program-exits", ""},
		{"another container's kill", withPod(liveness, "", ended("reason: Error, exitCode: 137")) + event("Pod/it", "Killing", "Container other failed liveness probe, will be restarted"), "program-killed", "SIGKILL"},
		{"it runs again", withPod("", "", strings.Replace(running, "state: {running", `lastState: {terminated: {reason: Error, exitCode: 2, finishedAt: "2026-11-28T11:58:00Z"}}, state: {running`, 1)), "program-exits", ""},
		{"it runs again since long", withPod("", "", strings.Replace(running, "state: {running", `lastState: {terminated: {reason: Error, exitCode: 2, finishedAt: "2026-11-28T10:58:00Z"}}, state: {running`, 1)), "", ""},
		{"an init container", withPod("", "initContainers: [{name: migrate, image: x}]",
			`initContainerStatuses: [{name: migrate, ready: false, restartCount: 1, image: "", imageID: "", state: {terminated: {reason: Error, exitCode: 1, finishedAt: "2026-11-28T11:59:40Z"}}}]
`+waits("PodInitializing", "")), "program-exits", "init container migrate ends"},
	})
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
