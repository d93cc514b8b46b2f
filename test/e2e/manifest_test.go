//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bridge/internal/hint"
)

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
