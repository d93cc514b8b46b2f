package kube

import (
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// A bare pod has no template; what is like it is made from the pod itself, without what the cluster has added to it since. Its
// selector is all of its labels: a Service that selects no other pod selects none that these would.

// added are annotations that tools and admission put on a pod, and that are false, or too much, on another.
var added = []string{
	corev1.LastAppliedConfigAnnotation, // the whole manifest
	istioStatus,                        // with it a sidecar would not be injected
	"k8s.v1.cni.cncf.io/network-status",
}

// istioStatus says in JSON what Istio's injection has put into a pod; it does so again with a pod made from the template, and twice the same would
// not start.
const istioStatus = "sidecar.istio.io/status"

// withoutIstio takes out of t, a pod's own, what its annotation says was injected.
func withoutIstio(t *corev1.PodTemplateSpec) {
	var injected struct{ InitContainers, Containers, Volumes []string }
	if json.Unmarshal([]byte(t.Annotations[istioStatus]), &injected) != nil {
		return // there is none, or it is not Istio's
	}
	s, names := &t.Spec, slices.Concat(injected.InitContainers, injected.Containers)
	theirs := func(c corev1.Container) bool { return slices.Contains(names, c.Name) }
	s.InitContainers = slices.DeleteFunc(s.InitContainers, theirs)
	s.Containers = slices.DeleteFunc(s.Containers, theirs)
	s.Volumes = slices.DeleteFunc(s.Volumes, func(v corev1.Volume) bool {
		mounts := func(c corev1.Container) bool {
			return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name })
		}
		return slices.Contains(injected.Volumes, v.Name) && !slices.ContainsFunc(slices.Concat(s.InitContainers, s.Containers), mounts)
	})
}

// templateOf is what p may have been made from.
func templateOf(p *corev1.Pod) corev1.PodTemplateSpec {
	p = p.DeepCopy()
	t := corev1.PodTemplateSpec{Spec: p.Spec}
	t.Name, t.Labels, t.Annotations = p.Name, p.Labels, p.Annotations
	withoutIstio(&t)
	for _, name := range added {
		delete(t.Annotations, name)
	}
	s := &t.Spec
	s.NodeName, s.EphemeralContainers = "", nil
	if s.Hostname == "" {
		// What a program in it sees; the kubelet cuts it to what a host name may have.
		s.Hostname, _, _ = strings.Cut(p.Name, ".")
		s.Hostname = strings.TrimRight(s.Hostname[:min(len(s.Hostname), 63)], "-")
	}
	// Admission adds it to every pod: a volume with a name of its own, at the same place in each container.
	injected := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	s.Volumes = slices.DeleteFunc(s.Volumes, func(v corev1.Volume) bool { return injected(v.Name) })
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			list[i].VolumeMounts = slices.DeleteFunc(list[i].VolumeMounts, func(m corev1.VolumeMount) bool { return injected(m.Name) })
		}
	}
	s.Tolerations = slices.DeleteFunc(s.Tolerations, usualToleration)
	return t
}

// usualToleration tells whether it is one of the two that admission adds to pods that say nothing else of lost nodes.
func usualToleration(t corev1.Toleration) bool {
	return (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable) && t.Operator == corev1.TolerationOpExists &&
		t.Effect == corev1.TaintEffectNoExecute && t.TolerationSeconds != nil && *t.TolerationSeconds == 300
}
