package diagnose

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestWhatIsUsedAgainstRequestsAndLimits(t *testing.T) {
	const resources = "resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}"
	it := strings.Replace(withPod(resources, "", running), "phase: Pending", "phase: Running", 1)
	uses := func(at, cpu, memory string) string {
		return "\n---\nkind: PodMetrics\nmetadata: {name: it}\ntimestamp: '2026-11-28T" + at + "Z'\nwindow: 15s\ncontainers: [{name: app, usage: {cpu: " + cpu + ", memory: " + memory + "}}]\n"
	}
	node := func(pressure string) string {
		return "\n---\nkind: Node\nmetadata: {name: node1}\nstatus: {conditions: [{type: MemoryPressure, status: '" + pressure + "', reason: R, message: m}]}\n"
	}
	ofJob := "\n---\nkind: Job\nmetadata: {name: work}\nspec: {template: {spec: {containers: [{name: app, image: x}]}}}\n---\n" +
		strings.Replace(it, "metadata: {", "metadata: {ownerReferences: [{apiVersion: batch/v1, kind: Job, name: work, uid: j1, controller: true}], ", 1)
	const late = `Get "http://10.113.1.30:8080/healthz": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`
	slow := strings.Replace(withPod(resources+", readinessProbe: {httpGet: {port: 8080}}", "", notReady), "phase: Pending", "phase: Running", 1) + event("Pod/it", "Unhealthy", "Readiness probe failed: "+late)
	shares := strings.Replace(it, resources, "resources: {requests: {memory: 1Mi}}", 1)
	shares = strings.Replace(shares, "restartPolicy:", "resources: {requests: {memory: 60Mi}, limits: {cpu: 100m, memory: 64Mi}}\n  restartPolicy:", 1)
	try(t, []tried{
		{"its pod's limit", shares + uses("11:59:50", "1m", "62Mi"), "memory-near-limit", "its containers use 62Mi of the 64Mi memory that they may together"},
		{"its pod's limit of CPU", shares + uses("11:59:50", "100m", "1Mi"), "cpu-at-limit", "the pod's own resources.limits.cpu"},
		{"its answers are late for its pod's", strings.Replace(strings.Replace(slow, resources+", ", "", 1), "restartPolicy:", "resources: {limits: {cpu: 100m}}\n  restartPolicy:", 1) + uses("11:59:50", "100m", "1Mi"), "probe-timeout cpu-at-limit", "raise the pod's own resources.limits.cpu"},
		{"less than its pod asks for", shares + uses("11:59:50", "1m", "50Mi") + node("True"), "node-memory-pressure", ""},
		{"less than it may", it + uses("11:59:50", "80000000n", "61440Ki"), "", ""},
		{"memory", it + uses("11:59:50", "1m", "62Mi"), "memory-near-limit", "container app uses 62Mi of the 64Mi memory that it may"},
		{"memory of the run before", it + uses("10:59:50", "1m", "62Mi"), "", ""},
		{"CPU", it + uses("11:59:50", "99500000n", "1Mi"), "cpu-at-limit", "all of the 100m cpu"},
		{"CPU, of a Job", ofJob + uses("11:59:50", "100m", "1Mi"), "", ""},
		{"CPU, at the start", strings.Replace(it, "T11:00:00Z", "T11:59:40Z", 1) + uses("11:59:50", "100m", "1Mi"), "", ""},
		{"no limit", strings.Replace(it, resources, "resources: {requests: {memory: 1Mi}}", 1) + uses("11:59:50", "9", "9Gi"), "", ""},
		{"more than it asks for", it + uses("11:59:50", "1m", "48Mi") + node("False"), "", ""},
		{"... on a node that is short of memory", it + uses("11:59:50", "1m", "48Mi") + node("True"), "node-memory-pressure memory-over-request", ""},
		{"it asks for none", strings.Replace(it, resources, "", 1) + uses("11:59:50", "1m", "48Mi") + node("True"), "node-memory-pressure memory-over-request", ""},
		{"its answers are late for it", slow + uses("11:59:50", "100m", "1Mi"), "probe-timeout cpu-at-limit", "raise resources.limits.cpu"},
	})
	e := load(t, it+uses("11:59:50", "99500000n", "1Mi")).report(nil).Findings[0].State[0]
	if e.From != "pod/it of metrics.k8s.io, container app" || e.Says != "100m cpu, request 50m, limit 100m, over 15s" || !e.At.Equal(now.Add(-10*time.Second)) {
		t.Errorf("%+v", e)
	}
	f := load(t, it+uses("11:59:50", "1m", "48Mi")+node("True")).report(nil).Findings[1]
	if f.Summary != "container app uses 48Mi memory and asks for 32Mi, on node/node1, which is short of it" {
		t.Error(f.Summary)
	}
}

// The metrics are read with the user's rights, where there is something to hold them against. That there are none is no error, also for who
// could not read them; that they do not come is said, and the rest goes on.
func TestMetricsAreAnExtra(t *testing.T) {
	pod := func(limits string) string {
		return `{"metadata":{"name":"it","namespace":"shop"},"spec":{"containers":[{"name":"app","resources":{"limits":{` + limits + `}}}]},"status":{"phase":"Running",
			"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"app","ready":true,"state":{"running":{"startedAt":"2026-11-28T11:00:00Z"}}}]}}`
	}
	const full = `{"metadata":{"name":"it","namespace":"shop"},"timestamp":"2026-11-28T11:30:00Z","window":"15s","containers":[{"name":"app","usage":{"cpu":"1m","memory":"64Mi"}}]}`
	for name, c := range map[string]struct {
		limits, metrics, group string
		denied                 []string
		finds, unread          string
		asked                  bool
	}{
		"there":                    {`"memory":"64Mi"`, full, "x", nil, "[memory-near-limit]", "", true},
		"nothing to hold against":  {``, full, "x", nil, "[]", "", false},
		"no metrics API":           {`"memory":"64Mi"`, "", "", nil, "[]", "", true},
		"it may not be read":       {`"memory":"64Mi"`, full, `{}`, []string{string(metrics)}, "[]", "your account may not [resource use]", true},
		"none, and it may not be":  {`"memory":"64Mi"`, "", "", []string{string(metrics)}, "[]", "", true},
		"its server is away":       {`"memory":"64Mi"`, unavailable, "x", nil, "[]", "list: the server is currently unable to handle the request [resource use]", true},
		"other than it should say": {`"memory":"64Mi"`, `"x"`, "x", nil, "[]", "list: json: cannot unmarshal string into Go struct field", true},
	} {
		k, asked := apiServer(t, map[string]string{"pods": pod(c.limits), string(metrics): c.metrics, metricsGroup: c.group}, c.denied...)
		r, err := Run(t.Context(), k, Options{NoDial: true})
		if err != nil {
			t.Fatal(err)
		}
		var unread string
		for _, u := range r.Unread {
			unread += fmt.Sprint(u.Why, " ", u.Checks)
		}
		if got := fmt.Sprint(ids(r.Findings)); got != c.finds || !strings.HasPrefix(unread, c.unread) || (unread == "") != (c.unread == "") {
			t.Errorf("%s: found %s, unread %q", name, got, unread)
		}
		if slices.Contains(*asked, "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods") != c.asked {
			t.Errorf("%s: asked %q", name, *asked)
		}
	}
}
