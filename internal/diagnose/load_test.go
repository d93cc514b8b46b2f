package diagnose

import (
	"cmp"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// now is when the tests' snapshots were made.
var now = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// load makes a snapshot of YAML documents, in which everything was read. Objects have the namespace shop and are an hour old, unless they
// say otherwise.
func load(t *testing.T, documents ...string) *Snapshot {
	t.Helper()
	s := &Snapshot{Namespace: "shop", Now: now, asked: map[plural]bool{}, PullSecrets: map[Ref]pullSecret{}, answers: map[place]answer{}}
	for _, r := range always() {
		s.asked[r.resource] = true
	}
	for _, r := range []plural{argoRollouts, namespaces, allNamespaces, configMaps, secrets, storageClasses, ingressClasses, podsElsewhere, metrics} {
		s.asked[r] = true
	}
	for doc := range strings.SplitSeq(strings.Join(documents, "\n---\n"), "\n---\n") {
		if strings.TrimSpace(doc) != "" {
			s.add(t, doc)
		}
	}
	s.AllPods = s.Pods
	s.index()
	return s
}

func decode[T any](t *testing.T, doc string, to *[]T, meta func(*T) *metav1.ObjectMeta) {
	t.Helper()
	var o T
	if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
		t.Fatalf("%v in:\n%s", err, doc)
	}
	m := meta(&o)
	if m.Namespace == "" {
		m.Namespace = "shop"
	}
	if m.CreationTimestamp.IsZero() {
		m.CreationTimestamp = metav1.NewTime(now.Add(-time.Hour))
	}
	*to = append(*to, o)
}

func (s *Snapshot) add(t *testing.T, doc string) {
	t.Helper()
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
		t.Fatalf("%v in:\n%s", err, doc)
	}
	switch kind.Kind {
	case "Pod":
		decode(t, doc, &s.Pods, func(o *corev1.Pod) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Service":
		decode(t, doc, &s.Services, func(o *corev1.Service) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "EndpointSlice":
		decode(t, doc, &s.EndpointSlices, func(o *discoveryv1.EndpointSlice) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Event":
		decode(t, doc, &s.Events, func(o *corev1.Event) *metav1.ObjectMeta { return &o.ObjectMeta })
		e := &s.Events[len(s.Events)-1]
		e.InvolvedObject.Namespace = e.Namespace
		if e.LastTimestamp.IsZero() {
			e.LastTimestamp = metav1.NewTime(now.Add(-time.Minute))
		}
	case "Deployment":
		decode(t, doc, &s.Deployments, func(o *appsv1.Deployment) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "ReplicaSet":
		decode(t, doc, &s.ReplicaSets, func(o *appsv1.ReplicaSet) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "StatefulSet":
		decode(t, doc, &s.StatefulSets, func(o *appsv1.StatefulSet) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "ReplicationController":
		decode(t, doc, &s.Controllers, func(o *corev1.ReplicationController) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "DaemonSet":
		decode(t, doc, &s.DaemonSets, func(o *appsv1.DaemonSet) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Job":
		decode(t, doc, &s.Jobs, func(o *batchv1.Job) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "PersistentVolumeClaim":
		decode(t, doc, &s.Claims, func(o *corev1.PersistentVolumeClaim) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "NetworkPolicy":
		decode(t, doc, &s.Policies, func(o *networkingv1.NetworkPolicy) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Ingress":
		decode(t, doc, &s.Ingresses, func(o *networkingv1.Ingress) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "HorizontalPodAutoscaler":
		decode(t, doc, &s.Autoscalers, func(o *autoscalingv2.HorizontalPodAutoscaler) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "PodDisruptionBudget":
		decode(t, doc, &s.Budgets, func(o *policyv1.PodDisruptionBudget) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Rollout":
		var o argoRollout
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		o.Namespace = "shop"
		s.Rollouts = append(s.Rollouts, o)
	case "PodMetrics":
		var o podMetrics
		if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		o.Namespace = "shop"
		s.Metrics = append(s.Metrics, o)
	case "Node":
		decode(t, doc, &s.Nodes, func(o *corev1.Node) *metav1.ObjectMeta { return &o.ObjectMeta })
		s.Nodes[len(s.Nodes)-1].Namespace = ""
	case "Namespace":
		s.Space = new(corev1.Namespace)
		if err := yaml.UnmarshalStrict([]byte(doc), s.Space); err != nil {
			t.Fatal(err)
		}
		s.Namespaces = append(s.Namespaces, metav1.PartialObjectMetadata{ObjectMeta: s.Space.ObjectMeta})
	case "IngressClass":
		decode(t, doc, &s.IngressClasses, func(o *networkingv1.IngressClass) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "StorageClass":
		decode(t, doc, &s.StorageClasses, func(o *storagev1.StorageClass) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "ConfigMap":
		decode(t, doc, &s.ConfigMaps, func(o *metav1.PartialObjectMetadata) *metav1.ObjectMeta { return &o.ObjectMeta })
	case "Secret":
		var o corev1.Secret
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		for k, v := range o.StringData { // as the API server does
			o.Data = map[string][]byte{k: []byte(v)}
		}
		s.Secrets = append(s.Secrets, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: o.Name, Namespace: "shop"}})
		s.PullSecrets[Ref{"secret", "shop", o.Name}] = pullSecretOf(&o)
	case "Port": // what one of pod "it" answered, or another's
		var o struct {
			metav1.TypeMeta
			Pod               string
			Port              int32
			Loopback, Address reply
			MayNot, TLS       bool
		}
		if err := yaml.UnmarshalStrict([]byte(doc), &o); err != nil {
			t.Fatal(err)
		}
		s.answers[place{"shop", cmp.Or(o.Pod, "it"), o.Port}] = answer{loopback: o.Loopback, address: o.Address, mayNot: o.MayNot, tls: o.TLS}
	default:
		t.Fatalf("the tests do not know a %q", kind.Kind)
	}
}

// tried is one row of a check's table.
type tried struct {
	name      string
	documents string
	// ids are those of the findings, in the report's order; none for nothing.
	ids string
	// says is in the first finding, in its summary or its next steps.
	says string
}

// graves is how grave a finding may be, by its id.
func graves() map[string][]Severity {
	out := map[string][]Severity{}
	for _, c := range checks() {
		for ids, may := range map[string][]Severity{c.problems: {Problem}, c.warnings: {Warning}, c.either: {Problem, Warning}} {
			for _, id := range strings.Fields(ids) {
				out[id] = may
			}
		}
	}
	return out
}

// Each finding's id is in the documentation, with how grave it may be.
func TestTheDocumentationHasAllFindings(t *testing.T) {
	page, err := os.ReadFile("../../docs/diagnose.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "## What it finds")
	known, told := graves(), map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		for _, id := range strings.Split(cells[1], ",") {
			id = strings.Trim(id, " `")
			var may []string
			for _, s := range known[id] {
				may = append(may, string(s))
			}
			if want := strings.Join(may, " or "); strings.TrimSpace(cells[3]) != want {
				t.Errorf("%s is told to be %q, and is %q", id, strings.TrimSpace(cells[3]), want)
			}
			told[id] = true
		}
	}
	for id := range known {
		if !told[id] {
			t.Errorf("docs/diagnose.md does not have %s", id)
		}
	}
}

// try runs all checks on each row. What they find has to be as grave as the table of them says.
func try(t *testing.T, rows []tried) {
	t.Helper()
	known := graves()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			found := load(t, row.documents).report(nil).Findings
			var ids []string
			for _, f := range found {
				ids = append(ids, f.ID)
				for _, f := range append([]Finding{f}, f.Symptoms...) {
					if !slices.Contains(known[f.ID], f.Severity) {
						t.Errorf("%s is a %s, and may be %q", f.ID, f.Severity, known[f.ID])
					}
				}
				if f.Summary == "" || f.Why == "" || len(f.Next) == 0 || len(f.State)+len(f.Events) == 0 || !slices.Contains(directions, f.Direction) {
					t.Errorf("%s lacks something: %+v", f.ID, f)
				}
			}
			if got := strings.Join(ids, " "); got != row.ids {
				t.Fatalf("found %q, want %q: %+v", got, row.ids, found)
			}
			if row.says == "" {
				return
			}
			if text := found[0].Summary + "\n" + strings.Join(found[0].Next, "\n"); !strings.Contains(text, row.says) {
				t.Errorf("it says:\n%s\nand not: %s", text, row.says)
			}
		})
	}
}

// withPod is a pod "it" of one container "app", with more of its spec, of its container and its status.
func withPod(container, spec, status string) string {
	if container != "" {
		container = ", " + container
	}
	return `
kind: Pod
metadata: {name: it, labels: {app: it}, uid: u1}
spec:
  restartPolicy: Always
  nodeName: node1
  containers: [{name: app, image: registry.example/app:1` + container + `}]` + indented(spec) + `
status:
  phase: Pending` + indented(status) + "\n"
}

func indented(text string) string {
	if text == "" {
		return ""
	}
	return "\n  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// running is a container that runs and is ready.
const running = `conditions: [{type: Ready, status: "True"}, {type: ContainersReady, status: "True"}]
containerStatuses: [{name: app, ready: true, started: true, restartCount: 0, image: "", imageID: "", state: {running: {startedAt: "2026-11-28T11:00:00Z"}}}]`

// waits is the status of a container that waits.
func waits(reason, message string) string {
	return `containerStatuses: [{name: app, ready: false, restartCount: 0, image: "", imageID: "", state: {waiting: {reason: ` + reason + `, message: '` + message + `'}}}]`
}

// event is one about the pod, or another object as KIND/NAME, a minute ago.
func event(about, reason, message string) string {
	kind, name, _ := strings.Cut(about, "/")
	return "\n---\nkind: Event\nmetadata: {name: " + strings.ToLower(reason+name) + "}\ninvolvedObject: {kind: " + kind + ", name: " + name + "}\nreason: " + reason + "\nmessage: '" + message + "'\n"
}
