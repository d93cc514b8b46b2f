package main

import (
	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/proxypod"
	"bridge/pkg/swap"
)

func newRestoreCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "restore deployment NAME | connect NAME | env NAME",
		Short: "Give back what a swap changed, from any machine",
		Long: `restore gives a swapped deployment back, whoever swapped it and from wherever: the record of what to
undo is in the cluster. It also removes the pod of a connect, env or files that was killed. bridge status lists them.`,
		Example: `  bridge restore deployment orders -n shop
  bridge restore connect bridge-connect-7k2m4x9q -n shop`,
		Args: targetArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			k, err := a.kube()
			if err != nil {
				return err
			}
			if kind := args[0]; kind == proxypod.KindConnect || kind == proxypod.KindEnv {
				if len(args) != 2 {
					return hint.Newf(hint.Usage, "bridge status lists them", "name the %[1]s to remove: bridge restore %[1]s NAME", kind)
				}
				if err := proxypod.Remove(ctx, k, kind, k.Namespace, args[1]); err != nil {
					return err
				}
				a.say(kind + " " + args[1] + " is removed")
				return nil
			}
			name, err := parseWorkload(args)
			if err != nil {
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
