package diagnose

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"bridge/internal/hint"
	"bridge/internal/kube"
)

// kinds are those that can be named beside kube.ParseTarget's, by kubectl's names.
var kinds = map[string]string{
	"job": "job", "jobs": "job",
	"cronjob": "cronjob", "cronjobs": "cronjob", "cj": "cronjob",
	"persistentvolumeclaim": "persistentvolumeclaim", "persistentvolumeclaims": "persistentvolumeclaim", "pvc": "persistentvolumeclaim",
	"ingress": "ingress", "ingresses": "ingress", "ing": "ingress",
	"horizontalpodautoscaler": "horizontalpodautoscaler", "horizontalpodautoscalers": "horizontalpodautoscaler", "hpa": "horizontalpodautoscaler",
	"networkpolicy": "networkpolicy", "networkpolicies": "networkpolicy", "netpol": "networkpolicy",
	"poddisruptionbudget": "poddisruptionbudget", "poddisruptionbudgets": "poddisruptionbudget", "pdb": "poddisruptionbudget",
	"node": "node", "nodes": "node", "no": "node",
}

// ParseTarget reads "TYPE/NAME" with kubectl's names of types, for an object in namespace.
func ParseTarget(arg, namespace string) (Ref, error) {
	kind, name, slash := strings.Cut(arg, "/")
	short, _, _ := strings.Cut(strings.ToLower(kind), ".")
	if k, known := kinds[short]; known && slash {
		if name == "" || strings.ContainsAny(name, "/ ") {
			return Ref{}, hint.Newf(hint.Usage, "write for example deployment/orders", "target %q: %q is not a name", arg, name)
		}
		if k == "node" {
			namespace = ""
		}
		return Ref{Kind: k, Namespace: namespace, Name: name}, nil
	}
	t, err := kube.ParseTarget(arg)
	if err == nil && t.Kind == kube.Rollout {
		return Ref{Kind: rolloutKind, Namespace: namespace, Name: t.Name}, nil
	}
	return Ref{Kind: string(t.Kind), Namespace: namespace, Name: t.Name}, err
}

// each calls do for every object of the snapshot that can be named.
func (s *Snapshot) each(do func(kind string, o metav1.Object)) {
	for i := range s.Pods {
		do("pod", &s.Pods[i])
	}
	for i := range s.Services {
		do("service", &s.Services[i])
	}
	for i := range s.Deployments {
		do("deployment", &s.Deployments[i])
	}
	for i := range s.ReplicaSets {
		do("replicaset", &s.ReplicaSets[i])
	}
	for i := range s.StatefulSets {
		do("statefulset", &s.StatefulSets[i])
	}
	for i := range s.DaemonSets {
		do("daemonset", &s.DaemonSets[i])
	}
	for i := range s.Jobs {
		do("job", &s.Jobs[i])
	}
	for i := range s.CronJobs {
		do("cronjob", &s.CronJobs[i])
	}
	for i := range s.Controllers {
		do(string(kube.ReplicationController), &s.Controllers[i])
	}
	for i := range s.Claims {
		do("persistentvolumeclaim", &s.Claims[i])
	}
	for i := range s.Policies {
		do("networkpolicy", &s.Policies[i])
	}
	for i := range s.Ingresses {
		do("ingress", &s.Ingresses[i])
	}
	for i := range s.Autoscalers {
		do("horizontalpodautoscaler", &s.Autoscalers[i])
	}
	for i := range s.Budgets {
		do("poddisruptionbudget", &s.Budgets[i])
	}
	for i := range s.Rollouts {
		do(rolloutKind, &s.Rollouts[i])
	}
	for i := range s.Nodes {
		do("node", &s.Nodes[i])
	}
}

// exist is an error for a target that does not, among what could be read.
func (s *Snapshot) exist(targets []Ref) error {
	there := map[Ref]bool{}
	s.each(func(kind string, o metav1.Object) { there[refOf(kind, o)] = true })
	for _, t := range targets {
		all := plural(t.Kind + "s")
		switch t.Kind {
		case "ingress":
			all = ingresses
		case "networkpolicy":
			all = policies
		case rolloutKind:
			all = argoRollouts
		}
		switch {
		case there[t]:
		case s.isUnread(all):
			return hint.Newf(hint.Forbidden, "ask for the Role that bridge rbac diagnose prints", "diagnose %s: your account may not list %s in %s", t, all, within(t.Namespace))
		case t.Namespace == "":
			return hint.Newf(hint.NotFound, "list them with: kubectl get "+string(all), "%s does not exist", t)
		default:
			return hint.Newf(hint.NotFound, fmt.Sprintf("check the name and the namespace (-n); list them with: kubectl get %s -n %s", all, t.Namespace), "%s does not exist in %s", t, t.Namespace)
		}
	}
	return nil
}

// around are the targets and what they work with: the pods of a workload and those that own them, a Service with its pods and the
// other way round, claims, autoscalers, Ingresses, nodes. Nil without targets: everything.
func (s *Snapshot) around(targets []Ref) map[Ref]bool {
	if len(targets) == 0 {
		return nil
	}
	near := map[Ref]bool{}
	for _, t := range targets {
		near[t] = true
	}
	owners := map[Ref]Ref{}
	s.each(func(kind string, o metav1.Object) {
		if by, made := maker(o); made {
			owners[refOf(kind, o)] = by
		}
	})
	nearPods := func() (out []Ref) {
		for i := range s.Pods {
			if r := refOf("pod", &s.Pods[i]); near[r] {
				out = append(out, r)
			}
		}
		return out
	}
	// Down: what is named has these pods.
	for _, ing := range s.Ingresses {
		if near[refOf("ingress", &ing)] {
			for _, b := range backends(&ing) {
				near[Ref{"service", ing.Namespace, b.Name}] = true
			}
		}
	}
	for _, h := range s.Autoscalers {
		if near[refOf("horizontalpodautoscaler", &h)] {
			near[scaledBy(&h)] = true
		}
	}
	for i := range s.Services {
		if v := &s.Services[i]; near[refOf("service", v)] {
			for _, p := range s.selected(v.Namespace, v.Spec.Selector) {
				near[refOf("pod", p)] = true
			}
		}
	}
	for i := range s.Budgets {
		if b := &s.Budgets[i]; near[refOf("poddisruptionbudget", b)] {
			for _, p := range s.budgeted(b) {
				near[refOf("pod", p)] = true
			}
		}
	}
	for range 3 { // a CronJob's pods are three owners down
		for r, o := range owners {
			if near[o] {
				near[r] = true
			}
		}
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if near[Ref{Kind: "node", Name: p.Spec.NodeName}] || slices.ContainsFunc(claimsOf(p), func(r Ref) bool { return near[r] }) {
			near[refOf("pod", p)] = true
		}
	}
	// Up and aside: what these pods are reached by and stand on.
	for _, r := range nearPods() {
		for range longestChain {
			o, made := owners[r]
			if !made {
				break
			}
			near[o] = true
			r = o
		}
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		if !near[refOf("pod", p)] {
			continue
		}
		for _, c := range claimsOf(p) {
			near[c] = true
		}
		if p.Spec.NodeName != "" {
			near[Ref{Kind: "node", Name: p.Spec.NodeName}] = true
		}
	}
	for i := range s.Services {
		v := &s.Services[i]
		if slices.ContainsFunc(s.selected(v.Namespace, v.Spec.Selector), func(p *pod) bool { return near[refOf("pod", p)] }) {
			near[refOf("service", v)] = true
		}
	}
	for _, ing := range s.Ingresses {
		for _, b := range backends(&ing) {
			// Those of others that an Ingress shares its Services with are none of its.
			if near[Ref{"service", ing.Namespace, b.Name}] && slices.ContainsFunc(targets, func(t Ref) bool { return t.Kind != "ingress" }) {
				near[refOf("ingress", &ing)] = true
			}
		}
	}
	for _, h := range s.Autoscalers {
		if near[scaledBy(&h)] {
			near[refOf("horizontalpodautoscaler", &h)] = true
		}
	}
	for i := range s.Budgets {
		if slices.ContainsFunc(s.budgeted(&s.Budgets[i]), func(p *pod) bool { return near[refOf("pod", p)] }) {
			near[refOf("poddisruptionbudget", &s.Budgets[i])] = true
		}
	}
	for i := range s.Policies {
		if slices.ContainsFunc(s.policed(&s.Policies[i]), func(p *pod) bool { return near[refOf("pod", p)] }) {
			near[refOf("networkpolicy", &s.Policies[i])] = true
		}
	}
	return near
}
