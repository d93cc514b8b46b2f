//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// Argo Rollouts is no part of a Kubernetes: a cluster gets it on demand, as its own controller and resources, from the Go module that
// they are released in.

const (
	rolloutsModule  = "github.com/argoproj/argo-rollouts"
	rolloutsProcess = "rollouts-controller"
	// On the node's loopback and addresses, where pods have no part: other than what others like to use.
	rolloutsHealth, rolloutsMetrics = "18080", "18090"
)

// rolloutsResources are the files of its custom resources, without -crd.yaml. The controller waits until it can list each.
var rolloutsResources = map[string]string{
	"rollout": "rollouts", "experiment": "experiments", "analysis-run": "analysisruns", "analysis-template": "analysistemplates",
	"cluster-analysis-template": "clusteranalysistemplates",
}

// buildRollouts returns the controller, beside which there is a folder crds with its resources.
func buildRollouts(source string, progress io.Writer) (string, error) {
	cache, err := cacheFolder()
	if err != nil {
		return "", err
	}
	t := target{
		name: rolloutsProcess, folder: "rollouts", pkg: rolloutsModule + "/cmd/rollouts-controller", ldflags: "-s -w", cold: "4 minutes",
		sources: []string{"go.mod", "go.sum"},
	}
	controller, err := t.build(source, cache, progress)
	if err != nil {
		return "", err
	}
	crds := filepath.Join(filepath.Dir(controller), "crds")
	if _, err := os.Stat(crds); err == nil {
		return controller, nil
	}
	unlock, err := lock(cache, progress)
	if err != nil {
		return "", err
	}
	defer unlock()
	cmd := exec.Command("go", "mod", "download", "-json", rolloutsModule)
	cmd.Dir = filepath.Join(source, t.folder)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download %s: %w\n%s", rolloutsModule, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return "", fmt.Errorf("download %s: %w", rolloutsModule, err)
	}
	if err := os.RemoveAll(crds + ".part"); err != nil {
		return "", err
	}
	if err := os.CopyFS(crds+".part", os.DirFS(filepath.Join(module.Dir, "manifests", "crds"))); err != nil {
		return "", err
	}
	if err := os.Rename(crds+".part", crds); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return controller, nil
}

// rollouts has a running cluster serve Argo Rollouts, if it does not yet.
func rollouts(o options, progress io.Writer) error {
	source, err := sourceFolder(o.source)
	if err != nil {
		return err
	}
	controller, err := buildRollouts(source, progress)
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
	for file, resource := range rolloutsResources {
		content, err := os.ReadFile(filepath.Join(filepath.Dir(controller), "crds", file+"-crd.yaml"))
		if err != nil {
			return err
		}
		path := "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + resource + ".argoproj.io?fieldManager=bridge-cluster&force=true"
		if err := a.do(ctx, "PATCH", path, "application/apply-patch+yaml", content, nil); err != nil {
			return err
		}
		list := "/apis/argoproj.io/v1alpha1/" + resource
		if err := c.until(ctx, list, func() error { return a.get(ctx, list, nil) }); err != nil {
			return err
		}
	}
	start := time.Now()
	// One that was started before may not have come to work, or not be there any more: c.until says so.
	if !slices.ContainsFunc(c.Processes, func(p process) bool { return p.Name == rolloutsProcess }) {
		if err := c.startRollouts(controller); err != nil {
			return err
		}
	}
	err = c.until(ctx, rolloutsProcess, func() error {
		conn, err := dialIn(ctx, nsFile(c.nodeNS(1)), "tcp", "127.0.0.1:"+rolloutsHealth)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "Argo Rollouts: ready after %s\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// startRollouts starts the controller.
func (c *cluster) startRollouts(controller string) error {
	program := c.dir("bin", rolloutsProcess)
	if err := linkOrCopy(controller, program); err != nil {
		return err
	}
	_, err := c.start(rolloutsProcess, inNetNS(c.nodeNS(1)), program,
		"--kubeconfig="+c.kubeconfig(), "--leader-elect=false", "--healthzPort="+rolloutsHealth, "--metricsPort="+rolloutsMetrics)
	return err
}
