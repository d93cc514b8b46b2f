package main

import (
	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/swap"
)

func newRestoreCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore deployment NAME | connect NAME",
		Short: "Give back what a swap changed, from any machine",
		Long: `restore gives a swapped deployment back, whoever swapped it and from wherever: the record of what to
undo is in the cluster. It also removes the pod of a connect that was killed. bridge status lists both.`,
		Example: `  bridge restore deployment orders -n shop
  bridge restore connect bridge-connect-7k2m4x9q -n shop`,
		Args: targetArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			k, err := a.kube()
			if err != nil {
				return err
			}
			if args[0] == "connect" {
				if len(args) != 2 {
					return hint.Newf(hint.Usage, "bridge status lists them", "name the connect to remove: bridge restore connect NAME")
				}
				if err := rights.CheckRemove(ctx, k, args[1]); err != nil {
					return err
				}
				if err := proxypod.Remove(ctx, k, k.Namespace, args[1]); err != nil {
					return err
				}
				a.say("connect " + args[1] + " is removed")
				return nil
			}
			name, err := parseWorkload(args)
			if err != nil {
				return err
			}
			if err := rights.Restore.Check(ctx, k, "restore deployment/"+name, false); err != nil {
				return err
			}
			r := &swap.Restorer{Kube: k, Say: a.progress()}
			err = r.Restore(ctx, name, identity())
			if err == nil || hint.CodeOf(err) == hint.NotFound {
				if e := swap.ForgetSession(k, name); e != nil {
					a.log.Warn("what this machine keeps of the swap is not removed", "error", e)
				}
			}
			return err
		},
	}
}
