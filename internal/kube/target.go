package kube

import (
	"strings"

	"bridge/internal/hint"
)

// Kind is a kind of object that traffic can be brought to or taken from, as it is written in messages.
type Kind string

// The kinds bridge knows.
const (
	Pod         Kind = "pod"
	Service     Kind = "service"
	Deployment  Kind = "deployment"
	StatefulSet Kind = "statefulset"
	ReplicaSet  Kind = "replicaset"
	DaemonSet   Kind = "daemonset"
	Rollout     Kind = "rollout" // Argo's, where the cluster has it
	Job         Kind = "job"

	ReplicationController Kind = "replicationcontroller"
)

// WorkloadKinds are the kinds that a Workload may have.
func WorkloadKinds() []Kind { return []Kind{Deployment, StatefulSet, ReplicaSet, Pod, Rollout} }

// APIVersion is that of the kind's objects: "apps/v1".
func (k Kind) APIVersion() string {
	switch k {
	case Pod, Service, ReplicationController:
		return "v1"
	case Job:
		return "batch/v1"
	case Rollout:
		return "argoproj.io/v1alpha1"
	}
	return "apps/v1"
}

// Group is the kind's API group; "" is the core group.
func (k Kind) Group() string { return groupOf(k.APIVersion()) }

func groupOf(apiVersion string) string {
	group, _, grouped := strings.Cut(apiVersion, "/")
	if !grouped {
		return ""
	}
	return group
}

// Resource is the kind in the API's paths and in Roles: "deployments".
func (k Kind) Resource() string { return string(k) + "s" }

// Object is the kind as objects have it: "Deployment".
func (k Kind) Object() string {
	switch k {
	case StatefulSet:
		return "StatefulSet"
	case ReplicaSet:
		return "ReplicaSet"
	case DaemonSet:
		return "DaemonSet"
	case ReplicationController:
		return "ReplicationController"
	}
	return strings.ToUpper(string(k[:1])) + string(k[1:])
}

// Target names an object in the namespace at hand.
type Target struct {
	Kind Kind
	Name string
}

// String is what ParseTarget reads: "deployment/orders".
func (t Target) String() string { return string(t.Kind) + "/" + t.Name }

// ParseTarget reads "KIND/NAME" or, from two arguments, KIND and NAME, with kubectl's short names.
// A bare name means a pod, as for kubectl.
func ParseTarget(args ...string) (Target, error) {
	const examples = "write for example svc/orders, pod/orders-0 or deployment/orders"
	var kind, name string
	switch {
	case len(args) == 1:
		var slash bool
		if kind, name, slash = strings.Cut(args[0], "/"); !slash {
			kind, name = "pod", args[0]
		}
	case len(args) == 2:
		kind, name = args[0], args[1]
	default:
		return Target{}, hint.Newf(hint.Usage, examples, "a target is KIND/NAME, got %q", strings.Join(args, " "))
	}
	k, ok := parseKind(kind)
	if !ok {
		return Target{}, hint.Newf(hint.Usage, examples, "target %q: unknown kind %q", strings.Join(args, " "), kind)
	}
	if name == "" || strings.ContainsAny(name, "/ ") {
		return Target{}, hint.Newf(hint.Usage, examples, "target %q: %q is not a name", strings.Join(args, " "), name)
	}
	return Target{Kind: k, Name: name}, nil
}

func parseKind(s string) (Kind, bool) {
	// "deployments.apps" and "deployment.v1.apps" are what kubectl prints with -o name.
	s, _, _ = strings.Cut(strings.ToLower(s), ".")
	switch s {
	case "pod", "pods", "po":
		return Pod, true
	case "service", "services", "svc":
		return Service, true
	case "deployment", "deployments", "deploy":
		return Deployment, true
	case "statefulset", "statefulsets", "sts":
		return StatefulSet, true
	case "replicaset", "replicasets", "rs":
		return ReplicaSet, true
	case "daemonset", "daemonsets", "ds":
		return DaemonSet, true
	case "rollout", "rollouts", "ro":
		return Rollout, true
	case "job", "jobs":
		return Job, true
	case "replicationcontroller", "replicationcontrollers", "rc":
		return ReplicationController, true
	}
	return "", false
}
