//go:build linux

package e2e

import (
	"maps"
	"strings"
	"testing"
)

// What a pod's init containers do is not done again for the proxy, unless that is asked for. Those that go on are sidecars, and run in any case.
func TestInitContainers(t *testing.T) {
	t.Parallel()
	w := newWorld(t).withKind(strings.NewReplacer("%s", "%[1]s", "      containers:\n", `      initContainers:
      - name: migrate
        image: %[1]s
        args: [look, /etc/hosts]`+restrictedYAML+`      - name: mesh
        image: %[1]s
        restartPolicy: Always
        args: [wait]`+restrictedYAML+`      containers:
`).Replace(ordersYAML), "orders")
	before := w.snapshot()
	for flag, want := range map[string]struct {
		note string
		runs map[string]bool // whether it has ended
	}{
		"--init=false": {"note: init containers are not run in the proxy's pod: migrate; --init runs them", map[string]bool{"mesh": false}},
		"--init":       {"note: init containers are run once more, in the proxy's pod, before it answers: migrate", map[string]bool{"migrate": true, "mesh": false}},
	} {
		b := w.swap(flag)
		b.says(want.note)
		w.answeredBy("laptop")
		runs := map[string]bool{}
		for _, c := range w.proxy().Status.InitContainerStatuses {
			runs[c.Name] = c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		}
		if !maps.Equal(runs, want.runs) {
			t.Errorf("%s: %v, want %v", flag, runs, want.runs)
		}
		b.terminate()
		w.assertSnapshot(before)
	}
}
