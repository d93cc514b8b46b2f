package diagnose

import (
	"fmt"
	"strings"
	"testing"
)

// unscheduledPod is a pod that the scheduler has said that of.
func unscheduledPod(container, spec, message string) string {
	return strings.Replace(withPod(container, spec, `conditions: [{type: PodScheduled, status: "False", reason: Unschedulable, message: '`+message+`'}]`), "  nodeName: node1\n", "", 1)
}

func aNode(name, spec, labels string) string {
	return "\n---\nkind: Node\nmetadata: {name: " + name + ", labels: {" + labels + "}}\nspec: {" + spec + "}\nstatus: {allocatable: {cpu: 2, memory: 4Gi, pods: 10}}\n"
}

func TestPodsWithoutANode(t *testing.T) {
	one := aNode("node1", "", "disk: hdd")
	tainted := aNode("node2", "taints: [{key: pool, value: gpu, effect: NoSchedule}]", "disk: ssd")
	busy := "\n---\nkind: Pod\nmetadata: {name: busy, namespace: other}\nspec: {nodeName: node1, containers: [{name: app, image: x, resources: {requests: {cpu: 1500m}}, ports: [{containerPort: 80, hostPort: 80}]}]}\nstatus: {phase: Running, conditions: [{type: Ready, status: \"True\"}]}\n"
	ofSecond := func(pod string) string {
		return strings.Replace(owned(pod), "orders-1", "orders-2", 1)
	}
	second := orders[strings.LastIndex(orders, "---")-1:]
	deployment := strings.NewReplacer(`status: "False", reason: ProgressDeadlineExceeded`, `status: "True", reason: ReplicaSetUpdated`).Replace(orders) + strings.ReplaceAll(second, "orders-1", "orders-2")
	apart := ofSecond(unscheduledPod("", "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: it}}}]}}", "0/1 nodes are available: 1 node(s) didn''t match pod anti-affinity rules."))
	before := "\n---\n" + owned(strings.NewReplacer("name: it,", "name: before,", "u1", "u2").Replace(withPod("ports: [{containerPort: 80, hostPort: 80}]", "", running)))
	try(t, []tried{
		{"its own of the version before is in the way", apart + one + before + deployment, "unschedulable-affinity", "if its own pod/before, of the version before, is in the way: strategy type Recreate"},
		{"... and its port", ofSecond(unscheduledPod("ports: [{containerPort: 80, hostPort: 80}]", "", "0/1 nodes are available: 1 node(s) didn''t have free ports for the requested pod ports.")) + one + before + deployment, "unschedulable-ports", "strategy type Recreate"},
		{"... and it is replaced at once", apart + one + before + strings.Replace(deployment, "spec: {selector", "spec: {strategy: {type: Recreate}, selector", 1), "unschedulable-affinity", "make it preferred"},
		{"more than there is", unscheduledPod("resources: {requests: {cpu: 500}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + one + busy, "unschedulable-resources", "ask for 500m cpu at most (resources.requests.cpu), or add a node that has as much"},
		{"cpu", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + one + busy, "unschedulable-resources", "1 cpu asked for, and of 2 cpu only 500m free"},
		{"cpu, the smallest change", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + one + busy, "unschedulable-resources", "ask for 500m cpu at most"},
		{"no nodes", unscheduledPod("", "", "no nodes available to schedule pods"), "unschedulable-no-nodes", "kubectl get nodes"},
		{"a sidecar counts", unscheduledPod("", "initContainers: [{name: s, image: x, restartPolicy: Always, resources: {requests: {cpu: 3}}}]", "0/1 nodes are available: 1 Insufficient cpu.") + one, "unschedulable-resources", "3 cpu"},
		{"a device", unscheduledPod("resources: {requests: {example.test/gpu: 1}}", "", "0/1 nodes are available: 1 Insufficient example.test/gpu.") + one, "unschedulable-resources", "it has no example.test/gpu"},
		{"the nearest node", unscheduledPod("resources: {requests: {cpu: 1}}", "nodeSelector: {disk: ssd}", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {pool: gpu}.") + one + tainted + busy, "unschedulable-taint", `{key: pool, operator: Equal, value: "gpu", effect: NoSchedule}`},
		{"a tolerated taint", unscheduledPod("", "tolerations: [{key: pool, operator: Exists}]\nnodeSelector: {disk: nvme}", "0/1 nodes are available: 1 node(s) didn''t match Pod''s node affinity/selector.") + tainted, "unschedulable-selector", "kubectl label node node2 disk=nvme"},
		{"affinity", unscheduledPod("", "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: NotIn, values: [hdd]}]}]}}}", "0/1 nodes are available: 1 node(s) didn''t match Pod''s node affinity/selector.") + one, "unschedulable-affinity", "disk NotIn hdd"},
		{"pods it wants beside it", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod affinity rules.") + one, "unschedulable-affinity", "beside it"},
		{"pods it wants beside it, by their labels", unscheduledPod("", "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: cache}}}]}}", "0/1 nodes are available: 1 node(s) didn''t match pod affinity rules.") + one + "\n---\n" + strings.NewReplacer("name: it,", "name: other,", "u1", "u2").Replace(withPod("", "", running)), "unschedulable-affinity", "labels app=cache (on nodes in shop: 0 pods), by zone"},
		{"pods it wants beside it, of which some are there", unscheduledPod("", "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {}}, {topologyKey: zone, labelSelector: {matchLabels: {app: cache}}}]}}", "0/1 nodes are available: 1 node(s) didn''t match pod affinity rules.") + one + "\n---\n" + strings.NewReplacer("name: it,", "name: other,", "u1", "u2").Replace(withPod("", "", running)), "unschedulable-affinity", "beside it: labels app=cache (on nodes in shop: 0 pods), by zone"},
		{"pods it keeps from, by their labels", unscheduledPod("", "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: it}}}]}}", "0/1 nodes are available: 1 node(s) didn''t match pod anti-affinity rules.") + one + "\n---\n" + strings.NewReplacer("name: it,", "name: other,", "u1", "u2").Replace(withPod("", "", running)), "unschedulable-affinity", "labels app=it (on nodes in shop: 1 pod), by zone"},
		{"pods it keeps from", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod anti-affinity rules.") + one, "unschedulable-affinity", "anti-affinity"},
		{"spread by a label that no node has", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod topology spread constraints (missing required label).") + one, "unschedulable-spread", "label the nodes with it"},
		{"spread", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod topology spread constraints.") + one, "unschedulable-spread", ""},
		{"ports", unscheduledPod("ports: [{containerPort: 80, hostPort: 80}]", "", "0/1 nodes are available: 1 node(s) didn''t have free ports for the requested pod ports.") + one + busy, "unschedulable-ports", "pod/busy in other"},
		{"cordoned", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) were unschedulable.") + aNode("node1", "unschedulable: true, taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]", ""), "unschedulable-cordoned", "kubectl uncordon node1"},
		{"its volume's node is full", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had volume node affinity conflict.") + aNode("node2", "", "") + one + busy, "unschedulable-resources", "nearest is node1: 1 cpu asked for"},
		{"its volume's node is cordoned", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) had volume node affinity conflict.") + aNode("node2", "", "") + aNode("node1", "unschedulable: true", ""), "unschedulable-cordoned", "kubectl uncordon node1"},
		{"its volume is elsewhere, and a node is for others", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) had untolerated taint {pool: gpu}, 1 node(s) had volume node affinity conflict.") + one + tainted, "unschedulable-volume", "in another zone"},
		{"room for the last of those that keep apart", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn''t match pod anti-affinity rules.") + aNode("node2", "", "") + one + busy, "unschedulable-resources", "nearest is node1"},
		{"affinity on the others", unscheduledPod("", "", "0/3 nodes are available: 1 node(s) were unschedulable, 2 node(s) didn''t match pod affinity rules.") + aNode("node2", "", "") + aNode("node3", "", "") + aNode("node1", "unschedulable: true", ""), "unschedulable-cordoned", "of other nodes the scheduler says: no node has the pods its affinity wants beside it; start those pods, or make the affinity preferred: "},
		{"its volume is elsewhere, in newer words", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) didn''t match PersistentVolume''s node affinity, 1 node(s) had untolerated taint(s).") + one + tainted, "unschedulable-volume", "in another zone"},
		{"no volume to bind", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) didn''t find available persistent volumes to bind, 1 node(s) had untolerated taint(s).") + one + tainted, "unschedulable-volume", "kubectl describe pvc -n shop"},
		{"too little storage", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) did not have enough free storage, 1 node(s) had untolerated taint(s).") + one + tainted, "unschedulable-volume", "kubectl describe pvc -n shop"},
		{"a volume that is gone", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s), 1 node(s) were unschedulable.") + one + aNode("node2", "unschedulable: true", ""), "unschedulable-volume", "a volume that does not exist"},
		{"room that has come since, and a node for others", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s).") + one + tainted, "unschedulable-resources", "no node has as much free as it asks for"},
		{"words that are new, and a node for others", unscheduledPod("", "", "0/2 nodes are available: 1 node(s) were too far away, 1 node(s) had untolerated taint(s).") + one + tainted, "unschedulable", "too far away"},
		{"words that are new, a node for others and one that is not well", unscheduledPod("", "", "0/3 nodes are available: 1 node(s) were too far away, 2 node(s) had untolerated taint(s).") + one + tainted + aNode("node3", "taints: [{key: node.kubernetes.io/not-ready, effect: NoExecute}]", ""), "unschedulable-taint", "nearest is node3"},
		{"words that are new of some", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were too far away.") + aNode("node2", "", "") + one + busy, "unschedulable-resources", "nearest is node1"},
		{"nodes that are not read", unscheduledPod("", "", "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pods."), "unschedulable-resources", ""},
		{"words that are new", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) were too far away.") + one, "unschedulable", "too far away"},
		{"gated", strings.Replace(unscheduledPod("", "schedulingGates: [{name: example.test/wait}]", "Scheduling is blocked due to non-empty scheduling gates"), "reason: Unschedulable", "reason: SchedulingGated", 1) + one, "pod-gated", "example.test/wait"},
		{"its claim comes first", unscheduledPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.") + one +
			"\n---\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {storageClassName: fast}\nstatus: {phase: Pending}\n", "claim-class-absent", "storage class fast does not exist"},
	})
}

// Without the pods of other namespaces it is not known what is free on a node, and no amount is proposed.
func TestNodesWhosePodsAreNotRead(t *testing.T) {
	small := strings.Replace(aNode("node2", "", ""), "cpu: 2", "cpu: 1", 1)
	for _, tt := range []struct{ name, documents, summary, next string }{
		{"the only node", unscheduledPod("resources: {requests: {cpu: 3}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + aNode("node1", "", ""), "3 cpu asked for, and it has 2 in all", "ask for less (resources.requests.cpu), or add a node that has as much"},
		{"words that are new", unscheduledPod("", "nodeSelector: {disk: hdd}", "0/2 nodes are available: 1 node(s) were too far away, 1 node(s) didn''t match Pod''s node affinity/selector.") + aNode("node1", "", "disk: hdd") + small, "too far away", "kubectl describe pod it"},
		{"one may be nearer", unscheduledPod("resources: {requests: {cpu: 2}}", "", "0/2 nodes are available: 2 Insufficient cpu.") + aNode("node1", "", "") + small, "no node has as much free as it asks for", "ask for less, or add a node: "},
	} {
		s := load(t, tt.documents)
		delete(s.asked, podsElsewhere)
		found := s.report(nil).Findings
		if len(found) != 1 || !strings.HasPrefix(found[0].ID, "unschedulable") || !strings.Contains(found[0].Summary, tt.summary) || !strings.HasPrefix(found[0].Next[0], tt.next) {
			t.Errorf("%s: %+v", tt.name, found)
		}
	}
}

// Nodes of which nothing is known that is against them are not told to be farther than others.
func TestNodesThatAreNotShown(t *testing.T) {
	var tainted, free []string
	for i := range 7 {
		tainted = append(tainted, aNode(fmt.Sprint("a", i), "taints: [{key: pool, value: gpu, effect: NoSchedule}]", ""))
		free = append(free, aNode(fmt.Sprint("b", i), "", ""))
	}
	for _, tt := range []struct {
		message string
		nodes   []string
		says    string
	}{
		{"7 node(s) had untolerated taint(s).", tainted, "2 more are farther from fitting"},
		{"7 node(s) didn''t match pod affinity rules.", free, "2 more, and of 2 of them the scheduler alone knows why not"},
		{"3 node(s) were too far away, 7 node(s) had untolerated taint(s).", append(free[:3:3], tainted...), "5 more, and of 3 of them the scheduler alone knows why not"},
		{"6 node(s) had untolerated taint(s).", tainted[:6], ""},
	} {
		found := load(t, unscheduledPod("", "", tt.message)+strings.Join(tt.nodes, "")).report(nil).Findings
		if len(found) != 1 {
			t.Fatalf("%s: %+v", tt.message, found)
		}
		says := ""
		for _, e := range found[0].State {
			if e.From == "nodes" {
				says = e.Says
			}
		}
		if says != tt.says {
			t.Errorf("%s: it says %q, want %q", tt.message, says, tt.says)
		}
	}
}
