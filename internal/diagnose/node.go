package diagnose

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// pressures are a node's conditions that are bad when they are true, and what follows.
var pressures = []struct {
	condition corev1.NodeConditionType
	id, why   string
}{
	{corev1.NodeMemoryPressure, "node-memory-pressure", "the kubelet evicts pods that use more memory than they ask for, and starts no new ones without requests"},
	{corev1.NodeDiskPressure, "node-disk-pressure", "the kubelet evicts pods, removes images, and starts no new pods"},
	{corev1.NodePIDPressure, "node-pid-pressure", "the kubelet evicts pods, and programs cannot start others"},
	{corev1.NodeNetworkUnavailable, "node-network-unavailable", "its pods have no network"},
}

// checkNodes is about nodes that are not well: those that have pods of what is looked at, or all when none of them is left.
func checkNodes(s *Snapshot) (out []Finding) {
	used := map[string]int{}
	for i := range s.Pods {
		if p := &s.Pods[i]; p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			used[p.Spec.NodeName]++
		}
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if used[n.Name] == 0 {
			continue
		}
		for _, c := range n.Status.Conditions {
			f := Finding{Severity: Problem, Direction: Node, Object: Ref{Kind: "node", Name: n.Name}}
			f.Next = []string{"kubectl describe node " + n.Name}
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				f.ID = "node-not-ready"
				f.Summary = fmt.Sprintf("it is not ready, and has %s of those looked at", counted(used[n.Name], "pod"))
				f.Why = "pods on it get no traffic, and after five minutes they are made anew elsewhere; until it is back nobody knows whether they run"
				if c.Status == corev1.ConditionUnknown {
					f.Summary = fmt.Sprintf("its kubelet does not report, and it has %s of those looked at", counted(used[n.Name], "pod"))
				}
				f.Next = append(f.Next, "look on the node: is it up, does it reach the API server, does its kubelet run")
			}
			for _, p := range pressures {
				if c.Type == p.condition && c.Status == corev1.ConditionTrue {
					f.ID, f.Why, f.Severity = p.id, p.why, Warning
					f.Summary = fmt.Sprintf("it has %s", c.Type)
				}
			}
			if f.ID == "" {
				continue
			}
			f.condition(f.Object, string(c.Type), string(c.Status), c.Reason, c.Message, c.LastTransitionTime)
			f.Events = told(s.eventsOf("node", n))
			out = append(out, f)
		}
	}
	return out
}
