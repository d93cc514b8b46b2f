//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// stateRoot has one folder per cluster. It is not below /run, which may be too small for images.
const stateRoot = "/var/lib/bridge-cluster"

// maxClusters is how many address ranges there are, see addresses.
const maxClusters = 16

// cluster is one cluster as recorded in its folder's state.json, which is rewritten after each step,
// so that a killed up can be undone by down.
type cluster struct {
	Name       string
	Index      int // of its address ranges, unique among the clusters of this machine
	Kubernetes string
	IPv6       bool // beside IPv4
	Programs   programs
	Nodes      int
	Ready      bool // up came to its end
	Processes  []process

	mu sync.Mutex // guards Processes and the file while up starts things at the same time
}

func (c *cluster) dir(elem ...string) string {
	return filepath.Join(append([]string{stateRoot, c.Name}, elem...)...)
}

func (c *cluster) kubeconfig() string { return c.dir("kubeconfig") }

// save writes state.json whole or not at all.
func (c *cluster) save() error {
	content, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	file := c.dir("state.json")
	if err := os.WriteFile(file+".part", append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".part", file)
}

// load reads the record of a cluster. The error wraps fs.ErrNotExist when there is none.
func load(name string) (*cluster, error) {
	c := &cluster{Name: name}
	content, err := os.ReadFile(c.dir("state.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(content, c); err != nil {
		return nil, fmt.Errorf("%s: %w", c.dir("state.json"), err)
	}
	return c, nil
}

// running is load for commands that need a cluster which is up.
func running(name string) (*cluster, error) {
	c, err := load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no cluster %q; start it with: cluster up --name %s", name, name)
	}
	if err != nil {
		return nil, err
	}
	if !c.Ready || !c.alive() {
		return nil, fmt.Errorf("cluster %q is not whole (a killed up, or the machine restarted); run: cluster up --name %s", name, name)
	}
	return c, nil
}

// hold is running for commands that change the cluster: nobody else does until done, and ctx bounds what they do.
func hold(name string, progress io.Writer) (ctx context.Context, c *cluster, done func(), err error) {
	if _, err := running(name); err != nil {
		return nil, nil, nil, err
	}
	c, _, unlock, err := open(name, progress)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), upTimeout)
	return ctx, c, func() { cancel(); unlock() }, nil
}

// open locks a cluster's folder, made if needed, and reads its record. found is false when there was
// none: then the cluster has only a name.
func open(name string, progress io.Writer) (c *cluster, found bool, unlock func(), err error) {
	c = &cluster{Name: name}
	for { // a down may remove the folder between the two steps
		if err := os.MkdirAll(c.dir(), 0o755); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, nil, err
		}
		if unlock, err = lock(c.dir(), progress); err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, false, nil, err
		}
	}
	recorded, err := load(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, false, unlock, nil
	case err != nil:
		unlock()
		return nil, false, nil, err
	}
	return recorded, true, unlock, nil
}

// claim records a new cluster, with an index no other has.
func (c *cluster) claim(progress io.Writer) error {
	unlock, err := lock(filepath.Dir(stateRoot), progress)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := os.ReadDir(stateRoot)
	if err != nil {
		return err
	}
	taken := map[int]bool{}
	for _, d := range all {
		if other, err := load(d.Name()); err == nil && other.Name != c.Name {
			taken[other.Index] = true
		}
	}
	for c.Index = 0; taken[c.Index]; {
		c.Index++
	}
	if c.Index >= maxClusters {
		return fmt.Errorf("%d clusters exist already; take one of them down", maxClusters)
	}
	return c.save()
}

// forget removes the record and, after the last cluster, the folder above it.
func (c *cluster) forget() error {
	if err := os.RemoveAll(c.dir()); err != nil {
		return err
	}
	err := os.Remove(stateRoot)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil // there are other clusters, or another went at the same time
	}
	return err
}
