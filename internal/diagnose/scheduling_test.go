package diagnose

import (
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
	try(t, []tried{
		{"cpu", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + one + busy, "unschedulable-resources", "1 cpu asked for, and of 2 cpu only 500m cpu free"},
		{"cpu, the smallest change", unscheduledPod("resources: {requests: {cpu: 1}}", "", "0/1 nodes are available: 1 Insufficient cpu.") + one + busy, "unschedulable-resources", "ask for 500m cpu at most"},
		{"no nodes", unscheduledPod("", "", "no nodes available to schedule pods"), "unschedulable-no-nodes", "kubectl get nodes"},
		{"a sidecar counts", unscheduledPod("", "initContainers: [{name: s, image: x, restartPolicy: Always, resources: {requests: {cpu: 3}}}]", "0/1 nodes are available: 1 Insufficient cpu.") + one, "unschedulable-resources", "3 cpu"},
		{"a device", unscheduledPod("resources: {requests: {example.test/gpu: 1}}", "", "0/1 nodes are available: 1 Insufficient example.test/gpu.") + one, "unschedulable-resources", "it has no example.test/gpu"},
		{"the nearest node", unscheduledPod("resources: {requests: {cpu: 1}}", "nodeSelector: {disk: ssd}", "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {pool: gpu}.") + one + tainted + busy, "unschedulable-taint", `{key: pool, operator: Equal, value: "gpu", effect: NoSchedule}`},
		{"a tolerated taint", unscheduledPod("", "tolerations: [{key: pool, operator: Exists}]\nnodeSelector: {disk: nvme}", "0/1 nodes are available: 1 node(s) didn''t match Pod''s node affinity/selector.") + tainted, "unschedulable-selector", "kubectl label node node2 disk=nvme"},
		{"affinity", unscheduledPod("", "affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: NotIn, values: [hdd]}]}]}}}", "0/1 nodes are available: 1 node(s) didn''t match Pod''s node affinity/selector.") + one, "unschedulable-affinity", "disk NotIn hdd"},
		{"pods it wants beside it", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod affinity rules.") + one, "unschedulable-affinity", "beside it"},
		{"pods it keeps from", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod anti-affinity rules.") + one, "unschedulable-affinity", "anti-affinity"},
		{"spread", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) didn''t match pod topology spread constraints.") + one, "unschedulable-spread", ""},
		{"ports", unscheduledPod("ports: [{containerPort: 80, hostPort: 80}]", "", "0/1 nodes are available: 1 node(s) didn''t have free ports for the requested pod ports.") + one + busy, "unschedulable-ports", "pod/busy in other"},
		{"cordoned", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) were unschedulable.") + aNode("node1", "unschedulable: true, taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]", ""), "unschedulable-cordoned", "kubectl uncordon node1"},
		{"nodes that are not read", unscheduledPod("", "", "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: 3 No preemption victims found for incoming pods."), "unschedulable-resources", ""},
		{"words that are new", unscheduledPod("", "", "0/1 nodes are available: 1 node(s) were too far away.") + one, "unschedulable", "too far away"},
		{"gated", strings.Replace(unscheduledPod("", "schedulingGates: [{name: example.test/wait}]", "Scheduling is blocked due to non-empty scheduling gates"), "reason: Unschedulable", "reason: SchedulingGated", 1) + one, "pod-gated", "example.test/wait"},
		{"its claim comes first", unscheduledPod("", "volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]", "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.") + one +
			"\n---\nkind: PersistentVolumeClaim\nmetadata: {name: data}\nspec: {storageClassName: fast}\nstatus: {phase: Pending}\n", "claim-class-absent", "storage class fast does not exist"},
	})
}
