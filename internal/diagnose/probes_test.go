package diagnose

import (
	"fmt"
	"strings"
	"testing"
)

func TestProbesThatFail(t *testing.T) {
	failing := func(probe, message string) string {
		return withPod("ports: [{name: http, containerPort: 8080}], readinessProbe: "+probe, "", notReady) + event("Pod/it", "Unhealthy", "Readiness probe failed: "+message)
	}
	// early is a container that runs since 11:00:00 and whose liveness probe has failed from first to last, its pod being ready again since that time.
	early := func(more, message, first, last, ready string) string {
		return withPod("livenessProbe: {tcpSocket: {port: 8080}, failureThreshold: 30}"+more, "", strings.Replace(running, `type: ContainersReady, status: "True"`, `type: ContainersReady, status: "True", lastTransitionTime: "2026-11-28T`+ready+`Z"`, 1)) +
			strings.Replace(event("Pod/it", "Unhealthy", message), "kind: Event", "kind: Event\nfirstTimestamp: 2026-11-28T"+first+"Z\nlastTimestamp: 2026-11-28T"+last+"Z", 1)
	}
	since := func(documents, started, end, ended string) string {
		return strings.NewReplacer(`startedAt: "2026-11-28T11:00:00Z"`, `startedAt: "2026-11-28T`+started+`Z"`, "state: {running", "lastState: {terminated: {"+end+`, finishedAt: "2026-11-28T`+ended+`Z"}}, state: {running`).Replace(documents)
	}
	const refused, status503, ready = "Liveness probe failed: dial tcp 10.113.1.38:8080: connect: connection refused", "Liveness probe failed: HTTP probe failed with statuscode: 503", ", readinessProbe: {tcpSocket: {port: 8080}}"
	killing := func(at string) string {
		return strings.Replace(event("Pod/it", "Killing", "Container app failed liveness probe, will be restarted"), "kind: Event", "kind: Event\nlastTimestamp: 2026-11-28T"+at+"Z", 1)
	}
	const get = "{httpGet: {path: /healthz, port: 8080}}"
	// lost is a pod that is ready again, and what its readiness probe has got: each what, first and last.
	lost := func(again string, events ...[3]string) string {
		out := withPod("readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 10}", "", strings.Replace(running, `type: Ready, status: "True"`, `type: Ready, status: "True", lastTransitionTime: "2026-11-28T`+again+`Z"`, 1))
		for _, e := range events {
			out += strings.NewReplacer("kind: Event", "kind: Event\nfirstTimestamp: 2026-11-28T"+e[1]+"Z\nlastTimestamp: 2026-11-28T"+e[2]+"Z", "unhealthyit", "unhealthy-"+e[0]).Replace(event("Pod/it", "Unhealthy", "Readiness probe failed: "+e[0]))
		}
		return out
	}
	often := func(n int, documents string) string {
		return strings.ReplaceAll(documents, "kind: Event\n", fmt.Sprintf("kind: Event\ncount: %d\n", n))
	}
	try(t, []tried{
		{"readiness lost", often(3, lost("11:58:00", [3]string{"503", "11:57:00", "11:57:50"})), "readiness-lost", "its log of that time"},
		{"readiness lost, long ago", often(3, lost("11:48:00", [3]string{"503", "11:47:00", "11:47:50"})), "", ""},
		{"readiness lost at the start", often(3, lost("11:01:00", [3]string{"503", "11:00:10", "11:00:50"})), "", ""},
		{"readiness that came late", often(330, lost("11:58:00", [3]string{"refused", "11:00:10", "11:54:00"}, [3]string{"503", "11:57:00", "11:57:50"})), "", ""},
		{"readiness that came, and was lost later", often(3, lost("11:58:00", [3]string{"refused", "11:00:10", "11:00:40"}, [3]string{"503", "11:57:00", "11:57:50"})), "readiness-lost", ""},
		{"readiness that came late, in two words", often(340, lost("11:58:00", [3]string{"refused", "11:00:10", "11:56:50"}, [3]string{"503", "11:57:00", "11:57:50"})), "", ""},
		{"readiness that comes and goes from the start on", often(180, lost("11:59:58", [3]string{"503", "11:00:10", "11:59:50"})), "readiness-lost", "its log of that time"},
		{"readiness that comes and goes, and an attempt has failed since", often(180, lost("11:59:30", [3]string{"503", "11:00:10", "11:59:50"})), "readiness-lost", ""},
		{"readiness that comes late in each run", strings.NewReplacer(`startedAt: "2026-11-28T11:00:00Z"`, `startedAt: "2026-11-28T11:55:00Z"`).Replace(often(4, lost("11:55:21", [3]string{"refused", "11:00:01", "11:55:11"}))), "", ""},
		{"readiness that came at once, and one attempt since", strings.NewReplacer(`startedAt: "2026-11-28T11:00:00Z"`, `startedAt: "2026-11-28T11:55:00Z"`).Replace(often(3, lost("11:55:21", [3]string{"refused", "11:55:01", "11:58:11"}))), "", ""},
		{"readiness that came late, in words by turns", strings.NewReplacer(`startedAt: "2026-11-28T11:00:00Z"`, `startedAt: "2026-11-28T11:50:00Z"`).Replace(often(24, lost("11:58:00", [3]string{"refused", "11:50:10", "11:57:45"}, [3]string{"503", "11:50:20", "11:57:55"}))), "", ""},
		{"readiness lost in several words", often(2, lost("11:58:00", [3]string{"503", "11:57:00", "11:57:20"}, [3]string{"500", "11:57:30", "11:57:50"})), "readiness-lost", "its log of that time"},
		{"readiness lost for long", often(25, lost("11:58:00", [3]string{"503", "11:40:00", "11:54:00"})), "readiness-lost", ""},
		{"an attempt that failed, and did not matter", often(3, lost("11:01:00", [3]string{"503", "11:57:00", "11:57:00"})), "", ""},
		{"one attempt, and others have lost it", lost("11:58:00", [3]string{"503", "11:57:50", "11:57:50"}), "", ""},
		{"attempts long before others have lost it", often(3, lost("11:58:00", [3]string{"503", "11:07:00", "11:08:00"})), "", ""},
		{"what could not be run", strings.ReplaceAll(often(3, lost("11:58:00", [3]string{"unknown state", "11:57:00", "11:57:50"})), "Readiness probe failed", "Readiness probe errored and resulted in unknown state"), "", ""},
		{"a slow start with a long timeout", strings.Replace(often(3, lost("11:03:10", [3]string{"timeout", "11:01:00", "11:03:00"})), "periodSeconds: 10", "periodSeconds: 10, timeoutSeconds: 60", 1), "probe-timing", ""},
		{"readiness that came when the startup probe had succeeded", strings.NewReplacer("readinessProbe:", "startupProbe: {tcpSocket: {port: 8080}, failureThreshold: 300}, readinessProbe:").Replace(often(3, lost("11:53:00", [3]string{"503", "11:52:00", "11:52:50"}))), "", ""},
		{"gRPC, and no more is known", failing("{grpc: {port: 9090}}", `timeout: failed to connect service "10.113.1.27:9090" within 1s: context deadline exceeded`), "probe-timeout", "no connection comes about"},
		{"a liveness probe's command is not there", withPod("livenessProbe: {exec: {command: [pgrep]}, periodSeconds: 2}", "", running) + event("Pod/it", "Unhealthy", `(combined from similar events): Liveness probe errored and resulted in unknown state: unable to start container process: exec: "pgrep": executable file not found in $PATH: unknown`), "probe-command", "the command is not in the container"},
		{"refused", failing("{httpGet: {port: 9090}}", `Get "http://10.113.1.27:9090/": dial tcp 10.113.1.27:9090: connect: connection refused`), "probe-refused", "declares 8080 and not 9090"},
		{"another host that refuses", failing("{httpGet: {port: 80, host: 10.9.9.9}}", `Get "http://10.9.9.9:80/": dial tcp 10.9.9.9:80: connect: connection refused`), "probe-refused", "leave out host"},
		{"another host that there is none of", failing("{httpGet: {port: 80, host: nowhere.test}}", `Get "http://nowhere.test:80/": dial tcp: lookup nowhere.test: no such host`), "probe-failing", "leave out host"},
		{"no path", failing(get, "HTTP probe failed with statuscode: 404"), "probe-path", "GET http://:8080/healthz"},
		{"not well", failing(get, "HTTP probe failed with statuscode: 503"), "probe-status", "kubectl logs it -n shop -c app"},
		{"late", failing(get, `Get "http://10.113.1.30:8080/healthz": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`), "probe-timeout", "timeoutSeconds"},
		{"HTTPS", failing("{httpGet: {port: 8080, scheme: HTTPS}}", `Get "https://10.113.1.28:8080/": http: server gave HTTP response to HTTPS client`), "probe-scheme", "leave out scheme"},
		{"a command", failing("{exec: {command: [/sample, dance]}}", `sample: unknown command "dance"`), "probe-exec", "unknown command"},
		{"a command that misses a file of its own", failing("{exec: {command: [cat, /tmp/healthy]}}", "cat: /tmp/healthy: No such file or directory"), "probe-exec", "cat: /tmp/healthy"},
		{"a command that may not read one", failing("{exec: {command: [cat, /tmp/healthy]}}", "cat: /tmp/healthy: Permission denied"), "probe-exec", "Permission denied"},
		{"a command that is refused itself", failing("{exec: {command: [redis-cli, ping]}}", "Could not connect to Redis at 127.0.0.1:6379: Connection refused"), "probe-exec", "Connection refused"},
		{"a command whose own calls time out", failing("{exec: {command: [check]}}", "curl: (28) Connection timed out after 1000 milliseconds"), "probe-exec", "curl: (28)"},
		{"a command that asks by HTTP", failing("{exec: {command: [check]}}", "HTTP probe failed with statuscode: 404"), "probe-exec", "404"},
		{"a command that is too slow", failing("{exec: {command: [sleep, '9']}}", `command timed out: "sleep 9" timed out after 1s`), "probe-timeout", "timeoutSeconds"},
		{"a command that is too slow, of older kubelets", failing("{exec: {command: [sleep, '9']}}", `command "sleep 9" timed out`), "probe-timeout", "timeoutSeconds"},
		{"a command that speaks of commands", failing("{exec: {command: [check]}}", `command "ping" is unknown: no such file or directory`), "probe-exec", "is unknown"},
		{"a command that is not there", strings.Replace(failing("{exec: {command: [nope]}}", `OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file not found in $PATH`), "probe failed", "probe errored and resulted in unknown state", 1), "probe-command", "is not in the container"},
		{"a command that may not be executed", failing("{exec: {command: [/etc/hostname]}}", `OCI runtime exec failed: exec failed: unable to start container process: exec: "/etc/hostname": permission denied`), "probe-command", "may not be executed"},
		{"a command in a folder that is not there", strings.Replace(failing("{exec: {command: [check]}}", `OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd ("/data") set in config.json failed: no such file or directory`), "probe failed", "probe errored and resulted in unknown state", 1), "probe-command", "correct workingDir"},
		{"a command in a folder that is closed to it", failing("{exec: {command: [check]}}", `OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd ("/root") set in config.json failed: permission denied`), "probe-command", "correct workingDir"},
		{"a command, and no runtime", strings.Replace(failing("{exec: {command: [check]}}", `rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: no such file or directory"`), "probe failed", "probe errored and resulted in unknown state", 1), "probe-failing", "kubectl describe node node1"},
		{"a command that dials a socket itself", failing("{exec: {command: [check]}}", "dial unix /run/app.sock: connect: no such file or directory"), "probe-exec", "/run/app.sock"},
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
		{"it begins too early", early("", refused, "11:00:02", "11:00:12", "11:00:00"), "probe-early", "set initialDelaySeconds above 12"},
		{"... and waits for a startup probe", early(", startupProbe: {tcpSocket: {port: 8080}}", refused, "11:00:02", "11:00:12", "11:00:00"), "", ""},
		{"readiness may fail at the start", early("", "Readiness probe failed: HTTP probe failed with statuscode: 503", "11:00:02", "11:00:12", "11:00:00"), "", ""},
		{"it failed later", early("", status503, "11:30:00", "11:30:00", "11:00:00"), "", ""},
		{"it failed before it was ready", early(ready, status503, "11:00:02", "11:01:30", "11:02:00"), "probe-early", "above 90"},
		{"it failed an hour later, and was not ready for it", early(ready, status503, "11:39:10", "11:39:30", "11:40:00"), "", ""},
		{"... minutes later", early(ready, status503, "11:04:10", "11:04:30", "11:05:00"), "", ""},
		{"... at the start, too", early(ready, status503, "11:00:02", "11:39:30", "11:40:00"), "", ""},
		{"it fails now", since(early(ready, refused, "11:59:32", "11:59:52", "11:59:55"), "11:59:30", "reason: Completed, exitCode: 0", "11:59:30"), "", ""},
		{"... and not for the first time", strings.Replace(since(early(ready, refused, "11:59:32", "11:59:52", "11:59:55"), "11:59:30", "reason: Completed, exitCode: 0", "11:59:30"), "kind: Event", "kind: Event\ncount: 3", 1), "probe-refused", "it may be still starting: the liveness probe of container app"},
		{"it fails long after its start, and is not killed yet", strings.Replace(early("", status503, "11:59:45", "11:59:55", "11:00:00"), "kind: Event", "kind: Event\ncount: 2", 1), "probe-status", "kubectl logs it -n shop -c app"},
		{"... now and then", strings.Replace(early("", status503, "11:30:00", "11:59:55", "11:00:00"), "kind: Event", "kind: Event\ncount: 2", 1), "", ""},
		{"it may not have answered yet", since(early("", refused, "11:59:02", "11:59:22", "11:59:00"), "11:59:00", "reason: Completed, exitCode: 0", "11:59:00"), "", ""},
		{"it runs again after a kill", since(early(ready, refused, "11:59:04", "11:59:14", "11:59:20"), "11:59:02", "reason: Error, exitCode: 137", "11:59:01") + killing("11:59:00"), "program-killed-by-liveness", ""},
		{"... and after another end", since(strings.Replace(early(ready, refused, "11:59:46", "11:59:50", "11:59:52"), "failureThreshold: 30", "periodSeconds: 1", 1), "11:59:45", "reason: Error, exitCode: 1", "11:59:45"), "program-exits", ""},
		{"... since long", since(early(ready, refused, "11:40:04", "11:40:14", "11:40:20"), "11:40:02", "reason: Error, exitCode: 137", "11:40:01") + killing("11:40:00"), "probe-early", "above 12"},
		{"a gate", withPod("", "readinessGates: [{conditionType: example.test/ready}]", strings.Replace(running, `type: Ready, status: "True"`, `type: Ready, status: "False"`, 1)), "readiness-gate", "example.test/ready"},
	})
}
