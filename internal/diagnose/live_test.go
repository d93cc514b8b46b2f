package diagnose

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/probe"
)

// What the five parameters come to, and what comes next, in seconds.
func TestTimingInWords(t *testing.T) {
	usual, slow := timingOf(&corev1.Probe{}), timingOf(&corev1.Probe{InitialDelaySeconds: 5, PeriodSeconds: 2, TimeoutSeconds: 3, SuccessThreshold: 2, FailureThreshold: 30})
	late := timingOf(&corev1.Probe{InitialDelaySeconds: 60})
	yes, no := true, false
	at := func(ready bool, started *bool) container {
		return container{status: corev1.ContainerStatus{Ready: ready, Started: started, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(now.Add(-45 * time.Second))}}}}
	}
	for _, tt := range []struct {
		set         Timing
		kind        string
		c           container
		result      probe.Result
		means, next string
	}{
		{usual, "readiness", at(true, &yes), probe.Success, "ready after at least 0s; not ready 20s to 31s after it stops answering", "stays ready"},
		{usual, "readiness", at(true, &yes), probe.Failure, "", "not ready after 3 failures in a row: 20s after the first; then no Service sends to it"},
		{slow, "readiness", at(false, &yes), probe.Success, "ready after at least 7s; not ready 58s to 1m32s after it stops answering", "ready after 2 successes in a row: within 4s"},
		{slow, "readiness", at(false, &yes), probe.Failure, "", "stays not ready"},
		{slow, "readiness", at(false, &no), probe.Success, "", "nothing before the startup probe has succeeded"},
		{usual, "liveness", at(true, &yes), probe.Success, "first asked after 0s; killed 20s to 31s after it stops answering", "it goes on"},
		{usual, "liveness", at(true, &yes), probe.Failure, "", "killed after 3 failures in a row: 20s after the first"},
		{usual, "liveness", at(true, &yes), probe.Unknown, "", "it stays as it is: a run that goes wrong is no answer, to the kubelet neither"},
		{slow, "startup", at(false, &no), probe.Failure, "the other probes wait for it; killed if it has not answered 1m3s to 1m37s after its start", "killed in 18s to 52s"},
		{slow, "readiness", at(true, &yes), probe.Failure, "", "not ready after 30 failures in a row: 58s to 1m27s after the first; then no Service sends to it"},
		{slow, "liveness", at(true, &yes), probe.Failure, "first asked after 5s; killed 58s to 1m32s after it stops answering", "killed after 30 failures in a row: 58s to 1m27s after the first"},
		{usual, "startup", at(false, &no), probe.Failure, "the other probes wait for it; killed if it has not answered 20s to 31s after its start", "killed in 0s"},
		{slow, "startup", at(false, &no), probe.Success, "", "the container counts as started, and the other probes begin"},
		{slow, "startup", at(false, &yes), probe.Failure, "", "nothing before the next start: it has succeeded"},
		{late, "liveness", at(true, &yes), probe.Failure, "first asked after 1m0s; killed 20s to 31s after it stops answering", "killed after 3 failures in a row: 20s after the first, which is not asked before 15s from now"},
		{late, "readiness", at(false, &yes), probe.Success, "ready after at least 1m0s; not ready 20s to 31s after it stops answering", "ready after 1 success in a row: within 25s"},
		{usual, "liveness", container{}, probe.Unknown, "", "nothing before the container runs"},
	} {
		if got := tt.set.means(tt.kind, "killed"); tt.means != "" && got != tt.means {
			t.Errorf("%s means %q, want %q", tt.kind, got, tt.means)
		}
		if got := tt.set.next(tt.kind, "killed", tt.c, tt.result, now); got != tt.next {
			t.Errorf("%s, %v: next %q, want %q", tt.kind, tt.result, got, tt.next)
		}
	}
}

// A program that hangs is killed at the end of its grace period: the probe's own, or the pod's.
func TestTheGraceOfAKilledProgram(t *testing.T) {
	own, pods, none := int64(5), int64(30), int64(0)
	for _, tt := range []struct {
		kind      string
		own, pods *int64
		want      string
	}{
		{"liveness", nil, &pods, "; one that does not end by itself then, up to 30s later (terminationGracePeriodSeconds)"},
		{"startup", &own, &pods, "; one that does not end by itself then, up to 5s later (terminationGracePeriodSeconds)"},
		{"liveness", nil, &none, ""},
		{"readiness", nil, &pods, ""},
	} {
		r := liveRun{&pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: tt.pods}}, container{}, asking{tt.kind, &corev1.Probe{TerminationGracePeriodSeconds: tt.own}}}
		if got := r.grace(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.kind, got, tt.want)
		}
	}
}
