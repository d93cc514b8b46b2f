package swap

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"bridge/internal/carry"
	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/proxypod"
	"bridge/internal/route"
	"bridge/internal/undo"
	"bridge/pkg/tunnel"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with testdata/name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got)
	}
}

// facts reads a file of YAML documents: a workload, which may be a Pod, and Services and Pods.
func facts(t *testing.T, name string) Facts {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	f := Facts{MayPatchServices: true}
	for doc := range strings.SplitSeq(string(file), "\n---\n") {
		var kind struct{ Kind string }
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "Deployment":
			f.Workload = workload(t, decode[appsv1.Deployment](t, doc))
		case "StatefulSet":
			f.Workload = workload(t, decode[appsv1.StatefulSet](t, doc))
		case "Service":
			f.Services = append(f.Services, *decode[corev1.Service](t, doc))
		case "Pod":
			pod := decode[corev1.Pod](t, doc)
			if f.Pods = append(f.Pods, *pod); f.Workload == nil {
				f.Workload = workload(t, pod)
			}
		}
	}
	return f
}

func ordersPlan(t *testing.T) *Plan {
	t.Helper()
	p, err := NewPlan(facts(t, "orders.yaml"), Options{Owner: "ada@laptop", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func workload(t *testing.T, o runtime.Object) *kube.Workload {
	t.Helper()
	w, err := kube.WorkloadOf(o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func decode[T any](t *testing.T, doc string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(doc), out); err != nil {
		t.Fatalf("%v in:\n%s", err, doc)
	}
	return out
}

var (
	carried = proxypod.Source{Arch: "amd64", ConfigMaps: []string{"bridge-deployment-orders-0", "bridge-deployment-orders-1"}}
	noon    = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
)

func TestPlanGoldens(t *testing.T) {
	for _, c := range []struct {
		golden string
		src    proxypod.Source
		change func(*Facts, *Options)
	}{
		{golden: "carried.golden.yaml", src: carried, change: func(*Facts, *Options) {}},
		{golden: "image.golden.yaml", src: proxypod.Source{Image: "bridge-proxy:1"}, change: func(f *Facts, o *Options) {
			f.MayPatchServices = false
			o.Ports = []string{"3000:http"}
		}},
		{golden: "podproxy.golden.yaml", src: proxypod.Source{Image: "bridge-proxy:1"}, change: func(f *Facts, o *Options) {
			f.MayPodProxy, o.PodProxy = true, true
			// A port is chosen that nobody in the pod declares.
			f.Workload.Template.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 27102}}
		}},
		{golden: "container.golden.yaml", src: carried, change: func(f *Facts, o *Options) {
			// The second container is stood in for, and the first goes on with its own ports.
			o.Container = "sidecar"
			sidecar := &f.Workload.Template.Spec.Containers[1]
			sidecar.Ports = []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9102}}
			sidecar.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("metrics")}}}
			f.Services[0].Spec.Ports = append(f.Services[0].Spec.Ports, corev1.ServicePort{Name: "metrics", Port: 9102, TargetPort: intstr.FromString("metrics")})
		}},
		{golden: "init.golden.yaml", src: proxypod.Source{Image: "bridge-proxy:1"}, change: func(_ *Facts, o *Options) { o.Init = true }},
	} {
		t.Run(c.golden, func(t *testing.T) {
			f := facts(t, "orders.yaml")
			f.Source = c.src
			o := Options{Owner: "ada@laptop", Client: tunnel.Fingerprint{1, 2, 3}, Now: noon}
			c.change(&f, &o)
			p, err := NewPlan(f, o)
			if err != nil {
				t.Fatal(err)
			}
			var parts []carry.Part
			for i := range c.src.ConfigMaps {
				parts = append(parts, carry.Part{Name: strconv.Itoa(i), Files: map[string][]byte{"proxy": make([]byte, 1000+i)}})
			}
			d, err := p.DryRun(&kube.Client{}, parts)
			if err != nil {
				t.Fatal(err)
			}
			b, err := d.YAML()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, c.golden, string(b))
			assertDocuments(t, p, string(b))
		})
	}
}

// assertDocuments: what a dry run prints is what the swap creates, and nothing else.
func assertDocuments(t *testing.T, p *Plan, text string) {
	t.Helper()
	docs := strings.Split(text, "\n---\n")
	if len(docs) != 2 {
		t.Fatalf("%d documents, want the Lease and the Deployment", len(docs))
	}
	if l := decode[coordinationv1.Lease](t, docs[0]); !equality.Semantic.DeepEqual(l, p.Lease) {
		t.Errorf("the Lease is printed as %+v", l)
	}
	if d := decode[appsv1.Deployment](t, docs[1]); !equality.Semantic.DeepEqual(d, p.Proxy) {
		t.Errorf("the proxy is printed as %+v", d)
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, c := range []struct {
		name, want string
		change     func(*Facts, *Options)
	}{
		{"host network", "hostNetwork", func(f *Facts, _ *Options) { f.Workload.Template.Spec.HostNetwork = true }},
		{"a container that is not there", `no container "web" in the pod template: it has app, sidecar`, func(_ *Facts, o *Options) { o.Container = "web" }},
		{"a proxy of our own", "is bridge's own", func(f *Facts, _ *Options) {
			f.Workload.Labels = map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy, proxypod.ProxyLabel: "x"}
		}},
		{"a keeper of our own", "is bridge's own", func(f *Facts, _ *Options) {
			f.Workload.Labels = map[string]string{proxypod.ManagedByLabel: proxypod.ManagedBy, proxypod.KeeperLabel: "x"}
		}},
		{"a port nobody has", `no port "grpc": the pod has 8080 (http)`, func(_ *Facts, o *Options) { o.Ports = []string{"1:grpc"} }},
		{"a port twice", "port 8080 is mapped twice", func(_ *Facts, o *Options) { o.Ports = []string{"1:8080", "2:http"} }},
		{"no port", `"0" is not a port`, func(_ *Facts, o *Options) { o.Ports = []string{"0:8080"} }},
		{"another container's port", `port 9102 of the pod is container "sidecar"'s`, func(f *Facts, o *Options) {
			f.Workload.Template.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 9102}}
			o.Ports = []string{"1:9102"}
		}},
		{"a UDP port twice", "port 53 is mapped twice", func(_ *Facts, o *Options) { o.Ports = []string{"1:53/udp", "2:dns"} }},
		{"a port that fits several", "which port of the pod?", func(_ *Facts, o *Options) { o.Ports = []string{"3000"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(t, "orders.yaml")
			f.Source = carried
			var o Options
			c.change(&f, &o)
			_, err := NewPlan(f, o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			if hint.CodeOf(err) != hint.Usage {
				t.Errorf("code %d, want usage", hint.CodeOf(err))
			}
		})
	}
}

// A record that is still on the target is the only one that knows how it was.
func TestPlanRefusesATargetThatIsNotGivenBack(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	p, err := NewPlan(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	record, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, onTarget, onSet string
		replicas              int32
		moved                 bool
	}{
		{"stopped, and on the target", record, "", 0, false},
		{"stopped, and on a ReplicaSet", "", record, 0, false},
		{"scaled up, and a Service is not back", record, "", 2, true},
		{"scaled up, and a Service is not back, by a ReplicaSet's", "", record, 2, true},
		{"cannot be read", "{", "", 3, false},
		{"cannot be read, on a ReplicaSet", "", "{", 3, false},
	} {
		f := facts(t, "orders.yaml")
		f.Source, f.Workload.Replicas, f.Flags = carried, c.replicas, staging
		f.Workload.ManagedFields = append(f.Workload.ManagedFields, annotatedBy("kubectl")...) // as if it were brought back
		f.Workload.Annotations, f.Copies = map[string]string{proxypod.UndoAnnotation: c.onTarget}, []appsv1.ReplicaSet{setOf(f.Workload, "one", c.onSet)}
		if c.moved {
			f.Services[0].Spec.Selector[proxypod.ProxyLabel] = p.Lease.Name
		}
		if _, err := NewPlan(f, Options{}); hint.CodeOf(err) != hint.Conflict || !strings.Contains(hint.Of(err), "bridge restore deployment orders -n shop"+staging) {
			t.Errorf("%s: got %v, hint %q", c.name, err, hint.Of(err))
		}
	}

	// One of which nothing is there any more, as kubectl rollout undo brings it back long after, is none, and nor is what came with another's manifest: the swap puts its own there.
	f.Workload.Annotations = map[string]string{}
	f.Workload.ManagedFields = append(f.Workload.ManagedFields, annotatedBy("kubectl")...)
	for _, stale := range []string{record, strings.ReplaceAll(record, p.Undo.Target.UID, "another")} {
		f.Workload.Annotations[proxypod.UndoAnnotation] = stale
		one := setOf(f.Workload, "one", record)
		f.Copies = []appsv1.ReplicaSet{one, setOf(f.Workload, "two", stale)}
		p, err := NewPlan(f, Options{Owner: "bob@desk"})
		if err != nil {
			t.Errorf("over %q: %v", stale, err)
			continue
		}
		at := deploymentPath + "orders"
		const sets = "/apis/apps/v1/namespaces/shop/replicasets/"
		cl, k := newCluster(t, map[string]any{
			at: deploymentWith(f.Workload.ObjectMeta), sets + "one": one,
			sets + "two": setOf(f.Workload, "two", "[]"), sets + "three": setOf(f.Workload, "three", record), // come after the plan was made
		})
		x := changer{kube: k}
		var now appsv1.Deployment
		if err := x.record(t.Context(), p); err != nil || !cl.at(at, &now) || !strings.Contains(now.Annotations[proxypod.UndoAnnotation], "bob@desk") {
			t.Errorf("over %q: %v, %v", stale, err, now.Annotations)
		}
		for name, stays := range map[string]bool{"one": false, "two": true, "three": false} {
			var rs appsv1.ReplicaSet
			if there := cl.at(sets+name, &rs); !there || (len(rs.Annotations) > 0) != stays {
				t.Errorf("replicaset %s has %v", name, rs.Annotations)
			}
		}
		var after appsv1.Deployment
		if err := x.unrecord(t.Context(), &p.Undo); err != nil || !cl.at(at, &after) || len(after.Annotations) > 0 {
			t.Errorf("over %q: %v, %v", stale, err, after.Annotations)
		}
		// What comes there after the plan was made is somebody else's.
		now.Annotations[proxypod.UndoAnnotation] = "[]"
		_, x.kube = newCluster(t, map[string]any{at: now})
		if err := x.record(t.Context(), p); !errors.Is(err, undo.ErrMoved) {
			t.Errorf("over what came meanwhile: %v", err)
		}
	}
}

// setOf is a ReplicaSet of d, with a copy of a record.
func setOf(d *kube.Workload, name, record string) appsv1.ReplicaSet {
	controls := true
	return appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: d.Namespace, UID: types.UID(name), Annotations: map[string]string{proxypod.UndoAnnotation: record},
		OwnerReferences: []metav1.OwnerReference{{UID: d.UID, Controller: &controls}},
	}}
}

// annotatedBy are the managedFields of an object on which manager has written the record's copy.
func annotatedBy(manager string) []metav1.ManagedFieldsEntry {
	return []metav1.ManagedFieldsEntry{{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "apps/v1", FieldsType: "FieldsV1",
		FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:bridge.internal/undo":{}}}}`),
	}}
}

// The sidecar goes on beside the proxy: its port stays its own, also where a Service names it.
func TestPortsOfOtherContainersAreTheirs(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	f.Workload.Template.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 9090}}
	p, err := NewPlan(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range p.Ports {
		if q.Remote == 9090 {
			t.Errorf("port 9090 comes to the laptop: %v", p.Ports)
		}
	}
}

// The proxy dials the named ports of its pod's loopback and no others, and only where there can be somebody.
func TestPortsOfOtherContainersForTheProgram(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	f.Workload.Template.Spec.Containers[1].Ports = []corev1.ContainerPort{{ContainerPort: 9090}}
	p, err := NewPlan(f, Options{ToPod: []int32{9090, 27100}})
	if err != nil {
		t.Fatal(err)
	}
	args := strings.Join(p.Proxy.Spec.Template.Spec.Containers[0].Args, " ")
	if !strings.Contains(args, "--to-pod 9090 --to-pod 27100") || p.Own.Tunnel == 27100 || p.Own.Health == 27100 {
		t.Errorf("%s, %+v", args, p.Own)
	}
	for _, mode := range []Options{
		{Mode: ModeStandby, ToPod: []int32{9090}}, {Choice: route.Choice{Mirror: true}, ToPod: []int32{9090}},
		{Mode: ModeStandby, Init: true}, {Choice: route.Choice{Filter: route.Filter{Path: "/api"}}, Init: true},
	} {
		if err := mode.Check(); hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "takes mode replace") {
			t.Errorf("%+v: %v", mode, err)
		}
	}
	if _, err := NewPlan(f, Options{ToPod: []int32{8080}}); hint.CodeOf(err) != hint.Usage || !strings.Contains(err.Error(), "comes to this machine") {
		t.Error(err)
	}
	pod := &f.Workload.Template.Spec
	pod.Containers, pod.InitContainers = pod.Containers[:1], nil
	if p, err := NewPlan(f, Options{ToPod: []int32{9091}}); err != nil || !strings.Contains(strings.Join(p.Notes, "\n"), "--to-pod 9091: the template has no other container") {
		t.Errorf("%v, %+v", err, p)
	}
}

// A number means what the pod has by it: TCP, UDP, or both.
func TestPortFlagsAndUDP(t *testing.T) {
	have := []Port{{Remote: 53, Local: 53}, {Remote: 53, UDP: true, Name: "dns", Local: 53}, {Remote: 123, UDP: true, Local: 123}, {Remote: 80, Local: 80}}
	for _, c := range []struct {
		flag string
		have []Port
		want []Port
	}{
		{"5353:53", have, []Port{{Remote: 53, Local: 5353}, {Remote: 53, UDP: true, Name: "dns", Local: 5353}}},
		{"53", have, have[:2]},
		{"5353:53/udp", have, []Port{{Remote: 53, UDP: true, Name: "dns", Local: 5353}}},
		{"5353:dns", have, []Port{{Remote: 53, UDP: true, Name: "dns", Local: 5353}}},
		{"9:123", have, []Port{{Remote: 123, UDP: true, Local: 9}}},
		{"9:80/udp", have, []Port{{Remote: 80, UDP: true, Local: 9}}},
		{"9:7", have, []Port{{Remote: 7, Local: 9}}},
		{"9:7/udp", have, []Port{{Remote: 7, UDP: true, Local: 9}}},
		{"5353", have[:2], []Port{{Remote: 53, Local: 5353}, {Remote: 53, UDP: true, Name: "dns", Local: 5353}}},
	} {
		if got, err := mapPorts([]string{c.flag}, c.have); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("--port %s: %v, %v; want %v", c.flag, got, err, c.want)
		}
	}
}

// A port on the pod's address is opened for those alone who asked for it and can use it.
func TestThePodProxyPortIsOpenedOnlyForAUser(t *testing.T) {
	for _, asked := range []bool{false, true} {
		for _, may := range []bool{false, true} {
			f := facts(t, "orders.yaml")
			f.Source, f.MayPodProxy = carried, may
			p, err := NewPlan(f, Options{PodProxy: asked})
			if err != nil {
				t.Fatal(err)
			}
			b, err := yaml.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if open := strings.Contains(string(b), "--podproxy"); open != (asked && may) || open != (p.Own.PodProxy != 0) {
				t.Errorf("asked %v, may %v: the port is open: %v", asked, may, open)
			}
			if says := strings.Contains(strings.Join(p.Notes, "\n"), "may not get pods/proxy in shop"); says != (asked && !may) {
				t.Errorf("asked %v, may %v: notes %q", asked, may, p.Notes)
			}
		}
	}
}

func TestPlanLeavesFactsAlone(t *testing.T) {
	f, g := facts(t, "orders.yaml"), facts(t, "orders.yaml")
	f.Source = carried
	if _, err := NewPlan(f, Options{}); err != nil {
		t.Fatal(err)
	}
	a, _ := yaml.Marshal(f.Workload)
	b, _ := yaml.Marshal(g.Workload)
	if string(a) != string(b) {
		t.Errorf("the plan changed its input:\n%s", a)
	}
}

func TestServiceSharedWithOthersIsNotMoved(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	canary := corev1.Pod{}
	canary.Name, canary.Labels = "orders-canary-1", map[string]string{"app": "orders", "track": "canary"}
	f.Pods = append(f.Pods, canary)
	p, err := NewPlan(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Services) != 0 {
		t.Errorf("moved %q, whose callers belong to others too", p.Services)
	}
	if notes := strings.Join(p.Notes, "\n"); !strings.Contains(notes, "orders-canary-1") {
		t.Errorf("the notes do not say so: %s", notes)
	}
}

// What a plan writes is the golden record, which every later bridge has to read.
func TestPlanWritesTheGoldenRecord(t *testing.T) {
	f := facts(t, "orders.yaml")
	f.Source = carried
	p, err := NewPlan(f, Options{Owner: "ada@laptop", Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	s, err := p.Undo.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "../../../internal/undo/testdata/undo.v1.json", s+"\n")
}
