package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/podview"
	"bridge/internal/proxypod"
	"bridge/internal/rights"
	"bridge/pkg/tunnel"
)

func newFilesCommand(a *app) *cobra.Command {
	var o lookOptions
	var token bool
	cmd := &cobra.Command{
		Use:   "files KIND NAME DIR",
		Short: "Write the files that a workload's container has from ConfigMaps and Secrets",
		Long: `files writes into DIR, which has to be new or empty, the files that a container of a deployment, statefulset, replicaset, Argo rollout or bare pod has from
ConfigMaps, Secrets, projected volumes and the downward API, each below its path in the container. For that it starts a pod like the workload's, which no
Service and no controller takes for one of them, and removes it. No right to read Secrets is needed. The files are yours, and stay.`,
		Example: `  bridge files deployment orders ./pod
  bridge files deployment/orders ./pod --token`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || len(args) == 2 && !strings.Contains(args[0], "/") {
				return fmt.Errorf("name one workload and a folder: %s", cmd.Use)
			}
			return targetArgs(cmd, args[:len(args)-1])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := parseWorkload(args[:len(args)-1])
			if err != nil {
				return err
			}
			k, err := a.kube()
			if err != nil {
				return err
			}
			if t, err = a.workload(cmd.Context(), k, t); err != nil {
				return err
			}
			if token {
				if err := rights.CheckTokens(cmd.Context(), k); err != nil {
					return err
				}
			}
			folder, err := podview.OpenFolder(args[len(args)-1])
			if err != nil {
				return hint.New(hint.Usage, err, "")
			}
			defer folder.Close()
			return a.look(cmd.Context(), k, t, o, func(ctx context.Context, p *proxypod.Proxy, c *tunnel.Client) error {
				m := &podview.Mirror{Folder: folder, Look: c.View, Account: proxypod.AccountPath, Say: a.say}
				if token {
					m.Tokens = p.Tokens(false)
				}
				_, err := m.First(ctx)
				return err
			})
		},
	}
	lookFlags(cmd, &o)
	cmd.Flags().BoolVar(&token, "token", false, "write tokens of the workload's ServiceAccount too, good for an hour; needs the right to create serviceaccounts/token")
	return cmd
}
