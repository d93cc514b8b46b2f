package main

import (
	"errors"

	"github.com/spf13/cobra"
)

func newForwardCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "forward TYPE/NAME [LOCAL:]REMOTE...",
		Short: "Forward local ports to a Service, a workload or a pod",
		Args:  cobra.MinimumNArgs(2),
		RunE:  func(*cobra.Command, []string) error { return errors.New("forward is not there yet") },
	}
}
