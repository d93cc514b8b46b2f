package diagnose

import (
	"strings"
	"testing"
)

func TestProbesThatFail(t *testing.T) {
	failing := func(probe, message string) string {
		return withPod("ports: [{name: http, containerPort: 8080}], readinessProbe: "+probe, "", notReady) + event("Pod/it", "Unhealthy", "Readiness probe failed: "+message)
	}
	startsSlowly := func(more, message, at string) string {
		return withPod("livenessProbe: {tcpSocket: {port: 8080}, failureThreshold: 30}"+more, "", strings.Replace(running, `type: ContainersReady, status: "True"`, `type: ContainersReady, status: "True", lastTransitionTime: "2026-11-28T11:02:00Z"`, 1)) +
			strings.Replace(event("Pod/it", "Unhealthy", message), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T"+at+"Z", 1)
	}
	const get = "{httpGet: {path: /healthz, port: 8080}}"
	try(t, []tried{
		{"refused", failing("{httpGet: {port: 9090}}", `Get "http://10.113.1.27:9090/": dial tcp 10.113.1.27:9090: connect: connection refused`), "probe-refused", "declares 8080 and not 9090"},
		{"no path", failing(get, "HTTP probe failed with statuscode: 404"), "probe-path", "GET http://:8080/healthz"},
		{"not well", failing(get, "HTTP probe failed with statuscode: 503"), "probe-status", "kubectl logs it -n shop -c app"},
		{"late", failing(get, `Get "http://10.113.1.30:8080/healthz": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`), "probe-timeout", "timeoutSeconds"},
		{"HTTPS", failing("{httpGet: {port: 8080, scheme: HTTPS}}", `Get "https://10.113.1.28:8080/": http: server gave HTTP response to HTTPS client`), "probe-scheme", "leave out scheme"},
		{"a command", failing("{exec: {command: [/sample, dance]}}", `sample: unknown command "dance"`), "probe-exec", "unknown command"},
		{"an answer to the run before", strings.Replace(failing(get, "HTTP probe failed with statuscode: 503"), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T10:00:00Z", 1), "pod-not-ready", "no event says why"},
		{"another container's", strings.Replace(failing(get, "HTTP probe failed with statuscode: 503"), "name: it}\nreason", "name: it, fieldPath: 'spec.containers{other}'}\nreason", 1), "pod-not-ready", "no event says why"},
		{"an answer to a pod that had the name before", strings.Replace(failing(get, "HTTP probe failed with statuscode: 503"), "name: it}\nreason", "name: it, uid: u0}\nreason", 1), "pod-not-ready", "no event says why"},
		{"failures in the past", withPod("readinessProbe: "+get, "", running) + event("Pod/it", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503"), "", ""},
		{"the kubelet has killed it for that", withPod("startupProbe: {tcpSocket: {port: 9}}", "", strings.NewReplacer("started: true", "started: false", "state: {running", `lastState: {terminated: {reason: Completed, exitCode: 0, finishedAt: "2026-11-28T11:59:01Z"}}, state: {running`).Replace(notReady)) +
			event("Pod/it", "Killing", "Container app failed startup probe, will be restarted") + event("Pod/it", "Unhealthy", "Startup probe failed: dial tcp 10.113.1.38:9: connect: connection refused"), "program-killed-by-startup", ""},
		{"another container ends", strings.NewReplacer("containers: [{", "containers: [{name: b, image: x}, {",
			"containerStatuses: [{", `containerStatuses: [{name: b, ready: false, restartCount: 2, image: "", imageID: "", state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {reason: Error, exitCode: 1}}}, {`).
			Replace(failing(get, "HTTP probe failed with statuscode: 404")), "program-exits probe-path", ""},
		{"what is slow explains nothing", withPod("readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 5}", "", notReady) + aService("selector: {app: it}, ports: [{port: 80}]"), "pod-not-ready probe-timing", ""},
		{"no such port", withPod("ports: [{name: http, containerPort: 8080}], livenessProbe: {tcpSocket: {port: htpp}}", "", running), "probe-port-name-absent", "write http, which there is"},
		{"timing", withPod("readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1, timeoutSeconds: 5}", "", running), "probe-timing", "set periodSeconds to 5 or more"},
		{"it begins too early", startsSlowly("", "Liveness probe failed: dial tcp 10.113.1.38:8080: connect: connection refused", "11:00:12"), "probe-early", "set initialDelaySeconds above 12"},
		{"... and waits for a startup probe", startsSlowly(", startupProbe: {tcpSocket: {port: 8080}}", "Liveness probe failed: dial tcp 10.113.1.38:8080: connect: connection refused", "11:00:12"), "", ""},
		{"readiness may fail at the start", startsSlowly("", "Readiness probe failed: HTTP probe failed with statuscode: 503", "11:00:12"), "", ""},
		{"it failed later", startsSlowly("", "Liveness probe failed: HTTP probe failed with statuscode: 503", "11:30:00"), "", ""},
		{"it failed before it was ready", startsSlowly(", readinessProbe: {tcpSocket: {port: 8080}}", "Liveness probe failed: HTTP probe failed with statuscode: 503", "11:01:30"), "probe-early", "above 90"},
		{"a gate", withPod("", "readinessGates: [{conditionType: example.test/ready}]", strings.Replace(running, `type: Ready, status: "True"`, `type: Ready, status: "False"`, 1)), "readiness-gate", "example.test/ready"},
	})
}
