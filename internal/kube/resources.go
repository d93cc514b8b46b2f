package kube

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
)

// Sidecar tells whether an init container goes on beside the others (KEP-753).
func Sidecar(c corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Together is what the scheduler and a quota count for a pod's containers, of the part of their resources that of names: all containers and sidecars, or,
// if that is more, an init container with the sidecars before it.
func Together(p *corev1.PodSpec, of func(corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	all, starting := corev1.ResourceList{}, corev1.ResourceList{}
	for _, c := range p.InitContainers {
		if Sidecar(c) {
			Sum(all, of(c.Resources))
			continue
		}
		with := maps.Clone(all)
		Sum(with, of(c.Resources))
		most(starting, with)
	}
	for _, c := range p.Containers {
		Sum(all, of(c.Resources))
	}
	most(all, starting)
	return all
}

// Sum adds each of l to that of to.
func Sum(to, l corev1.ResourceList) {
	for name, q := range l {
		both := to[name].DeepCopy()
		both.Add(q)
		to[name] = both
	}
}

func most(to, l corev1.ResourceList) {
	for name, q := range l {
		if q.Cmp(to[name]) > 0 {
			to[name] = q
		}
	}
}
