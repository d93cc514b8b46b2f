package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// targetArgs accepts "deployment NAME" and "deployment/NAME".
func targetArgs(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		args = args[:dash]
	}
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("name one workload: %s", cmd.Use)
	}
	return nil
}

// parseWorkload is the target in "deployment NAME" or "deployment/NAME", if it is of a kind that has, or may have, a template and replicas.
func parseWorkload(args []string) (kube.Target, error) {
	if len(args) == 1 && !strings.Contains(args[0], "/") {
		return kube.Target{}, hint.Newf(hint.Usage, "write for example: deployment NAME", "%q is a kind or a name, and both are needed", args[0])
	}
	switch kind, _, _ := strings.Cut(strings.ToLower(args[0]), "/"); strings.TrimSuffix(kind, "s") {
	case "job", "cronjob", "cj":
		return kube.Target{}, refuseJob(strings.Join(args, "/"))
	}
	t, err := kube.ParseTarget(args...)
	if err != nil {
		return kube.Target{}, err
	}
	return t, refuseKind(t)
}

func refuseJob(what string) error {
	return hint.Newf(hint.Usage, "run its program here: bridge connect reaches what it calls", "%s: nobody calls a job, so there is no traffic to bring here", what)
}

// refuseKind says why a target of this kind cannot be swapped, if so.
func refuseKind(t kube.Target) error {
	switch t.Kind {
	case kube.DaemonSet:
		return hint.Newf(hint.Usage, "bridge forward "+t.String()+" PORT reaches one of its pods", "%s has a pod on each node, and this machine is one place: it cannot be swapped", t)
	case kube.Job:
		return refuseJob(t.String())
	case kube.ReplicationController:
		return hint.Newf(hint.Usage, "swap what has taken its place: deployment NAME", "%s: what a replication controller runs is not swapped", t)
	case kube.Service:
		return hint.Newf(hint.Usage, "name the workload behind it: deployment NAME", "%s: workloads are swapped, and the services before them with them", t)
	}
	return nil
}

// workload is what a swap of t is about: t, or the workload that it belongs to, which is said.
func (a *app) workload(ctx context.Context, k *kube.Client, t kube.Target) (kube.Target, error) {
	owner, err := k.Owner(ctx, k.Namespace, t)
	if err != nil {
		return t, err
	}
	if err := refuseKind(owner); err != nil {
		return t, err
	}
	if owner != t {
		a.say(fmt.Sprintf("%s belongs to %s: that one it is", t, owner))
	}
	return owner, nil
}
