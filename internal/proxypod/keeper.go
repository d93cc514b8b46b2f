package proxypod

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// keeperPort is the keeper's health port, on its pod's address.
const keeperPort = firstPort

// keeperGrace is the pod's termination grace period, in seconds: a request on its way may end.
const keeperGrace int64 = 5

// Keeper is the Deployment of the pod that gives a swap back when the laptop is gone: the program of the proxy's container,
// on the same image and kind of node, in a pod of its own that has nothing else of the target's. account is its
// ServiceAccount, replicaSets are the target's.
func Keeper(proxy *appsv1.Deployment, container, account string, replicaSets []string) *appsv1.Deployment {
	like := proxy.Spec.Template.Spec
	program := like.Containers[slices.IndexFunc(like.Containers, func(c corev1.Container) bool { return c.Name == container })]
	args := []string{"keep", "--lease", proxy.Name, "--health", fmt.Sprintf(":%d", keeperPort)}
	for _, name := range replicaSets {
		args = append(args, "--replicaset", name)
	}
	resources := corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
	if cpu, limited := program.Resources.Limits[corev1.ResourceCPU]; limited {
		resources.Limits[corev1.ResourceCPU] = cpu
	}
	yes, no, grace := true, false, keeperGrace
	label := map[string]string{KeeperLabel: LabelValue(proxy.Name)}
	return deployment(KeeperName(proxy.Name), proxy.Namespace, label, 1, corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: label},
		Spec: corev1.PodSpec{
			ServiceAccountName:            account,
			AutomountServiceAccountToken:  &yes,
			EnableServiceLinks:            &no,
			TerminationGracePeriodSeconds: &grace,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   &yes,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			NodeSelector:     like.NodeSelector,
			Affinity:         nodeAffinity(like.Affinity),
			Tolerations:      like.Tolerations,
			ImagePullSecrets: like.ImagePullSecrets,
			Volumes:          slices.DeleteFunc(slices.Clone(like.Volumes), func(v corev1.Volume) bool { return v.Name != volumeName }),
			Containers: []corev1.Container{{
				Name: "keeper", Image: program.Image, ImagePullPolicy: program.ImagePullPolicy,
				Command: program.Command, Args: args,
				VolumeMounts:             slices.DeleteFunc(slices.Clone(program.VolumeMounts), func(m corev1.VolumeMount) bool { return m.Name != volumeName }),
				Resources:                resources,
				ReadinessProbe:           readiness(keeperPort),
				SecurityContext:          securityContext(nil, nil),
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
			}},
		},
	})
}

// nodeAffinity is what a has to do with nodes; nil when that is nothing.
func nodeAffinity(a *corev1.Affinity) *corev1.Affinity {
	if a == nil || a.NodeAffinity == nil {
		return nil
	}
	return &corev1.Affinity{NodeAffinity: a.NodeAffinity}
}
