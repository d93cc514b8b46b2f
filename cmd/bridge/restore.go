package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/swap"
)

func newRestoreCommand(a *app) *cobra.Command {
	var all, everywhere, held bool
	cmd := &cobra.Command{
		Use:   "restore KIND NAME | connect NAME | forward NAME | diagnose NAME | env NAME | --all",
		Short: "Give back what a swap changed, from any machine",
		Long: `restore gives a swapped workload back, whoever swapped it and from wherever: the record of what to
undo is in the cluster. It also removes the pod of a connect, forward, diagnose, env or files that was killed. bridge status lists them.

With --all it does so for everything in the namespace that was left behind, and names what somebody holds.`,
		Example: `  bridge restore deployment orders -n shop
  bridge restore connect bridge-connect-7k2m4x9q -n shop
  bridge restore --all -n shop            # what killed bridges have left there
  bridge restore --all -A --held          # everything, everywhere, also from those who are at work`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return fmt.Errorf("--all takes no name: %s", cmd.Use)
			case all:
				return nil
			case everywhere || held:
				return fmt.Errorf("--all-namespaces and --held go with --all")
			}
			return targetArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			k, err := a.kube()
			if err != nil {
				return err
			}
			r := &swap.Restorer{Kube: k, Say: a.progress()}
			if all {
				namespace := k.Namespace
				if everywhere {
					namespace = ""
				}
				return r.RestoreAll(ctx, namespace, identity(), held)
			}
			if kind := args[0]; slices.Contains([]string{proxypod.KindConnect, proxypod.KindForward, proxypod.KindDiagnose, proxypod.KindEnv}, kind) {
				if len(args) != 2 {
					return hint.Newf(hint.Usage, "bridge status lists them", "name the %[1]s to remove: bridge restore %[1]s NAME", kind)
				}
				if err := rights.CheckRemove(ctx, k, kind, args[1]); err != nil {
					return err
				}
				if err := proxypod.Remove(ctx, k, kind, k.Namespace, args[1], nil, a.say); err != nil {
					return err
				}
				a.say(kind + " " + args[1] + " is removed")
				return nil
			}
			t, err := parseWorkload(args)
			if err != nil {
				return err
			}
			if t, err = a.workload(ctx, k, t); err != nil {
				return err
			}
			if err := rights.Restore.For(t.Kind).Check(ctx, k, "restore "+t.String(), false); err != nil {
				return err
			}
			return r.Restore(ctx, t, identity())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&all, "all", false, "everything in the namespace that was left behind")
	f.BoolVarP(&everywhere, "all-namespaces", "A", false, "with --all: in all namespaces")
	f.BoolVar(&held, "held", false, "with --all: also what a bridge that is at work holds; it ends")
	return cmd
}
