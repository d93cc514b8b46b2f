// Command cluster runs a real Kubernetes on one Linux machine, for tests and the demo: etcd, the API
// server, controllers, scheduler, kubelet, kube-proxy and CoreDNS, built from Go modules, on Debian's
// containerd and runc. It needs root, and neither a container registry nor a virtual machine.
//
// A cluster has a name, and everything it is made of carries that name, so that several live side by
// side: /var/lib/bridge-cluster/NAME has its state, each node is the network namespace NAME-node1 or
// NAME-node2, and NAME-laptop is the namespace of a machine that reaches the API server and nothing
// else of the cluster. What exists in these places is the state; no daemon keeps it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

const usage = `cluster runs a real Kubernetes on this machine, in network namespaces of its own.

Usage:
  cluster up      [--name NAME] [--nodes 1|2] [--ipv6] [--kubernetes 1.35.4|1.34.4]
  cluster down    [--name NAME]
  cluster status  [--name NAME]
  cluster kubectl [--name NAME] ARGUMENTS...   kubectl, run in the laptop's namespace
  cluster load    [--name NAME] IMAGE.tar...   import OCI or docker archives into every node; an argument
                                               IMAGE=PROGRAM makes an image of one static program first
  cluster netem   [--name NAME] delay=20ms loss=1% rate=1gbit
                                               make the laptop far away; each setting applies to each
                                               direction, so a round trip takes twice the delay
                                               longer (ping -U shows it; ping alone, half of it)
  cluster netem   [--name NAME] off
  cluster restart [--name NAME] COMPONENT...   kill components, by the names that status prints, and start them
                                               again; returns when they work
  cluster rollouts [--name NAME]               add Argo Rollouts: its resources, and its controller
  cluster metrics [--name NAME] [off]          add the metrics API: metrics-server; off: take it away
  cluster build   [--kubernetes VERSION]       build what up would build, and start nothing
  cluster build   rollouts|metrics             build what these would build

--name defaults to BRIDGE_CLUSTER_NAME, else "bridge". Results go to stdout, progress to stderr.
Exit codes: 0 done, 1 error, 2 usage; those of kubectl for kubectl.
`

// options is what the command line says, before anything is looked up.
type options struct {
	name       string
	nodes      int
	ipv6       bool // beside IPv4
	kubernetes string
	source     string // folder of this program's sources; empty: find it
}

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func usagef(format string, a ...any) error {
	return usageError{fmt.Errorf(format, a...)}
}

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
	if errors.As(err, new(usageError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// run is main without the exit: the command line in args, results to stdout, progress to stderr.
func run(args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usagef("no command\n\n%s", usage)
	}
	verb, args := args[0], args[1:]
	o, args, err := parse(verb, args)
	if errors.Is(err, flag.ErrHelp) || verb == "help" || verb == "--help" || verb == "-h" {
		_, err := fmt.Fprint(stdout, usage)
		return err
	}
	if err != nil {
		return err
	}
	return dispatch(verb, o, args, stdout, stderr)
}

func parse(verb string, args []string) (options, []string, error) {
	o := options{name: os.Getenv("BRIDGE_CLUSTER_NAME"), nodes: 1, kubernetes: versions[0]}
	if o.name == "" {
		o.name = "bridge"
	}
	f := flag.NewFlagSet(verb, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.name, "name", o.name, "")
	f.StringVar(&o.source, "source", "", "")
	if verb == "up" || verb == "build" {
		f.IntVar(&o.nodes, "nodes", o.nodes, "")
		f.BoolVar(&o.ipv6, "ipv6", false, "")
		f.StringVar(&o.kubernetes, "kubernetes", o.kubernetes, "")
	}
	if verb == "kubectl" {
		// Everything after kubectl is kubectl's, also what looks like a flag; only a leading --name is ours.
		rest := args
		switch {
		case len(args) > 1 && (args[0] == "--name" || args[0] == "-name"):
			o.name, rest = args[1], args[2:]
		case len(args) > 0 && strings.HasPrefix(args[0], "--name="):
			o.name, rest = strings.TrimPrefix(args[0], "--name="), args[1:]
		}
		return o, rest, o.check()
	}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, nil, err
		}
		return o, nil, usagef("%s: %w", verb, err)
	}
	return o, f.Args(), o.check()
}

// validName keeps every name derived from it legal: namespaces, folders, cgroups and unix socket paths
// (108 bytes).
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,22}[a-z0-9])?$`)

func (o options) check() error {
	if !validName.MatchString(o.name) {
		return usagef("--name %q: use 1 to 24 lower-case letters, digits and inner hyphens", o.name)
	}
	if o.nodes < 1 || o.nodes > maxNodes {
		return usagef("--nodes %d: a cluster has 1 or %d nodes", o.nodes, maxNodes)
	}
	for _, v := range versions {
		if o.kubernetes == v {
			return nil
		}
	}
	return usagef("--kubernetes %q: there is %s", o.kubernetes, strings.Join(versions, " and "))
}

// versions are the Kubernetes releases that can be built, the default first. Each has its go.mod in
// the folder kubernetes.
var versions = []string{"1.35.4", "1.34.4"}

// maxNodes is 2: the routes between nodes are one veth pair.
const maxNodes = 2
