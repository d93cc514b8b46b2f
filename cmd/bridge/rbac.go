package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bridge/internal/hint"
	"bridge/internal/kube"
	"bridge/internal/rights"
)

type rbacOptions struct {
	users, groups, accounts []string
	podProxy                bool
}

func newRBACCommand(a *app) *cobra.Command {
	var o rbacOptions
	var names []string
	for _, c := range rights.Commands() {
		names = append(names, string(c))
	}
	cmd := &cobra.Command{
		Use:   "rbac " + strings.Join(names, "|") + " [KIND]",
		Short: "Print the Role that a command needs, ready to apply",
		Long: `rbac prints the Role with what one command does in a namespace, and nothing else: each rule says what it is
for. KIND is that of the workload: deployment (the default), statefulset, replicaset, rollout or pod. With a subject it prints the RoleBinding too. It reads the kubeconfig for the namespace, and asks no cluster.

The built-in role edit has all that the commands need, but for the right of debug and capture to add containers to pods; these Roles are for giving less.`,
		Example: `  bridge rbac swap -n shop --user ada | kubectl apply -f -
  bridge rbac swap statefulset -n shop --user ada | kubectl apply -f -
  bridge rbac forward -n shop --group developers --serviceaccount ci:runner`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return fmt.Errorf("name one command: %s", strings.Join(names, ", "))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error { return a.rbac(args, o) },
	}
	f := cmd.Flags()
	// The usual --user names an entry of the kubeconfig, which this command has no use for.
	f.StringArrayVar(&o.users, "user", nil, "bind this user to it, by the name the cluster knows (repeatable)")
	f.StringArrayVar(&o.groups, "group", nil, "bind this group to it (repeatable)")
	f.StringArrayVar(&o.accounts, "serviceaccount", nil, "bind this ServiceAccount to it, NAMESPACE:NAME (repeatable)")
	carrierFlag(cmd, &o.podProxy)
	return cmd
}

func (a *app) rbac(args []string, o rbacOptions) error {
	c := rights.Command(args[0])
	if !slices.Contains(rights.Commands(), c) {
		next := "bridge rbac --help"
		if args[0] == "env" || args[0] == "files" {
			next = "they take what connect does: bridge rbac connect"
		}
		return hint.Newf(hint.Usage, next, "there is no Role for %q", args[0])
	}
	if len(args) == 2 {
		t, err := parseWorkload([]string{args[1], "NAME"})
		if err == nil && !slices.Contains(kube.WorkloadKinds(), t.Kind) {
			err = hint.Newf(hint.Usage, "bridge rbac --help", "there is no Role for a %s of its own", t.Kind)
		}
		if err != nil {
			return err
		}
		c = c.For(t.Kind)
	}
	namespace, err := kube.Namespace(a.flags)
	if err != nil {
		return err
	}
	var subjects []rights.Subject
	for _, u := range o.users {
		subjects = append(subjects, rights.Subject{Kind: "User", Name: u})
	}
	for _, g := range o.groups {
		subjects = append(subjects, rights.Subject{Kind: "Group", Name: g})
	}
	for _, s := range o.accounts {
		ns, n, ok := strings.Cut(s, ":")
		if !ok || ns == "" || n == "" {
			return hint.Newf(hint.Usage, "write NAMESPACE:NAME", "--serviceaccount %q", s)
		}
		subjects = append(subjects, rights.Subject{Kind: "ServiceAccount", Namespace: ns, Name: n})
	}
	fmt.Fprint(a.stdout, c.Role(namespace, o.podProxy))
	for _, s := range subjects {
		fmt.Fprint(a.stdout, "---\n"+c.Binding(namespace, s))
	}
	return nil
}
