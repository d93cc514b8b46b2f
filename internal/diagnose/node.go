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
	out = s.absentNodes()
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

// absentNodes are about pods whose spec names a node that there is none of.
func (s *Snapshot) absentNodes() (out []Finding) {
	var have []string
	there := map[string]bool{}
	for _, n := range s.Nodes {
		have, there[n.Name] = append(have, n.Name), true
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		// A pod that has run is removed in a moment, and so is one that is being deleted.
		if p.Spec.NodeName == "" || len(have) == 0 || over(p) || there[p.Spec.NodeName] || hasRun(p) || p.DeletionTimestamp != nil || s.Now.Sub(p.CreationTimestamp.Time) < startPatience {
			continue
		}
		f := s.ofPod(p, "node-absent", Problem, Scheduling)
		f.because = nil
		f.Summary = fmt.Sprintf("its node, %s, does not exist", p.Spec.NodeName)
		f.Why = "nobody starts its containers, and after a while it is removed"
		f.State = []Evidence{{From: f.Object.String() + " spec.nodeName", Says: p.Spec.NodeName}, {From: "nodes", Says: few(have)}}
		if like := nearest(p.Spec.NodeName, have); like != "" {
			f.Next = append(f.Next, fmt.Sprintf("if %s is meant: %s", like, f.edit()))
		}
		f.Next = append(f.Next, "leave out nodeName, for which the scheduler finds a node, or use a nodeSelector: "+f.edit())
		out = append(out, f)
	}
	return out
}
