//go:build linux

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"bridge/internal/hint"
)

// countYAML is a deployment of two pods that count; the arguments of count are given.
const countYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: counter}
spec:
  replicas: 2
  selector: {matchLabels: {app: counter}}
  template:
    metadata: {labels: {app: counter}}
    spec:
      terminationGracePeriodSeconds: 1
      initContainers:
      - name: init
        image: %[1]s
        args: [look]` + restrictedYAML + `      containers:
      - name: app
        image: %[1]s
        args: [count, %[2]s]` + restrictedYAML

// counted is what each run of count has printed, in order.
func counted(lines []string) map[string][]string {
	runs := map[string][]string{}
	for _, l := range lines {
		if m := regexp.MustCompile(`([0-9]{15,}) ([0-9]+) x*$`).FindStringSubmatch(l); m != nil {
			runs[m[1]] = append(runs[m[1]], m[2])
		}
	}
	return runs
}

// exactly is whether numbers follow on another without a gap or a repetition.
func exactly(numbers []string, first int) error {
	for i, n := range numbers {
		if n != fmt.Sprint(first+i) {
			return fmt.Errorf("%s comes after %d of them, which began with %d", n, i, first)
		}
	}
	return nil
}

// pod makes a pod of one container, app, with arguments for the sample, and waits until that has been started.
func (w *world) pod(name string, args string) {
	w.t.Helper()
	var p corev1.Pod
	text := fmt.Sprintf("metadata: {name: %s}\nspec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: app\n        image: %s\n        args: [%s]%s", name, s.image, args, restrictedYAML)
	if err := yaml.Unmarshal([]byte(text), &p); err != nil {
		w.t.Fatal(err)
	}
	if _, err := s.client.CoreV1().Pods(w.ns).Create(w.t.Context(), &p, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
	w.await("the start of pod "+name, func() bool {
		p, err := s.client.CoreV1().Pods(w.ns).Get(w.t.Context(), name, metav1.GetOptions{})
		return err == nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].ContainerID != ""
	})
}

func TestLogs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(countYAML, s.image, `--every, 1h`))
	w.awaitReady("app=counter", 2)
	reader := w.as("reader", deployed(t, "logs"))

	p := w.bridgeAs(reader, nil, "logs", "deployment/counter")
	p.exits(0)
	if runs := counted(p.stdout.all()); len(runs) != 2 {
		t.Errorf("%d runs", len(runs))
	}
	for _, pod := range w.pods("app=counter") {
		p.prints("[pod/" + pod.Name + "/app] ")
		p.prints("[pod/" + pod.Name + "/init] {\"env\":")
	}
	if strings.Contains(strings.Join(p.stdout.all(), ""), "\x1b[") {
		t.Error("colours without a terminal")
	}
	pod := w.pods("app=counter")[0].Name
	p = w.bridge("logs", pod, "-c", "app", "--timestamps")
	p.exits(0)
	if out := p.stdout.all(); len(out) != 1 || !regexp.MustCompile(`^20\d\d-.*Z \d+ 1 $`).MatchString(out[0]) {
		t.Errorf("%q", out)
	}
	p = w.bridge("logs", "deployment/counter", "-c", "web")
	p.exits(int(hint.Usage))
	p.says("its containers: app, init")
	p = w.bridge("logs", "deployment/counter", "--previous")
	p.exits(int(hint.NotFound))
	p.says("previous terminated container")
	w.bridge("logs", "deployment/none").exits(int(hint.NotFound))
	w.bridgeAs(w.as("bob", deployed(t, "status")), nil, "logs", "deployment/counter").exits(int(hint.Forbidden))

	// At a terminal each pod has a colour, unless that is not wished for.
	w.atTerminal("logs", "deployment/counter", "-c", "app").shows("m[pod/" + pod + "/app]\x1b[0m ")
	c := w.atTerminal("logs", pod, "--tail", "1", "--since", "1h")
	c.exits(0)

	// What is older than it is asked for is left out.
	w.await("a line that is old enough", func() bool {
		p = w.bridge("logs", pod, "-c", "app", "--since", "1s")
		p.exits(0)
		return len(p.stdout.all()) == 0
	})
	p = w.bridge("logs", pod, "-c", "app", "--since", "1h")
	p.exits(0)
	if runs := counted(p.stdout.all()); len(runs) != 1 {
		t.Errorf("of the last hour: %q", p.stdout.all())
	}

	// Long lines come whole, and of many lines the last.
	w.pod("wide", `count, --until, "3", --width, "3000000", --every, 0s`)
	w.await("the lines", func() bool {
		p = w.bridge("logs", "wide", "-c", "app")
		p.exits(0)
		return len(p.stdout.all()) == 3
	})
	for i, l := range p.stdout.all() {
		if !strings.HasSuffix(l, fmt.Sprintf(" %d %s", i+1, strings.Repeat("x", 3000000))) {
			t.Errorf("line %d has %d characters", i, len(l))
		}
	}
	w.pod("many", `count, --until, "50", --width, "1", --every, 0s`)
	w.await("the last of them", func() bool {
		p = w.bridge("logs", "many", "--tail", "1")
		p.exits(0)
		out := p.stdout.all()
		return len(out) == 1 && strings.HasPrefix(out[0], "[pod/many/app] ") && strings.HasSuffix(out[0], " 50 x")
	})
}

// The run before is printed whole, and it alone, while the next one prints.
func TestLogsOfTheRunBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pod("it", `count, --until, "100", --every, 200ms`)
	w.await("its second run", func() bool {
		p, err := s.client.CoreV1().Pods(w.ns).Get(t.Context(), "it", metav1.GetOptions{})
		if err != nil {
			return false
		}
		app := p.Status.ContainerStatuses[0]
		return app.RestartCount > 0 && app.State.Running != nil && app.LastTerminationState.Terminated != nil
	})
	p := w.bridge("logs", "it", "--previous")
	p.exits(0)
	before := counted(p.stdout.all())
	if len(before) != 1 {
		t.Fatalf("%d runs: %q", len(before), p.stdout.all())
	}
	var now map[string][]string
	w.await("the first line of the run that there is now", func() bool {
		p = w.bridge("logs", "it")
		p.exits(0)
		now = counted(p.stdout.all())
		return len(now) > 0
	})
	if len(now) != 1 {
		t.Errorf("%d runs that there are now: %q", len(now), p.stdout.all())
	}
	for run, numbers := range before {
		if err := exactly(numbers, 1); err != nil || len(numbers) != 100 {
			t.Errorf("the run before: %v, %d lines", err, len(numbers))
		}
		if len(now[run]) > 0 {
			t.Error("the run that there is now is the same")
		}
	}
}

// Every line is printed once, over a restart of the container and connections that are cut and cut.
func TestLogsFollowARestartOverACutPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	way := newPath(t)
	w.pod("it", `count, --until, "400"`)
	p := w.bridgeAs(way.kubeconfig, nil, "logs", "it", "-f")
	for i := range 8 {
		p.prints(fmt.Sprintf(" %d ", 1+i*45))
		way.cut()
	}
	p.says("is lost, it goes on")
	// The second run, and the third, which comes later.
	w.await("the second run", func() bool { return len(counted(p.stdout.all())) == 2 })
	way.cut()
	w.await("its end", func() bool {
		for _, numbers := range counted(p.stdout.all()) {
			if len(numbers) < 400 {
				return false
			}
		}
		return true
	})
	for run, numbers := range counted(p.stdout.all()) {
		if err := exactly(numbers, 1); err != nil || len(numbers) > 400 {
			t.Errorf("run %s: %v, %d lines", run, err, len(numbers))
		}
	}
	// The pod that was named is gone, so it ends.
	zero := int64(0)
	if err := s.client.CoreV1().Pods(w.ns).Delete(t.Context(), "it", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	p.exits(0)
	p.says("pod/it is gone")
}

// A rollout's new pods are followed as well, and what is told of the start is not theirs.
func TestLogsFollowARollout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(fmt.Sprintf(countYAML, s.image, `--every, 100ms`))
	w.awaitReady("app=counter", 2)
	p := w.bridge("logs", "deployment/counter", "-c", "app", "-f", "--tail", "0")
	w.await("two runs", func() bool { return len(counted(p.stdout.all())) == 2 })
	old := counted(p.stdout.all())
	patch := `{"spec":{"template":{"metadata":{"annotations":{"again":"1"}}}}}`
	if _, err := s.client.AppsV1().Deployments(w.ns).Patch(t.Context(), "counter", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("four runs", func() bool { return len(counted(p.stdout.all())) == 4 })
	for run, numbers := range counted(p.stdout.all()) {
		first := 1
		if len(old[run]) > 0 {
			if _, err := fmt.Sscan(numbers[0], &first); err != nil {
				t.Fatal(err)
			}
		}
		if err := exactly(numbers, first); err != nil {
			t.Errorf("run %s: %v", run, err)
		}
	}
	p.signal(syscall.SIGINT)
	p.exits(128 + int(syscall.SIGINT))
}
