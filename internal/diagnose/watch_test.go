package diagnose

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// What is on its way is waited for: a workload whose controller has not done all, and a pod of nobody's that is not ready.
func TestWhatIsWaitedFor(t *testing.T) {
	workload := func(kind, spec, status string) string {
		return "\n---\nkind: " + kind + "\nmetadata: {name: orders, generation: 2}\nspec: {" + spec + "selector: {matchLabels: {app: it}}, template: {metadata: {labels: {app: it}}, spec: {containers: [{name: app, image: x}]}}}\nstatus: {" + status + "}\n"
	}
	for _, tt := range []struct{ name, documents, want string }{
		{"done", workload("Deployment", "", "observedGeneration: 2, updatedReplicas: 1, availableReplicas: 1"), ""},
		{"not seen yet", workload("Deployment", "", "observedGeneration: 1, updatedReplicas: 1, availableReplicas: 1"), "deployment/orders"},
		{"old pods", workload("Deployment", "replicas: 2, ", "observedGeneration: 2, updatedReplicas: 1, availableReplicas: 2"), "deployment/orders"},
		{"old pods still there", workload("Deployment", "", "observedGeneration: 2, replicas: 2, updatedReplicas: 1, availableReplicas: 1"), "deployment/orders"},
		{"paused", workload("Deployment", "replicas: 2, paused: true, ", "observedGeneration: 2, updatedReplicas: 1, availableReplicas: 2"), ""},
		{"scaled to 0", workload("Deployment", "replicas: 0, ", "observedGeneration: 2"), ""},
		{"a StatefulSet", workload("StatefulSet", "replicas: 2, ", "replicas: 2, observedGeneration: 2, availableReplicas: 2, updatedReplicas: 1"), "statefulset/orders"},
		{"a ReplicationController", "kind: ReplicationController\nmetadata: {name: orders}\nspec: {replicas: 2}\nstatus: {replicas: 2, availableReplicas: 1}\n", "replicationcontroller/orders"},
		{"a StatefulSet that is updated by hand", workload("StatefulSet", "replicas: 2, updateStrategy: {type: OnDelete}, ", "replicas: 2, observedGeneration: 2, availableReplicas: 2, updatedReplicas: 1"), ""},
		{"a DaemonSet", workload("DaemonSet", "", "observedGeneration: 2, desiredNumberScheduled: 2, numberAvailable: 1, currentNumberScheduled: 2, numberMisscheduled: 0, numberReady: 1"), "daemonset/orders"},
		{"a pod", withPod("", "", notReady), "pod/it"},
		{"a pod that is ready", withPod("", "", running), ""},
		{"a workload's pod", owned(withPod("", "", notReady)), ""},
	} {
		r := load(t, tt.documents).report(nil)
		var got []string
		for _, w := range r.Waiting {
			got = append(got, w.String())
		}
		if text := strings.Join(got, " "); text != tt.want || r.settled() != (tt.want == "" && r.Worst() != Problem) {
			t.Errorf("%s: waits for %q, want %q", tt.name, text, tt.want)
		}
	}
}

// A watch ends with the first report in which all is well, and at once with what does not pass.
func TestWatch(t *testing.T) {
	t.Parallel()
	const pending = `{"metadata":{"name":"it","namespace":"shop"},"status":{"phase":"Pending"}}`
	k, _ := apiServer(t, map[string]string{"pods": pending + "|" + pending + "|"})
	var said []string
	r, err := Watch(t.Context(), k, Options{NoDial: true}, func(line string) { said = append(said, line) })
	if err != nil || !r.settled() || len(said) != 1 || !strings.Contains(said[0], "waiting for pod/it") {
		t.Errorf("it said %q, and ended with %+v, %v", said, r, err)
	}
	k, _ = apiServer(t, nil, "pods")
	if r, err := Watch(t.Context(), k, Options{}, func(line string) { t.Error(line) }); err == nil || r != nil {
		t.Errorf("without the right to list pods: %v, %v", r, fmt.Sprint(err))
	}
}

// What cannot be read for a moment is not taken for well, and the last look that was whole is what is told when time is over.
func TestWatchOverAnOutage(t *testing.T) {
	t.Parallel()
	const crashing = `{"metadata":{"name":"it","namespace":"shop"},"spec":{"restartPolicy":"Always","containers":[{"name":"app"}]},"status":{"phase":"Running","containerStatuses":[
		{"name":"app","restartCount":1,"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"reason":"Error","exitCode":1}}}]}}`
	k, _ := apiServer(t, map[string]string{"services": unavailable + "|"})
	var said []string
	r, err := Watch(t.Context(), k, Options{NoDial: true}, func(line string) { said = append(said, line) })
	if err != nil || !r.settled() || len(said) != 1 || !strings.HasPrefix(said[0], "not read, and tried again: services (") || !strings.HasSuffix(said[0], "; of the rest: nothing wrong found in namespace shop, of 0 objects") {
		t.Errorf("it said %q, and ended with %+v, %v", said, r, err)
	}
	ctx, over := context.WithCancel(t.Context())
	k, _ = apiServer(t, map[string]string{"pods": crashing + "|", "deployments": "|" + unavailable})
	r, err = Watch(ctx, k, Options{NoDial: true}, func(line string) {
		if strings.HasPrefix(line, "not read") {
			over()
		}
	})
	if err == nil || r == nil || len(r.Findings) != 1 || r.Findings[0].ID != "program-exits" {
		t.Errorf("the last whole look: %+v, %v", r, err)
	}
	// Where no look is whole, the newest is; and what is wrong is said all the same.
	ctx, over = context.WithCancel(t.Context())
	k, _ = apiServer(t, map[string]string{"pods": crashing + "|", "deployments": unavailable})
	said = nil
	r, err = Watch(ctx, k, Options{NoDial: true}, func(line string) {
		if said = append(said, line); len(said) == 2 {
			over()
		}
	})
	if err == nil || r == nil || len(r.Findings) > 0 || len(said) != 2 || !strings.HasPrefix(said[0], "not read, and tried again: deployments (") || !strings.HasSuffix(said[0], "; pod/it: program-exits; waiting for pod/it") || !strings.HasSuffix(said[1], "; of the rest: nothing wrong found in namespace shop, of 0 objects") {
		t.Errorf("without a whole look it said %q, and ended with %+v, %v", said, r, err)
	}
}

// What cannot be read for long is said again, and since when: nobody in the cluster works at it. What is waited for is said once.
func TestWatchSaysAgainThatItCannotRead(t *testing.T) {
	t.Parallel()
	var w telling
	for i, step := range []struct {
		after  time.Duration
		line   string
		unread bool
		want   string
	}{
		{0, "waiting for pod/it", false, "waiting for pod/it"},
		{time.Hour, "waiting for pod/it", false, ""},
		{time.Hour, "not read: services", true, "not read: services"},
		{time.Hour + unreadAgain - 1, "not read: services", true, ""},
		{time.Hour + unreadAgain, "not read: services", true, "still, after 30s: not read: services"},
		{time.Hour + unreadAgain + time.Second, "not read: services", true, ""},
		{time.Hour + 2*unreadAgain, "not read: services", true, "still, after 1m0s: not read: services"},
		{time.Hour + 2*unreadAgain, "waiting for pod/it", false, "waiting for pod/it"},
		{time.Hour + 3*unreadAgain, "not read: services", true, "not read: services"},
		{time.Hour + 4*unreadAgain, "not read: services", true, "still, after 30s: not read: services"},
	} {
		if got := w.next(step.line, step.unread, now.Add(step.after)); got != step.want {
			t.Errorf("step %d: it says %q, want %q", i, got, step.want)
		}
	}
}

// A swap that is given back meanwhile is no reason to go on.
func TestWatchReadsSwapsEachTime(t *testing.T) {
	t.Parallel()
	left := []Swap{{Namespace: "shop", Target: "deployment/orders", Owner: "ada@laptop", Left: true, Restore: "bridge restore"}}
	k, _ := apiServer(t, nil)
	r, err := Watch(t.Context(), k, Options{NoDial: true, Swaps: func(context.Context) ([]Swap, error) {
		swaps := left
		left = nil
		return swaps, nil
	}}, func(string) {})
	if err != nil || !r.settled() {
		t.Errorf("a swap that is given back meanwhile: %+v, %v", r, err)
	}
}
