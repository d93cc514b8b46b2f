package swap

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/probe"
	"bridge/internal/proxypod"
)

// A probe goes where its port is mapped to. One whose port is not, or is another container's, is not run, and that is said.
func TestPlanProbes(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(app, sidecar *corev1.Container, o *Options)
		probes []string
		note   string
	}{
		{"where --port maps them", func(_, _ *corev1.Container, o *Options) { o.Ports = []string{"3000:http"} }, []string{
			"startup: GET http://localhost:3000/readyz every 10s", "readiness: GET http://localhost:3000/readyz every 10s", "liveness: GET http://localhost:3000/healthz every 10s",
		}, ""},
		{"no port for it", func(app, _ *corev1.Container, o *Options) {
			o.Ports, app.StartupProbe, app.ReadinessProbe = []string{"80"}, nil, nil
		}, nil,
			"the livenessProbe is not run here: nothing maps port 8080 to this machine; --port LOCAL:8080 does"},
		{"UDP is none", func(app, _ *corev1.Container, _ *Options) {
			app.StartupProbe, app.ReadinessProbe, app.LivenessProbe = nil, nil, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("dns")}}}
		}, nil, "the livenessProbe is not run here: nothing maps port 53"},
		{"another container's", func(app, sidecar *corev1.Container, _ *Options) {
			app.StartupProbe, app.LivenessProbe, app.ReadinessProbe.HTTPGet.Port = nil, nil, intstr.FromInt32(15020)
			sidecar.Ports = []corev1.ContainerPort{{ContainerPort: 15020}}
		}, nil, `the readinessProbe is not run here: port 15020 is container "sidecar"'s, which goes on in the proxy's pod`},
		{"a command", func(app, _ *corev1.Container, o *Options) {
			app.StartupProbe, app.LivenessProbe, app.ReadinessProbe = nil, nil, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check", "$(MODE)"}}}}
			o.Ports = []string{"53:dns", "3000:http"}
		}, []string{"readiness: TCP connection to localhost:3000 every 10s"}, `the readinessProbe is a command of the cluster's, ["check" "production"]: it is not run on this machine without --allow-exec-probes`},
		{"a command that may run", func(app, _ *corev1.Container, o *Options) {
			app.StartupProbe, app.LivenessProbe, app.ReadinessProbe = nil, nil, &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}}}
			o.ExecProbes = true
		}, []string{"readiness: exec check every 10s"}, `the readinessProbe runs a command of the cluster's on this machine: ["check"]`},
		{"off", func(_, _ *corev1.Container, o *Options) { o.NoProbes = true }, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(t, "orders.yaml")
			f.Source = carried
			var o Options
			containers := f.Workload.Template.Spec.Containers
			c.change(&containers[0], &containers[1], &o)
			p, err := NewPlan(f, o)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, q := range p.Probes {
				got = append(got, q.String())
			}
			if !slices.Equal(got, c.probes) {
				t.Errorf("probes %q, want %q", got, c.probes)
			}
			about := slices.DeleteFunc(slices.Clone(p.Notes), func(n string) bool { return !strings.Contains(n, "Probe ") })
			if c.note == "" && len(about) > 0 || c.note != "" && (len(about) != 1 || !strings.HasPrefix(about[0], c.note)) {
				t.Errorf("notes %q, want %q", about, c.note)
			}
		})
	}
}

// A person at a terminal sees what each probe gave last, as long as it is swapped.
func TestProbesAreSeenLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		check := func(context.Context) probe.Outcome {
			if time.Since(start) < 5*time.Second {
				return probe.Outcome{Result: probe.Success, Why: "status 200"}
			}
			return probe.Outcome{Result: probe.Failure, Why: "status 503"}
		}
		kind := func(k probe.Kind) *probe.Probe {
			return &probe.Probe{Kind: k, What: "GET it", Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 2, Check: check}
		}
		shown := make(chan string, 1)
		s := &Swap{Plan: &Plan{}, lines: &lines{}, Live: func(line string) {
			select {
			case <-shown:
			default:
			}
			shown <- line
		}}
		s.probes = probe.NewRunner([]*probe.Probe{kind(probe.Readiness), kind(probe.Liveness)})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { s.probes.Run(ctx) })
		running.Go(func() { s.followProbes(ctx) })
		sees := func(want string) {
			t.Helper()
			synctest.Wait()
			if got, want := <-shown, strings.ReplaceAll(want, "NOW", time.Now().Format(time.TimeOnly)); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		sees("readiness success at NOW: status 200 | liveness success at NOW: status 200")
		time.Sleep(20 * time.Second)
		sees("readiness failure at NOW: status 503, 2 times in a row | liveness failure at NOW: status 503, 2 times in a row; the kubelet would have restarted it at NOW")
		stop()
		running.Wait()
	})
}

// What the Lease says of the probes is told while it can be believed.
func TestProbesOfAnEntry(t *testing.T) {
	now := time.Date(2026, 11, 24, 6, 30, 0, 0, time.UTC)
	told := []probe.State{{Kind: probe.Liveness, What: "GET it", Result: probe.Failure, Since: now, Last: "status 503", Row: 3, LastResult: probe.Failure, LastAt: now, Restart: now}}
	b, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		text   string
		silent time.Duration
		want   []probe.State
	}{{string(b), time.Second, told}, {string(b), 40 * time.Second, nil}, {"?", time.Second, nil}, {"", time.Second, nil}, {`[{"kind":"other","result":"new"}]`, time.Second, []probe.State{{Kind: "other"}}}} {
		beat := metav1.NewMicroTime(now.Add(-tt.silent))
		l := &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
				proxypod.TunnelAnnotation: proxypod.State{Phase: "ready", Since: now}.String(), proxypod.ProbesAnnotation: tt.text,
			}},
			Spec: coordinationv1.LeaseSpec{RenewTime: &beat},
		}
		var e Entry
		e.judge(l, now)
		if fmt.Sprint(e.Probes) != fmt.Sprint(tt.want) {
			t.Errorf("%s after %v: %+v, want %+v", tt.text, tt.silent, e.Probes, tt.want)
		}
	}
}
