//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// upTimeout is how long a built cluster may take to be Ready. It takes seconds, more when the machine is
// busy compiling.
const upTimeout = 3 * time.Minute

// up brings the cluster up, or adds what is missing to one that is, and prints how to use it.
func up(o options, stdout, progress io.Writer) error {
	if err := checkMachine(); err != nil {
		return err
	}
	source, err := sourceFolder(o.source)
	if err != nil {
		return err
	}
	if err := installPackages(progress); err != nil {
		return err
	}
	if err := checkKernel(o.ipv6); err != nil {
		return err
	}
	built, err := build(source, o.kubernetes, progress)
	if err != nil {
		return err
	}

	c, found, unlock, err := open(o.name, progress)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case found && c.Ready && c.alive() && c.Kubernetes != o.kubernetes:
		return fmt.Errorf("cluster %q runs Kubernetes %s; to change that: cluster down --name %s", c.Name, c.Kubernetes, c.Name)
	case found && c.Ready && c.alive() && o.ipv6 && !c.IPv6:
		return fmt.Errorf("cluster %q has IPv4 only; to change that: cluster down --name %s", c.Name, c.Name)
	case found && c.Ready && c.alive() && c.Nodes >= o.nodes:
		return c.printUse(stdout)
	case found && (!c.Ready || !c.alive()):
		fmt.Fprintf(progress, "cluster %q is not whole (a killed up, or the machine restarted): starting it anew\n", c.Name)
		if err := c.remove(progress); err != nil {
			return fmt.Errorf("remove what is left of cluster %q: %w", c.Name, err)
		}
		unlock()
		return up(o, stdout, progress)
	case !found:
		if err := c.unused(); err != nil {
			return errors.Join(err, c.forget())
		}
	}

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	ctx, cancelTimeout := context.WithTimeout(ctx, upTimeout)
	defer cancelTimeout()
	start := time.Now()
	if !found {
		fmt.Fprintf(progress, "starting cluster %q, Kubernetes %s\n", c.Name, o.kubernetes)
		c.Kubernetes, c.IPv6 = o.kubernetes, o.ipv6
		if err := c.startFirst(ctx, built, progress); err != nil {
			if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = fmt.Errorf("interrupted: %w", err)
			}
			if undo := c.remove(progress); undo != nil {
				return errors.Join(err, undo)
			}
			return err
		}
	}
	if c.Nodes < o.nodes {
		fmt.Fprintln(progress, "starting node2")
		if err := c.startSecond(ctx, progress); err != nil {
			return fmt.Errorf("node2: %w; the rest of the cluster runs; remove all with: cluster down --name %s", err, c.Name)
		}
	}
	fmt.Fprintf(progress, "ready after %s\n", time.Since(start).Round(100*time.Millisecond))
	return c.printUse(stdout)
}

// unused returns an error when somebody else has a namespace by one of the cluster's names.
func (c *cluster) unused() error {
	for _, ns := range c.namespaces() {
		if _, err := os.Lstat(nsFile(ns)); err == nil {
			return fmt.Errorf("the network namespace %s exists and is not recorded as a cluster's; delete it (ip netns delete %s), or use another --name", ns, ns)
		}
	}
	return nil
}

// startFirst starts a cluster of one node.
func (c *cluster) startFirst(ctx context.Context, built programs, progress io.Writer) error {
	if err := c.claim(progress); err != nil {
		return err
	}
	for _, dir := range []string{"log", "pki/front-proxy", "images", "bin"} {
		if err := os.MkdirAll(c.dir(dir), 0o755); err != nil {
			return err
		}
	}
	// The cluster keeps its own program: the cache may be emptied, or lie below a folder nodes do not see.
	c.Programs = built
	c.Programs.Kubernetes = c.dir("bin", "kubernetes")
	if err := linkOrCopy(built.Kubernetes, c.Programs.Kubernetes); err != nil {
		return err
	}
	if err := c.makeCgroups(); err != nil {
		return err
	}
	if err := c.makeNetwork(progress); err != nil {
		return err
	}
	if err := c.makeCredentials(); err != nil {
		return err
	}
	ca, err := loadAuthority(c.dir("pki"))
	if err != nil {
		return err
	}
	if err := c.prepareNode(1, ca); err != nil {
		return err
	}
	if err := c.startEtcdAndAPIServer(); err != nil {
		return err
	}
	// containerd starts and imports the images while the API server starts.
	type result struct {
		p   process
		err error
	}
	containerd := make(chan result, 1)
	go func() {
		p, err := c.startFirstContainerd(ctx, built)
		containerd <- result{p, err}
	}()
	a, err := c.api()
	if err == nil {
		err = c.until(ctx, "the API server", func() error { return a.do(ctx, "GET", "/readyz", "", nil, nil) })
	}
	if err == nil {
		err = c.startControllers()
	}
	r := <-containerd
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	if err := c.startKubelet(1, r.p); err != nil {
		return err
	}
	if err := c.until(ctx, "the first objects", func() error { return a.applyAll(ctx, c.expand(manifests)) }); err != nil {
		return err
	}
	if err := c.finishNode(ctx, a, 1); err != nil {
		return err
	}
	c.Nodes = 1
	if err := c.until(ctx, "CoreDNS", func() error { return c.isReady(ctx, a) }); err != nil {
		return err
	}
	c.Ready = true
	return c.save()
}

func (c *cluster) startFirstContainerd(ctx context.Context, built programs) (process, error) {
	err := errors.Join(
		writeImage(c.dir("images", "pause.tar"), "bridge-cluster/pause:1", "pause", built.Pause),
		writeImage(c.dir("images", "coredns.tar"), "bridge-cluster/coredns:1", "coredns", built.CoreDNS),
	)
	if err != nil {
		return process{}, err
	}
	return c.startContainerd(ctx, 1)
}

// startSecond adds node2 to a running cluster.
func (c *cluster) startSecond(ctx context.Context, progress io.Writer) error {
	c.Ready = false // until it is whole again
	if err := c.save(); err != nil {
		return err
	}
	ca, err := loadAuthority(c.dir("pki"))
	if err != nil {
		return err
	}
	if err := c.joinNode2(progress); err != nil {
		return err
	}
	if err := c.prepareNode(2, ca); err != nil {
		return err
	}
	containerd, err := c.startContainerd(ctx, 2)
	if err != nil {
		return err
	}
	if err := c.startKubelet(2, containerd); err != nil {
		return err
	}
	a, err := c.api()
	if err != nil {
		return err
	}
	if err := c.finishNode(ctx, a, 2); err != nil {
		return err
	}
	c.Nodes, c.Ready = 2, true
	return c.save()
}

// finishNode waits until a node has registered, records its pod range in it and waits until it is Ready.
func (c *cluster) finishNode(ctx context.Context, a *api, n int) error {
	ranges := c.families(c.podRange(n), c.podRange6(n))
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": ranges[0], "podCIDRs": ranges}})
	if err != nil {
		return err
	}
	err = c.until(ctx, nodeName(n)+" to register", func() error {
		return a.do(ctx, "PATCH", "/api/v1/nodes/"+nodeName(n), "application/merge-patch+json", patch, nil)
	})
	if err != nil {
		return err
	}
	return c.until(ctx, nodeName(n), func() error { return c.nodeReady(ctx, a, n) })
}

func (c *cluster) printUse(w io.Writer) error {
	_, err := fmt.Fprintf(w, `export KUBECONFIG=%s
# the laptop, which reaches the API server and nothing else of the cluster:
nsenter --net=%s
`, c.kubeconfig(), nsFile(c.laptopNS()))
	return err
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil {
		return nil
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// down removes the cluster. Without one there is nothing to do, and that is no error.
func down(name string, progress io.Writer) error {
	if err := checkMachine(); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(stateRoot, name)); errors.Is(err, os.ErrNotExist) {
		fmt.Fprintf(progress, "no cluster %q\n", name)
		return nil
	}
	c, _, unlock, err := open(name, progress)
	if err != nil {
		return err
	}
	defer unlock()
	return c.remove(progress)
}

// remove undoes everything up made, also half of it: processes, mounts, namespaces, control groups, and
// at last the record.
func (c *cluster) remove(progress io.Writer) error {
	if err := c.stop(); err != nil {
		return err // the rest is in use
	}
	err := errors.Join(c.removeNetwork(progress), unmountBelow(c.dir()), c.removeCgroups())
	if err != nil {
		return err
	}
	return c.forget()
}
