//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bridge/internal/hint"
)

// shop is what a GET is answered with, by path: a deployment with two pods' owners, and no claim on it.
var shop = map[string]string{
	"/apis/apps/v1/namespaces/shop/deployments/orders": `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "orders", "namespace": "shop", "uid": "1"}, "spec": {"replicas": 2,
		"selector": {"matchLabels": {"app": "orders"}}, "template": {"metadata": {"labels": {"app": "orders"}}, "spec": {"containers": [{"name": "app", "image": "orders:1", "args": ["serve"],
		"ports": [{"containerPort": 1}]}]}}}}`,
	"/apis/apps/v1/namespaces/shop/replicasets/orders-1": `{"metadata": {"name": "orders-1", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "orders", "controller": true}]}}`,
	"/api/v1/namespaces/shop/pods/once-x":                `{"metadata": {"name": "once-x", "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "once", "controller": true}]}}`,
	"/api/v1/namespaces/shop/pods/old-x":                 `{"metadata": {"name": "old-x", "ownerReferences": [{"apiVersion": "v1", "kind": "ReplicationController", "name": "old", "controller": true}]}}`,
	"/api/v1/namespaces/shop/pods/orders-1-x":            `{"metadata": {"name": "orders-1-x", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-1", "controller": true}]}}`,
}

// shopServer is an API server with nothing but shop, where everything is allowed and every claim is refused. It returns a kubeconfig.
func shopServer(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, answer := http.StatusOK, shop[r.URL.Path]
		switch collection := path.Base(r.URL.Path); {
		case collection == "selfsubjectaccessreviews":
			answer = `{"status": {"allowed": true}}`
		case r.Method == http.MethodPost && r.URL.Query().Get("dryRun") == "All":
			code, answer = http.StatusCreated, "{}"
		case r.Method != http.MethodGet:
			code, answer = http.StatusForbidden, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403, "message": "not in this test"}`
		case answer == "" && path.Base(path.Dir(r.URL.Path)) == "shop": // a list
			answer = "{}"
		case answer == "":
			code, answer = http.StatusNotFound, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"apiVersion": "v1", "kind": "Config", "current-context": "a", "contexts": [{"name": "a", "context": {"cluster": "a", "namespace": "shop"}}],
		"clusters": [{"name": "a", "cluster": {"server": %q}}]}`, server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Pods of what is never swapped are refused, with what to do.
func TestPodsOfWhatIsNotSwapped(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	config := shopServer(t)
	for pod, want := range map[string]string{
		"once-x": "job/once: nobody calls a job, so there is no traffic to bring here\n  hint: run its program here",
		"old-x":  "replicationcontroller/old: what a replication controller runs is not swapped\n  hint: swap what has taken its place",
	} {
		var stderr bytes.Buffer
		code := run(t.Context(), []string{"swap", "--kubeconfig", config, "--proxy-image", "proxy:1", "pod", pod, "--local-timeout", "0"}, strings.NewReader(""), io.Discard, &stderr)
		if code != int(hint.Usage) || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d, %q", pod, code, stderr.String())
		}
	}
}

// The first line of a swap says which mode it is, why, and who gives back, whatever else there is to say.
func TestFirstLineOfASwap(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	config := shopServer(t)
	const keeper = "mode replace, since a keeper can start the original again: the deployment is scaled to 0 while you have its traffic; 1m0s after this machine's last heartbeat a keeper in the cluster gives it back by itself"
	for _, c := range []struct {
		name, first string
		more        []string // lines behind it, in this order
		code        hint.Code
		args        []string
	}{
		{"the process is awaited", keeper, []string{"port 1 -> localhost:1", "waiting for a process on localhost:1", "bridge: nothing listens on localhost:1"}, hint.Other,
			[]string{"deployment", "orders", "--local-timeout", "1ms"}},
		{"a pod is named", keeper, []string{"pod/orders-1-x belongs to deployment/orders: that one it is", "bridge: nothing listens"}, hint.Other,
			[]string{"pod", "orders-1-x", "--local-timeout", "0"}},
		{"a program is started", keeper, []string{"in the cluster the container runs the entrypoint of its image, with 'serve'", "bridge: create the swap's Lease in shop: not in this test"}, hint.Forbidden,
			[]string{"replicaset/orders-1", "--network", "host", "--", "true"}},
		{"nobody is wanted", "mode replace, since with --self-restore never nobody has to start the original again: the deployment is scaled to 0 while you have its traffic; nobody gives it back when this machine is gone (--self-restore never)",
			[]string{"bridge: nothing listens"}, hint.Other, []string{"deployment", "orders", "--local-timeout", "0", "--self-restore", "never"}},
		{"the mode is the user's", "mode replace: the deployment is scaled to 0", []string{"bridge: nothing listens"}, hint.Other, []string{"deployment", "orders", "--local-timeout", "0", "--mode", "replace"}},
		{"there is none", "pod/orders-1-x belongs to deployment/orders", []string{"bridge: no container"}, hint.Usage, []string{"pod", "orders-1-x", "--container", "web"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := run(t.Context(), append([]string{"swap", "--kubeconfig", config, "--proxy-image", "proxy:1"}, c.args...), strings.NewReader(""), io.Discard, &stderr); code != int(c.code) {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			lines := strings.Split(stderr.String(), "\n")
			if !strings.HasPrefix(lines[0], c.first) {
				t.Errorf("the first line is %q, want %q", lines[0], c.first)
			}
			for _, want := range c.more {
				i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, want) })
				if i < 1 {
					t.Fatalf("no %q behind in:\n%s", want, stderr.String())
				}
				lines = lines[i:]
			}
		})
	}
}
