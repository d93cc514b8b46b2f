//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"
)

const (
	// clusterName keeps this cluster apart from a person's demo and from the tests'.
	clusterName = "bridge-bench"
	// insideVerb runs the program inside the laptop's network namespace.
	insideVerb = "inside"
	image      = "bridge-bench:dev"

	serverPort = 7000 // of the server, in its pod and on the node
	yamuxPort  = 7001 // of yamux's session, on its pod's loopback
)

// outside starts the cluster and runs this program again inside the laptop's network namespace, from
// where the API server is all of the cluster that answers.
func outside(ctx context.Context, o options, args []string) (err error) {
	if os.Getuid() != 0 {
		return errors.New("the embedded cluster needs root: sudo make bench")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	w := world{bin: filepath.Dir(self)}
	if !o.keep {
		defer func() { err = errors.Join(err, w.cluster(context.WithoutCancel(ctx), "down")) }()
	}
	if err := w.cluster(ctx, "up"); err != nil {
		return err
	}
	if err := w.cluster(ctx, "load", image+"="+self); err != nil {
		return err
	}
	argv := append([]string{"--net=/run/netns/" + clusterName + "-laptop", self, insideVerb}, args...)
	cmd := exec.CommandContext(ctx, "nsenter", argv...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/var/lib/bridge-cluster/"+clusterName+"/kubeconfig")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd.Run()
}

// world is what the variants are made of.
type world struct {
	bin  string // folder of the programs
	node string // address of the node, where the API server listens

	server pod // the server that every variant but two ends at
	yamux  pod // the cluster's end of yamux
}

// pod is what is to be known of one.
type pod struct{ name, ip, uid string }

func (w *world) program(name string) string { return filepath.Join(w.bin, name) }

func (w *world) cluster(ctx context.Context, verb string, args ...string) error {
	cmd := exec.CommandContext(ctx, w.program("cluster"), append([]string{verb, "--name", clusterName}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cluster %s: %w", verb, err)
	}
	return nil
}

func (w *world) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, w.program("kubectl"), args...)
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

const podYAML = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - {name: bench, image: "` + image + `", imagePullPolicy: Never, args: [%s]}
---
`

// openWorld starts the pods, and lets the node take the port of its own server.
func openWorld(ctx context.Context) (*world, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &world{bin: filepath.Dir(self)}
	cfg, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	api, err := url.Parse(cfg.Host)
	if err != nil {
		return nil, err
	}
	w.node = api.Hostname()
	// Pods of an earlier run have an earlier build of this program.
	if _, err := w.kubectl(ctx, "", "delete", "pod", "server", "yamux", "--ignore-not-found", "--now"); err != nil {
		return nil, err
	}
	yaml := fmt.Sprintf(podYAML, "server", "serve") + fmt.Sprintf(podYAML, "yamux", "yamux-pod")
	if _, err := w.kubectl(ctx, yaml, "apply", "-f", "-"); err != nil {
		return nil, err
	}
	if _, err := w.kubectl(ctx, "", "wait", "--for=condition=Ready", "pod/server", "pod/yamux", "--timeout=60s"); err != nil {
		return nil, err
	}
	if w.server, err = w.pod(ctx, "server"); err != nil {
		return nil, err
	}
	if w.yamux, err = w.pod(ctx, "yamux"); err != nil {
		return nil, err
	}
	rule := fmt.Sprintf("PREROUTING -i laptop -d %s -p $p --dport %d -j ACCEPT", w.node, serverPort)
	script := fmt.Sprintf("for p in tcp udp; do iptables -t mangle -C %[1]s 2>/dev/null || iptables -t mangle -I %[1]s || exit 1; done", rule)
	if out, err := exec.CommandContext(ctx, "nsenter", onNode("sh", "-c", script)...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return w, nil
}

// onNode are nsenter's arguments for a program in the node's network namespace.
func onNode(argv ...string) []string {
	return append([]string{"--net=/run/netns/" + clusterName + "-node1"}, argv...)
}

// pod asks for one, by name or by what else selects it; of several, the newest.
func (w *world) pod(ctx context.Context, selection ...string) (pod, error) {
	const fields = "jsonpath={..metadata.name} {..status.podIP} {..metadata.uid}"
	out, err := w.kubectl(ctx, "", append([]string{"get", "pod", "--sort-by=.metadata.creationTimestamp", "-o", fields}, selection...)...)
	if err != nil {
		return pod{}, err
	}
	f := strings.Fields(out)
	n := len(f) / 3
	if n == 0 || len(f) != 3*n {
		return pod{}, fmt.Errorf("pod %q: got %q", selection, out)
	}
	return pod{f[n-1], f[2*n-1], f[3*n-1]}, nil
}
