package debug

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// userOf is whom a container runs as by its status, nil where the cluster does not tell.
func userOf(pod *corev1.Pod, container string) *corev1.LinuxContainerUser {
	for _, s := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if s.Name == container && s.User != nil {
			return s.User.Linux
		}
	}
	return nil
}

// securityContext is that of a container beside c: its user and group, and its rights, since who has fewer may not look at its processes.
// The API server judges the pod as a whole by its namespace's Pod Security level, so that what c has is let in, or nothing is.
func securityContext(c *corev1.Container, user *corev1.LinuxContainerUser, own bool) *corev1.SecurityContext {
	out := &corev1.SecurityContext{}
	if c.SecurityContext != nil {
		out = c.SecurityContext.DeepCopy()
	}
	out.ReadOnlyRootFilesystem = nil
	if yes := true; own {
		out.ReadOnlyRootFilesystem = &yes
	}
	if user != nil {
		uid, gid := user.UID, user.GID
		out.RunAsUser, out.RunAsGroup = &uid, &gid
	}
	return out
}
