//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func dispatch(verb string, o options, args []string, stdout, stderr io.Writer) error {
	addOn := verb == "build" && (slices.Equal(args, []string{"rollouts"}) || slices.Equal(args, []string{"metrics"}))
	off := verb == "metrics" && slices.Equal(args, []string{"off"})
	if len(args) > 0 && !addOn && !off && slices.Contains([]string{"up", "down", "status", "build", "rollouts", "metrics"}, verb) {
		return usagef("%s takes no argument, not %q", verb, args[0])
	}
	switch verb {
	case "up":
		return up(o, stdout, stderr)
	case "down":
		return down(o.name, stderr)
	case "status":
		return status(o.name, stdout)
	case "kubectl":
		return kubectl(o.name, args)
	case "load":
		return loadImages(o.name, args, stdout)
	case "netem":
		return netem(o.name, args, stderr)
	case "restart":
		return restart(o.name, args, stderr)
	case netemVerb:
		return netemRun(o.name, args)
	case "rollouts":
		return rollouts(o, stderr)
	case "metrics":
		if off {
			return metricsOff(o.name, stderr)
		}
		return metrics(o, stderr)
	case "build":
		source, err := sourceFolder(o.source)
		if err != nil {
			return err
		}
		switch {
		case !addOn:
			_, err = build(source, o.kubernetes, stderr)
		case args[0] == "rollouts":
			_, err = buildRollouts(source, stderr)
		default:
			_, err = buildMetrics(source, stderr)
		}
		return err
	}
	return usagef("no command %q\n\n%s", verb, usage)
}

// kubectl replaces this process with kubectl in the laptop's namespace; it returns only errors.
func kubectl(name string, args []string) error {
	c, err := running(name)
	if err != nil {
		return err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	argv := append(append([]string{"nsenter"}, inNetNS(c.laptopNS(), c.Programs.Kubernetes, "kubectl")...), args...)
	return fmt.Errorf("kubectl: %w", syscall.Exec(nsenter, argv, append(os.Environ(), "KUBECONFIG="+c.kubeconfig())))
}

// loadImages imports archives into every node. An argument "IMAGE=PROGRAM" makes an image of one
// static program first.
func loadImages(name string, archives []string, stdout io.Writer) error {
	if len(archives) == 0 {
		return usagef("load: name at least one archive")
	}
	c, err := running(name)
	if err != nil {
		return err
	}
	for _, archive := range archives {
		named := archive
		if reference, program, ok := strings.Cut(archive, "="); ok {
			file, err := os.CreateTemp("", "bridge-image-*.tar")
			if err != nil {
				return fmt.Errorf("load: %w", err)
			}
			defer os.Remove(file.Name())
			file.Close()
			if err := writeImage(file.Name(), reference, filepath.Base(program), program); err != nil {
				return fmt.Errorf("load %s: %w", archive, err)
			}
			archive = file.Name()
		}
		if _, err := os.Stat(archive); err != nil {
			return fmt.Errorf("load: %w", err)
		}
		for n := 1; n <= c.Nodes; n++ {
			if err := c.importImage(n, archive); err != nil {
				return fmt.Errorf("load %s into %s: %w", archive, nodeName(n), err)
			}
		}
		fmt.Fprintf(stdout, "loaded %s\n", named)
	}
	return nil
}

// status prints what there is of a cluster; the error says what is missing.
func status(name string, stdout io.Writer) error {
	c, err := load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no cluster %q; start it with: cluster up --name %s", name, name)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "cluster %s: Kubernetes %s, nodes: %d, state in %s\n", c.Name, c.Kubernetes, c.Nodes, c.dir())
	for _, p := range c.Processes {
		state := "running"
		if !p.alive() {
			state = "ended"
		}
		fmt.Fprintf(stdout, "%-26s %-8s %d\n", p.Name, state, p.PID)
	}
	if _, err := running(name); err != nil {
		return err
	}
	return c.printUse(stdout)
}
