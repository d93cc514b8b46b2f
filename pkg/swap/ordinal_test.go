package swap

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/pkg/tunnel"
)

func dbPlan(t *testing.T, change func(*Facts, *Options)) (*Plan, error) {
	t.Helper()
	f := facts(t, "db.yaml")
	f.Source = proxypod.Source{Arch: "amd64", ConfigMaps: []string{"bridge-statefulset-db-0"}}
	o := Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon}
	change(&f, &o)
	return NewPlan(f, o)
}

func asItIs(*Facts, *Options) {}

func standby(_ *Facts, o *Options) { o.Mode = ModeStandby }

// A StatefulSet's proxy is its first pod to those who ask: by name, by label, and to its own containers.
func TestStatefulSetGolden(t *testing.T) {
	p, err := dbPlan(t, asItIs)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.add(newKeeper(p, nil, true)); err != nil {
		t.Fatal(err)
	}
	d, err := p.DryRun(&kube.Client{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "statefulset.golden.yaml", string(b))
	record, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../internal/undo/testdata/undo.v1.statefulset.json", record+"\n")
}

// A second program on the raw device of the first pod's claim would ruin what the original has there.
func TestAClaimAsADevice(t *testing.T) {
	p, err := dbPlan(t, func(f *Facts, _ *Options) {
		c := &f.Workload.Template.Spec.Containers[1]
		c.VolumeMounts, c.VolumeDevices = nil, []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
	})
	if err != nil {
		t.Fatal(err)
	}
	if c := p.Proxy.Spec.Template.Spec.Containers; len(c) != 1 || !slices.Contains(p.Notes, `container "backup" is not in the proxy's pod: volume "data" belongs to db-0`) {
		t.Errorf("the proxy's pod has %d containers: %q", len(c), p.Notes)
	}
}

// Which Services move, and what becomes of the others' callers, is said.
func TestServicesOfSinglePods(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Facts, *Options)
		moved  []string
		notes  []string
		silent string // what no note has
	}{
		{"replace", asItIs, []string{"db", "db-first"}, []string{
			"one proxy stands in for all 2 pods of statefulset/db, with the host name db-0: who calls one of the others by its own name (db-1, ...) finds nobody",
			"service/db-all, which gives the pods their names, stays as it is, so that they find each other",
			"service/db-second is for one of the other pods: its callers are refused",
			"service/db-all is headless, and stays as it is: when you give back its callers may be refused for 30s",
		}, "no Service selects"},
		{"replace one of one", func(f *Facts, _ *Options) { f.Workload.Replicas = 1 }, []string{"db", "db-first"}, []string{"service/db-all"}, "other pods"},
		{"standby", standby, []string{"db"}, []string{
			"service/db-all, which gives the pods their names, stays as it is: its callers reach the original",
			"service/db-first is for one pod, and stays as it is",
		}, "is headless"},
		{"headless, and moved", func(f *Facts, _ *Options) { f.Services[1].Spec.ClusterIP = corev1.ClusterIPNone }, []string{"db", "db-first"}, nil, "service/db is headless"},
		{"headless, and not to be patched", func(f *Facts, _ *Options) {
			f.MayPatchServices, f.Services[1].Spec.ClusterIP = false, corev1.ClusterIPNone
		}, nil, []string{"service/db is headless", "service/db-all is headless"}, "service/db-first is headless"},
		{"a governing Service with an address", func(f *Facts, o *Options) {
			o.Mode, f.Services[0].Spec.ClusterIP = ModeStandby, "10.96.0.7" // no pod has its name by it
		}, []string{"db", "db-all"}, nil, "gives the pods their names"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := dbPlan(t, c.change)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(p.Services)
			if !slices.Equal(p.Services, c.moved) {
				t.Errorf("%q move, want %q", p.Services, c.moved)
			}
			notes := strings.Join(p.Notes, "\n")
			for _, n := range c.notes {
				if !strings.Contains(notes, n) {
					t.Errorf("no note %q in:\n%s", n, notes)
				}
			}
			if strings.Contains(notes, c.silent) {
				t.Errorf("a note says %q:\n%s", c.silent, notes)
			}
		})
	}
}

// The first pod's labels are on the proxy that takes its place, and on none that stands before it, which would have the Services of that pod.
func TestOnlyTheFirstPodsProxyIsIt(t *testing.T) {
	for _, c := range []struct {
		change func(*Facts, *Options)
		label  string
	}{{asItIs, "db-0"}, {standby, ""}} {
		p, err := dbPlan(t, c.change)
		if err != nil {
			t.Fatal(err)
		}
		if is := p.Proxy.Spec.Template.Labels["statefulset.kubernetes.io/pod-name"]; is != c.label {
			t.Errorf("the proxy's label is %q, want %q", is, c.label)
		}
	}
	p, err := dbPlan(t, func(f *Facts, o *Options) {
		o.Mode = ModeStandby
		f.Workload.Selector.MatchLabels = nil
		f.Workload.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpExists}}
	})
	if err != nil {
		t.Fatal(err)
	}
	if s := p.Standby.Originals.Spec.Selector; len(s) != 1 || s["app"] != "db" {
		t.Errorf("the originals are selected by %v, which are not all", s)
	}
}

func TestStatefulSetRefused(t *testing.T) {
	dropping := func(f *Facts, _ *Options) { f.Workload.Dropped = []string{"data", "log"} }
	for _, c := range []struct {
		name, want, hint string
		change           func(*Facts, *Options)
	}{
		{"its claims go with its pods", "statefulset/db cannot be swapped in mode replace: at 0 replicas the cluster deletes its volume claims (data, log)", "--mode standby", dropping},
		{"nobody but the governing Service", "no Service selects it but service db-all, whose callers want single pods", "--mode replace", func(f *Facts, o *Options) {
			o.Mode, f.Services = ModeStandby, f.Services[:1]
		}},
	} {
		_, err := dbPlan(t, c.change)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(hint.Of(err), c.hint) || hint.CodeOf(err) != hint.Usage {
			t.Errorf("%s: %v (%s), code %d", c.name, err, hint.Of(err), hint.CodeOf(err))
		}
	}
	if _, err := dbPlan(t, func(f *Facts, o *Options) { dropping(f, o); standby(f, o) }); err != nil {
		t.Errorf("in mode standby nothing is scaled: %v", err)
	}
}
