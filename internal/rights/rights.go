// Package rights knows what each command does in a namespace: one table, from which come the Roles that bridge rbac prints
// and deploy/ has, and what a command asks the API server about before it touches anything. cmd/bridge and pkg/swap call it.
package rights

import (
	"slices"
	"strings"

	"bridge/internal/kube"
)

// Command is one of bridge's commands that talk to a cluster.
type Command string

// The commands there are Roles for.
const (
	Swap    Command = "swap"
	Restore Command = "restore"
	Status  Command = "status"
	Forward Command = "forward"
	Connect Command = "connect"
	// Diagnose has no Check: what may not be read it leaves out, and says so.
	Diagnose Command = "diagnose"
	// Probes has none either: what fails says why.
	Probes Command = "probes"
	// Debug has a Check of its own: CheckDebug.
	Debug Command = "debug"
	// Capture too: CheckCapture.
	Capture Command = "capture"
	// Exec and Logs have none either.
	Exec Command = "exec"
	Logs Command = "logs"
)

// For is c for a workload of that kind: "swap statefulset". For a Deployment that is c itself, and so it is for the commands that do the same
// for all kinds.
func (c Command) For(kind kube.Kind) Command {
	if own := []Command{Swap, Restore, Connect}; kind == kube.Deployment || !slices.Contains(own, c) {
		return c
	}
	return c + " " + Command(kind)
}

// target is the kind of workload that c is for.
func (c Command) target() (Command, kube.Kind) {
	name, kind, other := strings.Cut(string(c), " ")
	if !other {
		kind = string(kube.Deployment)
	}
	return Command(name), kube.Kind(kind)
}

// Commands are all of them, in the order they are shown in.
func Commands() []Command {
	return []Command{Swap, Forward, Connect, Restore, Status, Diagnose, Probes, Logs, Exec, Debug, Capture}
}

// KeeperAccount is the ServiceAccount that an admin prepares for the keepers of a namespace, with the Role of
// deploy/keeper.yaml, for those who may not create a Role.
const KeeperAccount = "bridge-keeper"

// Right is one verb on one kind of object.
type Right struct {
	Group    string // "" for the core group
	Resource string // with its subresource: "pods/portforward"
	Verb     string
	// Name is the one object it is about; empty: all of them.
	Name string
}

// String is what a person is told, "create leases.coordination.k8s.io".
func (r Right) String() string { return r.Verb + " " + r.kind() }

func (r Right) kind() string {
	if r.Group == "" {
		return r.Resource
	}
	base, sub, has := strings.Cut(r.Resource, "/")
	if !has {
		return base + "." + r.Group
	}
	return base + "." + r.Group + "/" + sub
}

// need is how much a command depends on a rule.
type need int

const (
	required need = iota
	carrying      // required, unless the proxy has an image of its own
	optional      // without it the command does its work, and says less or does it less well
	unusual       // for what few want: a comment in the Role
)

// rule is some rights with one purpose.
type rule struct {
	why       string // lines for whoever grants it
	need      need
	group     string
	resources []string // with their subresources; "serviceaccounts NAME" is about the one of that name
	verbs     []string
}

func (r rule) rights() (out []Right) {
	for _, resource := range r.resources {
		resource, name, _ := strings.Cut(resource, " ")
		for _, verb := range r.verbs {
			out = append(out, Right{Group: r.group, Resource: resource, Verb: verb, Name: name})
		}
	}
	return out
}

// podProxy is the carrier's that is not the usual one.
func podProxy() rule {
	return rule{"The tunnel with --carrier podproxy, and for nothing else:", unusual, "", list("pods/proxy"), list("get")}
}

// tokens is what env, files and swap with a CMD can hand out.
func tokens() rule {
	return rule{"Tokens of the workload's ServiceAccount with --token, and for nothing else:", unusual, "", list("serviceaccounts/token"), list("create")}
}

// keeping is what a keeper with rights of its own takes: to make its Role, and to have what that grants.
func keeping(kind kube.Kind) []rule {
	rules := []rule{
		{"Make a keeper, which gives back when the laptop is gone, with a Role of its own for each swap, and for nothing else.\nWho creates a Role has to have what it grants; not needed where an admin has prepared one:",
			unusual, "", list("serviceaccounts"), list("create")},
		{"", unusual, "rbac.authorization.k8s.io", list("roles", "rolebindings"), list("create")},
		{"", unusual, "coordination.k8s.io", list("leases"), list("patch")},
	}
	if kind == kube.Pod { // which is not scaled
		return rules
	}
	return append(rules, rule{"", unusual, kind.Group(), list(kind.Resource() + "/scale"), list("patch")})
}

// scaling is how a workload is stopped and started again; a bare pod never is.
func scaling(kind kube.Kind, why string) []rule {
	if kind == kube.Pod {
		return nil
	}
	return []rule{{why, required, kind.Group(), list(kind.Resource() + "/scale"), list("get", "update")}}
}

// moving is how callers are moved before the original is stopped, and back.
func moving(why string) []rule {
	return []rule{
		{why, optional, "", list("services"), list("get", "patch")},
		{"", optional, "discovery.k8s.io", list("endpointslices"), list("list")},
	}
}

// standing is what proxies take that stand before the original, and admitting where network policies keep them from it.
func standing() []rule {
	return []rule{
		{"Mode standby, beside those two: the Service by which the proxies find the original.",
			optional, "", list("services"), list("create")},
	}
}

func admitting() []rule {
	return []rule{
		{"Mode standby where network policies hold: see them, and let the proxies through.", optional, "networking.k8s.io", list("networkpolicies"), list("list", "create")},
	}
}

func tunnel() rule {
	return rule{"The tunnel. Kubernetes 1.35 and later ask for create for the WebSocket form too.",
		required, "", list("pods/portforward"), list("get", "create")}
}

// sharing is how several people tell a swap's proxies who has which requests.
func sharing() []rule {
	return []rule{
		{"Share a swap, each with a --header or a --path: tell the proxies who has which requests. Without patch on pods\nthey know it within two minutes, and not at once.",
			optional, "", list("configmaps"), list("get", "create", "update")},
		{"", optional, "", list("pods"), list("patch")},
	}
}

func telling() rule {
	return rule{"Tell in the workload's events what happens to it; optional.", optional, "", list("events"), list("create")}
}

func carry() []rule {
	return []rule{
		{"The parts of a carried proxy, which are removed at the end; create is not needed with --proxy-image.",
			required, "", list("configmaps"), list("list", "delete")},
		{"", carrying, "", list("configmaps"), list("create")},
	}
}

// copies are what the deployment controller makes of the record.
func copies(kind kube.Kind) []rule {
	if kind != kube.Deployment && kind != kube.Rollout {
		return nil
	}
	return []rule{{"Remove the copies of the record that the " + string(kind) + " controller makes on ReplicaSets.",
		required, "apps", list("replicasets"), list("list", "patch")}}
}

func owner(kind kube.Kind) []rule {
	if kind == kube.Pod {
		return nil // it may be read already
	}
	return []rule{
		{"Find the workload behind a pod or a ReplicaSet that is named in its place; optional.", optional, "", list("pods"), list("get")},
		{"", optional, "apps", list("replicasets"), list("get")},
	}
}

// rules is the table.
func (c Command) rules() []rule {
	command, kind := c.target()
	target, group := kind.Resource(), kind.Group()
	switch command {
	case Swap:
		return slices.Concat([]rule{
			{"Read the target; write and remove the copy of the undo record on it, and give its field ownership back.",
				required, group, list(target), list("get", "patch")},
			{"The proxy's own Deployment.", required, "apps", list("deployments"), list("get", "create", "delete")},
		}, scaling(kind, "Stop the original and start it again."), copies(kind), owner(kind), []rule{
			{"Find the Services of the target.", required, "", list("services"), list("list")},
		}, moving("Move their endpoints to the proxy before the original is stopped. Without these two a swap works, and\nmay lose requests that the original had not answered."), standing(), admitting(), []rule{
			{"Find the proxy's pod and see why it is not Ready.", required, "", list("pods"), list("list")},
			tunnel(), podProxy(), tokens(),
			{"The claim: who has swapped what, the heartbeat, the undo record.",
				required, "coordination.k8s.io", list("leases"), list("get", "create", "update", "delete")},
		}, carry(), sharing(), []rule{
			{"See whether an admin has prepared a keeper (keeper.yaml). Without one, and without the right to make one, nobody gives back\nwhen the laptop is gone.",
				optional, "", list("serviceaccounts " + KeeperAccount), list("get")},
		}, keeping(kind), []rule{
			telling(),
			{"Look for what else concerns the workload, and say before the swap what will happen; all optional.",
				optional, "autoscaling", list("horizontalpodautoscalers"), list("list")},
			{"", optional, "policy", list("poddisruptionbudgets"), list("list")},
			{"", optional, "", list("resourcequotas", "limitranges"), list("list")},
			{"", optional, "", list("persistentvolumeclaims", "namespaces"), list("get")},
			{"The same for KEDA, where it is installed:", unusual, "keda.sh", list("scaledobjects"), list("list")},
		})
	case Restore:
		return slices.Concat([]rule{
			{"Read the target, remove the copy of the undo record on it, give its field ownership back.", required, group, list(target), list("get", "patch")},
			{"The proxy's own Deployment.", required, "apps", list("deployments"), list("get", "delete")},
		}, scaling(kind, "Start the original again."), copies(kind), owner(kind), moving("Move the callers back: what is to be done to Services is asked for where the swap has moved them. The other is optional."), []rule{
			{"See the proxy's pod end.", required, "", list("pods"), list("list")},
			{"Have a proxy leave the DNS answers of a headless Service before it ends, where no network policies are in the way; optional.", optional, "", list("pods"), list("patch")},
			{"", optional, "networking.k8s.io", list("networkpolicies"), list("list")},
			{"Take the claim with the undo record, and delete it at the end.",
				required, "coordination.k8s.io", list("leases"), list("get", "create", "update", "delete")},
			{"The parts of a carried proxy.", required, "", list("configmaps"), list("list", "delete")},
			{"Find what was left behind: bridge restore --all.", optional, "coordination.k8s.io", list("leases"), list("list")},
			{"", optional, "apps", list("deployments", "statefulsets", "replicasets"), list("list")},
			{"The same for Argo's Rollouts, where there are any:", unusual, kube.Rollout.Group(), list("rollouts"), list("list")},
			telling(),
		})
	case Status:
		return []rule{
			{"Who has swapped what.", required, "coordination.k8s.io", list("leases"), list("list")},
			{"Whether a swap's keeper is ready; optional.", optional, "apps", list("deployments"), list("get")},
		}
	case Diagnose:
		return append([]rule{
			{"The pods, of which all else hangs.", required, "", list("pods"), list("list")},
			{"What the checks look at beside them; all optional: what may not be read is said, and left out.",
				optional, "", list("services", "events", "persistentvolumeclaims", "replicationcontrollers"), list("list")},
			{"", optional, "apps", list("deployments", "replicasets", "statefulsets", "daemonsets"), list("list")},
			{"", optional, "batch", list("jobs", "cronjobs"), list("list")},
			{"", optional, "discovery.k8s.io", list("endpointslices"), list("list")},
			{"", optional, "networking.k8s.io", list("ingresses", "networkpolicies"), list("list")},
			{"", optional, "autoscaling", list("horizontalpodautoscalers"), list("list")},
			{"", optional, "policy", list("poddisruptionbudgets"), list("list")},
			{"The same for Argo's Rollouts, where there are any:", unusual, kube.Rollout.Group(), list("rollouts"), list("list")},
			{"What the pods use, where the cluster has metrics (an admin of a namespace has that right to give only there):", unusual, "metrics.k8s.io", list("pods"), list("list")},
			{"Whether the namespace is there, or goes.", optional, "", list("namespaces"), list("get")},
			{"Swaps that were left behind.", optional, "coordination.k8s.io", list("leases"), list("list")},
			{"The last lines of a container that ended.", optional, "", list("pods/log"), list("get")},
			{"What the pods' ports answer.", optional, "", list("pods/portforward"), list("get", "create")},
			{"The same at the pods' addresses, which tells a port that is open on the pod's loopback alone. Who may do this reaches every port of every\npod in the namespace by HTTP:",
				unusual, "", list("pods/proxy"), list("get")},
			{"The names of ConfigMaps, of which those are told that a pod refers to and that are not there.", optional, "", list("configmaps"), list("list")},
			{"The same for Secrets, and what kind of pull secret an image was refused with. Only names are asked for, and of pull secrets the\nregistries, but who may do this may read them all:",
				unusual, "", list("secrets"), list("get", "list")},
		}, inside()...)
	case Probes:
		return slices.Concat(finding(), []rule{
			{"Run the probes that ask a port.", required, "", list("pods/portforward"), list("get", "create")},
			{"What the kubelet has said of them; optional.", optional, "", list("events"), list("list")},
			{"Run the probes that are commands, in their containers. Who may do this runs any command there:", unusual, "", list("pods/exec"), list("get", "create")},
		}, inside())
	case Debug:
		return slices.Concat(finding(), ephemeral(), []rule{running()}, attaching(), copying())
	case Capture:
		return slices.Concat(finding(), ephemeral(), []rule{{"Run the program in it that sees packets. Kubernetes 1.35 and later ask for create for the WebSocket form too.", required, "", list("pods/exec"), list("get", "create")}})
	case Logs:
		return append(finding(), rule{"What their containers have printed.", required, "", list("pods/log"), list("get")})
	case Exec:
		return append(finding(), running())
	case Forward:
		return []rule{
			{"Resolve what is forwarded to: a Service's ports, a workload's selector, the pods that are ready.",
				required, "", list("services", "replicationcontrollers"), list("get")},
			{"", required, "apps", list("deployments", "statefulsets", "replicasets", "daemonsets"), list("get")},
			{"", required, "batch", list("jobs"), list("get")},
			{"", required, "", list("pods"), list("get", "list")},
			{"The same for Argo's Rollouts, where there are any:", unusual, kube.Rollout.Group(), list("rollouts"), list("get")},
			{"Follow them without asking every three seconds; optional.", optional, "", list("pods"), list("watch")},
			{"Find the Services: --all, -l. Without it one that is named is read, every three seconds.",
				optional, "", list("services"), list("list", "watch")},
			{"Follow a Service's endpoints. Without it the Service's pods are followed instead.",
				optional, "discovery.k8s.io", list("endpointslices"), list("list", "watch")},
			{"Each connection is a port-forward. Kubernetes 1.35 and later ask for create for the WebSocket form too.",
				required, "", list("pods/portforward"), list("get", "create")},
		}
	case Connect:
		return slices.Concat([]rule{
			{"The proxy's own Deployment; get says why it has no pod (a quota, an admission rule).",
				required, "apps", list("deployments"), list("get", "create", "delete")},
			{"Read the workload to look at (env, files).", required, group, list(target), list("get")},
			{"Find the proxy's pod, and an image that the nodes already have to carry the proxy on.",
				required, "", list("pods"), list("list")},
			tunnel(), podProxy(), tokens(),
			{"The claim and its heartbeat.",
				required, "coordination.k8s.io", list("leases"), list("get", "create", "update", "delete")},
		}, carry(), owner(kind), []rule{
			{"Suggest a real Service in the printed example, know those for --pac, and meet a quota that wants CPU limits; optional.",
				optional, "", list("services", "resourcequotas"), list("list")},
			{"Notice a node that cannot give a pod the sysctl that ping takes; optional.", optional, "", list("events"), list("list")},
			{"Answer names of Services that have not changed without asking the cluster again; optional. In other namespaces it takes the same there.",
				optional, "", list("services"), list("list", "watch")},
			{"", optional, "discovery.k8s.io", list("endpointslices"), list("list", "watch")},
		})
	}
	return nil
}

// ephemeral is how a container is added to a pod.
func ephemeral() []rule {
	return []rule{{"Add a container to a pod that runs. The built-in roles edit and admin do not have this one.", required, "", list("pods/ephemeralcontainers"), list("patch")}}
}

// attaching is for a container of debug's with an image of the user's.
func attaching() []rule {
	return []rule{
		{"With --image: its streams, and what it has printed.", optional, "", list("pods/attach"), list("get", "create")},
		{"", optional, "", list("pods/log"), list("get")},
	}
}

// copying is for debug's copy of a pod.
func copying() []rule {
	return []rule{
		{"With --copy-to, which does without the right to add containers: the copy, and the program that is carried to it.\nWho may make pods may have them do what any ServiceAccount of the namespace may:", unusual, "", list("pods"), list("create", "delete")},
		{"", unusual, "", list("configmaps"), list("create")},
	}
}

// running is a program of the user's in a container.
func running() rule {
	return rule{"Run a program in a container. Kubernetes 1.35 and later ask for create for the WebSocket form too.", required, "", list("pods/exec"), list("get", "create")}
}

// finding is how the pods of what is named are found.
func finding() []rule {
	return []rule{
		{"The pods of what is named.", required, "", list("pods"), list("get", "list")},
		{"", required, "", list("services", "replicationcontrollers"), list("get")},
		{"", required, "apps", list("deployments", "replicasets", "statefulsets", "daemonsets"), list("get")},
		{"", required, "batch", list("jobs"), list("get")},
		{"The same for Argo's Rollouts, where there are any:", unusual, kube.Rollout.Group(), list("rollouts"), list("get")},
	}
}

// inside is a pod of bridge's to ask from, which is connect's.
func inside() (out []rule) {
	const why = "With --inside beside that: a pod to ask from, and removing it at the end. Who may make pods may have them do what any\nServiceAccount of the namespace may:"
	var have []Right
	for _, r := range Connect.rules() {
		own := r.rights()
		if r.need != required && r.need != carrying || !slices.ContainsFunc(own, func(one Right) bool { return !slices.Contains(have, one) }) {
			continue
		}
		have = append(have, own...)
		out = append(out, rule{"", unusual, r.group, r.resources, r.verbs})
	}
	out[0].why = why
	return out
}

func list(s ...string) []string { return s }

// Required are the rights without which c does not do its work. carried is whether the proxy, if c has one, comes without
// an image of its own.
func (c Command) Required(carried bool) (out []Right) {
	for _, r := range c.rules() {
		if r.need != required && (r.need != carrying || !carried) {
			continue
		}
		for _, right := range r.rights() {
			if !slices.Contains(out, right) { // one may serve two purposes
				out = append(out, right)
			}
		}
	}
	return out
}

// Moving are the rights with which a swap moves callers before it stops the original.
func Moving() []Right { return rightsOf(moving("")) }

// MovingBack are those of Moving without which callers cannot be moved back; without the others giving back says so, and goes on.
func MovingBack() []Right { return rightsOf(moving("")[:1]) }

// Standing are the rights that mode standby takes beside Moving's.
func Standing() []Right { return rightsOf(standing()) }

// Admitting are the rights to let a swap's proxies through network policies.
func Admitting() []Right { return rightsOf(admitting()) }

func rightsOf(rules []rule) (out []Right) {
	for _, r := range rules {
		out = append(out, r.rights()...)
	}
	return out
}

// Sharing are the rights without which nobody joins a swap, or leaves it to others.
func Sharing() []Right { return rightsOf(sharing()[:1]) }

// Keeping are the rights with which a swap of that kind makes a keeper that has a Role of its own.
func Keeping(kind kube.Kind) []Right { return rightsOf(keeping(kind)) }

// Telling is the right to tell in events.
func Telling() []Right { return telling().rights() }

// PodProxy is the right for --carrier podproxy, whose request is a GET.
func PodProxy() []Right { return podProxy().rights() }
