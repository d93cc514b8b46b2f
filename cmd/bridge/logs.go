package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/logs"
	"bridge/internal/rights"
	"bridge/internal/terminal"
)

func newLogsCommand(a *app) *cobra.Command {
	o := logs.Options{Tail: -1}
	cmd := &cobra.Command{
		Use:   "logs TYPE/NAME",
		Short: "Print the logs of all containers of a workload's pods",
		Long: `logs prints what the containers of a pod, or of all pods of a workload, have printed, init containers' too. With -f it goes on, over
restarts, rollouts and lost connections, until Ctrl-C, or until the pod that was named has ended.`,
		Example: `  bridge logs deployment/orders -f --since 5m
  bridge logs pod/orders-0 -c app --previous`,
		Args: func(_ *cobra.Command, args []string) error { return podArgs(args) },
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := kube.ParseTarget(args...)
			if err != nil {
				return err
			}
			if o.Follow && o.Previous {
				return hint.Newf(hint.Usage, "leave out one of them", "--previous is of a container that has ended, and -f waits for more")
			}
			if o.Since < 0 {
				return hint.Newf(hint.Usage, "write for example --since 5m", "--since %s is in the future", o.Since)
			}
			if o.Tail < -1 {
				return hint.Newf(hint.Usage, "write a number of lines, or -1 for all", "--tail %d is no number of lines", o.Tail)
			}
			if !cmd.Flags().Changed("prefix") {
				o.Prefix = t.Kind != kube.Pod || o.Container == ""
			}
			o.Colour = terminal.Is(a.stdout) && os.Getenv("NO_COLOR") == ""
			k, err := a.kube()
			if err != nil {
				return err
			}
			return rights.Logs.Needed(k, (&logs.Log{Kube: k, Target: t, Options: o, Out: a.stdout, Say: a.say}).Run(cmd.Context()))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.Container, "container", "c", "", "of this container alone")
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what comes")
	f.BoolVarP(&o.Previous, "previous", "p", false, "of each container that which ran before it was restarted")
	f.BoolVar(&o.Timestamps, "timestamps", false, "the time before each line, as the node has it")
	f.DurationVar(&o.Since, "since", time.Duration(0), "no older lines than this (default: all)")
	f.Int64Var(&o.Tail, "tail", o.Tail, "so many lines of each container, of those that are there at the start (default: all)")
	f.BoolVar(&o.Prefix, "prefix", false, "each line says where it is from (default: yes, unless one container of one pod is named)")
	return cmd
}
