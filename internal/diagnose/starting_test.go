package diagnose

import (
	"strings"
	"testing"
)

// unreadyPod is a pod with a container that runs since that time and is not ready.
func unreadyPod(container, since string) string {
	status := strings.NewReplacer(`"True"`, `"False"`, "ready: true", "ready: false", "2026-11-28T11:00:00Z", "2026-11-28T"+since+"Z").Replace(running)
	return withPod(container, "", status)
}

func TestPodsThatNothingElseExplains(t *testing.T) {
	const noNetwork = `Failed to create pod sandbox: plugin type="bridge" failed: no IP addresses available in range set`
	nowhere := strings.Replace(withPod("", "schedulerName: night-scheduler", ""), "  nodeName: node1\n", "", 1)
	try(t, []tried{
		{"no sandbox", withPod("", "", waits("ContainerCreating", "")) + event("Pod/it", "FailedCreatePodSandBox", noNetwork), "pod-sandbox-failed", "no IP addresses"},
		{"no sandbox, once", withPod("", "", running) + event("Pod/it", "FailedCreatePodSandBox", noNetwork), "", ""},
		{"no scheduler", nowhere, "pod-no-scheduler", "leave schedulerName out"},
		{"running, without events", unreadyPod("", "11:00:00") + aService("selector: {app: it}, ports: [{port: 80}]"), "pod-not-ready", "kubectl logs it -n shop -c app"},
		{"a node that says nothing", withPod("", "", ""), "pod-not-ready", "told nothing"},
		{"a large image", withPod("", "", waits("ContainerCreating", "")) + event("Pod/it", "Pulling", "Pulling image x"), "pod-not-ready", "still pulls"},
		{"new", strings.Replace(withPod("", "", ""), "uid: u1", "uid: u1, creationTimestamp: '2026-11-28T11:59:50Z'", 1), "", ""},
		{"its node is none", strings.Replace(withPod("", "", ""), "node1", "node2", 1) + "\n---\nkind: Node\nmetadata: {name: node1}\n", "node-absent", "if node1 is meant"},
		{"too little memory for its volumes", withPod("resources: {limits: {memory: 256}}", "", waits("ContainerCreating", "")) + event("Pod/it", "FailedMount", `MountVolume.SetUp failed for volume "token" : write /x/token: no space left on device`), "volume-mount-failed", "was a unit such as Mi forgotten"},
		{"too little memory for its sandbox", withPod("resources: {limits: {memory: 1Mi}}", "", waits("ContainerCreating", "")) + event("Pod/it", "FailedCreatePodSandBox", "container init was OOM-killed (memory limit too low?)"), "pod-sandbox-failed", "raise resources.limits.memory"},
		{"its node is gone", unreadyPod("", "11:00:00") + "\n---\nkind: Node\nmetadata: {name: node1}\nstatus: {conditions: [{type: Ready, status: Unknown, reason: R, message: m}]}\n", "node-not-ready", ""},
		{"one container has done its work", strings.NewReplacer("Always", "Never", "containers: [{", "containers: [{name: b, image: x}, {", "type: Ready, status: \"True\"", "type: Ready, status: \"False\"",
			"containerStatuses: [{", `containerStatuses: [{name: b, ready: false, restartCount: 0, image: "", imageID: "", state: {terminated: {reason: Completed, exitCode: 0}}}, {`).Replace(withPod("", "", running)), "", ""},
	})
}

// Of two pods of a workload, one of which has only just started, the other one's finding is told.
func TestTheGraverPodIsTold(t *testing.T) {
	first := strings.NewReplacer("name: it,", "name: a,", "u1", "u2").Replace(owned(unreadyPod("", "11:59:30")))
	found := load(t, first, owned(unreadyPod("", "11:00:00")), strings.NewReplacer("name: it,", "name: b,", "u1", "u3").Replace(owned(unreadyPod("", "11:59:30")))).report(nil).Findings
	if len(found) != 1 || found[0].Severity != Problem || found[0].Object.Name != "it" || len(found[0].Also) != 2 || strings.Contains(found[0].Summary, "may be") {
		t.Errorf("found %+v", found)
	}
}

// A slow start is a warning, until it takes longer than it may, and explains what a broken one would.
func TestSlowStarts(t *testing.T) {
	const probe = "readinessProbe: {tcpSocket: {port: 8080}}"
	refused := event("Pod/it", "Unhealthy", "Readiness probe failed: dial tcp 10.1.1.1:8080: connect: connection refused")
	started := strings.Replace(event("Pod/it", "Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503"), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:55Z", 1)
	rolling := strings.Replace(orders, `status: "False", reason: ProgressDeadlineExceeded`, `status: "True", reason: ReplicaSetUpdated`, 1)
	young := func(pod string) string {
		return strings.Replace(pod, "uid: u1", "uid: u1, creationTimestamp: '2026-11-28T11:56:00Z'", 1)
	}
	startup := func(since string) string {
		return strings.Replace(unreadyPod("startupProbe: {httpGet: {port: 8080}, failureThreshold: 30}", since), "started: true", "started: false", 1) + started
	}
	service := aService("selector: {app: it}, ports: [{port: 80}]")
	gate := func(since string) string {
		return withPod("", "readinessGates: [{conditionType: example.test/ready}]", strings.NewReplacer(`type: Ready, status: "True"`, `type: Ready, status: "False"`,
			"type: ContainersReady", "lastTransitionTime: '2026-11-28T"+since+"Z', type: ContainersReady").Replace(running))
	}
	for _, c := range []struct {
		name, documents, id string
		severity            Severity
	}{
		{"the first minute", unreadyPod(probe, "11:59:00") + strings.Replace(refused, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:55Z", 1), "probe-refused", Problem},
		{"less than a minute", unreadyPod(probe, "11:59:10") + strings.Replace(refused, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:55Z", 1) + service, "probe-refused", Warning},
		{"a path is not there however long", unreadyPod(probe, "11:58:50") + event("Pod/it", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404"), "probe-path", Problem},
		{"within what a startup probe gives", startup("11:56:00") + service, "probe-status", Warning},
		{"after that", startup("11:54:00"), "probe-status", Problem},
		{"... with a timeout above its period", strings.Replace(startup("11:54:00"), "failureThreshold: 30", "failureThreshold: 30, timeoutSeconds: 20", 1), "probe-status", Warning},
		{"in a rollout", owned(young(unreadyPod(probe, "11:56:00"))) + refused + rolling + service, "probe-refused", Warning},
		{"in a rollout, for six minutes", owned(strings.Replace(unreadyPod(probe, "11:54:00"), "uid: u1", "uid: u1, creationTimestamp: '2026-11-28T11:54:00Z'", 1)) + refused + rolling, "probe-refused", Problem},
		{"in one that was given up", owned(young(unreadyPod(probe, "11:56:00"))) + refused + orders, "probe-refused", Problem},
		{"... where it listens elsewhere", owned(young(unreadyPod(probe, "11:56:00"))) + refused + rolling + "\n---\nkind: Port\nport: 9090\naddress: 1\n", "probe-refused", Problem},
		{"... for less than a minute", owned(young(unreadyPod(probe, "11:59:10"))) + strings.Replace(refused, "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T11:59:55Z", 1) + rolling + "\n---\nkind: Port\nport: 9090\naddress: 1\n", "probe-refused", Warning},
		{"without events", unreadyPod(probe, "11:59:30") + service, "pod-not-ready", Warning},
		{"a gate", gate("11:59:30") + service, "readiness-gate", Warning},
		{"a gate, after a minute", gate("11:58:00"), "readiness-gate", Problem},
	} {
		found := load(t, c.documents).report(nil).Findings
		if len(found) != 1 || found[0].ID != c.id || found[0].Severity != c.severity {
			t.Errorf("%s: found %+v, want one %s %s", c.name, found, c.severity, c.id)
		}
	}
}
