//go:build linux

package main

import (
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// The metrics API (metrics.k8s.io) is no part of a Kubernetes: a cluster gets it on demand, as the real metrics-server, from its Go module.

const (
	metricsModule  = "sigs.k8s.io/metrics-server"
	metricsProcess = "metrics-server"
	metricsPort    = "14443" // on node1's addresses: other than what others like to use
)

// metricsManifests have the API server pass on what is asked of that API. Who may read a namespace may read what its pods use, as in the release.
//
//go:embed metrics.yaml
var metricsManifests string

func buildMetrics(source string, progress io.Writer) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}
	return target{
		name: metricsProcess, folder: "metrics", pkg: metricsModule + "/cmd/metrics-server", ldflags: "-s -w", cold: "3 minutes",
		sources: []string{"go.mod", "go.sum"},
	}.build(source, cache, progress)
}

// metrics has a running cluster serve the metrics API, if it does not yet, and returns when each node has metrics.
func metrics(o options, progress io.Writer) error {
	source, err := sourceFolder(o.source)
	if err != nil {
		return err
	}
	server, err := buildMetrics(source, progress)
	if err != nil {
		return err
	}
	ctx, c, done, err := hold(o.name, progress)
	if err != nil {
		return err
	}
	defer done()
	a, err := c.api()
	if err != nil {
		return err
	}
	start := time.Now()
	// One that was started before may not have come to work, or not be there any more: c.until says so.
	if !slices.ContainsFunc(c.Processes, func(p process) bool { return p.Name == metricsProcess }) {
		if err := c.startMetrics(server); err != nil {
			return err
		}
	}
	ca, err := os.ReadFile(c.dir("pki", "ca.crt"))
	if err != nil {
		return err
	}
	text := strings.NewReplacer("{address}", c.apiAddress(), "{port}", metricsPort, "{ca}", base64.StdEncoding.EncodeToString(ca)).Replace(metricsManifests)
	if err := a.applyAll(ctx, text); err != nil {
		return err
	}
	err = c.until(ctx, metricsProcess, func() error {
		var nodes struct{ Items []struct{} }
		if err := a.get(ctx, "/apis/metrics.k8s.io/v1beta1/nodes", &nodes); err != nil {
			return err
		}
		if len(nodes.Items) < c.Nodes {
			return errors.New("not all nodes have metrics")
		}
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "metrics: ready after %s\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// metricsOff takes the metrics API away again.
func metricsOff(name string, progress io.Writer) error {
	ctx, c, done, err := hold(name, progress)
	if err != nil {
		return err
	}
	defer done()
	a, err := c.api()
	if err != nil {
		return err
	}
	for _, doc := range documents(metricsManifests) { // without its API first: nobody is to ask who is not there
		if err := a.do(ctx, "DELETE", doc.path, "", nil, nil); err != nil && !strings.Contains(err.Error(), "404") {
			return err
		}
	}
	for _, p := range slices.Clone(c.Processes) {
		if p.Name == metricsProcess {
			c.kill(p)
		}
	}
	return c.save()
}

// startMetrics starts metrics-server. It knows the API server, which asks it in its users' place, by the front proxy's authority.
func (c *cluster) startMetrics(server string) error {
	program := c.dir("bin", metricsProcess)
	if err := linkOrCopy(server, program); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	ca, err := loadAuthority(c.dir("pki"))
	if err != nil {
		return err
	}
	if err := ca.issue(c.dir("pki"), metricsProcess, metricsProcess, "", metricsProcess+".kube-system.svc"); err != nil {
		return err
	}
	_, err = c.start(metricsProcess, inNetNS(c.nodeNS(1)), program,
		"--kubeconfig="+c.kubeconfig(), "--authentication-kubeconfig="+c.kubeconfig(), "--authorization-kubeconfig="+c.kubeconfig(),
		"--secure-port="+metricsPort,
		"--tls-cert-file="+c.dir("pki", metricsProcess+".crt"), "--tls-private-key-file="+c.dir("pki", metricsProcess+".key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-insecure-tls",                                   // kubelets sign for themselves
		"--metric-resolution=15s", "--kubelet-request-timeout=13s", // a kubelet with many pods on a busy machine takes its time
	)
	return err
}
