//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"bridge/internal/hint"
)

// frobsYAML has a kind and an object of it.
const frobsYAML = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: frobs.example.test}
spec:
  group: example.test
  scope: Namespaced
  names: {plural: frobs, singular: frob, kind: Frob}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
---
apiVersion: example.test/v1
kind: Frob
metadata: {name: it}
`

// A field that is misspelt is named, of what is there and of what is not; nothing is made or changed.
func TestDiagnoseAFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const orders = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      containers:
      - name: app
        image: IMAGE
        args: [serve, --name, original]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`
	file := filepath.Join(t.TempDir(), "orders.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "IMAGE", s.image)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	finds := func(code int, words ...string) {
		t.Helper()
		p := w.bridge("diagnose", "-f", file)
		p.exits(code)
		for _, word := range words {
			p.prints(word)
		}
	}
	typo := strings.Replace(orders, "readinessProbe", "redinessProbe", 1)
	restricted := strings.TrimRight(orders, "\n") + restrictedYAML
	before := w.snapshot()
	write(restricted)
	finds(0)
	write(typo)
	finds(int(hint.Problems), "manifest-unknown-field: deployment/orders", "redinessProbe")
	write(strings.Replace(orders, "kind: Deployment", "kind: Deploymint", 1))
	finds(int(hint.Problems), "manifest-kind-unknown", "Deploymint")
	write(strings.Replace(orders, "{app: orders}}\n  template", "{app: other}}\n  template", 1))
	finds(int(hint.Problems), "manifest-invalid: deployment/orders", "spec.template.metadata.labels")
	write(strings.Replace(orders, "  selector: {", "  replicas: two\n  selector: {", 1))
	finds(int(hint.Problems), "manifest-invalid: deployment/orders", "spec.replicas has string")
	write(frobsYAML)
	w.bridge("diagnose", "-f", file).says("not read: a trial of frob (their kind comes with them)")
	write("kind: Pod\napiVersion: v1\nmetadata: {name: root}\nspec: {containers: [{name: app, image: x}]}\n")
	finds(int(hint.Problems), "manifest-refused: pod/root", "PodSecurity")
	write("{")
	w.bridge("diagnose", "-f", file).exits(int(hint.Usage))
	w.assertSnapshot(before)

	w.apply(strings.ReplaceAll(restricted, "IMAGE", s.image))
	w.awaitReady("app=orders", 1)
	before = w.snapshot()
	write(typo)
	finds(int(hint.Problems), "manifest-unknown-field: deployment/orders", "redinessProbe")
	write(strings.Replace(restricted, "matchLabels: {app: orders}", "matchLabels: {app: orders, and: more}", 1))
	finds(int(hint.Problems), "manifest-invalid: deployment/orders", "spec.selector")
	w.assertSnapshot(before)
}

// A change that would be taken is no finding, however what is there was made: what it replaces is not held against it. One that would not be is one.
func TestDiagnoseAFileThatChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	was := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "orders"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "orders"}},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &intstr.IntOrString{IntVal: 1}}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "orders"}},
				Spec: corev1.PodSpec{
					Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
					Containers: []corev1.Container{{
						Name: "app", Image: s.image, Args: []string{"serve"}, Env: []corev1.EnvVar{{Name: "A", Value: "1"}},
						ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}},
					}},
				},
			},
		},
	}
	own := metav1.CreateOptions{FieldManager: "kubectl-create"}
	if _, err := s.client.AppsV1().Deployments(w.ns).Create(t.Context(), was, own); err != nil {
		t.Fatal(err)
	}
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "orders"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "orders"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	service, err := s.client.CoreV1().Services(w.ns).Create(t.Context(), service, own)
	if err != nil {
		t.Fatal(err)
	}
	change := fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {type: NodePort, selector: {app: orders}, ports: [{name: http, port: 8080, nodePort: %d}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders}
spec:
  selector: {matchLabels: {app: orders}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: orders}}
    spec:
      volumes: [{name: data, configMap: {name: settings}}]
      containers:
      - name: app
        image: IMAGE
        args: [serve]
        env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        readinessProbe: {tcpSocket: {port: 8080}}
`, service.Spec.Ports[0].NodePort)
	change = strings.ReplaceAll(change, "IMAGE", s.image)
	w.await("its controller to have seen the deployment", func() bool {
		d, err := s.client.AppsV1().Deployments(w.ns).Get(t.Context(), "orders", metav1.GetOptions{})
		return err == nil && d.Annotations["deployment.kubernetes.io/revision"] != ""
	})
	before := w.snapshot()
	try := func(text string) *process {
		file := filepath.Join(t.TempDir(), "change.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return w.bridge("diagnose", "-f", file, "-o", "json")
	}
	p := try(change)
	p.ends()
	if out := strings.Join(p.stdout.all(), "\n"); strings.Contains(out, `"manifest-`) || !strings.Contains(out, `"findings"`) {
		t.Errorf("a change that would be taken:\n%s", out)
	}
	for from, want := range map[string][2]string{
		"readinessProbe: {tcpSocket: {port: 8080}}": {"readinessProbe: {tcpSocket: {port: 8080}, httpGet: {port: 8080}}", "may not specify more than 1 handler type"},
		"matchLabels: {app: orders}":                {"matchLabels: {app: orders, and: more}", "field is immutable"},
		"port: 8080, nodePort":                      {"port: 80800, nodePort", "spec.ports[0].port"},
		"type: Recreate":                            {"type: Recreate, rolling: {}", `spec.strategy.rolling`},
	} {
		if !strings.Contains(change, from) {
			t.Fatalf("no %q", from)
		}
		p := try(strings.Replace(change, from, want[0], 1))
		p.exits(int(hint.Problems))
		p.prints(want[1])
	}
	w.assertSnapshot(before)
}
