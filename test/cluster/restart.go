//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// restart kills components of a running cluster, without a warning, and starts each again as it was. It
// returns when they work again. A killed restart leaves a cluster that is not whole, which up mends.
func restart(name string, components []string, progress io.Writer) error {
	if len(components) == 0 {
		return usagef("restart: name at least one component, as status does")
	}
	ctx, c, done, err := hold(name, progress)
	if err != nil {
		return err
	}
	defer done()
	for _, component := range components {
		i := slices.IndexFunc(c.Processes, func(p process) bool { return p.Name == component && component != netemProcess })
		if i < 0 {
			return usagef("restart: no component %q; see: cluster status --name %s", component, name)
		}
		if err := c.again(c.Processes[i]); err != nil {
			return fmt.Errorf("restart %s: %w", component, err)
		}
		if err := c.until(ctx, component, func() error { return c.works(ctx, component) }); err != nil {
			return err
		}
	}
	return nil
}

// kill ends a process of the cluster's, without a warning, and its record.
func (c *cluster) kill(old process) {
	for old.alive() {
		syscall.Kill(old.PID, syscall.SIGKILL) //nolint:errcheck // it may have ended just now
		time.Sleep(time.Millisecond)
	}
	c.Processes = slices.DeleteFunc(c.Processes, func(p process) bool { return p == old })
}

// again kills a process and starts another with its arguments in its namespaces.
func (c *cluster) again(old process) error {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", old.PID))
	if err != nil {
		return err
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	// Open, they outlive the process: of containerd's mount namespace it may have been the last member.
	var namespaces []string
	for kind, option := range map[string]string{"net": "--net", "mnt": "--mount"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", old.PID, kind))
		if err != nil {
			return err
		}
		defer f.Close()
		namespaces = append(namespaces, fmt.Sprintf("%s=/proc/%d/fd/%d", option, os.Getpid(), f.Fd()))
	}
	c.kill(old)
	p, err := c.start(old.Name, namespaces, args...)
	if err != nil {
		return err
	}
	// nsenter needs what is open here; it is gone when the component's own program runs.
	for p.alive() {
		now, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		if err == nil && string(now) == string(cmdline) {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return c.dead()
}

// works is nil when a component that was restarted does its work again.
func (c *cluster) works(ctx context.Context, component string) error {
	a, err := c.api()
	if err != nil {
		return err
	}
	kind, node, ok := strings.Cut(component, "-node")
	switch {
	case !ok:
		return a.do(ctx, "GET", "/readyz", "", nil, nil)
	case kind == "containerd":
		conn, err := net.DialTimeout("unix", c.containerdSocket(int(node[0]-'0')), time.Second)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	// A kubelet that has just started knows no pod yet, and says of each that it does not exist.
	var known, assigned struct{ Items []json.RawMessage }
	if err := a.get(ctx, "/api/v1/nodes/node"+node+"/proxy/pods", &known); err != nil {
		return err
	}
	if err := a.get(ctx, "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode"+node, &assigned); err != nil {
		return err
	}
	if len(known.Items) < len(assigned.Items) {
		return fmt.Errorf("%d of %d pods are known", len(known.Items), len(assigned.Items))
	}
	return nil
}
